"""Scores of a predicted mask against a reference mask, per case. NumPy and SciPy on the host."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def largest_component(mask: Mask) -> Mask:
    """The largest connected component of a mask (face connectivity, so neighbouring slices connect); an empty mask
    stays empty.

    Source: postprocessing of brain-segmentation-pytorch. Of components of equal size the first in array order stays.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def dice(prediction: Mask, target: Mask) -> float:
    """2 |p t| / (|p| + |t|) by integer counts; 1 where both are empty, 0 where one is."""
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(target))
    return 2 * int(np.count_nonzero(prediction & target)) / total if total else 1.0


def volume_error(prediction: Mask, target: Mask) -> float:
    """(|p| - |t|) / |t|: relative error of the volume, signed; 0 where both are empty, NaN where only the target is."""
    p, t = int(np.count_nonzero(prediction)), int(np.count_nonzero(target))
    return (p - t) / t if t else (0.0 if p == 0 else math.nan)


def hausdorff95(prediction: Mask, target: Mask, spacing: tuple[float, ...] | None = None) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in the unit of `spacing` (default: pixels,
    one for a step along each axis). 0 where both are empty, NaN where one is.

    Surface: mask voxels with a face neighbour outside the mask. Source: Huttenlocher et al. 1993 (percentile form);
    the maximum of the two directions as in MONAI and in DeepMind's surface-distance.
    """
    if not prediction.any() or not target.any():
        return 0.0 if prediction.any() == target.any() else math.nan
    from scipy import ndimage

    box = tuple(slice(max(0, where.min() - 1), where.max() + 2) for where in np.nonzero(prediction | target))
    edges = []
    for mask in (prediction[box], target[box]):
        padded = np.pad(mask, 1)
        inner = (slice(1, -1),) * mask.ndim
        edges.append(mask & ~ndimage.binary_erosion(padded)[inner])
    directed = []
    for source, goal in (edges, edges[::-1]):
        distance = ndimage.distance_transform_edt(~goal, sampling=spacing)
        directed.append(float(np.percentile(distance[source], 95)))
    return max(directed)


def bootstrap_interval(values: list[float], resamples: int = 10000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over cases, by resampling the cases; NaN values are left out."""
    data = np.array([value for value in values if not math.isnan(value)])
    if not len(data):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    means = data[generator.integers(0, len(data), (resamples, len(data)))].mean(1)
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))
