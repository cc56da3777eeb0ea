"""The numbers of a page, for machines: JSON in the page, CSV files beside it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from unet import __version__
from unet.report.page.conclusion import Conclusion
from unet.report.page.curves import OVER, Panel
from unet.report.page.groups import Group, differing, is_running, shown
from unet.report.run import Run, number

RUN_COLUMNS: tuple[str, ...] = ("run", "group", "task", "kind", "status", "device", "metric", "score", "train_seconds")
RUN_COLUMNS += ("seconds_to_target", "samples_per_second", "joules_per_sample", "peak_memory_bytes", "path")


def page_data(
    groups: Sequence[Group],
    panels: Sequence[Panel],
    conclusions: Sequence[Conclusion],
    omitted: Sequence[str],
    watched: bool,
) -> dict[str, Any]:
    return {
        "version": 1,
        "unet": __version__,
        "watched": watched,
        "over": OVER,
        "conclusions": [{"words": each.words, "more": each.more, **each.data} for each in conclusions],
        "settings_that_differ": {
            name: {group.name: shown(group, name) for group in groups} for name in differing(groups)
        },
        "commands": {run.name: run.command for group in groups for run in group.runs},
        "tables": {name: {"heads": heads, "rows": rows} for name, (heads, rows) in tables(groups).items()},
        "curves": [curve(panel) for panel in panels],
        "omitted": list(omitted),
    }


def curve(panel: Panel) -> dict[str, Any]:
    lines = []
    for line in panel.lines:
        over = {name: rounded(values) for name, values in line.over.items()}
        about = {
            "run": line.group.name,
            "label": line.label,
            "validation": line.validation,
            "over": over,
            "y": rounded(line.y),
        }
        band = len(line.group.runs) > 1
        lines.append({**about, "low": rounded(line.low) if band else [], "high": rounded(line.high) if band else []})
    return {"task": panel.task, "key": panel.key, "title": panel.title, "lines": lines}


def rounded(values: Iterable[float]) -> list[float | int]:
    """The values with six digits, whole numbers without a point."""
    short = [float(f"{value:.6g}") for value in values]
    return [int(value) if value.is_integer() and abs(value) < 1e9 else value for value in short]


def tables(groups: Sequence[Group]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """name -> (heads, rows): the runs, and the scores of their cases."""
    runs = [(group, run) for group in groups for run in group.runs]
    columns = list(dict.fromkeys(key for _, run in runs for row in run.cases.values() for key in row))
    cases = [
        [run.name, run.task, case, *(finite(row.get(key)) for key in columns)]
        for _, run in runs
        for case, row in run.cases.items()
    ]
    return {
        "runs": (list(RUN_COLUMNS), [row_of(group, run) for group, run in runs]),
        "cases": (["run", "task", "case", *columns], cases),
    }


def row_of(group: Group, run: Run) -> list[Any]:
    state = run.status if run.status != "running" or is_running(run) else "killed"
    about = [run.name, group.name, run.task, run.kind, state, run.device, run.metric, run.score]
    seconds = Group(run.name, [run]).train_seconds
    return [*about, seconds, run.seconds_to_target, run.rate, run.joules_per_sample, run.peak_memory, str(run.path)]


def epochs(groups: Sequence[Group]) -> tuple[list[str], list[list[Any]]]:
    """Every epoch of every run, with all that its log has in numbers."""
    runs = [run for group in groups for run in group.runs]
    columns = list(
        dict.fromkeys(key for run in runs for row in run.epochs for key in row if key not in ("event", "cases"))
    )
    rows = [[run.name, *(number(row.get(key)) for key in columns)] for run in runs for row in run.epochs]
    return ["run", *columns], rows


def csv_files(groups: Sequence[Group]) -> dict[str, bytes]:
    """name -> content of the CSV files beside a page; one without rows is left out."""
    found = {**tables(groups), "epochs": epochs(groups)}
    return {f"{name}.csv": csv_text(heads, rows).encode() for name, (heads, rows) in found.items() if rows}


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    return text.getvalue()


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
