"""Scores of a predicted mask against a reference, by counts of pixels. NumPy and SciPy."""

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
