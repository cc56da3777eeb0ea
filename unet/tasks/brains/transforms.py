"""How a training volume is changed: the published steps, their order, their probabilities.

The pipeline starts from the cached cube, which is resampled, cut at its percentiles and normalised already: the first
resize and normalisation of the published pipeline are the cache's. Differences: intensities count from the background;
the affine acts on all axes; lengths in voxels are meant for 128 voxels a side. Source: the training pipeline of the 3D
very deep VAE (its section of the documents lists it).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from unet.data.transforms.geometry import AT, affine, crop, elastic, resize, shrink_axis, zero_ends
from unet.data.transforms.intensity import bias_field, blur, clamp, histogram_shift, noise, rescale, scale_intensity
from unet.data.transforms.kspace import ghosting, motion, spike

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RARE, ALWAYS = 0.1, 1.0
SHARE = 0.95  # of a side that the crop keeps


class Step(NamedTuple):
    """A transform `function(volume, generator, low)`, its name in words, and how often it is done."""

    name: str
    function: Callable[[Tensor, torch.Generator, float], Tensor]
    probability: float = RARE


def clamped(volume: Tensor, generator: torch.Generator, low: float = -1.0) -> Tensor:
    """Percentiles 0.05 and 99.95 to the ends of the scale. Nothing is drawn."""
    return clamp(volume, low)


STEPS = (
    Step("one axis coarser", shrink_axis),
    Step("empty ends", zero_ends),
    Step("percentiles", clamped, ALWAYS),
    Step("histogram shift", histogram_shift),
    Step("intensity factor", scale_intensity),
    Step("blur", blur),
    Step("noise", noise),
    Step("ghosting", ghosting),
    Step("bias field", bias_field),
    Step("motion", motion),
    Step("spike", spike),
    Step("affine", affine),
    Step("crop", functools.partial(crop, share=SHARE), ALWAYS),
    Step("elastic", functools.partial(elastic, at=SHARE * AT)),  # it sees what the crop has left
)


def augment(volume: Tensor, generator: torch.Generator, low: float = -1.0, steps: tuple[Step, ...] = STEPS) -> Tensor:
    """A cube (1, r, r, r) of values from `low` to 1 -> a changed one: each step with its probability, then resized to r
    by area and rescaled to the whole scale.

    Two draws for each step at least, in the order of `steps`, all from `generator`; the volume given is not written to.
    """
    import torch

    side = volume.shape[-1]
    for step in steps:
        if float(torch.rand((), generator=generator)) < step.probability:
            volume = step.function(volume, generator, low)
    return rescale(resize(volume, side), low)


def alone(step: Step, volume: Tensor, generator: torch.Generator, low: float = -1.0) -> Tensor:
    """A cube after one step alone, whatever its probability, back at its size and on the scale: what a viewer shows."""
    return rescale(resize(step.function(volume, generator, low), volume.shape[-1]), low)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """`augment` with its settings, for a loader's processes: `pipeline(volume, generator)`."""

    low: float = -1.0
    steps: tuple[Step, ...] = STEPS

    def __call__(self, volume: Tensor, generator: torch.Generator) -> Tensor:
        return augment(volume, generator, self.low, self.steps)
