"""Scores by case, worst first, and the pictures of the worst cases, slice by slice."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet import files
from unet.config.run_files import PICTURE_INDEX, PICTURED, PICTURES
from unet.errors import UnetError
from unet.metrics.statistics import rank
from unet.report.page.groups import Group, by_task
from unet.report.page.markup import NONE, counted, escaped, figure, file_name, folded, table, tag
from unet.report.page.tables import chip
from unet.report.run import Run

FIRST, MOST = 20, 200  # cases that a table shows unfolded, and at all
CARDS, ARTICLES = 3, 6  # runs of a case, and cases, whose pictures are shown unfolded
STILL, LARGE = 1100, 150_000  # pixels and bytes of predictions.png in a page
START = b"\x89PNG\r\n\x1a\n"
WIDE, TALL = 160, 22  # of the strip of a case's scores


@dataclasses.dataclass
class Picture:
    """The slices of a case as a run drew them."""

    group: Group
    run: Run
    entry: dict[str, Any]
    png: bytes

    @property
    def case(self) -> str:
        return str(self.entry["case"])

    @property
    def name(self) -> str:
        """Of the file beside the page."""
        return f"{file_name(self.run.task, self.run.name, self.case)}.png"


def pictures_of(groups: Sequence[Group]) -> list[Picture]:
    """The pictures of all runs. What cannot be read is added to the runs' `omitted`."""
    found = []
    for group in groups:
        for run in group.runs:
            for part in run.folds or [run]:
                found += [Picture(group, part, entry, png) for entry, png in read_pictures(part, run)]
    return found


def read_pictures(run: Run, teller: Run) -> list[tuple[dict[str, Any], bytes]]:
    """(entry of the index, PNG) of each case; none where a run has no such folder."""
    index = run.path / PICTURES
    if not index.is_file():
        return []
    found = []
    try:
        entries = files.read_json(index, PICTURE_INDEX)["cases"]
    except UnetError as error:
        teller.omitted.append(error.message)
        return []
    for entry in entries:
        try:
            path = files.require_regular(files.path_inside(run.path / PICTURED, entry["file"]))
            png = path.read_bytes() if path.stat().st_size < 2**21 else b""
        except (UnetError, OSError) as error:
            teller.omitted.append(getattr(error, "message", str(error)))
            continue
        shape = len(entry["panels"]) and len(entry["slices"]) and entry["width"] > 0 and entry["height"] > 0
        if png.startswith(START) and shape and 0 <= entry["first"] < len(entry["slices"]):
            found.append((entry, png))
        else:
            teller.omitted.append(f"{path}: not the picture of a case that this program wrote")
    return found


def section(groups: Sequence[Group]) -> str:
    """A table for each task."""
    tasks = by_task([group for group in groups if group.scores])
    made = []
    for task, each in tasks.items():
        made += [tag("h3", escaped(task or "unknown task")) if len(tasks) > 1 else ""]
        made.append(of_one(each[0]) if len(each) == 1 else of_many(each))
    return "".join(made)


def of_one(group: Group) -> str:
    """Every score of every case of one run, or the means of several seeds."""
    columns = list(dict.fromkeys(key for run in group.runs for row in run.cases.values() for key in row))
    columns = [key for key in columns if not key.rpartition("_")[2].isdigit()]
    scores = group.scores
    rows = []
    for case in worst_first(scores, group.sign):
        known = [[run.cases[case].get(key, math.nan) for run in group.runs if case in run.cases] for key in columns]
        means = [math.fsum(each) / len(each) if each else math.nan for each in known]
        rows.append([escaped(case), strip([(group, scores[case])], extent([group])), *map(figure, means)])
    lead = group.first.metric
    heads = ["case", escaped(group.first.score_name)]
    heads += [
        tag("b", escaped(key.replace("_", " "))) if key == lead else escaped(key.replace("_", " ")) for key in columns
    ]
    return cut(heads, rows, "Scores by case, worst first", 2)


def of_many(groups: Sequence[Group]) -> str:
    """The main score of every case in each run; with two runs also their difference."""
    same = [group for group in groups if group.first.metric == groups[0].first.metric]
    every = {case for group in same for case in group.scores}
    scores = {group.number: group.scores for group in same}
    mean = {
        case: math.fsum(known) / len(known)
        for case in every
        if (known := [each[case] for each in scores.values() if case in each])
    }
    ends = extent(same)
    rows = []
    for case in worst_first(mean, same[0].sign):
        values = [scores[group.number].get(case) for group in same]
        shown = [(group, value) for group, value in zip(same, values, strict=True) if value is not None]
        rows.append([escaped(case), strip(shown, ends), *map(figure, values)])
        if len(same) == 2:
            a, b = values
            rows[-1].append(figure(b - a, signed=True) if a is not None and b is not None else NONE)
    name = same[0].first.score_name
    heads = ["case", escaped(name), *map(chip, same), *(["difference"] if len(same) == 2 else [])]
    return cut(heads, rows, f"{name} by case, worst first", 2)


def worst_first(scores: dict[str, float], sign: int) -> list[str]:
    return sorted(scores, key=lambda case: (rank(scores[case], sign), case))


def cut(heads: list[str], rows: list[list[str]], caption: str, numbers: int) -> str:
    """The table with its first rows, the rest on a click."""
    made = table(heads, rows[:FIRST], caption, numbers)
    if len(rows) > FIRST:
        rest = table(heads, rows[FIRST:MOST], f"{caption}, the rest", numbers)
        if len(rows) > MOST:
            rest += tag(
                "p", f"These are {MOST} of {len(rows)} cases; cases.csv beside this page has all.", class_="note"
            )
        made += tag("details", tag("summary", counted(len(rows) - FIRST, "more case")), rest)
    return made


def extent(groups: Sequence[Group]) -> tuple[float, float]:
    """The ends of the scale of scores: 0 and 1 where all lie between them."""
    values = [value for group in groups for value in group.scores.values()]
    low, high = min(values), max(values)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def strip(shown: Sequence[tuple[Group, float]], ends: tuple[float, float]) -> str:
    """The scores of a case on a line from the lowest to the highest score."""
    low, high = ends
    marks = [f'<path d="M4 {TALL // 2}H{WIDE - 4}" class="rule"/>']
    for group, value in shown:
        x = 4 + (WIDE - 8) * ((value - low) / (high - low) if high > low else 0.5)
        marks.append(f'<circle cx="{x:.1f}" cy="{TALL // 2}" r="4.5" fill="{group.colour}" class="dot"/>')
    words = ", ".join(f"{group.name} {figure(value)}" for group, value in shown)
    words += f" (scale from {figure(low)} to {figure(high)})"
    title = tag("title", escaped(words))
    return tag("svg", title, *marks, class_="strip", width=WIDE, height=TALL, viewBox=f"0 0 {WIDE} {TALL}", role="img")


def gallery(pictures: Sequence[Picture], room: int) -> str:
    """The pictures by case, worst first, the tasks in turn; the first that fit into `room` bytes."""
    by_case: dict[tuple[str, str], list[Picture]] = {}
    for picture in sorted(pictures, key=place_of):
        by_case.setdefault((picture.run.task, picture.case), []).append(picture)
    several = len({task for task, _ in by_case}) > 1
    made, left = list[str](), list[str]()
    for (task, case), each in in_turn(by_case):
        cards = []
        for picture in each:
            room -= len(picture.png) * 4 // 3
            (cards.append(card(picture)) if room > 0 else left.append(picture.name))
        if len(cards) > CARDS:
            rest = tag(
                "details", tag("summary", f"{counted(len(cards) - CARDS, 'more run')} of this case"), *cards[CARDS:]
            )
            cards = [*cards[:CARDS], rest]
        if cards:
            title = escaped(case) + (tag("small", f" {escaped(task)}") if several else "")
            made.append(tag("article", tag("h3", title), *cards))
    if len(made) > ARTICLES:
        made[ARTICLES:] = [folded(counted(len(made) - ARTICLES, "more case"), *made[ARTICLES:])]
    if left:
        links = ", ".join(tag("a", escaped(name), href=name) for name in left)
        made.append(tag("p", f"For the size of this page, these are only beside it: {links}.", class_="note"))
    return "".join(made)


def in_turn(by_case: dict[tuple[str, str], list[Picture]]) -> list[tuple[tuple[str, str], list[Picture]]]:
    """The cases of each task in order, the tasks taking turns, so that none is left out of the page."""
    tasks: dict[str, list[Any]] = {}
    for key, each in by_case.items():
        tasks.setdefault(key[0], []).append((key, each))
    longest = max(map(len, tasks.values()), default=0)
    return [cases[turn] for turn in range(longest) for cases in tasks.values() if turn < len(cases)]


def place_of(picture: Picture) -> float:
    score = picture.entry["score"]
    return rank(math.nan if score is None else score, picture.group.sign)


def card(picture: Picture) -> str:
    """The panels of a case, the image under those of labels, and a slider through its slices."""
    entry, data = picture.entry, base64.b64encode(picture.png).decode()
    panels, slices = entry["panels"], entry["slices"]
    columns = len(panels)
    name = f"{picture.run.name}, {picture.case}"
    shown = []
    for number, panel in enumerate(panels):
        x = f"{100 * number / max(1, columns - 1):.4f}%"
        over = "over" if panel in entry["over"] else None
        hint = tag("figcaption", escaped(panel), key_of(entry, panel))
        label = f"{panel} of {name}"
        view = tag("div", class_=f"view {over or ''}".strip(), role="img", aria_label=label, style=f"--x:{x}")
        shown.append(tag("figure", view, hint))
    first = entry["first"]
    words = f"slice {slices[first] + 1} of {entry['of']}"
    slider = ""
    if len(slices) > 1:
        numbers = " ".join(str(number + 1) for number in slices)
        attributes = {"min": 0, "max": len(slices) - 1, "value": first, "aria_label": f"slice of {name}"}
        attributes |= {"data_slices": numbers, "data_of": entry["of"], "aria_valuetext": words}
        slider = tag("label", tag("input", type="range", **attributes), tag("output", words), class_="slices")
    score = (
        f"{figure(entry['score'])} {escaped(picture.group.first.score_name)}" if entry["score"] is not None else NONE
    )
    place = "the best of its run" if entry["place"] == "best" else "among the worst of its run"
    place = tag("small", place) if entry["score"] is not None else ""
    head = tag("p", tag("i", class_="chip", style=f"background:{picture.group.colour}"), escaped(picture.run.name))
    head = head.replace("</p>", f" {tag('b', score)} {place}</p>")
    style = f"--strip:url(data:image/png;base64,{data});--columns:{columns};--rows:{len(slices)};--first:{first}"
    style += f";--slice:{first};--ratio:{entry['width']}/{entry['height']}"
    kinds = "case" + (" small" if max(entry["width"], entry["height"]) < 96 else "")
    return tag("div", head, tag("div", *shown, class_="panels"), slider, class_=kinds, style=style)


def key_of(entry: dict[str, Any], panel: str) -> str:
    """What the colours of a panel mean."""
    if panel not in entry["over"]:
        return ""
    rows = entry["key"].get("errors" if panel == "difference" else "labels", [])
    items = []
    for row in rows:
        if len(row) == 2 and isinstance(row[1], list) and all(isinstance(part, int) for part in row[1]):
            colour = ",".join(str(part) for part in row[1][:3])
            items.append(tag("li", tag("i", style=f"background:rgb({colour})"), escaped(row[0])))
    return tag("ul", *items, class_="key")


def stills(groups: Sequence[Group], without: set[str], room: int) -> str:
    """predictions.png of the runs that wrote no slices, as far as they fit into `room` bytes."""
    made = []
    for group in groups:
        for run in group.runs:
            path = run.pictures.get("predictions")
            if path is None or run.name in without or (content := read_png(path)) is None:
                continue
            kind, content = smaller(content)
            room -= len(content) * 4 // 3
            if room < 0:
                made.append(tag("p", f"{escaped(run.name)}: {escaped(path.name)} is beside the page.", class_="note"))
                continue
            source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
            words = f"Cases of {run.name}, from worst to best: image, truth and prediction"
            made.append(
                tag("figure", tag("img", src=source, alt=words), tag("figcaption", escaped(words)), class_="still")
            )
    return "".join(made)


def smaller(png: bytes) -> tuple[str, bytes]:
    """(kind, content) of a picture for the page: a large one as a JPEG that is no wider than `STILL` pixels."""
    from PIL import Image

    if len(png) < LARGE:
        return "png", png
    stream = io.BytesIO()
    try:
        with Image.open(io.BytesIO(png)) as image:
            image = image.convert("RGB")
            image.thumbnail((STILL, 8 * STILL))
            image.save(stream, "JPEG", quality=80, optimize=True)
    except (OSError, ValueError, Image.DecompressionBombError):
        return "png", png
    return "jpeg", stream.getvalue()


def read_png(path: Path) -> bytes | None:
    try:
        content = path.read_bytes() if path.stat().st_size < 2**23 else b""
    except OSError:
        return None
    return content if content.startswith(START) else None
