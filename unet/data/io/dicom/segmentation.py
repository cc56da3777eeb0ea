"""DICOM-SEG files as label maps: the frames of their segments put onto the grid of the series that they belong to."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io.dicom.grid import LPS_TO_RAS
from unet.data.io.dicom.library import explained, pydicom
from unet.errors import DataError

Array = NDArray[Any]
OFF = 0.1  # share of a voxel that a frame may lie off the grid
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
VALUE = re.compile(r"value (-?\d{1,9})$")  # what `writing` says of a segment whose value is not its number
VALUE_TEXT = "value {}"
SURE = 2**28


@dataclasses.dataclass(frozen=True)
class Segments:
    """A segmentation without its voxels. `positions` (frames, 3) of the first voxels in mm (LPS), None where it has no
    place in space; `directions` (3, 3): from slice to slice (unit length), along rows' index, along columns' index,
    the last two in mm; `between`: mm between slices as the header says, 0 where it does not; `numbers`: the segment of
    each frame, 0 where frames hold several; `values` {segment: value of the label map}."""

    path: Path
    size: tuple[int, int]
    positions: Array | None
    directions: Array
    between: float
    numbers: tuple[int, ...]
    values: dict[int, int]


def look(path: Path) -> Segments:
    """The header of a segmentation. Raises DataError for a damaged one, and for probabilities."""
    with explained(path, "cannot be read as DICOM-SEG"):
        header = pydicom().dcmread(path, stop_before_pixels=True)
        if str(header.get("SegmentationType")) not in ("BINARY", "LABELMAP"):
            raise DataError(
                f"{path}: holds {str(header.get('SegmentationType')).lower()} segments, no classes.",
                "Save it with binary segments.",
            )
        whole = str(header.SOPClassUID) == LABELMAP
        shared = header.SharedFunctionalGroupsSequence[0]
        frames = list(header.PerFrameFunctionalGroupsSequence)
        if len(frames) != int(header.get("NumberOfFrames") or 1):
            raise DataError(
                f"{path}: describes {len(frames)} of {header.get('NumberOfFrames') or 1} frames.", "Save it again."
            )

        def of(frame: Any, group: str) -> Any:
            return next((place[group].value[0] for place in (frame, shared) if place.get(group)), None)

        numbers = []
        for frame in frames:
            item = of(frame, "SegmentIdentificationSequence")
            numbers.append(0 if whole or item is None else int(item.ReferencedSegmentNumber))
        values = {}
        for item in header.SegmentSequence:
            said = VALUE.match(str(item.get("SegmentDescription") or ""))
            values[int(item.SegmentNumber)] = int(said[1]) if said else int(item.SegmentNumber)
        places = [of(frame, "PlanePositionSequence") for frame in frames]
        turns = [of(frame, "PlaneOrientationSequence") for frame in frames]
        measures = of(frames[0], "PixelMeasuresSequence")
        size = int(header.Rows), int(header.Columns)
        if measures is None or any(each is None for each in (*places, *turns)):
            return Segments(path, size, None, np.eye(3), 0.0, tuple(numbers), values)
        turned = np.array([each.ImageOrientationPatient for each in turns], float)
        if np.abs(turned - turned[0]).max() > 1e-3:
            raise DataError(f"{path}: its frames have different orientations.", "Save one segmentation a series.")
        along, down = turned[0].reshape(2, 3)
        row, column = map(float, measures.PixelSpacing)
        directions = np.stack([np.cross(along, down), down * row, along * column])
        positions = np.array([each.ImagePositionPatient for each in places], float)
        between = float(measures.get("SpacingBetweenSlices") or 0.0)
        return Segments(path, size, positions, directions, between, tuple(numbers), values)


def own_grid(found: Segments, *others: Segments) -> tuple[tuple[int, int, int], Array | None]:
    """(voxels, affine from (slice, row, column) to mm in RAS) of the smallest grid that holds its frames (and those of
    `others` that lie on the same planes)."""
    if found.positions is None:
        return (1, *found.size), None
    normal = found.directions[0]
    each = [found.positions, *(other.positions for other in others if other.positions is not None)]
    along = np.unique(np.round(np.concatenate([positions @ normal for positions in each]), 4))
    gaps = np.diff(along)
    step = found.between or (float(gaps[gaps > 1e-3].min()) if (gaps > 1e-3).any() else 1.0)
    count = round(float(along[-1] - along[0]) / step) + 1
    origin = found.positions[0] + normal * (along[0] - found.positions[0] @ normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = normal * step, *found.directions[1:], origin
    return (count, *found.size), LPS_TO_RAS @ affine


def slices_of(found: Segments, shape: tuple[int, int, int], affine: Array | None) -> list[int] | None:
    """The slice of a grid that each frame lies on; None where one does not lie there."""
    if found.positions is None or affine is None:
        return [0] * len(found.numbers) if shape == (1, *found.size) else None
    if shape[1:] != found.size:
        return None
    inverse = np.linalg.inv(LPS_TO_RAS @ affine)
    corners = np.array([(0, 0), (0, found.size[1] - 1), (found.size[0] - 1, 0)], float)
    result = []
    for position in found.positions:
        places = position + corners @ found.directions[1:]
        indices = places @ inverse[:3, :3].T + inverse[:3, 3]
        number = round(float(indices[0, 0]))
        if np.abs(indices - np.c_[np.full(3, number), corners]).max() > OFF or not 0 <= number < shape[0]:
            return None
        result.append(number)
    return result


def read(found: Segments, shape: tuple[int, int, int], affine: Array | None) -> Array:
    """The label map of a segmentation on a grid that it fits, (slices, rows, columns) int32; 0 where no segment is.
    Raises DataError where segments overlap, and for more than the memory holds."""
    needed, free = math.prod(found.size) * (len(found.numbers) + 4 * shape[0]), host.memory()[1]
    if needed > SURE and needed > free > 0:
        raise DataError(f"{found.path}: takes {host.format_bytes(needed)} of memory.", "Save fewer frames a file.")
    places = slices_of(found, shape, affine)
    if places is None:
        raise DataError(
            f"{found.path}: does not lie on the grid of its series.", "Give the series that it was made for."
        )
    result = np.zeros(shape, np.int32)
    with explained(found.path, "its segments cannot be unpacked"):
        frames = pydicom().pixels.pixel_array(pydicom().dcmread(found.path)).reshape(-1, *found.size)
        for place, number, frame in zip(places, found.numbers, frames, strict=True):
            target = result[place]
            if not number:
                for stored in np.unique(frame[frame > 0]).tolist():
                    target[frame == stored] = found.values.get(stored, stored)
                continue
            inside = frame > 0
            if target[inside].any():
                raise DataError(
                    f"{found.path}: segments overlap; a voxel has one class.", "Save them as several files."
                )
            target[inside] = found.values[number]
    return result
