"""A user's own images and masks: any common format, 2D or 3D, several channels, up to 100 classes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host, windows
from unet.config.schema import resolve_path
from unet.data import splits
from unet.data.cache.manifest import groups_kept
from unet.data.cases import Case
from unet.data.io import volumes
from unet.data.io.nifti_header import times
from unet.errors import DataError, UnetError, UsageError
from unet.tasks.base import Column, Decision, Metric, Predictor
from unet.tasks.folder import check, dataset, figure, plan, scoring, sets
from unet.tasks.folder.fingerprint import look
from unet.tasks.folder.labels import IGNORED, Labels, from_values, require_distinct, require_order
from unet.tasks.folder.settings import FROM_DATA
from unet.tasks.folder.settings import Settings as OwnSettings
from unet.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags_training import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.checks import Report
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader
    from unet.data.loading.patches import EpochPatches

    ToDevice = Callable[[Tensor], Tensor]


class Folder(SegmentationTask):
    """Volumes (C, D, H, W) -> logits (K, D, H, W); D is 1 where images are flat or taken slice by slice."""

    Settings = OwnSettings
    settings: OwnSettings
    layout = dataset.LAYOUT
    metric = Metric("mean_dice", "max", "mean Dice")
    item, subject, cost_unit = "patches", "case", "windows"
    metric_notes = scoring.NOTES
    figure_title = "the slice with most classes of each case, from worst to best mean Dice"
    foreground = "a class other than the background"
    label_values = "masks with a number of 1 or more where there is something"

    @property
    def columns(self) -> tuple[Column, ...]:  # type: ignore[override]
        return scoring.columns_of(self.settings.classes)

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.settings.classes[1:]

    @property
    def mask_classes(self) -> dict[int, str]:
        return dict(zip(self.labels.values[1:], self.classes, strict=True))

    @property
    def colour_key(self) -> tuple[tuple[str, tuple[int, int, int]], ...]:  # type: ignore[override]
        return tuple(zip(self.classes, figure.colours_of(len(self.classes) + 1), strict=True))[: len(figure.COLOURS)]

    @property
    def labels(self) -> Labels:
        return dataset.labels_of(self.settings)

    @property
    def ignored(self) -> int | None:
        """The class of voxels that are left out, where masks have such."""
        return None if self.settings.ignore_value is None else IGNORED

    def describe_input(self) -> str:
        what = "slices" if self.settings.dims == 2 else "patches"
        sides = self.settings.patch[1:] if self.settings.dims == 2 else self.settings.patch
        return f"{what} of {times(sides)}, {host.counted(len(self.settings.channels), 'channel')}"

    def describe_window(self) -> str:
        return f"windows of {times(self.settings.patch)}"

    def input_shape(self) -> tuple[int, ...]:
        self.require_planned()
        return 1, len(self.settings.channels), *self.settings.patch

    # What follows from the data.

    @functools.cached_property
    def found(self) -> sets.Set:
        """The files of the set, looked for once; made ones where --synth-data asks for them."""
        root = resolve_path(self.config.data.data, "data")
        if self.config.data.synth_data:
            self.synthesize(root, self.synthetic_seed)
        return sets.find(root)

    def decisions(self, unchosen: Collection[str]) -> list[Decision]:
        """Every setting that follows from the data, with its reason; those that are not among `unchosen` are kept."""
        found = self.found
        names = found.names.classes
        typed = {name: self.config.get(name) for name in FROM_DATA if name not in unchosen}
        if values := typed.get("label_values"):
            named = typed.get("classes") or tuple(f"class {value}" for value in values)
            names = dict(zip(named, values, strict=True))
        ignore = typed.get("ignore_value", found.names.ignore)
        background = next(iter(names.values()), 0)
        aside = (background,) if ignore is None else (background, ignore)
        seen = look(found, resolve_path(self.config.data.cache, "data"), aside)
        if not names:
            require_distinct(seen.shares(), found.root)
        labels = from_values(list(seen.values()), names, ignore, found.root)
        given = typed.get("channels") or found.names.channels or seen.modalities
        channels = given if len(given) == seen.channels else tuple(f"channel {n}" for n in range(seen.channels))
        return plan.decide(seen, labels, channels, self.settings.size, typed)

    def settings_from_data(self, unchosen: Collection[str]) -> dict[str, Any]:
        folds = {"folds": given} if (given := self.given_folds()) else {}
        if self.settings.planned and "patch" not in unchosen:
            return folds
        found = plan.as_settings(self.decisions(unchosen)) | folds
        if told := Labels(found["label_values"], found["classes"], found["ignore_value"]).told():
            host.notice(told)
        return found

    def require_planned(self) -> None:
        """Raise UsageError where the settings that follow from the data are not known."""
        if not self.settings.planned:
            raise UsageError(
                "The network's sizes follow from the data, and none was looked at.",
                "Type --data DIR; or give a plan: python -m unet plan --data DIR, then --config plan.json",
            )

    def random_batch(self) -> dict[str, Tensor]:
        import torch

        _, channels, *sides = self.input_shape()
        count = self.config.train.batch_size
        mask = torch.randint(len(self.settings.classes), (count, 1, *sides), dtype=torch.uint8)
        return {"image": torch.randn(count, channels, *sides), "mask": mask, "index": torch.arange(count)}

    def patch_seconds(self) -> float:
        return dataset.patch_seconds(self.patches, self.input_shape()[1:])

    # Data.

    def find_cases(self) -> list[Case]:
        return dataset.index(self.found, self.settings)

    def index(self, root: Path) -> list[Case]:
        return dataset.index(sets.find(root), self.settings)

    def cache_settings(self) -> dict[str, Any]:
        """What decides the content of the cache."""
        own = self.settings
        found: dict[str, Any] = {
            name: list(value) if isinstance(value := getattr(own, name), tuple) else value
            for name in ("channels", "label_values", "orientation", "spacing", "normalize", "intensities")
        }
        for name in ("ignore_value", "crop_background", "resample_masks"):
            if getattr(own, name) not in (None, False):
                found[name] = getattr(own, name)
        return found

    def preprocess(self, case: Case) -> dict[str, Any]:
        return dataset.prepare(case, self.settings)

    def set_warnings(self, cases: Sequence[CachedCase]) -> list[str]:
        """Classes that no case, or just one, has."""
        found = []
        for number, name in enumerate(self.classes, 1):
            count = sum(str(number) in case.facts.get("counts", {}) for case in cases)
            if count < 2 <= len(cases):
                where = "no case has it" if not count else "one case has it: it is trained on or scored, not both"
                found.append(f"class {name!r}: {where}")
        return found

    def named_splits(self) -> dict[str, Callable[[Sequence[str]], splits.Split]]:
        return {"fold": self.first_fold}

    def first_fold(self, ids: Sequence[str]) -> splits.Split:
        """Fold 0 of 5 (of fewer cases, of as many), where the set has no split of its own."""
        groups = self.groups()
        units = len({splits.unit_of(case, groups) for case in ids})
        folds = min(self.config.split.folds, units)
        if folds < 2:
            what = host.counted(units, "patient" if groups else "case")
            raise DataError(
                f"The set has {what}: nothing is left to validate on.",
                "Add cases, or type --split none to train without validation.",
            )
        host.notice_once(f"No split was given: fold 0 of {folds} (--split, --fold and --held-out choose another)")
        return splits.fold(ids, 0, folds, self.fold_seed, groups)

    def split(self, ids: Sequence[str], training: bool = True) -> splits.Split:
        asked, root = self.config.split, resolve_path(self.config.data.data, "data")
        if self.given_folds() and (given := splits.given_fold(root, ids, asked.fold or 0, asked.max_cases is not None)):
            splits.require_together(given, self.groups())
            return given
        return splits.make(ids, asked, self.fold_seed, self.named_splits(), training, self.groups())

    def given_folds(self) -> int:
        """How many folds of its own the set has, where these are trained, else 0. Raises DataError for another."""
        asked, root = self.config.split, resolve_path(self.config.data.data, "data")
        own = asked.split == "fold" and asked.held_out is None
        return len(splits.given_folds(root, asked.fold or 0)[1]) if own else 0

    def groups(self) -> dict[str, str]:
        """{case: its patient}, where the set's table or DICOM headers have them, or the cache where the set is not at
        hand; cases of one patient stay together."""
        root, folder = (resolve_path(each, "data") for each in (self.config.data.data, self.config.data.cache))
        if not root.exists() and not self.config.data.synth_data:
            return groups_kept(folder, self.layout)
        with contextlib.suppress(UnetError):
            return sets.groups(self.found.cases)
        return {}

    def train_loader(
        self, cases: Sequence[CachedCase], shard: tuple[int, int], options: dict[str, Any], to_device: ToDevice
    ) -> Loader:
        self.require_foreground(cases)
        from unet.data.loading.loader import Loader

        workers, options = self.loader_workers(options)
        patches = self.patches(cases, shard, to_device, workers > 0)
        finish = functools.partial(patches.finish, place=to_device, after=self.compute.flush) if patches.late else None
        return Loader(patches, workers, options, finish)

    def patches(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int] = (0, 1),
        to_device: ToDevice | None = None,
        shared: bool = False,
    ) -> EpochPatches:
        """The training patches of these cases."""
        from unet.data.loading.crops import Volumes
        from unet.data.loading.patches import EpochPatches
        from unet.data.transforms.augmentation import Augmentation

        own, train = self.settings, self.config.train
        flat = own.dims == 2
        axes, still = (1, 2) if flat else (0, 1, 2), 0 if own.anisotropic or flat else -1
        change = Augmentation(axes=axes, still=still, spacing=own.spacing)
        return EpochPatches(
            Volumes(cases, self.config.device.data_on, to_device, shared=shared),
            *(own.patch, train.batch_size, own.epoch_batches, self.config.general.seed),
            oversampling=own.oversampling,
            change=change if train.augment else None,
            shard=shard,
            outside=(0.0, 0 if self.ignored is None else IGNORED),
            labelled_only=self.ignored is not None,
            late=own.augment_on == "device",
        )

    def preview(self, cases: Sequence[CachedCase]) -> Iterator[Output]:
        """With --show-pipeline a page for each patch of the first batch: as it is cut, after each change, after all."""
        from unet.data.io.outputs import Output
        from unet.data.loading.preview import pages

        if self.settings.show_pipeline:
            for name, page in pages(self.patches(cases), self.config.train.batch_size):
                yield Output(Path(), f"pipeline_test/{name}.png", page, "png")

    # Network and loss.

    def build_model(self) -> nn.Module:
        """nnU-Net's network for this patch and spacing."""
        from unet.models.planned_unet import PlannedUNet

        return PlannedUNet(self.settings.shape(self.config))

    def settings_of_checkpoint(self, content: Mapping[str, Any]) -> dict[str, Any]:
        from unet.models.nnunet_plans import settings_of

        return settings_of(content)

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Dice and cross-entropy of every output, at its own resolution."""
        from unet.models.losses import deep_supervision_loss, nnunet_loss

        def one(logits: Tensor, labels: Tensor) -> Tensor:
            return nnunet_loss(
                logits, labels, chunk=self.compute.chunk, batch_dice=self.settings.dims == 2, ignore=self.ignored
            )

        levels = outputs if isinstance(outputs, tuple) else (outputs,)
        return {"loss": deep_supervision_loss(levels, batch["mask"], one)}

    # Scoring and prediction.

    def slabs(self, image: Any, predictor: Predictor) -> Iterator[Tensor]:
        """(C, D, H, W) -> logits in slabs (K, d, h, w) along D, each until the next one."""
        whole = windows.plan(image.shape[1:], self.settings.patch, self.settings.overlap, "full")
        return predictor.slabs(image, whole, self.settings.blend, self.settings.mirror)

    def label_map(self, image: Any, way: dataset.Way, predictor: Predictor) -> Any:
        """(C, D, H, W) -> classes on the file's own grid, axes as stored."""
        from unet.models.label_maps import label_map_of

        found = label_map_of(self.slabs(image, predictor), way.size[0], way.kept)
        return dataset.placed(found.cpu().numpy(), way)

    def warm_up(self, predictor: Predictor) -> None:
        import numpy as np

        for _ in self.slabs(np.zeros(self.input_shape()[1:], np.float32), predictor):
            pass

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: mean_dice and dice_<n> of each class, on the network's grid; with `full` on that of the mask, with
        surface_<n>, hd95_<n> and volume_<n>. Arrays: image (C, D, H, W), prediction, target (D, H, W)."""
        return scoring.of_case(self, case, predictor, full)

    def truth(self, case: CachedCase) -> tuple[Any, dataset.Way] | None:
        """The classes of a case's mask (D, H, W) on its own grid, and its way; None, with a notice, without the set."""
        way = dataset.way_from(case.facts)
        try:
            return dataset.truth(self.found, case.id, self.settings), way
        except DataError as error:
            host.notice_once(f"{error.message} Scores are those of the cache's grid.")
            return None

    def score_files(self, predictions: Path, masks: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        return scoring.score(predictions, masks, self.settings)

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.panel(arrays["image"], arrays["target"], arrays["prediction"], len(self.settings.classes))

    def slices(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.slices(arrays["image"], arrays["target"], arrays["prediction"])

    def find_inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        require_order(paths, self.settings.channels)
        found = sets.inputs(paths, len(self.settings.channels), self.config.predict.series)
        self.given = {own[0]: own for own in found.values()}
        return {Path(name): [own[0]] for name, own in found.items()}

    @functools.cached_property
    def given(self) -> dict[Path, tuple[Path, ...]]:
        """{the first image of a case to predict: the files of its channels}, as the command line has it."""
        named = [Path(name) for name in self.config.input.inputs]
        self.find_inputs(named or [resolve_path(self.config.data.data, "data")])
        return self.given

    def source_files(self, image: Path, options: PredictOptions) -> list[Path]:
        return [file for path in self.given[image] for file in volumes.files_of(path)]

    def output_files(self, image: Path, output_prefix: Path, options: PredictOptions) -> dict[str, Path]:
        endings = volumes.output_suffixes(image, options.format)
        found = {name: output_prefix.with_name(f"{output_prefix.name}{ending}") for name, ending in endings.items()}
        if options.overlay:
            found["overlay"] = output_prefix.with_name(f"{output_prefix.name}_overlay.png")
        return found

    def predict_case(
        self, images: Sequence[Path], wanted: Sequence[Path], predictor: Predictor, options: PredictOptions
    ) -> Iterator[Output]:
        """Label values on the image's grid, in its format; on request the slice of most classes. Raises DataError."""
        from unet.data.io.outputs import Output

        names = {f"class_{value}": name for value, name in zip(self.labels.values, self.labels.names, strict=True)}
        for first in wanted:
            image, way, notes = dataset.prepare_image(first.name, self.given[first], self.settings)
            for note in notes:
                host.notice(note)
            classes = self.label_map(image, way, predictor)
            if options.overlay:
                shown = dataset.on_grid(way.turn.apply(classes), way)
                yield Output(first, "overlay", figure.overlay(image, shown, len(self.settings.classes)), "png")
            for name in reversed(volumes.output_suffixes(first, options.format)):
                yield Output(first, name, self.labels.values_of(classes), "like", names=names)

    def synthesize(self, path: Path, seed: int, overwrite: bool = False) -> None:
        from unet.tasks.folder import synthetic

        made = self.config.synthetic
        sizes = made.patients, made.slices, made.side, max(seed, 0)
        synthetic.write_set(path, *sizes, overwrite, self.settings.dicom)

    def check_raw(self, path: Path) -> Report:
        return check.raw(path, self)

    def check_cache(self, path: Path) -> Report:
        return check.cached(path)

    def reference_checkpoint(self, state: Mapping[str, Tensor], published: bool) -> dict[str, Any]:
        from unet.models.convert import to_nnunet

        return {"network_weights": to_nnunet(state)}  # what nnU-Net takes as pretrained weights

    def deployment(self) -> dict[str, Any]:
        return self.settings.deployment()


TASK = Folder
