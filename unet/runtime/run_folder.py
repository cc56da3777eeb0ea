"""The folder of a run: what was asked, where it ran, what happened, how it ended."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import unet
from unet import files, host
from unet.errors import UsageError

NAMES = (
    "config.json",
    "environment.json",
    "status.json",
    "metrics.jsonl",
    "run.log",
    "splits.json",
    "cases.csv",
    "summary.json",
    "progress.png",
    "predictions.png",
)


class RunFolder:
    """`performance/<run-name>/` and the files in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def create(self, overwrite: bool) -> None:
        """Make the folder. Raises UsageError where a run of this name exists, with what can be done about it.

        A run that ended before its first step has nothing to lose and gives way.
        """
        status = read_status(self.path)
        if self.path.exists() and any(self.path.iterdir()):
            if is_running(status):
                raise UsageError(
                    f"Run {self.name!r} is running (process {status['pid']} on {status['host']}).",
                    "Wait for it, or give another --run-name.",
                )
            if not overwrite and any((self / name).exists() for name in ("metrics.jsonl", "summary.json")):
                raise UsageError(
                    f"Run {self.name!r} exists in {self.path.absolute()} ({status.get('status', 'unknown state')}).",
                    f"Go on with it: --resume --run-name {self.name}; start anew: --overwrite; or give another"
                    " --run-name.",
                )
            if not status and not (self / "config.json").exists():
                raise UsageError(
                    f"{self.path.absolute()} is not the folder of a run; it is not replaced.",
                    "Give another --run-name.",
                )
            shutil.rmtree(self.path)
        files.make_folder(self.path)

    def status(self, status: str, why: str = "", **more: Any) -> None:
        """Write status.json: running, done, failed or interrupted, and why."""
        before = read_status(self.path)
        files.write_json(
            self / "status.json",
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

    def keep_lines(self, name: str, count: int) -> None:
        """Cut a log back to its first `count` lines: what a stopped run wrote after the state it goes on from."""
        path = self / name
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            if len(lines) > count:
                files.write_text(path, "".join(lines[:count]))

    def append(self, name: str, text: str) -> None:
        """Add a line to a log. Raises UnetError where the disk is full."""
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
    """Whether the process that wrote a status is alive on this host."""
    return (
        status.get("status") == "running"
        and status.get("host") == socket.gethostname()
        and status.get("pid") != os.getpid()
        and files.alive(int(status["pid"]))
    )


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and device: what a record needs beside its numbers."""
    from importlib import metadata

    packages = ("torch", "numpy", "scipy", "scikit-image", "tifffile", "matplotlib")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    total, available = host.memory()
    relevant = ("CUDA_", "OMP_", "MKL_", "PT_HPU_", "TORCH", "NCCL_", "CN", "SLURM_JOB", "OMPI_COMM_WORLD_")
    return {
        "unet": unet.__version__,
        "python": sys.version.split()[0],
        "packages": versions,
        "platform": platform.platform(),
        "device": device,
        "cores": host.cores(),
        "memory_bytes": total,
        "memory_available_bytes": available,
        "variables": {key: value for key, value in sorted(os.environ.items()) if key.startswith(relevant)},
    }
