"""What this machine grants this process: cores, memory, disk, a progress bar on its terminal, processes of its own."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from unet.errors import UnetError

TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # what a user or a scheduler stops a run with
PARTING = 3.0  # seconds that a process may take to finish what it has in hand
LOST_HINT = "It may have been out of memory: free some, then type the command again."
_quiet = False


def set_quiet(quiet: bool) -> None:
    """Turn progress bars and notices off for this process."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet


def cores(process: int = 0) -> int:
    """Processor cores this process (or another) may use: its affinity mask, cut by this one's control group's quota (v1
    and v2)."""
    count = os.cpu_count() or 1
    with contextlib.suppress(OSError, AttributeError):
        count = len(os.sched_getaffinity(process))
    quota = _cgroup_cores()
    return max(1, min(count, int(quota)) if quota else count)


def _cgroup_cores() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()[:2]
        return None if quota == "max" else float(quota) / float(period)
    with contextlib.suppress(OSError, ValueError):
        base = Path("/sys/fs/cgroup/cpu")
        quota_us = int((base / "cpu.cfs_quota_us").read_text())
        return None if quota_us <= 0 else quota_us / int((base / "cpu.cfs_period_us").read_text())
    return None


@functools.cache
def processor_flags() -> frozenset[str]:
    """Feature flags of the processor, as Linux names them; empty where it does not tell."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as stream:
        for line in stream:
            if line.startswith(("flags", "Features")):
                return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def memory() -> tuple[int, int]:
    """(total, available) bytes of memory for this process, the control group's limit included; zeros where unknown."""
    total = available = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        rows = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
        total, available = rows.get("MemTotal", 0), rows.get("MemAvailable", 0)
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            base = Path("/sys/fs/cgroup")
            limit, used = int((base / limit_file).read_text()), int((base / used_file).read_text())
            if 0 < limit < total:
                total, available = limit, min(available, max(0, limit - used))
            break
    return total, available


def disk(path: Path) -> int:
    """Free bytes on the disk that holds `path` (or the nearest parent that exists)."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def notice(text: str) -> None:
    """One line for the user on standard error, which does not break a progress bar; silent with --quiet."""
    if _quiet:
        return
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


@functools.cache
def notice_once(text: str) -> None:
    """As `notice`, the first time that a process says it."""
    notice(text)


def notice_by_kind(remarks: Iterable[Sequence[str]]) -> None:
    """`notice` of the first of each kind among (kind, words), with how many there are."""
    kinds: dict[str, list[str]] = {}
    for kind, words in remarks:
        kinds.setdefault(kind, []).append(words)
    for same in kinds.values():
        notice(same[0] + (f" ({len(same)} cases are like that)" if len(same) > 1 else ""))


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    name: str = "",
    unit: str = "it",
    initial: int = 0,
) -> Any:
    """A tqdm bar on standard error: shown at a terminal, silent elsewhere and with --quiet, gone when it is done."""
    from tqdm import tqdm

    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=name,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
        disable=_quiet or not sys.stderr.isatty(),
        mininterval=0.2,
    )


class ProcessLost(UnetError):
    """A process that worked for this one is gone, with what it had in hand."""


def process_map(
    work: Callable[[Any], Any], items: Sequence[Any], name: str, unit: str, at_once: int | None = None
) -> Iterator[tuple[Any, Future[Any]]]:
    """Run `work(item)` for each item in processes, one a core (or `at_once`), with a progress bar: (item, future) as
    they finish; the future of an item whose process was killed raises ProcessLost.

    Leaving the loop early ends the processes; what they have in hand may be finished within `PARTING` seconds. Each has
    a connection of its own: one that dies cannot hold what another waits for, and its end is seen at once.
    """
    context: Any = multiprocessing.get_context("spawn" if "torch" in sys.modules else "fork")
    busy: dict[Any, tuple[Any, Any]] = {}  # connection -> (process, the item in hand)
    processes: list[Any] = []
    ended = multiprocessing.util.Finalize(None, end_processes, (processes,), exitpriority=10)
    waiting = list(reversed(items))
    try:
        with signals_held(context):
            for _ in range(max(1, min(at_once or cores(), len(items)))):
                ours, theirs = context.Pipe()
                inherited = [ours, *busy] if context.get_start_method() == "fork" else []
                processes.append(context.Process(target=_serve, args=(theirs, inherited, work), daemon=True))
                processes[-1].start()
                theirs.close()
                busy[ours] = processes[-1], None
        for connection in list(busy):
            _hand_out(connection, waiting, busy)
        with progress(total=len(items), name=name, unit=unit) as bar:
            while busy:
                ready: list[Any] = multiprocessing.connection.wait(list(busy))
                for connection in ready:
                    process, item = busy[connection]
                    future = _answer(connection, process, item)
                    bar.update()
                    if isinstance(future.exception(), ProcessLost):
                        del busy[connection]
                        connection.close()
                    else:
                        _hand_out(connection, waiting, busy)
                    yield item, future
        for item in reversed(waiting):  # every process is lost
            yield item, _failed(ProcessLost(f"{_named(item)}: all processes are lost.", LOST_HINT))
    finally:
        for connection in busy:
            connection.close()  # an idle process ends by that, a busy one after what it has in hand
        end_processes(processes, PARTING)
        ended.cancel()


def processes(count: int, largest: int) -> int:
    """How many processes for `count` cases the memory carries where one takes up to `largest` bytes (0: little); a
    notice where that is fewer than the cores."""
    most, available = max(1, min(cores(), count)), memory()[1]
    carried = min(most, max(1, available // largest)) if largest and available else most
    if carried < most or largest > available > 0:
        notice(
            f"{carried} of {most} processes at a time: a case takes up to {format_bytes(largest)},"
            f" {format_bytes(available)} of memory"
            " are free"
        )
    return carried


def _hand_out(connection: Any, waiting: list[Any], busy: dict[Any, tuple[Any, Any]]) -> None:
    """Give a process its next item, or let it go."""
    process, _ = busy.pop(connection)
    if not waiting:
        connection.close()
        return
    busy[connection] = process, waiting.pop()
    with contextlib.suppress(OSError):  # it has died: waiting for its answer tells
        connection.send(busy[connection][1])


def _answer(connection: Any, process: Any, item: Any) -> Future[Any]:
    """What a process made of its item: a result, an error, or its own death."""
    try:
        result, error, where = connection.recv()
    except (EOFError, OSError):
        return _failed(ProcessLost(f"{_named(item)}: {how_it_ended(process)}", LOST_HINT))
    if error is not None:
        error.__cause__ = RuntimeError(where)  # for -v
        return _failed(error)
    future: Future[Any] = Future()
    future.set_result(result)
    return future


def _failed(error: BaseException) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _named(item: Any) -> str:
    return str(getattr(item, "id", item))[:200]


def _serve(connection: Any, inherited: Sequence[Any], work: Callable[[Any], Any]) -> None:
    """In a process of `process_map`: item after item, until the other end is closed."""
    follow()
    for other in inherited:  # ends that only the process which started this one shall hold
        other.close()
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            answer: tuple[Any, Exception | None, str]
            try:
                answer = work(item), None, ""
            except Exception as error:
                answer = None, error, traceback.format_exc()
            try:
                connection.send(answer)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                connection.send((None, RuntimeError(f"{answer!r:.200} cannot be sent: {error}"), ""))


# -- processes that belong to this one ---------------------------------------------------------------------------------


@contextlib.contextmanager
def signals_held(context: Any) -> Iterator[None]:
    """While processes are started: a signal to the whole group waits until they leave it to this one (`follow`)."""
    if context.get_start_method() != "fork":
        multiprocessing.resource_tracker.ensure_running()  # starting it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow() -> None:
    """In a process that was started: leave the signals that stop a run to the starting process, and end with it, also
    where that is killed (Linux; elsewhere a thread looks for it)."""
    parent = os.getppid()
    for number in TO_STOP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_STOP)
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    started_by = multiprocessing.parent_process()
    if os.getppid() != parent or (started_by is not None and not started_by.is_alive()):
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def end_processes(processes: Sequence[Any], patience: float = 0.0) -> None:
    """Wait `patience` seconds for processes to end, then kill them; one that even then does not end (it waits for a
    disk that does not answer) is left behind."""
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.exitcode is None:
            process.kill()
    for process in processes:
        process.join(1)


def how_it_ended(process: Any) -> str:
    """The end of a process that was not to end, in words."""
    process.join(1)
    code = process.exitcode or 0
    by = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"process {process.pid} {by} ({format_bytes(memory()[1])} of memory free)."


def counted(number: int, word: str) -> str:
    """A number of things: 1 mask, 2 masks."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def format_bytes(count: float) -> str:
    """Bytes in words: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
