"""Stop requests: signals and the time limit."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from unet import host


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask this process to stop: Ctrl-C, SIGTERM, SIGUSR1, and SIGHUP (the terminal was closed) unless
    it is ignored, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in host.TO_STOP if number != signal.SIGHUP or not ignored)


@contextlib.contextmanager
def handling(numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Signals go to `handler`, and to the handlers from before at the end."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Where no loop checks `Stop` (building a cache, scoring, predicting), SIGTERM, SIGUSR1 and SIGHUP (unless ignored)
    act like Ctrl-C."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with handling([number for number in stop_signals() if number != signal.SIGINT], interrupt):
        yield


class Stop:
    """Requests to stop: SIGINT, SIGTERM, SIGUSR1, SIGHUP and the time limit. A second SIGINT stops at once.

    The time limit counts from the start of the program. It applies only after a step or an evaluation
    (`made_progress`), so that a run that is stopped and resumed again and again still comes to its end.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.reason: str | None = None
        self.made_progress = False
        began = time.monotonic() - (time.perf_counter() - host.STARTED)
        self.deadline = began + 60 * max_minutes if max_minutes else math.inf

    @property
    def signal(self) -> str | None:
        """The signal that asked to stop; None for the time limit."""
        return None if self.reason == "--max-time" else self.reason

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._note) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                again = number == signal.SIGHUP and self.reason == "SIGHUP"  # a closed terminal may send it twice
                signal.signal(number, signal.SIG_IGN if again else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        with contextlib.suppress(OSError, RuntimeError):  # the reader is gone; the signal came within a print
            host.notice(f"{self.reason}: finishing the current step, then saving the run.")

    def requested(self) -> bool:
        if not self.reason and self.made_progress and time.monotonic() > self.deadline:
            self.reason = "--max-time"
        return self.reason is not None
