"""The settings of the EM task: flags, defaults, recipes, checks. No torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from unet.config.options import option
from unet.config.task_settings import TaskSettings, unet_parameters, unet_widths

if TYPE_CHECKING:
    from unet.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Settings(TaskSettings):
    """Settings of a 2D UNet with valid convolutions on slices with context."""

    name: ClassVar[str] = "em"
    title: ClassVar[str] = "membranes in electron micrographs, 2D UNet (Habana's and NVIDIA's UNet Medical)"
    defaults: ClassVar[dict[str, Any]] = {
        "data": "em",
        "cache": "em_cache",
        "split": "none",
        "image_size": 572,
        "width": 64,
        "normalization": "none",
        "dropout": 0.5,
        "epochs": 10**6,
        "max_steps": 6400,
        "batch_size": 8,
        "eval_batch_size": 8,
        "weight_decay": 5e-4,
        "precision": "bf16",
        "seed": 123,
        "evaluate_every": 0,
        "log_every": 100,
        "benchmark_warmup": 200,
        "slices": 30,
        "side": 512,
    }
    synthetic_defaults: ClassVar[dict[str, Any]] = {
        "data": "synthetic_em",
        "cache": "synthetic_em_cache",
        "image_size": 188,
        "layers": 3,
        "width": 8,
        "batch_size": 4,
        "eval_batch_size": 4,
        "max_steps": 300,
        "lr": 1e-3,
        "fold": 0,
        "benchmark_warmup": 10,
        "log_every": 20,
        "slices": 30,
        "side": 128,
    }
    inference_settings: ClassVar[tuple[str, ...]] = ("image_size", "raw_side", "context", "layers", "activation")
    scoring_settings: ClassVar[tuple[str, ...]] = ("cross_entropy",)
    network_settings: ClassVar[tuple[str, ...]] = ("activation",)
    notes: ClassVar[dict[str, str]] = {"evaluate_every": "here steps, not epochs"}

    image_size: int = option(
        64,
        "side of the network's input in pixels, context included",
        minimum=4,
        maximum=4096,
        section="data",
        common=True,
    )
    raw_side: int | None = option(
        None,
        "side in pixels of the raw slices that the network was trained on (sets the scale of its input)",
        minimum=16,
        maximum=10**6,
        section="data",
        default_text="from the data set or the weights",
    )
    fold_scheme: str = option(
        "disjoint",
        "disjoint folds, or Habana's folds of the published scores, which overlap and leave out four slices",
        choices=("disjoint", "seed"),
        section="split",
    )
    normalization: str = option(
        "batch",
        "norm layers",
        choices=("batch", "instance", "none"),
        synonyms=(("batchnorm", "batch"), ("instancenorm", "instance")),
        section="network",
    )
    activation: str = option("relu", "activation", choices=("relu", "leaky_relu"), section="network")
    dropout: float = option(
        0.0,
        "dropout rate at the deepest level",
        minimum=0,
        maximum=0.9,
        section="network",
    )
    context: str = option(
        "zero", "pad images with zeros, or with their mirror image", choices=("zero", "mirror"), section="network"
    )
    aug_crop: float = option(
        0.3, "largest share cut off each side before the rest is resized", minimum=0, maximum=0.45, section="train"
    )
    aug_brightness: float = option(
        0.2, "add brightness U(-b, b); images range over 2", minimum=0, maximum=1, section="train"
    )
    cross_entropy: str = option(
        "softmax",
        "softmax over both classes, or sigmoid of each (Habana's loss)",
        choices=("softmax", "sigmoid"),
        section="train",
    )

    def check_input_size(self, config: Config) -> list[str]:
        """Even sides at every level of valid convolutions, and an output."""
        layers, step = config.network.layers, 2**config.network.layers
        least, over = 16 * step - 4, (self.image_size + 4) % step
        if self.image_size < least:
            return [f"--image-size {self.image_size} is too small for --layers {layers}; the least is {least}"]
        low = self.image_size - over
        return (
            []
            if not over
            else [f"--image-size {self.image_size} does not fit --layers {layers}; nearest: {low} or {low + step}"]
        )

    @property
    def folds_by_seed(self) -> bool:
        return self.fold_scheme == "seed"

    def check(self, config: Config) -> list[str]:
        if self.fold_scheme == "seed" and config.split.folds != 5:
            return [f"--fold-scheme seed has five folds, not {config.split.folds}: type --folds 5"]
        return []

    def parameters(self, config: Config) -> int:
        """34,512,258 by default."""
        widths = unet_widths(config.network.width, config.network.layers)
        return unet_parameters(2, 1, 2, widths, self.normalization, up_kernel=3)

    def input_size(self, config: Config) -> int:
        return self.image_size**2

    def synthetic_cache(self, config: Config) -> str:
        return str(self.image_size)
