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
    """Crops of cases, images (C, D, H, W) with masks (1, D, H, W): from disk (memory-mapped), from memory (`ram`), or
    from where `place` puts them (`device`)."""

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
        self._starts = {  # where the voxels of each case begin, all cases one after the other
            part: np.cumsum([0, *(math.prod(shape) for shape in map(self._shape(part), self.cases))])
            for part in ("image", "mask")
        }
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

    @staticmethod
    def _shape(part: str) -> Callable[[CachedCase], tuple[int, ...]]:
        """The shape of a case's image or mask, from what is known before they are opened."""
        return lambda case: case.shape if part == "image" else (1, *case.shape[1:])

    def _read(self, shared: bool) -> tuple[Tensor, Tensor]:
        """All images (float32) and all masks (uint8) one after the other: shared by processes as two files, where a
        tensor for each would take a file descriptor for each."""
        whole = tuple(
            torch.empty(int(self._starts[part][-1]), dtype=kind)
            for part, kind in (("image", torch.float32), ("mask", torch.uint8))
        )
        images, masks = (tensor.share_memory_() for tensor in whole) if shared else whole
        for number, case in enumerate(host.progress(self.cases, name="to ram", unit="case")):
            for part, into, array in zip(("image", "mask"), (images, masks), case.arrays(), strict=True):
                into[self._span(part, number)].numpy()[...] = array.reshape(-1)
        return images, masks

    def _span(self, part: str, case: int) -> slice:
        return slice(int(self._starts[part][case]), int(self._starts[part][case + 1]))

    def _arrays(self, case: int) -> tuple[Any, Any]:
        """Image (C, D, H, W) and mask (1, D, H, W) of a case, from memory or mapped."""
        if self._placed is not None:
            image, mask = (tensor.numpy() for tensor in self._placed[case])
            return image, mask
        if self._whole is None:
            return self._maps[case]
        image, mask = (
            tensor[self._span(part, case)].numpy().reshape(self._shape(part)(self.cases[case]))
            for part, tensor in zip(("image", "mask"), self._whole, strict=True)
        )
        return image, mask

    def crop(
        self, case: int, window: Window, flips: Sequence[bool], outside: tuple[float, int] = (0.0, 0)
    ) -> tuple[Tensor, Tensor]:
        """Image (C, d, h, w) float32 and mask (1, d, h, w) uint8 of a case's window, mirrored along `flips`: copies.
        Where the window reaches over the border, they have the values `outside`."""
        sides = self.cases[case].shape[1:]
        cut = tuple((max(0, low), min(side, high)) for (low, high), side in zip(window, sides, strict=True))
        place = (slice(None), *(slice(low, high) for low, high in cut))
        # where the piece that was cut lies in the window
        inner = (slice(None), *(slice(a - low, b - low) for (a, b), (low, _) in zip(cut, window, strict=True)))
        lengths = [high - low for low, high in window]
        if self._placed is not None and self._placed[case][0].device.type != "cpu":
            image, mask = (
                _taken(tensor[place], lengths, inner, flips, value)
                for tensor, value in zip(self._placed[case], outside, strict=True)
            )
            return image, mask
        mirrored = (slice(None), *(slice(None, None, -1 if flip else None) for flip in flips))
        result = []
        for array, kind, value in zip(self._arrays(case), (np.float32, np.uint8), outside, strict=True):
            shape = (len(array), *lengths)
            copy = np.empty(shape, kind) if cut == tuple(window) else np.full(shape, value, kind)
            copy[mirrored][inner] = array[place]  # cut and mirrored in one copy, C-contiguous
            result.append(torch.from_numpy(copy))
        return result[0], result[1]


def _taken(
    piece: Tensor, lengths: Sequence[int], inner: tuple[slice, ...], flips: Sequence[bool], outside: float
) -> Tensor:
    """A copy of a piece of a tensor on a device, in a window of these lengths, mirrored. Never the tensor itself, which
    what follows would write to."""
    if list(piece.shape[1:]) != list(lengths):
        whole = piece.new_full((len(piece), *lengths), outside)
        whole[inner] = piece
        piece = whole
    axes = [axis for axis, flip in enumerate(flips, 1) if flip]
    return piece.flip(axes) if axes else piece.clone(memory_format=torch.contiguous_format)


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
