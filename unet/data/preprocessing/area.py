"""Volumes to another number of voxels by the area that each covers, and back between centres. NumPy, no torch.

Both are separable, and computed in double precision: the result does not depend on how the input lies in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SLAB = 2**22  # voxels of the input that are held in double precision at a time


def weights(size: int, target: int) -> Array:
    """(target, size) float64: row i is the mean over the voxels floor(i size / target) to
    ceil((i + 1) size / target) - 1, the bins of adaptive average pooling (`torch.nn.AdaptiveAvgPool3d`); they share a
    voxel at their ends where the sizes do not divide."""
    result = np.zeros((target, size))
    for row in range(target):
        first, end = row * size // target, -((row + 1) * size // -target)
        result[row, first:end] = 1 / (end - first)
    return result


def area(volume: Array, size: Sequence[int]) -> Array:
    """A volume (D, H, W) -> float64 of `size`, each voxel the mean of those that it covers: `interpolate(mode="area")`
    of torch. A block of planes along D is in double precision at a time."""
    depth, height, width = (weights(old, new) for old, new in zip(volume.shape, size, strict=True))
    result = np.zeros(tuple(size))
    step = max(1, SLAB // math.prod(volume.shape[1:]))
    for first in range(0, len(volume), step):
        slab = np.ascontiguousarray(volume[first : first + step], np.float64)
        planes = np.matmul(height, np.matmul(slab, width.T))  # (planes, H', W')
        result += np.tensordot(depth[:, first : first + step], planes, 1)
    return result


def linear(volume: Array, size: Sequence[int]) -> Array:
    """A volume (D, H, W) -> float32 of `size`, trilinear between the centres of voxels, the border repeated:
    `interpolate(mode="trilinear", align_corners=False)` of torch."""
    result = np.asarray(volume, np.float32)
    for axis, new in sorted(enumerate(size), key=lambda item: item[1] / volume.shape[item[0]]):  # the smallest first
        old = result.shape[axis]
        if new == old:
            continue
        place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        low = np.minimum(place.astype(np.intp), max(0, old - 2))
        share = (place - low).astype(np.float32).reshape(-1, *(1,) * (2 - axis))
        upper = result.take(np.minimum(low + 1, old - 1), axis)
        result = result.take(low, axis)
        upper -= result
        upper *= share
        result += upper
    return result if result is not volume else result.copy()
