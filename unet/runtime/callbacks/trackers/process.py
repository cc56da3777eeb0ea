"""A tracker in a process of its own: its library, its threads and its network cannot stop or slow the run.

Events go through a bounded queue and a thread to that process, as lines of JSON. At the end the run waits a few seconds
for it, then ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import unet
from unet import host
from unet.errors import UnetError

MOST = 10_000  # events that wait; more are left out
PARTING = 5.0  # seconds for it after an error, which is to be shown
SLOW = 20.0  # seconds without an answer after which a notice comes
MODULE = "unet.runtime.callbacks.trackers.worker"


class ProcessSink:
    """Gives events to the worker of `kind` (wandb, mlflow) with these options. `wait`: seconds for it at the end."""

    def __init__(self, kind: str, options: Mapping[str, Any], wait: float) -> None:
        self.kind, self.options, self.wait = kind, dict(options), wait
        self.queue: queue.Queue[str | None] = queue.Queue(MOST)
        self.process: subprocess.Popen[str] | None = None
        self.answer: dict[str, Any] = {}  # ready, failed, ended: what the worker said
        self.dropped = 0
        self.told_slow = False
        self.began = 0.0

    def start(self, about: Mapping[str, Any]) -> None:
        package = str(Path(unet.__file__).parent.parent)
        paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", MODULE, self.kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is this process's
        )
        self.began = time.monotonic()
        for work in (self._write, self._read):
            threading.Thread(target=work, daemon=True).start()
        self._put("start", self.options, about)

    def scalars(self, step: int, when: float, values: Mapping[str, float]) -> None:
        self._put("scalars", step, when, values)

    def picture(self, step: int, name: str, path: str) -> None:
        self._put("picture", step, name, path)

    def file(self, path: str) -> None:
        self._put("file", path)

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """Wait for the worker at most `wait` seconds, then end it. Raises UnetError where it did not take all."""
        with contextlib.suppress(UnetError):
            self._put("end", status, summary)
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(None)
        left = self._finish(min(self.wait, PARTING) if status == "failed" else self.wait)
        if "failed" in self.answer:
            raise UnetError(self.answer["failed"], "")
        if left or self.dropped:
            words = f"{self.dropped} events were left out." if self.dropped else ""
            late = f"It did not take everything within {self.wait:g} s (--track-wait), and was ended." if left else ""
            raise UnetError(f"{late} {words} {self.answer.get('later', '')}".strip(), "")
        if where := self.answer.get("where"):
            host.notice(f"--{self.kind}: {where}")

    def _put(self, event: str, *values: Any) -> None:
        """Add an event to the queue; never waits. Raises UnetError where the worker has said that it cannot go on."""
        if "failed" in self.answer:
            raise UnetError(self.answer["failed"], "")
        if not self.told_slow and "ready" not in self.answer and time.monotonic() - self.began > SLOW:
            self.told_slow = True
            host.notice(f"--{self.kind}: no answer for {SLOW:.0f} s; the run does not wait for it.")
        try:
            self.queue.put_nowait(json.dumps([event, *values]))
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        """In a thread: pass events on."""
        assert self.process is not None and self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError), self.process.stdin as stream:
            while (line := self.queue.get()) is not None:
                stream.write(line + "\n")
                stream.flush()

    def _read(self) -> None:
        """In a thread: what the worker says."""
        assert self.process is not None and self.process.stdout is not None
        with contextlib.suppress(OSError, ValueError), self.process.stdout as stream:
            for line in stream:
                self.answer |= json.loads(line)
        if "ended" not in self.answer:
            self.answer.setdefault("failed", "Its process has ended.")

    def _finish(self, wait: float) -> bool:
        """Wait for the process to end, then kill it, with those that it started. Returns whether it had to be."""
        if self.process is None:
            return False
        try:
            self.process.wait(wait)
            return "ended" not in self.answer and "failed" not in self.answer and not self._said_last()
        except subprocess.TimeoutExpired:
            self.answer.setdefault("ended", False)
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            return True

    def _said_last(self) -> bool:
        """Whether the last words of a process that has ended come within a moment."""
        end = time.monotonic() + 1.0
        while time.monotonic() < end and not {"ended", "failed"} & set(self.answer):
            time.sleep(0.01)
        return "ended" in self.answer
