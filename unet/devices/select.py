"""Chooses the device of this process from flags and variables, and sets its variables before torch is imported."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator

from unet.config.flags import DeviceOptions
from unet.config.values import import_class
from unet.devices import launchers
from unet.devices.base import USUAL, Device, Workload
from unet.devices.launchers import Rank
from unet.errors import DeviceError

# name -> module:class; in the order in which --device auto tries them
DEVICES = {
    "hpu": "unet.devices.hpu:HPU",
    "mlu": "unet.devices.mlu:MLU",
    "cuda": "unet.devices.cuda:CUDA",
    "rocm": "unet.devices.rocm:ROCm",
    "xpu": "unet.devices.accelerator:XPU",
    "npu": "unet.devices.accelerator:NPU",
    "mps": "unet.devices.accelerator:MPS",
    "cpu": "unet.devices.cpu:CPU",
}
OWN = "Give --device-module package.module:Class, a subclass of unet.devices.base.Device on the Python path."


def load(name: str) -> type[Device]:
    """The class of a device."""
    module, _, attribute = DEVICES[name].partition(":")
    found: type[Device] = getattr(importlib.import_module(module), attribute)
    return found


def choose(options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> tuple[type[Device], list[str]]:
    """(device class, reasons why others are not used); the device's variables are set before torch is imported.

    Raises DeviceError if the requested device cannot be used.
    """
    if options.device_module:
        return foreign(options.device_module, options, rank, workload), []
    passed: list[str] = []
    absent: dict[str, str] = {}
    for name in DEVICES if options.device == "auto" else [options.device]:
        device = load(name)
        why = usable(device, options, rank, workload)
        if not why:
            return device, [*_together(absent), *passed]
        if device.installed():
            passed.append(f"{name}: {why}")
        else:
            absent[name] = why
    passed = [*(f"{name}: {why}" for name, why in absent.items()), *passed]
    failed = "No device can be used" if options.device == "auto" else f"--device {options.device} cannot be used here"
    raise DeviceError(f"{failed}: {'; '.join(passed)}", "Type --device cpu, or see: python -m unet doctor")


def _together(absent: dict[str, str]) -> list[str]:
    """One line for all that is not installed: a machine has one kind of accelerator, and lacks the others."""
    if len(absent) < 2:
        return [f"{name}: {why}" for name, why in absent.items()]
    return [f"{', '.join(absent)}: not installed; python -m unet doctor says what each of them needs"]


def usable(device: type[Device], options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> str | None:
    """None, or why a device cannot be used; flags override environment variables. Raises DeviceError if it can be used
    but has fewer cards than there are processes. Processes that each have cards of their own tell each other, once they
    meet, whether that is so."""
    names = () if options.cuda_devices else device.visible_by()
    own = launchers.has_own_card(rank, names)
    if device.installed():
        for variable, value in device.environment(options, rank, workload).items():
            if variable not in os.environ or variable in device.forced:
                os.environ[variable] = value
    with launched_as_before():
        why = device.missing(options)
    if not why and not device.collective and rank.world > 1:
        return f"it runs one process, and {rank.launcher} runs {rank.world}."
    cards = None if why else device.cards()
    needed = rank.local + 1 if rank.guessed else rank.local_world
    if cards is not None and needed > cards and not own:
        seen = next((f" ({name}={os.environ[name]} in each)" for name in names if os.environ.get(name)), "")
        error = DeviceError(
            f"{rank.launcher} runs {rank.local_world} processes on this node, but it has {cards} {device.name}"
            f" card{'s' if cards > 1 else ''}{seen}.",
            f"Start {cards} process{'es' if cards > 1 else ''} on each node"
            + (f", or set {names[0]} to another card for each of them." if names else "."),
        )
        error.shared = not rank.guessed
        raise error
    return why


@contextlib.contextmanager
def launched_as_before() -> Iterator[None]:
    """The launcher's variables stay as they are: a vendor's package sets some when it is imported, and rank and meeting
    point would be read from them."""
    before = {name: os.environ.get(name) for name in launchers.PLACES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value
            else:
                os.environ.pop(name, None)


def foreign(name: str, options: DeviceOptions, rank: Rank, workload: Workload) -> type[Device]:
    """The device class of --device-module package.module:Class. Raises UsageError if there is no such class,
    DeviceError if it cannot be used."""
    device = load_foreign(name)
    if why := usable(device, options, rank, workload):
        raise DeviceError(f"--device-module {name} cannot be used here: {why}", OWN)
    return device


def load_foreign(name: str) -> type[Device]:
    """The device class of --device-module, whether it can be used or not. Raises UsageError if there is none."""
    device: type[Device] = import_class("--device-module", name, Device, OWN)
    return device
