"""Membranes of neurons in electron micrographs (ISBI 2012), 2D UNet of valid convolutions: the UNet Medical benchmark
of NVIDIA and Habana, trained by steps, scored in five folds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.schema import Config, where
from unet.data import drawing, splits
from unet.data.cache import cache
from unet.data.cases import Case
from unet.data.checks import Report
from unet.data.io.arrays import write_stack
from unet.data.io.images import pixel_size
from unet.data.preprocessing import masks
from unet.errors import DataError, UsageError
from unet.files import make_folder
from unet.tasks.base import Infer, Task, loading
from unet.tasks.em import check, dataset

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.data.loading.loader import Loader

ROUND = 100  # steps of an "epoch" where nothing is evaluated in between
PHANTOM_SEED = FOLD_SEED = 123  # the folds are the same whatever the seed of a run
LEVEL = 0.5
FOOT = """Dice: the benchmark's eval_dice_score, the mean soft Dice of both classes on the network's output. Rand and
information: foreground-restricted scores of the ISBI challenge after border thinning, each at its best threshold, on
the raw slices' own grid."""


class EM(Task):
    """Slices (1, S + margin, S + margin) -> logits (2, S, S) of membrane and cell; scored by slice."""

    name = "em"
    layout = dataset.LAYOUT
    best = ("dice", "max")
    item, subject, unit = "slices", "slice", "slices"
    by_steps = True
    columns = (
        ("dice", "Dice", "{:.4f}"),
        ("ce_loss", "CE loss", "{:.4f}"),
        ("dice_loss", "Dice loss", "{:.4f}"),
        ("loss", "loss", "{:.4f}"),
        ("rand", "Rand", "{:.4f}"),
        ("information", "information", "{:.4f}"),
    )
    foot = FOOT
    picture = "membranes of slices, from worst to best Dice"
    key = drawing.KEY
    tied = ("image_size", "raw_side", "context", "layers")

    @property
    def given(self) -> str:
        return "stack"

    def size(self, config: Config) -> str:
        return f"{config.image_size} px in, {output(config)} px out"

    def shape(self, config: Config) -> tuple[int, ...]:
        return 1, 1, config.image_size, config.image_size

    def sizing(self, config: Config) -> str:
        return f"--image-size {config.image_size}"

    def asked(self, config: Config) -> tuple[int | None, int | None]:
        """Of the epochs that `batches` makes: each ends in an evaluation where --evaluate-every asks for one."""
        return config.start_eval_at, 1 if config.evaluate_every else 0

    def completed(self, config: Config, cases: Sequence[cache.CachedCase], world: int) -> Config:
        """The side of the raw slices, and the steps of each of several processes. Source: the seed's train_steps."""
        sides = {int(side) for case in cases for side in case.facts.get("raw", ())}
        if config.raw_side is None and len(sides) == 1:
            config = config.replace(raw_side=sides.pop())
        if config.max_steps and world > 1:
            config = config.replace(max_steps=max(1, config.max_steps // world))
        return config

    def index(self, config: Config) -> list[Case]:
        root = where(config.data, "data")
        if config.synth_data:
            self.synthesize(root, config.replace(seed=PHANTOM_SEED, overwrite=False))
        return dataset.index(root)

    def synthesize(self, path: Path, config: Config) -> None:
        from unet.tasks.em import synthetic

        synthetic.write_set(path, config.slices, config.side, max(config.seed, 0), config.overwrite)

    def settings(self, config: Config) -> dict[str, Any]:
        """What decides the content of the cache."""
        return {"image_size": config.image_size, "layers": config.layers}

    def prepare(self, case: Case, config: Config) -> dict[str, Any]:
        return dataset.prepare(case, output(config))

    def remarks(self, cases: Sequence[cache.CachedCase]) -> list[str]:
        return masks.remarks(cases, "membrane", background=True)

    def split(self, ids: Sequence[str], config: Config, training: bool = True) -> splits.Split:
        if config.fold is not None and config.fold_scheme == "seed":
            return splits.seed_fold(ids, config.fold, max(config.seed, 0))
        return splits.make(ids, config.split, config.held_out, config.fold, config.folds, FOLD_SEED, training=training)

    def batches(
        self,
        cases: Sequence[cache.CachedCase],
        config: Config,
        shard: tuple[int, int],
        options: dict[str, Any],
        place: Callable[[Tensor], Tensor],
    ) -> Loader:
        from unet.data.loading.augment import Frame
        from unet.data.loading.loader import Loader, Slices, StreamBatches
        from unet.data.tiles import margin

        frame = Frame(margin(config.layers), config.context, config.aug_crop, config.aug_brightness, config.augment)
        length = config.accumulate * min(config.evaluate_every or ROUND, config.max_steps or ROUND)
        slices = Slices(cases, config.data_on, place)
        workers, options = loading(config, options)
        stream = StreamBatches(slices, config.batch_size, config.seed, frame, shard, length)
        return Loader(stream, workers, options)

    def model(self, config: Config) -> nn.Module:
        """The benchmark's network, 34,512,258 parameters with the default settings; Glorot-uniform weights."""
        from unet.models.unet import UNet, UNetShape, glorot

        features = tuple(config.width * 2**level for level in range(config.layers))
        bottleneck, norm = config.width * 2**config.layers, config.normalization
        shape = UNetShape(
            inputs=1, outputs=2, features=features, bottleneck=bottleneck, norm=norm, up_kernel=3, **fixed(config)
        )
        return glorot(UNet(shape))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        from unet.models.losses import two_class_losses

        ce, dice = two_class_losses(outputs, batch["mask"], config.cross_entropy)
        return {"loss": ce + dice, "ce_loss": ce, "dice_loss": dice}

    def evaluate(
        self, case: cache.CachedCase, infer: Infer, config: Config, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: dice, ce_loss, dice_loss, loss; with `full` also rand and information. Arrays: image, probability
        (of cell), target (S, S) on the network's scale."""
        import torch

        from unet.data.tiles import framed, margin
        from unet.metrics import membranes
        from unet.models.losses import two_class_losses

        image, mask = (torch.from_numpy(array[..., 0].copy())[None] for array in case.arrays())
        logits = infer(framed(image, margin(config.layers) // 2, config.context)).float()
        ce, dice = (value.item() for value in two_class_losses(logits, mask, config.cross_entropy))
        numbers = {"dice": 1 - dice, "ce_loss": ce, "dice_loss": dice, "loss": ce + dice}
        probability, target = logits.softmax(1)[0, 1].numpy(), mask[0, 0].numpy() > 0
        if full:
            truth = raw_truth(case, config)
            cells = target if truth is None else truth
            numbers["rand"], numbers["information"] = membranes.scores(dataset.scaled(probability, cells.shape), cells)
        return numbers, {"image": image[0, 0].numpy(), "probability": probability, "target": target}

    def panel(self, case: cache.CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """Slice, its membranes, probability of a membrane."""
        grey = drawing.grey((arrays["image"] + 1) / 2)
        both = drawing.filled(grey, arrays["probability"] <= LEVEL, ~arrays["target"])
        return {"slice": grey, "truth and prediction": both, "probability of a membrane": 1 - arrays["probability"]}

    def inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        return dataset.inputs(paths)

    def outputs(self, image: Path, place: Path, config: Config) -> dict[str, Path]:
        found = {"mask": place.with_name(f"{place.name}-masks.tif")}
        if config.overlay:
            found["overlay"] = place.with_name(f"{place.name}-overlays.tif")
        if config.probabilities:
            found["probability"] = place.with_name(f"{place.name}-probabilities.tif")
        return found

    def predict(
        self, images: Sequence[Path], wanted: Sequence[Path], place: Path, members: Sequence[Infer], config: Config
    ) -> None:
        """Mean probability of "cell" of the `members` over every slice of a stack, then its masks {0, 255} uint8 on the
        stack's own grid, with its pixel size; on request the membranes over the image (RGB) and the probabilities
        (float32). Slices of any size, in tiles (`data.tiles`). Raises DataError, UsageError."""
        import numpy as np

        for path in wanted:
            stack = dataset.read(path)
            paths, pixel = self.outputs(path, place, config), pixel_size(path)
            step = batch_of(stack, config)
            groups = [stack[first : first + step] for first in range(0, len(stack), step)]
            shown = host.progress(groups, name=path.name, unit="batch") if len(groups) > 1 else groups
            cells = np.concatenate([self.probability(group, members, config, path) for group in shown])
            make_folder(place.parent)
            if config.probabilities:
                write_stack(paths["probability"], cells, *pixel)
            if config.overlay:
                pairs = zip(stack, cells, strict=True)
                drawn = [drawing.filled(drawing.grey(a / np.float32(255)), b <= LEVEL) for a, b in pairs]
                sheets = np.stack([drawing.enlarged(image) for image in drawn])
                write_stack(paths["overlay"], sheets, finer(pixel[0], drawing.factor(stack.shape[1:])), pixel[1])
            write_stack(paths["mask"], (cells > LEVEL).astype(np.uint8) * 255, *pixel)

    def probability(self, slices: Any, members: Sequence[Infer], config: Config, path: Path) -> Any:
        """(S, H, W) uint8 -> mean probability of "cell" (S, H, W) float32: brought to the scale of the training, where
        a raw side stands for the network's output, through the network tile by tile, and back."""
        import numpy as np
        import torch

        from unet.data import tiles

        if config.raw_side is None:
            raise UsageError(
                "These weights do not say what size their raw slices had.", "Type --raw-side 512 (that of ISBI 2012)."
            )
        side = output(config)
        height, width = (round(length * side / config.raw_side) for length in slices.shape[1:])
        if min(height, width) < 2:
            raise DataError(
                f"{path}: an image of {dataset.words(slices.shape[1:])} pixels is too small: these weights saw slices"
                f" of {config.raw_side} x {config.raw_side}, and of it {height} x {width} would be left.",
                "Give a larger image.",
            )
        small = torch.from_numpy(dataset.normalised(slices, (height, width)))[:, None]
        made = [tiles.apply(small, side, config.layers, config.context, infer).softmax(1)[:, 1] for infer in members]
        return np.clip(dataset.scaled(torch.stack(made).mean(0).numpy(), slices.shape[1:]), 0, 1)

    def check_raw(self, path: Path, config: Config) -> Report:
        return check.raw(path, functools.partial(self.split, config=config))

    def check_cache(self, path: Path, config: Config) -> Report:
        from unet.data import checks

        return checks.cached(path, self.layout, cache.make_manifest(self.layout, self.settings(config)))

    def load(self, state: Mapping[str, Any], config: Config) -> tuple[nn.Module, dict[str, Tensor]]:
        from unet.models import convert
        from unet.models.unet import UNet

        own = convert.strip_prefixes(state)
        return UNet(convert.shape_of(own, self.name, **fixed(config))), own


TASK = EM


def fixed(config: Config) -> dict[str, Any]:
    """What the weights of a network do not tell of its shape."""
    kind = config.activation
    return {"activation": kind, "up_activation": kind, "padding": "valid", "dropout": config.dropout}


def batch_of(stack: Any, config: Config) -> int:
    """Slices that are predicted together: one where a slice takes several tiles."""
    whole = config.raw_side is None or max(stack.shape[1:]) <= config.raw_side
    return config.eval_batch_size if whole else 1


def finer(pixels: tuple[Any, Any] | None, times: int) -> tuple[Any, Any] | None:
    """Pixels a unit along x and y, as rational numbers, of an image that was enlarged so many times."""
    return pixels and ((pixels[0][0] * times, pixels[0][1]), (pixels[1][0] * times, pixels[1][1]))


def output(config: Config) -> int:
    """Side of the network's output in pixels: 388 of 572."""
    return config.image_size - 12 * 2**config.layers + 8


def raw_truth(case: cache.CachedCase, config: Config) -> Any | None:
    """The cells of a case (H, W) bool on the labels' own grid; None, with a notice, where the raw set is gone."""
    path = label_files(where(config.data, "data")).get(case.id)
    raw = tuple(case.facts.get("raw", ()))
    try:
        found = dataset.cells_of(path, case.id)[0] if path else None
    except DataError:
        found = None
    if found is None or (raw and found.shape != raw):
        host.notice_once("Without the raw set Rand and information are those of the network's grid.")
        return None
    return found


@functools.cache
def label_files(root: Path) -> dict[str, Path]:
    """The label file of every case of a raw set; none where there is no such folder."""
    try:
        return {case.id: case.labels[0] for case in dataset.index(root)}
    except DataError:
        return {}
