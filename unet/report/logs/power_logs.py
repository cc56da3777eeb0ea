"""Samples of power that `hl-smi` and `nvidia-smi` wrote as CSV, and the tables that were made of them.

A loop around the tool repeats the heading before each call, and samples of several cards and calls come mixed.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.report.logs.lines import lines_of, passed_over
from unet.report.logs.stamps import seconds_of
from unet.report.run import Run

KIND = "power log"
SOURCES = {  # a column that tells cards apart, the first that is there: what a card is called after it
    "module_id": "module ",
    "index": "card ",
    "device": "card ",
    "bus_id": "",
    "pci.bus_id": "",
    "gpu_bus_id": "",
    "serial": "card ",
    "uuid": "",
}
WATTS = ("power.draw", "power.draw.instant", "power.draw.average")
BUSY = ("utilization.aip", "utilization.gpu")
MEMORY = {"MiB": 2**20, "GiB": 2**30, "KiB": 2**10}
UNIT = re.compile(r"^(.*?)\s*\[(.*)\]$")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
RISE = 5.0, 0.1  # watts, and share of the idle level, that power must rise to be no longer idle
GAP = 60.0  # seconds without a sample in which nothing is known


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where a row has what: places of the cells, None where a column is missing."""

    count: int
    watts: int
    time: int | None
    passed: int | None  # seconds since the first sample, in a table made of a log
    source: tuple[int, str] | None
    name: int | None
    busy: int | None
    memory: tuple[int, str] | None


def heading(text: str) -> Columns | None:
    """The columns that a heading names; None where the line is no heading of a power log."""
    names: dict[str, tuple[int, str]] = {}
    for place, cell in enumerate(text.split(",")):
        found = UNIT.match(cell.strip())
        names.setdefault(found[1] if found else cell.strip(), (place, found[2] if found else ""))
    watts = next((names[name] for name in WATTS if name in names), None)
    time, passed = names.get("timestamp"), names.get("time-diff")
    if watts is None or (time is None and passed is None):
        return None
    source = next(((names[name][0], word) for name, word in SOURCES.items() if name in names), None)
    busy = next((names[name][0] for name in BUSY if name in names), None)
    name = names.get("name") or names.get("gpu_name")
    return Columns(
        text.count(",") + 1,
        watts[0],
        time[0] if time else None,
        passed[0] if passed else None,
        source,
        name[0] if name else None,
        busy,
        names.get("memory.used"),
    )


def guess(text: str) -> Columns | None:
    """The columns of a row without a heading (`--format=csv,noheader`): a stamp, a number with W, one with %."""
    cells = [cell.strip() for cell in text.split(",")]
    time = next((place for place, cell in enumerate(cells) if seconds_of(cell)), None)
    watts = next((place for place, cell in enumerate(cells) if re.fullmatch(r"\d+(\.\d+)? W", cell)), None)
    if time is None or watts is None:
        return None
    busy = next((place for place, cell in enumerate(cells) if re.fullmatch(r"\d+ %", cell)), None)
    memory = next((place for place, cell in enumerate(cells) if cell.endswith(" MiB")), None)
    bus = next((place for place, cell in enumerate(cells) if re.fullmatch(r"[\dA-Fa-f]{4,8}:.*", cell)), None)
    module = next((place for place, cell in enumerate(cells) if cell.isdecimal()), None)
    source = (bus, "") if bus is not None else (module, "card ") if module is not None else None
    return Columns(len(cells), watts, time, None, source, None, busy, None if memory is None else (memory, "MiB"))


def looks_like(head: str) -> bool:
    return any(heading(line) or guess(line) for line in head.splitlines()[:50])


def read(path: Path) -> tuple[list[Run], list[str]]:
    """(a run with the samples, or none; sentences on what could not be read)."""
    run = Run(path.stem, path, KIND)
    columns: Columns | None = None
    omitted: list[str] = []
    strange: list[int] = []
    without: list[int] = []
    clock = "local"
    for line in lines_of(path):
        if not line.text.strip():
            continue
        if found := heading(line.text):
            columns = found
            continue
        columns = columns or guess(line.text)
        if columns is None or line.text.count(",") + 1 != columns.count:
            if line.whole:
                strange.append(line.number)
            else:
                omitted.append(f"{path}, line {line.number}: the file ends within this row")
            continue
        row, clock = _row(line.text, columns, run, clock)
        if row is None or not line.whole:
            strange.append(line.number)
        elif row["watts"] is None:
            without.append(line.number)
        else:
            run.power.append(row)
    omitted += passed_over(path, strange, "no sample, passed over")
    omitted += passed_over(path, without, "no power in the sample (N/A)")
    if not run.power:
        return [], [*omitted, f"{path}: no sample of power could be read"]
    first = min(row["seconds"] for row in run.power)
    run.power.sort(key=lambda row: row["seconds"])
    stamped = columns is not None and columns.time is not None
    run.summary = {"started": first, "ended": run.power[-1]["seconds"], "clock": clock} if stamped else {}
    for row in run.power:
        row["seconds"] -= first
    run.summary["power"] = summary_of(run.power)
    run.status = "done"
    return [run], omitted


def _row(text: str, columns: Columns, run: Run, clock: str) -> tuple[dict[str, Any] | None, str]:
    """(a sample with absolute seconds; the clock of its stamp); None for a line that is no sample."""
    cells = [cell.strip() for cell in text.split(",")]
    if columns.time is not None:
        found = seconds_of(cells[columns.time])
        if found is None:
            return None, clock
        seconds, clock = found
    elif NUMBER.fullmatch(cells[columns.passed or 0]):
        seconds = float(cells[columns.passed or 0])
    else:
        return None, clock
    place, word = columns.source or (None, "card")
    source = word if place is None else word + re.sub(r"^0{4,8}:", "", cells[place])
    row: dict[str, Any] = {"seconds": seconds, "source": source, "watts": _amount(cells[columns.watts])}
    if columns.busy is not None and (busy := _amount(cells[columns.busy])) is not None:
        row["utilization"] = busy / 100
    if columns.memory and (memory := _amount(cells[columns.memory[0]])) is not None:
        unit = columns.memory[1] or cells[columns.memory[0]].rpartition(" ")[2]
        row["memory_bytes"] = memory * MEMORY.get(unit, 2**20)
    if columns.name is not None:
        run.environment.setdefault("device", cells[columns.name])
    return row, clock


def _amount(cell: str) -> float | None:
    """The number of a cell such as `103 W`; None for N/A."""
    found = NUMBER.match(cell)
    return float(found[0]) if found else None


def summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Idle level, energy and mean of each source and of those that did work; see `of_source`."""
    sources: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        sources.setdefault(str(row["source"]), []).append(row)
    by_source = {name: of_source(part) for name, part in sorted(sources.items())}
    worked = [part for part in by_source.values() if part["worked"]]
    total = {key: math.fsum(part[key] for part in worked) for key in ("joules", "joules_above_idle", "idle_watts")}
    seconds = max((part["seconds"] for part in worked), default=0.0)
    return {
        **total,
        "seconds": seconds,
        "mean_watts": total["joules"] / seconds if seconds else None,
        "idle_from": "; ".join(sorted({part["idle_from"] for part in worked})),
        "by_source": by_source,
    }


def of_source(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One card. Its work lasts from the first sample above the idle level to the last one; the idle level is the median
    of the samples before, or where there are fewer than three the lowest level that three samples in a row hold.
    `joules` is the energy of that time (trapezoids), `joules_above_idle` the part above the idle level."""
    watts = [float(row["watts"]) for row in rows]
    times = [float(row["seconds"]) for row in rows]
    levels = [statistics.median(watts[max(0, i - 1) : i + 2]) for i in range(len(watts))]
    floor = min(levels)
    limit = floor + max(RISE[0], RISE[1] * floor)
    above = [place for place, level in enumerate(levels) if level > limit]
    idle, idle_from = floor, "the lowest level of three samples: no sample is from before the work"
    first, last = (above[0], above[-1]) if above else (0, 0)
    if not above:
        idle, idle_from = statistics.median(watts), "the whole log: power never rises"
    elif first >= 3:
        idle, idle_from = statistics.median(watts[:first]), "the median of the samples before the first rise"
    joules = over = seconds = 0.0
    for place in range(first + 1, last + 1):
        passed = times[place] - times[place - 1]
        if passed <= GAP:
            joules += passed * (watts[place] + watts[place - 1]) / 2
            over += passed * ((watts[place] + watts[place - 1]) / 2 - idle)
            seconds += passed
    busy = [float(row["utilization"]) for row in rows[first : last + 1] if "utilization" in row]
    return {
        "worked": bool(above),
        "samples": len(rows),
        "idle_watts": idle,
        "idle_from": idle_from,
        "peak_watts": max(watts),
        "mean_watts": joules / seconds if seconds else statistics.fmean(watts),
        "seconds": seconds,
        "joules": joules,
        "joules_above_idle": over,
        **({"utilization": statistics.fmean(busy)} if busy else {}),
    }
