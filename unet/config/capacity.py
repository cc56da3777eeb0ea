"""Estimates the memory that a network needs, before anything is built. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unet import host
from unet.config.options import flag
from unet.errors import UsageError

if TYPE_CHECKING:
    from unet.config.schema import Config

FLOAT = 4  # bytes
MOMENTS = {"sgd": 1, "adam": 2, "adamw": 2, "adamax": 2, "lamb": 2}  # tensors of an optimiser beside each parameter
PROCESS = 300e6  # bytes of a process with torch


def first_level(config: Config) -> int:
    """Values that a training step must at least keep at the network's first level: four feature maps (the outputs of
    two convolutions on each side of the network)."""
    return 4 * config.train.batch_size * config.network.width * config.task.input_size(config)


def step_memory(config: Config) -> int:
    """Bytes that the tensors of a training step take on a CPU that keeps freed memory for later ones: those of eight
    numbers for each value at the first level (a 3D U-Net at 96^3 and 128^3 in bf16: 11 to 14 bytes)."""
    number = FLOAT if config.device.precision in ("fp32", "tf32") else FLOAT // 2
    return 8 * number * first_level(config)


def too_large(config: Config, own_memory: bool | None = None) -> list[str]:
    """Why the network cannot be trained on this machine, with numbers; empty if it can, as far as known. `own_memory`:
    whether the device has its own memory (None: not known yet); weights are initialised in the machine's memory in any
    case."""
    total, _ = host.memory()
    width, layers = config.network.width, config.network.layers
    count = config.task.parameters(config)
    found = []
    on_host = own_memory is False or (own_memory is None and config.device.device == "cpu")
    tensors = 2 + MOMENTS[config.train.optimizer] if on_host else 1
    names = f" with gradients and the state of {config.train.optimizer}" if on_host else ""
    size = FLOAT * count * tensors
    if total and size > total:
        found.append(
            f"--width {width} with --layers {layers} is a network of {count:.3g} parameters, which take"
            f" {host.format_bytes(size)}{names}; this machine has {host.format_bytes(total)}: type a smaller --width"
        )
    step = FLOAT * first_level(config)
    if total and on_host and step > total and not found:
        found.append(
            f"--batch-size {config.train.batch_size} at this {flag(config.task.size_flags[0])} and --width {width}"
            f" takes at least {host.format_bytes(step)} at the network's first level; this machine has"
            f" {host.format_bytes(total)}: type"
            " a smaller one"
        )
    processes = config.distributed.devices or 1
    if total and processes * PROCESS > total:
        found.append(
            f"--devices {processes} takes at least {host.format_bytes(processes * PROCESS)} for as many processes;"
            f" this machine"
            f" has {host.format_bytes(total)}"
        )
    return found


def require(config: Config, own_memory: bool) -> None:
    """Raise UsageError if the network, or a batch, does not fit into the memory of the machine."""
    if found := too_large(config, own_memory):
        raise UsageError("; ".join(found) + ".", "Change the named flags.")
