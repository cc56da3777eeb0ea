"""Pictures of a few cases of a run, slice by slice, for the report: `cases/<case>.png` and `cases/index.json`.

A file is one PNG of a few colours. Its rows are slices, its columns the panels: the image, the truth, the prediction
and where the two differ. Panels of labels are transparent where nothing is labelled, so a page lays them over the
image.
"""

from __future__ import annotations

import bisect
import io
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unet import files
from unet.config.run_files import PICTURED, PICTURES
from unet.data import drawing
from unet.metrics.statistics import rank

if TYPE_CHECKING:
    from unet.runtime.folders.run_folder import RunFolder

WORST, BEST = 3, 1  # cases of a run that get pictures
BYTES = 100_000  # of a case, at most
SIZES = ((24, 192), (24, 160), (20, 144), (16, 128), (12, 128), (12, 96), (8, 96), (8, 64), (4, 64))  # slices, pixels
ALONE = (384, 320, 256, 192, 128, 96)  # pixels of the longer side, where a case is one slice
TRUTH, PREDICTION, DIFFERENCE = "truth", "prediction", "difference"
CLASSES = (drawing.ORANGE, drawing.SKY, (0, 158, 115), (204, 121, 167), drawing.YELLOW, (0, 114, 178))
MISSED, EXTRA, CONFUSED = 1, 2, 3  # labels of the difference, and what they are called
ERRORS = (("missed", drawing.TRUE), ("too much", drawing.PREDICTED), ("another class", drawing.BOTH))
GREYS = 64  # levels of an image of greys
CLEAR, SOLID = 160, 210  # opacity of classes and of errors, of 255

Labels = NDArray[np.uint8]


class Pictured(NamedTuple):
    """The picture of a case. `entry` is what the index says of it; rows are ordered by `score`, the rank: worst first,
    infinity where there is none."""

    score: float
    case: str
    entry: dict[str, Any]
    png: bytes


class Extremes:
    """Keeps the pictures of the worst few cases and of the best, so memory does not grow with the number of cases.
    `sign`: 1 where a higher score is better, else -1."""

    def __init__(self, sign: int, classes: Sequence[str] = ()) -> None:
        self.sign, self.classes = sign, classes
        self.rows: list[Pictured] = []

    def add(self, score: float, case: str, slices: Callable[[], Mapping[str, Any]]) -> None:
        """Add a case; it is drawn only if it is among those that are kept."""
        row = Pictured(rank(score, self.sign), case, {}, b"")
        rows = [*self.rows]
        bisect.insort(rows, row, key=lambda each: each[:2])
        kept = chosen(rows)
        if not any(each is row for each in kept):
            return
        shown = slices()
        if not shown:
            return
        png, entry = strip(shown, self.classes)
        entry = {"case": case, "score": None if math.isnan(score) else score, **entry}
        self.rows = [row._replace(entry=entry, png=png) if each is row else each for each in kept]


def chosen(rows: Sequence[Pictured]) -> list[Pictured]:
    """Of rows in order, the worst few and the best; those without a score where others are too few."""
    scored = bisect.bisect_left(rows, math.inf, key=lambda row: row.score)
    few = [*rows[:scored][:WORST], *rows[max(WORST, scored - BEST) : scored]]
    return [*few, *rows[scored:][: WORST + BEST - len(few)]]


def write(folder: RunFolder, shares: Sequence[Sequence[Pictured]]) -> None:
    """Write the pictures that all ranks have kept, and their index. Pictures of an earlier scoring are removed."""
    rows = chosen(sorted((row for share in shares for row in share), key=lambda row: row[:2]))
    if not rows:
        return
    entries, taken = [], set[str]()
    scored = sum(row.score < math.inf for row in rows)
    for number, row in enumerate(rows):
        name = file_name(row.case, taken)
        place = "worst" if number < WORST and number < max(1, scored - BEST) else "best"
        place = place if number < scored else "unscored"
        entries.append({**row.entry, "file": name, "place": place})
        taken.add(name)
        path = folder.place(f"{PICTURED}/{name}")
        files.make_folder(path.parent)
        files.write_bytes(path, row.png)
    for name in folder.contents.listed() or ():
        if name.startswith(f"{PICTURED}/") and name.endswith(".png") and Path(name).name not in taken:
            files.path_inside(folder.path, name).unlink(missing_ok=True)
    folder.write(PICTURES, {"version": 1, "cases": entries})


def file_name(case: str, taken: Collection[str] = ()) -> str:
    """A file name for a case, without anything that a path or a shell reads in another way."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", case)[:80].strip("_-") or "case"
    names = (f"{stem}{end}.png" for end in ("", *(f"_{number}" for number in range(2, len(taken) + 3))))
    return next(name for name in names if name not in taken)


def strip(shown: Mapping[str, Any], classes: Sequence[str] = ()) -> tuple[bytes, dict[str, Any]]:
    """(PNG, what the index says of it) of panels (S, H, W) or (S, H, W, 3) in uint8, all of one S, H and W. "truth" and
    "prediction" are labels, 0 for nothing; where both are there, their difference is added."""
    panels = {name: np.asarray(panel).astype(np.uint8) for name, panel in shown.items()}
    if TRUTH in panels and PREDICTION in panels:
        panels[DIFFERENCE] = difference(panels[TRUTH], panels[PREDICTION])
    count, *sides = next(iter(panels.values())).shape[:3]
    sizes = SIZES if count > 1 else tuple((1, side) for side in ALONE)
    for most, side in sizes:
        slices, share = chosen_slices(panels, count, most), min(1.0, side / max(sides))
        size = tuple(max(1, round(share * length)) for length in sides)
        png = drawn({name: resized(panel[slices], size, name) for name, panel in panels.items()})
        if len(png) <= BYTES:
            break
    labels = [name for name in panels if name in (TRUTH, PREDICTION, DIFFERENCE)]
    found = [int(panels[name].max(initial=0)) for name in labels if name != DIFFERENCE]
    names = [*classes, *(f"class {number}" for number in range(len(classes) + 1, max(found, default=0) + 1))]
    keys = {"labels": list(zip(names, colours_of(len(names)), strict=True)) if labels else []}
    keys |= {"errors": [error for error in ERRORS if error[0] != ERRORS[2][0] or len(names) > 1]} if labels else {}
    return png, {
        "panels": list(panels),
        "over": labels if "image" in panels else [],  # panels that are laid over the image
        "slices": [int(number) for number in slices],
        "of": count,
        "first": first_of(panels, slices),
        "width": size[1],
        "height": size[0],
        "key": keys,
    }


def difference(truth: Labels, prediction: Labels) -> Labels:
    """1 where the prediction misses something, 2 where it has too much, 3 where it names another class."""
    result = np.zeros(truth.shape, np.uint8)
    result[(truth > 0) & (prediction == 0)] = MISSED
    result[(truth == 0) & (prediction > 0)] = EXTRA
    result[(truth > 0) & (prediction > 0) & (truth != prediction)] = CONFUSED
    return result


def chosen_slices(panels: Mapping[str, Any], count: int, most: int) -> NDArray[np.int64]:
    """The numbers of at most `most` slices, evenly spread over those in which something is labelled (all slices, where
    nothing is)."""
    labels = [panels[name] for name in (TRUTH, PREDICTION) if name in panels]
    marked = np.flatnonzero(np.any([label.any((1, 2)) for label in labels], 0)) if labels else np.empty(0, int)
    if not len(marked):
        marked = np.arange(count)
    places = np.linspace(0, len(marked) - 1, min(most, len(marked))).round().astype(int)
    return marked[places]


def first_of(panels: Mapping[str, Any], slices: NDArray[np.int64]) -> int:
    """The place of the slice to show first: that with most errors and most of the truth; the middle where there is
    neither."""
    labels = [panels[name][slices] > 0 for name in (DIFFERENCE, TRUTH) if name in panels]
    counts = sum((label.sum((1, 2)) for label in labels), np.zeros(len(slices), int))
    return int(counts.argmax()) if counts.any() else len(slices) // 2


def resized(panel: NDArray[np.uint8], size: tuple[int, ...], name: str) -> NDArray[np.uint8]:
    """Slices (S, H, W[, 3]) brought to a size: means of pixels for images, the nearest for labels."""
    from PIL import Image

    if panel.shape[1:3] == size:
        return panel
    way = Image.Resampling.NEAREST if name in (TRUTH, PREDICTION, DIFFERENCE) else Image.Resampling.BOX
    return np.stack([np.asarray(Image.fromarray(each).resize((size[1], size[0]), way)) for each in panel])


def drawn(panels: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """A PNG with a palette: the panels beside each other, the slices below each other."""
    from PIL import Image

    if any(panel.ndim == 4 for panel in panels.values()):
        return drawn_in_colour(panels)
    greys: list[Sequence[int]] = [(round(255 * level / (GREYS - 1)),) * 3 for level in range(GREYS)]
    errors = [colour for _, colour in ERRORS]
    palette = [*greys, (0, 0, 0), *CLASSES, *errors]
    alpha = [*[255] * GREYS, 0, *[CLEAR] * len(CLASSES), *[SOLID] * len(errors)]
    columns = []
    for name, panel in panels.items():
        if name not in (TRUTH, PREDICTION, DIFFERENCE):
            columns.append((panel.astype(np.uint16) * (GREYS - 1) // 255).astype(np.uint8))
            continue
        # a class and the sixth after it share a colour, so a palette of 256 holds any number of classes
        places = panel + len(CLASSES) if name == DIFFERENCE else (panel.astype(np.uint16) - 1) % len(CLASSES) + 1
        columns.append(np.where(panel > 0, GREYS + places, GREYS).astype(np.uint8))
    image = Image.fromarray(np.hstack([column.reshape(-1, column.shape[2]) for column in columns]))
    image = image.convert("P") if image.mode != "P" else image
    image.putpalette([part for colour in palette for part in colour])
    return encoded(image, transparency=bytes(alpha))


def drawn_in_colour(panels: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """As `drawn`, where a panel has colours of its own."""
    from PIL import Image

    columns = [panel if panel.ndim == 4 else np.repeat(panel[..., None], 3, 3) for panel in panels.values()]
    image = np.hstack([column.reshape(-1, *column.shape[2:]) for column in columns])
    return encoded(Image.fromarray(image).quantize(128, dither=Image.Dither.NONE))


def encoded(image: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True, **how)
    return stream.getvalue()


def colours_of(count: int) -> list[tuple[int, int, int]]:
    """The colours of labels 1, 2 ...; from the seventh on they repeat."""
    return [CLASSES[number % len(CLASSES)] for number in range(count)]
