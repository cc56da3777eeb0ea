"""What this machine grants this process: cores, memory, disk, and a progress bar on its terminal."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

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


def progress(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, name: str = "", unit: str = "it"
) -> Any:
    """A tqdm bar on standard error: shown at a terminal, silent elsewhere and with --quiet, gone when it is done."""
    from tqdm import tqdm

    return tqdm(
        iterable,
        total=total,
        desc=name,
        unit=unit,
        leave=False,
        dynamic_ncols=True,
        file=sys.stderr,
        disable=_quiet or not sys.stderr.isatty(),
        mininterval=0.2,
    )


def spread(
    work: Callable[[Any], Any], items: Sequence[Any], name: str, unit: str, at_once: int | None = None
) -> Iterator[tuple[Any, concurrent.futures.Future[Any]]]:
    """Run `work(item)` for each item in processes, one a core (or `at_once`), with a progress bar: (item, future) as
    they finish.

    Leaving the loop early cancels what has not begun. Workers leave Ctrl-C to this process and end when it ends.
    """
    context = multiprocessing.get_context("spawn" if "torch" in sys.modules else "fork")
    count = max(1, min(at_once or cores(), len(items)))
    with concurrent.futures.ProcessPoolExecutor(count, context, _follow, (os.getpid(),)) as pool:
        waiting = {pool.submit(work, item): item for item in items}
        try:
            for future in progress(concurrent.futures.as_completed(waiting), total=len(items), name=name, unit=unit):
                yield waiting[future], future
        finally:
            pool.shutdown(cancel_futures=True)


def processes(count: int, largest: int) -> int:
    """How many processes for `count` cases the memory carries where one takes up to `largest` bytes (0: little); a
    notice where that is fewer than the cores."""
    most, available = max(1, min(cores(), count)), memory()[1]
    carried = min(most, max(1, available // largest)) if largest and available else most
    if carried < most or largest > available > 0:
        notice(
            f"{carried} of {most} processes at a time: a case takes up to {size(largest)}, {size(available)} of memory"
            " are free"
        )
    return carried


def _follow(parent: int) -> None:
    """In a worker: leave Ctrl-C to the parent, and end with it; workers of a killed parent would wait for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def counted(number: int, word: str) -> str:
    """A number of things: 1 mask, 2 masks."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def size(count: float) -> str:
    """Bytes in words: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
