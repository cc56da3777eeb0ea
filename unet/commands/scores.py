"""Full evaluation of a set of cases: table on the screen, cases.csv, predictions.png, pictures of the worst cases."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unet.commands import one_label, tables
from unet.commands.setup import Context
from unet.errors import DataError
from unet.metrics.statistics import bootstrap_interval, rank
from unet.tasks.base import Predictor

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase
    from unet.runtime.folders.run_folder import RunFolder
    from unet.tasks.base import Task

KEPT, SHOWN = 64, 6  # cases whose pictures are kept while a process scores, and those that predictions.png shows


def full(
    context: Context, predictor: Predictor, cases: Sequence[CachedCase], folder: RunFolder
) -> tuple[list[dict[str, Any]], str]:
    """Score cases with every metric; write cases.csv, predictions.png and cases/ into `folder`. Returns the records,
    and a line where the network gives nearly all voxels of every case one label (else "")."""
    from unet.commands import case_pictures
    from unet.runtime import evaluation
    from unet.runtime.callbacks import pictures

    best = context.task.metric.key
    sign = context.task.metric.sign
    kept, extremes = Spread(sign), case_pictures.Extremes(sign, context.task.classes)
    flat = one_label.OneLabel()

    def keep(case: Any, record: dict[str, Any], arrays: dict[str, Any]) -> None:
        kept.add(record[best], case.id, lambda: context.task.figure(case, arrays))
        slices = functools.cache(lambda: context.task.slices(case, arrays))
        extremes.add(record[best], case.id, slices)
        flat.add(slices)

    def score(case: Any) -> tuple[dict[str, float], dict[str, Any]]:
        try:
            return context.task.evaluate_case(case, predictor, full=True)
        except DataError as error:
            raise error if case.id in error.message else DataError(f"{case.id}: {error.message}", error.hint) from error

    context.group.set_phase("scoring", may_block=True)
    records = context.task.common_scores(evaluation.score(cases, score, "score", keep, group=context.group) or [])
    rows = sorted(row for share in context.group.gather(kept.rows) for row in share)
    drawn = context.group.gather(extremes.rows)
    remark = one_label.words(
        one_label.gathered(context.group.gather((flat.ruled_out, flat.counts))), context.task.classes
    )
    if not context.group.is_main:
        return records, remark
    folder.write("cases.csv", tables.csv_text(records, ["case", *shown(context.task, records)]))
    chosen = shown_of(rows, [rank(record[best], sign) for record in records])
    name = best.replace("_", " ")
    words = [f"{name} {sign * row.score:.3f}" if row.score < math.inf else f"no {name}" for row in chosen]
    labelled = [(f"{row.case}\n{line}", row.panel) for row, line in zip(chosen, words, strict=True)]
    few = f" ({len(chosen)} of {len(records)})" if len(chosen) < len(records) else ""
    title = f"{folder.name}: {context.task.figure_title}{few}"
    pictures.panels(labelled, title, folder.place("predictions.png"), context.task.colour_key)
    case_pictures.write(folder, drawn)
    return records, remark


class Row(NamedTuple):
    """The pictures of a case; rows are in order, `score` is the rank: times the sign, infinity where there is none."""

    score: float
    case: str
    panel: dict[str, Any]


class Spread:
    """Keeps pictures of a few cases spread over the range of scores, so memory does not grow with the number of
    cases. `sign`: 1 where a higher score is better, else -1."""

    def __init__(self, sign: int = 1) -> None:
        self.sign = sign
        self.rows: list[Row] = []

    def add(self, score: float, case: str, panel: Callable[[], dict[str, Any]]) -> None:
        """Add a case; if there are too many, drop the one whose neighbours are closest in score."""
        row = Row(rank(score, self.sign), case, {})
        place = bisect.bisect(self.rows, row[:2], key=lambda each: each[:2])
        self.rows.insert(place, row)
        if len(self.rows) > KEPT:
            gaps = [self.rows[i + 1].score - self.rows[i - 1].score for i in range(1, KEPT)]
            gone = 1 + min(range(len(gaps)), key=lambda i: 0.0 if math.isnan(gaps[i]) else gaps[i])
            del self.rows[gone]
            if gone == place:
                return
            place -= gone < place
        self.rows[place] = row._replace(panel=panel())


def shown_of(rows: Sequence[Row], scores: Sequence[float]) -> list[Row]:
    """The rows to show, evenly spread over all `scores` (ranks), from worst to best; those without a score where others
    are too few."""
    rows, unscored = ([row for row in rows if (row.score < math.inf) is known] for known in (True, False))
    ordered = sorted(score for score in scores if score < math.inf)
    if len(rows) <= SHOWN:
        return [*rows, *unscored][:SHOWN]
    if len(rows) == len(ordered):
        return [rows[round(i * (len(rows) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    wanted = [ordered[round(i * (len(ordered) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    places = {min(bisect.bisect_left(rows, score, key=lambda row: row.score), len(rows) - 1) for score in wanted}
    return [rows[place] for place in sorted(places)]


def shown(task: Task, records: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of the task's columns that the records have."""
    return [key for key, _, _ in task.columns if all(key in record for record in records)]


def table(task: Task, records: Sequence[dict[str, Any]], resamples: int, remark: str = "") -> str:
    """Table of scores by case, with mean, median, bootstrap interval, the worst five, a remark on all cases, and notes
    on the metrics."""
    from unet.runtime import evaluation

    keys = shown(task, records)
    columns = [column for column in task.columns if column[0] in keys]
    row = functools.partial(tables.score_cells, columns)
    rows = [row(record["case"], record) for record in records]
    rows += [
        row("mean", {key: evaluation.mean(records, key) for key in keys}),
        row("median", {key: evaluation.median(records, key) for key in keys}),
    ]
    if len(records) > 1:
        intervals = [bootstrap_interval([record[key] for record in records], resamples) for key in keys]
        for name, side in (("95 % interval, from", 0), ("to", 1)):
            rows.append(row(name, {key: interval[side] for key, interval in zip(keys, intervals, strict=True)}))
    best = task.metric.key
    worst = sorted(records, key=lambda record: rank(record[best], task.metric.sign))[:5]
    lines = tables.table([task.subject, *(name for _, name, _ in columns)], rows)
    lines += tables.text(
        f"  worst {len(worst)}: " + ", ".join(f"{record['case']} {record[best]:.3f}" for record in worst)
    )
    lines += tables.text(f"  {remark}") if remark else []
    return "\n".join([*lines, "", *tables.note(task.metric_notes)])
