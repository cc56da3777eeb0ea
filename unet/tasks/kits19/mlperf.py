"""What MLPerf's rules say of the 3D UNet: the settings of a closed submission, what its log tells. No torch.

Source: training_rules of MLCommons (the retired benchmark unet3d, rules as of v4.0) and the reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from unet.tasks.base import MLPerfBenchmark
from unet.tasks.kits19.settings import Settings

if TYPE_CHECKING:
    from torch import nn

TRAINING, EVALUATION = 168, 42  # cases
CLOSED: dict[str, Any] = {  # setting -> what a closed submission has; a list: one of these
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
    "brightness": [(1.7, 2.3), (0.7, 1.3)],  # of the reference, of the submissions that were published
    "noise": [(0.0, 0.1), (0.1, 0.1)],
    "clip": None,
    "skip_norm": None,
    "ema": None,
    "eval_region": "rounded",
    "eval_crop": (),
    "eval_steps": None,
    "blend": "gaussian",
    "mirror": False,
    "target": 0.908,
    "load": None,
    "synth_data": False,
}


def benchmark(settings: Settings, layers: int, build_model: Callable[[], nn.Module]) -> MLPerfBenchmark:
    """The benchmark unet3d with these settings. `build_model` is asked for the layers of a network that is not the
    reference's."""
    events = {
        "oversampling": settings.oversampling,
        "training_input_shape": list(settings.patch),
        "validation_input_shape": list(settings.eval_patch),
        "validation_overlap": settings.overlap,
    }
    own = settings.encoder != "reference"
    names = layer_names(build_model) if own else tensor_names(layers, settings.normalization)
    return MLPerfBenchmark("unet3d", CLOSED, TRAINING, EVALUATION, events, tuple(names))


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


def layer_names(build_model: Callable[[], nn.Module]) -> Iterator[str]:
    """Names of the layers of a network that have weights of their own; no memory is taken for them."""
    import torch

    with torch.device("meta"):
        model = build_model()
    return (name for name, layer in model.named_modules() if next(layer.parameters(recurse=False), None) is not None)
