"""Scores of label maps of any classes, on the grid of the masks. NumPy and SciPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.metrics.surface import distances

Array = NDArray[Any]
KINDS = ("dice", "surface", "hd95", "volume")


def dice_of(prediction: Array, target: Array, classes: int, ignore: int | None = None) -> list[float]:
    """Dice of each class but the background, NaN where it is in neither map: one pass over both. A prediction of what
    is no class (the value of ignored voxels) counts as background."""
    valid = slice(None) if ignore is None else target.ravel() != ignore
    own = classes_only(prediction, classes).ravel()[valid]
    pairs = classes * target.ravel()[valid].astype(np.int64) + own
    table = np.bincount(pairs, minlength=classes * classes)[: classes * classes].reshape(classes, classes)
    both, own, true = table.diagonal(), table.sum(0), table.sum(1)
    return [
        float(2 * both[number] / (own[number] + true[number])) if own[number] + true[number] else math.nan
        for number in range(1, classes)
    ]


def classes_only(prediction: Array, classes: int) -> Array:
    """A label map with the background where it holds no class; itself, where it holds classes alone."""
    return np.where(prediction < classes, prediction, 0) if prediction.max(initial=0) >= classes else prediction


def full_scores(
    prediction: Array,
    target: Array,
    spacing: Sequence[float],
    classes: int,
    tolerance: float,
    ignore: int | None = None,
) -> dict[str, float]:
    """`dice_<n>`, `surface_<n>`, `hd95_<n>` (mm), `volume_<n>` of each class n >= 1 of two label maps (D, H, W), with
    `spacing` and `tolerance` in mm; voxels whose target is `ignore` are left out, a prediction of what is no class
    counts as background.

    Surface Dice: the share of both surfaces that lies within the tolerance of the other. HD95: 95 % of the distances
    between them. Volume: (predicted - true) / true. A class in neither map has no score (NaN); in one of them Dice and
    surface Dice are 0, and HD95 is undefined. Surfaces are those against voxels that are not ignored; where both masks
    have none, the two scores of surfaces are NaN.
    """
    found: dict[str, float] = {}
    prediction, ignored = classes_only(prediction, classes), None
    if ignore is not None and (held := target == ignore).any():
        ignored = held
        prediction, target = (np.where(ignored, 0, each) for each in (prediction, target))
    for number, dice in enumerate(dice_of(prediction, target, classes), 1):
        own, true = prediction == number, target == number
        count, wanted = int(own.sum()), int(true.sum())
        found[f"dice_{number}"] = dice
        found[f"volume_{number}"] = (count - wanted) / wanted if wanted else math.nan
        if not (count and wanted):
            found |= {f"surface_{number}": math.nan if not count and not wanted else 0.0, f"hd95_{number}": math.nan}
            continue
        apart = distances(own, true, spacing, ignored)
        found |= {f"surface_{number}": apart.dice(tolerance), f"hd95_{number}": apart.hausdorff95()}
    return found


def mean_of(scores: Sequence[float]) -> float:
    """The mean of the classes that have a score; NaN where none has."""
    known = [score for score in scores if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else math.nan
