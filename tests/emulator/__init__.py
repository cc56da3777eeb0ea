"""Emulated accelerators: an `hpu`, an `mlu` and an `npu` on host memory, with stand-ins for the vendors' packages.

A test asks for `environment(...)` and starts a process with it; that process finds `habana_frameworks`, `torch_mlu` or
`torch_npu`, and a device that works, and leaves a log of what was done to it. Nothing of the program knows. What this
shows: the program puts every tensor where it belongs and keeps to the order of calls that the vendor asks for. What it
cannot show: which operations the real device has, its numbers, its speed and its memory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from emulator.build import NoCompiler, cache, library

__all__ = ["NoCompiler", "environment", "library"]

TESTS = Path(__file__).parent.parent


def environment(
    kind: str,
    log: Path,
    cards: int = 2,
    memory_mb: int | None = None,
    intel_torch: bool = True,
    autoload: bool = False,
) -> dict[str, str]:
    """The variables of a process that shall find an emulated `kind` (hpu, mlu, npu); they go on top of os.environ.

    The log is written to `log`, in a run of several ranks to `<log>.rank<n>`. `cards` is 0 to 8, `memory_mb` what each
    one holds. For hpu, `intel_torch` makes importlib.metadata name a build of the vendor's, which lazy mode needs, and
    `autoload` makes `import torch` load the bridge, as an installed one does. Raises NoCompiler.
    """
    folders = [Path(__file__).parent / kind, TESTS, TESTS.parent]
    if kind == "hpu" and intel_torch:
        folders.insert(0, intel_metadata())
    if kind == "hpu" and autoload:
        folders.insert(0, autoload_metadata())
    before = os.environ.get("PYTHONPATH")
    result = {
        "PYTHONPATH": os.pathsep.join([*map(str, folders), *([before] if before else [])]),
        "EMULATOR_LIBRARY": str(library(kind)),
        "EMULATOR_LOG": str(Path(log).absolute()),
        "EMULATED_CARDS": str(cards),
    }
    if memory_mb is not None:
        result["EMULATED_MEMORY_MB"] = str(memory_mb)
    return result


def metadata(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A folder for the Python path on which a package seems to be installed."""
    package = folder / f"{name}-{version}.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    for file, text in {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", **files}.items():
        if not (package / file).exists():
            draft = package / f"{file}.{os.getpid()}"
            draft.write_text(text)
            draft.replace(package / file)
    return folder


def intel_metadata() -> Path:
    import torch

    plain = re.split(r"\+", torch.__version__)[0]
    return metadata(cache() / f"intel-torch-{plain}", "torch", f"{plain}+gitemulated", {})


def autoload_metadata() -> Path:
    entry = "[torch.backends]\ndevice_backend = habana_frameworks:__autoload\n"
    return metadata(cache() / "autoload", "habana_torch_plugin", "1.19.0", {"entry_points.txt": entry})
