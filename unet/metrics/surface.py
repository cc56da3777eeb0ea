"""Distances between the surfaces of two masks, in the unit of their spacing. NumPy and SciPy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.metrics.overlap import Mask

Voxels = NDArray[np.int32]
Distances = NDArray[np.float64]
SLAB = 2**21  # voxels
CHUNK = 2**20  # points
VOXELS_A_QUERY = 100  # a far point in a tree takes as long as so many voxels of a distance transform


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each surface voxel of the prediction to the target's nearest one, and the other way round; empty
    where the mask is. `undefined`: one of the two masks is empty, or its surface is not seen; `hidden`: neither
    surface is seen."""

    prediction: Distances
    target: Distances
    undefined: bool = False
    hidden: bool = False

    def hausdorff95(self) -> float:
        """The larger of the two directed 95th percentiles; 0 where both masks are empty, NaN where one is, and where
        no surface is seen.

        Source: Huttenlocher et al. 1993 (percentile form); the maximum of the two directions as in MONAI and in
        DeepMind's surface-distance.
        """
        if self.undefined or self.hidden:
            return math.nan
        if not len(self.prediction):
            return 0.0
        return max(float(np.percentile(each, 95)) for each in (self.prediction, self.target))

    def dice(self, tolerance: float) -> float:
        """The share of both surfaces' voxels within `tolerance` of the other surface; 1 where both masks are empty, 0
        where one is, NaN where no surface is seen.

        Source: Nikolov et al., J Med Internet Res 2021 (every surface voxel counts as one, whatever area it stands
        for).
        """
        if self.undefined or self.hidden:
            return math.nan if self.hidden else 0.0
        limit = tolerance * (1 + 1e-9)  # a distance of 3 steps of 0.7 mm is 2.0999999999999996 mm
        near = sum(int(np.count_nonzero(each <= limit)) for each in (self.prediction, self.target))
        return near / (len(self.prediction) + len(self.target)) if len(self.prediction) else 1.0


def distances(
    prediction: Mask, target: Mask, spacing: Sequence[float] | None = None, ignored: Mask | None = None
) -> SurfaceDistances:
    """Distances between the surfaces of two masks of one shape, in the unit of `spacing` (default: one for a step along
    each axis).

    Surface: mask voxels with a face neighbour outside the mask; what lies beyond the array is outside. Axes of one
    voxel do not count: a flat image has an outline, no surface. `ignored`: voxels of neither mask of which it is not
    known whether they are outside; no surface is seen against them.
    """
    deep = [axis for axis, side in enumerate(target.shape) if side != 1] or [0]
    if len(deep) < target.ndim:
        sides = [target.shape[axis] for axis in deep]
        prediction, target = prediction.reshape(sides), target.reshape(sides)
        ignored = None if ignored is None else ignored.reshape(sides)
        spacing = None if spacing is None else [spacing[axis] for axis in deep]
    box = bounding_box(prediction, target)
    if box is None:
        return SurfaceDistances(np.empty(0), np.empty(0))
    if ignored is None or not ignored.any():
        own, true = surface(prediction[box]), surface(target[box])
    else:
        box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)  # with the voxels next to the masks
        own, true = (surface(mask[box], ignored[box]) for mask in (prediction, target))
    if not len(own) or not len(true):
        hidden = bool(prediction.any() and target.any() and not len(own) and not len(true))
        return SurfaceDistances(np.empty(0), np.empty(0), undefined=True, hidden=hidden)
    shape = prediction[box].shape
    scale = np.ones(len(shape)) if spacing is None else np.asarray(spacing, dtype=np.float64)
    return SurfaceDistances(nearest(own, true, shape, scale), nearest(true, own, shape, scale))


def nearest(points: Voxels, others: Voxels, shape: tuple[int, ...], scale: Distances) -> Distances:
    """Distance of each voxel (N, axes) to the nearest of the others (M, axes) in an array of `shape`: (N,).

    From a tree of the others, or, where so many are asked for that it is faster, from a distance transform of the
    array; both are exact, and what they find is measured in one way.
    """
    from scipy import ndimage
    from scipy.spatial import cKDTree

    result = np.empty(len(points))
    parts = [slice(first, first + CHUNK) for first in range(0, len(points), CHUNK)]
    if len(points) * VOXELS_A_QUERY < math.prod(shape):
        # without balancing, which is slow for voxels on a lattice: many have one coordinate in common
        tree = cKDTree(others * scale, balanced_tree=False, compact_nodes=False)
        for part in parts:
            found = others[tree.query(points[part] * scale, workers=host.cores())[1]]
            result[part] = np.sqrt((((points[part] - found) * scale) ** 2).sum(1))
        return result
    elsewhere = np.ones(shape, np.bool_)
    elsewhere[tuple(others.T)] = False
    index = ndimage.distance_transform_edt(elsewhere, sampling=scale, return_distances=False, return_indices=True)
    for part in parts:
        found = index[(slice(None),) + tuple(points[part].T)].T
        result[part] = np.sqrt((((points[part] - found) * scale) ** 2).sum(1))
    return result


def surface(mask: Mask, ignored: Mask | None = None) -> Voxels:
    """The voxels of a mask that have a face neighbour outside it that is not `ignored`: (N, axes), in array order.

    Slab by slab along the first axis, each small enough for the processor's cache.
    """
    found = [np.empty((0, mask.ndim), np.int32)]
    step = max(1, SLAB * len(mask) // max(1, mask.size))
    for first in range(0, len(mask), step):
        if not mask[first : first + step].any():
            continue
        low = max(0, first - 1)
        slab = mask[low : first + step + 1]
        edge = edge_of(slab) if ignored is None else edge_of(slab | ignored[low : first + step + 1]) & slab
        edge = edge[first - low : first - low + step]
        where = np.argwhere(edge).astype(np.int32)
        where[:, 0] += first
        found.append(where)
    return np.concatenate(found)


def edge_of(mask: Mask) -> Mask:
    """The mask less its erosion by one step along each axis."""
    inside = mask.copy()
    for axis in range(mask.ndim):
        within, own = inside.swapaxes(0, axis), mask.swapaxes(0, axis)
        within[1:] &= own[:-1]
        within[:-1] &= own[1:]
        within[0] = within[-1] = False
    return mask & ~inside


def bounding_box(*masks: Mask) -> tuple[slice, ...] | None:
    """The smallest box that holds all of the masks; None where they are empty."""
    box = []
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        where = np.flatnonzero(np.logical_or.reduce([mask.any(others) for mask in masks]))
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def hausdorff95(prediction: Mask, target: Mask, spacing: tuple[float, ...] | None = None) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in the unit of `spacing` (default: pixels,
    one for a step along each axis). 0 where both are empty, NaN where one is.

    Surface: mask voxels with a face neighbour outside the mask. Source: Huttenlocher et al. 1993 (percentile form);
    the maximum of the two directions as in MONAI and in DeepMind's surface-distance.
    """
    return distances(prediction, target, spacing).hausdorff95()
