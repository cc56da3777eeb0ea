"""Batches of slices: where the slices lie, which make an epoch, and the loader that hands them out.

Batch `i` of epoch `e` depends on (seed, e, i) alone: the number of workers does not change it, and a stopped run goes
on at any batch without replaying the ones before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet.data.cache.cache import CachedCase
from unet.data.cache.maps import Maps
from unet.data.loading.memory import require_memory
from unet.data.loading.sampling import draw, generator, slice_probabilities
from unet.data.loading.workers import Batch, Key, Pool
from unet.errors import DataError, UnetError


class Slices:
    """The slices of some cases, flat: memory-mapped (`disk`), in memory (`ram`), or where `place` puts them
    (`device`). Each comes with so many `neighbours` on both sides as further channels, the lowest first; at the ends of
    a case its last slice stands for those that are missing.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        where: str = "disk",
        place: Callable[[Tensor], Tensor] | None = None,
        shared: bool = False,
        neighbours: int = 0,
    ) -> None:
        self.cases, self.neighbours = list(cases), neighbours
        self.starts = np.cumsum([0, *(case.shape[0] for case in cases)])
        self._maps = Maps(self.cases)
        self._whole: tuple[Tensor, Tensor] | None = None
        if where == "ram":  # tensors go to loader processes, unless these are forked, through memory that all share
            pixels = sum(math.prod(case.shape[:3]) for case in self.cases)
            require_memory(len(self.cases), pixels * (4 * self.cases[0].shape[3] + 1), shared)
        if where != "disk":
            image, mask = self._read(range(len(self)))
            if where == "device" and place:
                image, mask = place(image), place(mask)
            self._whole = image, mask

    def __len__(self) -> int:
        return int(self.starts[-1])

    def name(self, index: int) -> str:
        """Case and slice of a flat index, in words."""
        case = int(np.searchsorted(self.starts, index, "right")) - 1
        return f"{self.cases[case].id} slice {index - int(self.starts[case])}"

    def get(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Flat indices -> image (N, C, H, W) float32, channels last in memory, and mask (N, 1, H, W) float32."""
        images, mask = [], None
        for offset in range(-self.neighbours, self.neighbours + 1):
            image, own = self._taken(self._beside(indices, offset))
            images.append(image)
            mask = own if offset == 0 else mask
        assert mask is not None
        image = torch.cat(images, 3) if self.neighbours else images[0]
        return image.permute(0, 3, 1, 2), mask.permute(0, 3, 1, 2).float()

    def _beside(self, indices: Sequence[int] | Tensor, offset: int) -> Sequence[int] | Tensor:
        """The slices so many places further in the same cases, or the last ones there."""
        if not offset:
            return indices
        flat = np.asarray(indices)
        owners = np.searchsorted(self.starts, flat, "right") - 1
        return torch.from_numpy(np.clip(flat + offset, self.starts[owners], self.starts[owners + 1] - 1))

    def _taken(self, indices: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        if self._whole is None:
            return self._read(indices)
        image, mask = self._whole
        chosen = torch.as_tensor(indices).to(image.device, non_blocking=True)
        return image[chosen], mask[chosen]

    def _read(self, indices: Sequence[int] | Tensor | range) -> tuple[Tensor, Tensor]:
        _, height, width, channels = self.cases[0].shape
        image = np.empty((len(indices), height, width, channels), np.float32)
        mask = np.empty((len(indices), height, width, 1), np.uint8)
        flat = np.asarray(indices)
        owners = np.searchsorted(self.starts, flat, "right") - 1
        for position in np.argsort(owners, kind="stable"):  # case by case: a map is opened once
            case = int(owners[position])
            images, masks = self._maps[case]
            number = int(flat[position]) - int(self.starts[case])
            image[position], mask[position] = images[number], masks[number]
        return torch.from_numpy(image), torch.from_numpy(mask)


class EpochBatches(Dataset[Batch]):
    """Map-style data set whose item (epoch, batch) is a whole batch: {"image", "mask", "index"}.

    An epoch has as many draws as there are slices; its last short batch is dropped. `augment(image, mask, generator)`
    changes a batch. Raises DataError where the set does not fill one batch.
    """

    def __init__(
        self,
        slices: Slices,
        batch_size: int,
        seed: int,
        augment: Callable[..., tuple[Tensor, Tensor]] | None,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.slices, self.batch_size, self.seed, self.augment, self.shard = slices, batch_size, seed, augment, shard
        self.probabilities = slice_probabilities([case.foreground for case in slices.cases])
        _, world = shard
        self.batches = len(slices) // (batch_size * world)
        self._epoch, self._draws = -1, torch.empty(0)
        if not self.batches:
            raise DataError(
                f"A batch of {batch_size}{f' on each of {world} processes' if world > 1 else ''} is larger than the"
                f" training set of {len(slices)} slices.",
                f"Type --batch-size {max(1, len(slices) // world)} or less.",
            )

    def __len__(self) -> int:
        return self.batches

    def name(self, index: int) -> str:
        return self.slices.name(index)

    def __getitem__(self, key: Key) -> Batch:
        epoch, number = key
        index = self.drawn(epoch, number)
        image, mask = self.slices.get(index)
        if self.augment:
            epoch, number = self.augmentation_key(epoch, number)
            image, mask = self.augment(image, mask, generator(self.seed, epoch, number + 1, self.shard[0]))
        return {"image": image, "mask": mask, "index": index}

    def augmentation_key(self, epoch: int, number: int) -> Key:
        """(epoch, batch) by which the augmentation of a batch is drawn."""
        return epoch, number

    def drawn(self, epoch: int, number: int) -> Tensor:
        """The slices of a batch, by their flat index."""
        rank, world = self.shard
        if self._epoch != epoch:
            self._draws = draw(self.probabilities, len(self.slices), self.seed, epoch)
            self._epoch = epoch
        first = (number * world + rank) * self.batch_size
        return self._draws[first : first + self.batch_size]


class StreamBatches(EpochBatches):
    """Whole batches of one endless stream: pass after pass over the slices, each in a new order. An "epoch" is
    `length` batches of it, so that few slices make long epochs; a batch may hold the end of a pass and the beginning of
    the next. Augmentation is drawn by pieces of `piece` batches: the same with epochs of any length. For training by
    steps."""

    def __init__(
        self,
        slices: Slices,
        batch_size: int,
        seed: int,
        augment: Callable[..., tuple[Tensor, Tensor]] | None,
        shard: tuple[int, int] = (0, 1),
        length: int = 1,
        piece: int = 1,
    ) -> None:
        super().__init__(slices, min(batch_size, max(1, len(slices) // shard[1])), seed, augment, shard)
        self.batch_size, self.batches, self.piece = batch_size, length, piece
        self._passes: dict[int, Tensor] = {}

    def augmentation_key(self, epoch: int, number: int) -> Key:
        whole, rest = divmod((epoch - 1) * self.batches + number, self.piece)
        return whole + 1, rest

    def drawn(self, epoch: int, number: int) -> Tensor:
        rank, world = self.shard
        first = (((epoch - 1) * self.batches + number) * world + rank) * self.batch_size
        count = len(self.slices)
        needed = range(first // count, (first + self.batch_size - 1) // count + 1)
        self._passes = {each: self._passes.get(each, self._order(each)) for each in needed}
        places = [divmod(place, count) for place in range(first, first + self.batch_size)]
        return torch.stack([self._passes[each][place] for each, place in places])

    def _order(self, each: int) -> Tensor:
        return torch.randperm(len(self.slices), generator=generator(self.seed, each))


class Batches(Protocol):
    """What a loader hands out: whole batches by (epoch, batch)."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: Key) -> Batch: ...
    def name(self, index: int) -> str: ...


class Loader:
    """Batches of any epoch from any position, prepared by `workers` processes that live as long as the loader.

    `options` are the device's: "multiprocessing_context" (how the processes are started), "pin_memory". `finish`: what
    is still done to a batch in this process, after it arrived: where it is changed on the device.
    """

    def __init__(
        self,
        batches: Batches,
        workers: int = 0,
        options: dict[str, Any] | None = None,
        finish: Callable[[Batch], Batch] | None = None,
    ) -> None:
        how = dict(options or {})
        method, self.pin = how.pop("multiprocessing_context", None), how.pop("pin_memory", False)
        if how:
            raise UnetError(
                f"The device's loader_options name {', '.join(sorted(how))}.",
                "A device may give workers, multiprocessing_context and pin_memory.",
            )
        self.batches, self.finish = batches, finish
        self.pool = Pool(batches, workers, method) if workers else None

    def __len__(self) -> int:
        return len(self.batches)

    def hurry(self, asked: Callable[[], bool]) -> None:
        """Whether the run is asked to stop: then no process is waited for longer than a few seconds."""
        if self.pool:
            self.pool.hurried = asked

    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches start .. stop of an epoch."""
        return self.epochs([epoch], start, stop)

    def epochs(self, epochs: Iterable[int], start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """Batches start .. stop of the first of `epochs`, then 0 .. stop of each other, in one stream: while one is
        evaluated, the first batches of the next are prepared."""
        last = len(self) if stop is None else stop
        kind = () if self.pin is True else (self.pin,)  # older torch must be told whose memory it is
        keys = ((epoch, number) for place, epoch in enumerate(epochs) for number in range(0 if place else start, last))
        for batch in self.pool.take(keys) if self.pool else map(self.batches.__getitem__, keys):
            if self.pin:
                batch = {name: value.pin_memory(*kind) for name, value in batch.items()}
            yield self.finish(batch) if self.finish else batch

    def names(self, index: Tensor) -> list[str]:
        """What the samples of a batch are, in words."""
        return [self.batches.name(int(item)) for item in index]
