"""LGG brain tumours in MRI, 2D UNet: the system of the Argonne benchmark, with the published recipe of
brain-segmentation-pytorch (Buda, Saha, Mazurowski, Computers in Biology and Medicine 2019) where that one's is
defective."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unet import host
from unet.config.task_settings import unet_widths
from unet.data import checks, drawing
from unet.data.cases import Case
from unet.data.preprocessing import masks
from unet.errors import CheckpointError, DataError
from unet.tasks.base import Column, Metric, Predictor
from unet.tasks.lgg import check, dataset, deployment
from unet.tasks.lgg.settings import Settings as OwnSettings
from unet.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.config.flags_training import PredictOptions
    from unet.data.cache.cached_case import CachedCase
    from unet.data.io.outputs import Output
    from unet.data.loading.loader import Loader
    from unet.data.preprocessing.slice_geometry import Geometry

LEVEL = 0.5
METRIC_NOTES = """DSC: 1 where mask and prediction are empty, 0 where one is. HD95: the larger of the two directed 95th
percentiles of surface distance in 3-D, in pixels of the evaluated grid, a step between slices counting as
one; undefined (-) where one of the two is empty. Volume error: (predicted - true) / true; undefined (-)
where only the truth is empty. Undefined values are left out of mean and median.
Surfaces are counted by voxels, each as much as any other, not weighted by their area."""


class LGG(SegmentationTask):
    """Slices (3, H, W) -> probability of tumour (1, H, W); scored by patient volume."""

    Settings = OwnSettings
    settings: OwnSettings
    layout = dataset.LAYOUT
    metric = Metric("dsc", "max")
    columns = (
        Column("dsc", "DSC", "{:.4f}"),
        Column("hd95", "HD95 px", "{:.2f}"),
        Column("volume_error", "volume error", "{:+.1%}"),
        Column("loss", "loss", "{:.4f}"),
    )
    metric_notes = METRIC_NOTES
    figure_title = "slice with most tumour of each patient, from worst to best DSC"
    colour_key = drawing.KEY
    foreground = "tumour"
    label_values = "masks of 0 and 255 (tumour)"
    classes = ("tumour",)
    mask_classes: ClassVar[dict[int, str]] = {255: "tumour"}

    def describe_input(self) -> str:
        return f"{self.settings.image_size} px"

    def input_shape(self) -> tuple[int, ...]:
        return 1, self.settings.inputs, self.settings.image_size, self.settings.image_size

    def index(self, root: Path) -> list[Case]:
        return dataset.index(root)

    def cache_settings(self) -> dict[str, Any]:
        """What decides the content of the cache."""
        return {"image_size": self.settings.image_size}

    def preprocess(self, case: Case) -> dict[str, Any]:
        return dataset.prepare(case, self.settings.image_size)

    def set_warnings(self, cases: Sequence[CachedCase]) -> list[str]:
        return masks.remarks(cases, "tumour")

    def train_loader(
        self,
        cases: Sequence[CachedCase],
        shard: tuple[int, int],
        options: dict[str, Any],
        to_device: Callable[[Tensor], Tensor],
    ) -> Loader:
        self.require_foreground(cases)
        from unet.data.loading import augment
        from unet.data.loading.loader import EpochBatches, Loader, Slices
        from unet.data.loading.memory import shared_by

        own = self.settings
        ranges = own.aug_scale, own.aug_angle, own.aug_intensity, own.aug_missing
        change = augment.affine_with(*ranges) if self.config.train.augment else None
        workers, options = self.loader_workers(options)
        where, shared = self.config.device.data_on, shared_by(workers, options)
        slices = Slices(cases, where, to_device, shared, own.neighbours)
        train, seed = self.config.train, self.config.general.seed
        return Loader(EpochBatches(slices, train.batch_size, seed, change, shard), workers, options)

    def build_model(self) -> nn.Module:
        from unet.models.unet import UNet, UNetShape

        *features, bottleneck = unet_widths(self.config.network.width, self.config.network.layers)
        return UNet(UNetShape(inputs=self.settings.inputs, features=tuple(features), bottleneck=bottleneck))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        from unet.models.losses import batch_dice_bce_loss, batch_dice_loss

        if self.settings.loss == "dice-ce":
            return {"loss": batch_dice_bce_loss(outputs, batch["mask"])}
        return {"loss": batch_dice_loss(outputs.float().sigmoid(), batch["mask"])}

    def to_input(self, image: Any) -> Tensor:
        """(S, H, W, 3) array -> (S, 3 (2 n + 1), H, W) float32 tensor: each slice between its n neighbours, the lowest
        first; at the ends the last slice stands for those that are missing."""
        import torch

        found = to_slices(image)
        reach = self.settings.neighbours
        places = torch.arange(len(found))
        beside = [found[(places + offset).clamp(0, len(found) - 1)] for offset in range(-reach, reach + 1)]
        return torch.cat(beside, 1) if reach else found

    def evaluate_case(
        self, case: CachedCase, predictor: Predictor, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: loss, dsc; with `full` also hd95 (pixels of the network's grid, a step between slices counting as
        one pixel) and volume_error. Arrays: probability (S, H, W) float32, prediction, target (S, H, W) bool."""
        import torch
        from torch.nn import functional as F

        from unet.metrics import overlap, surface
        from unet.models.losses import batch_dice_loss

        image, mask = case.arrays()
        probability = predictor.slices(self.to_input(image), to_probability, self.settings.mirror)
        target = mask[..., 0] > 0
        p, t = torch.from_numpy(probability), torch.from_numpy(target).float()
        loss = batch_dice_loss(p, t) + (F.binary_cross_entropy(p, t) if self.settings.loss == "dice-ce" else 0)
        prediction = overlap.largest_component(probability > LEVEL)
        numbers = {"loss": loss.item(), "dsc": overlap.dice(prediction, target)}
        if full:
            numbers |= {
                "hd95": surface.hausdorff95(prediction, target),
                "volume_error": overlap.volume_error(prediction, target),
            }
        return numbers, {"probability": probability, "prediction": prediction, "target": target}

    def figure(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """FLAIR, outlines and probability of the slice with most tumour."""
        import numpy as np

        image, _ = case.arrays()
        number = int((arrays["target"] if arrays["target"].any() else arrays["probability"]).sum((1, 2)).argmax())
        grey = drawing.grey(drawing.stretched(np.asarray(image[number, ..., 1], dtype=np.float32)))
        outlined = drawing.outlined(grey, arrays["prediction"][number], arrays["target"][number])
        return {"FLAIR": grey, "truth and prediction": outlined, "probability": arrays["probability"][number]}

    def slices(self, case: CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """FLAIR, and the masks."""
        image, _ = case.arrays()
        grey = drawing.grey(drawing.stretched(image[..., 1]))[..., 0]
        return {"image": grey, "truth": arrays["target"], "prediction": arrays["prediction"]}

    def restore(self, arrays: Any, raw: Geometry) -> Any:
        """Probability (S, size, size) -> (S, H, W) on the raw slices: linear interpolation back to the square, then
        the crop is put where it came from; 0 outside."""
        import numpy as np
        import torch
        from torch.nn import functional as F

        square = torch.from_numpy(arrays)[:, None]
        if raw.size != raw.side:
            square = F.interpolate(
                square, size=(raw.side, raw.side), mode="bilinear", align_corners=False, antialias=raw.side < raw.size
            )
        _, (top, bottom), (left, right) = raw.box
        y, x = raw.before
        result = np.zeros((len(arrays), *raw.raw[1:]), np.float32)
        result[:, top:bottom, left:right] = square[:, 0, y : y + bottom - top, x : x + right - left].numpy()
        return result

    def find_inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        return dataset.patients_of(paths)

    def output_files(self, image: Path, output_prefix: Path, options: PredictOptions) -> dict[str, Path]:
        found = {"mask": output_prefix / image.name}
        if options.overlay:
            found["overlay"] = output_prefix / f"{image.stem}_overlay.png"
        if options.probabilities:
            found["probability"] = output_prefix / f"{image.stem}_probability.tif"
        return found

    def source_files(self, image: Path, options: PredictOptions) -> list[Path]:
        """A slice, and the true mask beside it where that is drawn."""
        truth = dataset.mask_of(image)
        return [image, truth] if options.overlay and truth.exists() else [image]

    def predict_case(
        self,
        images: Sequence[Path],
        wanted: Sequence[Path],
        predictor: Predictor,
        options: PredictOptions,
    ) -> Iterator[Output]:
        """Mean probability over a patient's `images`, then masks {0, 255} uint8 of the `wanted` ones.

        On request outlines (PNG; truth in blue where a mask lies beside the image) and probabilities (float32). A
        patient with nothing in it gets empty masks. Raises DataError.
        """
        import numpy as np

        from unet.data.io.images import read_rgb, stack_shape
        from unet.data.io.outputs import Output
        from unet.data.preprocessing.slice_geometry import BlankError
        from unet.metrics.overlap import largest_component

        if len(images) < 3:
            given = host.counted(len(images), "slice")
            host.notice(f"{images[0].parent}: {given}; intensities are normalised without the others")
        try:
            volume, geometry = dataset.prepare_for_prediction(images, self.settings.image_size)
            probability = predictor.slices(
                self.to_input(volume),
                lambda logits: self.restore(to_probability(logits), geometry),
                self.settings.mirror,
            )
        except BlankError as error:
            host.notice(f"{images[0].parent}: {error.message} Its masks are empty.")
            probability = np.zeros((len(images), *stack_shape(images[0])[1:]), np.float32)
        mask = largest_component(probability > LEVEL)
        for number, image in enumerate(images):
            if image not in wanted:
                continue
            if options.probabilities:
                yield Output(image, "probability", probability[number], "tiff")
            if options.overlay:
                drawn = drawing.outlined(flair(read_rgb(image)), mask[number], truth_beside(image))
                yield Output(image, "overlay", drawing.enlarged(drawn), "png")
            yield Output(image, "mask", mask[number].astype("uint8") * 255, "tiff")

    def check_raw(self, path: Path) -> checks.Report:
        return check.raw(path, self.split)

    def synthesize(self, path: Path, seed: int, overwrite: bool = False) -> None:
        from unet.tasks.lgg import synthetic

        made = self.config.synthetic
        synthetic.write_set(path, made.patients, made.slices, made.side, seed, overwrite)

    def convert_checkpoint(self, state: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Tensor]]:
        from unet.models import convert
        from unet.models.unet import UNet

        bare = convert.strip_prefixes(state)
        own = convert.from_published_lgg(bare) if convert.is_published_lgg(bare) else bare
        shape = convert.shape_of(own, self.name)
        seen, rest = divmod(shape.inputs - 3, 6)
        if not rest and seen != self.settings.neighbours:
            raise CheckpointError(
                f"These weights take {shape.inputs} channels, and --neighbours {self.settings.neighbours} gives"
                f" {self.settings.inputs}.",
                f"Type --neighbours {seen}, or give other weights.",
            )
        return UNet(shape), own

    def deployment(self) -> dict[str, Any]:
        return deployment.described(self.settings, LEVEL)

    def reference_checkpoint(self, state: Mapping[str, Tensor], published: bool) -> dict[str, Any]:
        from unet.models import convert

        return dict(convert.to_published_lgg(state, argonne=not published))


TASK = LGG


def to_slices(image: Any) -> Tensor:
    """(S, H, W, 3) array -> (S, 3, H, W) float32 tensor."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image, dtype=np.float32)).permute(0, 3, 1, 2)


def to_probability(logits: Tensor) -> Any:
    """(S, 1, H, W) -> probability (S, H, W) float32 array."""
    return logits.float().sigmoid()[:, 0].numpy()


def truth_beside(image: Path) -> Any | None:
    """The mask beside an image, (H, W) bool; None where there is none, or, with a notice, where it cannot be read."""
    from unet.data.io.images import read_mask
    from unet.data.preprocessing.masks import binary

    path = dataset.mask_of(image)
    if not path.exists():
        return None
    try:
        return binary([read_mask(path)], [path])[0][0]
    except DataError as error:
        host.notice(f"drawn without its true mask: {error.message}")
        return None


def flair(image: Any) -> Any:
    """The FLAIR channel of (H, W, 3) as a grey image of the same shape: outlines are lost on false colours."""
    return image[..., 1:2].repeat(3, axis=2)
