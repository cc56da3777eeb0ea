"""Batches of patches of volumes or images, drawn with replacement: what a set of any size gives, as many as an epoch
shall have. Patches may reach over the border, and a 2D patch, (1, H, W), is a slice of a volume.

Batch `i` of epoch `e` depends on (seed, e, i, rank) alone: it is the same on any number of workers, wherever the
volumes lie, and wherever patches are changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from unet.data.loading.crops import Batch, Volumes
from unet.data.loading.sampling import Window, below, generator
from unet.data.transforms import appearance
from unet.data.transforms.augmentation import Augmentation, Drawn
from unet.data.transforms.resampling import resampled
from unet.errors import DataError

BACKGROUND = "0"


class EpochPatches(Dataset[Batch]):
    """Map-style data set whose item (epoch, batch) is a whole batch: {"image" (N, C, d, h, w) float32, "mask" (N, 1, d,
    h, w) uint8, "index" (N,), the cases}.

    An epoch is `length` batches, its cases drawn with replacement. The last `oversampling` share of a batch, rounded,
    is centred on a voxel of a labelled class; where that rounds to none, each patch with that probability. `change`:
    what is done to the patches. `outside`: what image and mask are beyond the border. `labelled_only`: ordinary patches
    are centred on a voxel that is labelled as background, or on any other that is labelled where there is none: for
    sets most of whose voxels are to be ignored.
    `late`: items are not changed yet, `finish` does that, in another process and on a device. Raises DataError where
    there is no case.
    """

    def __init__(
        self,
        volumes: Volumes,
        patch: Sequence[int],
        batch_size: int,
        length: int,
        seed: int,
        oversampling: float = 0.33,
        change: Augmentation | None = None,
        shard: tuple[int, int] = (0, 1),
        outside: tuple[float, int] = (0.0, 0),
        labelled_only: bool = False,
        late: bool = False,
    ) -> None:
        if not volumes.cases:
            raise DataError("There is no case to train on.", "Give a set with training cases.")
        self.volumes, self.patch, self.batch_size, self.batches = volumes, tuple(patch), batch_size, length
        self.seed, self.oversampling, self.shard, self.outside = seed, oversampling, shard, outside
        self.change = change or Augmentation.off()
        self.region = self.change.region(self.patch)
        self.labelled_only, self.late = labelled_only, late

    def __len__(self) -> int:
        return self.batches

    def name(self, index: int) -> str:
        return self.volumes.cases[index].id

    def drawn(self, epoch: int, number: int) -> Tensor:
        """The cases of a batch, by their number: each rank has draws of its own."""
        rank, world = self.shard
        total = self.batches * world * self.batch_size
        draws = torch.randint(len(self.volumes.cases), (total,), generator=generator(self.seed, epoch))
        first = (number * world + rank) * self.batch_size
        return draws[first : first + self.batch_size]

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        batch = self.cut(*key)
        return batch if self.late else self.finish(batch)

    def cut(self, epoch: int, number: int) -> Batch:
        """A batch before it is changed: {"index", "key", and for each sample "image_0" (C, ...), "mask_0" (1, ...)},
        mirrored, of the size of the patch, or of the region that a turned or scaled patch is sampled from."""
        index = self.drawn(epoch, number)
        draws = generator(self.seed, epoch, number + 1, self.shard[0])
        batch = {"index": index, "key": torch.tensor([epoch, number])}
        for place, case in enumerate(index.tolist()):
            window = self._window(case, place, draws)
            how = self.changes(epoch, number, place, case)
            if how.matrix is not None:
                window = tuple(
                    (low - (side - length) // 2, high + (side - length) // 2)
                    for (low, high), side, length in zip(window, self.region, self.patch, strict=True)
                )
            image, mask = self.volumes.crop(case, window, how.flips, self.outside)
            batch |= {f"image_{place}": image, f"mask_{place}": mask}
        return batch

    def finish(
        self,
        batch: Mapping[str, Tensor],
        place: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[], None] | None = None,
    ) -> Batch:
        """A batch of `cut` -> the changed batch, on the device to which `place` moves tensors. `after` is called after
        each change: a graph boundary, on devices that need one."""
        images, masks = [], []
        epoch, number = batch["key"].tolist()
        for at, case in enumerate(batch["index"].tolist()):
            image, mask = batch[f"image_{at}"], batch[f"mask_{at}"]
            if place:
                image, mask = place(image), place(mask)
            image, mask = self.changed(image, mask, self.changes(epoch, number, at, case), after)
            images.append(image)
            masks.append(mask)
        return {"image": torch.stack(images), "mask": torch.stack(masks), "index": batch["index"]}

    def changes(self, epoch: int, number: int, place: int, case: int) -> Drawn:
        """What is drawn for a sample of a batch."""
        draws = generator(self.seed, epoch, number + 1, self.shard[0], place + 1)
        return self.change.draw(self.patch, self.volumes.cases[case].shape[0], draws)

    def changed(
        self, image: Tensor, mask: Tensor, how: Drawn, after: Callable[[], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """A patch, or the region of one that is turned or scaled, mirrored already, with the other changes. May write
        to the image."""
        if how.matrix is not None:
            image, mask = resampled(image, mask, how.matrix, self.patch, how.still, self.outside)
            if after:
                after()
        return appearance.changed(image, how, after), mask

    def _window(self, number: int, place: int, draws: torch.Generator) -> Window:
        """Where the patch of a sample lies in its case. It reaches over the border only where the case is smaller."""
        case = self.volumes.cases[number]
        voxels = case.voxels()
        classes = [voxels[name] for name in sorted(voxels) if name != BACKGROUND and len(voxels[name])]
        ranges = [
            (min(0, side - length), max(0, side - length))
            for side, length in zip(case.shape[1:], self.patch, strict=True)
        ]
        if not self._about_a_label(place, float(torch.rand((), generator=draws))):
            background = voxels.get(BACKGROUND, [])
            classes = ([background] if len(background) else classes) if self.labelled_only else []
        if classes:
            own = classes[below(len(classes), draws)]
            centre = own[below(len(own), draws)]
            lows = [
                min(max(int(middle) - length // 2, low), high)
                for middle, length, (low, high) in zip(centre, self.patch, ranges, strict=True)
            ]
        else:
            lows = [low + below(high - low + 1, draws) for low, high in ranges]
        return tuple((low, low + length) for low, length in zip(lows, self.patch, strict=True))

    def _about_a_label(self, place: int, coin: float) -> bool:
        """Whether the sample at this place of a batch is centred on a label."""
        ordinary = round(self.batch_size * (1 - self.oversampling))
        return place >= ordinary if ordinary < self.batch_size else coin < self.oversampling
