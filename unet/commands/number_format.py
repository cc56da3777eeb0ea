"""The number format that networks are applied in: exported ones compute in fp32, whatever --precision says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet import host
from unet.config.resolve import Resolved
from unet.devices import launchers
from unet.devices.base import Device
from unet.weight_files import exported

FP32 = "fp32"
NAMES = {"torch.float32": FP32, "torch.bfloat16": "bf16", "torch.float16": "fp16"}


def of_networks(resolved: Resolved, paths: Sequence[Path]) -> Resolved:
    """The settings with --precision fp32 where every network is an exported one; a typed one without effect is told.
    Raises what `is_exported` raises."""
    typed = resolved.config.device.precision
    if typed == FP32 or not all(path.exists() and exported.is_exported(path) for path in paths):
        return resolved
    source, rank = resolved.sources["precision"], launchers.find_rank(resolved.config.distributed)
    if source.startswith("flag") and rank.rank == 0:
        spelling = source.removeprefix("flag ")
        host.notice(f"note: {spelling} {typed} changes nothing: exported networks compute in {FP32}")
    sources = {**resolved.sources, "precision": f"weights {paths[0].name}"}
    return dataclasses.replace(resolved, config=resolved.config.replace(precision=FP32), sources=sources)


def tell(device: Device, paths: Sequence[Path]) -> None:
    """Say which networks compute in which format, where they have two."""
    if used(device) == used(device, paths):
        return
    run, plain = ([path for path in paths if exported.is_exported(path) == kind] for kind in (True, False))
    names = " and ".join(map(str, run))
    verb = "computes" if len(run) == 1 else "compute"
    host.notice(f"note: {names} {verb} in {FP32}, {' and '.join(map(str, plain))} in {used(device)}")


def chosen(device: Device, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """The settings that may be left to the device, as they are used and in the words of their flags; `paths`: the
    weights that are applied."""
    import torch

    return {
        "precision": used(device, paths),
        "layout": "NHWC" if device.channels_last() else "NCHW",
        "compile": "on" if device.compiled() else "off",
        "threads": torch.get_num_threads(),
    }


def used(device: Device, paths: Sequence[Path] = ()) -> str:
    """The number format of a run, with that of exported networks among others."""
    own = device.options.precision
    own = NAMES[str(device.dtype)] if own == "auto" else own
    mixed = own != FP32 and any(exported.is_exported(path) for path in paths)
    return f"{own}, exported networks {FP32}" if mixed else own


def beside_torch(precision: str, device: Device) -> str:
    """A line on labels of the weights here and of their exported network, where the number formats differ; else
    empty."""
    best = (device.dtypes() or (FP32,))[0]
    if FP32 in (precision, best if precision == "auto" else ""):
        return ""
    words = f"{precision} ({best} on this device)" if precision == "auto" else precision
    return (
        f"Exported networks compute in {FP32}. With these settings predict runs the weights in --precision {words}:"
        f" some labels may differ.\n  Type predict --precision {FP32} for the same labels."
    )
