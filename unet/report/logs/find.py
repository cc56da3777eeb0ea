"""Old logs in a folder: what each file is, the runs in them, and which samples of power belong to which run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from unet.errors import UnetError, UsageError
from unet.report.logs import argonne, mlperf, nnunet, power_logs
from unet.report.logs.lines import LARGEST, text_of
from unet.report.run import Run, is_run, number, read_run

HEAD = 2**16  # bytes that tell what a file is
TEXT = (".txt", ".log", ".csv", ".out", ".err", "")
FORMATS = {  # the first whose sign a file has
    mlperf.KIND: mlperf.looks_like,
    argonne.KIND: argonne.looks_like,
    power_logs.KIND: power_logs.looks_like,
    nnunet.KIND: nnunet.looks_like,
}
TOOL = r"(?:power|smi|hl|hl-smi|nvidia|nvidia-smi)"
TOOLS = re.compile(rf"^{TOOL}[-_. ]+|[-_. ]+{TOOL}$")
SHOWN = 5


def read_logs(folder: Path) -> tuple[list[Run], list[str]]:
    """(the runs of all logs and run folders below `folder`, sentences on what could not be read, with file and line).

    Raises UsageError if `folder` is not there, or if nothing in it is a log. Nothing is changed.
    """
    if not folder.exists():
        raise UsageError(f"{folder} does not exist.", "Give the folder that holds the logs.")
    found = dict(files_of(folder))
    runs, omitted = [], list[str]()
    for path, kind in found.items():
        if kind == "run":
            runs.append(read_run(path))
    for kind, reader in ((argonne.KIND, argonne.read), (mlperf.KIND, mlperf.read), (power_logs.KIND, power_logs.read)):
        for path in (path for path, each in found.items() if each == kind):
            _take(reader, path, path, runs, omitted)
    for paths in _folders([path for path, kind in found.items() if kind == nnunet.KIND]):
        _take(nnunet.read, paths, paths[0], runs, omitted)
    omitted += _unknown(folder, found)
    if not runs:
        why = f" ({omitted[0]})" if omitted else ": it has no text file"
        raise UsageError(
            f"{folder} holds no log that can be read{why}.",
            "Logs of the Argonne benchmark, MLPerf, nnU-Net, hl-smi and nvidia-smi are known, and run folders.",
        )
    _name(runs, folder)
    runs, copies = without_copies(runs)
    runs, alone = paired(runs)
    return runs, [*omitted, *copies, *alone]


def files_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, what it is) of the files below a folder: "run" for a run folder, whose files belong to it; the name of a
    format; "" for a text of another kind; "too large"."""
    if folder.is_file():
        yield folder, kind_of(folder)
        return
    if is_run(folder):
        yield folder, "run"
        return
    for place, folders, names in os.walk(folder):
        inner = [Path(place) / name for name in sorted(folders) if not name.startswith(".")]
        yield from ((path, "run") for path in inner if is_run(path))
        folders[:] = [path.name for path in inner if not is_run(path)]
        for name in sorted(names):
            path = Path(place) / name
            if not name.startswith(".") and path.suffix.lower() in TEXT and path.is_file():
                yield path, kind_of(path)


def kind_of(path: Path) -> str:
    """The format of a file: the name of one of `FORMATS`, "too large", "not readable", or "" where it is none."""
    try:
        if path.stat().st_size > LARGEST:
            return "too large"
        with path.open("rb") as stream:
            content = stream.read(HEAD)
    except OSError:
        return "not readable"
    if b"\0" in content and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return ""
    head = text_of(content)
    return next((kind for kind, looks_like in FORMATS.items() if looks_like(head)), "")


def _take(
    reader: Callable[[Any], tuple[list[Run], list[str]]], what: Any, path: Path, runs: list[Run], omitted: list[str]
) -> None:
    try:
        found, sentences = reader(what)
    except UnetError as error:
        omitted.append(f"{path}: {error.message}")
        return
    runs += found
    omitted += sentences


def _folders(paths: Sequence[Path]) -> list[list[Path]]:
    """nnU-Net's logs by run: those of a folder with nnU-Net's own names are starts of one."""
    groups: dict[Path, list[Path]] = {}
    for path in paths:
        groups.setdefault(path.parent if nnunet.NAME.search(path.name) else path, []).append(path)
    return list(groups.values())


def _unknown(folder: Path, found: dict[Path, str]) -> list[str]:
    """A sentence for each way in which files were passed over."""
    words = {"": "of no known format", "too large": f"larger than {LARGEST} bytes", "not readable": "not readable"}
    sentences = []
    for kind, why in words.items():
        names = [str(path.relative_to(folder)) for path, each in found.items() if each == kind and path != folder]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            sentences.append(f"{folder}: {', '.join(names[:SHOWN])}{more}: {why}")
    return sentences


def _name(runs: Sequence[Run], folder: Path) -> None:
    """Names that are the same get their folders in front."""
    names = [run.name for run in runs]
    for run in runs:
        near = run.path.parent
        if names.count(run.name) > 1 and near != folder and folder in near.parents:
            run.name = f"{near.relative_to(folder)}/{run.name}"


def without_copies(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs, without tables that were made of another log here, and a sentence on each of those."""
    kept: list[Run] = []
    sentences = []
    for run in sorted(
        runs, key=lambda run: not (run.command or run.summary.get("started"))
    ):  # the logs themselves first
        same = next((other for other in kept if run.kind == other.kind and _content(run) == _content(other)), None)
        if same is None or run.kind not in (argonne.KIND, power_logs.KIND):
            kept.append(run)
        elif same.path != run.path:
            sentences.append(f"{run.path}: the same values as {same.path}, left out")
    return [run for run in runs if any(run is other for other in kept)], sentences


def _content(run: Run) -> list[Any]:
    watts = sorted((str(row["source"]).rpartition(" ")[2], row["watts"]) for row in run.power)
    return [run.epochs, watts]


def paired(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs with their samples of power: a power log belongs to the run of its name, or else to the only run of its
    time. One that belongs to no run stays a run of its own."""
    logs = [run for run in runs if run.kind == power_logs.KIND]
    others = [run for run in runs if run.kind != power_logs.KIND]
    left: list[Run] = []
    sentences = []
    for log in logs:
        named = [run for run in others if key_of(run.path.stem) == key_of(log.path.stem) and not run.power]
        timed = [run for run in others if overlap(run, log) > 0 and not run.power]
        chosen = named if len(named) == 1 else timed
        if len(chosen) == 1:
            join(chosen[0], log)
            continue
        left.append(log)
        if len(chosen or named) > 1:
            names = ", ".join(run.name for run in (chosen or named)[:SHOWN])
            sentences.append(f"{log.path}: belongs to one of {names}, and nothing says to which; shown by itself")
    return [*others, *left], sentences


def key_of(stem: str) -> str:
    """A file's name without the words of a tool: `64-max-power` belongs to `64-max`."""
    while (shorter := TOOLS.sub("", stem)) != stem:
        stem = shorter
    return stem.lower()


def overlap(run: Run, log: Run) -> float:
    """Seconds that a run and a power log share; 0 where one has no times, or their clocks differ."""
    times = [number(each.summary.get(key)) for each in (run, log) for key in ("started", "ended")]
    if None in times or run.summary.get("clock") != log.summary.get("clock"):
        return 0.0
    began, ended, first, last = (time or 0.0 for time in times)
    return min(ended, last) - max(began, first)


def join(run: Run, log: Run) -> None:
    """Give a run the samples of a power log, in seconds since the run began where both have times."""
    shift = 0.0
    if overlap(run, log) > 0:
        shift = float(log.summary["started"]) - float(run.summary["started"])
    run.power = [{**row, "seconds": row["seconds"] + shift} for row in log.power]
    power = dict(log.summary["power"])
    samples = number(run.summary.get("samples"))
    if samples and math.isfinite(power["joules"]):
        power["joules_per_sample"] = power["joules"] / samples
    run.summary["power"] = {**power, "file": str(log.path)}
    if not run.environment.get("device") and log.environment.get("device"):
        run.environment["device"] = log.environment["device"]
