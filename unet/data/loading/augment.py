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

from unet.data.context import framed


def affine_with(
    scale: float, angle: float, intensity: float = 0.0, missing: float = 0.0
) -> Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]:
    """`affine` with its ranges set."""
    return functools.partial(affine, scale=scale, angle=angle, intensity=intensity, missing=missing)


def affine(
    image: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    scale: float,
    angle: float,
    intensity: float = 0.0,
    missing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Scale U(1-scale, 1+scale), rotate U(-angle, angle) degrees about the centre, flip left-right with p = 0.5; with
    `intensity` every channel x -> a x + b, a of U(1-intensity, 1+intensity), b of U(-intensity, intensity); with
    `missing` `without_sequences` first.

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
    if missing:
        image = without_sequences(image, generator, missing)
    if intensity:
        change = intensity * (2 * torch.rand(2, count, image.shape[1], 1, 1, generator=generator) - 1)
        factor, shift = change.to(image.device, non_blocking=True)
        image = image * (1 + factor) + shift
    grid = F.affine_grid(theta.to(image.device, non_blocking=True), [count, 1, height, width], align_corners=False)
    return (
        F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False),
        F.grid_sample(mask, grid, mode="nearest", padding_mode="zeros", align_corners=False),
    )


def without_sequences(image: Tensor, generator: torch.Generator, missing: float) -> Tensor:
    """Each sequence but FLAIR replaced by FLAIR with probability `missing`, in all slices of a sample at once.

    Image (N, 3 k, H, W): k slices of pre-contrast, FLAIR, post-contrast. The LGG set holds FLAIR itself where a
    patient has no scan of a sequence (Buda et al. 2019).
    """
    count, sequences, flair = len(image), 3, 1
    kept = torch.rand(count, sequences, generator=generator) >= missing
    kept[:, flair] = True
    source = torch.where(kept, torch.arange(sequences), flair)
    slices = torch.arange(0, image.shape[1], sequences)
    channels = (slices[:, None] + source[:, None]).flatten(1)
    return image.gather(1, channels.to(image.device)[:, :, None, None].expand_as(image))


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


def on_host(seed: int) -> torch.Generator:
    """A generator on the host with this seed."""
    return torch.Generator().manual_seed(seed)


def finish(image: Tensor, drawn: Drawn, source: Callable[[int], torch.Generator] = on_host) -> Tensor:
    """Brightness, then noise, in place, on the device that holds the crop. The noise is drawn where the generator of
    `source` is."""
    if drawn.factor is not None:
        image *= drawn.factor
    if drawn.sigma is not None:
        draws = source(drawn.noise_seed)
        noise = torch.randn(image.shape, generator=draws, device=draws.device, dtype=image.dtype)
        image += noise.to(image.device) * drawn.sigma
    return image


@dataclasses.dataclass(frozen=True)
class Frame:
    """A batch of slices with its context around it, changed or not: image (N, 1, S, S), mask (N, 1, S, S) -> image
    (N, 1, S + margin, S + margin) and mask (N, 1, S, S).

    Changed (`crop` or more): mirrored left-right and up-down with p = 0.5, then a box of the framed image, each side
    moved in by U(0, crop), stretched to the whole (bilinear, the mask cut at 0.5), brightness + U(-b, b), cut to [-1,
    1]. One resampling does it all, and a mask is only made where the network answers. Source: NVIDIA's UNet Medical
    (`tf.image.crop_and_resize`, whose corners coincide).
    """

    margin: int
    context: str = "zero"
    crop: float = 0.3
    brightness: float = 0.2
    on: bool = True

    def __call__(self, image: Tensor, mask: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        around = self.margin // 2
        if not self.on:
            return framed(image, around, self.context), mask
        side = image.shape[-1]
        u = torch.rand(len(image), 7, generator=draws)
        y = self._lines(u[:, 0], self.crop * u[:, 1], 1 - self.crop * u[:, 2], side)
        x = self._lines(u[:, 3], self.crop * u[:, 4], 1 - self.crop * u[:, 5], side)
        shift = (self.brightness * (2 * u[:, 6] - 1)).to(image.device, non_blocking=True)
        y, x = y.to(image.device, non_blocking=True), x.to(image.device, non_blocking=True)
        changed = (self._sampled(image, y, x) + shift[:, None, None, None]).clamp(-1, 1)
        inner = slice(around, around + side)
        return changed, (self._sampled(mask, y[:, inner], x[:, inner]) >= 0.5).float()

    def _lines(self, coin: Tensor, low: Tensor, high: Tensor, side: int) -> Tensor:
        """(N, S + margin): where the lines of the result lie in the slice, from -1 (its first) to 1 (its last)."""
        whole = side + self.margin
        along = torch.linspace(0, 1, whole)
        place = (low[:, None] + (high - low)[:, None] * along) * (whole - 1)
        place = torch.where(coin[:, None] < 0.5, whole - 1 - place, place)
        return 2 * (place - self.margin // 2) / (side - 1) - 1

    def _sampled(self, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        count, rows, columns = len(y), y.shape[1], x.shape[1]
        grid = torch.stack((x[:, None].expand(count, rows, columns), y[..., None].expand(count, rows, columns)), -1)
        outside = "zeros" if self.context == "zero" else "reflection"
        return F.grid_sample(image, grid, mode="bilinear", padding_mode=outside, align_corners=True)
