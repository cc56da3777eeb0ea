"""A brain without its skull, as T1-weighted MRI shows it, made of ellipsoids and smooth random fields.

All brains share a frame and the course of most furrows, so a network can learn what a brain is; size, pose, shape,
ventricles, the rest of the furrows, contrast and noise are each brain's own. Lengths are in mm; x goes to the right, y
to the front, z up. No torch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FIELD_OF_VIEW = 208.0  # mm of a side of the cube
FLUID, GREY, WHITE, NUCLEUS = 0.2, 0.57, 0.9, 0.7  # shares of the brightness of T1
LATTICE, BETWEEN = 20, 3  # nodes along an axis of a random field; places for each node at which it is stored
COMMON = 20_240  # seeds what all brains share
FINE = 64  # a smaller cube is drawn with twice as many voxels a side, then averaged
CENTRE, RADII = (0.0, 2.0, 12.0), (66.0, 84.0, 58.0)  # the cerebrum; its lower half is flatter
FLAT, FOLD = 36.0, 8.0  # and its furrows come every two to three FOLD
HIND, MARGIN = ((0.0, -40.0, -38.0), (55.0, 42.0, 34.0)), 18.0  # what lies within MARGIN mm of the two may be tissue


@functools.lru_cache(maxsize=1)
def _spline() -> Array:
    """(LATTICE · BETWEEN, LATTICE): what each node of a lattice gives to places between nodes by a cubic B-spline; a
    field of noise of variance 1 has about variance 1 after three of them."""
    at = np.arange(LATTICE * BETWEEN) / BETWEEN
    away = np.abs((at[:, None] - np.arange(LATTICE) + LATTICE / 2) % LATTICE - LATTICE / 2)
    weights = np.where(away < 1, 2 / 3 - away**2 + away**3 / 2, np.maximum(2 - away, 0) ** 3 / 6)
    return np.asarray(weights * (315 / 151) ** 0.5, np.float32)


def _drawn(*seed: int) -> Array:
    noise: Array = np.random.default_rng(seed).standard_normal((LATTICE,) * 3, dtype=np.float32)
    for _ in range(3):
        noise = np.einsum("abc,da->bcd", noise, _spline())  # einsum starts no threads: the processes take the cores
    return noise


_common = functools.lru_cache(maxsize=None)(_drawn)


def _field(points: Array, cell: float, *seed: int) -> Array:
    """Smooth random field (N,) of about unit variance at points (3, N): noise on a lattice of `cell` mm, between the
    nodes by a cubic B-spline. It repeats after LATTICE cells."""
    from scipy import ndimage

    values = _common(*seed) if seed[0] == COMMON else _drawn(*seed)
    found: Array = ndimage.map_coordinates(values, points * np.float32(BETWEEN / cell), order=1, mode="grid-wrap")
    return found


def _depth(points: Array, centre: Sequence[float] | Array, radii: Sequence[float] | Array) -> Array:
    """Signed distance (N,) in mm, positive inside, to an ellipsoid, of first order."""
    scaled = [(p - c) / r for p, c, r in zip(points, centre, radii, strict=True)]
    level = np.sqrt(sum(s * s for s in scaled)) + 1e-3
    slope = np.sqrt(sum((s / r) ** 2 for s, r in zip(scaled, radii, strict=True))) + 1e-3 / max(radii)
    return np.asarray((1 - level) * level / slope)


def _joined(one: Array, other: Array, width: float = 4.0) -> Array:
    """The larger of two depths, with a rounded seam of `width` mm."""
    near = np.clip(0.5 + (one - other) / (2 * width), 0, 1)
    return np.asarray(other + (one - other) * near + width * near * (1 - near))


class _Brain:
    """A brain on the voxels of a cube that may hold tissue: `points` (3, N) in the common frame, `value` (N,)."""

    def __init__(self, seed: int, index: int, side: int) -> None:
        self.rng = rng = np.random.default_rng((seed, index))
        self.key, self.voxel = (seed, index), FIELD_OF_VIEW / side
        line = ((np.arange(side) + 0.5) / side - 0.5) * FIELD_OF_VIEW
        near = (line / 92) ** 2
        self.place = np.flatnonzero(near[:, None, None] + (line[None, :, None] / 108) ** 2 + near[None, None] < 1)
        grid = np.stack([line[part] for part in np.unravel_index(self.place, (side,) * 3)]).astype(np.float32)
        points = self._pose(grid)
        near_brain = np.maximum(_depth(points, CENTRE, RADII), _depth(points, *HIND)) > -MARGIN
        points, self.place = points[:, near_brain], self.place[near_brain]
        bent = np.stack([_field(points, 40.0, *self.key, axis) for axis in range(3)])
        self.points = points + np.float32(2.2) * bent
        age = rng.normal()  # old brains have wide ventricles and furrows
        self.wide = float(np.exp(0.2 * age + 0.12 * rng.normal()))
        self.furrow = float(0.9 + 0.25 * np.clip(age, -1.5, 2) + 0.1 * rng.normal())
        self.value = np.full(self.points.shape[1], FLUID, np.float32)

    def _pose(self, grid: Array) -> Array:
        """Places in the cube -> in the common frame: moved, turned, stretched."""
        rng = self.rng
        angles = np.radians(rng.normal(0, 2.5, 3).clip(-6, 6))
        turn = np.eye(3)
        for axis, angle in enumerate(angles):
            one, other = (at for at in range(3) if at != axis)
            step = np.eye(3)
            step[one, one] = step[other, other] = np.cos(angle)
            step[one, other], step[other, one] = -np.sin(angle), np.sin(angle)
            turn = turn @ step
        size = rng.normal(1, 0.03) * rng.normal(1, 0.025, 3)
        points: Array = np.einsum("ab,bn->an", (turn / size.clip(0.88, 1.1)[:, None]).astype(np.float32), grid)
        points += rng.normal(0, 1.5, (3, 1)).clip(-4, 4).astype(np.float32)
        return points

    def edge(self, depth: Array, width: float = 0.0) -> Array:
        """0 outside, 1 inside, with an edge of one voxel, or of `width` mm, where the signed depth is 0."""
        return np.asarray(np.clip(depth / max(width, self.voxel) + 0.5, 0, 1))

    def paint(self, value: Any, alpha: Array) -> None:
        self.value += alpha * (value - self.value)

    def pair(self, centre: Sequence[float] | Array, radii: Sequence[float] | Array) -> Array:
        """Depth in two ellipsoids, left and right."""
        x, y, z = self.points
        return _depth(np.stack((np.abs(x), y, z)), centre, radii)

    def cortex(self) -> tuple[Array, Array]:
        """Paint folded grey and white matter of the cerebrum; its smooth depth, and the depth below the folded surface
        and the gap between the hemispheres."""
        x, y, z = self.points
        low = CENTRE[2] + np.where(z > CENTRE[2], z - CENTRE[2], (z - CENTRE[2]) * (RADII[2] / FLAT))
        smooth = _depth(np.stack((x * (1 + 0.0012 * y), y, low)), CENTRE, RADII)
        smooth = np.where(z < CENTRE[2], smooth * 0.8, smooth)
        smooth = _joined(smooth, self.pair((41, 2, -16), (25, 44, 24)))
        # Furrows run down from the surface: the fields that draw them hardly change along a radius.
        radius = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(self.points, CENTRE, RADII, strict=True)))
        outer = self.points / np.maximum(radius, 0.2).astype(np.float32) ** 0.75
        folds = 0.87 * _field(outer, FOLD, COMMON, 1) + 0.5 * _field(outer, FOLD, *self.key, 4)
        reach = 15 + 4 * _field(outer, 25.0, COMMON, 2)
        away = np.hypot(0.62 * FOLD * np.abs(folds), np.maximum(smooth - reach, 0))
        furrow = away - self.furrow * (1 - 0.5 * np.clip(smooth / np.maximum(reach, 4), 0, 1.5))
        gap = np.hypot(x, np.maximum(_depth(np.stack((0 * x, y, z)), (0, -2, 6), (50, 52, 30)), 0)) - 0.8 * self.furrow
        folded = np.minimum(np.minimum(smooth, furrow), gap)
        thick = 3.3 + 0.4 * _field(self.points, 18.0, *self.key, 5)
        self.paint(GREY, self.edge(folded))
        self.paint(WHITE, self.edge(folded - thick))
        return smooth, folded

    def inside(self) -> None:
        """Paint nuclei and ventricles."""
        rng = self.rng
        for centre, radii in (((13, -14, 6), (10, 15, 9)), ((14, 16, 12), (6, 17, 9)), ((27, 5, 4), (7, 18, 12))):
            shift = rng.normal(0, 0.7, 3)
            self.paint(NUCLEUS, 0.9 * self.edge(self.pair(np.add(centre, shift).tolist(), radii), 2))
        x, y, z = self.points
        wide = self.wide
        along = (y + 6) / 36
        horns = _depth(
            np.stack((np.abs(x) - 6 - 9 * along**2, y, z + 8 * np.maximum(-along, 0) ** 2)),
            (2.5, -6, 17),
            (5 * wide, 38 * wide**0.3, 8 * wide),
        )
        horns = np.maximum(horns, _depth(np.stack((np.abs(x), y, z)), (30, -22, -8), (4 * wide, 20, 4.5 * wide)))
        third = _depth(self.points, (0, -8, 3), (2.2 * wide, 14, 10))
        self.paint(FLUID, self.edge(np.maximum(horns, third)))

    def hindbrain(self, cerebrum: Array) -> Array:
        """Paint cerebellum and brain stem below the cerebrum (N,), given as a depth; their depth."""
        x, y, z = self.points
        cerebellum = _joined(self.pair((21, -50, -33), (27, 25, 21)), _depth(self.points, (0, -48, -31), (14, 22, 20)))
        back = y + 20 - 0.3 * (z + 38)
        stem = _joined(_depth(np.stack((x, back, z)), (0, 0, -40), (11, 9, 44)), self.pair((0, -13, -31), (16, 12, 13)))
        stem = np.minimum(stem, np.minimum(z + 66, 2 - z))
        round_stem = np.hypot(z + 28, y + 26) + 0.12 * np.abs(x)
        leaves = 0.5 + 0.5 * np.sin(1.5 * round_stem + 1.5 * _field(self.points, 16.0, COMMON, 3))
        self.paint(FLUID, self.edge(np.minimum(np.maximum(cerebellum, stem) + 2, 3 - cerebrum)))
        self.paint(GREY, self.edge(cerebellum))
        tree = np.minimum(cerebellum - 2, 4 * (0.75 - leaves) + 0.9 * np.maximum(cerebellum - 9, 0))
        self.paint(0.95 * WHITE, self.edge(tree, 3))
        self.paint(0.93 * WHITE, self.edge(stem))
        self.paint(FLUID, self.edge(_depth(self.points, (0, -34, -34), (5 * self.wide, 4, 8))))
        return np.maximum(cerebellum, stem)

    def lesions(self, depth: Array) -> Array:
        """Paint one to three lesions, bright or dark with a blurred edge, where the tissue is at least 6 mm deep; the
        share (N,) of each voxel that is lesion."""
        rng, share = self.rng, np.zeros_like(self.value)
        deep = np.flatnonzero(depth > 6)
        for number in range(int(rng.integers(1, 4))):
            centre = self.points[:, deep[int(rng.random() * len(deep))]]  # about the same place for any side
            radii = (rng.uniform(6, 14) * rng.uniform(0.75, 1.3, 3)).tolist()
            level = _depth(self.points, centre, radii) + 1.5 * _field(self.points, 12.0, *self.key, 6 + number)
            alpha = self.edge(level, 4) * self.edge(depth, 2)
            self.paint(rng.uniform(1.12, 1.3) if rng.random() < 0.5 else rng.uniform(0.2, 0.34), alpha)
            share = np.maximum(share, alpha)
        return share


def make_brain(seed: int, index: int, side: int, ill: bool = False) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One brain: image (side, side, side) int16, exactly 0 outside, 1 to about 1,300 inside; lesions of the same shape,
    uint8 of 0 and 1, empty unless `ill`. Axes x to the right, y to the front, z up. The same arguments give the same
    arrays.
    """
    fine = 2 * side if side < FINE else side
    brain = _Brain(seed, index, fine)
    smooth, folded = brain.cortex()
    brain.inside()
    depth = np.maximum(smooth, brain.hindbrain(smooth))
    share = brain.lesions(np.maximum(depth - 2, folded)) if ill else np.zeros_like(brain.value)
    rng = brain.rng
    bias = 1 + 0.05 * _field(brain.points, 70.0, seed, index, 9)
    value = brain.value ** rng.uniform(0.9, 1.12) * bias
    head = brain.edge(depth + 1.5) > 0.5
    cubes: Array = np.zeros((3, fine**3), np.float32)
    cubes[:, brain.place] = value * head, head, share * head
    if fine != side:
        cubes = cubes.reshape(3, side, 2, side, 2, side, 2).mean((2, 4, 6))
    image, inside, lesion = cubes.reshape(3, side, side, side)
    kept = inside >= 0.5
    sigma, gain = rng.uniform(0.012, 0.03), rng.uniform(700, 1000)
    image = image / np.maximum(inside, 0.5) + sigma * rng.standard_normal(image.shape)
    grey = np.clip(np.rint(gain * image), 1, 2000) * kept
    return grey.astype(np.int16), ((lesion >= 0.5) & kept).astype(np.uint8)
