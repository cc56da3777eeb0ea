"""Membranes of neurons in electron micrographs (ISBI 2012), 2D UNet of valid convolutions: the UNet Medical benchmark
of NVIDIA and Habana, trained by steps, scored in five folds."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unet import host
from unet.config.schema import Config, resolve_path
from unet.config.task_settings import unet_widths
from unet.data import drawing, splits
from unet.data.cases import Case
from unet.data.checks import Report
from unet.data.context import framed, margin
from unet.data.io.images import pixel_size
from unet.data.preprocessing import masks
from unet.errors import DataError, UsageError
from unet.tasks.base import Column, Metric, Predictor
from unet.tasks.em import check, dataset, deployment
from unet.tasks.em.settings import Settings as OwnSettings
from unet.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags_training import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader

ROUND = 100  # steps of an "epoch" where nothing is evaluated in between
FOLD_SEED = 123  # the folds are the same whatever the seed of a run
LEVEL = 0.5
METRIC_NOTES = """Dice: the benchmark's eval_dice_score, the mean soft Dice of both classes on the network's output.
Rand and information: foreground-restricted scores of the ISBI challenge after border thinning, on the raw slices'
own grid, each at the one threshold of all slices whose mean is best."""
WHOLE = ("rand", "information")  # scores whose threshold all slices decide


class EM(SegmentationTask):
    """Slices (1, S + margin, S + margin) -> logits (2, S, S) of membrane and cell; scored by slice."""

    Settings = OwnSettings
    settings: OwnSettings
    layout = dataset.LAYOUT
    metric = Metric("dice", "max")
    item, subject, cost_unit = "slices", "slice", "slices"
    by_steps = True
    columns = (
        Column("dice", "Dice", "{:.4f}"),
        Column("ce_loss", "CE loss", "{:.4f}"),
        Column("dice_loss", "Dice loss", "{:.4f}"),
        Column("loss", "loss", "{:.4f}"),
        Column("rand", "Rand", "{:.4f}"),
        Column("information", "information", "{:.4f}"),
    )
    metric_notes = METRIC_NOTES
    figure_title = "membranes of slices, from worst to best Dice"
    colour_key = drawing.KEY
    foreground = "membrane"
    label_values = "labels of 0 (membrane) and 255 (cell)"
    classes = ("membrane",)
    mask_classes: ClassVar[dict[int, str]] = {0: "membrane", 255: "cell"}
    fold_seed = synthetic_seed = FOLD_SEED

    @property
    def input_noun(self) -> str:
        return "stack"

    def describe_input(self) -> str:
        return f"{self.settings.image_size} px in, {self.output_side} px out"

    def input_shape(self) -> tuple[int, ...]:
        return 1, 1, self.settings.image_size, self.settings.image_size

    def requested_eval_schedule(self) -> tuple[int | None, int | None]:
        """Of the epochs that `batches` makes: each ends in an evaluation where --evaluate-every asks for one."""
        return self.config.train.start_eval_at, 1 if self.config.train.evaluate_every else 0

    def finalize_config(self, cases: Sequence[CachedCase], world: int) -> Config:
        """The side of the raw slices, and the steps of each of several processes. Source: Habana's train_steps."""
        config = self.config
        sides = {int(side) for case in cases for side in case.facts.get("raw", ())}
        if self.settings.raw_side is None and len(sides) == 1:
            config = config.replace(raw_side=sides.pop())
        if config.train.max_steps and world > 1:
            config = config.replace(max_steps=max(1, config.train.max_steps // world))
        return config

    def index(self, root: Path) -> list[Case]:
        return dataset.index(root)

    def synthesize(self, path: Path, seed: int, overwrite: bool = False) -> None:
        from unet.tasks.em import synthetic

        made = self.config.synthetic
        synthetic.write_set(path, made.slices, made.side, max(seed, 0), overwrite)

    def cache_settings(self) -> dict[str, Any]:
        """What decides the content of the cache."""
        return {"image_size": self.settings.image_size, "layers": self.config.network.layers}

    def preprocess(self, case: Case) -> dict[str, Any]:
        return dataset.prepare(case, self.output_side)

    def set_warnings(self, cases: Sequence[CachedCase]) -> list[str]:
        return masks.remarks(cases, "membrane", background=True)

    def split(self, ids: Sequence[str], training: bool = True) -> splits.Split:
        fold = self.config.split.fold
        if fold is not None and self.settings.fold_scheme == "seed":
            return dataset.published_fold(ids, fold, max(self.config.general.seed, 0))
        return super().split(ids, training)

    def train_loader(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int],
        options: dict[str, Any],
        to_device: Callable[[Tensor], Tensor],
    ) -> Loader:
        from unet.data.loading.augment import Frame
        from unet.data.loading.loader import Loader, Slices, StreamBatches
        from unet.data.loading.memory import shared_by

        frame = Frame(
            margin(self.config.network.layers),
            self.settings.context,
            self.settings.aug_crop,
            self.settings.aug_brightness,
            self.config.train.augment,
        )
        train = self.config.train
        steps = min(train.evaluate_every or ROUND, train.max_steps or ROUND)
        length, piece = train.accumulate * steps, train.accumulate * ROUND
        workers, options = self.loader_workers(options)
        slices = Slices(cases, self.config.device.data_on, to_device, shared_by(workers, options))
        stream = StreamBatches(slices, train.batch_size, self.config.general.seed, frame, shard, length, piece)
        return Loader(stream, workers, options)

    def mask_sides(self, sides: Sequence[int]) -> Sequence[int]:
        """Those of the network's output."""
        return (self.output_side,) * 2

    def build_model(self) -> nn.Module:
        """The benchmark's network, 34,512,258 parameters with the default settings; Glorot-uniform weights."""
        from unet.models.unet import UNet, UNetShape, glorot

        *features, bottleneck = unet_widths(self.config.network.width, self.config.network.layers)
        shape = UNetShape(2, 1, 2, tuple(features), bottleneck, self.settings.normalization, up_kernel=3)
        return glorot(UNet(dataclasses.replace(shape, **self.fixed_shape())))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from unet.models.losses import two_class_losses

        ce, dice = two_class_losses(outputs, batch["mask"], self.settings.cross_entropy)
        return {"loss": ce + dice, "ce_loss": ce, "dice_loss": dice}

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: dice, ce_loss, dice_loss, loss; with `full` also rand and information, by threshold. Arrays: image,
        probability (of cell), target (S, S) on the network's scale. Of several networks: the scores of their mean
        probability."""
        import torch

        from unet.metrics import membranes
        from unet.models.losses import two_class_losses

        image, mask = (torch.from_numpy(array[..., 0].copy())[None] for array in case.arrays())
        each = predictor.slices(self.with_context(image), average=list)
        logits, cross_entropy = each[0], self.settings.cross_entropy
        if len(each) > 1:  # as in prediction, the mean of the probabilities
            smallest = torch.finfo(torch.float32).tiny
            logits = torch.stack([one.softmax(1) for one in each]).mean(0).clamp(min=smallest).log()
            cross_entropy = "softmax"
        ce, dice = (value.item() for value in two_class_losses(logits, mask, cross_entropy))
        numbers = {"dice": 1 - dice, "ce_loss": ce, "dice_loss": dice, "loss": ce + dice}
        probability, target = logits.softmax(1)[0, 1].numpy(), mask[0, 0].numpy() > 0
        if full:
            truth = self.raw_truth(case)
            cells = target if truth is None else truth
            by_threshold = membranes.scores(dataset.scaled(probability, cells.shape), cells)
            for threshold, both in by_threshold.items():
                numbers |= {f"{key}_{threshold}": value for key, value in zip(WHOLE, both, strict=True)}
        return numbers, {"image": image[0, 0].numpy(), "probability": probability, "target": target}

    def common_scores(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """rand and information of each slice, at the threshold that is best for all."""
        from unet.metrics import membranes

        for key in WHOLE if records else ():
            names = {threshold: f"{key}_{threshold}" for threshold in membranes.THRESHOLDS}
            by_slice = [{threshold: row.pop(name) for threshold, name in names.items()} for row in records]
            for row, value in zip(records, membranes.best(by_slice), strict=True):
                row[key] = value
        return records

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """Slice, its membranes, probability of a membrane."""
        grey = drawing.grey((arrays["image"] + 1) / 2)
        both = drawing.filled(grey, arrays["probability"] <= LEVEL, ~arrays["target"])
        return {"slice": grey, "truth and prediction": both, "probability of a membrane": 1 - arrays["probability"]}

    def slices(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """The slice, and its membranes."""
        shown = {"image": drawing.grey((arrays["image"] + 1) / 2)[..., 0], "truth": ~arrays["target"]}
        shown["prediction"] = arrays["probability"] <= LEVEL
        return {name: panel[None] for name, panel in shown.items()}

    def find_inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        return dataset.inputs(paths)

    def output_files(self, image: Path, output_prefix: Path, options: PredictOptions) -> dict[str, Path]:
        found = {"mask": output_prefix.with_name(f"{output_prefix.name}-masks.tif")}
        if options.overlay:
            found["overlay"] = output_prefix.with_name(f"{output_prefix.name}-overlays.tif")
        if options.probabilities:
            found["probability"] = output_prefix.with_name(f"{output_prefix.name}-probabilities.tif")
        return found

    def predict_case(
        self,
        images: Sequence[Path],
        wanted: Sequence[Path],
        predictor: Predictor,
        options: PredictOptions,
    ) -> Iterator[Output]:
        """Mean probability of "cell" over every slice of a stack, then its masks {0, 255} uint8 on the stack's own
        grid, with its pixel size; on request the membranes over the image (RGB) and the probabilities
        (float32). Slices of any size, in tiles. Raises DataError, UsageError."""
        import numpy as np

        from unet.data.io.outputs import Output

        for path in wanted:
            stack = dataset.read(path)
            pixel, unit = pixel_size(path)
            step = self.batch_of(stack)
            groups = [stack[first : first + step] for first in range(0, len(stack), step)]
            shown = host.progress(groups, name=path.name, unit="batch") if len(groups) > 1 else groups
            cells = np.concatenate([self.probability(group, predictor, path) for group in shown])
            if options.probabilities:
                yield Output(path, "probability", cells, "stack", pixel, unit)
            if options.overlay:
                pairs = zip(stack, cells, strict=True)
                drawn = [drawing.filled(drawing.grey(a / np.float32(255)), b <= LEVEL) for a, b in pairs]
                sheets = np.stack([drawing.enlarged(image) for image in drawn])
                drawn_pixel = finer(pixel, drawing.factor(stack.shape[1:]))
                yield Output(path, "overlay", sheets, "stack", drawn_pixel, unit)
            yield Output(path, "mask", (cells > LEVEL).astype(np.uint8) * 255, "stack", pixel, unit)

    def probability(self, slices: Any, predictor: Predictor, path: Path) -> Any:
        """(S, H, W) uint8 -> mean probability of "cell" (S, H, W) float32: brought to the scale of the training, where
        a raw side stands for the network's output, through the network tile by tile, and back."""
        import numpy as np
        import torch

        if self.settings.raw_side is None:
            raise UsageError(
                "These weights do not say what size their raw slices had.", "Type --raw-side 512 (that of ISBI 2012)."
            )
        side = self.output_side
        height, width = (round(length * side / self.settings.raw_side) for length in slices.shape[1:])
        if min(height, width) < 2:
            raise DataError(
                f"{path}: an image of {dataset.words(slices.shape[1:])} pixels is too small: these weights saw slices"
                f" of {self.settings.raw_side} x {self.settings.raw_side}, and of it {height} x {width} would be left.",
                "Give a larger image.",
            )
        small = torch.from_numpy(dataset.normalised(slices, (height, width)))[:, None]
        cells = predictor.tiles(
            self.with_context(small),
            self.settings.image_size,
            side,
            2**self.config.network.layers,
            lambda logits: logits.softmax(1)[:, 1],
            lambda each: torch.stack(each).mean(0).numpy(),  # from 5 networks on, torch adds in an order of its own
        )
        return np.clip(dataset.scaled(cells, slices.shape[1:]), 0, 1)

    def with_context(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) with what the network's valid convolutions need around it."""
        return framed(images, margin(self.config.network.layers) // 2, self.settings.context)

    def check_raw(self, path: Path) -> Report:
        return check.raw(path, self.split)

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        from unet.models import convert
        from unet.models.unet import UNet

        own = convert.strip_prefixes(state)
        return UNet(convert.shape_of(own, self.name, **self.fixed_shape())), own

    def deployment(self) -> dict[str, Any]:
        return deployment.described(self.settings, self.output_side, 2**self.config.network.layers, LEVEL)

    @property
    def output_side(self) -> int:
        """Side of the network's output in pixels: 388 of 572."""
        return self.settings.image_size - margin(self.config.network.layers)

    def fixed_shape(self) -> dict[str, Any]:
        """What the weights of a network do not tell of its shape."""
        kind = self.settings.activation
        return {"activation": kind, "up_activation": kind, "padding": "valid", "dropout": self.settings.dropout}

    def batch_of(self, stack: Any) -> int:
        """Slices that are predicted together: one where a slice takes several tiles."""
        whole = self.settings.raw_side is None or max(stack.shape[1:]) <= self.settings.raw_side
        return self.config.eval.eval_batch_size if whole else 1

    def raw_truth(self, case: CachedCase) -> Any | None:
        """The cells of a case (H, W) bool on the labels' own grid; None, with a notice, where the raw set is gone."""
        path = label_files(resolve_path(self.config.data.data, "data")).get(case.id)
        raw = tuple(case.facts.get("raw", ()))
        try:
            found = dataset.cells_of(path, case.id)[0] if path else None
        except DataError:
            found = None
        if found is None or (raw and found.shape != raw):
            host.notice_once("Without the raw set Rand and information are those of the network's grid.")
            return None
        return found


TASK = EM


def finer(pixels: tuple[Any, Any] | None, times: int) -> tuple[Any, Any] | None:
    """Pixels a unit along x and y, as rational numbers, of an image that was enlarged so many times."""
    return pixels and ((pixels[0][0] * times, pixels[0][1]), (pixels[1][0] * times, pixels[1][1]))


@functools.cache
def label_files(root: Path) -> dict[str, Path]:
    """The label file of every case of a raw set; none where there is no such folder."""
    try:
        return {case.id: case.labels[0] for case in dataset.index(root)}
    except DataError:
        return {}
