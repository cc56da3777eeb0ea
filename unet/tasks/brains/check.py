"""What can be wrong with a folder of brain volumes: found before a run, named with its file. No torch.

Every volume is read once, in the process pool.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from pathlib import Path

import numpy as np

from unet import files, host
from unet.data.checks import Report
from unet.data.io import nifti
from unet.data.io.nifti_header import times
from unet.errors import UnetError
from unet.tasks.brains import dataset
from unet.tasks.brains.settings import Settings

FEW = 16  # voxels along an axis: fewer are hardly a brain


@dataclasses.dataclass
class Seen:
    """One file as it was found."""

    path: Path
    error: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    codes: str = ""
    values: tuple[float, float] = (math.nan, math.nan)
    digest: str = ""


def raw(path: Path, settings: Settings) -> Report:
    """A raw set: headers, values, NaN, volumes of one value, equal volumes, and what differs from most of them."""
    report = Report()
    try:
        paths = dataset.find(path, settings)
    except UnetError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    work = functools.partial(look, settings=settings)
    seen = [job.result() for _, job in host.process_map(work, paths, "check", "volume", host.processes(len(paths), 0))]
    seen.sort(key=lambda item: item.path)
    digests: dict[str, Path] = {}
    whole = [item for item in seen if not item.error]
    for item in seen:
        report.errors += [item.error] if item.error else []
        report.warnings += item.notes
        twin = digests.setdefault(item.digest, item.path) if item.digest else item.path
        if twin != item.path:
            report.errors.append(f"duplicate: {twin.name} and {item.path.name} hold the same voxels")
    for name in ("codes", "spacing"):
        counts = Counter(getattr(item, name) for item in whole)
        usual = counts.most_common(1)[0][0] if counts else None
        odd = [item for item in whole if getattr(item, name) != usual]
        if odd and len(odd) < len(whole) / 2:
            report.warnings.append(
                f"{host.counted(len(odd), 'volume')} of {len(whole)} differ from the others in"
                f" {'orientation' if name == 'codes' else 'spacing'}: {odd[0].path.name} has"
                f" {shown(getattr(odd[0], name))}, most have {shown(usual)}"
            )
    if len(paths) < 2:
        report.errors.append("one volume cannot be split into training and validation: add volumes, or --split none")
    report.facts = {
        "volumes": len(paths),
        "with lesion masks": sum(bool(dataset.lesions_of(item)) for item in paths),
        "sizes": ranged([item.shape for item in whole]),
        "spacing mm": ranged([item.spacing for item in whole]),
        "orientations": ", ".join(f"{name} {count}" for name, count in Counter(i.codes for i in whole).most_common()),
        "values": f"{min((i.values[0] for i in whole), default=math.nan):.5g} to"
        f" {max((i.values[1] for i in whole), default=math.nan):.5g}",
    }
    return report


def shown(value: object) -> str:
    return times(value) + " mm" if isinstance(value, tuple) else str(value)


def ranged(sizes: list[tuple[float, ...]] | list[tuple[int, ...]]) -> str:
    """The smallest and largest along each axis, in words."""
    if not sizes:
        return "-"
    columns = list(zip(*sizes, strict=True))
    low, high = times([min(each) for each in columns]), times([max(each) for each in columns])
    return low if low == high else f"{low} to {high}"


def look(path: Path, settings: Settings) -> Seen:
    """One file, read whole."""
    seen = Seen(path)
    try:
        head = dataset.read_header(path, settings)
        volume = dataset.without_nan(nifti.read_volume(head, math.nan), path)
        for mask in dataset.lesions_of(path):
            nifti.read_header(mask)
    except UnetError as error:
        seen.error = error.message
        return seen
    seen.notes, seen.shape, seen.spacing = list(head.notes), head.shape, head.spacing
    seen.codes = "".join(head.codes) if head.codes else "none"
    seen.values = float(volume.min()), float(volume.max())
    seen.digest = files.digest(np.ascontiguousarray(volume).tobytes())
    low, high = np.percentile(volume, dataset.PERCENTILES)
    if not low < high:
        seen.error = f"{path}: holds one value, {low:g}, but for 0.1 % of its voxels"
    if min(head.shape) < FEW:
        seen.notes.append(f"{path}: has only {min(head.shape)} voxels along an axis")
    if head.codes is None:
        seen.notes.append(f"{path}: names no orientation; its axes are taken as stored")
    return seen
