"""How a training volume is changed: the published steps, their order, their probabilities; and batches of them.

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

from unet.data.loading.crops import Batch, EpochCases, Volumes
from unet.data.loading.sampling import generator as generator_of
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
    """A cube after one step alone, whatever its probability, back at its size but not rescaled: what a viewer shows.
    Values may leave the scale."""
    return resize(step.function(volume, generator, low), volume.shape[-1])


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """`augment` with its settings, for a loader's processes: `pipeline(volume, generator)`."""

    low: float = -1.0
    steps: tuple[Step, ...] = STEPS

    def __call__(self, volume: Tensor, generator: torch.Generator) -> Tensor:
        return augment(volume, generator, self.low, self.steps)


class EpochVolumes(EpochCases):
    """Map-style data set whose item (epoch, batch) is a whole batch: {"image" (N, 1, r, r, r) float32, "index" (N,),
    "noise_key" (N,)}, and with `kl_warmup` "kl_weight" (N,), which rises from 0 to 1 over so many epochs.

    The key is that of the latents' noise, another one for each batch and process.
    `pipeline` changes a volume (1, r, r, r); None hands volumes out as they are cached. An epoch takes every case once.
    Each sample is changed by a generator of its own: batch `i` of epoch `e` depends on (seed, e, i, rank) alone. Raises
    DataError where the set does not fill one batch on each process.
    """

    def __init__(
        self,
        volumes: Volumes,
        batch_size: int,
        seed: int,
        pipeline: Pipeline | None = None,
        shard: tuple[int, int] = (0, 1),
        kl_warmup: int = 0,
    ) -> None:
        super().__init__(volumes, batch_size, seed, shard)
        self.pipeline, self.kl_warmup = pipeline, kl_warmup

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        import torch

        index = self.drawn(*key)
        images = [self._sample(int(case), *key, place) for place, case in enumerate(index)]
        noise = generator_of(self.seed, *key, self.shard[0], self.batch_size).initial_seed()
        batch = {"image": torch.stack(images), "index": index, "noise_key": torch.full((len(index),), noise)}
        if self.kl_warmup:
            epoch, number = key
            done = (epoch - 1 + number / self.batches) / self.kl_warmup
            batch["kl_weight"] = torch.full((len(index),), min(1.0, done))
        return batch

    def _sample(self, case: int, epoch: int, number: int, place: int) -> Tensor:
        _, *sides = self.volumes.cases[case].shape
        image, _ = self.volumes.crop(case, tuple((0, side) for side in sides), (False, False, False))
        if self.pipeline is None:
            return image
        return self.pipeline(image, generator_of(self.seed, epoch, number + 1, self.shard[0], place))
