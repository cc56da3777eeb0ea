"""Images and label maps of every format that the program reads, as arrays (C, D, H, W), with where their voxels lie.

NIfTI (.nii, .nii.gz), TIFF (also stacks and 16 bits), PNG, JPEG, NumPy (.npy), with the extra `formats` NRRD and
MetaImage (.nrrd, .nhdr, .mha, .mhd), and with the extra `dicom` DICOM: a file, or a folder with a series in. A flat
image has D = 1. A file that says how its axes lie is turned to the wanted orientation by `Head.turn`; the others are
taken as stored. No torch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io import itk, nifti, pictures
from unet.data.io.arrays import open_npy, write_label_png, write_label_stack, write_npy
from unet.data.io.dicom import images as dicom
from unet.data.io.dicom import made
from unet.data.io.dicom.files import holds_dicom, is_dicom, parted
from unet.data.io.heads import DICOM, ITK, JPEG, NIFTI, NPY, PNG, TIFF, Head, Turn, apart, mismatch, numbers
from unet.data.io.nifti_header import times
from unet.errors import DataError, StorageError, UnetError
from unet.files import make_folder, require_regular

__all__ = ["DICOM", "Head", "Turn", "mismatch", "parted"]

Array = NDArray[Any]
FORMATS = {
    ".nii.gz": NIFTI,
    ".nii": NIFTI,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".npy": NPY,
    ".nrrd": ITK,
    ".nhdr": ITK,
    ".mha": ITK,
    ".mhd": ITK,
    ".dcm": DICOM,
}
COLOURS = 3
FINEST = 1e-6  # mm of a voxel: also those of a microscope
MOST_CHANNELS = 8
AGAIN = "Copy the file again from its source, or remove it."


def format_of(path: Path) -> str | None:
    """The format by the name's end; None for another one."""
    name = path.name.lower()
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def kind_of(path: Path) -> str | None:
    """The format of what is there: by the name's end, or DICOM by its content, a file or a folder; None for another
    one."""
    place, _ = parted(path)
    if place.is_dir():
        return DICOM if holds_dicom(place) else None
    return format_of(place) or (DICOM if place.is_file() and is_dicom(place) else None)


def is_image(path: Path) -> bool:
    return not path.name.startswith(".") and kind_of(path) is not None


def is_there(path: Path) -> bool:
    """Whether a file is there, or a folder of DICOM files."""
    place, _ = parted(path)
    return place.is_file() or (place.is_dir() and kind_of(path) == DICOM)


def holds_channels(path: Path, channels: int) -> bool:
    """Whether a file that can be read holds this many channels; NIfTI holds one."""
    with contextlib.suppress(UnetError):
        return format_of(path) not in (None, NIFTI) and read_head(path).channels == channels
    return False


def patient_of(path: Path) -> str:
    """What tells the patient of a DICOM image from others, to compare and not to show; "" of other images. Raises
    DataError."""
    return dicom.patient_of(path) if kind_of(path) == DICOM else ""


def files_of(path: Path) -> list[Path]:
    """The files that an image is read from: itself, or those of its series; a header with those of its voxels; a TIFF
    with that of its spacing."""
    kind = kind_of(path)
    if kind == DICOM:
        return dicom.files_of(path)
    if kind == TIFF and (beside := pictures.sidecar(path)):
        return [path, beside]
    return [path, *itk.data_files(path)] if kind == ITK else [path]


def memory_of(paths: Iterable[Path], each: int) -> int:
    """Bytes that one of some files takes at most, at `each` a voxel: by the head of the largest one; 0 where that
    cannot be read, and of DICOM series."""
    with contextlib.suppress(UnetError, OSError, ValueError):
        size = {path: path.stat().st_size for path in paths if format_of(path) and path.is_file()}
        return each * math.prod(read_head(max(size, key=lambda path: size[path])).stored)
    return 0


def stem(path: Path) -> str:
    """The name without the suffix of its format; the whole name of a folder."""
    path, _ = parted(path)
    if path.is_dir():
        return path.name
    name = path.name.lower()
    return next((path.name[: -len(suffix)] for suffix in FORMATS if name.endswith(suffix)), path.stem)


def suffix(path: Path) -> str:
    """The suffix of its format, in small letters."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), path.suffix.lower())


def read_head(path: Path, like: Head | None = None) -> Head:
    """What a file says of its image. `like`: the image that a mask belongs to, which a DICOM-SEG is put on the grid of.
    Raises DataError for a damaged file, an unknown format, more than one volume."""
    kind = kind_of(path)
    if kind == DICOM:
        return dicom.head(path, like)
    if kind is None:
        raise DataError(
            f"{path}: {path.suffix or 'a name without an ending'} is no format that is read here.",
            f"Convert it to one of {', '.join(FORMATS)}.",
        )
    try:
        require_regular(path)
    except StorageError as error:
        raise DataError(error.message, AGAIN) from error
    if kind == NIFTI:
        head = nifti.read_header(path, finest=FINEST)
        spaced = head.spacing if head.raw["pixdim"][1] else None
        notes = [*head.notes, *_odd_places(head)]
        dtype = head.dtype if head.slope is None else np.dtype(np.float32)
        place = head.affine if head.codes else None  # without sform and qform the affine is made up
        return Head(path, kind, head.shape, 1, dtype, spaced, head.codes, place, notes)
    if kind == ITK:
        return _itk_head(path)
    if kind == NPY:
        return _npy_head(path)
    found = pictures.look(path)
    return Head(path, kind, *found, pictures.spacing(path) if kind == TIFF else None)


def _odd_places(head: nifti.Header) -> list[str]:
    """What is odd about where a NIfTI file's voxels lie, and how it is taken."""
    found = []
    unit = head.affine[:3, :3] / np.linalg.norm(head.affine[:3, :3], axis=0)
    skew = float(np.abs(unit.T @ unit - np.eye(3)).max())
    if skew > 0.02:
        found.append(
            f"{head.path}: its axes are {math.degrees(math.asin(min(1, skew))):.0f} degrees off right angles;"
            " its voxels are taken as boxes"
        )
    if min(head.forms) > 0:
        with contextlib.suppress(ValueError):  # a qform that is none: the sform counts
            one, other = head.raw.get_sform(), head.raw.get_qform()
            if apart(one, other, head.shape) > 0.5:
                found.append(
                    f"{head.path}: its sform and its qform differ (origin {numbers(one[:3, 3])} and"
                    f" {numbers(other[:3, 3])} mm); the sform is taken"
                )
    return found


def _itk_head(path: Path) -> Head:
    found = itk.header(path)
    if found.axes not in (2, 3):
        raise DataError(f"{path}: has {found.axes} axes; an image has two or three.", "Give one volume a file.")
    return Head(path, ITK, found.shape, found.channels, found.dtype, found.spacing, found.codes, found.affine)


def read_heads(mask: Path, prediction: Path) -> tuple[Head, Head]:
    """The heads of two label maps of one case, DICOM-SEG put on one grid with the other. Raises DataError."""
    first, second = (read_head(path) for path in (mask, prediction))
    if first.segments and second.segments:
        return dicom.together(first, second)
    return (read_head(mask, second), second) if first.segments else (first, read_head(prediction, first))


def _npy_head(path: Path) -> Head:
    try:
        array = open_npy(path)
    except DataError as error:
        raise DataError(error.message, "Save the image again with numpy.save, as an array of numbers.") from error
    shape = array.shape
    if array.dtype.kind not in "biuf" or not 2 <= array.ndim <= 4 or 0 in shape:
        raise DataError(
            f"{path}: is an array of {times(shape) or 'no'} {array.dtype}; an image is (H, W), (D, H, W) or"
            " (C, D, H, W) of numbers.",
            "Save it in one of these forms.",
        )
    if array.ndim == 3 and shape[-1] in (COLOURS, COLOURS + 1) and min(shape[:2]) > 8:
        raise DataError(
            f"{path}: {times(shape)} may be an image in colours or a volume {shape[-1]} voxels wide.",
            f"Save colours as (C, 1, H, W): array.transpose(2, 0, 1)[:, None] is {shape[-1]} x 1 x {times(shape[:2])}.",
        )
    channels = shape[0] if array.ndim == 4 else 1
    d, h, w = shape[-3:] if array.ndim > 2 else (1, *shape)
    return Head(path, NPY, (d, h, w), channels, array.dtype)


def read_image(head: Head) -> Array:
    """The values of an image, (C, a, b, c) float32, axes as stored. Raises DataError for values that are not finite
    (NaN that reaches the border of a NIfTI volume becomes 0, with a note) and for damaged files."""
    if head.format == NIFTI:
        source = nifti.read_header(head.path, finest=FINEST)
        volume = nifti.read_volume(source)[None]
        head.notes.extend(note for note in source.notes if note not in head.notes)
        return volume
    array = _values(head)
    volume = array.astype(np.float32, copy=False)
    if head.dtype.kind == "f" and not np.isfinite(volume).all():
        count = int((~np.isfinite(volume)).sum())
        raise DataError(f"{head.path}: {count} values are NaN or infinite.", "Repair the image, or remove it.")
    return volume


def read_labels(head: Head) -> Array:
    """The label values of a mask, (a, b, c) as whole numbers (int32, or uint8 where they fit), axes as stored. Values
    that are whole but for rounding are rounded, with a note. Raises DataError for a mask in colours or in a lossy
    format, and for values that are no whole numbers."""
    if head.format == JPEG:
        raise DataError(
            f"{head.path}: JPEG is lossy: the values of a mask do not survive it.",
            "Save masks as PNG, TIFF or NIfTI, from the program that made them.",
        )
    if head.format == NIFTI:
        source = nifti.read_header(head.path, finest=FINEST)
        return _whole(head, nifti.read_numbers(source), nifti.slack_of(source))
    if head.format in (PNG, TIFF):
        array = pictures.read_labels(head.path)
    elif head.format == DICOM and head.segments:
        array = dicom.read_segments(head)
    else:
        array = _values(head)
        if len(array) != 1:
            raise DataError(f"{head.path}: has {len(array)} channels; a mask has one.", "Save one label map a file.")
        array = array[0]
    return _whole(head, array, nifti.ROUNDED)


def stored_like(image: Head, other: Head, values: Array) -> Array:
    """The values (..., a, b, c) of another file of the case, its mask or a further channel, with the axes as the image
    stores them: the same grid may be stored with its axes in another order, or backwards."""
    if image.codes and other.codes:
        return other.turn("".join(image.codes)).apply(values)
    return image.turn("").undo(other.turn("").apply(values))


def read_channels(heads: Sequence[Head]) -> Array:
    """The values of a case's images, (C, a, b, c) float32, axes as the first stores them; all lie on one grid. Raises
    DataError, as `read_image`."""
    first = read_image(heads[0])
    if len(heads) == 1:
        return first
    return np.concatenate([first, *(stored_like(heads[0], head, read_image(head)) for head in heads[1:])])


def _values(head: Head) -> Array:
    """(C, a, b, c) of the file's own type."""
    if head.format == NPY:
        array = np.array(open_npy(head.path))
        return array.reshape(head.channels, *head.stored)
    if head.format == ITK:
        return itk.read(head.path).reshape(head.channels, *head.stored)
    if head.format == DICOM:
        return dicom.read(head)
    return pictures.read(head.path)


def _whole(head: Head, array: Array, slack: float) -> Array:
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise DataError(f"{head.path}: a mask with values that are not finite (NaN).", "Save whole numbers.")
        whole = np.rint(array)
        off = float(np.abs(whole - array).max(initial=0))
        if off > slack:
            odd = np.unique(array[np.abs(whole - array) > slack])[:3]
            raise DataError(
                f"{head.path}: holds {', '.join(map(nifti.shown_value, odd))}; the values of a mask are whole numbers.",
                "Resample masks by the nearest neighbour, or save them with whole numbers.",
            )
        if off:
            head.notes.append(f"{head.path}: labels are up to {off:.2g} from whole numbers; they are rounded")
        array = whole
    low, high = int(array.min(initial=0)), int(array.max(initial=0))
    if low < -(2**31) or high >= 2**31:
        raise DataError(f"{head.path}: holds the label {high if high >= 2**31 else low}.", "Number classes from 0 on.")
    return array.astype(np.uint8 if low >= 0 and high < 256 else np.int32, copy=False)


def output_suffixes(image: Path, wanted: str) -> dict[str, str]:
    """{name: ending} of the label maps that are written for an image, "mask" the first: in the image's format, of which
    a lossy one becomes PNG, and two files one. `wanted` for DICOM: dicom-seg, nifti or both."""
    if kind_of(image) == DICOM:
        endings = {"dicom-seg": (".dcm",), "nifti": (".nii.gz",), "both": (".dcm", ".nii.gz")}[wanted]
        return dict(zip(("mask", "nifti"), endings, strict=False))
    own = suffix(image)
    own = {".jpg": ".png", ".jpeg": ".png", ".nhdr": ".nrrd", ".mhd": ".mha"}.get(own, own)
    return {"mask": own}


def write_labels(path: Path, labels: Array, like: Path, names: Mapping[str, str], origin: str = "") -> None:
    """Write label values, axes as stored, in the format of `path` on the grid of the image `like`; `names` of the
    classes, the background first, {class_<value>: name}, are kept in the header where the format has a place, as is
    `origin`, a digest of the weights. Atomic. Raises DataError."""
    kind = format_of(path)
    told = "\n".join(f"{key}: {name}" for key, name in names.items())
    if kind == DICOM:
        dicom.write(path, labels, like, {int(key.rpartition("_")[2]): name for key, name in names.items()}, origin)
    elif kind == NIFTI and kind_of(like) == DICOM:
        head = read_head(like)  # (slices, rows, columns) as (columns, rows, slices), as other programs write a series
        nifti.write(path, labels.transpose(2, 1, 0), _raw_of_dicom(head, labels.dtype), told)
    elif kind == NIFTI:
        nifti.write_like(path, labels, like, told)
    elif kind == ITK:
        itk.write_like(path, labels, like, names)
    elif kind == TIFF:
        grid = pictures.grid(like)
        pixel, unit, depth = grid or (*pictures.pixel_size(like), None)
        write_label_stack(path, labels, pixel, unit, told, depth)
    elif kind == NPY:
        shape = open_npy(like).shape[-3:] if labels.shape[0] > 1 else open_npy(like).shape[-2:]
        write_npy(path, labels.reshape(shape) if math.prod(shape) == labels.size else labels)
    else:
        write_label_png(path, labels[0], names)


def write_made_series(folder: Path, image: Array, mask: Array, names: Mapping[str, int], mm: tuple[float, ...]) -> None:
    """Write a made volume (D, H, W) in Hounsfield units as a DICOM series, its mask beside the folder's place in
    images/ as DICOM-SEG in masks/; `mm`: spacing along z, y, x."""
    made.write_series(folder, image, mm, folder.name)  # type: ignore[arg-type]
    target = folder.parent.parent / "masks" / f"{folder.name}.dcm"
    make_folder(target.parent)
    dicom.write(target, mask, folder, {value: name for name, value in names.items()}, "")


def _raw_of_dicom(head: Head, dtype: Any) -> Any:
    """A NIfTI header with the geometry of a series, and nothing else of it."""
    spacing = head.spacing or (1.0, 1.0, 1.0)
    raw = nifti.new_header(head.stored[::-1], dtype, spacing[::-1])
    if head.affine is not None:
        affine = head.affine[:, [2, 1, 0, 3]]
        raw.set_sform(affine, "scanner")
        raw.set_qform(affine, "scanner")
    return raw


def scan_header(path: Path) -> nifti.Header:
    """The header of a NIfTI file; that of a DICOM series as if it were one, axes (columns, rows, slices). Raises
    DataError, also for a series without a place in space."""
    if kind_of(path) != DICOM:
        return nifti.read_header(path)
    head = read_head(path)
    if head.affine is None or head.spacing is None or head.codes is None or head.channels != 1:
        raise DataError(f"{path}: is no volume of grey values with a place in space.", "Give a series of slices.")
    raw = _raw_of_dicom(head, np.float32)
    return nifti.Header(
        *(path, head.stored[::-1], head.spacing[::-1], head.codes[::-1], head.affine[:, [2, 1, 0, 3]], (1, 1)),
        *(np.dtype(np.float32), 0, None, None, raw, head.notes),
        planes=lambda: np.ascontiguousarray(read_image(head)[0]),
    )


def dicom_inputs(paths: Sequence[Path], series: str | None) -> tuple[dict[str, Path], list[Path]]:
    """({case: its series}, the paths that are no DICOM) of what a user named; `series`: which one of each folder.
    Raises DataError for two folders of one name."""
    found: dict[str, Path] = {}
    others = []
    for path in paths:
        place, chosen = parted(path)
        held = [item for item in place.iterdir() if format_of(item) == NIFTI] if place.is_dir() else []
        if held or kind_of(path) != DICOM:
            others.append(path)
            continue
        image = Path(f"{place.absolute()}#{chosen or series}") if chosen or series else place.absolute()
        if found.setdefault(stem(image), image) != image:
            raise DataError(
                f"{image}: another image, {found[stem(image)]}, is case {stem(image)} too; their masks would meet.",
                "Predict them one after the other, each with its own --output.",
            )
        read_head(image)
    return found, others
