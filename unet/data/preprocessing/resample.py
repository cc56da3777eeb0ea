"""Linear and nearest resampling of volumes along their axes, a block of planes at a time. NumPy, no torch.

The numbers are those of `torch.nn.functional.interpolate` (trilinear with align_corners, and nearest), whose
coordinates are single-precision: on steep edges of a CT a more exact coordinate would differ by more than the cache
may. The interpolation is separable, and no more than a few planes of the input are looked at together, so that a
volume can be resampled while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PLANES = 16  # written together: a cache line of float32 where the planes lie along the last axis


class Axis(NamedTuple):
    """Where the voxels of a target axis lie on the source axis: neighbours and the weight of the upper one."""

    lower: Array
    upper: Array
    weight: Array
    same: bool


def axis(size: int, target: int) -> Axis:
    """Linear coordinates of `target` voxels on `size` ones, first on first and last on last (align_corners)."""
    scale = np.float32(size - 1) / np.float32(target - 1) if target > 1 else np.float32(0)
    position = scale * np.arange(target, dtype=np.float32)
    lower = np.minimum(position.astype(np.intp), size - 1)
    weight = position - lower.astype(np.float32)
    return Axis(lower, np.minimum(lower + 1, size - 1), weight.astype(np.float32), size == target)


def nearest_index(size: int, target: int) -> Array:
    """(target,) index of the source voxel of each target voxel: floor(i * size / target) in single precision."""
    scale = np.float32(size) / np.float32(target)
    return np.minimum(np.floor(np.arange(target, dtype=np.float32) * scale).astype(np.intp), size - 1)


def along(array: Array, where: Axis, dimension: int) -> Array:
    """`array` as float32, interpolated along one of its dimensions."""
    if where.same:
        return array.astype(np.float32, copy=False)
    lower = array.take(where.lower, dimension).astype(np.float32, copy=False)
    upper = array.take(where.upper, dimension).astype(np.float32, copy=False)
    weight = where.weight.reshape(-1, *(1,) * (array.ndim - 1 - dimension))
    upper -= lower
    upper *= weight
    upper += lower
    return upper


def linear(
    blocks: Iterable[Array], shape: Sequence[int], out: Array, finish: Callable[[Array], Any] | None = None
) -> None:
    """Resample a volume of `shape` (D, H, W) into `out` (D', H', W') float32, trilinear with aligned corners.

    `blocks` are its planes along W in order, as arrays (planes, H, D). `finish` changes finished planes in place.
    """
    depth, height, width = (axis(size, target) for size, target in zip(shape, out.shape, strict=True))
    used = np.zeros(shape[2], bool)
    used[width.lower] = used[width.upper] = True
    held: dict[int, Array] = {}
    ready: list[Array] = []
    first = done = 0  # input planes seen; output planes written
    for block in blocks:
        picked = np.flatnonzero(used[first : first + len(block)])
        if len(picked):
            part = block if len(picked) == len(block) else block[picked]
            planes = along(along(part, depth, 2), height, 1)
            held.update(zip((picked + first).tolist(), planes, strict=True))
        first += len(block)
        while done + len(ready) < out.shape[2] and width.upper[done + len(ready)] < first:
            number = done + len(ready)
            low, high, weight = int(width.lower[number]), int(width.upper[number]), width.weight[number]
            ready.append(held[low] + (held[high] - held[low]) * weight if weight else held[low].copy())
            for old in [key for key in held if key < low]:
                del held[old]
            if len(ready) == PLANES:
                done = _put(ready, out, done, finish)
    _put(ready, out, done, finish)


def _put(ready: list[Array], out: Array, done: int, finish: Callable[[Array], Any] | None) -> int:
    """Write planes (H', D') to `out[:, :, done:]`; empties the list and returns the number of planes written so far."""
    if ready:
        planes = np.stack(ready)
        if finish is not None:
            finish(planes)
        out[:, :, done : done + len(planes)] = planes.transpose(2, 1, 0)
        done += len(planes)
        ready.clear()
    return done


def nearest(blocks: Iterable[Array], shape: Sequence[int], out: Array) -> None:
    """Resample a volume of labels of `shape` (D, H, W) into `out` (D', H', W'); `blocks` as in `linear`."""
    depth, height, width = (nearest_index(size, target) for size, target in zip(shape, out.shape, strict=True))
    same = shape[0] == out.shape[0], shape[1] == out.shape[1]
    first = 0
    for block in blocks:
        numbers = np.flatnonzero((width >= first) & (width < first + len(block)))
        for start in range(0, len(numbers), 4 * PLANES):
            group = numbers[start : start + 4 * PLANES]
            planes = block[width[group] - first]
            planes = planes if same[1] else planes.take(height, 1)
            planes = planes if same[0] else planes.take(depth, 2)
            out[:, :, group[0] : group[-1] + 1] = planes.transpose(2, 1, 0)
        first += len(block)


def back(volume: Array, shape: Sequence[int]) -> Iterator[Array]:
    """A volume (C, D, H, W) resampled to `shape`, trilinear with aligned corners: its planes (C, H', W') float32 along
    D', one after the other, so that the whole is never in memory."""
    depth, height, width = (axis(size, target) for size, target in zip(volume.shape[1:], shape, strict=True))
    held: dict[int, Array] = {}

    def plane(number: int) -> Array:
        if number not in held:
            held[number] = along(along(np.asarray(volume[:, number]), height, 1), width, 2)
        return held[number]

    for low, high, weight in zip(depth.lower.tolist(), depth.upper.tolist(), depth.weight, strict=True):
        for old in [key for key in held if key < low]:
            del held[old]
        yield plane(low) + (plane(high) - plane(low)) * weight if weight else plane(low)
