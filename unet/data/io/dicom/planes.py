"""Planes: the slices of a series, one a file or many in an enhanced file, with what their headers say of their place
and values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from unet.data.io.dicom.files import Instance
from unet.data.io.dicom.library import explained
from unet.errors import DataError

# What tells several images at one place apart, and the groups of an enhanced file that hold it.
MARKS = (
    *("ImageType", "EchoNumbers", "EchoTime", "InversionTime", "DiffusionBValue", "TemporalPositionIdentifier"),
    *("TriggerTime", "NominalPercentageOfCardiacPhase", "KVP", "AcquisitionNumber", "AcquisitionTime", "ContentTime"),
)
FRAME_MARKS = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("FrameContentSequence", "StackID"),
    ("MREchoSequence", "EffectiveEchoTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
    ("MRImageFrameTypeSequence", "FrameType"),
    ("CTImageFrameTypeSequence", "FrameType"),
)
TOLD = ("EchoNumbers", "EchoTime", "EffectiveEchoTime", "InversionTime", "DiffusionBValue", "KVP")  # values to print
MOST_FRAMES = 2**20


@dataclasses.dataclass(frozen=True)
class Plane:
    """A slice. `frame`: from 0 on in its file, None where the file holds one. `uid` of its object. `position` of its
    first voxel, `orientation` (along columns' index, along rows' index) and `spacing` (between rows, between columns):
    mm, patient coordinates (LPS); None where the header lacks them. `thickness` between slices, as the header says it.
    `marks`: (name, value) of what may tell it from others at its place. `localiser`: an overview image."""

    path: Path
    frame: int | None
    uid: str
    size: tuple[int, int]
    samples: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    thickness: float | None
    reference: str
    slope: float
    intercept: float
    dtype: str
    inverted: bool
    localiser: bool
    marks: tuple[tuple[str, str], ...]

    @property
    def placed(self) -> bool:
        return self.position is not None and self.orientation is not None and self.spacing is not None

    @property
    def bytes(self) -> int:
        return self.size[0] * self.size[1] * self.samples * 4


def planes_of(instance: Instance) -> list[Plane]:
    """The slices of a file. Raises DataError for a header that is damaged or lacks what an image needs."""
    with explained(instance.path):
        return [*_planes(instance)]


def _planes(instance: Instance) -> Iterable[Plane]:
    header = instance.header
    shared, frames = _groups(header, "SharedFunctionalGroupsSequence"), header.get("PerFrameFunctionalGroupsSequence")
    count = int(header.get("NumberOfFrames") or 1)
    rows, columns = int(header.Rows), int(header.Columns)
    if not 0 < count <= MOST_FRAMES or min(rows, columns) < 1:
        raise DataError(
            f"{instance.path}: its header tells of {count} frames of {rows} x {columns}.", "Export it again."
        )
    if not frames:
        for frame in range(count):
            yield _plane(instance, frame if count > 1 else None, [header], [(header, name) for name in MARKS])
        return
    if len(frames) != count:
        raise DataError(
            f"{instance.path}: its header tells of {count} frames and describes {len(frames)}.", "Export it again."
        )
    for frame, own in enumerate(frames):
        marks = [(item, name) for group, name in FRAME_MARKS for item in _items(group, own, *shared)]
        yield _plane(instance, frame, [own, *shared], marks)


def _groups(header: Any, name: str) -> list[Any]:
    return list(header.get(name) or [])[:1]


def _items(group: str, *places: Any) -> list[Any]:
    """The item of a functional group, of the frame or of all frames."""
    return [found[0] for place in places if (found := place.get(group))][:1]


def _plane(instance: Instance, frame: int | None, places: Sequence[Any], marks: Sequence[tuple[Any, str]]) -> Plane:
    header = instance.header

    def value(group: str, name: str) -> Any:
        """Of the functional group, or of a classic header itself."""
        if places[0] is header:
            return header.get(name)
        return next((item.get(name) for item in _items(group, *places)), None)

    def numbers(group: str, name: str, count: int) -> tuple[float, ...] | None:
        found = value(group, name)
        if found is None or isinstance(found, str) or not hasattr(found, "__len__") or len(found) != count:
            return None
        result = tuple(float(each) for each in found)
        return result if all(math.isfinite(each) for each in result) else None

    spacing = numbers("PixelMeasuresSequence", "PixelSpacing", 2) or numbers("", "ImagerPixelSpacing", 2)
    thick = value("PixelMeasuresSequence", "SpacingBetweenSlices") or value("PixelMeasuresSequence", "SliceThickness")
    slope = value("PixelValueTransformationSequence", "RescaleSlope")
    intercept = value("PixelValueTransformationSequence", "RescaleIntercept")
    kind = [str(word).upper() for word in _several(header.get("ImageType"))]
    if "MOSAIC" in kind:
        raise DataError(
            f"{instance.path}: is a mosaic: its slices lie side by side in one image.",
            "Convert the series to NIfTI first (dcm2niix does), and give that file.",
        )
    bits, signed = int(header.get("BitsAllocated") or 8), int(header.get("PixelRepresentation") or 0)
    changed = (
        slope not in (None, 1)
        or intercept not in (None, 0)
        or header.get("ModalityLUTSequence")
        or bits not in (1, 8, 16, 32)
    )
    return Plane(
        path=instance.path,
        frame=frame,
        uid=str(header.get("SOPInstanceUID", "")),
        size=(int(header.Rows), int(header.Columns)),
        samples=3 if str(header.get("PhotometricInterpretation")) == "PALETTE COLOR" else _samples(instance),
        position=numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        spacing=spacing if spacing and min(spacing) > 0 else None,
        thickness=abs(float(thick)) if thick else None,
        reference=str(header.get("FrameOfReferenceUID", "")),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        dtype="float32" if changed else f"{'int' if signed else 'uint'}{max(8, bits)}",
        inverted=str(header.get("PhotometricInterpretation")) == "MONOCHROME1",
        localiser="LOCALIZER" in kind or "SCOUT" in kind,
        marks=tuple((name, str(item.get(name))) for item, name in marks if item.get(name) is not None),
    )


def _samples(instance: Instance) -> int:
    found = int(instance.header.get("SamplesPerPixel") or 1)
    if found not in (1, 3):
        raise DataError(f"{instance.path}: has {found} values a pixel; 1 or 3 are read.", "Export it as grey values.")
    return found


def _several(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
