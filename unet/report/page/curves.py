"""The curves of a page: which panels there are and the points of their lines, over step, wall time or joules."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from unet.report.page.groups import Group, by_task
from unet.report.run import Run, number

OVER = {"step": "step", "seconds": "wall time, minutes", "joules": "joules"}
# Keys of a row that are no terms of the loss, and those that have panels of their own.
BOOKS = {"event", "epoch", "step", "time", "train_seconds", "evaluate_seconds", "cases", "time_to_train", "joules"}
BOOKS |= {"lr", "step_seconds", "images_per_second", "wait_fraction", "loss", "eval_loss", "score", "skipped_steps"}
BOOKS |= {"watts", "joules_per_sample", "data_wait_fraction", "best_score", "seconds"}
MOST, LEAST = 1600, 100  # points of a panel's lines together, and of each line
MANY = 12  # panels of terms, of a task
SHORT = 3  # epochs: runs with fewer show the loss of their steps


@dataclasses.dataclass
class Line:
    """A line of a panel: the mean of a group's runs, and where there are several, the lowest and highest."""

    group: Group
    validation: bool
    over: dict[str, list[float]]  # places, by the names of OVER that the run has
    y: list[float]
    low: list[float]
    high: list[float]
    dashed: bool  # of validation, beside one of training

    @property
    def label(self) -> str:
        return self.group.name + (", validation" if self.dashed else "")


@dataclasses.dataclass
class Panel:
    key: str
    title: str
    task: str
    lines: list[Line]
    main: bool  # score and loss

    @property
    def drawable(self) -> bool:
        """Whether there is more to see than a point."""
        return any(len(line.y) > 1 for line in self.lines)


def panels(groups: Sequence[Group]) -> list[Panel]:
    """Score, loss and terms of each task that has curves."""
    found: list[Panel] = []
    tasks = by_task(groups)
    for task, each in tasks.items():
        of = f", {task}" if len(tasks) > 1 else ""
        name = next((group.first.score_name for group in each if group.first.metric), "score")
        found.append(panel("score", f"{name} (validation){of}", task, each, (("score", True),), True))
        found.append(panel("loss", f"loss{of}", task, each, (("loss", False), ("eval_loss", True)), True))
        for key in terms(run for group in each for run in group.runs):
            both = ((key, False), (f"eval_{key}", True))
            found.append(panel(key, f"{key.replace('_', ' ')}{of}", task, each, both, False))
    return [each for each in found if each.lines]


def terms(runs: Iterable[Run]) -> list[str]:
    """The terms that the task logs, in their order; those that are numbered (`kl_0`, `kl_1` ...) are for the tables."""
    names = dict.fromkeys(
        key.removeprefix("eval_")
        for run in runs
        for row in run.epochs
        for key, value in row.items()
        if key not in BOOKS and number(value) is not None
    )
    return [name for name in names if not re.search(r"_\d+$", name) and name not in BOOKS][:MANY]


def panel(
    key: str, title: str, task: str, groups: Sequence[Group], keys: Sequence[tuple[str, bool]], main: bool
) -> Panel:
    most = max(LEAST, MOST // max(1, len(groups)))
    lines = [line for group in groups for name, held in keys if (line := line_of(group, name, held, most))]
    for line in lines:
        line.dashed = line.validation and any(not other.validation for other in lines)
    return Panel(key, title, task, lines, main)


def line_of(group: Group, key: str, validation: bool, most: int) -> Line | None:
    """The line of a group: its points are the epochs that all its runs have."""
    runs = [rows for run in group.runs if (rows := points(run, key))]
    places = sorted(set.intersection(*(set(rows) for rows in runs))) if runs else []
    if not places:
        return None
    places = thinned(places, most)
    over = {}
    for name in OVER:
        known = [[rows[place].get(name) for rows in runs] for place in places]
        if all(value is not None for each in known for value in each):
            over[name] = [math.fsum(value or 0.0 for value in each) / len(each) for each in known]
    values = [[rows[place]["value"] for rows in runs] for place in places]
    mean = [math.fsum(each) / len(each) for each in values]
    return Line(group, validation, over, mean, [min(each) for each in values], [max(each) for each in values], False)


def points(run: Run, key: str) -> dict[float, dict[str, float]]:
    """{number of the epoch (or step): value and places}, of the rows that have the key."""
    found: dict[float, dict[str, float]] = {}
    rows = run.epochs
    seconds = joules = 0.0
    if key == "loss" and len(rows) < SHORT <= len(run.steps):
        return points_of_steps(run, key)
    for row in rows:
        seconds += sum(number(row.get(part)) or 0.0 for part in ("train_seconds", "evaluate_seconds"))
        joules += number(row.get("joules")) or 0.0
        value, epoch = number(row.get(key)), number(row.get("epoch"))
        if value is None or epoch is None:
            continue
        place = {"value": value, "step": number(row.get("step"))}
        place |= {"seconds": seconds / 60 if seconds else None, "joules": joules or None}
        found[epoch] = {name: each for name, each in place.items() if each is not None}
        found[epoch].setdefault("step", epoch)  # a log that counts no steps
    return found


def points_of_steps(run: Run, key: str) -> dict[float, dict[str, float]]:
    """As `points`, from the lines of steps."""
    first: dict[str, Any] = run.steps[0]
    start = (number(first.get("time")) or 0.0) - (number(first.get("step_seconds")) or 0.0) * first["step"]
    found: dict[float, dict[str, float]] = {}
    for row in run.steps:
        value, when = number(row.get(key)), number(row.get("time"))
        if value is not None:
            found[row["step"]] = {"value": value, "step": row["step"]}
            found[row["step"]] |= {"seconds": (when - start) / 60} if when is not None else {}
    return found


def thinned(places: list[float], most: int) -> list[float]:
    """At most about `most` of the places, evenly, the last one among them."""
    if len(places) <= most:
        return places
    return [places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)]


def has(shown: Sequence[Panel], over: str) -> bool:
    """Whether any line can be drawn over this."""
    return any(over in line.over for each in shown for line in each.lines)
