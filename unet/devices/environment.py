"""Which process this is and which device it runs on, decided from variables and flags before torch is imported."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unet.config import Config
from unet.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from unet.devices.base import Device

# name -> module:class; in the order in which --device auto tries them
DEVICES = {"cuda": "unet.devices.cuda:CUDA", "cpu": "unet.devices.cpu:CPU"}
TYPED = {"CUDA_VISIBLE_DEVICES"}  # variables that a typed flag sets: it is stronger than the environment
LAUNCHERS = {
    "torch.distributed.run": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


@dataclasses.dataclass(frozen=True)
class Rank:
    """This process among those of the run."""

    rank: int = 0
    world: int = 1
    local: int = 0
    launcher: str = "none"


def find_rank(config: Config, variables: Mapping[str, str] = os.environ) -> Rank:
    """The rank from the launcher's variables, checked against the flags. Raises UsageError where they contradict."""
    found = Rank()
    for launcher, (rank, world, local) in LAUNCHERS.items():
        if rank in variables and world in variables and (launcher != "SLURM" or "SLURM_STEP_ID" in variables):
            found = Rank(int(variables[rank]), int(variables[world]), int(variables.get(local, "0")), launcher)
            break
    asked = config.world_size
    if asked is not None and asked != found.world:
        raise UsageError(
            f"--world-size {asked}, but {found.launcher if found.launcher != 'none' else 'no launcher'} runs"
            f" {found.world} process{'es' if found.world > 1 else ''}.",
            f"Type --world-size {found.world}, or leave it out.",
        )
    if found.world > 1:
        raise UsageError(
            f"{found.launcher} runs {found.world} processes; version 0.1 trains on one device.",
            "Start one process, without the launcher.",
        )
    return found


def load(name: str) -> type[Device]:
    """The class of a device."""
    module, _, attribute = DEVICES[name].partition(":")
    found: type[Device] = getattr(importlib.import_module(module), attribute)
    return found


def choose(config: Config, rank: Rank) -> tuple[type[Device], list[str]]:
    """The device to use and, for each one passed over, why; the variables it needs are set before it imports torch.

    Raises DeviceError where the device that is asked for cannot be used.
    """
    if config.device_module:
        return foreign(config.device_module, config, rank), []
    if config.device not in ("auto", *DEVICES):
        raise DeviceError(
            f"--device {config.device}: version 0.1 drives {' and '.join(DEVICES)}, not {config.device}.",
            "Type --device cpu, or --device auto for the best that is usable here.",
        )
    passed: list[str] = []
    for name in DEVICES if config.device == "auto" else [config.device]:
        device = load(name)
        for variable, value in device.environment(config, rank).items():
            if variable not in os.environ or variable in TYPED:
                os.environ[variable] = value
        why = device.missing(config)
        if not why:
            return device, passed
        passed.append(f"{name}: {why}")
    asked = "No device can be used" if config.device == "auto" else f"--device {config.device} cannot be used here"
    raise DeviceError(f"{asked}: {'; '.join(passed)}", "Type --device cpu, or see: python -m unet doctor")


def foreign(name: str, config: Config, rank: Rank) -> type[Device]:
    """The device class of --device-module package.module:Class, usable. Raises DeviceError."""
    module, _, attribute = name.partition(":")
    hint = "Give --device-module package.module:Class, a subclass of unet.devices.base.Device on the Python path."
    try:
        device: type[Device] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DeviceError(f"--device-module {name}: {type(error).__name__}: {error}.", hint) from error
    os.environ.update(device.environment(config, rank))
    why = device.missing(config)
    if why:
        raise DeviceError(f"--device-module {name} cannot be used here: {why}", hint)
    return device
