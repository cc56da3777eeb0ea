"""Random changes of the shape of a volume (C, D, H, W), on the CPU or on a device, drawn from a CPU generator.

`low` is the value of the background. Lengths in voxels are meant for a side of `AT` voxels and shrink with the volume.
Source of the ranges: the 3D very deep VAE's training pipeline. Differences: its affine turns, shears, shifts and
stretches the first axis only, and its lengths are not scaled with the volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.data.transforms.intensity import Range, below, smoothed, uniform

AT = 128  # voxels of a side for which lengths in voxels are meant


def resize(volume: Tensor, side: int) -> Tensor:
    """(C, D, H, W) -> (C, side, side, side) by area: each voxel is the mean of those that it covers in part or whole
    (adaptive average pooling). Nothing is drawn."""
    return F.adaptive_avg_pool3d(volume[None], side)[0]


def shrink_axis(volume: Tensor, generator: torch.Generator, low: float = -1.0, factor: Range = (0.8, 0.95)) -> Tensor:
    """Resize one axis to U(0.8, 0.95) of its length and back, both by area: the volume gets coarser along it, content
    and shape stay. The range of values does not grow. Source: the 3D very deep VAE's training pipeline."""
    axis = below(3, generator)
    depth, height, width = volume.shape[1:]
    coarse = [depth, height, width]
    coarse[axis] = max(1, int(coarse[axis] * uniform(generator, *factor)))
    small = F.adaptive_avg_pool3d(volume[None], (coarse[0], coarse[1], coarse[2]))
    return F.adaptive_avg_pool3d(small, (depth, height, width))[0]


def zero_ends(volume: Tensor, generator: torch.Generator, low: float = -1.0, depth: tuple[int, int] = (1, 2)) -> Tensor:
    """Make 1 or 2 planes at both ends of one axis background; all other voxels stay, at least one plane of them.

    Source: the 3D very deep VAE's training pipeline.
    """
    axis = 1 + below(3, generator)
    count = min(depth[0] + below(depth[1] - depth[0] + 1, generator), (volume.shape[axis] - 1) // 2)
    result = volume.clone()
    result.narrow(axis, 0, count).fill_(low)
    result.narrow(axis, volume.shape[axis] - count, count).fill_(low)
    return result


def rotation(turns: Sequence[float]) -> Tensor:
    """(3, 3) float64: turned about the three axes, one after the other, by angles in radians."""
    result = torch.eye(3, dtype=torch.float64)
    for axis, turn in enumerate(turns):
        one, other = (number for number in range(3) if number != axis)
        step = torch.eye(3, dtype=torch.float64)
        step[one, one] = step[other, other] = math.cos(turn)
        step[one, other], step[other, one] = -math.sin(turn), math.sin(turn)
        result = result @ step
    return result


def sampled(volume: Tensor, matrix: Tensor, shifts: Sequence[float]) -> Tensor:
    """The volume read, trilinearly, at `matrix` (3, 3) times the place of each voxel from the centre, plus `shifts` in
    voxels; beyond the border the border's value goes on."""
    half = torch.tensor([side / 2 for side in volume.shape[1:]], dtype=torch.float64)
    theta = torch.cat((matrix * half / half[:, None], (torch.tensor(shifts, dtype=torch.float64) / half)[:, None]), 1)
    theta = theta.flip(0)  # the grid's coordinates come last axis first
    theta = torch.cat((theta[:, :3].flip(1), theta[:, 3:]), 1).to(volume.dtype).to(volume.device)
    grid = F.affine_grid(theta[None], [1, *volume.shape], align_corners=False)
    return F.grid_sample(volume[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def moved(volume: Tensor, turns: Sequence[float], shifts: Sequence[float]) -> Tensor:
    """A rigid move: turned about the three axes through the centre by angles in radians, shifted in voxels."""
    return sampled(volume, rotation(turns), shifts)


def affine(
    volume: Tensor,
    generator: torch.Generator,
    low: float = -1.0,
    turn: float = 5.0,
    shear: float = 0.0873,
    voxels: float = 10.0,
    scale: float = 0.1,
) -> Tensor:
    """Turn by up to ±5 degrees about each axis, shear each axis by each other by up to ±0.0873, shift by up to ±10
    voxels of 128 and stretch by 1 ± 0.1 along each; trilinear, beyond the border the border's value goes on. Shape and
    range of values stay.

    Source: the random affine of MONAI 0.7 and the ranges of the 3D very deep VAE, which has them for the first axis
    only.
    """
    turns = [math.radians(uniform(generator, -turn, turn)) for _ in range(3)]
    shears = torch.eye(3, dtype=torch.float64)
    for row in range(3):
        for column in range(3):
            if row != column:
                shears[row, column] = uniform(generator, -shear, shear)
    shifts = [uniform(generator, -voxels, voxels) / AT * side for side in volume.shape[1:]]
    stretch = torch.tensor([1 + uniform(generator, -scale, scale) for _ in range(3)], dtype=torch.float64)
    return sampled(volume, rotation(turns) @ shears @ torch.diag(stretch), shifts)


def crop(volume: Tensor, generator: torch.Generator, low: float = -1.0, share: float = 0.95) -> Tensor:
    """Cut out int(0.95 side) voxels along each axis (at least 1), anywhere. Shape shrinks; no value changes."""
    for axis, side in enumerate(volume.shape[1:], 1):
        length = max(1, int(share * side))
        volume = volume.narrow(axis, below(side - length + 1, generator), length)
    return volume.contiguous()


def elastic(
    volume: Tensor,
    generator: torch.Generator,
    low: float = -1.0,
    deviation: Range = (1.0, 3.0),
    magnitude: Range = (3.0, 5.0),
    at: float = AT,
) -> Tensor:
    """Move each voxel by noise U(-1, 1) for each axis, smoothed by a Gaussian of U(1, 3) voxels, times U(3, 5) voxels
    (for a side of `at`; as many fewer as the side is smaller). Trilinear, beyond the border the border's value goes on;
    shape and range of values stay.

    The deviation is not scaled: smoothing by less than a voxel smooths nothing. Source: the random 3D elastic
    deformation of MONAI 0.7.
    """
    sides = volume.shape[1:]
    width, size = uniform(generator, *deviation), uniform(generator, *magnitude)
    drawn = (2 * torch.rand(3, *sides, generator=generator, dtype=volume.dtype) - 1).to(volume.device)
    field = smoothed(drawn, [width] * 3, max(1, round(3 * deviation[1])))
    identity = torch.eye(3, 4, dtype=volume.dtype, device=volume.device)[None]
    grid = F.affine_grid(identity, [1, *volume.shape], align_corners=False)
    for axis in range(3):  # a shift of `size / at` of the side, which the grid counts as 2
        grid[..., 2 - axis] += field[axis] * (2 * size / at)
    return F.grid_sample(volume[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]
