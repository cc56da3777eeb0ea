"""Volumes and label maps resized to another grid of the same extent: voxels are centred, as in scikit-image and torch
(align_corners false), so image, mask and the way back agree. NumPy, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.preprocessing.resample import Axis, along

Array = NDArray[Any]


def axis(size: int, target: int) -> Axis:
    """Where `target` voxels lie on `size` ones of the same extent; at the borders the outermost voxel holds."""
    position = np.clip((np.arange(target) + 0.5) * (size / target) - 0.5, 0, size - 1)
    lower = np.minimum(position.astype(np.intp), max(0, size - 2))
    return Axis(lower, np.minimum(lower + 1, size - 1), (position - lower).astype(np.float32), size == target)


def nearest(size: int, target: int) -> Array:
    """(target,) the source voxel of each."""
    return np.minimum(((np.arange(target) + 0.5) * (size / target)).astype(np.intp), size - 1)


def image(volume: Array, shape: Sequence[int]) -> Array:
    """(..., D, H, W) -> (..., *shape) float32, linear. Axes that shrink come first: less work."""
    axes = list(range(volume.ndim - 3, volume.ndim))
    ratio = {place: target / volume.shape[place] for place, target in zip(axes, shape, strict=True)}
    for place in sorted(axes, key=lambda item: ratio[item]):
        volume = along(volume, axis(volume.shape[place], shape[place - axes[0]]), place)
    return np.ascontiguousarray(volume, np.float32)


def labels(mask: Array, shape: Sequence[int]) -> Array:
    """(..., D, H, W) -> (..., *shape) of the same type, nearest."""
    first = mask.ndim - 3
    for place, target in enumerate(shape, first):
        if mask.shape[place] != target:
            mask = mask.take(nearest(mask.shape[place], target), place)
    return np.ascontiguousarray(mask)
