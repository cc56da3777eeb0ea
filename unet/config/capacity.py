"""What a network needs of the machine's memory, worked out before anything is built. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unet import host
from unet.config.recipes import VOLUME_TASKS
from unet.errors import UsageError

if TYPE_CHECKING:
    from unet.config.schema import Config

FLOAT = 4  # bytes
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2, "adamax": 2, "lamb": 2}  # tensors of an optimiser beside each parameter
PROCESS = 300e6  # bytes of a process with torch


def parameters(config: Config) -> int:
    """Parameters of the task's UNet, exactly: 7,763,041 of lgg, 34,512,258 of em, 31,190,243 of kits19 by default."""
    volumes, em = config.task in VOLUME_TASKS, config.task == "em"
    dims, inputs, outputs = (3, 1, 3) if volumes else (2, 1, 2) if em else (2, 3, 1)
    most = 10 * config.width if volumes else math.inf
    widths = [int(min(config.width * 2**level, most)) for level in range(config.layers + 1)]
    norm = config.normalization if volumes or em else "batch"
    extra = 1 if norm == "none" else 2  # a bias, or a norm's weight and bias

    def block(a: int, b: int) -> int:
        return 3**dims * b * (a + b) + 2 * extra * b

    total = sum(block(a, b) for a, b in zip([inputs, *widths], widths, strict=False))
    kernel = 3 if em else 2
    for deep, wide in zip(widths[:0:-1], widths[-2::-1], strict=True):
        total += kernel**dims * deep * wide + wide + block(2 * wide, wide)
    return total + widths[0] * outputs + outputs


def first_level(config: Config) -> int:
    """Values that a batch has at the network's first level: the least that a training step keeps at once, four times
    over (the outputs of two convolutions on each side of the network)."""
    voxels = math.prod(config.patch) if config.task in VOLUME_TASKS else config.image_size**2
    return 4 * config.batch_size * config.width * voxels


def too_large(config: Config, own_memory: bool | None = None) -> list[str]:
    """Why the network of these settings cannot be trained here, with the numbers; empty where it can, as far as is
    known. `own_memory`: whether the device has memory of its own (None: not known yet); its weights are made in the
    machine's memory all the same."""
    total, _ = host.memory()
    count = parameters(config)
    found = []
    on_host = own_memory is False or (own_memory is None and config.device == "cpu")
    tensors = 2 + MOMENTS[config.optimizer] if on_host else 1
    names = f" with gradients and the state of {config.optimizer}" if on_host else ""
    size = FLOAT * count * tensors
    if total and size > total:
        found.append(
            f"--width {config.width} with --layers {config.layers} is a network of {count:.3g} parameters, which take"
            f" {host.size(size)}{names}; this machine has {host.size(total)}: type a smaller --width"
        )
    step = FLOAT * first_level(config)
    if total and on_host and step > total and not found:
        sides = "--patch" if config.task in VOLUME_TASKS else "--image-size"
        found.append(
            f"--batch-size {config.batch_size} at this {sides} and --width {config.width} takes at least"
            f" {host.size(step)} at the network's first level; this machine has {host.size(total)}: type a smaller one"
        )
    if total and (config.devices or 1) * PROCESS > total:
        found.append(
            f"--devices {config.devices} takes at least {host.size((config.devices or 1) * PROCESS)} for as many"
            f" processes; this machine has {host.size(total)}"
        )
    return found


def require(config: Config, own_memory: bool) -> None:
    """Raise UsageError where the network, or a batch of it, cannot fit the machine that the device is in."""
    found = too_large(config, own_memory)
    if found:
        raise UsageError("; ".join(found) + ".", "Change the named flags.")
