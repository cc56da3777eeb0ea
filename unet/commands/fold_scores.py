"""The scores of a cross-validation: a row for each fold, the mean of the folds and that of all cases, as a table."""

from __future__ import annotations

import csv
import functools
import io
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unet import files
from unet.commands import tables
from unet.config.schema import shell_path
from unet.tasks.base import Task

if TYPE_CHECKING:
    from unet.commands.crossval import Fold

SUMMARY = {"best_epoch": (int, None), "steps": int, "seconds": {"train": float}, "images_per_second": float}
SUMMARY |= {"power?": {"joules?": (float, int, None)}}


def scores_of(fold: Fold, task: Task) -> list[dict[str, float]]:
    """The scores of each case of a fold."""
    cases: list[Any] = list(csv.DictReader(io.StringIO(files.read_text(fold.folder / "cases.csv"))))
    keys = [key for key, _, _ in task.columns if cases and key in cases[0]]
    return [{key: float(case[key] or "nan") for key in keys} for case in cases]


def all_cases(finished: Sequence[Fold], task: Task) -> list[dict[str, float]]:
    return [case for fold in finished for case in scores_of(fold, task)]


def results(finished: Sequence[Fold], task: Task) -> list[dict[str, Any]]:
    """One row {"fold", "seconds", "images_per_second", scores ...} for each fold: the means over its cases. `seconds`
    are those of training, evaluation and saving."""
    from unet.runtime.evaluation import mean

    rows = []
    for fold in finished:
        about = summary_of(fold)
        cases = scores_of(fold, task)
        rows.append(
            {
                "fold": fold.number,
                "cases": len(cases),
                "best_epoch": about["best_epoch"],
                "steps": about["steps"],
                "train_seconds": about["seconds"]["train"],
                "seconds": math.fsum(about["seconds"].get(part, 0.0) for part in ("train", "evaluate", "save")),
                "images_per_second": about["images_per_second"],
                "joules": about.get("power", {}).get("joules"),
                **{key: mean(cases, key) for key in (cases[0] if cases else ())},
            }
        )
    if all(row["joules"] is None for row in rows):  # without --power
        rows = [{name: value for name, value in row.items() if name != "joules"} for row in rows]
    return rows


def summary_of(fold: Fold) -> dict[str, Any]:
    """The summary of a fold that is done. Raises UnetError where it cannot be read."""
    again = f"Restore it, or remove the run {shell_path(fold.folder)}: it is then trained again."
    found: dict[str, Any] = files.read_json(fold.folder / "summary.json", SUMMARY, again)
    return found


def deviation(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Standard deviation over folds (n - 1); NaN for fewer than two."""
    known = [row[key] for row in rows if not math.isnan(row[key])]
    return statistics.stdev(known) if len(known) > 1 else math.nan


def summary(
    rows: Sequence[dict[str, Any]], cases: Sequence[dict[str, float]], task: Task, folds: int
) -> dict[str, Any]:
    """The content of summary.json. `mean` is that of the folds, which may have unequal numbers of `cases`."""
    from unet.runtime.evaluation import mean

    keys = [key for key, _, _ in task.columns if key in rows[0]]
    return {
        **task.metric.described(),
        "item": task.item,
        "folds": folds,
        "done": len(rows),
        "mean": {key: mean(rows, key) for key in keys},
        "standard_deviation": {key: deviation(rows, key) for key in keys},
        "mean_of_cases": {key: mean(cases, key) for key in keys},
        "seconds": math.fsum(row["seconds"] for row in rows),
        "by_fold": list(rows),
    }


def table(about: dict[str, Any], task: Task) -> str:
    """Table of the scores of a summary by fold, with the mean of the folds, their standard deviation, and the mean of
    all cases."""
    rows, folds = about["by_fold"], about["folds"]
    columns = [column for column in task.columns if column[0] in rows[0]]
    line = functools.partial(tables.score_cells, columns)
    cells = [line(f"{row['fold']} ({row['cases']} cases)", row) for row in rows]
    names = {"mean": "mean of the folds", "standard_deviation": "standard deviation"}
    names["mean_of_cases"] = "mean of all cases"
    cells += [line(words, about[key]) for key, words in names.items()]
    lines = ["", *tables.table(["fold", *(name for _, name, _ in columns)], cells, name=20)]
    if len(rows) < folds:
        lines.append(f"  {folds - len(rows)} of {folds} folds are missing")
    return "\n".join([*lines, "", *tables.note(task.metric_notes)])
