"""Random changes of a batch: one form for CPU tensors and for a device; every random number from an explicit CPU
generator.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Change:
    """How crops of volumes are changed: mirrored along each axis, brighter, noisier; ranges and probabilities.

    Source: MLPerf Training U-Net3D reference (brightness 1.7 to 2.3, sigma 0 to 0.1); the fast submissions use 0.7 to
    1.3 and 0.1.
    """

    brightness: tuple[float, ...] = (1.7, 2.3)
    noise: tuple[float, ...] = (0.0, 0.1)
    flip: float = 1 / 3
    rare: float = 0.1


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn for one crop."""

    flips: tuple[bool, ...] = (False, False, False)
    factor: float | None = None
    sigma: float | None = None
    noise_seed: int = 0


def changes(how: Change | None, draws: torch.Generator) -> Drawn:
    """Draw the changes of one crop; none where `how` is None."""
    if how is None:
        return Drawn()
    u = torch.rand(7, generator=draws, dtype=torch.float64).tolist()
    seed = int(torch.randint(2**62, (), generator=draws))
    (dim, bright), (calm, loud) = how.brightness, how.noise
    return Drawn(
        flips=tuple(item < how.flip for item in u[:3]),
        factor=dim + (bright - dim) * u[4] if u[3] < how.rare else None,
        sigma=calm + (loud - calm) * u[6] if u[5] < how.rare else None,
        noise_seed=seed,
    )


def finish(image: Tensor, drawn: Drawn) -> Tensor:
    """Brightness, then noise, in place, on the device that holds the crop (its noise is drawn there)."""
    if drawn.factor is not None:
        image *= drawn.factor
    if drawn.sigma is not None:
        source = torch.Generator(image.device).manual_seed(drawn.noise_seed)
        image += torch.randn(image.shape, generator=source, device=image.device, dtype=image.dtype) * drawn.sigma
    return image
