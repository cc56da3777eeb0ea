"""Compile the emulated device once for each kind, torch and Python, and keep it: later runs find it ready."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("device.cpp")
WRITTEN_FOR = "2.13."  # the kernels' and hooks' interfaces differ a little from version to version
COMMON = ["-O1", "-g0"]
FLAGS = {"hpu": ["-DKEY=HPU", "-DIS_HPU"], "mlu": ["-DKEY=PrivateUse1"], "npu": ["-DKEY=PrivateUse1", "-DIS_NPU"]}


class NoCompiler(RuntimeError):
    """The emulated device cannot be built on this machine, or not for its torch; the text says why."""


def cache() -> Path:
    """The folder of everything that is built or generated here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unet-emulator"


def name_of(kind: str) -> str:
    """The Python name of the compiled module."""
    return f"emulated_{kind}"


def library(kind: str) -> Path:
    """The compiled device of a kind ("hpu", "mlu", "npu"); built where it is not there yet. Raises NoCompiler."""
    import torch

    if kind == "hpu" and torch.version.cuda:
        raise NoCompiler("torch allows no HPU beside its CUDA build: the emulated HPU runs with the CPU build")
    made_of = (SOURCE.read_text(), *COMMON, *FLAGS[kind], torch.__version__, sys.version)
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    folder = cache() / f"{kind}-{digest}"
    result = folder / f"{name_of(kind)}.so"
    if not result.exists():
        path = tools()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            if not result.exists():
                build(kind, result, path)
    return result


def tools() -> str:
    """The PATH on which compiler and ninja are found. Raises NoCompiler."""
    path = os.environ.get("PATH", os.defpath)
    ninja = importlib.util.find_spec("ninja")
    if ninja:
        import ninja as package

        path = os.pathsep.join((package.BIN_DIR, path))
    for program, advice in (("g++", "install g++"), ("ninja", "pip install ninja")):
        if not shutil.which(program, path=path):
            raise NoCompiler(f"the emulated devices need {program}, which is not on the PATH ({advice})")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        raise NoCompiler(f"the emulated devices need {header}, which is not there (install Python's header files)")
    return path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; a process that dies lets go."""
    with open(path, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def build(kind: str, result: Path, path: str) -> None:
    """Compile in a process of its own, because torch's builder also loads what it has built."""
    with tempfile.TemporaryDirectory(dir=result.parent) as folder:
        environment = {**os.environ, "PATH": path, "CXX": "g++", "MAX_JOBS": "1", "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
        environment.pop("PYTHONPATH", None)
        words = [sys.executable, str(Path(__file__)), kind, folder]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode:
            import torch

            known = torch.__version__.startswith(WRITTEN_FOR)
            said = (done.stdout + done.stderr)[-4000:] if known else f"it is written for torch {WRITTEN_FOR}"
            kind_of_error = RuntimeError if known else NoCompiler
            raise kind_of_error(f"the emulated {kind} does not compile with torch {torch.__version__}: {said}")
        (Path(folder) / result.name).replace(result)


def compile_in(kind: str, folder: str) -> None:
    """The compilation itself."""
    from torch.utils.cpp_extension import load

    load(name_of(kind), [str(SOURCE)], extra_cflags=[*COMMON, *FLAGS[kind]], build_directory=folder, verbose=True)


if __name__ == "__main__":
    compile_in(*sys.argv[1:])
