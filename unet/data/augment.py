"""Random changes of a batch: one form for CPU tensors and for a device; every random number from an explicit CPU
generator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def affine_with(scale: float, angle: float) -> Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]:
    """`affine` with its ranges set."""
    return functools.partial(affine, scale=scale, angle=angle)


def affine(
    image: Tensor, mask: Tensor, generator: torch.Generator, scale: float, angle: float
) -> tuple[Tensor, Tensor]:
    """Scale U(1-scale, 1+scale), rotate U(-angle, angle) degrees about the centre, flip left-right with p = 0.5.

    Image (N, C, H, W) bilinear, mask (N, 1, H, W) nearest; what comes from outside is 0. One resampling, where the
    published pipeline (brain-segmentation-pytorch) has two.
    """
    count, height, width = len(image), image.shape[-2], image.shape[-1]
    draws = torch.rand(count, 3, generator=generator)
    zoom = 1 + scale * (2 * draws[:, 0] - 1)
    turn = angle * (2 * draws[:, 1] - 1) * (math.pi / 180)
    mirror = torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(turn) / zoom, torch.sin(turn) / zoom
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = cos * mirror, -sin * height / width
    theta[:, 1, 0], theta[:, 1, 1] = sin * mirror * width / height, cos
    grid = F.affine_grid(theta.to(image.device, non_blocking=True), [count, 1, height, width], align_corners=False)
    return (
        F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False),
        F.grid_sample(mask, grid, mode="nearest", padding_mode="zeros", align_corners=False),
    )
