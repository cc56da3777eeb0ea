"""Which changes the patches of a training batch get: how often, how strong, and what was drawn for one patch.

Ranges and probabilities are those of nnU-Net v2 (`nnUNetTrainer`, batchgeneratorsv2). Differences: a patch that is
turned in a plane whose sides differ by more than half turns by 15 degrees in 3D too; turns know the spacing, where it
is given; a Gaussian's weights are its integrals over the voxels.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch

from unet.data.transforms.geometry import rotation
from unet.data.transforms.intensity import Range

THIN = 3.0  # a patch whose longest side is more than so many times its shortest changes in the plane of the others only
OBLONG = 1.5  # sides of a plane that differ by more turn by SLIGHT degrees
FULL, SPATIAL, SLIGHT = 180.0, 30.0, 15.0  # largest turns in degrees: in a plane, in space, in an oblong plane
CHANNEL = 10  # numbers drawn for a channel
NAMES = ("mirror", "rotate", "scale", "noise", "blur", "brightness", "contrast", "coarse", "gamma_inverted", "gamma")
NEVER: dict[str, Any] = dict.fromkeys(NAMES, 0.0)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How patches are changed, in this order. Each of `NAMES` is the probability of a change, for each patch, and
    `<name>_range` how strong it is.

    `mirror`: of each of `axes` (0 D, 1 H, 2 W). `rotate`: by up to `angle` degrees; None chooses by the patch: 180 in a
    plane (15 where its sides differ by more than half), 30 about each axis in space. `scale`: 1.4 makes objects
    smaller, one factor for all axes. `noise`: standard deviation. `blur`: of a Gaussian in voxels, for each channel
    with probability `blur_channel` and for each axis. `brightness`: factor. `contrast`: factor about the mean, cut at
    least and largest value. `coarse`: every n-th voxel kept and the others interpolated; the range is the share of
    voxels kept along an axis, for each channel with probability `coarse_channel`. `gamma`: exponent, half of the draws
    below 1; of the image upside down where inverted; mean and deviation stay. Factors and exponents are drawn for each
    channel.

    `still`: the axis along which nothing turns, scales or gets coarser; None: the shortest of a thin patch, -1: none.
    `spacing`: of the voxels, for turns.
    """

    mirror: float = 0.5
    axes: tuple[int, ...] = (0, 1, 2)
    rotate: float = 0.2
    angle: float | None = None
    scale: float = 0.2
    scale_range: Range = (0.7, 1.4)
    noise: float = 0.1
    noise_range: Range = (0.0, 0.1)
    blur: float = 0.2
    blur_range: Range = (0.5, 1.0)
    blur_channel: float = 0.5
    brightness: float = 0.15
    brightness_range: Range = (0.75, 1.25)
    contrast: float = 0.15
    contrast_range: Range = (0.75, 1.25)
    coarse: float = 0.25
    coarse_range: Range = (0.5, 1.0)
    coarse_channel: float = 0.5
    gamma_inverted: float = 0.1
    gamma: float = 0.3
    gamma_range: Range = (0.7, 1.5)
    still: int | None = None
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)

    @classmethod
    def off(cls) -> Augmentation:
        """Patches as they are."""
        return dataclasses.replace(cls(), **NEVER)

    def alone(self, name: str) -> Augmentation:
        """One change of `NAMES`, always, in every channel; its range stays."""
        return dataclasses.replace(self, **NEVER | {name: 1.0, "blur_channel": 1.0, "coarse_channel": 1.0})

    def still_axis(self, patch: Sequence[int]) -> int | None:
        """The axis of a patch that does not turn. Of a 2D patch, (1, H, W), the first."""
        shortest = min(range(3), key=lambda axis: patch[axis])
        if patch[shortest] == 1 or (self.still is None and max(patch) > THIN * patch[shortest]):
            return shortest
        return None if self.still in (None, -1) else self.still

    def largest_angle(self, patch: Sequence[int]) -> float:
        """The largest turn of a patch, in degrees."""
        if self.angle is not None:
            return self.angle
        still = self.still_axis(patch)
        if still is None:
            return SPATIAL
        plane = [side for axis, side in enumerate(patch) if axis != still]
        return SLIGHT if max(plane) > OBLONG * min(plane) else FULL

    def region(self, patch: Sequence[int]) -> tuple[int, ...]:
        """The voxels about a patch that it may be sampled from when it is turned or scaled: one size for all.

        It holds any patch that is scaled or turned about one axis, and most that are both. What is beyond counts as
        outside of the volume.
        """
        still, sides = self.still_axis(patch), [float(side) for side in patch]
        largest = max(1.0, *self.scale_range) if self.scale else 1.0
        steps = range(round(min(90.0, self.largest_angle(patch))) + 1) if self.rotate else range(1)
        for axis, degrees in itertools.product(range(3), steps):
            if still in (None, axis):
                turns = [0.0, 0.0, 0.0]
                turns[axis] = math.radians(degrees)
                reached = self._matrix(turns, 1.0, still)
                for row in range(3):
                    needed = sum(abs(share) * side for share, side in zip(reached[row], patch, strict=True))
                    sides[row] = max(sides[row], needed)
        result = []
        for axis, (side, length) in enumerate(zip(sides, patch, strict=True)):
            whole = length if axis == still else math.ceil(max(side * math.sqrt(largest), length * largest) - 1e-6)
            result.append(whole + (whole - length) % 2)  # both have the same centre
        return tuple(result)

    def draw(self, patch: Sequence[int], channels: int, draws: torch.Generator) -> Drawn:
        """Draw the changes of one patch: always the same number of draws."""
        numbers = torch.rand(20 + CHANNEL * channels, generator=draws, dtype=torch.float64).tolist()
        seed = int(torch.randint(2**62, (), generator=draws))
        u = iter(numbers)
        chance = {name: next(u) < getattr(self, name) for name in NAMES if name != "mirror"}
        flips = [next(u) < self.mirror and axis in self.axes for axis in range(3)]
        angles = [math.radians(self.largest_angle(patch) * (2 * next(u) - 1)) for _ in range(3)]
        scale, sigma = between(self.scale_range, next(u)), between(self.noise_range, next(u))
        still = self.still_axis(patch)
        turns = [angle if chance["rotate"] and still in (None, axis) else 0.0 for axis, angle in enumerate(angles)]
        each = [[next(u) for _ in range(CHANNEL)] for _ in range(channels)]

        def factors(name: str, place: int) -> tuple[float, ...] | None:
            return tuple(between(getattr(self, f"{name}_range"), own[place]) for own in each) if chance[name] else None

        def exponents(name: str, place: int) -> tuple[float, ...] | None:
            return tuple(about_one(self.gamma_range, own[place]) for own in each) if chance[name] else None

        return Drawn(
            flips=tuple(flips),
            matrix=self._matrix(turns, scale if chance["scale"] else 1.0, still)
            if chance["rotate"] or chance["scale"]
            else None,
            still=still,
            noise=sigma if chance["noise"] else None,
            noise_seed=seed,
            blur=tuple(self._blur(own, patch) if chance["blur"] else None for own in each),
            brightness=factors("brightness", 4),
            contrast=factors("contrast", 5),
            coarse=tuple(
                between(self.coarse_range, own[7]) if chance["coarse"] and own[6] < self.coarse_channel else None
                for own in each
            ),
            gamma_inverted=exponents("gamma_inverted", 8),
            gamma=exponents("gamma", 9),
        )

    def _blur(self, own: Sequence[float], patch: Sequence[int]) -> tuple[float, ...] | None:
        """The deviations along the axes; nothing is to be smoothed along an axis of one voxel."""
        drawn = (between(self.blur_range, u) if side > 1 else 0.0 for u, side in zip(own[1:4], patch, strict=True))
        return tuple(drawn) if own[0] < self.blur_channel else None

    def _matrix(self, turns: Sequence[float], scale: float, still: int | None) -> tuple[tuple[float, ...], ...]:
        """Where the voxels of a patch lie in its region, both counted from the centre: turned by radians about the
        axes, in millimetres, then scaled."""
        size = torch.tensor(self.spacing, dtype=torch.float64)
        matrix = rotation(turns) * size / size[:, None] * scale
        if still is not None:
            matrix[still, still] = 1.0
        return tuple(tuple(row) for row in matrix.tolist())


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What was drawn for one patch: None where its coin said no. `flips` by axis; `matrix` (3, 3) of the turn and
    scale, row by row; the others a number for each channel, `blur` one for each axis of each channel."""

    flips: tuple[bool, ...] = (False, False, False)
    matrix: tuple[tuple[float, ...], ...] | None = None
    still: int | None = None
    noise: float | None = None
    noise_seed: int = 0
    blur: tuple[tuple[float, ...] | None, ...] = ()
    brightness: tuple[float, ...] | None = None
    contrast: tuple[float, ...] | None = None
    coarse: tuple[float | None, ...] = ()
    gamma_inverted: tuple[float, ...] | None = None
    gamma: tuple[float, ...] | None = None


def between(bounds: Range, share: float) -> float:
    """The place of `share` (0 to 1) in a range."""
    return bounds[0] + (bounds[1] - bounds[0]) * share


def about_one(bounds: Range, share: float) -> float:
    """Half of the shares go below 1, half above, where the range has both."""
    low, high = bounds
    if not low < 1 < high:
        return between(bounds, share)
    return between((low, 1.0), 2 * share) if share < 0.5 else between((1.0, high), 2 * share - 1)
