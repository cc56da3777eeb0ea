"""Settings that a device, or this host, cannot follow, in the same words for every device."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from unet import host
from unet.config.flags import DeviceOptions
from unet.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from unet.devices.base import Device


class Compiler(NamedTuple):
    """A compiler of the host that --compile runs: the one that `variable` names, or the first of `usual` on the
    PATH."""

    language: str
    variable: str
    usual: tuple[str, ...]

    def require(self, device: str) -> None:
        """Raise DeviceError if it is not there: torch would find out in the first step, with a traceback."""
        named = os.environ.get(self.variable)
        if any(shutil.which(name) for name in (self.usual if named is None else (named,))):
            return
        found = f"{self.variable} names {named!r}, which is no program"
        if named is None:
            found = f"{self.variable} names none, and the PATH has no {' or '.join(self.usual)}"
        raise DeviceError(
            f"--compile needs a {self.language} compiler on {device}: {found}.",
            f"Install one (Debian: apt-get install {'gcc' if self.language == 'C' else 'g++'}), name it in"
            f" {self.variable}, or leave out --compile.",
        )


C = Compiler("C", "CC", ("gcc", "clang"))  # for triton, which compiles for NVIDIA's, AMD's and Intel's cards


def require(device: Device, options: DeviceOptions) -> None:
    """Raise DeviceError or UsageError for settings that a device does not support."""
    if options.precision == "tf32" and not device.has_tf32:
        raise DeviceError(f"--precision tf32: {device.name} has no TF32.", "Type --precision fp32, or auto.")
    if options.precision_ops and not device.operator_lists:
        raise DeviceError(
            f"--precision-ops: the operator lists of {device.name} are torch's own and fixed.",
            "Leave it out, or run on an HPU.",
        )
    if options.recipe_cache and not device.recipes:
        raise DeviceError(f"--recipe-cache: {device.name} has no recipes.", "Leave it out, or run on an HPU.")
    if not device.orders and device.channels_last():
        raise DeviceError(
            f"--layout {options.layout}: {device.name} keeps images channels first.",
            "Type --layout auto: the vendor's compiler chooses the order in its memory.",
        )
    if options.capture == "on" and not device.graphs:
        raise DeviceError(f"--capture: {device.name} has no graphs to record.", "Leave it out.")
    if options.compile == "on" and not device.compiles:
        raise DeviceError(f"--compile: {device.vendor} has no compiler backend.", "Leave out --compile.")
    for compiler in device.compilers if device.compiled() else ():
        compiler.require(device.name)
    if options.cuda_devices and not device.numbered:
        named = host.counted(len(options.cuda_devices), "card")
        shown = " ".join(map(str, options.cuda_devices))
        raise UsageError(
            f"--cuda-devices {shown} (CUDA_devices) names {named}, but the device of this run is {device.name}.",
            f"To run on {device.name} type --cuda-devices none, or write CUDA_devices [] in the file; to see why no"
            " card is used type --device cuda.",
        )
