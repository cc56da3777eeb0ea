"""The resources of this machine: cores, memory, disk, terminal (notices and progress bars), worker processes."""

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

from unet.errors import LostError

TO_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # sent by users and schedulers to stop a run
SHARED = Path("/dev/shm")  # memory that processes share by name: 64 MB in a container that is not given more
SHARED_LEAST = 2**29  # bytes of it that the vendors' collectives should find
PARTING = 3.0  # seconds for a process to finish its current item
BRIEF = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"  # a bar without its own time and rate
LOST_HINT = "It may have been out of memory: free some, then type the command again."
STARTED = time.perf_counter()  # when this process began, but for the interpreter; of a later command when it did
processes_here = 1  # of this run on this machine, which share its memory (`runtime.distributed` sets it)
_quiet = False
_begun = False


def begin_command() -> None:
    """Note when a command begins: the first of a process with the process, another one (in a notebook) now."""
    global STARTED, _begun
    STARTED, _begun = time.perf_counter() if _begun else STARTED, True


def set_quiet(quiet: bool) -> None:
    """Turn progress bars and notices off for this process."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    return _quiet


def cores(process: int = 0) -> int:
    """Processor cores that a process (0: this one) may use: its affinity mask, limited by this process's cgroup
    quota."""
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


def own_folder() -> Path:
    """The user's folder for what is remembered of this machine. Raises RuntimeError where the user has no home."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "unet"


def small_shared_memory() -> str | None:
    """The size of /dev/shm in words, where it is that of a container that was not given more; else None."""
    size = shutil.disk_usage(SHARED).total if SHARED.is_dir() else 0
    return format_bytes(size) if 0 < size < SHARED_LEAST else None


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    with contextlib.suppress(OSError, StopIteration):  # Linux: ru_maxrss also keeps the peak of whoever started it
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def notice(text: str) -> None:
    """Print a line for the user on standard error without breaking a progress bar; silent with --quiet."""
    if _quiet:
        return
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


@functools.cache
def notice_once(text: str) -> None:
    """As `notice`, but each text only once per process."""
    notice(text)


def notice_by_kind(remarks: Iterable[Sequence[str]]) -> None:
    """`notice` for the first remark of each kind, with the number of others; `remarks` are (kind, text)."""
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
    form: str | None = None,
    scale: bool = False,
) -> Any:
    """A tqdm bar on standard error: shown at a terminal, silent elsewhere and with --quiet, gone when it is done.
    `form`: tqdm's format of the line; `scale`: numbers as 1.2M."""
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
        bar_format=form,
        unit_scale=scale,
    )


class ProcessLost(LostError):
    """A worker process died while it worked on an item."""


def run_all(work: Callable[[Any], Any], items: Sequence[Any], name: str, unit: str) -> None:
    """As `process_map`, for work without results. Raises the first error, LostError if a process was killed."""
    try:
        for _, future in process_map(work, items, name, unit):
            future.result()
    except ProcessLost as error:
        raise LostError(
            f"A process of {name!r} has died: {error.message}",
            "Free some memory, then type the command again: it goes on where it stopped.",
        ) from error


def process_map(
    work: Callable[[Any], Any], items: Sequence[Any], name: str, unit: str, at_once: int | None = None
) -> Iterator[tuple[Any, Future[Any]]]:
    """Run `work(item)` for each item in worker processes, one per core (or `at_once`), with a progress bar. Yields
    (item, future) as they finish; the future of an item whose process was killed raises ProcessLost.

    Leaving the loop early ends the processes; each may finish its item within `PARTING` seconds. Every process has its
    own connection, so one that dies cannot block another, and its death is noticed at once.
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
                process = context.Process(target=_serve, args=(theirs, inherited, work), daemon=True)
                process.start()
                processes.append(process)
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
    """How many processes to use for `count` cases if a case takes up to `largest` bytes of memory (0: little). Prints a
    notice if that is fewer than the cores."""
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
    """Send a process its next item, or close its connection."""
    process, _ = busy.pop(connection)
    if not waiting:
        connection.close()
        return
    busy[connection] = process, waiting.pop()
    with contextlib.suppress(OSError):  # it has died: `_answer` reports that
        connection.send(busy[connection][1])


def _answer(connection: Any, process: Any, item: Any) -> Future[Any]:
    """The future of an item: a result, an error, or ProcessLost."""
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
    """In a process of `process_map`: work on items until the connection is closed."""
    follow()
    for other in inherited:  # connections of the parent to other processes
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
    """Block signals while processes are started, until they ignore them (`follow`): only this process handles them."""
    if context.get_start_method() != "fork":
        multiprocessing.resource_tracker.ensure_running()  # starting it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow() -> None:
    """In a worker process: ignore stop signals, and end when the parent ends, even if it is killed (Linux; elsewhere a
    thread watches it)."""
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
    """Wait `patience` seconds for processes to end, then kill them. A process that cannot be killed (it waits for a
    disk) is left behind."""
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.exitcode is None:
            process.kill()
    for process in processes:
        process.join(1)


def how_it_ended(process: Any) -> str:
    """How a process ended unexpectedly, as text."""
    process.join(1)
    code = process.exitcode or 0
    by = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"process {process.pid} {by} ({format_bytes(memory()[1])} of memory free)."


def counted(number: int, word: str) -> str:
    """A number with its noun: 1 mask, 2 masks."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def format_bytes(count: float) -> str:
    """Bytes as text: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
