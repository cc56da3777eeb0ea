"""runs: lists the runs of a folder, newest first, with state, score, time and last line. Nothing is changed."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet import files, locks
from unet.commands import output, tables
from unet.config import run_files
from unet.config.resolve import Resolved
from unet.errors import UnetError, UsageError
from unet.report.places import RECORDS
from unet.report.run import Run, is_run, number, read_run
from unet.runtime.folders.run_folder import RunFolder

TAIL = 4096  # bytes of a log in which its last line is looked for
NAME, LAST = 56, 60  # characters of a name and of a last line
RECORD = "record.json"
POOLED = "The score of a crossval is the mean over the cases of all its folds; its table has the mean of the folds too."


def run(resolved: Resolved, command: str) -> int:
    """Print the runs of --out, or with --records its records. Returns 0, also where there are none."""
    config = resolved.config
    folder = Path(config.run.out) / (RECORDS if config.listing.records else "")
    if not folder.is_dir():
        hint = "Name the folder of the runs with --out, or start one: python -m unet train --synth-data"
        if config.listing.records:
            hint = "The records lie in the program's repository: type --out REPOSITORY/performance"
        raise UsageError(
            f"{folder.absolute()} is no folder, so there are no {'records' if config.listing.records else 'runs'}.",
            hint,
        )
    places = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    rows = [row for path in places for row in rows_of(path, config.listing.records)]
    if config.listing.records:  # the files of a record are as old as the copy of the repository
        rows = [{**row, "updated": row["name"][:10]} for row in rows]
    rows.sort(key=lambda row: (row["updated"], written(row["path"]), row["name"]), reverse=True)
    output.show(config, {"folder": folder, "runs": rows}, "\n".join(text(rows, folder)))
    return 0


def rows_of(path: Path, records: bool) -> list[dict[str, Any]]:
    """A row of a run; of a record also where its runs lie in folders of their own, or where it holds a log alone."""
    if is_run(path):
        return [row_of(path, path.name)]
    if not records:
        return []
    inner = [place for place in sorted(path.iterdir()) if is_run(place)]
    if inner:
        return [row_of(place, f"{path.name}/{place.name}") for place in inner]
    about = _record(path)
    row: dict[str, Any] = {
        "name": path.name,
        "kind": "record",
        "task": str(about.get("task", "")),
        "state": "done",
        "why": "",
    }
    row |= {"metric": "", "score": None, "seconds": None, "updated": ""}
    return [{**row, "last_line": str(about.get("figure", "")), "path": path}]


def row_of(path: Path, name: str) -> dict[str, Any]:
    """One run: name, kind, task, state and why, metric and score, seconds, last change, last line of its log, path."""
    status, run = run_files.read_status(path), read_run(path)
    return {
        "name": name,
        "kind": run.kind,
        "task": run.task,
        "state": state_of(path, status),
        "why": run.why,
        "metric": run.score_name if run.score is not None else "",
        "score": run.score,
        "seconds": seconds_of(run),
        "updated": updated(path, status),
        "last_line": last_line(path / "run.log"),
        "path": path,
    }


def state_of(path: Path, status: Mapping[str, Any]) -> str:
    """running, done, failed, interrupted; died: it says that it runs, and its process is gone; or not known."""
    state = str(status.get("status", ""))
    if state != "running":
        return state or (
            "done" if (path / "summary.json").exists() or (path / "benchmark.json").exists() else "not known"
        )
    if locks.holder(RunFolder(path, writes=False).lock) or run_files.is_running(status):
        return "running"
    return "died" if status.get("host") == socket.gethostname() else "running"


def seconds_of(run: Run) -> float | None:
    """Seconds that a run took: training, evaluation and saving; those of its epochs while it runs."""
    seconds = run.summary.get("seconds")
    if isinstance(seconds, Mapping):
        known = [value for key in ("train", "evaluate", "save") if (value := number(seconds.get(key))) is not None]
        return sum(known) if known else None
    if number(seconds) is not None:
        return number(seconds)
    parts = [number(row.get(key)) or 0.0 for row in run.epochs for key in ("train_seconds", "evaluate_seconds")]
    return sum(parts) if parts else None


def updated(path: Path, status: Mapping[str, Any]) -> str:
    """When a run was last written to, as its status says, or as its newest file does."""
    if found := str(status.get("updated", "")):
        with contextlib.suppress(ValueError):  # in the time of this machine: runs of several are sorted by it
            found = datetime.datetime.strptime(found, "%Y-%m-%dT%H:%M:%S%z").astimezone().strftime("%Y-%m-%dT%H:%M:%S")
        return found[:19]
    times = [os.stat(place).st_mtime for place in path.iterdir() if place.is_file()]  # noqa: PTH116
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(max(times, default=0)))


def written(path: Path) -> int:
    """When the status of a run was written, in nanoseconds: the time in it has whole seconds."""
    try:
        return (path / "status.json").stat().st_mtime_ns
    except OSError:
        return 0


def last_line(path: Path) -> str:
    """The last whole line of a log; of one that ends within a line, the part that is there."""
    try:
        with files.require_regular(path).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL))
            lines = stream.read().decode("utf-8", errors="replace").splitlines()
    except (OSError, UnetError):
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def text(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    if not rows:
        return [f"{folder}: no runs"]
    cells = []
    for row in rows:
        score = "-" if row["score"] is None else f"{row['score']:.4f}"
        cells.append([row["name"], row["task"], row["kind"], row["state"], score, took(row["seconds"]), when(row)])
    heads = ["run", "task", "command", "state", "score", "took", "last change"]
    name = min(NAME, max(len(row["name"]) for row in rows))
    sizes = [name, *(max(len(line[i]) for line in [heads, *cells]) for i in range(1, len(heads)))]
    wide = sum(sizes) + 2 * len(sizes)
    pooled = [row for row in rows if row["kind"] == "crossval" and row["score"] is not None]
    note = ["", *tables.text(POOLED)] if pooled else []
    if wide > tables.width():
        return tables.table(heads, cells) + note
    room = min(LAST, tables.width() - wide - 2)
    lines = []
    for line, last in [(heads, "last line"), *((line, _tail(row)) for line, row in zip(cells, rows, strict=True))]:
        shown = "  ".join(cell[:size].ljust(size) for cell, size in zip(line, sizes, strict=True))
        lines.append(f"  {shown}  {last[:room] if room > 12 else ''}".rstrip())
    return lines + note


def _tail(row: Mapping[str, Any]) -> str:
    """The last line of a run's log without its time, which stands beside it."""
    words = str(row["last_line"])
    return words[20:] if words[:4].isdecimal() and words[10:11] == " " else words


def when(row: Mapping[str, Any]) -> str:
    return str(row["updated"]).replace("T", " ")[:16]


def took(seconds: float | None) -> str:
    """Seconds as 45 s, 12 min, 3 h 20 min."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads((path / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
