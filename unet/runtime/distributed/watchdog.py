"""A sign of life from every rank, and the end of all where one falls silent.

Each rank writes a beat every second: where it is, how far it has come, and whether it may take its time there
(compiling, scoring, saving, building a cache). Rank 0 watches all, the others watch rank 0. A rank is lost when its
process is gone, when no beat comes for the timeout, or when it is the one that is behind, at a place where it should
move, and does not for the timeout (or for ten times a usual step, if that is longer). The verdict names it; every rank
then ends with an error, out of a collective that would never return.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unet import files
from unet.devices.base import first_line
from unet.errors import FAILED, UnetError

AGAIN = "Start all processes again with the same command."
RESUME = "The last saved state is kept: start all processes again with the same command and --resume --run-name NAME."
NEWS = "waiting for news of another rank"  # a rank that is here has an error, and is not ahead of the others
GRACE = 5.0  # seconds in which the main thread may end by itself, with its logs written
STEPS = 10.0  # usual steps that one step may last


class Heart(threading.Thread):
    """The beating and watching thread of one rank; `line` is a connection of its own to the store of the run
    (`meeting.Line`): signed, so that nobody else's keys count."""

    def __init__(self, line: Any, rank: int, world: int, timeout: float) -> None:
        super().__init__(daemon=True, name="heart")
        self.line, self.rank, self.world, self.timeout = line, rank, world, timeout
        self.place, self.patient, self.marks, self.beats, self.step = "starting", True, 0, 0, 0.0
        self.on_death: Callable[[str], None] | None = None
        self.hint = AGAIN
        self.known: str | None = None
        self.speaks = rank == 0  # the one that tells the user; all do where rank 0 cannot
        self.decided, self.quiet = threading.Event(), threading.Event()
        self.seen: dict[int, Sighting] = {}
        self.behind: tuple[int, tuple[int, ...]] = (0, ())
        self.behind_at = self.round_at = time.monotonic()
        self.peace = False

    def mark(self, place: str, patient: bool = False) -> None:
        """Note where this rank is. Cheap: no message is sent."""
        self.place, self.patient = place, patient
        self.marks += 1

    # -- what the thread does ------------------------------------------------------------------------------------

    def run(self) -> None:
        threading.Thread(target=self.overlook, daemon=True, name="heart's watch").start()
        interval = min(1.0, self.timeout / 8)
        while not self.quiet.wait(interval):
            now = time.monotonic()
            if now - self.round_at > self.timeout / 2:  # this process was stopped for a while: others are not to blame
                self.seen.clear()
            self.round_at = now
            found, headless = None, False
            try:
                self.beat()
                found, headless = self.watch()
            except (RuntimeError, OSError) as error:  # the store is gone, and with it the process that held it
                if self.quiet.is_set() or self.peace:
                    return
                found = (
                    self.gone()
                    or f"Rank 0, or the launcher that held the meeting place, is gone ({first_line(error)})."
                )
                headless = True
            if found:
                self.decide(found, headless)
                return

    def overlook(self) -> None:
        """The store may not answer at all: its process is stopped, or the network is cut."""
        pause = self.timeout / 4
        late = 0
        while not self.quiet.wait(pause) and not self.decided.is_set():
            late = late + 1 if time.monotonic() - self.round_at > self.timeout else 0
            if (
                late > 2 and not self.peace
            ):  # thrice: after a pause of this process itself the other thread has had time
                words = f"does not answer for {self.timeout:.0f} s (--dist-timeout)."
                self.decide(f"Rank 0, or the launcher that holds the meeting place, {words}", True)

    def beat(self) -> None:
        self.beats += 1
        self.line.write(f"beat/{self.rank}", json.dumps(self.now()))

    def now(self) -> list[Any]:
        return [self.beats, self.marks, self.patient, self.place, socket.gethostname(), _machine(), os.getpid()]

    def watch(self) -> tuple[str | None, bool]:
        """What has gone wrong, in words (None while all is well), and whether rank 0 cannot tell it."""
        verdict = self.read("verdict")
        if verdict:
            return verdict, False
        watched = [rank for rank in range(self.world) if rank != self.rank] if self.rank == 0 else [0]
        now = time.monotonic()
        for rank in watched:
            left = self.read(f"left/{rank}")
            if left:
                return f"{self.who(rank)} ended with an error: {left}", False
            if left is not None:
                self.seen.pop(rank, None)
                self.peace = self.peace or rank == 0
                continue
            text = self.read(f"beat/{rank}")
            if rank not in self.seen:
                self.seen[rank] = Sighting(now)
            if text:
                self.seen[rank].note(json.loads(text), now)
        self.seen.setdefault(self.rank, Sighting(now)).note(self.now(), now)
        if self.rank == 0:
            return self.gone() or self.silent(now) or self.stuck(now), False
        return self.gone() or self.silent(now), True

    def gone(self) -> str | None:
        """A watched process of this machine that does not live any more."""
        for rank, sight in self.seen.items():
            if rank != self.rank and sight.machine == _machine() and sight.pid and not files.alive(sight.pid):
                with contextlib.suppress(RuntimeError, OSError):
                    if self.read(f"left/{rank}") is not None:  # it said goodbye just before
                        continue
                return f"{self.who(rank)} died (killed, or out of memory); it was {sight.place}."
        return None

    def silent(self, now: float) -> str | None:
        for rank, sight in self.seen.items():
            if rank != self.rank and now - sight.beat_at > self.timeout:
                where = f"it was {sight.place}" if sight.pid else "it has not been heard since it joined"
                return f"{self.who(rank)} gave no sign of life for {self.timeout:.0f} s (--dist-timeout); {where}."
        return None

    def stuck(self, now: float) -> str | None:
        """The ranks that are furthest behind, where none of them may take its time, and have been so all the while."""
        least = min(sight.marks for sight in self.seen.values())
        behind = {rank: sight for rank, sight in self.seen.items() if sight.marks == least}
        key = (least, tuple(sorted(behind)))
        excused = any(sight.patient for sight in behind.values()) or any(s.place == NEWS for s in self.seen.values())
        if key != self.behind or len(self.seen) < self.world or excused:
            self.behind, self.behind_at = key, now
        limit = max(self.timeout, STEPS * self.step)
        if now - self.behind_at <= limit:
            return None
        names = ", ".join(self.who(rank) for rank in sorted(behind))
        places = ", ".join(sorted({sight.place for sight in behind.values()}))
        return f"{names} did not move for {limit:.0f} s (--dist-timeout) while {places}."

    def who(self, rank: int) -> str:
        sight = self.seen.get(rank)
        return f"Rank {rank}" + (f" (process {sight.pid} on {sight.host})" if sight and sight.pid else "")

    def read(self, key: str) -> str | None:
        text: str | None = self.line.read(key)
        return text

    # -- the end -------------------------------------------------------------------------------------------------

    def decide(self, found: str, headless: bool) -> None:
        """Tell the others, give the main thread time to end in order, then end this process."""
        self.known, self.speaks = found, self.speaks or headless
        self.decided.set()
        if self.rank == 0:
            with contextlib.suppress(RuntimeError, OSError):
                self.line.write("verdict", found)
        if self.quiet.wait(GRACE):
            return
        if self.on_death:
            with contextlib.suppress(Exception):
                self.on_death(found)
        if self.speaks:
            print(f"error: {found}\n  {self.hint}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(FAILED)

    def verdict(self, wait: float = 0.0) -> UnetError | None:
        """Which rank is lost, where that is known within `wait` seconds."""
        if not self.decided.wait(wait):
            return None
        found = UnetError(str(self.known), self.hint)
        found.shown = not self.speaks
        return found

    def leave(self, error: BaseException | None) -> UnetError | None:
        """Say goodbye. The others wait for rank 0, which writes last: a launcher ends what remains when one is gone.
        Rank 0, which may hold the store, waits until they have heard it. Returns the error of another rank where that
        came in between."""
        if self.quiet.is_set():
            return None
        words = "" if error is None else error.message if isinstance(error, UnetError) else first_line(error)
        with contextlib.suppress(RuntimeError, OSError):
            while error is None and self.rank and self.read("left/0") is None and not self.decided.wait(0.05):
                pass
            if error is not None or not self.decided.is_set():
                self.line.write(f"left/{self.rank}", words)
            deadline = time.monotonic() + (GRACE if error is None else 2.0)
            others = [f"left/{rank}" for rank in range(1, self.world)] if self.rank == 0 else ["left/0"]
            while time.monotonic() < deadline and not all(self.read(key) is not None for key in others):
                time.sleep(0.05)
            if self.rank and isinstance(error, UnetError) and self.read("left/0") == words:
                error.shown = True  # rank 0 says the same
        late = self.verdict() if error is None else None
        self.quiet.set()
        return late


class Sighting:
    """What is known of a rank, and since when."""

    def __init__(self, now: float) -> None:
        self.beats, self.marks, self.patient, self.place = -1, 0, True, "starting"
        self.host, self.machine, self.pid = "", "", 0
        self.beat_at = now

    def note(self, beat: list[Any], now: float) -> None:
        if beat[0] != self.beats:
            self.beat_at = now
        self.beats, self.marks, self.patient, self.place, self.host, self.machine, self.pid = beat


def _machine() -> str:
    """What is the same for two processes that know each other's numbers: the kernel's start and the namespace."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return socket.gethostname()
