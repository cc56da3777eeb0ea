"""The schemas of the files in a run folder that the program reads again. No torch."""

from __future__ import annotations

import json
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet import files
from unet.errors import UnetError

STATUS = {"status?": str, "why?": str, "pid?": int, "host?": str, "kind?": str, "weights?": str, "state?": str}
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
KERNELS = {"kernels": str, "machine": str, "choices": {str: str}}


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
