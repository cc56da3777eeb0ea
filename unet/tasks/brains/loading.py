"""Batches of whole cubes: each training case gives its volume, changed or not, once an epoch.

Each sample is changed by a generator of its own, so that neither ranks nor processes nor neighbours in a batch share
draws: batch `i` of epoch `e` depends on (seed, e, i, rank) alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unet.data.loading.crops import Batch, EpochCases, Volumes
from unet.data.loading.sampling import generator

if TYPE_CHECKING:
    from torch import Tensor

    from unet.tasks.brains.transforms import Pipeline


class EpochVolumes(EpochCases):
    """Map-style data set whose item (epoch, batch) is a whole batch: {"image" (N, 1, r, r, r) float32, "index" (N,)}.

    `pipeline` changes a volume (1, r, r, r); None hands volumes out as they are cached. An epoch takes every case once.
    Raises DataError where the set does not fill one batch on each process.
    """

    def __init__(
        self,
        volumes: Volumes,
        batch_size: int,
        seed: int,
        pipeline: Pipeline | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(volumes, batch_size, seed, shard)
        self.pipeline = pipeline

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        import torch

        index = self.drawn(*key)
        images = [self._sample(int(case), *key, place) for place, case in enumerate(index)]
        return {"image": torch.stack(images), "index": index}

    def _sample(self, case: int, epoch: int, number: int, place: int) -> Tensor:
        _, *sides = self.volumes.cases[case].shape
        image, _ = self.volumes.crop(case, tuple((0, side) for side in sides), (False, False, False))
        if self.pipeline is None:
            return image
        return self.pipeline(image, generator(self.seed, epoch, number + 1, self.shard[0], place))
