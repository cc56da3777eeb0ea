"""LGG brain tumours in MRI, 2D UNet: the system of the Argonne benchmark, with the published recipe of
brain-segmentation-pytorch (Buda, Saha, Mazurowski, Computers in Biology and Medicine 2019) where that one's is
defective."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.schema import Config, where
from unet.data import checks, drawing, splits
from unet.data.cache import cache
from unet.data.cases import Case
from unet.data.preprocessing import masks
from unet.errors import DataError
from unet.files import make_folder
from unet.tasks.base import Infer, Task, loading
from unet.tasks.lgg import check, dataset

if TYPE_CHECKING:
    from torch import Tensor, nn

    from unet.data.loading.loader import Loader
    from unet.data.preprocessing.slice_geometry import Geometry

LEVEL = 0.5
PHANTOM_SEED = 2001
FOOT = """DSC: 1 where mask and prediction are empty, 0 where one is. HD95: the larger of the two directed 95th
percentiles of surface distance in 3-D, in pixels of the evaluated grid, a step between slices counting as
one; undefined (-) where one of the two is empty. Volume error: (predicted - true) / true; undefined (-)
where only the truth is empty. Undefined values are left out of mean and median.
Surfaces are counted by voxels, each as much as any other, not weighted by their area."""


class LGG(Task):
    """Slices (3, H, W) -> probability of tumour (1, H, W); scored by patient volume."""

    name = "lgg"
    layout = dataset.LAYOUT
    best = ("dsc", "max")
    columns = (
        ("dsc", "DSC", "{:.4f}"),
        ("hd95", "HD95 px", "{:.2f}"),
        ("volume_error", "volume error", "{:+.1%}"),
        ("loss", "loss", "{:.4f}"),
    )
    foot = FOOT
    picture = "slice with most tumour of each patient, from worst to best DSC"
    key = drawing.KEY
    tied = ("image_size",)

    def size(self, config: Config) -> str:
        return f"{config.image_size} px"

    def shape(self, config: Config) -> tuple[int, ...]:
        return 1, 3, config.image_size, config.image_size

    def sizing(self, config: Config) -> str:
        return f"--image-size {config.image_size}"

    def index(self, config: Config) -> list[Case]:
        if config.synth_data:
            from unet.tasks.lgg import synthetic

            synthetic.write_set(where(config.data, "data"), config.patients, config.slices, config.side, PHANTOM_SEED)
        return dataset.index(where(config.data, "data"))

    def settings(self, config: Config) -> dict[str, Any]:
        """What decides the content of the cache."""
        return {"image_size": config.image_size}

    def prepare(self, case: Case, config: Config) -> dict[str, Any]:
        return dataset.prepare(case, config.image_size)

    def remarks(self, cases: Sequence[cache.CachedCase]) -> list[str]:
        return masks.remarks(cases, "tumour")

    def split(self, ids: Sequence[str], config: Config, training: bool = True) -> splits.Split:
        return splits.make(
            ids, config.split, config.held_out, config.fold, config.folds, config.seed, training=training
        )

    def batches(
        self,
        cases: Sequence[cache.CachedCase],
        config: Config,
        shard: tuple[int, int],
        options: dict[str, Any],
        place: Callable[[Tensor], Tensor],
    ) -> Loader:
        if not any(sum(case.foreground) for case in cases):
            raise DataError(
                f"None of the {len(cases)} training cases holds tumour: every pixel of their masks is background.",
                "Give masks of 0 and 255 (tumour); look at them with: python -m unet check --task lgg",
            )
        from unet.data.loading import augment
        from unet.data.loading.loader import EpochBatches, Loader, Slices

        change = augment.affine_with(config.aug_scale, config.aug_angle) if config.augment else None
        slices = Slices(cases, config.data_on, place)
        workers, options = loading(config, options)
        return Loader(EpochBatches(slices, config.batch_size, config.seed, change, shard), workers, options)

    def model(self, config: Config) -> nn.Module:
        from unet.models.unet import UNet, UNetShape

        features = tuple(config.width * 2**level for level in range(config.layers))
        return UNet(UNetShape(features=features, bottleneck=config.width * 2**config.layers))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
        from unet.models.losses import batch_dice_loss

        return {"loss": batch_dice_loss(outputs.float().sigmoid(), batch["mask"])}

    def evaluate(
        self, case: cache.CachedCase, infer: Infer, config: Config, full: bool = False
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Numbers: loss, dsc; with `full` also hd95 (pixels of the network's grid, a step between slices counting as
        one pixel) and volume_error. Arrays: probability (S, H, W) float32, prediction, target (S, H, W) bool."""
        import torch

        from unet.metrics import overlap
        from unet.models.losses import batch_dice_loss

        image, mask = case.arrays()
        probability = self.probability(image, infer)
        target = mask[..., 0] > 0
        loss = batch_dice_loss(torch.from_numpy(probability), torch.from_numpy(target)).item()
        prediction = overlap.largest_component(probability > LEVEL)
        numbers = {"loss": loss, "dsc": overlap.dice(prediction, target)}
        if full:
            numbers |= {
                "hd95": overlap.hausdorff95(prediction, target),
                "volume_error": overlap.volume_error(prediction, target),
            }
        return numbers, {"probability": probability, "prediction": prediction, "target": target}

    def probability(self, image: Any, infer: Infer) -> Any:
        """(S, H, W, 3) array -> probability (S, H, W) float32 array."""
        import numpy as np
        import torch

        volume = torch.from_numpy(np.array(image, dtype=np.float32)).permute(0, 3, 1, 2)
        return infer(volume).float().sigmoid()[:, 0].numpy()

    def panel(self, case: cache.CachedCase, arrays: dict[str, Any]) -> dict[str, Any]:
        """FLAIR, outlines and probability of the slice with most tumour."""
        import numpy as np

        image, _ = case.arrays()
        number = int((arrays["target"] if arrays["target"].any() else arrays["probability"]).sum((1, 2)).argmax())
        flair = np.asarray(image[number, ..., 1], dtype=np.float32)
        low, high = np.percentile(flair, (1, 99.5))
        grey = drawing.grey((flair - low) / max(high - low, 1e-6))
        outlined = drawing.outlined(grey, arrays["prediction"][number], arrays["target"][number])
        return {"FLAIR": grey, "truth and prediction": outlined, "probability": arrays["probability"][number]}

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

    def inputs(self, paths: Sequence[Path]) -> dict[Path, list[Path]]:
        return dataset.patients_of(paths)

    def outputs(self, image: Path, place: Path, config: Config) -> dict[str, Path]:
        found = {"mask": place / image.name}
        if config.overlay:
            found["overlay"] = place / f"{image.stem}_overlay.png"
        if config.probabilities:
            found["probability"] = place / f"{image.stem}_probability.tif"
        return found

    def sources(self, image: Path, config: Config) -> list[Path]:
        """A slice, and the true mask beside it where that is drawn."""
        truth = dataset.mask_of(image)
        return [image, truth] if config.overlay and truth.exists() else [image]

    def predict(
        self, images: Sequence[Path], wanted: Sequence[Path], place: Path, members: Sequence[Infer], config: Config
    ) -> None:
        """Mean probability of the `members` over a patient's `images`, then masks {0, 255} uint8 of the `wanted` ones.

        On request outlines (PNG; truth in blue where a mask lies beside the image) and probabilities (float32). A
        patient with nothing in it gets empty masks. Raises DataError.
        """
        import numpy as np

        from unet.data.io.arrays import write_png, write_tiff
        from unet.data.io.images import read_rgb, stack_shape
        from unet.data.preprocessing.slice_geometry import BlankError
        from unet.metrics.overlap import largest_component

        if len(images) < 3:
            given = host.counted(len(images), "slice")
            host.notice(f"{images[0].parent}: {given}; intensities are normalised without the others")
        try:
            volume, geometry = dataset.prepare_for_prediction(images, config.image_size)
            each = [self.restore(self.probability(volume, infer), geometry) for infer in members]
            probability: Any = np.mean(each, 0, dtype=np.float32)
        except BlankError as error:
            host.notice(f"{images[0].parent}: {error.message} Its masks are empty.")
            probability = np.zeros((len(images), *stack_shape(images[0])[1:]), np.float32)
        mask = largest_component(probability > LEVEL)
        make_folder(place)
        for number, image in enumerate(images):
            if image not in wanted:
                continue
            paths = self.outputs(image, place, config)
            if config.probabilities:
                write_tiff(paths["probability"], probability[number])
            if config.overlay:
                drawn = drawing.outlined(flair(read_rgb(image)), mask[number], truth_beside(image))
                write_png(paths["overlay"], drawing.enlarged(drawn))
            write_tiff(paths["mask"], mask[number].astype("uint8") * 255)

    def check_raw(self, path: Path, config: Config) -> checks.Report:
        return check.raw(path, functools.partial(self.split, config=config))

    def check_cache(self, path: Path, config: Config) -> checks.Report:
        return checks.cached(path, self.layout, cache.make_manifest(self.layout, self.settings(config)))

    def synthesize(self, path: Path, config: Config) -> None:
        from unet.tasks.lgg import synthetic

        synthetic.write_set(path, config.patients, config.slices, config.side, config.seed, config.overwrite)

    def load(self, state: Mapping[str, Any], config: Config) -> tuple[nn.Module, dict[str, Tensor]]:
        from unet.models import convert
        from unet.models.unet import UNet

        bare = convert.strip_prefixes(state)
        own = convert.from_published_lgg(bare) if convert.is_published_lgg(bare) else bare
        return UNet(convert.shape_of(own, self.name)), own


TASK = LGG


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
