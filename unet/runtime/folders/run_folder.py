"""The folder of a run: its settings, environment, logs, status and results."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import unet
from unet import files, host, locks
from unet.config.run_files import is_running, read_status
from unet.errors import UnetError, UsageError
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.runtime.folders.run_contents import Contents

OTHER_NAME = "Give another --run-name."
RESULTS = ("metrics.jsonl", "summary.json", "benchmark.json")
MLPERF_LOG = "unet3d.log"
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "tifffile", "pillow", "matplotlib", "tqdm")


class RunFolder:
    """`performance/<run-name>/` and its files; with `writes` false (all ranks but 0) nothing is written.

    The files of a new run (`create`) stay in memory until `begin`: a start that fails leaves no folder, and does not
    touch the run that it would have replaced.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.name, self.writes = path, path.name, writes
        self.contents = Contents(path)
        self._waiting: list[tuple[str, str, bool]] | None = None  # (name, text, whether it is added), until `begin`
        self._status: dict[str, Any] | None = None
        self._to_list: list[str] = []
        self._replaces = False  # what is there under its names
        self.run_id: str | None = None  # drawn once for each run; its states carry it
        self.data: str | None = None  # digest of the data of a run; its weights and states carry it
        self.earlier: frozenset[str] = frozenset()  # digests of the weights that a resumed run had

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def own(self, *names: str) -> None:
        """Add files to the run's list before they are written; only listed files are ever removed."""
        if self.writes:
            self._to_list += names
            if self.begun and self._to_list:
                self.contents.add(*self._to_list)
                self._to_list.clear()

    def place(self, name: str) -> Path:
        """The path of a file to write, which is added to the run's list."""
        self.own(name)
        return self.path / name

    def create(self, kind: str, overwrite: bool) -> None:
        """Lock the name for a new run of a command (`kind`), and check that the folder is free or may be replaced.

        A run without any result is replaced. Raises UsageError if another process holds the name, if there are results
        (unless `overwrite`), if the folder holds files that are not in its list, or if it belongs to another command.
        """
        files.make_folder(self.path.parent)
        self.take()
        if os.path.lexists(self.path):
            files.make_folder(self.path)
            self._require_replaceable(kind, overwrite)
        self._replaces, self._waiting, self._status = overwrite, [], {}

    def take(self) -> None:
        """Lock the name of this run. Raises UsageError while another process holds it."""
        if owner := locks.acquire(self.lock, self.path):
            raise self._running(owner)
        self.require_stopped()

    @property
    def lock(self) -> Path:
        return self.path.with_name(f".{self.name}.unet.lock")

    def require_stopped(self) -> None:
        """Raise UsageError if another process is working on this run."""
        owner = locks.holder(self.lock)
        status = read_status(self.path)
        if not owner and not status.get("claimed") and is_running(status):  # of a version that held no lock
            owner = f"process {status['pid']} on {status['host']}"
        if owner:
            raise self._running(owner)

    def _running(self, owner: str) -> UsageError:
        return UsageError(
            f"Run {self.name!r} is running ({owner}).", "Wait for it or stop it, or give another --run-name."
        )

    def _require_replaceable(self, kind: str, overwrite: bool) -> None:
        status, place = read_status(self.path), self.path.absolute()
        files.remove_leftovers(self.path)
        if strange := self.contents.strange():
            raise UsageError(f"{place} holds more than a run ({strange[0]}); it is not replaced.", OTHER_NAME)
        made_elsewhere = self.contents.listed() is None and any(self.path.iterdir())
        if made_elsewhere or any((self / name).exists() for name in RESULTS):
            before = status.get("kind", kind)
            words = f"Run {self.name!r} exists in {place} ({before}, {status.get('status', 'state unknown')})."
            if before != kind:
                raise UsageError(words, OTHER_NAME)
            if not overwrite:
                start = "Start"
                if kind == "train":
                    start = f"Go on with it: --resume --run-name {shlex.quote(self.name)}; start"
                raise UsageError(words, f"{start} anew: --overwrite; or give another --run-name.")

    def remove(self, kind: str) -> None:
        """Remove the files of a run before it is started again. Raises UsageError as `create` does."""
        if not os.path.lexists(self.path):
            return
        self.take()
        try:
            self._require_replaceable(kind, overwrite=True)
            self.contents.clear()
            with contextlib.suppress(OSError):  # somebody may have put a file there
                self.path.rmdir()
        finally:
            locks.release(self.lock)

    def begin(self) -> None:
        """Create the folder of a new run, replacing an old one, and write the files kept in memory."""
        if self._waiting is None or not self.writes:
            return
        waiting, self._waiting = self._waiting, None
        files.make_folder(self.path)
        self.contents.clear()
        if self._replaces and "weights" in (self._status or {}):
            weights = Path((self._status or {})["weights"])
            CheckpointPaths(weights).clear()  # the new run must not go on from states before it
        self.own(*(name for name, _, _ in waiting))
        for name, text, added in waiting:
            self._put(name, text, added)

    @property
    def begun(self) -> bool:
        return self._waiting is None

    def status(self, status: str, why: str = "", **more: Any) -> None:
        """Write status.json: running, done, failed or interrupted, and the reason."""
        if not self.writes:
            return
        if self._status is None:
            self._status = read_status(self.path)
        self._status |= {
            **more,
            "status": status,
            "why": why,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "claimed": True,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        self.write("status.json", self._status)

    def write(self, name: str, value: Any) -> None:
        """Write a file atomically: text unchanged, other values as JSON."""
        if self.writes:
            self._put(name, value if isinstance(value, str) else files.json_text(value), added=False)

    def say(self, words: str) -> None:
        """Add a line to run.log and print it."""
        self.append("run.log", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}")
        host.notice(words)

    def append(self, name: str, text: str) -> None:
        """Add a line to a log. Raises UnetError where the disk is full."""
        if self.writes:
            self._put(name, text, added=True)

    def _put(self, name: str, text: str, added: bool) -> None:
        if self._waiting is not None:
            self._waiting.append((name, text, added))
            return
        (files.append_line if added else files.write_text)(self.place(name), text)

    def keep_lines(self, name: str, count: int) -> int:
        """Truncate a log to its first `count` lines: the rest was written after the state that is resumed. A line that
        a power failure cut off goes too. Returns how many lines it has then."""
        path = self / name
        if self.writes and self.begun and os.path.lexists(path):
            lines = files.require_regular(path).read_bytes().splitlines(keepends=True)
            kept = [line for line in lines[:count] if line.endswith(b"\n")]
            if len(kept) < len(lines):
                files.write_bytes(path, b"".join(kept))
            return len(kept)
        return count

    def text(self, name: str) -> str:
        """The content of a log; empty where there is none. Bytes that are not UTF-8 become question marks."""
        path = self / name
        return text_of(path) if os.path.lexists(path) and self.begun else ""


def text_of(path: Path) -> str:
    return files.require_regular(path).read_text(encoding="utf-8", errors="replace")


def new_folder(out: Path, name: str | None, kind: str, command: str, overwrite: bool) -> RunFolder:
    """The folder of a new run of a command: `name`, or its kind and the time, numbered if that exists."""
    if name:
        folder = RunFolder(out / name)
        folder.create(command, overwrite)
        return folder
    first = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = RunFolder(out / (first if number == 1 else f"{first}-{number}"))
        if os.path.lexists(folder.path):
            continue
        files.make_folder(out)
        if not locks.acquire(folder.lock, folder.path) and not os.path.lexists(folder.path):
            folder.create(command, overwrite)
            return folder
    raise AssertionError


def note(folder: RunFolder, status: str, why: str) -> None:
    """Write the status if possible; on a full disk only a notice, since the first error matters more."""
    try:
        folder.status(status, why)
    except UnetError as error:
        host.notice(f"{error.message} (the status of the run could not be written)")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of packages, of the main ones where none are named."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def source_digest() -> str:
    """A digest of this program's own source: file names and contents; "not known" where they cannot be read."""
    root = Path(unet.__file__).parent
    paths = sorted(root.rglob("*.py"))
    try:
        names = "\n".join(path.relative_to(root).as_posix() for path in paths).encode()
        return files.digest(names, *(path.read_bytes() for path in paths))[:16] if paths else "not known"
    except OSError:
        return "not known"


def environment(device: str, number_format: Any = "") -> dict[str, Any]:
    """Versions, machine and device, for environment.json. `number_format`: the dtype of the networks, where there is
    one."""
    total, available = host.memory()
    relevant = ["CUDA_", "OMP_", "GOMP_", "KMP_", "MKL_", "PT_HPU_", "HLS_", "HABANA_", "MLU_", "TORCH", "NCCL_"]
    relevant += ["CN", "GLOO_", "SLURM_JOB", "OMPI_COMM_WORLD_", "PMI_", "MASTER_", "WORLD_SIZE"]
    return {
        "unet": unet.__version__,
        "code": source_digest(),
        "python": sys.version.split()[0],
        "packages": versions(),
        "platform": platform.platform(),
        "device": device,
        **({"number_format": str(number_format).removeprefix("torch.")} if number_format else {}),
        "cores": host.cores(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(tuple(relevant))},
    }
