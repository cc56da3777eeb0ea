"""The settings of the KiTS19 task: flags, defaults, recipes, checks. No torch."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, ClassVar

from unet.config.options import flag, option
from unet.config.task_settings import TaskSettings, check_pair, unet_parameters, unet_widths
from unet.models.planned_shape import PlannedShape, parameters, standard_stages

if TYPE_CHECKING:
    from unet.config.schema import Config


CLASSES = 3  # background, kidney, tumour
SIDES = ("patch", "eval_patch", "eval_crop", "pad_to", "spacing")
LARGE_BATCH = {  # what the fast submissions have in common
    "batch_size": 7,
    "brightness": (0.7, 1.3),
    "noise": (0.1, 0.1),
    "epochs": 10000,
}
CAMBRICON = {"lr": 3.2, "warmup_epochs": 200, "batch_size": 2, "epochs": 4000}

NNUNET = {  # its residual network and how it is trained (Isensee et al., MICCAI 2024)
    "encoder": "residual",
    "optimizer": "sgd",
    "momentum": 0.99,
    "weight_decay": 3e-5,
    "lr": 0.01,
    "schedule": "poly",
    "clip": 12.0,
    "oversampling": 0.33,
}


@dataclasses.dataclass(frozen=True)
class Settings(TaskSettings):
    """Trained on crops, scored by sliding windows. Where a flag takes three sides, one number sets all three."""

    name: ClassVar[str] = "kits19"
    title: ClassVar[str] = "kidneys and kidney tumours in CT, 3D UNet (MLPerf's, Cambricon's)"
    defaults: ClassVar[dict[str, Any]] = {
        "data": "kits19",
        "cache": "kits19_cache",
        "split": "mlperf",
        "layers": 5,
        "normalization": "instance",
        "epochs": 1,
        "batch_size": 2,
        "eval_batch_size": 1,
        "optimizer": "sgd",
        "lr": 1.0,
        "warmup_lr": 1e-4,
        "lr_gamma": 1.0,
        "target": 0.908,
        "seed": -1,
        "save_minutes": 5.0,
        "slices": 64,
        "side": 64,
    }
    synthetic_defaults: ClassVar[dict[str, Any]] = {
        "data": "synthetic_kits19",
        "cache": "synthetic_kits19_cache",
        "pad_to": (64, 64, 64),
        "patch": (64, 64, 64),
        "eval_patch": (64, 64, 64),
        "layers": 3,
        "width": 8,
        "batch_size": 1,
        "epochs": 20,
        "lr": 0.3,
        "evaluate_every": 10,
        "start_eval_at": 10,
    }
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "mlperf": {"lr": 0.8, "warmup_epochs": 200, "batch_size": 2, "epochs": 4000},
        "dgx": {**LARGE_BATCH, "lr": 2.0, "warmup_epochs": 1000, "precision": "auto"},
        "gaudi2": {
            **LARGE_BATCH,
            "lr": 1.5,
            "warmup_epochs": 1200,
            "lr_milestones": (1700,),
            "lr_gamma": 0.5,
            "precision": "bf16",
        },
        "best": {
            **NNUNET,
            "batch_size": 2,
            "epochs": 1000,
            "evaluate_every": 20,
            "start_eval_at": 20,
            "brightness": (0.7, 1.3),
            "precision": "auto",
        },
        "cambricon-4": {**CAMBRICON, "start_eval_at": 1000, "evaluate_every": 20, "target": 0.908},
        "cambricon-8": {
            **CAMBRICON,
            "start_eval_at": 1400,
            "evaluate_every": 10,
            "target": 0.903,
            "lr_milestones": (1500, 3000),
            "lr_gamma": 0.5,
        },
    }
    inference_settings: ClassVar[tuple[str, ...]] = (
        *("spacing", "pad_to", "eval_patch", "overlap", "blend", "mirror", "activation"),
        *("encoder", "deep_supervision", "layers", "width"),
    )
    network_settings: ClassVar[tuple[str, ...]] = ("activation", "encoder", "deep_supervision", "layers", "width")
    scoring_settings: ClassVar[tuple[str, ...]] = ("include_background",)
    size_flags: ClassVar[tuple[str, ...]] = ("patch",)
    splits: ClassVar[tuple[str, ...]] = ("mlperf",)
    mlperf: ClassVar[bool] = True
    large_tensors: ClassVar[bool] = True
    folder_flags: ClassVar[tuple[str, ...]] = ("labels",)
    notes: ClassVar[dict[str, str]] = {
        "split": "mlperf: its 42 evaluation cases",
        "labels": "synthesize: draw the scans from these real labels instead of synthetic anatomy",
    }
    default_texts: ClassVar[dict[str, str]] = {
        "evaluate_every": "20 epochs of 168 samples",
        "start_eval_at": "1000 epochs of 168 samples",
    }

    spacing: tuple[float, ...] = option(
        (1.6, 1.2, 1.2), "voxel size in mm to which volumes are resampled", minimum=0.01, maximum=1000, section="data"
    )
    pad_to: tuple[int, ...] = option(
        (128, 128, 128),
        "smallest size of a volume; smaller ones are padded",
        minimum=1,
        maximum=4096,
        section="data",
        common=True,
    )
    label_geometry: str = option(
        "header",
        "header: labels are placed by their own header, which must match the scan's; as-stored: the header of a label"
        " is ignored, its voxels are those of the scan",
        choices=("header", "as-stored"),
        metavar="header|as-stored",
        section="data",
    )
    normalization: str = option(
        "batch",
        "norm layers",
        choices=("batch", "instance", "none"),
        synonyms=(("batchnorm", "batch"), ("instancenorm", "instance")),
        section="network",
    )
    activation: str = option("relu", "activation", choices=("relu", "leaky_relu"), section="network")
    encoder: str = option(
        "reference",
        "reference: MLPerf's network; plain, residual: nnU-Net's, with its loss (cross-entropy - Dice)",
        choices=("reference", "plain", "residual"),
        section="network",
    )
    deep_supervision: bool = option(
        True, "train the lower levels of the decoder too (with --encoder plain or residual)", section="network"
    )
    patch: tuple[int, ...] = option(
        (128, 128, 128),
        "size of a training crop",
        minimum=1,
        maximum=4096,
        aliases=("--input_shape",),
        section="train",
        common=True,
    )
    oversampling: float = option(
        0.4, "share of crops that must contain a labelled voxel", minimum=0, maximum=1, section="train"
    )
    last_offset: bool = option(True, "let crops reach the far edge (the MLPerf reference never does)", section="train")
    brightness: tuple[float, ...] = option(
        (1.7, 2.3),
        "range of the brightness factor of one crop in ten (MLPerf reference 1.7 2.3, submissions 0.7 1.3)",
        minimum=0,
        maximum=100,
        section="train",
    )
    noise: tuple[float, ...] = option(
        (0.0, 0.1),
        "range of the noise's sigma of one crop in ten (MLPerf reference 0 0.1, submissions 0.1 0.1)",
        minimum=0,
        maximum=100,
        section="train",
    )
    include_background: bool = option(False, "count the background as a class in the loss", section="train")
    epoch_samples: str = option(
        "dropped",
        "whether the evaluation schedule leaves out the incomplete last batch of an epoch, or counts it as a whole one",
        choices=("dropped", "padded"),
        section="train",
    )
    eval_patch: tuple[int, ...] = option(
        (128, 128, 128),
        "size of a window of sliding-window inference",
        minimum=1,
        maximum=4096,
        aliases=("--val_input_shape",),
        section="eval",
        common=True,
    )
    overlap: float = option(
        0.5, "overlap of neighbouring windows, as a share of their size", minimum=0, maximum=0.9, section="eval"
    )
    eval_region: str = option(
        "rounded",
        "what evaluate scores: sides rounded to half windows as in MLPerf, or the full volume (predict: always full)",
        choices=("rounded", "full"),
        section="eval",
    )
    blend: str = option(
        "gaussian", "how overlapping windows are weighted", choices=("gaussian", "constant"), section="eval"
    )
    mirror: bool = option(False, "average over the eight mirrored inputs", aliases=("--tta",), section="eval")
    eval_loss: bool = option(True, "also compute the loss during evaluation", section="eval")
    eval_crop: tuple[int, ...] = option(
        (),
        "during training score at most this crop around the labels; full volumes at the end",
        minimum=1,
        maximum=4096,
        section="eval",
    )
    surface_tolerance: float = option(1.0, "tolerance of the surface Dice in mm", above=0, maximum=1000, section="eval")

    def __post_init__(self) -> None:
        for name in SIDES:
            value = getattr(self, name)
            if len(value) == 1:
                object.__setattr__(self, name, value * 3)

    def check_values(self) -> list[str]:
        """Flags that take one side or three, and flags that take two numbers in order."""
        sides = [
            f"{flag(name)} takes one number or three, not {len(getattr(self, name))}"
            for name in SIDES
            if len(getattr(self, name)) not in ((0, 3) if name == "eval_crop" else (3,))
        ]
        own = self.encoder != "reference" and (self.normalization, self.activation) != ("instance", "relu")
        fixed = [
            f"--encoder {self.encoder} has instance norms and leaky ReLUs: leave --normalization and --activation out"
        ]
        return (
            (fixed if own else []) + sides + check_pair("brightness", self.brightness) + check_pair("noise", self.noise)
        )

    def check_input_size(self, config: Config) -> list[str]:
        """Crop and window fit the layers and the volumes."""
        layers, step = config.network.layers, 2**config.network.layers
        least = 2 * step if self.normalization == "instance" else step
        found = []
        for name, sides in (("--patch", self.patch), ("--eval-patch", self.eval_patch)):
            if len(sides) == 3 and any(side % step or side < least for side in sides):
                fitting = " ".join(str(max(least, round(side / step) * step)) for side in sides)
                found.append(
                    f"{name} {' '.join(map(str, sides))}: each side must be a multiple of {step} (2^layers) and at"
                    f" least {least}; nearest: {fitting}"
                )
        alone = self.normalization == "batch" and config.train.batch_size == 1
        if not found and alone and self.patch == (step,) * 3:
            found.append(
                f"--patch {step} with --layers {layers} leaves one value of a crop to the deepest batch norm, and"
                f" --batch-size 1 has one crop: type --patch {2 * step} or --batch-size 2"
            )
        if len(self.patch) == len(self.pad_to) == 3 and any(
            a > b for a, b in zip(self.patch, self.pad_to, strict=True)
        ):
            found.append(
                f"--patch {' '.join(map(str, self.patch))} is larger than --pad-to {' '.join(map(str, self.pad_to))}:"
                " a volume may be smaller than the crop"
            )
        return found

    def parameters(self, config: Config) -> int:
        """31,190,243 by default."""
        if self.encoder != "reference":
            return parameters(self.shape(config))
        network = config.network
        widths = unet_widths(network.width, network.layers, most=10 * network.width)
        return unet_parameters(3, 1, CLASSES, widths, self.normalization)

    def shape(self, config: Config) -> PlannedShape:
        """nnU-Net's network in the size of MLPerf's: the same levels and channels."""
        width, levels, residual = config.network.width, config.network.layers + 1, self.encoder == "residual"
        kernels, strides = ((3, 3, 3),) * levels, ((1, 1, 1), *((2, 2, 2),) * (levels - 1))
        stages = standard_stages(kernels, strides, width, 10 * width, residual)
        return PlannedShape(3, 1, CLASSES, stages, residual, self.deep_supervision)

    def input_size(self, config: Config) -> int:
        return math.prod(self.patch)

    def synthetic_cache(self, config: Config) -> str:
        return str(config.synthetic.side)
