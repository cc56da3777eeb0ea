"""Where a run is that was named on a command line: a folder, a record, a file of an old log."""

from __future__ import annotations

import difflib
from pathlib import Path

from unet.errors import UsageError
from unet.report.logs import read_logs
from unet.report.run import Run, is_run, read, runs_in

RECORDS = "records"


def place_of(name: str, out: Path) -> Path:
    """The path of a run that was named: as typed, or below the folder of the runs or of its records; a place that holds
    no run counts only where none of them does. Raises UsageError with the nearest name if there is none."""
    places = [Path(name), out / name, out / RECORDS / name]
    there = [path for path in places if path.is_file() or (path.exists() and path != out)]
    if there:
        return next((path for path in there if path.is_file() or runs_in(path)), there[0])
    known = [
        path.name for folder in (out, out / RECORDS) if folder.is_dir() for path in folder.iterdir() if path.is_dir()
    ]
    near = difflib.get_close_matches(name, known, 1, 0.6)
    if Path(name).name != name:
        raise UsageError(f"{name} does not exist.", "All runs: python -m unet runs")
    raise UsageError(
        f"There is no run {name!r}: neither {places[0].absolute()} nor {places[1].absolute()} exists.",
        f"Did you mean {near[0]}? All of them: python -m unet runs" if near else "All of them: python -m unet runs",
    )


def runs_of(name: str, out: Path) -> list[Run]:
    """The runs in what was named. Raises UsageError if there is none."""
    path = place_of(name, out)
    return read_logs(path)[0] if path.is_file() else read(path)


def one_of(name: str, out: Path) -> Run:
    """The run that was named. Raises UsageError if there is none, or several."""
    found = runs_of(name, out)
    if len(found) == 1:
        return found[0]
    inner = [run.path for run in found if is_run(run.path)]
    raise UsageError(
        f"{place_of(name, out)} holds {len(found)} runs ({', '.join(run.name for run in found[:6])}).",
        f"Name one of them, such as {inner[0]}." if inner else "Put one of them into a file of its own.",
    )
