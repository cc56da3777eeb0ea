"""What segmentation tasks share: the cache, the split, the loss of a forward pass, the check of a cache. No torch at
import."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unet import host
from unet.config.schema import resolve_path
from unet.data import checks, splits
from unet.data.cache import cache
from unet.errors import DataError
from unet.tasks.base import Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.data.cache.cached_case import CachedCase
    from unet.data.cases import Case


class SegmentationTask(Task):
    """A task that labels pixels or voxels.

    `foreground`: what is labelled, and `label_values` what the labels of a raw set must hold, in words. `fold_seed`:
    of the shuffle before the folds, the same whatever the seed of a run; None: the run's own seed. `synthetic_seed`:
    of the set that --synth-data makes.
    """

    foreground: ClassVar[str]
    label_values: ClassVar[str]
    fold_seed: ClassVar[int | None] = None
    synthetic_seed: ClassVar[int] = 2001

    def find_cases(self) -> list[Case]:
        root = resolve_path(self.config.data.data, "data")
        if self.config.data.synth_data:
            self.synthesize(root, self.synthetic_seed)
        return self.index(root)

    def index(self, root: Path) -> list[Case]:
        """The cases of the raw set in a folder."""
        raise NotImplementedError

    def cached_cases(self, choose: Callable[[list[str]], Collection[str]] | None = None) -> list[CachedCase]:
        limit = self.config.split.max_cases

        def chosen(ids: list[str]) -> Collection[str]:
            return choose(ids[:limit]) if choose else ids

        found = cache.ensure(
            resolve_path(self.config.data.cache, "data"),
            self.layout,
            self.find_cases,
            resolve_path(self.config.data.data, "data"),
            self.preprocess,
            self.manifest(),
            self.config.data.rebuild_cache,
            chosen if choose else None,
            self.config.general.task,
        )
        for words in self.set_warnings(found):
            host.notice_once(f"warning: {words}")
        return found[:limit]

    def manifest(self) -> dict[str, Any]:
        """The manifest of a cache of these settings, without cases."""
        return cache.make_manifest(self.layout, self.cache_settings())

    def split(self, ids: Sequence[str], training: bool = True) -> splits.Split:
        asked = self.config.split
        seed = self.config.general.seed if self.fold_seed is None else self.fold_seed
        return splits.make(ids, asked, seed, self.named_splits(), training)

    def named_splits(self) -> dict[str, Callable[[Sequence[str]], splits.Split]]:
        """Splits that the task knows beside the common ones, by name."""
        return {}

    def require_foreground(self, cases: Sequence[CachedCase]) -> None:
        """Raise DataError where nothing is labelled in any of the training cases."""
        if not any(sum(case.foreground) for case in cases):
            pixel = "voxel" if self.item == "crops" else "pixel of their masks"
            raise DataError(
                f"None of the {len(cases)} training cases holds {self.foreground}: every {pixel} is background.",
                f"Give {self.label_values}; look at them with: python -m unet check --task {self.config.general.task}",
            )

    def loader_workers(self, options: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """(processes, the other options of a loader) from a device's; none where batches are made on the device."""
        if self.config.device.data_on == "device":
            return 0, {}
        rest = dict(options)
        suited, asked = rest.pop("workers"), self.config.data.workers
        return suited if asked == "auto" else int(asked), rest

    def training_step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = model(batch["image"])
        with self.compute.full_precision():
            return self.loss(outputs, batch)

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss of the network's outputs: scalar tensors, "loss" among them."""
        raise NotImplementedError

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        """The network of these settings; `Settings.inference_settings` names those that its shape depends on."""
        from unet.models.convert import strip_prefixes

        return self.build_model(), strip_prefixes(state)

    def check_cache(self, path: Path) -> checks.Report:
        return checks.cached(path, self.layout, self.manifest(), self.foreground)
