"""What segmentation tasks share: the loss of a forward pass, the check of a cache. No torch at import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unet.data import checks
from unet.errors import DataError
from unet.tasks.cached import CachedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.data.cache.cached_case import CachedCase


class SegmentationTask(CachedTask):
    """A task that labels pixels or voxels.

    `foreground`: what is labelled, and `label_values` what the labels of a raw set must hold, in words.
    """

    foreground: ClassVar[str]
    label_values: ClassVar[str]

    @property
    def mask_classes(self) -> dict[int, str]:
        """{value in a predicted mask: its class}; the background is none."""
        return dict(enumerate(self.classes, 1))

    def require_foreground(self, cases: Sequence[CachedCase]) -> None:
        """Raise DataError where nothing is labelled in any of the training cases."""
        if not any(sum(case.foreground) for case in cases):
            pixel = "voxel" if self.item == "crops" else "pixel of their masks"
            raise DataError(
                f"None of the {len(cases)} training cases holds {self.foreground}: every {pixel} is background.",
                f"Give {self.label_values}; look at them with: python -m unet check --task {self.config.general.task}",
            )

    def random_batch(self) -> dict[str, Tensor]:
        """Images, and masks of 0 and 1 in their size."""
        import torch

        _, channels, *sides = self.input_shape()
        count = self.config.train.batch_size
        return {
            "image": torch.rand(count, channels, *sides),
            "mask": torch.randint(2, (count, 1, *self.mask_sides(sides))).float(),
            "index": torch.arange(count),
        }

    def mask_sides(self, sides: Sequence[int]) -> Sequence[int]:
        """The sides of a training mask, by those of its image."""
        return sides

    def training_step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = model(batch["image"])
        with self.compute.full_precision():
            return self.loss(outputs, batch)

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the network's outputs: scalar tensors, "loss" among them."""
        raise NotImplementedError

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The network of these settings; `Settings.inference_settings` names those that its shape depends on. That of
        nnU-Net's weights is told by the weights."""
        from unet.models import convert

        if convert.is_nnunet(state):
            return convert.planned_network(state)
        return self.build_model(), convert.strip_prefixes(state)

    def deployment(self) -> dict[str, Any]:
        """What another program must know to run the network: `channels`, `classes` and `label_values` by number,
        `spacing` (mm), `window` (sides of an input), `overlap`, `blend`, `mirror`, `pad_value`, `activation` of the
        logits, `preprocessing` and `postprocessing` in steps, in words."""
        _, channels, *sides = self.eval_input_shape()
        return {"channels": channels, "classes": list(self.classes), "window": sides}

    def check_cache(self, path: Path) -> checks.Report:
        return checks.cached(path, self.layout, self.manifest(), self.foreground)
