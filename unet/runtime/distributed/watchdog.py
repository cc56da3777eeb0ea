"""Failure detection: heartbeats of every rank; all ranks end when one is lost.

Each rank writes a heartbeat every second: its phase, how many phases it has gone through, and whether the phase may
block (compiling, scoring, saving, building a cache). Rank 0 watches all ranks, the others watch rank 0. A rank is lost
if its process is gone or no heartbeat comes for the timeout. A rank also counts as lost if it is behind the others and
makes no progress for the timeout (or ten times a usual step, if that is longer) in a phase that must not block. The
failure message names the lost rank, and every rank ends with an error instead of waiting in a collective for ever.
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
from unet.errors import FAILED, LostError, UnetError

AGAIN = "Start all processes again with the same command."
RESUME = "Start all processes again with the same command, and where a state is saved --resume --run-name NAME."
NEWS = "waiting for news of another rank"  # the phase of a rank with an error: it is not ahead of the others
GRACE = 5.0  # seconds for the main thread to write its logs and end by itself
STEPS = 10.0  # a step may take this many times as long as usual


class Watchdog(threading.Thread):
    """The thread of one rank that sends heartbeats and watches other ranks. `line` is its own connection to the store
    of the run (`rendezvous.Line`), whose messages are signed."""

    def __init__(self, line: Any, rank: int, world: int, timeout: float) -> None:
        super().__init__(daemon=True, name="watchdog")
        self.line, self.rank, self.world, self.timeout = line, rank, world, timeout
        self.phase, self.may_block, self.phase_count, self.beats, self.step = "starting", True, 0, 0, 0.0
        self.on_peer_lost: Callable[[str], None] | None = None
        self.hint = AGAIN
        self.reason: str | None = None
        self.reports = rank == 0  # whether this rank prints the error: rank 0, or all ranks if rank 0 is lost
        self.aborting, self.quiet = threading.Event(), threading.Event()
        self.peers: dict[int, PeerState] = {}
        self.behind: tuple[int, tuple[int, ...]] = (0, ())
        self.behind_at = self.round_at = time.monotonic()
        self.clean_exit = False

    def set_phase(self, phase: str, may_block: bool = False) -> None:
        """Set the phase of this rank. Cheap: no message is sent."""
        self.phase, self.may_block = phase, may_block
        self.phase_count += 1

    # -- the thread ------------------------------------------------------------------------------------

    def run(self) -> None:
        threading.Thread(target=self.watch_store, daemon=True, name="watchdog's watch of the store").start()
        interval = min(1.0, self.timeout / 8)
        while not self.quiet.wait(interval):
            now = time.monotonic()
            if now - self.round_at > self.timeout / 2:  # this process itself was paused: start watching anew
                self.peers.clear()
            self.round_at = now
            found, rank0_lost = None, False
            try:
                self.beat()
                found, rank0_lost = self.watch()
            except (RuntimeError, OSError) as error:  # the store is gone, and with it the process that held it
                if self.quiet.is_set() or self.clean_exit:
                    return
                words = f"Rank 0, or the launcher that held the meeting place, is gone ({first_line(error)})."
                found, rank0_lost = self.gone() or words, True
            if found:
                self.abort_run(found, rank0_lost)
                return

    def watch_store(self) -> None:
        """Abort if the store does not answer at all: its process is stopped, or the network is cut."""
        pause = self.timeout / 4
        late = 0
        while not self.quiet.wait(pause) and not self.aborting.is_set():
            late = late + 1 if time.monotonic() - self.round_at > self.timeout else 0
            if late > 2 and not self.clean_exit:  # three times: after a pause of this process the main loop runs first
                words = f"does not answer for {self.timeout:.0f} s (--dist-timeout)."
                self.abort_run(f"Rank 0, or the launcher that holds the meeting place, {words}", True)

    def beat(self) -> None:
        self.beats += 1
        self.line.write(f"beat/{self.rank}", json.dumps(self.state()))

    def state(self) -> list[Any]:
        return [self.beats, self.phase_count, self.may_block, self.phase, socket.gethostname(), machine(), os.getpid()]

    def watch(self) -> tuple[str | None, bool]:
        """(failure message or None, whether rank 0 is lost and cannot report it)."""
        if failure := self.read("failure"):
            return failure, False
        watched = [rank for rank in range(self.world) if rank != self.rank] if self.rank == 0 else [0]
        now = time.monotonic()
        for rank in watched:
            if left := self.read(f"left/{rank}"):
                return f"{self.who(rank)} ended with an error: {left}", False
            if left is not None:
                self.peers.pop(rank, None)
                self.clean_exit = self.clean_exit or rank == 0
                continue
            text = self.read(f"beat/{rank}")
            if rank not in self.peers:
                self.peers[rank] = PeerState(now)
            if text:
                self.peers[rank].update(json.loads(text), now)
        self.peers.setdefault(self.rank, PeerState(now)).update(self.state(), now)
        if self.rank == 0:
            return self.gone() or self.silent(now) or self.stuck(now), False
        return self.gone() or self.silent(now), True

    def gone(self) -> str | None:
        """A message if a watched process on this machine has ended."""
        for rank, peer in self.peers.items():
            if rank != self.rank and peer.machine == machine() and peer.pid and not files.process_alive(peer.pid):
                with contextlib.suppress(RuntimeError, OSError):
                    if self.read(f"left/{rank}") is not None:  # it left in order just before
                        continue
                return f"{self.who(rank)} died (killed, or out of memory); it was {peer.phase}."
        return None

    def silent(self, now: float) -> str | None:
        for rank, peer in self.peers.items():
            if rank != self.rank and now - peer.beat_at > self.timeout:
                where = f"it was {peer.phase}" if peer.pid else "it has not been heard since it joined"
                return f"{self.who(rank)} gave no sign of life for {self.timeout:.0f} s (--dist-timeout); {where}."
        return None

    def stuck(self, now: float) -> str | None:
        """A message if the same ranks have been furthest behind for too long, in phases that must not block."""
        least = min(peer.phase_count for peer in self.peers.values())
        behind = {rank: peer for rank, peer in self.peers.items() if peer.phase_count == least}
        key = (least, tuple(sorted(behind)))
        excused = any(peer.may_block for peer in behind.values()) or any(s.phase == NEWS for s in self.peers.values())
        if key != self.behind or len(self.peers) < self.world or excused:
            self.behind, self.behind_at = key, now
        limit = max(self.timeout, STEPS * self.step)
        if now - self.behind_at <= limit:
            return None
        names = ", ".join(self.who(rank) for rank in sorted(behind))
        places = ", ".join(sorted({peer.phase for peer in behind.values()}))
        return f"{names} did not move for {limit:.0f} s (--dist-timeout) while {places}."

    def who(self, rank: int) -> str:
        peer = self.peers.get(rank)
        return f"Rank {rank}" + (f" (process {peer.pid} on {peer.host})" if peer and peer.pid else "")

    def read(self, key: str) -> str | None:
        text: str | None = self.line.read(key)
        return text

    # -- the end -------------------------------------------------------------------------------------------------

    def abort_run(self, found: str, rank0_lost: bool) -> None:
        """Publish the failure, give the main thread time to end in order, then end this process."""
        self.reason, self.reports = found, self.reports or rank0_lost
        self.aborting.set()
        if self.rank == 0:
            with contextlib.suppress(RuntimeError, OSError):
                self.line.write("failure", found)
        if self.quiet.wait(GRACE):
            return
        if self.on_peer_lost:
            with contextlib.suppress(Exception):
                self.on_peer_lost(found)
        if self.reports:
            print(f"error: {found}\n  {self.hint}", file=sys.stderr, flush=True)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(FAILED)

    def failure(self, wait: float = 0.0) -> UnetError | None:
        """The error that names the lost rank, if it is known within `wait` seconds."""
        if not self.aborting.wait(wait):
            return None
        found = LostError(str(self.reason), self.hint)
        found.shown = not self.reports
        return found

    def leave(self, error: BaseException | None) -> UnetError | None:
        """Leave the run in order. The other ranks wait for rank 0 to finish first: a launcher may end all processes
        when one exits. Rank 0, which may hold the store, then waits for them. Returns the error of another rank, if
        there is one."""
        if self.quiet.is_set():
            return None
        words = "" if error is None else error.message if isinstance(error, UnetError) else first_line(error)
        with contextlib.suppress(RuntimeError, OSError):
            while error is None and self.rank and self.read("left/0") is None and not self.aborting.wait(0.05):
                pass
            if error is not None or not self.aborting.is_set():
                self.line.write(f"left/{self.rank}", words)
            deadline = time.monotonic() + (GRACE if error is None else 2.0)
            others = [f"left/{rank}" for rank in range(1, self.world)] if self.rank == 0 else ["left/0"]
            while time.monotonic() < deadline and not all(self.read(key) is not None for key in others):
                time.sleep(0.05)
            if self.rank and isinstance(error, UnetError) and self.read("left/0") == words:
                error.shown = True  # rank 0 prints the same error
        late = self.failure() if error is None else None
        self.quiet.set()
        return late


class PeerState:
    """The last heartbeat of a rank, and when it came."""

    def __init__(self, now: float) -> None:
        self.beats, self.phase_count, self.may_block, self.phase = -1, 0, True, "starting"
        self.host, self.machine, self.pid = "", "", 0
        self.beat_at = now

    def update(self, beat: list[Any], now: float) -> None:
        if beat[0] != self.beats:
            self.beat_at = now
        self.beats, self.phase_count, self.may_block, self.phase, self.host, self.machine, self.pid = beat


def machine() -> str:
    """An id of the machine and its process namespace: equal where process numbers can be compared."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return socket.gethostname()
