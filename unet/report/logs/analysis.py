"""The figures that the Argonne benchmark's own analysis takes from its logs, for imported runs of every kind.

The first epoch stands apart, since caches are filled and graphs compiled in it; the others give mean, longest and
shortest. Runs whose names differ in their last number alone are repetitions, and get a line with their mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from unet.report.run import Run, number

HEADS = {  # key: (heading, how a value is written)
    "epochs": ("epochs", "{:.0f}"),
    "first_epoch": ("first s", "{:.2f}"),
    "mean_epoch": ("mean s", "{:.2f}"),
    "longest_epoch": ("max s", "{:.2f}"),
    "shortest_epoch": ("min s", "{:.2f}"),
    "mean_evaluation": ("eval s", "{:.2f}"),
    "best_score": ("best", "{:.4f}"),
    "train_seconds": ("train s", "{:.1f}"),
    "evaluate_seconds": ("all eval s", "{:.1f}"),
    "loader_seconds": ("loaders s", "{:.1f}"),
    "idle_watts": ("idle W", "{:.1f}"),
    "joules": ("J", "{:.0f}"),
    "joules_above_idle": ("J above idle", "{:.0f}"),
}
LAST = re.compile(r"[-_. ]?#?\d+$")


def figures(run: Run) -> dict[str, float]:
    """The figures that a run has, under the keys of `HEADS`; seconds of evaluation are means without the first."""
    trained = [value for row in run.epochs if (value := number(row.get("train_seconds"))) is not None]
    scored = [value for row in run.epochs if (value := number(row.get("evaluate_seconds"))) is not None]
    later = trained[1:] or trained
    found: dict[str, float | None] = {
        "epochs": float(len(run.epochs)) or None,
        "first_epoch": trained[0] if trained else None,
        "mean_epoch": _mean(later),
        "longest_epoch": max(later, default=None),
        "shortest_epoch": min(later, default=None),
        "mean_evaluation": _mean(scored[1:] or scored),
        "best_score": run.score,
        "train_seconds": run.train_seconds,
    }
    stated, power = run.summary.get("seconds"), run.summary.get("power")
    if isinstance(stated, dict):
        found["evaluate_seconds"] = number(stated.get("evaluate"))
        found["loader_seconds"] = number(stated.get("loaders"))
    if isinstance(power, dict):
        found |= {key: number(power.get(key)) for key in ("idle_watts", "joules", "joules_above_idle")}
    return {key: value for key, value in found.items() if value is not None}


def rows(runs: Sequence[Run]) -> list[tuple[str, dict[str, float]]]:
    """(name, figures) of each run, with a line for the mean of repetitions after the last of them."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(LAST.sub("", run.name), []).append(run)
    found = []
    for name, group in groups.items():
        each = [(run.name, figures(run)) for run in group]
        found += each
        keys = [key for key in HEADS if all(key in part for _, part in each)]
        if len(each) > 1 and keys:
            found.append(
                (f"{name}: mean of {len(each)}", {key: _mean([p[key] for _, p in each]) or 0.0 for key in keys})
            )
    return found


def table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """(headings, rows of cells): the columns that at least one run has."""
    lines = rows(runs)
    keys = [key for key in HEADS if any(key in part for _, part in lines)]
    cells = [[name, *(HEADS[key][1].format(part[key]) if key in part else "-" for key in keys)] for name, part in lines]
    return ["log", *(HEADS[key][0] for key in keys)], cells


def text(runs: Sequence[Run], draw: Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]] | None = None) -> str:
    """The table as text; `draw` (such as `commands.tables.table`) fits it to the terminal."""
    heads, cells = table(runs)
    if draw is not None:
        return "\n".join(draw(heads, cells))
    wide = [max(len(row[place]) for row in [heads, *cells]) for place in range(len(heads))]
    lines = [
        [row[0].ljust(wide[0]), *(cell.rjust(wide[i]) for i, cell in enumerate(row) if i)] for row in [heads, *cells]
    ]
    return "\n".join("  " + "  ".join(line).rstrip() for line in lines)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
