"""The series of a folder: found, listed, one chosen, and read as one volume.

A folder holds the files of one patient. A series whose images lie several at one place (echoes, phases, b-values) is
listed as several, one for each.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io.dicom import grid, pixels
from unet.data.io.dicom.files import HEADER_ALONE, Instance, is_dicom, parted, read_header, walk
from unet.data.io.dicom.grid import Grid
from unet.data.io.dicom.planes import Plane, planes_of
from unet.errors import DataError

Array = NDArray[Any]
KEPT = 4  # folders whose headers are kept in memory
EMPTY = "empty file"
LISTED = 12  # series that an error lists
DEEP = 2  # slices from which a series is taken for a volume


@dataclasses.dataclass(frozen=True)
class Series:
    """Images of one series. `number`: in the list of its folder; `part`: which of several images at each place, in
    words, empty for a whole series; `left`: overview images of the series that are left out."""

    folder: Path
    number: int
    uid: str
    modality: str
    planes: tuple[Plane, ...]
    part: str = ""
    left: int = 0

    @property
    def localiser(self) -> bool:
        return all(plane.localiser for plane in self.planes)

    @property
    def volume(self) -> bool:
        """Whether it may be what is meant where nothing is chosen: several slices that say where they lie."""
        return len(self.planes) >= DEEP and not self.localiser and all(plane.placed for plane in self.planes)

    @property
    def name(self) -> str:
        """What errors call it: its only file, or the folder and its number there."""
        paths = {plane.path for plane in self.planes}
        return str(self.folder if self.folder.is_file() or len(paths) > 1 else next(iter(paths)))

    @functools.cached_property
    def grid(self) -> Grid:
        """Its slices in order. Raises DataError where they make no grid."""
        notes = []
        if self.left:
            notes.append(f"{self.folder}: {host.counted(self.left, 'overview image')} of the series left out")
        try:
            found = grid.build(self.name, self.planes)
        except grid.Doubled as doubled:
            single, twice = without_twins(self.name, doubled.places)
            if not single:
                raise
            notes.append(
                f"{self.folder}: {host.counted(twice, 'slice')} twice with the same voxels; one of each is kept"
            )
            found = grid.build(self.name, single)
        return dataclasses.replace(found, notes=(*notes, *found.notes))

    @property
    def words(self) -> str:
        """Its line in a list: number, modality, slices, size, spacing."""
        rows, columns = self.planes[0].size
        text = f"{self.number}: {self.modality}, {host.counted(len(self.planes), 'slice')} of {rows} x {columns}"
        try:
            spacing = self.grid.spacing
            text += f", {' x '.join(f'{mm:.3g}' for mm in spacing)} mm" if spacing else ""
        except DataError:
            text += ", no even grid"
        return text + (f", {self.part}" if self.part else "") + (", an overview image" if self.localiser else "")


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a folder (or a file) holds: its series as they are numbered, segmentations, and how many files of another
    kind."""

    folder: Path
    series: tuple[Series, ...]
    segmentations: tuple[Instance, ...]
    others: collections.Counter[str]


def survey(path: Path) -> Survey:
    """What a folder or file holds; its headers are read once while its files do not change. Raises DataError for files
    of two patients, and for damaged ones."""
    if path.is_dir():
        stamps = [(each, (stat := each.stat()).st_size, stat.st_mtime_ns) for each in walk(path)]
    else:
        stamps = [(path, (stat := path.stat()).st_size, stat.st_mtime_ns)]
    return _survey(path, tuple(stamps))


@functools.lru_cache(maxsize=KEPT)
def _survey(folder: Path, stamps: tuple[tuple[Path, int, int], ...]) -> Survey:
    found = [read_header(path) for path, size, _ in stamps if size and is_dicom(path)]
    images = [each for each in found if each.is_image]
    require_one_patient(folder, images)
    groups: dict[str, list[Instance]] = {}
    for each in images:
        groups.setdefault(str(each.header.get("SeriesInstanceUID", "")), []).append(each)
    series: list[Series] = []
    for uid, members in sorted(groups.items(), key=lambda item: (_number(item[1][0]), item[0])):
        series += _split(
            Series(folder, 0, uid, _modality(members[0]), tuple(p for each in members for p in planes_of(each)))
        )
    numbered = tuple(dataclasses.replace(each, number=number) for number, each in enumerate(series, 1))
    others = collections.Counter(each.kind for each in found if not each.is_image and not each.is_segmentation)
    others.update({EMPTY: empty} if (empty := sum(not size for _, size, _ in stamps)) else {})
    return Survey(folder, numbered, tuple(each for each in found if each.is_segmentation), others)


def _number(instance: Instance) -> int:
    try:
        return int(instance.header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        return 0


def _modality(instance: Instance) -> str:
    found = str(instance.header.get("Modality", "") or "")
    return found if found.isalnum() and len(found) <= 16 else "image"


def require_one_patient(folder: Path, images: Sequence[Instance]) -> None:
    """Raise DataError for images of several patients; who they are is not told."""
    ids = {str(each.header.get("PatientID") or "").strip() for each in images}
    if ids == {""}:  # without numbers the names tell them apart
        ids = {str(each.header.get("PatientName") or "").strip(" ^").lower() for each in images}
    if len(ids) > 1:
        raise DataError(
            f"{folder}: holds images of {len(ids)} patients.", "Give each patient a folder of its own, and name one."
        )


def _split(series: Series) -> list[Series]:
    """A series without its overview images, as several where several images lie at each place and one value tells them
    apart."""
    planes = [plane for plane in series.planes if not plane.localiser] or list(series.planes)
    series = dataclasses.replace(series, planes=tuple(planes), left=len(series.planes) - len(planes))
    try:
        grid.build(series.name, planes)
    except grid.Doubled as doubled:
        if without_twins(series.name, doubled.places)[0]:
            return [series]
        found = grid.parts(doubled.places)
        return [dataclasses.replace(series, planes=tuple(own), part=part) for part, own in found.items()] or [series]
    except DataError:
        pass
    return [series]


def without_twins(name: str, places: Sequence[Sequence[Plane]]) -> tuple[list[Plane], int]:
    """(one slice of each place, how many are twins) where all images at a place hold the same voxels; none where they
    differ."""
    twins = 0
    for group in places:
        if len(group) > 1:
            first, *others = (pixels.read(name, [plane]) for plane in group)
            if not all(np.array_equal(first, other, equal_nan=True) for other in others):
                return [], 0
            twins += len(others)
    return [group[0] for group in places], twins


def find(path: Path) -> Series:
    """The series that a path means: the one that is named after # (its number in the list, or its UID), the only one,
    or the only volume. Raises DataError with the list where it is not clear."""
    folder, wanted = parted(path)
    found = survey(folder)
    if not found.series:
        raise nothing(found)
    if wanted:
        chosen = [each for each in found.series if wanted in (str(each.number), each.uid)]
        words = f"no series {wanted}" if not chosen else f"several parts of the series {wanted}"
    else:
        chosen = [each for each in found.series if each.volume] if len(found.series) > 1 else list(found.series)
        words = f"{len(found.series)} series"
    if len(chosen) != 1:
        lines = [each.words for each in found.series[:LISTED]] + ["..."] * (len(found.series) > LISTED)
        raise DataError(
            f"{folder}: holds {words}. It has {'; '.join(lines)}.",
            "Choose one by its number or UID: predict with --series 1; in a table write FOLDER#1.",
        )
    return chosen[0]


def nothing(found: Survey) -> DataError:
    """The error of a folder or file without an image."""
    held = [f"{kind} {count}" for kind, count in sorted(found.others.items())]
    held += [f"segmentation {len(found.segmentations)}"] if found.segmentations else []
    words = f"; files by their kind: {', '.join(held)}" if held else ""
    return DataError(f"{found.folder}: there is no DICOM image{words}.", "Give the folder of a series of images.")


def lost(series: Series) -> list[str]:
    """Files of the folder that may have been slices, in words."""
    found = survey(series.folder).others
    held = [f"{kind} {found[kind]}" for kind in (HEADER_ALONE, EMPTY) if found[kind]]
    return [f"{series.folder}: files that hold nothing to read are left out: {', '.join(held)}"] if held else []


def remarks(series: Series) -> list[str]:
    """What a user should know of the choice: the series beside it, in words."""
    others = [each for each in survey(series.folder).series if each.number != series.number]
    if not others:
        return []
    shown = "; ".join(each.words for each in others[:3]) + ("; ..." if len(others) > 3 else "")
    return [f"{series.folder}: series {series.words} is taken; others there: {shown} (--series chooses)"]


def files_of(path: Path) -> list[Path]:
    """The files of the series that a path means, sorted; all DICOM files of the folder where it is not clear."""
    folder, _ = parted(path)
    try:
        return sorted({plane.path for plane in find(path).planes})
    except DataError:
        return [each for each in walk(folder) if is_dicom(each)] if folder.is_dir() else [folder]


def read(series: Series) -> Array:
    """The values of a series, (C, slices, rows, columns) float32, in the order of its grid. Raises DataError."""
    return pixels.read(series.name, series.grid.planes)
