"""Batches of crops of volumes: each training case gives one crop an epoch, read from the memory map, memory or device.

Batch `i` of epoch `e` depends on (seed, e, i, rank) alone, as in `loaders`: it is the same on any number of workers and
wherever the volumes lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet import host
from unet.data.cache.cache import CachedCase
from unet.data.cache.maps import Maps
from unet.data.loading.augment import Change, changes, finish, on_host
from unet.data.loading.memory import require_memory
from unet.data.loading.sampling import Window, balanced_window, generator
from unet.errors import DataError

Batch = dict[str, Tensor]


class Volumes:
    """Crops of cases: from disk (memory-mapped), from memory (`ram`), or from where `place` puts them (`device`)."""

    def __init__(
        self,
        cases: Sequence[CachedCase],
        where: str = "disk",
        place: Callable[[Tensor], Tensor] | None = None,
        shared: bool = False,
    ) -> None:
        self.cases = list(cases)
        self._maps = Maps(self.cases)
        self._placed: list[tuple[Tensor, Tensor]] | None = None
        self._whole: tuple[Tensor, Tensor] | None = None
        self._starts = np.cumsum([0, *(math.prod(case.shape) for case in self.cases)])
        if where == "ram":
            needed = sum(path.stat().st_size for case in self.cases for path in (case.image, case.mask))
            require_memory(len(self.cases), needed, shared)
            self._whole = self._read(shared)
        elif where == "device":
            keep = place or (lambda tensor: tensor)
            self._placed = [
                (keep(torch.from_numpy(np.array(image))), keep(torch.from_numpy(np.array(mask))))
                for image, mask in (case.arrays() for case in host.progress(self.cases, name="to device", unit="case"))
            ]

    def _read(self, shared: bool) -> tuple[Tensor, Tensor]:
        """All images (float32) and all masks (uint8) one after the other: shared by processes as two files, where a
        tensor for each would take a file descriptor for each."""
        images, masks = (torch.empty(int(self._starts[-1]), dtype=kind) for kind in (torch.float32, torch.uint8))
        if shared:
            images, masks = images.share_memory_(), masks.share_memory_()
        for number, case in enumerate(host.progress(self.cases, name="to ram", unit="case")):
            span = slice(int(self._starts[number]), int(self._starts[number + 1]))
            image, mask = case.arrays()
            images[span].numpy()[...], masks[span].numpy()[...] = image.reshape(-1), mask.reshape(-1)
        return images, masks

    def _arrays(self, case: int) -> tuple[Any, Any]:
        """Image and mask of a case (1, D, H, W), from memory or mapped."""
        if self._placed is not None:
            image, mask = (tensor.numpy() for tensor in self._placed[case])
            return image, mask
        if self._whole is None:
            return self._maps[case]
        span = slice(int(self._starts[case]), int(self._starts[case + 1]))
        image, mask = (tensor[span].numpy().reshape(self.cases[case].shape) for tensor in self._whole)
        return image, mask

    def crop(self, case: int, window: Window, flips: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Image (1, d, h, w) float32 and mask (1, d, h, w) uint8 of a case's window, mirrored along `flips`."""
        place = (slice(None), *(slice(low, high) for low, high in window))
        axes = [axis for axis, flip in enumerate(flips, 1) if flip]
        if self._placed is not None and self._placed[case][0].device.type != "cpu":
            image, mask = (tensor[place] for tensor in self._placed[case])
            return (image.flip(axes), mask.flip(axes)) if axes else (image.contiguous(), mask.contiguous())
        image_map, mask_map = self._arrays(case)
        mirrored = (slice(None), *(slice(None, None, -1 if flip else None) for flip in flips))
        # cut and mirrored in one copy; the copy is C-contiguous whatever the strides of the view
        return (
            torch.from_numpy(np.array(image_map[place][mirrored], np.float32, order="C")),
            torch.from_numpy(np.array(mask_map[place][mirrored], np.uint8, order="C")),
        )


class EpochCases(Dataset[Batch]):
    """What batches of whole volumes and of crops share.

    An epoch takes every case once, in an order drawn anew; its last short batch is dropped. Raises DataError, with
    `note` in it, where the set does not fill one batch on each process.
    """

    def __init__(
        self, volumes: Volumes, batch_size: int, seed: int, shard: tuple[int, int] = (0, 1), note: str = ""
    ) -> None:
        self.volumes, self.batch_size, self.seed, self.shard = volumes, batch_size, seed, shard
        count, (_, world) = len(volumes.cases), shard
        self.batches = count // (batch_size * world)
        if not self.batches:
            raise DataError(
                f"A batch of {batch_size}{f' on each of {world} processes' if world > 1 else ''} is larger than the"
                f" training set of {host.counted(count, 'volume')}{note}.",
                f"Type --batch-size {max(1, count // world)} or less{' on fewer processes' if world > count else ''}.",
            )

    def __len__(self) -> int:
        return self.batches

    def name(self, index: int) -> str:
        return self.volumes.cases[index].id

    def drawn(self, epoch: int, number: int) -> Tensor:
        """The cases of a batch, by their number: the ranks' shares of an epoch do not overlap."""
        rank, world = self.shard
        order = torch.randperm(len(self.volumes.cases), generator=generator(self.seed, epoch))
        first = (number * world + rank) * self.batch_size
        return order[first : first + self.batch_size]


class EpochCrops(EpochCases):
    """Map-style data set whose item (epoch, batch) is a whole batch: {"image" (N, 1, D, H, W) float32, "mask" the same
    as uint8, "index" (N,)}.

    An epoch is one crop of every case. Raises DataError where the set does not fill one batch, or a volume is smaller
    than the crop.
    """

    def __init__(
        self,
        volumes: Volumes,
        patch: Sequence[int],
        batch_size: int,
        seed: int,
        oversampling: float,
        change: Change | None,
        last_offset: bool = True,
        shard: tuple[int, int] = (0, 1),
        noise: Callable[[int], torch.Generator] = on_host,
    ) -> None:
        super().__init__(volumes, batch_size, seed, shard, " (one crop of each makes an epoch)")
        self.patch, self.oversampling = tuple(patch), oversampling
        self.change, self.last_offset, self.noise = change, last_offset, noise
        for case in volumes.cases:
            if any(side < length for side, length in zip(case.shape[1:], self.patch, strict=True)):
                raise DataError(
                    f"{case.id}: {' x '.join(map(str, case.shape[1:]))} voxels are smaller than the crop of"
                    f" {' x '.join(map(str, self.patch))}.",
                    "Type a smaller --patch, or make the cache with a larger --pad-to.",
                )

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, number = key
        index = self.drawn(epoch, number)
        draws = generator(self.seed, epoch, number + 1, self.shard[0])
        images, masks = zip(*(self._sample(int(case), draws) for case in index), strict=True)
        return {"image": torch.stack(images), "mask": torch.stack(masks), "index": index}

    def _sample(self, number: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        case = self.volumes.cases[number]
        boxes: Mapping[str, Any] = case.facts.get("boxes") or {}
        window = balanced_window(case.shape[1:], self.patch, boxes, self.oversampling, draws, self.last_offset)
        how = changes(self.change, draws)
        image, mask = self.volumes.crop(number, window, how.flips)
        return finish(image, how, self.noise), mask
