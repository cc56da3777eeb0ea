"""Volumes to another number of voxels by the area that each covers, and back between centres. NumPy, no torch.

Both are separable and made of sums in a fixed order, so the result is the same on every machine, however the input
lies in memory; areas are summed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SLAB = 2**22  # voxels of the input that are held in double precision at a time


def bins(size: int, target: int) -> tuple[Array, Array]:
    """(first, end) of each bin: floor(i size / target) to ceil((i + 1) size / target), the bins of adaptive average
    pooling (`torch.nn.AdaptiveAvgPool3d`); neighbours share a voxel where the sizes do not divide."""
    number = np.arange(target)
    return number * size // target, -((number + 1) * size // -target)


def means(array: Array, axis: int, target: int) -> Array:
    """The means over the bins of one axis, which becomes `target` long."""
    size = array.shape[axis]
    if size == target:
        return array
    first, end = bins(size, target)
    if target > size:  # several bins end with the axis; `reduceat` takes no index behind it
        array = np.concatenate([array, np.zeros_like(array.take([0], axis))], axis)
    ends = np.stack([first, end], 1).ravel()[:-1]  # sums from first to end, from end to the next first, ...
    sums = np.add.reduceat(array, ends, axis).take(np.arange(0, 2 * target, 2), axis)
    count: Array = (end - first).reshape(-1, *(1,) * (array.ndim - 1 - axis))
    return sums / count


def area(volume: Array, size: Sequence[int]) -> Array:
    """A volume (D, H, W) -> float64 of `size`, each voxel the mean of those that it covers: `interpolate(mode="area")`
    of torch. No more than a block of planes along D is in double precision at a time."""
    planes = np.empty((len(volume), size[1], size[2]))
    step = max(1, SLAB // math.prod(volume.shape[1:]))
    for first in range(0, len(volume), step):
        slab = np.ascontiguousarray(volume[first : first + step], np.float64)
        planes[first : first + step] = means(means(slab, 1, size[1]), 2, size[2])
    return means(planes, 0, size[0])


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
