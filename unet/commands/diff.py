"""diff: two runs beside each other: settings, versions, code, losses and score, and whether they are the same
computation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet.commands import output, tables
from unet.config.resolve import Resolved
from unet.errors import UsageError
from unet.report import differences
from unet.report.differences import Comparison, Difference
from unet.report.places import one_of
from unet.report.run import Run

LONGEST = 28  # characters of a value in the table


def run(resolved: Resolved, command: str) -> int:
    """Print the differences. Returns 0, whatever they are."""
    config = resolved.config
    names, out = config.runs.runs, Path(config.run.out)
    if len(names) != 2:
        raise UsageError(f"diff compares two runs, not {len(names)}.", "Type: python -m unet diff RUN RUN")
    first, second = (one_of(name, out) for name in names)
    found = differences.compare(first, second)
    result = {
        "runs": [about(each) for each in (first, second)],
        **found.described(),
        "omitted": [*first.omitted, *second.omitted],
    }
    output.show(config, result, "\n".join(text(first, second, found)))
    return 0


def about(run: Run) -> dict[str, Any]:
    return {"name": run.name, "path": run.path, "kind": run.kind, "task": run.task, "status": run.status}


def text(first: Run, second: Run, found: Comparison) -> list[str]:
    lines = [f"{side}  {each.name}: {words(each)}" for side, each in (("A", first), ("B", second))]
    lines += part("Settings", found.settings)
    lines += part("Versions and code", found.software)
    lines += part("Machine", found.machine)
    lines += ["", "Losses", *(f"  {line}" for line in losses(found))]
    lines += ["", "Score", f"  {score(first, second, found)}"]
    omitted = [*first.omitted, *second.omitted]
    if omitted:
        lines += ["", "Left out", *(f"  {line}" for line in omitted)]
    return [*lines, "", *tables.text(found.conclusion, 0)]


def words(run: Run) -> str:
    """Task, kind and state of a run, and where it is."""
    return ", ".join(word for word in (run.task, run.kind, run.status, str(run.path)) if word)


def part(title: str, items: Sequence[Difference]) -> list[str]:
    """A table of differences, or that there are none."""
    if not items:
        return ["", f"{title}: the same"]
    rows = [[item.name, short(item.first), short(item.second), remark(item)] for item in items]
    wide = [max(len(row[place]) for row in rows) for place in range(3)]
    lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*wide, 0], strict=True)) for row in rows]
    return ["", title, *(line.rstrip() for line in lines)]


def remark(item: Difference) -> str:
    """What a difference that does not count is."""
    if item.effect:
        return "not known of both" if item.unknown else ""
    if item.name in differences.ROUNDING_ONLY:
        return f"rounding of {differences.ROUNDING_ONLY[item.name]} at most"
    if item.name in differences.STOPS:
        return "where a run stops"
    return "another place" if item.name in differences.PLACES else "no effect on the numbers"


def short(value: Any) -> str:
    found = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    found = "-" if value is None or found == "" else found
    return found if len(found) <= LONGEST else f"{found[: LONGEST - 1]}…"


def losses(found: Comparison) -> list[str]:
    state = found.losses
    if state.state == "none":
        return ["no step and no epoch whose loss both have logged"]
    lines = [f"{state.compared} {state.unit}{'s' if state.compared != 1 else ''} compared"]
    if state.first_apart is None:
        return [f"{lines[0]}: equal to the last bit"]
    place, one, two = state.first_apart
    lines.append(f"first not equal at {state.unit} {place}: A {one!r}, B {two!r}")
    if state.first_beyond is None:
        return [*lines, f"never by more than {state.limit:.2g} of the value (at most {state.largest:.1e})"]
    place, one, two = state.first_beyond
    return [
        *lines,
        f"first by more than {state.limit:.2g} of the value at {state.unit} {place}: A {one}, B {two}",
    ]


def score(first: Run, second: Run, found: Comparison) -> str:
    scores = found.scores
    one, two = ("-" if value is None else f"{value:.4f}" for value in (scores.first, scores.second))
    line = f"{first.score_name}: A {one}, B {two}"
    if scores.gain is None:
        return f"{line} ({scores.how})"
    line += f"; B - A {scores.gain:+.4f}"
    if scores.low is None or scores.high is None:
        return f"{line} ({scores.how})"
    return f"{line} (95 % interval {scores.low:+.4f} to {scores.high:+.4f}, {scores.over} cases, {scores.how})"
