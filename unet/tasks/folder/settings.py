"""The settings of the task `folder`: flags, defaults, checks. What is not typed follows from the data. No torch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from unet.config.options import flag, option
from unet.config.task_settings import TaskSettings
from unet.models.planned_shape import PlannedShape, parameters, standard_stages
from unet.tasks.folder.topology import Topology, topology

if TYPE_CHECKING:
    from unet.config.schema import Config

SIDES = ("patch", "spacing")
FROM_DATA = (  # what a plan decides where it is not typed, besides common settings
    *("channels", "classes", "label_values", "ignore_value", "orientation", "spacing", "normalize", "intensities"),
    *("crop_background", "patch", "batch_size", "layers", "width", "widest", "epochs", "anisotropic"),
)
NORMALIZE = ("zscore", "ct", "rescale", "none")
NORMALIZED = {
    "zscore": "subtract the mean of the image and divide by its deviation",
    "ct": "clip to lowest and highest, subtract the mean, divide by the deviation (see normalization)",
    "rescale": "to 0 to 1: whole numbers by the range of their type, others by the image's own",
    "none": "as it is",
}


@dataclasses.dataclass(frozen=True)
class Settings(TaskSettings):
    """A user's own images and masks, in two or three dimensions."""

    name: ClassVar[str] = "folder"
    title: ClassVar[str] = "your own images and masks: any common format, 2D or 3D, up to 100 classes"
    defaults: ClassVar[dict[str, Any]] = {
        "data": "folder",
        "cache": "folder_cache",
        "split": "fold",
        "layers": 5,
        "epochs": 100,
        "batch_size": 2,
        "eval_batch_size": 1,
        "precision": "auto",
        "optimizer": "sgd",
        "momentum": 0.99,
        "weight_decay": 3e-5,
        "lr": 1e-2,
        "schedule": "poly",
        "clip": 12.0,
        "slices": 24,
        "side": 64,
        "patients": 12,
    }
    synthetic_defaults: ClassVar[dict[str, Any]] = {
        "data": "synthetic_folder",
        "cache": "synthetic_folder_cache",
        "size": "S",
        "epochs": 5,
        "epoch_batches": 20,
        "width": 8,
    }
    inference_settings: ClassVar[tuple[str, ...]] = (
        *("channels", "classes", "label_values", "ignore_value", "orientation", "spacing", "normalize", "intensities"),
        *("crop_background", "patch", "layers", "width", "widest", "encoder", "overlap", "blend", "mirror"),
        "deep_supervision",
    )
    network_settings: ClassVar[tuple[str, ...]] = ("layers", "width", "widest", "encoder", "deep_supervision")
    size_flags: ClassVar[tuple[str, ...]] = ("patch",)
    splits: ClassVar[tuple[str, ...]] = ("fold",)
    large_tensors: ClassVar[bool] = True
    plans: ClassVar[tuple[str, ...]] = ("S", "M", "L")
    notes: ClassVar[dict[str, str]] = {
        "data": "a folder of images/ and masks/, of nnU-Net's imagesTr/ and labelsTr/, or a table .csv",
        "split": "fold: fold 0 of 5, where nothing else is typed",
    }
    default_texts: ClassVar[dict[str, str]] = dict.fromkeys(
        ("batch_size", "layers", "width", "epochs"), "from the data and --size"
    )

    size: str = option(
        "M",
        "how much memory and time a network may cost: S a laptop, M a card of 8 GB, L one of 24 GB",
        choices=("S", "M", "L"),
        section="network",
        common=True,
    )
    channels: tuple[str, ...] = option(
        (), "names of the image's channels", section="data", default_text="from the data"
    )
    classes: tuple[str, ...] = option(
        (), "names of the classes, the background first", section="data", default_text="from the data", common=True
    )
    label_values: tuple[int, ...] = option(
        (),
        "value of each class in the masks, the background first",
        minimum=-(2**31),
        maximum=2**31 - 1,
        section="data",
        default_text="from the data",
        common=True,
    )
    ignore_value: int | None = option(
        None,
        "value in the masks of voxels that are neither trained on nor scored",
        minimum=-(2**31),
        maximum=2**31 - 1,
        section="data",
        default_text="of dataset.json",
    )
    resample_masks: bool = option(
        False, "bring masks that lie on another grid to that of their image, by the nearest voxel", section="data"
    )
    orientation: str | None = option(
        None,
        "direction of slices, rows and columns: three of R L A P S I; as-stored: as the files have them",
        pattern=(r"[RLAPSI]{3}|as-stored", "three letters such as IPL, or as-stored"),
        metavar="CODES",
        section="data",
        default_text="from the data",
    )
    spacing: tuple[float, ...] = option(
        (),
        "voxel size in mm (slices, rows, columns) to which images are resampled",
        minimum=1e-6,
        maximum=1000,
        section="data",
        default_text="from the data",
        common=True,
    )
    normalize: tuple[str, ...] = option(
        (),
        f"for each channel: {', '.join(NORMALIZE)}",
        choices=NORMALIZE,
        section="data",
        default_text="from the data",
    )
    intensities: tuple[float, ...] = option(
        (),
        "for each channel four numbers that ct uses: lowest, highest, mean, deviation",
        minimum=-1e12,
        maximum=1e12,
        section="data",
        default_text="from the data",
    )
    crop_background: bool = option(False, "cut away the border where every channel is 0", section="data")
    anisotropic: bool = option(
        False, "turn and blur patches within their slices only: voxels much thicker than wide", section="train"
    )
    encoder: str = option(
        "plain",
        "encoder of the network: convolutions, or residual blocks",
        choices=("plain", "residual"),
        section="network",
    )
    widest: int = option(320, "most channels of a level", minimum=1, maximum=4096, section="network")
    deep_supervision: bool = option(True, "train the lower levels of the decoder too", section="network")
    patch: tuple[int, ...] = option(
        (),
        "size of a training patch and of a window (slices, rows, columns); one slice: a 2D network",
        minimum=1,
        maximum=4096,
        section="train",
        default_text="from the data and --size",
        common=True,
    )
    epoch_batches: int = option(250, "batches of an epoch", minimum=1, maximum=10**6, section="train", common=True)
    oversampling: float = option(
        0.33, "share of patches about a voxel of a class", minimum=0, maximum=1, section="train"
    )
    augment_on: str = option(
        "host",
        "where patches are changed: by the loader's processes, or on the device",
        choices=("host", "device"),
        section="train",
    )
    dicom: bool = option(
        False, "make DICOM series with DICOM-SEG masks, in place of NIfTI files", section="synthetic", common=True
    )
    show_pipeline: bool = option(
        False,
        "before training write what is done to patches into the run's folder, pipeline_test",
        aliases=("--visualise_training_pipeline_before_starting",),
        section="train",
    )
    overlap: float = option(
        0.5, "overlap of neighbouring windows, as a share of their size", minimum=0, maximum=0.9, section="eval"
    )
    blend: str = option(
        "gaussian",
        "how overlapping windows are weighted; narrow: nnU-Net's Gaussian",
        choices=("gaussian", "narrow", "constant"),
        section="eval",
    )
    mirror: bool = option(False, "average over the mirrored inputs", aliases=("--tta",), section="eval", common=True)
    surface_tolerance: float = option(1.0, "tolerance of the surface Dice in mm", above=0, maximum=1000, section="eval")

    def __post_init__(self) -> None:
        for name in SIDES:
            value = getattr(self, name)
            if len(value) == 1:
                object.__setattr__(self, name, value * 3)

    @property
    def planned(self) -> bool:
        """Whether everything that follows from the data is known."""
        return bool(self.patch and self.spacing and self.classes and self.label_values and self.channels)

    @property
    def dims(self) -> int:
        return 2 if self.patch and self.patch[0] == 1 else 3

    def check_values(self) -> list[str]:
        """Sizes of three numbers, and lists that belong together."""
        found = [
            f"{flag(name)} takes one number or three, not {len(getattr(self, name))}"
            for name in SIDES
            if len(getattr(self, name)) not in (0, 3)
        ]
        if self.classes and self.label_values and len(self.classes) != len(self.label_values):
            found.append(
                f"--classes names {len(self.classes)} classes, --label-values {len(self.label_values)} values: one each"
            )
        if len(set(self.label_values)) < len(self.label_values) or len(self.label_values) == 1:
            found.append("--label-values takes two values or more, all different, the background first")
        if len(set(self.classes)) < len(self.classes):
            found.append(f"--classes {' '.join(self.classes)} names one class twice")
        if self.ignore_value is not None and self.ignore_value in self.label_values:
            found.append(f"--ignore-value {self.ignore_value} is the value of a class too")
        for name, each in (("normalize", 1), ("intensities", 4)):
            count = len(getattr(self, name))
            if self.channels and count not in (0, each * len(self.channels)):
                words = "one" if each == 1 else "four numbers"
                found.append(f"{flag(name)} takes {words} for each of {len(self.channels)} channels, not {count}")
        if self.orientation and self.orientation != "as-stored" and len(set(map(_world, self.orientation))) < 3:
            found.append(f"--orientation {self.orientation} names one direction twice")
        return found

    def check_input_size(self, config: Config) -> list[str]:
        """The patch fits its levels."""
        if not self.patch or len(self.patch) != 3:
            return []
        multiples = self.levels(config).multiples
        if all(side % step == 0 for side, step in zip(self.patch, multiples, strict=True)):
            return []
        near = " ".join(
            str(max(step, round(side / step) * step)) for side, step in zip(self.patch, multiples, strict=True)
        )
        return [
            f"--patch {' '.join(map(str, self.patch))}: its sides must be multiples of"
            f" {' '.join(map(str, multiples))} for these levels; nearest: {near}"
        ]

    def levels(self, config: Config) -> Topology:
        """Kernels and strides of the network."""
        return topology(self.patch, self.spacing or (1.0, 1.0, 1.0), config.network.layers)

    def shape(self, config: Config) -> PlannedShape:
        """The network's shape."""
        residual = self.encoder == "residual"
        levels = self.levels(config)
        stages = standard_stages(levels.kernels, levels.strides, config.network.width, self.widest, residual)
        return PlannedShape(self.dims, len(self.channels), len(self.classes), stages, residual, self.deep_supervision)

    def parameters(self, config: Config) -> int:
        return parameters(self.shape(config)) if self.planned else 0

    def input_size(self, config: Config) -> int:
        return math.prod(self.patch) if self.patch else 0

    def deployment(self) -> dict[str, Any]:
        """See `SegmentationTask.deployment`."""
        names = ("lowest", "highest", "mean", "deviation")
        channels = []
        for number, channel in enumerate(self.channels):
            kind = self.normalize[number] if self.normalize else "zscore"
            values = self.intensities[4 * number : 4 * number + 4] if kind == "ct" else ()
            channels.append({"channel": channel, "kind": kind, **dict(zip(names, values, strict=False))})
        used = list(dict.fromkeys(self.normalize or ("zscore",)))
        return {
            "channels": list(self.channels),
            "classes": list(self.classes),
            "label_values": list(self.label_values),
            "spacing": list(self.spacing),
            "orientation": self.orientation,
            "window": list(self.patch),
            "overlap": self.overlap,
            "blend": self.blend,
            "mirror": self.mirror,
            "pad_value": 0.0,
            "activation": "softmax",
            "normalization": channels,
            "preprocessing": [
                f"turn the volume so that slices, rows and columns go towards {self.orientation or 'as stored'}",
                *(["cut away the border where every channel is 0"] if self.crop_background else []),
                *(f"{kind}: {NORMALIZED[kind]}" for kind in used),
                f"interpolate to voxels of {' x '.join(f'{mm:g}' for mm in self.spacing)} mm",
            ],
            "postprocessing": [
                "logits of overlapping windows are averaged with their weights (see blend)",
                "linear interpolation of the logits back to the image's own grid",
                "the class with the largest logit, written as its label value",
            ],
        }

    def synthetic_cache(self, config: Config) -> str:
        return f"{config.synthetic.side}_{config.synthetic.slices}{'_dicom' if self.dicom else ''}"


def _world(code: str) -> int:
    """The axis of a direction: right-left, front-back, up-down."""
    return next(axis for axis, pair in enumerate(("RL", "AP", "SI")) if code in pair)
