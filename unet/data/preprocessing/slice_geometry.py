"""The deterministic part of the data path: crop, square, resize, normalise, and the way back. NumPy and SciPy, no
torch.

Source: the published pipeline of brain-segmentation-pytorch (Buda et al. 2019), which resizes the whole
(slices, H, W, channels) array as one 4-D spline. Only rows and columns change, and spline interpolation is separable,
so here each axis is one small matrix: the same numbers to rounding, in a fraction of the time.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError

Array = NDArray[Any]
VERSION = 1


class BlankError(DataError):
    """A volume has nothing in it: one value, or no contrast."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a volume was cut and resized: enough to undo it. Boxes are half-open, in raw voxels (slice, row, column)."""

    raw: tuple[int, int, int]
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    side: int
    before: tuple[int, int]
    size: int


@dataclasses.dataclass(frozen=True)
class Intensity:
    """Rescaling of a volume: percentiles 10 and 99 of all channels, then mean and deviation of each channel."""

    low: float
    high: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


@functools.lru_cache(maxsize=64)
def resize_matrix(size: int, side: int) -> Array:
    """(size, side) matrix of bi-quadratic interpolation along one axis: order 2, zero outside, grid aligned by area.

    Equals `skimage.transform.resize(order=2, mode="constant", cval=0, anti_aliasing=False)`, which calls the same zoom.
    """
    from scipy import ndimage

    if size == side:
        return np.eye(side)
    return ndimage.zoom(np.eye(side), (size / side, 1), order=2, mode="grid-constant", cval=0.0, grid_mode=True)


@functools.lru_cache(maxsize=64)
def nearest_index(size: int, side: int) -> Array:
    """(size,) index of the source voxel of each target voxel, as order-0 resize of scikit-image picks it."""
    from scipy import ndimage

    if size == side:
        return np.arange(side)
    ramp = np.arange(side, dtype=np.float64)
    return ndimage.zoom(ramp, size / side, order=0, mode="grid-constant", cval=0.0, grid_mode=True).astype(np.intp)


def threshold(volume: Array) -> int:
    """The smallest uint8 value that is not below a tenth of the volume's maximum."""
    return math.ceil(0.1 * int(volume.max()))


def suppress(volume: Array, limit: int | None = None) -> Array:
    """Voxels of (S, H, W, C) uint8 below `limit` (default: a tenth of the maximum) become 0, channel by channel."""
    return np.where(volume >= (threshold(volume) if limit is None else limit), volume, np.zeros((), volume.dtype))


def bounding_box(volume: Array) -> tuple[tuple[int, int], ...]:
    """Half-open box over (slice, row, column) of the non-zero voxels of (S, H, W, C), any channel.

    Raises BlankError for a volume of zeros, which has no foreground.
    """
    flat = functools.reduce(np.bitwise_or, (volume[..., channel] for channel in range(volume.shape[3])))
    if not flat.any():
        raise BlankError("every voxel of the volume is 0.", "Remove the case, or copy its files again.")
    box = []
    for axis in range(3):
        where = np.flatnonzero(np.bitwise_or.reduce(flat, tuple(other for other in range(3) if other != axis)))
        box.append((int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def geometry(volume: Array, size: int) -> Geometry:
    """Crop box and square padding of a suppressed volume (S, H, W, C): floor of the deficit before, ceil after."""
    box = bounding_box(volume)
    height, width = (stop - start for start, stop in box[1:])
    side = max(height, width)
    slices, rows, columns = volume.shape[:3]
    return Geometry(
        (slices, rows, columns), (box[0], box[1], box[2]), side, ((side - height) // 2, (side - width) // 2), size
    )


def to_square(volume: Array, how: Geometry) -> Array:
    """Crop rows and columns of (S, H, W, ...) to the box and pad with zeros: (S, side, side, ...)."""
    _, (top, bottom), (left, right) = how.box
    result = np.zeros((len(volume), how.side, how.side, *volume.shape[3:]), volume.dtype)
    y, x = how.before
    result[:, y : y + bottom - top, x : x + right - left] = volume[:, top:bottom, left:right]
    return result


def resize_image(volume: Array, how: Geometry) -> Array:
    """(S, side, side, C) uint8 -> (S, C, size, size) float32 in [0, 1], bi-quadratic, cut to the input's range."""
    planes = np.moveaxis(volume, 3, 1).astype(np.float32)
    planes /= 255
    if how.size == how.side:
        return planes
    matrix = resize_matrix(how.size, how.side).astype(np.float32)
    limits = planes.min(), planes.max()
    result = np.matmul(np.matmul(matrix, planes), matrix.T)
    return np.clip(result, *limits, out=result)


def resize_mask(mask: Array, how: Geometry) -> Array:
    """(S, side, side) -> (S, size, size) bool, nearest."""
    index = nearest_index(how.size, how.side)
    return mask[:, index[:, None], index[None, :]] > 0


def normalise(volume: Array, how: Intensity | None = None) -> tuple[Array, Intensity]:
    """Clip (S, C, H, W) float32 to percentiles 10 and 99 of all voxels, map to [0, 1], z-score each channel, in place.

    `how` takes the rescaling from elsewhere. Returns the volume and its rescaling. Raises BlankError for a
    volume without contrast.
    """
    low, high = (how.low, how.high) if how else _percentiles(volume)
    if not high > low:
        raise BlankError(
            f"percentiles 10 and 99 of the volume are both {low:g}: it has no contrast.",
            "Remove the case, or copy its files again.",
        )
    np.clip(volume, low, high, out=volume)
    if how is None:
        mean = volume.mean((0, 2, 3), dtype=np.float64)
        squares = [np.square(volume[:, c] - np.float32(mean[c])).mean(dtype=np.float64) for c in range(len(mean))]
        span = high - low
        how = Intensity(
            low,
            high,
            tuple(float(item - low) / span for item in mean),
            tuple(math.sqrt(item) / span or 1.0 for item in squares),
        )
    for channel, (mean_c, deviation) in enumerate(zip(how.mean, how.deviation, strict=True)):
        plane = volume[:, channel]
        plane -= low + mean_c * (high - low)
        plane /= deviation * (high - low)
    return volume, how


def _percentiles(volume: Array) -> tuple[float, float]:
    """Percentiles 10 and 99 with linear interpolation, by one partition of a copy."""
    ranks = [0.1 * (volume.size - 1), 0.99 * (volume.size - 1)]
    neighbours = sorted({min(int(rank) + step, volume.size - 1) for rank in ranks for step in (0, 1)})
    ordered = np.partition(volume, neighbours, axis=None)
    low, high = (
        float(ordered[int(rank)])
        + (rank - int(rank)) * (float(ordered[min(int(rank) + 1, volume.size - 1)]) - float(ordered[int(rank)]))
        for rank in ranks
    )
    return low, high
