"""The settings of the LGG task: flags, defaults, recipes, checks. No torch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from unet.config.options import option
from unet.config.task_settings import TaskSettings, unet_parameters, unet_widths

if TYPE_CHECKING:
    from unet.config.schema import Config


@dataclasses.dataclass(frozen=True)
class Settings(TaskSettings):
    """Settings of the published 2D UNet on slices."""

    name: ClassVar[str] = "lgg"
    title: ClassVar[str] = "brain tumours in MRI, 2D UNet (Argonne's benchmark)"
    synthetic_defaults: ClassVar[dict[str, Any]] = {
        "data": "synthetic_kaggle_3m",
        "cache": "synthetic_cache",
        "epochs": 6,
        "batch_size": 16,
        "lr": 1e-3,
    }
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {
            "image_size": 256,
            "batch_size": 16,
            "epochs": 100,
            "lr": 1e-4,
            "optimizer": "adam",
            "split": "published",
            "aug_scale": 0.05,
            "aug_angle": 15.0,
        },
        "best": {
            "image_size": 256,
            "batch_size": 16,
            "epochs": 36,
            "lr": 1e-3,
            "schedule": "cosine",
            "split": "published",
            "loss": "dice-ce",
            "neighbours": 1,
            "aug_scale": 0.15,
            "aug_angle": 30.0,
            "aug_intensity": 0.1,
            "ema": 0.995,
            "mirror": True,
            "evaluate_every": 0,
            "precision": "auto",
        },
    }
    inference_settings: ClassVar[tuple[str, ...]] = ("image_size", "neighbours", "mirror")
    scoring_settings: ClassVar[tuple[str, ...]] = ("loss",)

    image_size: int = option(
        64,
        "side of a slice in pixels, a multiple of 2^layers",
        minimum=4,
        maximum=4096,
        section="data",
        common=True,
    )
    aug_scale: float = option(
        0.05,
        "scale U(1-s, 1+s); Argonne's factor 0.995 is understood as 0.005",
        minimum=0,
        maximum=1,
        section="train",
    )
    aug_angle: float = option(15.0, "rotation U(-a, a) in degrees", minimum=0, maximum=180, section="train")

    aug_intensity: float = option(
        0.0, "every channel times U(1-x, 1+x), plus U(-x, x) of its deviation", minimum=0, maximum=1, section="train"
    )
    aug_missing: float = option(
        0.0,
        "probability that FLAIR stands for the pre-contrast slice, and for the post-contrast one, as where none exists",
        minimum=0,
        maximum=1,
        section="train",
    )
    neighbours: int = option(
        0,
        "slices on each side that the network sees too, as further channels",
        minimum=0,
        maximum=8,
        section="network",
    )
    loss: str = option(
        "dice",
        "dice of the whole batch, as published, or its sum with cross-entropy",
        choices=("dice", "dice-ce"),
        section="train",
    )
    mirror: bool = option(False, "average over the image and its mirror image", aliases=("--tta",), section="eval")

    @property
    def inputs(self) -> int:
        """Channels of the network's input."""
        return 3 * (2 * self.neighbours + 1)

    def check_input_size(self, config: Config) -> list[str]:
        layers, side = config.network.layers, 2**config.network.layers
        if self.image_size == side and config.train.batch_size == 1:
            return [
                f"--image-size {side} with --layers {layers} leaves one value of a slice to the deepest batch norm,"
                f" and --batch-size 1 has one slice: type --image-size {2 * side}, --layers {layers - 1} or"
                " --batch-size 2"
            ]
        if self.image_size % side == 0:
            return []
        low = max(side, self.image_size // side * side)
        return [
            f"--image-size {self.image_size} is not a multiple of {side} (2^layers); nearest: {low} or {low + side}"
        ]

    def parameters(self, config: Config) -> int:
        """7,763,041 by default."""
        return unet_parameters(2, self.inputs, 1, unet_widths(config.network.width, config.network.layers))

    def input_size(self, config: Config) -> int:
        return self.image_size**2

    def synthetic_cache(self, config: Config) -> str:
        return str(self.image_size)
