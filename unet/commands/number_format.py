"""The number format that networks are applied in: exported ones compute in fp32, whatever --precision says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from unet import host
from unet.config.resolve import Resolved
from unet.devices import launchers
from unet.devices.base import Device
from unet.weight_files import exported

FP32 = "fp32"


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
