"""The ways to ask a run to stop."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from types import FrameType

from unet import host


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to stop: Ctrl-C, SIGTERM, SIGUSR1, and SIGHUP (the terminal was closed) unless
    it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in host.TO_STOP if number != signal.SIGHUP or not ignored)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Outside a loop that asks `Stop`, SIGTERM, SIGUSR1 and SIGHUP (unless it is ignored) are a Ctrl-C: while a cache
    is built, while cases are scored or predicted."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [number for number in stop_signals() if number != signal.SIGINT]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop:
    """Requests to stop: SIGINT, SIGTERM, SIGUSR1, SIGHUP and the time limit. A second SIGINT stops at once.

    The time limit counts once something has been done (`worked`: a step, an evaluation), so that a run which is stopped
    and resumed again and again still comes to its end.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.reason: str | None = None
        self.worked = False
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._note) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                again = number == signal.SIGHUP and self.reason == "SIGHUP"  # a closed terminal may tell it twice
                signal.signal(number, signal.SIG_IGN if again else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        host.notice(f"{self.reason}: the step in hand is finished, then the run is saved.")

    def asked(self) -> bool:
        if not self.reason and self.worked and time.monotonic() > self.deadline:
            self.reason = "--max-time"
        return self.reason is not None
