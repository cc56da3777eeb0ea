"""Where the time of runs went, as bars of SVG: training, waiting for data, evaluation and saving of a run; the parts of
a step of a benchmark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from unet.report.page.groups import Group
from unet.report.page.markup import duration, escaped, table, tag
from unet.report.run import Run, number

PARTS = ("training", "waiting for data", "evaluation", "saving")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#9A8700")
PALE = {"#E69F00", "#56B4E9", "#CC79A7"}  # under dark words
WIDTH, TALL, ROW = 1000, 26, 50  # units of the drawing


def seconds_of(run: Run) -> dict[str, float]:
    """{part: seconds} of a run, as far as it says."""
    said = run.summary.get("seconds")
    if not isinstance(said, Mapping) or number(said.get("train")) is None:
        if run.folds:
            each = [seconds_of(fold) for fold in run.folds]
            return {
                part: math.fsum(one.get(part, 0.0) for one in each) for part in PARTS if any(part in o for o in each)
            }
        if run.kind == "evaluate" and isinstance(said, Mapping):
            return {"evaluation": seconds} if (seconds := number(said.get("evaluate"))) else {}
        trained = run.train_seconds
        evaluated = math.fsum(number(row.get("evaluate_seconds")) or 0.0 for row in run.epochs)
        return {"training": trained, "evaluation": evaluated} if trained else {}
    wait = number(said.get("wait")) or 0.0
    found = {"training": max(0.0, (number(said["train"]) or 0.0) - wait), "waiting for data": wait}
    return found | {
        word: value
        for name, word in (("evaluate", "evaluation"), ("save", "saving"))
        if (value := number(said.get(name))) is not None
    }


def step_of(run: Run) -> dict[str, float]:
    """{part: seconds} of a step of a benchmark that has the parts."""
    said = run.benchmark.get("breakdown")
    if not isinstance(said, Mapping):
        return {}
    values = {name: number(each.get("seconds") if isinstance(each, Mapping) else each) for name, each in said.items()}
    return {str(name).replace("_", " "): value for name, value in values.items() if value}


def section(groups: Sequence[Group]) -> str:
    """The bars of the runs that say where their time went, each with its numbers in a table."""
    made: list[str] = []
    for title, of, each in (("of a run", seconds_of, "run"), ("of a training step", step_of, "benchmark")):
        rows = {run.name: parts for group in groups for run in group.runs if (parts := of(run))}
        if not rows:
            continue
        names = list(dict.fromkeys(name for parts in rows.values() for name in parts))
        colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
        key = [tag("li", tag("i", style=f"background:{colours[name]}"), escaped(name)) for name in names]
        made += [tag("h3", f"The time {title}") if made or of is step_of else "", tag("ul", *key, class_="key")]
        made.append(bars(rows, colours))
        heads = [each, *map(escaped, names), "together"]
        cells = [
            [escaped(run), *(duration(parts.get(name)) for name in names), duration(math.fsum(parts.values()))]
            for run, parts in rows.items()
        ]
        made.append(tag("details", tag("summary", "The same as a table"), table(heads, cells, f"Time {title}")))
    return "".join(made)


def bars(rows: Mapping[str, Mapping[str, float]], colours: Mapping[str, str]) -> str:
    """A bar for each row, all on one scale; where some are much shorter, each on its own."""
    totals = {name: math.fsum(parts.values()) for name, parts in rows.items()}
    longest, shortest = max(totals.values()), min(totals.values())
    own = longest > 30 * shortest
    lines = [bar(name, parts, totals[name] if own else longest, colours) for name, parts in rows.items()]
    note = tag("p", "Each bar is on its own scale: the runs differ too much in length.", class_="note") if own else ""
    return note + tag("div", *lines, class_="bars")


def bar(name: str, parts: Mapping[str, float], whole: float, colours: Mapping[str, str]) -> str:
    total = math.fsum(parts.values())
    drawn, x = [], 0.0
    for part, seconds in parts.items():
        wide = WIDTH * seconds / whole if whole else 0.0
        words = f"{part}: {duration(seconds)}, {seconds / total:.0%}" if total else part
        drawn.append(
            f'<rect x="{x:.2f}" y="0" width="{wide:.2f}" height="{TALL}" fill="{colours[part]}">'
            f"<title>{escaped(words)}</title></rect>"
        )
        x += wide
    said = ", ".join(f"{part} {duration(seconds)}" for part, seconds in parts.items())
    shape: dict[str, Any] = {"viewBox": f"0 0 {WIDTH} {TALL}", "preserveAspectRatio": "none", "role": "img"}
    picture = tag("svg", tag("title", escaped(f"{name}: {said}")), *drawn, **shape)
    share = max(parts, key=lambda part: parts[part])
    most = f"{parts[share] / total:.0%} {share}" if total else ""
    head = tag("p", tag("b", escaped(name)), tag("span", escaped(f"{duration(total)}, {most}")))
    return tag("div", head, picture, class_="bar")
