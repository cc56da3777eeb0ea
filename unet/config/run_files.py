"""The schemas of the files in a run folder that the program reads again. No torch."""

from __future__ import annotations

import glob
import json
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet import files
from unet.errors import UnetError, UsageError

STATUS = {"status?": str, "why?": str, "pid?": int, "host?": str, "kind?": str, "weights?": str, "state?": str}
STATUS |= {"metric?": str, "metric_title?": str, "metric_goal?": str}  # as in summary.json, which comes at the end
ENTRY = {"value": object, "source?": str}
CONFIG = {"command?": str, "settings": {str: (ENTRY, {str: ENTRY})}}  # by group; before version 2 without groups
SPLIT = {"train": [str], "validation": [str]}
MANIFEST = {"files": [str]}
PICTURED = "cases"  # the folder of the pictures of cases, in that of a run, and their index
PICTURES = f"{PICTURED}/index.json"
PANELS = {"case": str, "score": (float, None), "place": str, "file": str, "panels": [str], "over": [str]}
PANELS |= {"slices": [int], "of": int, "first": int, "width": int, "height": int, "key": {str: [[object]]}}
PICTURE_INDEX = {"version": int, "cases": [PANELS]}
DUMPED, DUMP_LIST = ("settings.json", "batch.npz", "layers.txt", "trace.json"), "dump.json"  # by --debug-dump
RESULTS_CSV, POWER_CSV = "results.csv", "power.csv"
WARM_UP = "warm_up"  # in metrics.jsonl: the first interval after a start
KERNELS_JSON = "kernels.json"  # the algorithm of each pass of a convolution, and where it was measured
CHOSEN = {"machine": str, "choices": {str: str}}
KERNELS = CHOSEN | {"kernels": str, "ranks?": {str: CHOSEN}}  # ranks: of processes that chose otherwise than the first
TRACKED = ("wandb", "mlflow", "track_group")


def read_status(folder: Path) -> dict[str, Any]:
    """status.json of a run; empty if it is missing or damaged: everything in it can be found elsewhere."""
    try:
        found: dict[str, Any] = files.read_json(folder / "status.json", STATUS)
    except UnetError:
        return {}
    return found


def read_settings(path: Path, hint: str = "Restore the file.") -> dict[str, dict[str, Any]]:
    """name -> {"value", "source"} of a run's config.json. Raises UnetError where it is damaged."""
    return flat_settings(files.read_json(path, CONFIG, hint)["settings"])


def flat_settings(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> {"value", "source"}, from settings in groups or, as in earlier versions, without."""
    found: dict[str, dict[str, Any]] = {}
    for name, item in settings.items():
        found |= {name: item} if not files.schema_error(item, ENTRY) else item if isinstance(item, dict) else {}
    return found


def read_split(path: Path, run_name: str) -> dict[str, list[str]]:
    """The training and validation cases of a run. Raises UnetError where the file is damaged, or a case is in both."""
    hint = f"Restore the file; or start anew: --overwrite --run-name {shlex.quote(run_name)}"
    found: dict[str, list[str]] = files.read_json(path, SPLIT, hint)
    both = sorted(set(found["train"]) & set(found["validation"]))
    if both or not found["train"]:
        wrong = f"{len(both)} cases are in training and validation ({both[0]})" if both else "no training cases"
        raise UnetError(f"{path.absolute()}: {wrong}.", hint)
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file (metrics.jsonl); damaged lines are left out."""
    rows = []
    for line in files.require_regular(path).read_bytes().splitlines() if os.path.lexists(path) else []:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # also bytes that are not UTF-8
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def is_running(status: Mapping[str, Any]) -> bool:
    """Whether the process that wrote a status is alive on this host (and is this program: process ids are reused)."""
    pid = status.get("pid")
    here = status.get("status") == "running" and status.get("host") == socket.gethostname() and pid != os.getpid()
    if not here or not pid or not files.process_alive(pid):
        return False
    try:
        return b"unet" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def resumed_run(resume: str, run_name: str | None, out: str) -> Path:
    """The folder of the run to resume: from a run folder, a state file, the --run-name, or the latest unfinished run.

    Raises UsageError if there is none.
    """
    parent = Path(out)
    if resume != "auto":
        path = Path(resume).absolute()
        folders = [
            path,
            parent / resume,
            *(item.parent for item in parent.glob("*/status.json") if _state_of(item.parent) == path),
        ]
    elif run_name:
        folders = [parent / run_name]
    else:
        runs = [item.parent for item in parent.glob("*/config.json")]
        folders = sorted(
            (run for run in runs if read_status(run).get("status") != "done" and _has_state(run)),
            key=lambda run: (run / "config.json").stat().st_mtime,
            reverse=True,
        )
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    known = sorted(item.parent.name for item in parent.glob("*/config.json"))
    raise UsageError(
        f"--resume: no run {resume if resume != 'auto' else run_name or 'that is not done'} in {parent.absolute()}"
        + (f" (runs: {', '.join(known[:6])})." if known else " (no runs)."),
        "Type --resume --run-name NAME, --resume PATH, or leave --resume out to start.",
    )


def _state_of(folder: Path) -> Path | None:
    """The state file named in a run's status, if there is one."""
    state = read_status(folder).get("state")
    return Path(state).absolute() if state else None


def _has_state(folder: Path) -> bool:
    """Whether a run has a saved state: the latest, or the previous one."""
    state = _state_of(folder)
    return state is not None and any(state.parent.glob(f"{glob.escape(state.name.partition('.state.')[0])}.state*"))


def tracked_by(folder: Path) -> dict[str, Any]:
    """The trackers of a run that is resumed; none where its settings are damaged, which is told when they are read."""
    try:
        found = read_settings(folder / "config.json")
    except UnetError:
        return {}
    return {name: found[name]["value"] for name in TRACKED if name in found and isinstance(found[name]["value"], str)}
