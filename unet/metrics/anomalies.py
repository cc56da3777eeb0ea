"""How well a residual finds lesions, always beside plain thresholding of the intensity. NumPy only.

Average precision and the best Dice over all thresholds, over the voxels of the brain. Published autoencoders are beaten
by plain thresholding on FLAIR (Meissen, Kaissis and Rueckert, 2021), so no score is given without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def average_precision(score: Array, truth: Array) -> float:
    """Area under precision over recall of voxels in the order of their score: sum of precision x growth of recall at
    each distinct score; NaN where nothing is true."""
    return _curve(score, truth)[0]


def best_dice(score: Array, truth: Array) -> float:
    """The largest Dice of `score >= t` over all thresholds t; NaN where nothing is true."""
    return _curve(score, truth)[1]


def _curve(score: Array, truth: Array) -> tuple[float, float]:
    """(average precision, best Dice)."""
    total = int(truth.sum())
    if not total:
        return float("nan"), float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(truth[order].astype(np.int64))
    last = np.flatnonzero(np.append(np.diff(score[order]) != 0, True))  # equal scores share a threshold
    found, taken = hits[last], last + 1
    precision, recall = found / taken, found / total
    ap = float(np.sum(precision * np.diff(recall, prepend=0.0)))
    return ap, float((2 * found / (taken + total)).max())


def scores(residual: Array, image: Array, inside: Array, lesion: Array) -> dict[str, float]:
    """The scores of a case's lesions among the voxels `inside` its brain: of the absolute residual, and of the
    intensity, bright or dark, whichever is better (the sign of a lesion is taken as known)."""
    truth, values = lesion[inside], image[inside]
    ap, dice = _curve(np.abs(residual[inside]), truth)
    plain = [_curve(values, truth), _curve(-values, truth)]
    return {
        "lesion_ap": ap,
        "lesion_dice": dice,
        "threshold_ap": max(each[0] for each in plain),
        "threshold_dice": max(each[1] for each in plain),
    }


def painted(image: Array, brain: Array, radius: float, change: float, seed: int) -> tuple[Array, Array]:
    """A volume (D, H, W) with a sphere painted in, and the voxels that it covers: centre drawn among the brain's voxels
    by `numpy.random.default_rng(seed)`, within the brain, intensity + `change`, clipped to the volume's scale."""
    voxels = np.argwhere(brain)
    centre = voxels[np.random.default_rng(seed).integers(len(voxels))]
    grid = np.indices(image.shape)
    distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True)))
    sphere = (distance <= radius) & brain
    low, high = float(image.min()), float(image.max())
    return np.where(sphere, np.clip(image + change, low, high), image).astype(np.float32), sphere


def smoothed(score: Array) -> Array:
    """The mean of 3 x 3 x 3 voxels."""
    from scipy import ndimage

    result: Array = ndimage.uniform_filter(score, 3, mode="nearest")
    return result


def baselines(image: Array, training: Mapping[str, Array], change: float) -> dict[str, Array]:
    """Plain scores of each voxel: difference to the mean of the training volumes, in absolute value and in standard
    deviations of at least 0.05, or of at least 0.2 and smoothed, and the intensity with the sign of the change
    known."""
    mean, std = training["mean"], training["std"]
    return {
        "mean difference": np.abs(image - mean),
        "z-score, std >= 0.05": np.abs(image - mean) / np.maximum(std, 0.05),
        "z-score, std >= 0.2, smoothed": smoothed(np.abs(image - mean) / np.maximum(std, 0.2)),
        "intensity, sign known": image if change > 0 else -image,
    }
