"""DICOM as a format of images and label maps: the head of a series or of a segmentation, and its voxels. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io.dicom import segmentation, series, writing
from unet.data.io.dicom.files import is_dicom, parted, read_header, walk
from unet.data.io.dicom.series import files_of
from unet.data.io.heads import DICOM, Head, turned_affine
from unet.errors import DataError

__all__ = ["files_of"]

Array = NDArray[Any]
Triple = tuple[int, int, int]


def head(path: Path, like: Head | None = None) -> Head:
    """The head of a series, axes (slices, rows, columns); of a segmentation where there is no series or a mask is
    asked for: `like` is the image that it belongs to. Raises DataError."""
    place, wanted = parted(path)
    held = series.survey(place)
    if held.segmentations and not wanted and (like is not None or not held.series):
        if len(held.segmentations) > 1:
            raise DataError(f"{place}: holds {len(held.segmentations)} segmentations.", "Name the file of one of them.")
        return _segments_head(path, held.segmentations[0].path, like)
    found = series.find(path)
    grid, planes = found.grid, found.grid.planes
    kind = np.dtype(planes[0].dtype if len({plane.dtype for plane in planes}) == 1 else "float32")
    stored = len(planes), *planes[0].size
    notes = [*([] if wanted else series.remarks(found)), *series.lost(found), *grid.notes]
    codes = _codes(grid.affine)
    return Head(
        *(path, DICOM, stored, planes[0].samples, kind, grid.spacing, codes, grid.affine, notes),
        modality=found.modality,
    )


def check(path: Path) -> tuple[list[str], list[str]]:
    """(the list of a folder's series, what is wrong with them, in words); each but overview images is read whole.
    Raises DataError for a folder with two patients, or without an image."""
    found = series.survey(path)
    if not found.series:
        raise series.nothing(found)
    faults = []
    for each in found.series:
        try:
            if not each.localiser:
                series.read(each)
        except DataError as error:
            faults.append(f"series {each.number}: {error.message} {error.hint}")
    return [each.words for each in found.series], faults


def patient_of(path: Path) -> str:
    """The identifier of the patient in the first file of an image. Raises DataError."""
    place, _ = parted(path)
    first = place if place.is_file() else next(each for each in walk(place) if is_dicom(each))
    return str(read_header(first).header.get("PatientID") or "").strip()


def _segments_head(path: Path, file: Path, like: Head | None) -> Head:
    found = segmentation.look(file)
    stored, affine = segmentation.own_grid(found)
    codes = _codes(affine)
    if like is not None and like.affine is not None and codes:
        turn = like.turn("".join(codes))
        sizes, turned = turn.sizes(like.stored), turned_affine(like, turn)
        if segmentation.slices_of(found, sizes, turned) is not None:
            stored, affine = sizes, turned
    return _made_head(path, file, stored, affine)


def _made_head(path: Path, file: Path, stored: Triple, affine: Array | None) -> Head:
    spacing: Any = None if affine is None else tuple(map(float, np.linalg.norm(affine[:3, :3], axis=0)))
    return Head(path, DICOM, stored, 1, np.dtype(np.int32), spacing, _codes(affine), affine, segments=file)


def _codes(affine: Array | None) -> Any:
    from nibabel.orientations import aff2axcodes

    return None if affine is None else aff2axcodes(affine)


def together(one: Head, other: Head) -> tuple[Head, Head]:
    """The heads of two segmentations on the smallest grid that holds the frames of both."""
    assert one.segments
    assert other.segments
    stored, affine = segmentation.own_grid(*(segmentation.look(each.segments) for each in (one, other)))  # type: ignore[arg-type]
    return tuple(_made_head(each.path, each.segments, stored, affine) for each in (one, other))  # type: ignore[return-value,arg-type]


def read(found: Head) -> Array:
    """The values of a series, (C, slices, rows, columns) float32. Raises DataError."""
    return series.read(series.find(found.path))


def read_segments(found: Head) -> Array:
    """The label map of a segmentation on the grid of its head, int32. Raises DataError."""
    assert found.segments
    return segmentation.read(segmentation.look(found.segments), found.stored, found.affine)


def write(path: Path, labels: Array, like: Path, names: Mapping[int, str], origin: str) -> None:
    """Write a label map of the series `like` as DICOM-SEG: see `writing.write`."""
    writing.write(path, labels, series.find(like), names, origin)
