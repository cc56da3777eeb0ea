"""Reads power in the background while a run goes on (--power), and adds it up to joules.

One thread asks the sources in turn, one at a time. What fails is told once and tried again later: a source never stops
or slows the run. Present watts are integrated by the trapezoidal rule; where two readings are further apart than the
longest wait for a program, nothing is counted in between, and these seconds are told as a gap. Counters of energy have
no gaps.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from unet import files
from unet.devices.base import first_line
from unet.devices.power.sources import Reading, Source
from unet.devices.power.tools import PATIENCE, Unreadable

HEAD = "time,source,watts"
REST_PACE = 0.5  # seconds between readings of the idle level, at most
REST = (1.0, 5.0)  # seconds that it is measured: ten intervals within these bounds
END = 1.0  # seconds for the thread to end
LONGEST_PAUSE = 60.0  # seconds until a source that fails again and again is tried again


@dataclasses.dataclass
class Channel:
    """The energy of a card, a processor or its memory so far. `idle`: watts before the run."""

    joules: float = 0.0
    seconds: float = 0.0
    gap: float = 0.0
    readings: int = 0
    at: float | None = None
    watts: float = 0.0
    idle: float | None = None
    resting: list[Reading] = dataclasses.field(default_factory=list)

    def rested(self) -> float | None:
        """The idle level: the mean of what a counter said, else the median of what was read."""
        seconds = sum(reading.seconds for reading in self.resting)
        if seconds:
            return sum(reading.watts * reading.seconds for reading in self.resting) / seconds
        return statistics.median(reading.watts for reading in self.resting) if self.resting else None

    def add(self, at: float, reading: Reading, longest: float) -> None:
        """Count the energy since the last reading."""
        if reading.seconds:
            self.joules += reading.watts * reading.seconds
            self.seconds += reading.seconds
        elif self.at is not None and at - self.at <= longest:
            self.joules += (reading.watts + self.watts) / 2 * (at - self.at)
            self.seconds += at - self.at
        elif self.at is not None:
            self.gap += at - self.at
        self.at, self.watts, self.readings = at, reading.watts, self.readings + 1

    def until(self, now: float, longest: float) -> tuple[float, float]:
        """(joules, seconds) with those since the last reading, at its watts."""
        since = min(max(0.0, now - self.at), longest) if self.at is not None else 0.0
        return self.joules + since * self.watts, self.seconds + since


class Sampler:
    """Reads `sources` every `interval` seconds from `start` to `stop`. `name`: put before channels in the log."""

    def __init__(self, sources: Sequence[Source], interval: float, name: str = "") -> None:
        self.sources, self.interval, self.name = list(sources), interval, name
        self.channels: dict[str, Channel] = {}
        self.failed: dict[str, str] = {}
        self.lines = 0
        self._pace = min(interval, REST_PACE)
        self._longest = max(3 * interval, PATIENCE + interval)
        self._lock, self._over = threading.Lock(), threading.Event()
        self._resting, self._slow, self._most = True, False, 0.0
        self._again: dict[str, tuple[int, float]] = {}  # source -> (failures in a row, when it is asked again)
        self._ended: float | None = None
        self._remarks: list[str] = []
        self._rows: list[str] = []
        self._path: Path | None = None
        self.keeps_rows = False
        self._thread = threading.Thread(target=self._work, name="power", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def rest(self) -> float:
        """Measure the idle level: wait some seconds, and look at the readings. Returns the seconds."""
        least, most = REST
        began, seconds = time.monotonic(), min(max(10 * self.interval, least), most)
        while time.monotonic() - began < seconds and not self._over.wait(0.05):
            if all(self._again.get(source.name, (0, 0.0))[1] == float("inf") for source in self.sources):
                break  # none can be read
        with self._lock:
            for channel in self.channels.values():
                channel.idle = channel.rested()
            self._resting, self._pace = False, self.interval
        return time.monotonic() - began

    def stop(self) -> None:
        """End the thread, within a second; a source that hangs is left behind."""
        self._over.set()
        if self._ended is None:
            self._ended = time.monotonic()
        if self._thread.is_alive():
            self._thread.join(END)

    def energy(self) -> dict[str, float]:
        """Joules until now; those above the idle level; those of channels whose idle level is not known; seconds that
        are covered, and those of gaps; readings."""
        with self._lock:
            now = time.monotonic() if self._ended is None else self._ended
            found = [(channel, *channel.until(now, self._longest)) for channel in self.channels.values()]
            self._most = max(self._most, sum(joules for _, joules, _ in found))  # the present second is a guess
            return {
                "joules": self._most,
                "above_idle": sum(
                    joules - channel.idle * seconds for channel, joules, seconds in found if channel.idle is not None
                ),
                "without_idle": sum(joules for channel, joules, _ in found if channel.idle is None),
                "seconds": max((seconds for _, _, seconds in found), default=0.0),
                "gap_seconds": max((channel.gap for channel, _, _ in found), default=0.0),
                "readings": float(sum(channel.readings for channel, _, _ in found)),
            }

    def by_channel(self) -> dict[str, tuple[float | None, float, float]]:
        """{channel: (its idle level, joules, seconds) since the start}."""
        with self._lock:
            return {name: (item.idle, item.joules, item.seconds) for name, item in self.channels.items()}

    def remarks(self) -> list[str]:
        """What is to be told to the user, each once."""
        with self._lock:
            told, self._remarks = self._remarks, []
        return told

    def log_to(self, path: Path) -> None:
        """From now on add the readings to a file, those that are kept included. Raises StorageError if it is none."""
        known = files.require_regular(path).read_bytes().count(b"\n") if os.path.lexists(path) else 0
        with self._lock:
            self._path, self.lines = path, known
            if not known:
                self._rows.insert(0, HEAD)

    def rows(self) -> list[str]:
        """The readings that are kept, which are then forgotten."""
        with self._lock:
            rows, self._rows = self._rows, []
        return rows

    def add_rows(self, rows: Sequence[str]) -> None:
        """Also log these."""
        with self._lock:
            self._rows += rows

    def _work(self) -> None:
        due = time.monotonic()
        while not self._over.is_set():
            for source in self.sources:
                self._ask(source)
            self._write()
            due = max(due + self._pace, time.monotonic())
            self._over.wait(due - time.monotonic())
        self._write()

    def _ask(self, source: Source) -> None:
        """Take the readings of a source; what fails is noted."""
        began = time.monotonic()
        if self._over.is_set() or began < self._again.get(source.name, (0, 0.0))[1]:
            return
        try:
            readings = source.read(self._over)
        except Exception as error:  # a vendor's library may raise anything
            if not self._over.is_set():
                why = str(error) if isinstance(error, Unreadable) else first_line(error)
                self._fail(source.name, why, isinstance(error, Unreadable) and error.final)
            return
        now = time.monotonic()
        if self._ended is not None:
            return
        with self._lock:
            self._again.pop(source.name, None)
            if now - began > self.interval and not self._slow:
                self._slow = True
                self._remarks.append(
                    f"power: {source.name} takes {now - began:.1f} s for an answer: power is read that often, not every"
                    f" {self.interval:g} s"
                )
            for reading in readings:
                channel = self.channels.setdefault(reading.channel, Channel())
                channel.add(now, reading, self._longest)
                if self._resting:
                    channel.resting.append(reading)
                if self.keeps_rows:
                    self._rows.append(f"{time.time():.3f},{self.name}{reading.channel},{reading.watts:.2f}")

    def _fail(self, name: str, why: str, final: bool) -> None:
        with self._lock:
            count = self._again.get(name, (0, 0.0))[0] + 1
            pause = float("inf") if final else min(LONGEST_PAUSE, self.interval * 2 ** min(count, 16))
            self._again[name] = count, time.monotonic() + pause
            if name not in self.failed:
                self.failed[name] = why
                self._remarks.append(f"power: {name} cannot be read: {why}; the run goes on")

    def _write(self) -> None:
        """Add the kept rows to the log, in one piece."""
        with self._lock:
            if self._path is None or not self._rows:
                return
            rows, self._rows = self._rows, []
            try:
                with open(self._path, "ab", buffering=0) as stream:
                    stream.write("".join(f"{row}\n" for row in rows).encode())
                self.lines += len(rows)
            except OSError as error:
                self._path, self.keeps_rows = None, False
                self.failed["log"] = f"{error.strerror}"
                self._remarks.append(f"power: the log cannot be written ({error.strerror}); the run goes on without it")
