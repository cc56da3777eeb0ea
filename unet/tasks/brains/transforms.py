"""Random changes of a training volume, in the order of 3d_very_deep_vae, which takes them from MONAI and TorchIO.

Each takes a cube (D, H, W), float32, its own generator on the CPU, and the dark end of the scale (-1, or 0): it gives a
new cube, on the same device. The cubes come from the cache, resized and normalised; the last two steps, crop and
rescaling, bring them back to that. Other than in the reference, all axes are turned, sheared, moved and scaled alike,
lengths in voxels are meant at 128^3 and scaled with the side, and the bias field leaves the background dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.data.loading.sampling import below
from unet.tasks.brains import kspace

RARE = 0.1
PERCENTILES = 0.0005, 0.9995
SIDE = 128  # for which lengths in voxels are given
Transform = Callable[[Tensor, torch.Generator, float], Tensor]


class Step(NamedTuple):
    """One step of the pipeline; `probability` 1: always."""

    name: str
    probability: float
    transform: Transform


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number between two bounds."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def whole(generator: torch.Generator, low: int, high: int) -> int:
    """A whole number from `low` to `high`, both included."""
    return low + below(high - low + 1, generator)


def resized(cube: Tensor, sides: tuple[int, ...]) -> Tensor:
    """By area: each voxel is the mean of those that it covers."""
    return F.adaptive_avg_pool3d(cube[None], (sides[0], sides[1], sides[2]))[0]


def shrink(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """One axis shrunk to 0.8 to 0.95 of its length and back, both by area: less detail along it."""
    axis, factor = below(3, generator), uniform(generator, 0.8, 0.95)
    sides = list(cube.shape)
    sides[axis] = max(1, int(factor * sides[axis]))
    return resized(resized(cube, tuple(sides)), tuple(cube.shape))


def darken_ends(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """The first and last one or two planes of one axis become background."""
    axis, planes = below(3, generator), whole(generator, 1, 2)
    result = cube.clone()
    result.narrow(axis, 0, planes).fill_(low)
    result.narrow(axis, cube.shape[axis] - planes, planes).fill_(low)
    return result


def percentiles(cube: Tensor) -> tuple[Tensor, Tensor]:
    """The percentiles 0.05 and 99.95, interpolated between the values beside them."""
    values, found = cube.flatten(), []
    for share, largest in zip((PERCENTILES[0], 1 - PERCENTILES[1]), (False, True), strict=True):
        place = share * (len(values) - 1)
        ends = torch.topk(values, min(len(values), int(place) + 2), largest=largest).values
        first, second = ends[int(place)], ends[min(len(ends) - 1, int(place) + 1)]
        found.append(first + (place - int(place)) * (second - first))
    return found[0], found[1]


def clamp(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Cut off at the percentiles 0.05 and 99.95, and scaled to [low, 1]."""
    first, last = percentiles(cube)
    return rescale(cube.clamp(first, last), generator, low)


def rescale(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Scaled so that its values go from `low` to 1; a cube of one value becomes `low`."""
    first, last = cube.aminmax()
    span = last - first
    return low + (1 - low) * (cube - first) / torch.where(span > 0, span, torch.ones_like(span))


def histogram_shift(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Intensities along a rising broken line through 10 to 15 points: each inner point moves between its neighbours,
    the ends stay (MONAI, RandHistogramShift)."""
    count = whole(generator, 10, 15)
    points = [number / (count - 1) for number in range(count)]
    moved = list(points)
    for number in range(1, count - 1):
        moved[number] = uniform(generator, moved[number - 1], moved[number + 1])
    first, last = cube.aminmax()
    span = torch.where(last > first, last - first, torch.ones_like(last))
    place = (cube - first) / span * (count - 1)
    cell = place.floor().clamp(0, count - 2).long()
    line = torch.tensor(moved, dtype=cube.dtype).to(cube.device)
    return first + span * torch.lerp(line[cell], line[cell + 1], place - cell)


def brightness(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Times 0.95 to 1.05."""
    return cube * uniform(generator, 0.95, 1.05)


def blur(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Gaussian blur of 0.1 to 0.5 voxels along each axis, drawn for each."""
    return smoothed(cube[None], [uniform(generator, 0.1, 0.5) for _ in range(3)])[0]


def smoothed(volumes: Tensor, sigmas: list[float]) -> Tensor:
    """Volumes (C, D, H, W) smoothed along each axis, out to four standard deviations; the outermost voxels go on beyond
    the edge."""
    for axis, sigma in enumerate(sigmas, 1):
        radius = max(1, math.ceil(4 * sigma))
        place = torch.arange(-radius, radius + 1, dtype=volumes.dtype)
        kernel = torch.exp(-0.5 * (place / sigma) ** 2)
        shape = [1, 1, 1, 1, 1]
        shape[axis + 1] = -1
        pads = [0] * 6
        pads[2 * (3 - axis)] = pads[2 * (3 - axis) + 1] = radius
        padded = F.pad(volumes[:, None], pads, mode="replicate")
        volumes = F.conv3d(padded, (kernel / kernel.sum()).reshape(shape).to(volumes.device))[:, 0]
    return volumes


def noise(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Plus Gaussian noise of standard deviation 0.01 to 0.3."""
    sigma = uniform(generator, 0.01, 0.3)
    return cube + sigma * torch.randn(cube.shape, generator=generator).to(cube.device)


def bias_field(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Times the exponential of a polynomial of third order over the volume, with coefficients of -0.5 to 0.5 (TorchIO,
    RandomBiasField), seen from the background, which stays dark."""
    axes = [torch.linspace(-1, 1, side, dtype=cube.dtype).to(cube.device) for side in cube.shape]
    field = torch.zeros_like(cube)
    for a in range(4):
        for b in range(4 - a):
            for c in range(4 - a - b):
                coefficient = uniform(generator, -0.5, 0.5)
                field += coefficient * (axes[0] ** a)[:, None, None] * (axes[1] ** b)[:, None] * axes[2] ** c
    return low + (cube - low) * field.exp()


def ghosting(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """4 to 10 ghosts of strength 0.5 to 1 along one axis (see `kspace.ghosts`)."""
    axis, count = below(3, generator), whole(generator, 4, 10)
    return low + kspace.ghosts(cube - low, axis, count, uniform(generator, 0.5, 1))


def motion(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """One move of up to 10 degrees and 10 voxels in the middle of the scan (see `kspace.joined`)."""
    turns = [uniform(generator, -10, 10) for _ in range(3)]
    shifts = [uniform(generator, -10, 10) * cube.shape[0] / SIDE for _ in range(3)]
    when = uniform(generator, 0, 1)
    return low + kspace.joined(cube - low, moved(cube, turns, shifts) - low, 0, when)


def spike(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """A wave over the whole volume of 1 to 2 times the strength of its mean (see `kspace.spike`)."""
    strength = uniform(generator, 1, 2)
    place = [below(side, generator) for side in cube.shape]
    return low + kspace.spike(cube - low, place, strength)


def affine(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Turned by up to 5 degrees about each axis, sheared by up to 0.0873, moved by up to 10 voxels, scaled by 0.9 to
    1.1 along each."""
    turns = [uniform(generator, -5, 5) for _ in range(3)]
    shears = [uniform(generator, -0.0873, 0.0873) for _ in range(6)]
    shifts = [uniform(generator, -10, 10) * cube.shape[0] / SIDE for _ in range(3)]
    scales = [uniform(generator, 0.9, 1.1) for _ in range(3)]
    return moved(cube, turns, shifts, shears, scales)


def moved(
    cube: Tensor,
    turns: list[float],
    shifts: list[float],
    shears: list[float] | None = None,
    scales: list[float] | None = None,
) -> Tensor:
    """A cube turned (degrees about each axis), sheared, scaled about its centre, and moved (voxels): linear
    interpolation, its outermost voxels go on beyond the edge."""
    matrix = torch.eye(3, dtype=torch.float64)
    for axis, degrees in enumerate(turns):
        a, b = [other for other in range(3) if other != axis]
        turn = torch.eye(3, dtype=torch.float64)
        turn[a, a] = turn[b, b] = math.cos(math.radians(degrees))
        turn[a, b], turn[b, a] = -math.sin(math.radians(degrees)), math.sin(math.radians(degrees))
        matrix = matrix @ turn
    if shears:
        shear = torch.eye(3, dtype=torch.float64)
        shear[[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]] = torch.tensor(shears, dtype=torch.float64)
        matrix = matrix @ shear
    if scales:
        matrix = matrix @ torch.diag(torch.tensor(scales, dtype=torch.float64))
    sides = torch.tensor(cube.shape, dtype=torch.float64)
    own = matrix * sides / sides[:, None]  # in half sides, as grid_sample has them, and x first
    move = 2 * torch.tensor(shifts, dtype=torch.float64) / sides
    theta = torch.cat((own.flip(0, 1), move.flip(0)[:, None]), 1)[None].float()
    grid = F.affine_grid(theta.to(cube.device), [1, 1, *cube.shape], align_corners=False)
    return F.grid_sample(cube[None, None], grid, padding_mode="border", align_corners=False)[0, 0]


def crop(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """A part of int(0.95 x side) voxels along each axis, anywhere."""
    for axis, side in enumerate(cube.shape):
        kept = max(1, int(0.95 * side))
        cube = cube.narrow(axis, below(side - kept + 1, generator), kept)
    return cube


def elastic(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """Each voxel moved by up to 3 to 5 voxels, smoothed over 1 to 3 (MONAI, Rand3DElastic)."""
    sigma, magnitude = uniform(generator, 1, 3), uniform(generator, 3, 5) * max(cube.shape) / SIDE
    field = 2 * torch.rand(3, *cube.shape, generator=generator).to(cube.device) - 1
    field = magnitude * smoothed(field, [sigma] * 3)
    sides = torch.tensor(cube.shape, dtype=cube.dtype).to(cube.device)
    theta = torch.eye(3, 4)[None].to(cube.device)
    grid = F.affine_grid(theta, [1, 1, *cube.shape], align_corners=False)
    moves = (2 * field / sides[:, None, None, None]).flip(0).movedim(0, -1)
    return F.grid_sample(cube[None, None], grid + moves, padding_mode="border", align_corners=False)[0, 0]


STEPS: tuple[Step, ...] = (
    Step("shrink one axis", RARE, shrink),
    Step("dark ends", RARE, darken_ends),
    Step("clamp", 1, clamp),
    Step("histogram shift", RARE, histogram_shift),
    Step("brightness", RARE, brightness),
    Step("blur", RARE, blur),
    Step("noise", RARE, noise),
    Step("ghosting", RARE, ghosting),
    Step("bias field", RARE, bias_field),
    Step("motion", RARE, motion),
    Step("spike", RARE, spike),
    Step("affine", RARE, affine),
    Step("crop", 1, crop),
    Step("elastic", RARE, elastic),
)


def augment(cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """A cube through the whole pipeline, (D, H, W) -> (D, H, W), its values from `low` to 1."""
    sides = tuple(cube.shape)
    for step in STEPS:
        if step.probability >= 1 or uniform(generator, 0, 1) < step.probability:
            cube = step.transform(cube, generator, low)
    return rescale(resized(cube, sides), generator, low)


def alone(step: Step, cube: Tensor, generator: torch.Generator, low: float) -> Tensor:
    """A cube after one step, and the rescaling that ends the pipeline: for pictures."""
    return rescale(resized(step.transform(cube, generator, low), tuple(cube.shape)), generator, low)
