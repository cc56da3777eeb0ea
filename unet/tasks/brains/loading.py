"""Batches of whole volumes: each training case once an epoch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet.data.loading.crops import Volumes
from unet.data.loading.sampling import generator
from unet.errors import DataError
from unet.tasks.brains.transforms import augment

Batch = dict[str, Tensor]


class EpochVolumes(Dataset[Batch]):
    """Map-style data set whose item (epoch, batch) is a whole batch: {"image" (N, 1, D, H, W) float32, "index" (N,)},
    and with `kl_warmup` "kl_weight" (N,), which rises from 0 to 1 over so many epochs.

    An epoch has every case once, in an order drawn anew; its last short batch is dropped. `low`: the dark end of the
    scale, with which volumes are augmented; None: they are not. A batch depends on (seed, epoch, batch, rank) alone.
    Raises DataError where the set does not fill one batch.
    """

    def __init__(
        self,
        volumes: Volumes,
        batch_size: int,
        seed: int,
        low: float | None = None,
        shard: tuple[int, int] = (0, 1),
        kl_warmup: int = 0,
    ) -> None:
        self.volumes, self.batch_size, self.seed, self.low = volumes, batch_size, seed, low
        self.shard, self.kl_warmup = shard, kl_warmup
        count, (_, world) = len(volumes.cases), shard
        self.batches = count // (batch_size * world)
        if not self.batches:
            several = f" on each of {world} processes" if world > 1 else ""
            raise DataError(
                f"A batch of {batch_size}{several} is larger than the training set of {count} volumes.",
                f"Type --batch-size {max(1, count // world)} or less{' on fewer processes' if world > count else ''}.",
            )

    def __len__(self) -> int:
        return self.batches

    def name(self, index: int) -> str:
        return self.volumes.cases[index].id

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, number = key
        rank, world = self.shard
        order = torch.randperm(len(self.volumes.cases), generator=generator(self.seed, epoch))
        first = (number * world + rank) * self.batch_size
        index = order[first : first + self.batch_size]
        batch = {"image": torch.stack([self._volume(int(case), epoch) for case in index])[:, None], "index": index}
        if self.kl_warmup:
            done = (epoch - 1 + number / self.batches) / self.kl_warmup
            batch["kl_weight"] = torch.full((self.batch_size,), min(1.0, done))
        return batch

    def _volume(self, case: int, epoch: int) -> Tensor:
        """A case (D, H, W), augmented by draws of its own: the same whichever rank or worker makes it."""
        shape = self.volumes.cases[case].shape[1:]
        image, _ = self.volumes.crop(case, tuple((0, side) for side in shape), ())
        return image[0] if self.low is None else augment(image[0], generator(self.seed, epoch, case + 1), self.low)
