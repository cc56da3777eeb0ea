"""MLPerf's rules of the 3D UNet, before a run begins: what a closed submission must be, and cleared caches. No torch.

Source: training_rules of MLCommons (the retired benchmark unet3d, rules as of v4.0) and the reference implementation.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import host
from unet.config.options import flag
from unet.config.schema import Config, where
from unet.errors import UsageError

TRAINING, VALIDATION = 168, 42
CLOSED: dict[str, Any] = {
    "split": "mlperf",
    "held_out": None,
    "fold": None,  # setting -> what a closed submission has
    "patch": (128, 128, 128),
    "eval_patch": (128, 128, 128),
    "pad_to": (128, 128, 128),
    "spacing": (1.6, 1.2, 1.2),
    "oversampling": 0.4,
    "overlap": 0.5,
    "optimizer": "sgd",
    "layers": 5,
    "width": 32,
    "normalization": "instance",
    "activation": "relu",
    "include_background": False,
    "augment": True,
    "clip": None,
    "eval_region": "rounded",
    "eval_crop": (),
    "eval_steps": None,
    "blend": "gaussian",
    "mirror": False,
    "target": 0.908,
    "load": None,
    "synth_data": False,
}
SCHEDULES = ("constant", "multistep")
REHEARSE = "A run that is none: --mlperf-division open; one that only tries the log: --mlperf-rehearsal."
PROC = Path("/proc/sys/vm/drop_caches")


def require(config: Config, world: int, schedule: Callable[[Config, int, int], tuple[int, int]]) -> None:
    """Raise one UsageError with everything in the settings that a run with --mlperf-division may not have.

    `world` is the number of processes; `schedule(config, samples of an epoch, of a step)` gives the rules' own
    (first epoch that is evaluated, epochs between evaluations). A rehearsal only needs to be evaluated.
    """
    if config.mlperf_division is None:
        if config.mlperf_rehearsal or config.drop_caches:
            typed = flag("mlperf_rehearsal" if config.mlperf_rehearsal else "drop_caches")
            raise UsageError(f"{typed} goes with --mlperf-division.", "Add --mlperf-division closed or open.")
        return
    mistakes = []
    if importlib.util.find_spec("mlperf_logging") is None:
        mistakes.append("the package mlperf-logging is not installed (pip install mlperf-logging)")
    if config.mode in ("train", "train_and_predict"):
        mistakes.append(f"--mode {config.mode} evaluates nothing")
    if config.mlperf_division == "closed" and not config.mlperf_rehearsal:
        mistakes += not_closed(config, world, schedule)
    if mistakes:
        hint = (
            f"Change or leave out the named flags. {REHEARSE}" if config.mlperf_division == "closed" else "Mend that."
        )
        raise UsageError(f"--mlperf-division {config.mlperf_division}: {'; '.join(mistakes)}.", hint)
    if config.mlperf_rehearsal:
        host.notice("This is a rehearsal: its MLPerf log says so (submission_org REHEARSAL) and is no submission.")


def not_closed(config: Config, world: int, schedule: Callable[[Config, int, int], tuple[int, int]]) -> list[str]:
    """What keeps these settings from being a closed submission, each with its value and the right one."""
    found = [
        f"{flag(name)} is {words(getattr(config, name))}, must be {words(right)}"
        for name, right in CLOSED.items()
        if getattr(config, name) != right
    ]
    if config.schedule not in SCHEDULES:
        found.append(f"--schedule is {config.schedule}, must be {' or '.join(SCHEDULES)}")
    batch = config.batch_size * config.accumulate * world
    samples = TRAINING // batch * batch
    if not samples:
        found.append(f"a step of {batch} samples is more than the {TRAINING} training cases")
        samples = TRAINING
    own = schedule(config, samples, batch)
    for name, right in zip(("start_eval_at", "evaluate_every"), own, strict=True):
        value = getattr(config, name)
        if value is not None and value != right:
            found.append(f"{flag(name)} is {value}, must be {right} (steps of {batch}), or left out")
    for name, what in (("mlperf_org", "who submits"), ("mlperf_platform", "on which system")):
        if not getattr(config, name):
            found.append(f"{flag(name)} is missing ({what})")
    if not where(config.cache, "data").is_dir():
        found.append(f"the cache {where(config.cache, 'data').absolute()} is not there: make it before (preprocess)")
    return found


def require_cases(config: Config, split: Mapping[str, Sequence[str]]) -> None:
    """Raise UsageError unless a closed submission trains and scores as many cases as the rules say."""
    counts = len(split["train"]), len(split["validation"])
    if config.mlperf_division is None:
        return
    if config.mlperf_division == "closed" and not config.mlperf_rehearsal and counts != (TRAINING, VALIDATION):
        raise UsageError(
            f"--mlperf-division closed needs {TRAINING} training and {VALIDATION} evaluation cases, not {counts[0]} and"
            f" {counts[1]}.",
            f"Take the whole set and --split mlperf. {REHEARSE}",
        )
    if not counts[1]:
        raise UsageError(
            f"--mlperf-division {config.mlperf_division}: the split has no validation cases.", "Type another --split."
        )


def words(value: Any) -> str:
    """A setting's value as a user reads it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return {"None": "none", "True": "on", "False": "off"}.get(str(value), str(value))


def clear_caches(folder: Path, system: bool, proc: Path = PROC) -> float | None:
    """Drop what the system's file cache holds of the arrays in `folder`; with `system` (--drop-caches) clear all of it,
    where that is allowed. Returns when (seconds since 1970), or None where there is nothing to drop yet, or neither
    could be done: a notice says so.

    Dropping is a wish that the kernel may not follow (a file that another process maps stays), so it is looked after.
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
        host.notice(f"The file cache could not be looked at: {error}")
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
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def resident(path: Path) -> tuple[int, int]:
    """(pages of a file, how many of them lie in memory); all of them for a file of somebody else (mincore(2))."""
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
