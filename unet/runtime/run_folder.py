"""The folder of a run: what was asked, where it ran, what happened, how it ended."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import unet
from unet import files, host
from unet.errors import UsageError

OTHER_NAME = "Give another --run-name."
RESULTS = ("metrics.jsonl", "summary.json", "benchmark.json")
MLPERF_LOG = "unet3d.log"
NAMES = {
    *RESULTS,
    *("config.json", "settings.json", "environment.json", "status.json", "run.log", "splits.json", "cases.csv"),
    *("progress.png", "predictions.png", "tensorboard", MLPERF_LOG),
}
PACKAGES = ("torch", "numpy", "scipy", "scikit-image", "tifffile", "pillow", "matplotlib", "tqdm")


class RunFolder:
    """`performance/<run-name>/` and the files in it; with `writes` false (ranks that do not lead) only its name."""

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.name, self.writes = path, path.name, writes

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def create(self, kind: str, overwrite: bool) -> None:
        """Make the folder of a new run of a command (`kind`).

        A run that ended before its first result has nothing to lose and gives way. Raises UsageError where there are
        results, unless `overwrite`; where the folder holds anything else than a run; where it is another command's.
        """
        if self.path.exists() and any(self.path.iterdir()):
            status, place = read_status(self.path), self.path.absolute()
            self.require_stopped()
            known = re.compile(rf"{re.escape(self.name)}\.txt|worker_\d+\.log")
            strange = sorted(
                item.name for item in self.path.iterdir() if item.name not in NAMES and not known.fullmatch(item.name)
            )
            if strange:
                raise UsageError(f"{place} holds more than a run ({strange[0]}); it is not replaced.", OTHER_NAME)
            if any((self / name).exists() for name in RESULTS):
                before = status.get("kind", kind)
                words = f"Run {self.name!r} exists in {place} ({before}, {status.get('status', 'state unknown')})."
                if before != kind:
                    raise UsageError(words, OTHER_NAME)
                if not overwrite:
                    go_on = f"Go on with it: --resume --run-name {self.name}; start" if kind == "train" else "Start"
                    raise UsageError(words, f"{go_on} anew: --overwrite; or give another --run-name.")
            shutil.rmtree(self.path)
        files.make_folder(self.path)

    def require_stopped(self) -> None:
        """Raise UsageError while another process works on this run."""
        status = read_status(self.path)
        if is_running(status):
            raise UsageError(
                f"Run {self.name!r} is running (process {status['pid']} on {status['host']}).",
                "Wait for it or stop it, or give another --run-name.",
            )

    def status(self, status: str, why: str = "", **more: Any) -> None:
        """Write status.json: running, done, failed or interrupted, and why."""
        if not self.writes:
            return
        before = read_status(self.path)
        self.write(
            "status.json",
            {
                **before,
                **more,
                "status": status,
                "why": why,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            },
        )

    def write(self, name: str, value: Any) -> None:
        """Write a file whole: text as it is, anything else as JSON."""
        if self.writes:
            (files.write_text if isinstance(value, str) else files.write_json)(self / name, value)

    def say(self, words: str) -> None:
        """A line for run.log and for the user."""
        self.append("run.log", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}")
        host.notice(words)

    def keep_lines(self, name: str, count: int) -> None:
        """Cut a log back to its first `count` lines: what a stopped run wrote after the state it goes on from."""
        path = self / name
        if self.writes and path.exists():
            lines = path.read_text().splitlines(keepends=True)
            if len(lines) > count:
                files.write_text(path, "".join(lines[:count]))

    def text(self, name: str) -> str:
        """The content of a log; empty where there is none."""
        path = self / name
        return path.read_text() if path.exists() else ""

    def append(self, name: str, text: str) -> None:
        """Add a line to a log. Raises UnetError where the disk is full."""
        if not self.writes:
            return
        try:
            with open(self / name, "a") as stream:
                stream.write(text + "\n")
        except OSError as error:
            raise files.explain(error, self / name) from error


def read_status(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((path / "status.json").read_text()))
    except (OSError, ValueError):
        return {}


def is_running(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status is alive on this host (and is still this program: numbers are reused)."""
    pid = status.get("pid")
    here = status.get("status") == "running" and status.get("host") == socket.gethostname() and pid != os.getpid()
    if not here or not files.alive(int(pid or 0)):
        return False
    try:
        return b"unet" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def versions() -> dict[str, str]:
    """Versions of the packages that a run rests on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and device: what a record needs beside its numbers."""
    total, available = host.memory()
    relevant: tuple[str, ...] = (
        "CUDA_",
        "OMP_",
        "MKL_",
        "PT_HPU_",
        "HLS_",
        "HABANA_",
        "MLU_",
        "TORCH",
        "NCCL_",
        "CN",
        "GLOO_",
    )
    relevant += ("SLURM_JOB", "OMPI_COMM_WORLD_", "PMI_", "MASTER_", "WORLD_SIZE")
    return {
        "unet": unet.__version__,
        "python": sys.version.split()[0],
        "packages": versions(),
        "platform": platform.platform(),
        "device": device,
        "cores": host.cores(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(relevant)},
    }
