"""Settings that follow from a set, each with its reason: what `plan` prints, and what training takes where nothing is
typed. No torch.

The rules are close to nnU-Net's (Isensee et al., Nature Methods 2021): median spacing, patches in the shape of the
median case, levels by spacing, normalisation by the kind of image. What a network may cost is one dial, --size.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unet import host
from unet.data.io.nifti_header import times
from unet.data.preprocessing.grids import AXIAL, TURNED, WORLD
from unet.errors import DataError
from unet.tasks.base import Decision
from unet.tasks.folder.fingerprint import Fingerprint, median
from unet.tasks.folder.labels import Labels
from unet.tasks.folder.topology import LEAST, fitted, topology

THICK = 3.0  # slices this much thicker than pixels are wide: their spacing is not refined, patches turn in plane
THICKER = 1.25  # slices lie across the axis whose voxels are this much longer
SHALLOW = 8  # slices below which volumes are taken slice by slice
AIR = -300.0  # Hounsfield units below which a twentieth of each image lies: CT
CROPPED = 0.75  # share of a volume inside its border of zeros below which it is cut away
COARSE = 10  # percentile of the spacing along thick slices


class Size(NamedTuple):
    """What --size stands for: voxels of a patch in 3D, its side in 2D, channels of the first level, the most channels,
    batches and epochs."""

    voxels: int
    side: int
    width: int
    widest: int
    batch: int
    flat_batch: int
    epochs: int


SIZES = {
    "S": Size(64**3, 256, 16, 256, 2, 8, 50),
    "M": Size(96**3, 512, 32, 320, 2, 12, 200),
    "L": Size(128**3, 768, 32, 320, 2, 16, 1000),
}


def decide(
    found: Fingerprint, labels: Labels, channels: Sequence[str], size: str, typed: Mapping[str, Any]
) -> list[Decision]:
    """Every setting that follows from a set; `typed` are settings that the user has given, which are kept and which the
    others follow."""
    budget = SIZES[size]
    chosen: dict[str, Decision] = {}

    def take(*decisions: Decision) -> None:
        for decision in decisions:
            kept = typed.get(decision.name)
            given = kept if kept not in (None, ()) else None
            chosen[decision.name] = decision if given is None else decision._replace(value=given, reason="typed")

    take(*classes(found, labels, channels))
    take(orientation(found))
    codes = chosen["orientation"].value
    sizes, spacings = found.turned("" if codes == "as-stored" else codes)
    take(spacing(sizes, spacings))
    target = chosen["spacing"].value
    shapes = [
        tuple(max(1, round(side * own / mm)) for side, own, mm in zip(shape, each, target, strict=True))
        for shape, each in zip(sizes, spacings, strict=True)
    ]
    take(cropping(found))
    middle = tuple(max(1, round(side)) for side in median(shapes))
    flat = found.flat or middle[0] < SHALLOW
    take(layers(middle, flat))
    take(patch(middle, target, flat, budget, chosen["layers"].value))
    sides = chosen["patch"].value
    take(*network(sides, budget, len(found.cases)))
    take(*normalisation(found, channels, typed))
    thick = target[0] > THICK * min(target[1:]) and sides[0] > 1
    words = f"voxels of {times(map(float, target))} mm"
    take(Decision("anisotropic", thick, "slices are thick" if thick else "voxels are about as long as wide", words))
    return list(chosen.values())


def classes(found: Fingerprint, labels: Labels, channels: Sequence[str]) -> list[Decision]:
    shares = found.shares()
    saw = ", ".join(
        f"{value} in {count} of {len(found.cases)} cases ({shares[value]:.2%})"
        for value, count in list(found.values().items())[:6]
    )
    return [
        Decision("channels", tuple(channels), "one for each image of a case", f"{found.channels} in every case"),
        Decision("classes", labels.names, "the values of the masks", saw),
        Decision("label_values", labels.values, "the values of the masks", saw),
        Decision("ignore_value", labels.ignore, "of dataset.json", "no such value" if labels.ignore is None else saw),
    ]


def orientation(found: Fingerprint) -> Decision:
    """Slices from head to foot, or across the axis along which the voxels are longest in most cases."""
    if not found.oriented:
        what = "flat images" if found.flat else "files that do not say how their axes lie"
        return Decision("orientation", "as-stored", "there is no place in space to turn by", what)
    directions = ["".join(case.codes) for case in found.cases]
    seen = ", ".join(sorted(set(directions))[:3])
    lengths: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for case in found.cases:
        for code, length in zip(case.codes, case.spacing or (1.0, 1.0, 1.0), strict=True):
            lengths[WORLD[code][0]].append(length)
    mm = {axis: statistics.median(each) for axis, each in lengths.items()}
    thick = max(mm, key=lambda axis: mm[axis])
    across = mm[thick] > THICKER * max(length for axis, length in mm.items() if axis != thick)
    codes = "".join(TURNED.get(thick, AXIAL) if across else AXIAL)
    why = "slices lie across the longest side of the voxels" if across else "slices from head to foot"
    return Decision("orientation", codes, why, f"files stored as {seen}", "as-stored")


def spacing(sizes: Sequence[Sequence[int]], spacings: Sequence[Sequence[float]]) -> Decision:
    """The median; along thick slices of a low resolution their lower tenth, so that the thin ones keep their detail."""
    middle = list(median(spacings))
    reason = "the median of the set"
    thick = max(range(3), key=lambda axis: middle[axis])
    others = [middle[axis] for axis in range(3) if axis != thick]
    shape = median(sizes)
    if middle[thick] > THICK * max(others) and shape[thick] * THICK < min(
        shape[axis] for axis in range(3) if axis != thick
    ):
        ordered = sorted(each[thick] for each in spacings)
        middle[thick] = max(ordered[len(ordered) * COARSE // 100], *others)
        reason = "the median; along the thick slices the lower tenth"
    low, high = (tuple(choose(column) for column in zip(*spacings, strict=True)) for choose in (min, max))
    saw = f"{times(map(float, low))} to {times(map(float, high))} mm"
    return Decision(
        "spacing", tuple(float(f"{mm:.6g}") for mm in middle), reason, saw, "a coarser one, for less memory"
    )


def cropping(found: Fingerprint) -> Decision:
    inside = statistics.median([case.inside for case in found.cases if case.darkest] or [1.0])
    wide = inside < CROPPED
    reason = "much of the images is a border of zeros" if wide else "there is little to cut away"
    return Decision("crop_background", wide, reason, f"{inside:.0%} of a volume within its border of zeros")


def layers(middle: Sequence[int], flat: bool) -> Decision:
    """As many halvings as leave 4 pixels of the median case, at most 5 in 3D and 6 in 2D."""
    sides = middle[1:] if flat else middle
    most = 6 if flat else 5
    deepest = int(math.log2(max(2, max(sides)) / LEAST)) if max(sides) > LEAST else 1
    return Decision(
        "layers",
        max(2, min(most, deepest)),
        f"halved until {LEAST} pixels are left",
        f"a median case of {times(middle)}",
    )


def patch(middle: Sequence[int], mm: Sequence[float], flat: bool, budget: Size, levels: int) -> Decision:
    """A patch in the shape of the median case, of as many voxels as the size allows, at least one that its levels halve
    evenly."""
    if flat:
        sides = [1, *(min(side, budget.side) for side in middle[1:])]
        reason = "slice by slice: a 2D network"
    else:
        sides = list(middle)
        reason = "the shape of the median case, within what --size allows"
        while math.prod(sides) > budget.voxels:  # the side that covers most millimetres gives way
            extent = [side * length for side, length in zip(sides, mm, strict=True)]
            free = [axis for axis in range(3) if sides[axis] > 8]
            if not free:
                break
            widest = max(free, key=lambda axis: extent[axis])
            sides[widest] = max(8, int(sides[widest] * 0.95))
    best = fitted(sides, mm, levels)
    steps = topology(best, mm, levels).multiples
    saw = f"a median case of {times(middle)} voxels of {times(map(float, mm))} mm"
    other = f"multiples of {times(steps)}; larger ones see more and take more memory"
    return Decision("patch", best, reason, saw, other)


def network(sides: Sequence[int], budget: Size, cases: int) -> list[Decision]:
    flat = sides[0] == 1
    saw = f"a patch of {times(sides)}"
    batch = budget.flat_batch if flat else budget.batch
    most = (budget.side**2 * budget.flat_batch) if flat else budget.voxels * budget.batch
    batch = max(2, min(4 * batch, most // math.prod(sides)))
    widest = 512 if flat and budget.widest > 256 else budget.widest
    return [
        Decision("batch_size", batch, "as many patches as --size allows", saw, "any that the memory holds"),
        Decision("width", budget.width, "of --size", saw, "half of it: a quarter of the time"),
        Decision("widest", widest, "of --size", saw),
        Decision("epochs", budget.epochs, "of --size", f"{cases} cases", "fewer for a first look"),
    ]


def normalisation(found: Fingerprint, channels: Sequence[str], typed: Mapping[str, Any]) -> list[Decision]:
    """ct where a channel is called so or its values are Hounsfield units; rescale for colours; else zscore, also where
    the labelled values of a CT do not differ: all voxels would become one value. Raises DataError where that was
    typed."""
    kinds, numbers, seen = [], list[float](), []
    asked = tuple(typed.get("normalize") or ())
    for channel, name in enumerate(channels):
        about = found.intensities(channel)
        units = bool(about) and about["darkest"] < AIR
        coloured = found.flat and found.channels == 3 and found.cases[0].format in ("png", "jpeg", "tiff")
        kind = "ct" if name.upper() == "CT" or (units and not found.flat) else "rescale" if coloured else "zscore"
        if about:
            seen.append(f"{name}: {about['low']:.4g} to {about['high']:.4g}, darkest {about['darkest']:.4g}")
        wanted = "ct" in (kind, *asked[channel : channel + 1])
        values = [about.get(key, 0.0) for key in ("low", "high", "mean", "deviation")] if wanted else [0.0] * 4
        values = [float(f"{value:.6g}") for value in values]
        if wanted and values[0] >= values[1]:
            words = f"from {values[0]:g} to {values[1]:g}" if about else "none"
            if asked[channel : channel + 1] == ("ct",) and not typed.get("intensities"):
                raise DataError(
                    f"The labelled values of channel {name} are {words}: ct would make all voxels one value.",
                    "Type --normalize zscore, or --intensities LOWEST HIGHEST MEAN DEVIATION for each channel.",
                )
            if kind == "ct" and not asked:
                host.notice_once(f"{name}: the labelled values are {words}, so zscore is taken in place of ct")
                kind = "zscore"
        kinds.append(kind)
        numbers += values
    why = "; ".join(
        {
            "ct": "Hounsfield units are clipped to the labelled ones and scaled by their mean, the same for all cases",
            "rescale": "colours are scaled to 0 to 1",
            "zscore": "each image by its own mean and deviation",
        }[kind]
        for kind in dict.fromkeys(kinds)
    )
    found_kinds = Decision("normalize", tuple(kinds), why, "; ".join(seen) or "no labelled values")
    limits = Decision("intensities", tuple(numbers), "used by ct alone", "; ".join(seen) or "no labelled values")
    return [found_kinds, limits] if "ct" in (*kinds, *asked) else [found_kinds]


def as_settings(decisions: Sequence[Decision]) -> dict[str, Any]:
    """{setting: value}."""
    return {decision.name: decision.value for decision in decisions}
