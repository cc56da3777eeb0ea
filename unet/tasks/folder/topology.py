"""How a UNet's levels follow from the patch and the spacing: which axes are halved at each level, and where a kernel
looks across slices. Standard library only.

Source of the rules: nnU-Net (Isensee et al., Nature Methods 2021): an axis is halved while its voxels are no more than
twice as long as the shortest ones and at least 4 of them are left; kernels look across slices once these are no more
than twice as thick as the pixels are wide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

Triple = tuple[int, int, int]
LEAST = 4  # voxels of an axis at the deepest level
LIKE = 2.0  # voxels are alike up to this ratio of their sides


@dataclasses.dataclass(frozen=True)
class Topology:
    """`kernels` and `strides` of the levels, the top one first; its stride is 1. `multiples`: the sides of a patch are
    multiples of these."""

    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]

    @property
    def multiples(self) -> Triple:
        found = [1, 1, 1]
        for stride in self.strides:
            found = [a * b for a, b in zip(found, stride, strict=True)]
        return found[0], found[1], found[2]


def topology(patch: Sequence[int], spacing: Sequence[float], layers: int) -> Topology:
    """The levels of a network for patches of (D, H, W) voxels of this spacing, at most `layers` times halved."""
    sides, lengths = list(patch), list(spacing)
    kernels: list[Triple] = []
    strides: list[Triple] = [(1, 1, 1)]
    wide = [False, False, False]  # axes whose kernels look at their neighbours
    for level in range(layers + 1):
        shortest = min(length for length, side in zip(lengths, sides, strict=True) if side > 1 or max(sides) == 1)
        for axis in range(3):
            wide[axis] = wide[axis] or (patch[axis] > 1 and lengths[axis] <= LIKE * shortest)
        kernels.append(tuple(3 if each else 1 for each in wide))  # type: ignore[arg-type]
        if level == layers:
            break
        halved = [sides[axis] >= 2 * LEAST and lengths[axis] < LIKE * shortest and patch[axis] > 1 for axis in range(3)]
        if not any(halved):
            break
        stride = tuple(2 if each else 1 for each in halved)
        strides.append(stride)  # type: ignore[arg-type]
        sides = [-(-side // step) for side, step in zip(sides, stride, strict=True)]
        lengths = [length * step for length, step in zip(lengths, stride, strict=True)]
    return Topology(tuple(kernels[: len(strides)]), tuple(strides))


def fitted(patch: Sequence[int], spacing: Sequence[float], layers: int) -> Triple:
    """The patch rounded to the nearest one that its own levels halve evenly."""
    for _ in range(8):
        steps = topology(patch, spacing, layers).multiples
        found = tuple(max(step, round(side / step) * step) for side, step in zip(patch, steps, strict=True))
        if found == tuple(patch):
            break
        patch = found
    return patch[0], patch[1], patch[2]
