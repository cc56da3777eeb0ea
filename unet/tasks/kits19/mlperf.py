"""What MLPerf's rules say of the 3D UNet: the settings of a closed submission, what its log tells. No torch.

Source: training_rules of MLCommons (the retired benchmark unet3d, rules as of v4.0) and the reference implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unet.tasks.base import MLPerfBenchmark
from unet.tasks.kits19.settings import Settings

TRAINING, EVALUATION = 168, 42  # cases
CLOSED: dict[str, Any] = {  # setting -> what a closed submission has
    "split": "mlperf",
    "held_out": None,
    "fold": None,
    "patch": (128, 128, 128),
    "eval_patch": (128, 128, 128),
    "pad_to": (128, 128, 128),
    "spacing": (1.6, 1.2, 1.2),
    "oversampling": 0.4,
    "overlap": 0.5,
    "optimizer": "sgd",
    "layers": 5,
    "width": 32,
    "encoder": "reference",
    "normalization": "instance",
    "activation": "relu",
    "include_background": False,
    "augment": True,
    "clip": None,
    "eval_region": "rounded",
    "eval_crop": (),
    "eval_steps": None,
    "blend": "gaussian",
    "mirror": False,
    "target": 0.908,
    "load": None,
    "synth_data": False,
}


def benchmark(settings: Settings, layers: int) -> MLPerfBenchmark:
    """The benchmark unet3d with these settings."""
    events = {
        "oversampling": settings.oversampling,
        "training_input_shape": list(settings.patch),
        "validation_input_shape": list(settings.eval_patch),
        "validation_overlap": settings.overlap,
    }
    names = tuple(tensor_names(layers, settings.normalization))
    return MLPerfBenchmark("unet3d", CLOSED, TRAINING, EVALUATION, events, names)


def tensor_names(layers: int, norm: str) -> Iterator[str]:
    """Names of the layers whose weights are initialised, as the reference logs them: 50 for five levels."""

    def block(name: str) -> Iterator[str]:
        for number in (0, 1):
            yield f"{name}_block_{number}_conv"
            if norm != "none":
                yield f"{name}_block_{number}_{norm}norm"

    yield from block("input")
    for level in range(layers):
        yield from block(f"down{level}")
    for level in range(layers):
        yield f"up{level}_deconv"
        yield from block(f"up{level}")
    yield "output_conv"
