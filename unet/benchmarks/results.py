"""The folder of a benchmark: where it lies, and what is written into it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import host
from unet.config.resolve import Resolved, dumps
from unet.config.schema import Config
from unet.devices import load
from unet.runtime.folders import run_folder
from unet.runtime.folders.run_folder import RunFolder

TRACE = "trace.json"


def folder_of(config: Config) -> RunFolder | None:
    """The folder of the results; None where nothing asks for one."""
    if not (config.run.run_name or config.measure.profile):
        return None
    kind = f"{config.task.name}-benchmark"
    return run_folder.new_folder(Path(config.run.out), config.run.run_name, kind, "benchmark", config.general.overwrite)


def draft_of(folder: RunFolder | None, config: Config) -> Path | None:
    """Where the trace is written before the folder is there; None without one."""
    if folder is None or not config.measure.profile:
        return None
    return folder.path.with_name(f".{folder.name}.{os.getpid()}.{TRACE}")


def beside(result: dict[str, Any], spans: Sequence[load.Span]) -> None:
    """Add the cores that other processes used meanwhile, and tell it where they are many."""
    result["cores_of_others"] = load.others(spans)
    if said := load.words(result["cores_of_others"], host.cores()):
        host.notice(said)


def measured(unfinished: Mapping[str, int]) -> str:
    """How far a benchmark came before it was stopped, in words."""
    count, of = unfinished["rounds"], unfinished["of"]
    if count < of:
        return f"{count} of {host.counted(of, 'round')} {'is' if count == 1 else 'are'} measured"
    return f"all of {host.counted(of, 'round')} measured, not all that comes after them"


def keep(
    folder: RunFolder, resolved: Resolved, command: str, result: dict[str, Any], trace: Path | None = None
) -> None:
    """Write the files of a benchmark: finished, or stopped after some rounds (its `unfinished`)."""
    found = result.get("unfinished")
    folder.status("interrupted" if found else "done", measured(found) if found else "", kind="benchmark")
    folder.write("config.json", dumps(resolved, command))
    folder.write("benchmark.json", result)
    folder.write("environment.json", run_folder.environment(result["device"]))
    folder.begin()
    if trace and trace.exists():
        trace.replace(folder.place(TRACE))
