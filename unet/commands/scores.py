"""The full scoring of a set of cases: table on the screen, cases.csv, predictions.png."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from unet.commands.compose import Parts
from unet.errors import DataError
from unet.files import write_text
from unet.tasks.base import Infer


def full(parts: Parts, infer: Infer, cases: Sequence[Any], folder: Any) -> list[dict[str, Any]]:
    """Score cases with every metric; write cases.csv and predictions.png into `folder`. Returns the records."""
    from unet.runtime import evaluation, pictures

    config, rows = parts.config.replace(eval_crop=()), []

    def keep(case: Any, arrays: dict[str, Any]) -> None:
        rows.append((case, parts.task.panel(case, arrays)))

    def score(case: Any) -> tuple[dict[str, float], dict[str, Any]]:
        try:
            return parts.task.evaluate(case, infer, config, full=True)
        except DataError as error:
            raise error if case.id in error.message else DataError(f"{case.id}: {error.message}", error.hint) from error

    parts.group.mark("scoring", patient=True)
    records = evaluation.score(cases, score, "score", keep, group=parts.group) or []
    rows = [row for share in parts.group.gather(rows) for row in share]
    if not parts.group.leads:
        return records
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = shown(parts.task, records)
    writer.writerow(["case", *keys])
    writer.writerows([record["case"], *(record[key] for key in keys)] for record in records)
    write_text(folder / "cases.csv", text.getvalue())
    by_case = {record["case"]: record for record in records}
    best = parts.task.best[0]
    ordered = sorted(rows, key=lambda row: by_case[row[0].id][best])
    chosen = ordered if len(ordered) <= 6 else [ordered[round(i * (len(ordered) - 1) / 5)] for i in range(6)]
    name = best.replace("_", " ")
    labelled = [(f"{case.id}\n{name} {by_case[case.id][best]:.3f}", panel) for case, panel in chosen]
    title = f"{folder.name}: {parts.task.picture}"
    pictures.panels(labelled, title, folder / "predictions.png", parts.task.key)
    return records


def shown(task: Any, records: Sequence[dict[str, Any]]) -> list[str]:
    """The keys of the task's columns that the records have."""
    return [key for key, _, _ in task.columns if all(key in record for record in records)]


def table(task: Any, records: Sequence[dict[str, Any]], resamples: int) -> str:
    """Scores by case, mean, median, bootstrap interval, the worst five; the conventions below."""
    from unet.models.metrics import bootstrap_interval
    from unet.runtime import evaluation

    keys = shown(task, records)
    columns = [column for column in task.columns if column[0] in keys]

    def row(name: str, values: dict[str, float]) -> str:
        cells = ("-" if math.isnan(values[key]) else form.format(values[key]) for key, _, form in columns)
        return f"  {name:<28}" + "".join(f"{cell:>13}" for cell in cells)

    lines = [f"  {task.subject:<28}" + "".join(f"{name:>13}" for _, name, _ in columns)]
    lines += [row(record["case"], record) for record in records]
    lines += [
        row("mean", {key: evaluation.mean(records, key) for key in keys}),
        row("median", {key: evaluation.median(records, key) for key in keys}),
    ]
    if len(records) > 1:
        intervals = [bootstrap_interval([record[key] for record in records], resamples) for key in keys]
        for name, side in (("95 % interval, from", 0), ("to", 1)):
            lines.append(row(name, {key: interval[side] for key, interval in zip(keys, intervals, strict=True)}))
    best = task.best[0]
    worst = sorted(records, key=lambda record: float(record[best]))[:5]
    lines.append(f"  worst {len(worst)}: " + ", ".join(f"{record['case']} {record[best]:.3f}" for record in worst))
    return "\n".join([*lines, "", *(f"  {line}" for line in task.foot.splitlines())])
