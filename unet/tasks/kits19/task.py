"""KiTS19 kidneys and kidney tumours in CT, 3D UNet: the system of MLPerf Training (UNet3D), and Cambricon's of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host, windows
from unet.config.schema import resolve_path
from unet.config.task_settings import unet_widths
from unet.data import checks, splits
from unet.data.cases import Case
from unet.data.io import volumes
from unet.data.preprocessing import alignment, grids
from unet.errors import DataError
from unet.tasks.base import Column, Metric, MLPerfBenchmark, Predictor, Step
from unet.tasks.kits19 import check, dataset, deployment, figure
from unet.tasks.kits19.figure import COLOURS, NAMES
from unet.tasks.kits19.settings import CLASSES
from unet.tasks.kits19.settings import Settings as OwnSettings
from unet.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags_training import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader

SAMPLES, FIRST, EVERY = 168, 1000, 20  # MLPerf's schedule: epochs of all 168 training cases
PAD_VALUE = -2.2  # of MLPerf's reference; about the darkest value of a normalised CT
FOLD_SEED = 2001  # folds are the same whatever the seed of a run, which is drawn
LOST = 1e-6  # a mean Dice below this is a run that has diverged (reference)
METRIC_NOTES = """Mean, kidney and tumour Dice as MLPerf scores them: argmax of the logits averaged over windows, on the
resampled grid, kidney without tumour, 1 where a class is in neither; with --eval-region rounded the sides are rounded
to half windows. KiTS kidney is kidney and tumour together on the scan's own grid, as are KiTS tumour, HD95
(mm; undefined (-) where one of the two is empty) and surface Dice (within --surface-tolerance mm).
Surfaces are counted by voxels, each as much as any other, not weighted by their area."""


class KiTS19(SegmentationTask):
    """Volumes (1, D, H, W) of CT -> logits (3, D, H, W) of background, kidney, tumour; scored by case."""

    Settings = OwnSettings
    settings: OwnSettings
    layout = dataset.LAYOUT
    metric = Metric("mean_dice", "max")
    item, subject, cost_unit = "crops", "case", "windows"
    columns = (
        Column("mean_dice", "mean Dice", "{:.4f}"),
        Column("kidney", "kidney", "{:.4f}"),
        Column("tumour", "tumour", "{:.4f}"),
        Column("loss", "loss", "{:.4f}"),
        Column("kits_kidney", "KiTS kidney", "{:.4f}"),
        Column("kits_tumour", "KiTS tumour", "{:.4f}"),
        Column("hd95_kidney", "HD95 kidney", "{:.2f}"),
        Column("hd95_tumour", "HD95 tumour", "{:.2f}"),
        Column("surface_kidney", "surf. kidney", "{:.4f}"),
        Column("surface_tumour", "surf. tumour", "{:.4f}"),
    )
    metric_notes = METRIC_NOTES
    figure_title = "slices with most kidney and most tumour of each case, from worst to best mean Dice"
    foreground = "kidney or tumour"
    label_values = "labels of 1 (kidney) and 2 (tumour)"
    classes = NAMES
    fold_seed = FOLD_SEED
    colour_key = tuple(zip(NAMES, COLOURS, strict=True))

    def describe_input(self) -> str:
        return f"crops of {sides(self.settings.patch)}, windows of {sides(self.settings.eval_patch)}"

    def describe_window(self) -> str:
        return f"windows of {sides(self.settings.eval_patch)}"

    def input_shape(self) -> tuple[int, ...]:
        return 1, 1, *self.settings.patch

    def eval_input_shape(self) -> tuple[int, ...]:
        return 1, 1, *self.settings.eval_patch

    def eval_schedule(self, samples: int, step: int) -> tuple[int, int]:
        """First evaluation and distance in epochs: 1000 and 20 epochs of 168 samples, however many samples an epoch
        here trains (--epoch-samples padded: as if its last batch were full, as the rules' text has it; the reference
        counts what is trained). Source: MLPerf training rules."""
        if self.settings.epoch_samples == "padded":
            samples = math.ceil(SAMPLES / step) * step
        return math.ceil(FIRST * SAMPLES / samples), math.ceil(EVERY * SAMPLES / samples)

    def is_diverged(self, score: float) -> bool:
        return score < LOST

    def plan(self, shape: Sequence[int], region: str) -> windows.Plan:
        """The windows of scoring over a volume (D, H, W)."""
        return windows.plan(shape, self.settings.eval_patch, self.settings.overlap, region)

    def logits(self, image: Any, plan: windows.Plan, predictor: Predictor) -> Tensor:
        """(1, D, H, W) array -> logits (3, d, h, w) of the plan's part, where `predictor` leaves them."""
        found: Tensor = predictor.windows(image, plan, self.settings.blend, self.settings.mirror, PAD_VALUE)
        return found

    def warm_up(self, predictor: Predictor) -> None:
        """A full group of windows, and a short one."""
        import torch

        depth, *sides = self.settings.eval_patch
        depth += self.config.eval.eval_batch_size * windows.stride(depth, self.settings.overlap)
        self.logits(torch.zeros(1, depth, *sides), self.plan((depth, *sides), "full"), predictor)

    def index(self, root: Path) -> list[Case]:
        return dataset.index(root, self.settings)

    def synthesize(self, path: Path, seed: int, overwrite: bool = False) -> None:
        from unet.tasks.kits19 import synthetic

        made, labels = self.config.synthetic, self.config.labels.labels
        shape = (made.slices, made.side, made.side)
        folder = resolve_path(labels, "data") if labels else None
        synthetic.write_set(path, made.patients, shape, max(seed, 0), folder, overwrite)

    def cache_settings(self) -> dict[str, Any]:
        """What decides the content of the cache."""
        found: dict[str, Any] = {"spacing": list(self.settings.spacing), "pad_to": list(self.settings.pad_to)}
        if self.settings.label_geometry != alignment.HEADER:
            found["label_geometry"] = self.settings.label_geometry
        return found

    def preprocess(self, case: Case) -> dict[str, Any]:
        return dataset.prepare(case, self.settings)

    def set_warnings(self, cases: Sequence[CachedCase]) -> list[str]:
        voxels = sum(math.prod(case.shape) for case in cases)
        return check.set_remarks([case.foreground for case in cases], voxels)

    def named_splits(self) -> dict[str, Callable[[Sequence[str]], splits.Split]]:
        return {"mlperf": dataset.mlperf_split}

    def train_loader(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int],
        options: dict[str, Any],
        to_device: Callable[[Tensor], Tensor],
    ) -> Loader:
        self.require_foreground(cases)
        from unet.data.loading.augment import Change, on_host
        from unet.data.loading.crops import EpochCrops, Volumes
        from unet.data.loading.loader import Loader

        change = Change(self.settings.brightness, self.settings.noise) if self.config.train.augment else None
        workers, options = self.loader_workers(options)
        volumes = Volumes(cases, self.config.device.data_on, to_device, shared=workers > 0)
        crops = EpochCrops(
            *(volumes, self.settings.patch, self.config.train.batch_size),
            *(self.config.general.seed, self.settings.oversampling, change),
            last_offset=self.settings.last_offset,
            shard=shard,
            noise=self.compute.generator if self.config.device.data_on == "device" else on_host,
        )
        return Loader(crops, workers, options)

    def random_batch(self) -> dict[str, Tensor]:
        import torch

        found = super().random_batch()
        return {**found, "mask": torch.randint_like(found["mask"], CLASSES).to(torch.uint8)}

    def build_model(self) -> nn.Module:
        """The reference's network, 31,190,243 parameters with the default settings; with --encoder nnU-Net's."""
        from unet.models.planned_unet import PlannedUNet
        from unet.models.unet import UNet, UNetShape

        if self.settings.encoder != "reference":
            return PlannedUNet(self.settings.shape(self.config))
        width = self.config.network.width
        *features, bottleneck = unet_widths(width, self.config.network.layers, 10 * width)
        return UNet(
            UNetShape(
                dims=3,
                inputs=1,
                outputs=CLASSES,
                features=tuple(features),
                bottleneck=bottleneck,
                norm=self.settings.normalization,
                activation=self.settings.activation,
                down="stride",
            )
        )

    def loss(self, outputs: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from unet.models.losses import deep_supervision_loss, dice_ce_loss, nnunet_loss

        background = self.settings.include_background
        if self.settings.encoder != "reference":
            levels = outputs if isinstance(outputs, tuple) else (outputs,)
            one = functools.partial(nnunet_loss, include_background=background, chunk=self.compute.chunk)
            return {"loss": deep_supervision_loss(levels, batch["mask"], one)}
        return {"loss": dice_ce_loss(outputs, batch["mask"], background, self.compute.chunk)}

    def reference_step(self) -> tuple[nn.Module, Step]:
        """The reference's step: the plain network, and the loss from one-hot labels."""
        from unet.models.losses import plain_dice_ce

        if self.settings.encoder != "reference":
            return super().reference_step()
        background = self.settings.include_background
        return self.build_model(), lambda model, batch: plain_dice_ce(model(batch["image"]), batch["mask"], background)

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: mean_dice, kidney, tumour, loss (--eval-loss); with `full` also KiTS19's own scores, HD95 and
        surface Dice on the original grid. Arrays: image, prediction, target (D, H, W) of the scored region."""
        from unet.models import label_maps

        image, mask = case.arrays()
        if self.settings.eval_crop and not full:
            place = crop_about(mask[0], self.settings.eval_crop)
            image, mask = (array[(slice(None),) + place] for array in (image, mask))
        plan = self.plan(image.shape[1:], self.settings.eval_region)
        logits = self.logits(image, plan, predictor)
        image, target = image[0][plan.crop], tensor(mask[0][plan.crop]).to(logits.device)
        chunk = self.compute.chunk
        prediction = label_maps.label_map(logits, chunk)
        _, kidney, tumour = label_maps.dice_by_class(prediction, target, CLASSES, chunk)
        numbers = {"mean_dice": (kidney + tumour) / 2, "kidney": kidney, "tumour": tumour}
        if self.settings.eval_loss:
            loss_of = label_maps.dice_ce_of if self.settings.encoder == "reference" else label_maps.nnunet_loss_of
            numbers["loss"] = loss_of(logits, target, self.settings.include_background, chunk)
        if full:
            numbers |= self.original(case, plan, logits, predictor)
        return numbers, {"image": image, "prediction": prediction.cpu().numpy(), "target": target.cpu().numpy()}

    def original(self, case: CachedCase, plan: windows.Plan, logits: Tensor, predictor: Predictor) -> dict[str, float]:
        """Scores of the whole case on the scan's own grid; on the cache's where the raw set is not at hand."""
        from unet.models import label_maps
        from unet.tasks.kits19 import metrics

        image = case.arrays()[0]
        whole = self.plan(image.shape[1:], "full")
        if whole != plan:
            logits = self.logits(image, whole, predictor)
        found = self.truth(case)
        if found is None:
            target, spacing = case.arrays()[1][0], self.settings.spacing
            prediction = label_maps.label_map(logits, self.compute.chunk).cpu().numpy()
        else:
            target, geometry = found
            spacing = geometry.spacing
            prediction = grids.turned(grids.restore(logits.cpu().numpy(), geometry), geometry)
        return metrics.full_scores(prediction, target, spacing, self.settings.surface_tolerance)

    def truth(self, case: CachedCase) -> tuple[Any, grids.Geometry] | None:
        """The labels of a case on its scan's grid and the scan's way to the network's; None, with a notice, where the
        raw set is not at hand or is not what the cache was made of."""
        import numpy as np

        raw = raw_files(resolve_path(self.config.data.data, "data")).get(case.id)
        grid = "KiTS19's own scores, HD95 and surface Dice are those of the cache's grid"
        if raw is None or not raw.labels or not raw.images:
            host.notice_once(f"Without the raw set {grid}.")
            return None
        try:
            files = Case(case.id, tuple(raw.images[:1]), tuple(raw.labels[:1]))
            target, geometry = dataset.truth(files, self.settings)
            same = geometry.size == case.shape[1:]
            if same and not case.own:  # a cache without manifest: nobody has compared it with this set
                same = np.array_equal(dataset.resampled_label(files, self.settings), case.arrays()[1][0])
        except DataError as error:
            host.notice_once(f"{error.message} {case.id}: {grid}.")
            return None
        if not same:
            host.notice_once(f"{case.id}: the cache was not made of {raw.labels[0]}; {grid}.")
            return None
        return target, geometry

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.panel(arrays)

    def slices(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        return figure.slices(arrays)

    def find_inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        found, others = volumes.dicom_inputs(paths, self.config.predict.series)
        found |= dataset.inputs(others) if others else {}
        return {Path(name): [image] for name, image in found.items()}

    def source_files(self, image: Path, options: PredictOptions) -> list[Path]:
        return volumes.files_of(image)

    def output_files(self, image: Path, output_prefix: Path, options: PredictOptions) -> dict[str, Path]:
        dicom = volumes.kind_of(image) == volumes.DICOM
        endings = volumes.output_suffixes(image, options.format) if dicom else {"mask": ".nii.gz"}
        found = {name: output_prefix.with_name(f"{output_prefix.name}{ending}") for name, ending in endings.items()}
        if options.overlay:
            found["overlay"] = output_prefix.with_name(f"{output_prefix.name}_overlay.png")
        if options.probabilities:
            found |= {name: output_prefix.with_name(f"{output_prefix.name}_{name}.nii.gz") for name in NAMES}
        return found

    def predict_case(
        self,
        images: Sequence[Path],
        wanted: Sequence[Path],
        predictor: Predictor,
        options: PredictOptions,
    ) -> Iterator[Output]:
        """Mean logits of the networks over every voxel of a scan, then its labels (uint8: 0, 1 kidney, 2 tumour) on
        the scan's own grid, with its affine.

        On request the slices with most kidney and most tumour as PNG, and the probabilities of both (float32 NIfTI).
        Raises DataError.
        """
        from unet.data.io.outputs import Output
        from unet.models import label_maps

        for image in images:
            volume, geometry = dataset.prepare_image(image, self.settings)
            logits = self.logits(volume, self.plan(volume.shape[1:], "full"), predictor).cpu()
            if options.probabilities:
                for name, scores in zip(NAMES, logits.softmax(0).numpy()[1:], strict=True):
                    yield Output(image, name, grids.restore_scores(scores, geometry), "nifti")
            mask = grids.restore(logits.numpy(), geometry)
            if options.overlay:
                labels = label_maps.label_map(logits, self.compute.chunk).numpy()[geometry.inner]
                yield Output(image, "overlay", figure.overlay(volume[0][geometry.inner], labels), "png")
            names = {f"class_{value}": name for value, name in enumerate(("background", *NAMES))}
            also = [name for name in self.output_files(image, Path("mask"), options) if name == "nifti"]
            for name in (*also, "mask"):
                yield Output(image, name, mask, "nifti", names=names)

    def check_raw(self, path: Path) -> checks.Report:
        return check.raw(path, self.split, self.checksum_list(), self.settings.label_geometry)

    def check_cache(self, path: Path) -> checks.Report:
        return check.cached(path, self.checksum_list(), self.settings.eval_patch, self.settings.overlap)

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        from unet.models.convert import is_nnunet

        if self.settings.encoder != "reference" or is_nnunet(state):
            return super().convert_checkpoint(state)
        return deployment.converted(state, self.settings.activation)

    def deployment(self) -> dict[str, Any]:
        return deployment.described(self.settings, PAD_VALUE)

    def reference_checkpoint(self, state: Mapping[str, Tensor], published: bool) -> dict[str, Any]:
        return deployment.reference(state, self.settings.encoder)

    def checksum_list(self) -> Path | None:
        listed = self.config.check.checksums
        return Path(listed) if listed else None

    def mlperf(self) -> MLPerfBenchmark:
        from unet.tasks.kits19 import mlperf

        return mlperf.benchmark(self.settings, self.config.network.layers, self.build_model)


TASK = KiTS19


def sides(lengths: Sequence[int]) -> str:
    """128^3, or 128 x 160 x 96."""
    return f"{lengths[0]}^3" if len(set(lengths)) == 1 else " x ".join(map(str, lengths))


def tensor(array: Any) -> Tensor:
    """A tensor of an array that may be a read-only memory map or have negative strides."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(array))


def crop_about(mask: Any, size: Sequence[int]) -> tuple[slice, ...]:
    """The part of a volume, at most `size` voxels, about the middle of what is labelled (else of the whole)."""
    import numpy as np

    found = []
    for axis, (side, length) in enumerate(zip(mask.shape, size, strict=True)):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        held = np.flatnonzero(mask.any(others))
        middle = (int(held[0]) + int(held[-1]) + 1) // 2 if len(held) else side // 2
        low = max(0, min(middle - length // 2, side - length))
        found.append(slice(low, min(side, low + length)))
    return tuple(found)


@functools.cache
def raw_files(root: Path) -> dict[str, dataset.Found]:
    """The files of a raw set by case, looked for once; none where there is no such folder."""
    try:
        return dataset.find(root) if root.is_dir() else {}
    except DataError:
        return {}
