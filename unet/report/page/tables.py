"""The tables of a page: settings that differ, machines and tasks, the runs, how each was made, what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from unet.report.page.conclusion import over_plain, state_of, within
from unet.report.page.groups import Group, by_task, differing, shown, train_seconds, value_text
from unet.report.page.markup import NONE, duration, escaped, figure, folded, size, table, tag
from unet.report.run import Run, number

MEASURES = ("score", "minutes to target", "samples/s", "joules/sample", "peak memory")
COMPARED = ("times the plain one", "of a matrix product")  # what may be compared between machines: of benchmarks alone
FEW = 12  # settings that differ and are shown unfolded


def chip(group: Group) -> str:
    """The colour of a group, as in the curves."""
    return tag("i", class_="chip", style=f"background:{group.colour}") + escaped(group.name)


def settings(groups: Sequence[Group]) -> str:
    """What differs, a table for each task with several groups; all settings folded away."""
    made = []
    tasks = by_task(groups)
    for task, each in tasks.items():
        title = tag("h3", escaped(task or "unknown task")) if len(tasks) > 1 else ""
        names = differing(each)
        if len(each) < 2:
            continue
        if not names:
            made += [title, tag("p", "These runs have the same settings.")]
            continue
        heads = ["setting", *map(chip, each)]
        rows = [[escaped(name), *(escaped(shown(group, name)) or NONE for group in each)] for name in names]
        caption = f"Settings that differ{f' ({task})' if len(tasks) > 1 else ''}"
        made += [title, table(heads, rows[:FEW], caption, numbers=99)]
        if len(rows) > FEW:
            rest = table(heads, rows[FEW:], f"{caption}, the rest", numbers=99)
            made.append(folded(f"{len(rows) - FEW} more settings that differ", rest))
    same = [every_setting(group) for group in groups if group.first.settings]
    return "".join(made) + (folded("All settings, and where each came from", *same) if same else "")


def every_setting(group: Group) -> str:
    run = group.first
    rows = [[escaped(n), escaped(value_text(v)), escaped(run.sources.get(n, ""))] for n, v in run.settings.items()]
    seeds = ", ".join(value_text(each.settings.get("seed")) for each in group.runs)
    title = f"{escaped(group.name)} <small>({len(rows)} settings, seed {escaped(seeds)})</small>"
    return folded(title, table(["setting", "value", "from"], rows, f"Settings of {group.name}", numbers=99))


def measures(run: Run | Group) -> list[str]:
    """Score, minutes to target, samples a second, joules a sample, peak memory; a dash for what is not known."""
    if isinstance(run, Group):
        group = run
        first = group.first
        to_target = group.mean(lambda each: each.seconds_to_target)
        rate, joules = group.mean(lambda each: each.rate), group.mean(lambda each: each.joules_per_sample)
        memory = max((each.peak_memory for each in group.runs if each.peak_memory is not None), default=None)
        score = group.score
    else:
        first, to_target, rate = run, run.seconds_to_target, run.rate
        joules, memory, score = run.joules_per_sample, run.peak_memory, run.score
    named = f"{figure(score)} <small>{escaped(first.score_name)}</small>" if score is not None else NONE
    minutes = NONE if to_target is None else figure(to_target / 60)
    return [named, minutes, figure(rate), figure(joules), size(memory)]


def matrix(groups: Sequence[Group]) -> str:
    """Machine by task where there are several of either: what each run reached."""
    machines = list(dict.fromkeys(group.first.device for group in groups))
    tasks = by_task(groups)
    if len(machines) < 2 and len(tasks) < 2:
        return ""
    rows = []
    for machine in machines:
        cells = [tag("th", escaped(machine), scope="row")]
        for name, task in tasks.items():
            here = "".join(cell(group) for group in task if group.first.device == machine)
            cells.append(tag("td", here or NONE, data_head=name or "unknown task", class_=None if here else "none"))
        rows.append(tag("tr", *cells))
    heads = ["machine", *(escaped(task or "unknown task") for task in tasks)]
    head = tag("thead", tag("tr", *(tag("th", each, scope="col") for each in heads)))
    inner = tag("table", head, tag("tbody", *rows), class_="matrix")
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label="Machine by task")


def cell(group: Group) -> str:
    """A run in the matrix: its name, and the measures that are known."""
    units = ("", " min to target", f" {escaped(group.first.item)}/s", " J/sample", "")
    known = [f"{value}{unit}" for value, unit in zip(measures(group), units, strict=True) if value != NONE]
    return tag("div", tag("b", chip(group)), *(tag("span", each) for each in known), class_="cell")


def runs(groups: Sequence[Group]) -> str:
    """A row for each run; measures that no run has are named below."""
    several = len(by_task(groups)) > 1
    each = [(group, run) for group in groups for run in group.runs]
    known = [[*measures(run), duration(train_seconds(run)), *compared(run)] for _, run in each]
    names = (*MEASURES, "training", *(COMPARED if any(run.benchmark for _, run in each) else ()))
    kept = [place for place in range(len(names)) if any(row[place] != NONE for row in known)]
    heads = ["run", *(["task"] if several else []), *(names[place] for place in kept), "machine", "kind"]
    rows = []
    for (group, run), values in zip(each, known, strict=True):
        mark = tag("i", class_="chip", style=f"background:{group.colour}")
        first = [mark + escaped(run.name), *([escaped(run.task)] if several else [])]
        kind = ", ".join(filter(None, (run.kind, "prediction" if run.predicts else "", state_of(run))))
        rows.append([*first, *(values[place] for place in kept), escaped(run.device), escaped(kind)])
    numbers = 2 if several else 1
    missing = ", ".join(names[place] for place in range(len(names)) if place not in kept)
    note = tag("p", f"Not known of any run: {missing}.", class_="note") if missing else ""
    return table(heads, rows, "Runs", numbers, numbers + len(kept)) + note


def compared(run: Run) -> list[str]:
    """How many times as fast as the plain loop or network a benchmark is, and its arithmetic as a share of a large
    matrix product's."""
    ratio, *ends = over_plain(run)
    share = number(run.benchmark.get("share_of_matrix_product"))
    return [f"{figure(ratio)}{within(ends)}", NONE if share is None else f"{share:.1%}"]


def made_by(groups: Sequence[Group]) -> str:
    """The command and the environment of each run."""
    return "".join(folded(escaped(run.name), made_how(run)) for group in groups for run in group.runs)


def made_how(run: Run) -> str:
    found = [tag("p", "Command", class_="label"), tag("pre", tag("code", escaped(run.command)), tabindex=0)]
    made = [] if not run.command else found
    facts = {"folder": run.path.absolute(), "device": run.device}
    skip = ("packages", "variables", "device", "chosen")
    facts |= {name: value for name, value in run.environment.items() if name not in skip}
    facts |= {f"{name}": version for name, version in (run.environment.get("packages") or {}).items()}
    facts |= dict(run.environment.get("variables") or {})
    rows = [[escaped(name.replace("_", " ") if name.islower() else name), escaped(v)] for name, v in facts.items()]
    return "".join(made) + table(["", "value"], rows, f"Environment of {run.name}", numbers=99)


def omitted(said: Sequence[str]) -> str:
    return tag("ul", *(tag("li", escaped(each)) for each in said))
