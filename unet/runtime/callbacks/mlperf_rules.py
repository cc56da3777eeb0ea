"""MLPerf's rules, checked before a run: the settings of a closed submission, and cleared file caches. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import mmap
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unet import host
from unet.config.options import flag
from unet.config.schema import Config, resolve_path
from unet.errors import UsageError

SCHEDULES = ("constant", "multistep")
REHEARSE = "If this is not a submission, use --mlperf-division open; to test logging, add --mlperf-rehearsal."
PROC = Path("/proc/sys/vm/drop_caches")


class MLPerfTask(Protocol):
    """What the rules need of a task: see `tasks.base.Task`."""

    def mlperf(self) -> Any: ...
    def eval_schedule(self, samples: int, step: int) -> tuple[int, int]: ...


def require(config: Config, world: int, task: MLPerfTask) -> None:
    """Raise one UsageError that lists all settings that --mlperf-division does not allow.

    `world` is the number of processes. A rehearsal may have any settings that evaluate.
    """
    if config.mlperf.mlperf_division is None:
        if config.mlperf.mlperf_rehearsal or config.mlperf.drop_caches:
            typed = flag("mlperf_rehearsal" if config.mlperf.mlperf_rehearsal else "drop_caches")
            raise UsageError(f"{typed} goes with --mlperf-division.", "Add --mlperf-division closed or open.")
        return
    mistakes = []
    if importlib.util.find_spec("mlperf_logging") is None:
        mistakes.append("the package mlperf-logging is not installed (pip install mlperf-logging)")
    if config.run.mode in ("train", "train_and_predict"):
        mistakes.append(f"--mode {config.run.mode} evaluates nothing")
    if config.mlperf.mlperf_division == "closed" and not config.mlperf.mlperf_rehearsal:
        mistakes += not_closed(config, world, task)
    if mistakes:
        closed = config.mlperf.mlperf_division == "closed"
        hint = f"Change or leave out the named flags. {REHEARSE}" if closed else "Change this setting."
        raise UsageError(f"--mlperf-division {config.mlperf.mlperf_division}: {'; '.join(mistakes)}.", hint)
    if config.mlperf.mlperf_rehearsal:
        host.notice("This is a rehearsal: its MLPerf log says so (submission_org REHEARSAL) and is no submission.")


def not_closed(config: Config, world: int, task: MLPerfTask) -> list[str]:
    """Settings that a closed submission does not allow, each with its value and the required one."""
    rules = task.mlperf()
    training = rules.training_cases
    found = [
        f"{flag(name)} is {words(config.get(name))}, must be {' or '.join(map(words, allowed))}"
        for name, right in rules.closed.items()
        if config.get(name) not in (allowed := right if isinstance(right, list) else [right])
    ]
    if config.train.schedule not in SCHEDULES:
        found.append(f"--schedule is {config.train.schedule}, must be {' or '.join(SCHEDULES)}")
    batch = config.train.batch_size * config.train.accumulate * world
    samples = training // batch * batch
    if not samples:
        found.append(f"a step of {batch} samples is more than the {training} training cases")
        samples = training
    own = task.eval_schedule(samples, batch)
    for name, right in zip(("start_eval_at", "evaluate_every"), own, strict=True):
        value = config.get(name)
        if value is not None and value != right:
            found.append(f"{flag(name)} is {value}, must be {right} (steps of {batch}), or left out")
    for name, what in (("mlperf_org", "who submits"), ("mlperf_platform", "on which system")):
        if not config.get(name):
            found.append(f"{flag(name)} is missing ({what})")
    cache = resolve_path(config.data.cache, "data").absolute()
    if not cache.is_dir():
        found.append(f"the cache {cache} does not exist: run `python -m unet preprocess` first")
    return found


def require_cases(config: Config, task: MLPerfTask, split: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError unless a closed submission trains and scores as many cases as the rules say."""
    if config.mlperf.mlperf_division is None:
        return
    counts, rules = (len(split["train"]), len(split["validation"])), task.mlperf()
    needed = rules.training_cases, rules.evaluation_cases
    if config.mlperf.mlperf_division == "closed" and not config.mlperf.mlperf_rehearsal and counts != needed:
        raise UsageError(
            f"--mlperf-division closed needs {needed[0]} training and {needed[1]} evaluation cases, not {counts[0]} and"
            f" {counts[1]}.",
            f"Take the whole set and --split mlperf. {REHEARSE}",
        )
    if not counts[1]:
        raise UsageError(
            f"--mlperf-division {config.mlperf.mlperf_division}: the split has no validation cases.",
            "Type another --split.",
        )


def words(value: Any) -> str:
    """A setting's value as a user reads it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return {"None": "none", "True": "on", "False": "off"}.get(str(value), str(value))


def clear_caches(folder: Path, system: bool, proc: Path = PROC) -> float | None:
    """Drop the arrays in `folder` from the system's file cache; with `system` (--drop-caches) clear the whole cache if
    allowed. Returns the time (seconds since 1970), or None if there was nothing to drop or it failed (with a notice).

    The kernel may ignore the request (a file that another process maps stays cached), so the result is verified.
    """
    os.sync()
    if system:
        with contextlib.suppress(OSError):
            proc.write_text("3\n")
            return time.time()
    paths = [path for path in folder.glob("*.npy") if path.stat().st_size]
    if not paths:
        return None
    pages = left = 0
    try:
        for path in paths:
            forget(path)
            total, held = resident(path)
            pages, left = pages + total, left + held
    except OSError as error:
        host.notice(f"The file cache could not be inspected: {error}")
        left = pages = 1
    if left <= pages // 100:
        return time.time()
    host.notice(
        f"{left} of {pages} pages of {folder.absolute()} stay in the file cache: caches are not cleared, so the log has"
        " no cache_clear, which the compliance checker misses (type --drop-caches, as root)."
    )
    return None


def forget(path: Path) -> None:
    """Ask the kernel to drop a file's pages."""
    with open(path, "rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(path: Path) -> tuple[int, int]:
    """(pages of a file, how many of them are in memory); all of them for another user's file (mincore(2))."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    held = (ctypes.c_ubyte * pages)()
    with (
        open(path, "rb") as stream,
        mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
    ):
        start = ctypes.c_char.from_buffer(view)
        found = ctypes.CDLL(None, use_errno=True).mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), held
        )
        del start
    if found:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return pages, sum(item & 1 for item in held)


def process_began() -> float:
    """When this process began, seconds since 1970 (Linux; elsewhere: now)."""
    now = time.time()
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22: starttime
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return now - max(0.0, age)
    return now
