"""The page: one HTML file with all that it needs, the answer first; and the files beside it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet import __version__
from unet.report.page import bars, bokeh_curves, cases, curves, data, matplotlib_curves, tables
from unet.report.page.conclusion import Conclusion, conclusions
from unet.report.page.groups import Group, distinct, groups_of, is_running
from unet.report.page.markup import counted, escaped, figure, file_name, folded, script_json, tag
from unet.report.run import Run

# Nothing may be asked for from anywhere, whatever stands in the page.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; font-src data:"
LARGEST = 2_800_000  # bytes of a page: pictures take the room that the rest leaves, the others are only beside it
PLACE = "<!-- pictures -->"


@dataclasses.dataclass
class Report:
    """A page, the files beside it, its numbers, and whether a run goes on."""

    page: str
    beside: dict[str, bytes]
    data: dict[str, Any]
    running: bool


def build(runs: Sequence[Run], omitted: Sequence[str] = (), every: float | None = None) -> Report:
    """The report on these runs. `omitted`: what could not be read, in words; `every`: the seconds after which the page
    loads itself again while a run goes on."""
    shown, doubled = distinct(runs)
    groups = groups_of(shown)
    pictures = cases.pictures_of(groups)
    panels = curves.panels(groups)
    found = conclusions(groups)
    said = [*omitted, *doubled, *(words for run in shown for words in all_omitted(run))]
    running = any(is_running(run) for run in shown)
    numbers = data.page_data(groups, panels, found, said, watched=every is not None)
    beside = data.csv_files(groups) | {picture.name: picture.png for picture in pictures}
    beside |= {
        f"{file_name('curve', panel.task, panel.key)}.png": matplotlib_curves.png(panel)
        for panel in panels
        if panel.main
    }
    drawn = {picture.run.name for picture in pictures}
    for run in (run for group in groups for run in group.runs if run.name not in drawn):
        if (path := run.pictures.get("predictions")) and (content := cases.read_png(path)):
            beside[f"{file_name(run.task, run.name, 'predictions')}.png"] = content
    body = [answer(found, groups, running), *sections(groups, panels, said)]
    again = every if running else None
    bare = document(groups, body, numbers, again)
    room = LARGEST - len(bare.encode())
    page = bare.replace(PLACE, picture_section(groups, pictures, room), 1)
    return Report(page, beside, numbers, running)


def all_omitted(run: Run) -> list[str]:
    return [*run.omitted, *(words for fold in run.folds for words in fold.omitted)]


def document(groups: Sequence[Group], body: Sequence[str], numbers: dict[str, Any], every: float | None) -> str:
    here = Path(__file__)
    names = ", ".join(group.name for group in groups)
    title = f"{names[:80]}{'…' if len(names) > 80 else ''} – report"
    head = [
        '<meta charset="utf-8">',
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="refresh", content=f"{every:.0f}") if every else "",
        tag("meta", name="generator", content=f"unet {__version__}"),
        tag("title", escaped(title)),
        f"<style>{here.with_name('page.css').read_text(encoding='utf-8')}</style>",
    ]
    made = time.strftime("%Y-%m-%d %H:%M")
    now = f"; a run goes on, this page loads itself again every {every:.0f} s" if every else ""
    count = counted(sum(len(group.runs) for group in groups), "run")
    top = tag("p", escaped(f"Report on {count}, {made}{now}"))
    buttons = [tag("button", "Save runs as CSV", type="button", data_csv="runs")]
    buttons.append(tag("button", "Dark page", type="button", id="theme"))
    script = here.with_name("page.js").read_text(encoding="utf-8")
    drawing = bokeh_curves.library() if 'id="plots"' in "".join(body) else ""
    parts = [tag("header", top, *buttons), tag("main", *body), script_json(numbers, "data"), drawing]
    inner = f"<head>{''.join(head)}</head>\n<body>{chr(10).join(parts)}\n<script>{script}</script></body>"
    return f'<!doctype html>\n<html lang="en">{inner}</html>\n'


def answer(found: Sequence[Conclusion], groups: Sequence[Group], running: bool) -> str:
    """The conclusion, large; those of several tasks below it."""
    first, *rest = found
    more = [tag("p", escaped(words), class_="more") for words in first.more]
    names = [name for group in groups for name in (group.name, *(run.name for run in group.runs))]
    lines = [
        tag(
            "li", tag("strong", spoken(v.words, names)), *(tag("span", f"{escaped(w)} ", class_="more") for w in v.more)
        )
        for v in rest
    ]
    return tag(
        "section",
        tag("h1", spoken(first.words, names)),
        *more,
        tag("ul", *lines, class_="conclusions") if lines else "",
    )


def spoken(words: str, names: Sequence[str]) -> str:
    """A conclusion as HTML: names of runs stay on a line where they are short, what stands in brackets is lighter."""
    short = sorted({name for name in names if len(name) < 24}, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, short))})", words) if short else [words]
    text = "".join(tag("span", escaped(part), class_="name") if part in short else escaped(part) for part in parts)
    return re.sub(r" (\((?:95 %|Only|so).*?\))", r' <span class="aside">\1</span>', text)


def sections(groups: Sequence[Group], panels: Sequence[curves.Panel], said: Sequence[str]) -> list[str]:
    """The parts of the page below the answer; `PLACE` stands for the pictures."""
    parts = [
        ("settings", "Settings that differ" if len(groups) > 1 else "Settings", tables.settings(groups), ""),
        ("runs", "Machines and runs", tables.matrix(groups) + tables.runs(groups), ""),
        ("curves", "Curves", curve_section(groups, panels), save("curves") if panels else ""),
        ("time", "Where the time went", bars.section(groups), ""),
        ("cases", "Scores by case", cases.section(groups), save("cases")),
        ("pictures", "", PLACE, ""),
        ("made", "How each run was made", tables.made_by(groups), ""),
        ("omitted", "What could not be read", tables.omitted(said) if said else "", ""),
    ]
    return [
        inner if inner is PLACE else tag("section", tag("div", tag("h2", title), button, class_="head"), inner, id=name)
        for name, title, inner, button in parts
        if inner
    ]


def picture_section(groups: Sequence[Group], pictures: Sequence[cases.Picture], room: int) -> str:
    """The pictures of cases, as far as there is `room` for them in the page."""
    drawn = {picture.run.name for picture in pictures}
    inner = cases.gallery(pictures, room if len(drawn) else 0)
    inner += cases.stills(groups, drawn, room - len(inner))
    return tag("section", tag("h2", "The worst cases, and the best"), inner, id="pictures") if inner else ""


def save(table: str) -> str:
    return tag("button", "Save as CSV", type="button", data_csv=table)


def curve_section(groups: Sequence[Group], panels: Sequence[curves.Panel]) -> str:
    """The switch of the axis, the runs to show, the panels: score and loss, and the terms on a click."""
    lone = [
        tag("p", escaped(f"{one.title}: {points_of(one)}."), class_="note")
        for one in panels
        if one.main and not one.drawable
    ]
    every, panels = panels, [panel for panel in panels if panel.drawable]
    if not panels:
        return "".join(lone)
    alive = bokeh_curves.installed()
    plots = bokeh_curves.plots(every) if alive else matplotlib_curves.plots(every)
    drawn = [group for group in groups if any(line.group is group for panel in panels for line in panel.lines)]
    place: dict[bool, list[str]] = {True: [], False: []}
    for panel in panels:
        place[panel.main].append(tag("div", plots[f"{panel.task} {panel.key}"]))
    notes = list[str]()
    if any(len(group.runs) > 1 for group in drawn):
        notes.append("A line is the mean of the seeds, its band from the lowest to the highest of them.")
    if any(line.dashed for panel in panels for line in panel.lines):
        notes.append("Dashes: validation.")
    notes += [] if alive else [bokeh_curves.MORE]
    made = [switch(panels), legend(drawn, alive), tag("p", escaped(" ".join(notes)), class_="note") if notes else ""]
    made += lone
    made.append(tag("div", *place[True], class_="plots"))
    if place[False]:
        title = f"{len(place[False])} terms of the loss, and other scores"
        made.append(folded(title, tag("div", *place[False], class_="plots")))
    return "".join([*made, plots.get("", "")])


def points_of(panel: curves.Panel) -> str:
    """The points of a panel that has no more than one a line, in words."""
    return ", ".join(f"{figure(line.y[0])} ({line.label}, step {line.over['step'][0]:.0f})" for line in panel.lines)


def switch(panels: Sequence[curves.Panel]) -> str:
    """Over step, wall time or joules; those that no run has cannot be chosen."""
    words = {"step": "step", "seconds": "wall time", "joules": "joules"}
    labels = []
    for name, word in words.items():
        off = not curves.has(panels, name)
        box = tag("input", type="radio", name="over", value=name, checked=name == "step", disabled=off)
        hint = "no run measured joules" if off and name == "joules" else None
        labels.append(tag("label", box, word, title=hint))
    return tag("fieldset", tag("legend", "Curves over"), tag("div", *labels, class_="switch"))


def legend(groups: Sequence[Group], alive: bool) -> str:
    """The colour of each run; where curves can be switched, a box to show or hide it."""
    dashes = {"solid": "", "dotted": "2 3", "dashdot": "7 3 2 3"}
    rows = []
    for group in groups:
        line = f'<path d="M0 6H26" stroke="{group.colour}" stroke-width="3" stroke-dasharray="{dashes[group.dash]}"/>'
        mark = tag("svg", line, width=26, height=12, aria_hidden="true")
        box = tag("input", type="checkbox", name="shown", value=group.number, checked=True) if alive else ""
        rows.append(tag("label" if alive else "span", box, mark, escaped(group.name), style=f"--colour:{group.colour}"))
    if not rows:
        return ""
    return tag("fieldset", tag("legend", "Runs"), tag("div", *rows, class_="legend"))
