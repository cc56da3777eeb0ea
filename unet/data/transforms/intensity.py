"""Random changes of the grey values of a volume (C, D, H, W), on the CPU or on a device, drawn from a CPU generator.

`low` is the value of the background and the least of the scale, whose largest is 1: [-1, 1], or [0, 1]. Strengths are
meant for [-1, 1]; on another scale they shrink with it, so that the picture is the same. Factors act on what a voxel
has above the background, which they leave as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Range = tuple[float, float]
TAPS = 2  # voxels on each side that a Gaussian of half a voxel reaches: four standard deviations


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One draw from U(low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def below(bound: int, generator: torch.Generator) -> int:
    """A whole number from 0 to bound - 1."""
    return int(torch.randint(bound, (), generator=generator))


def rescale(volume: Tensor, low: float = -1.0) -> Tensor:
    """Map the least value to `low` and the largest to 1, linearly. A constant volume becomes background."""
    least, most = torch.aminmax(volume)
    spread = most - least
    share = (volume - least) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return share * (1 - low) + low


def clamp(volume: Tensor, low: float = -1.0, share: float = 0.0005) -> Tensor:
    """Cut at the percentiles 100·share and 100·(1 - share), 0.05 and 99.95, then `rescale`. Nothing is drawn.

    A percentile between two voxels is interpolated, as NumPy does. Source: the 3D very deep VAE's preprocessing.
    """
    flat = volume.reshape(-1)
    place = share * (flat.numel() - 1)
    number = int(place)
    part = place - number
    kept = min(number + 2, flat.numel())
    first, second = min(number, kept - 1), min(number + 1, kept - 1)
    ends = []
    for largest in (False, True):
        sorted_end = torch.topk(flat, kept, largest=largest).values
        ends.append(sorted_end[first] + part * (sorted_end[second] - sorted_end[first]))
    return rescale(torch.minimum(torch.maximum(volume, ends[0]), ends[1]), low)


def histogram_shift(
    volume: Tensor, generator: torch.Generator, low: float = -1.0, points: tuple[int, int] = (10, 15)
) -> Tensor:
    """Send grey values through a random piecewise-linear map that never falls, with 10 to 15 control points at equal
    distances.

    Least and largest value stay; each inner point moves to somewhere between its neighbours, of which the lower one has
    moved already. The order of grey values stays, so does the background where it is the least value. Source: the
    histogram shift of MONAI 0.7.
    """
    count = points[0] + below(points[1] - points[0] + 1, generator)
    heights = [at / (count - 1) for at in range(count)]
    for at in range(1, count - 1):
        heights[at] = uniform(generator, heights[at - 1], heights[at + 1])
    least, most = torch.aminmax(volume)
    spread = most - least
    share = (volume - least) / torch.where(spread > 0, spread, torch.ones_like(spread)) * (count - 1)
    left = share.floor().clamp(0, count - 2)
    table = torch.tensor(heights, dtype=volume.dtype).to(volume.device, non_blocking=True)
    number = left.long()
    start = table[number]
    return least + spread * (start + (share - left) * (table[1:][number] - start))


def scale_intensity(volume: Tensor, generator: torch.Generator, low: float = -1.0, strength: float = 0.05) -> Tensor:
    """Multiply by 1 + U(-strength, strength), counted from the background, which stays.

    The last `rescale` of a pipeline undoes it, unless something is added in between. Source: the 3D very deep VAE's
    training pipeline, which multiplies the value itself and so moves the background too.
    """
    return (volume - low) * (1 + uniform(generator, -strength, strength)) + low


def gaussian(deviation: float, reach: int) -> list[float]:
    """Weights of the voxels -reach ... reach: the Gaussian's integral over each voxel, of sum 1."""
    if deviation <= 0:
        return [0.0] * reach + [1.0] + [0.0] * reach
    edges = [math.erf((at - 0.5) / (deviation * math.sqrt(2))) for at in range(-reach, reach + 2)]
    weights = [high - before for before, high in itertools.pairwise(edges)]
    return [weight / sum(weights) for weight in weights]


def smoothed(volume: Tensor, deviations: Sequence[float], reach: int) -> Tensor:
    """Gaussian filter of (C, D, H, W) with a deviation in voxels for each axis, cut off `reach` voxels away; beyond the
    border the border's value goes on."""
    return weighted(volume, [gaussian(deviation, reach) for deviation in deviations])


def weighted(volume: Tensor, rows: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel of (C, D, H, W) as the weighted sum of its neighbours along one axis after the other: a row of weights
    for each axis, of odd length, the middle one for the voxel itself. An axis whose row is 0 ... 1 ... 0 stays; beyond
    the border the border's value goes on. The weights go to the device as a tensor."""
    sent = torch.tensor(rows, dtype=volume.dtype).to(volume.device, non_blocking=True)
    for axis, weights in enumerate(rows, 1):
        reach, side = len(weights) // 2, volume.shape[axis]
        if weights[reach] == 1:
            continue
        pad = [0, 0] * (3 - axis) + [reach, reach] + [0, 0] * (axis - 1)
        wide = F.pad(volume[None], pad, mode="replicate")[0]
        volume = wide.narrow(axis, reach, side) * sent[axis - 1, reach]
        for number, weight in enumerate(weights):
            if number != reach and weight > 0:
                volume.addcmul_(wide.narrow(axis, number, side), sent[axis - 1, number])
    return volume


def blur(volume: Tensor, generator: torch.Generator, low: float = -1.0, deviation: Range = (0.1, 0.5)) -> Tensor:
    """Gaussian filter, deviation U(0.1, 0.5) voxels, drawn for each axis on its own. The range of values does not grow.

    Source: the random Gaussian smoothing of MONAI 0.7; beyond the border the border's value goes on, where MONAI takes
    zero.
    """
    return smoothed(volume, [uniform(generator, *deviation) for _ in range(3)], TAPS)


def noise(volume: Tensor, generator: torch.Generator, low: float = -1.0, deviation: Range = (0.01, 0.3)) -> Tensor:
    """Add Gaussian noise of mean 0, its deviation U(0.01, 0.3) on the scale [-1, 1], to every voxel and so to the
    background too. Source: the random noise of TorchIO 0.18."""
    size = uniform(generator, *deviation) * (1 - low) / 2
    return volume + size * torch.randn(volume.shape, generator=generator, dtype=volume.dtype).to(volume.device)


def bias_field(
    volume: Tensor, generator: torch.Generator, low: float = -1.0, coefficient: float = 0.5, order: int = 3
) -> Tensor:
    """Multiply, counted from the background, by exp(p): p is a polynomial of `order` in the three coordinates, each
    from -1 to 1, with coefficients U(-coefficient, coefficient). The background stays.

    Source: the random bias field of TorchIO 0.18 (after van Leemput et al., 1999), which multiplies the value itself.
    """
    powers = torch.arange(order + 1)
    wanted = powers[:, None, None] + powers[None, :, None] + powers[None, None, :] <= order
    drawn = (2 * torch.rand(wanted.shape, generator=generator) - 1) * coefficient
    terms = torch.where(wanted, drawn, torch.zeros_like(drawn)).to(volume.device, volume.dtype)
    for side in volume.shape[1:]:
        line = torch.linspace(-1, 1, side, dtype=volume.dtype, device=volume.device)
        lines = line[:, None] ** powers.to(volume.device)
        terms = torch.tensordot(terms, lines, dims=([0], [1]))  # the axis used up goes, the new one comes last
    return (volume - low) * terms.exp_() + low
