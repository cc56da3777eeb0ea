"""Images and label maps of every format that the program reads, as arrays (C, D, H, W), with where their voxels lie.

NIfTI (.nii, .nii.gz), TIFF (also stacks and 16 bits), PNG, JPEG, NumPy (.npy), and with the extra `formats` NRRD and
MetaImage (.nrrd, .nhdr, .mha, .mhd). A flat image has D = 1. A file that says how its axes lie is turned to the wanted
orientation by `Head.turn`; the others are taken as stored. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io import itk, nifti, pictures
from unet.data.io.arrays import open_npy, write_label_png, write_label_stack, write_npy
from unet.data.io.nifti_header import times
from unet.errors import DataError, StorageError
from unet.files import require_regular

Array = NDArray[Any]
Triple = tuple[int, int, int]
NIFTI, TIFF, PNG, JPEG, NPY, ITK = "nifti", "tiff", "png", "jpeg", "npy", "itk"
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
}
COLOURS = 3
MOST_CHANNELS = 8
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
AGAIN = "Copy the file again from its source, or remove it."


@dataclasses.dataclass(frozen=True)
class Head:
    """What a file says of its image before its voxels are read.

    `stored`: voxels along three axes as stored: (x, y, z) in NIfTI and ITK's formats, (slices, rows, columns) in the
    others. `spacing` (mm) along these, None where the file gives none. `codes`: the world direction that each axis runs
    to (R, L, A, P, S, I), and `affine` from voxels to mm (RAS); None where the file names no orientation. `notes`: what
    was odd and how it was taken, in words; reading the voxels adds to it.
    """

    path: Path
    format: str
    stored: Triple
    channels: int
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None = None
    codes: tuple[str, str, str] | None = None
    affine: Array | None = dataclasses.field(default=None, compare=False)
    notes: list[str] = dataclasses.field(default_factory=list, compare=False)

    @property
    def flat(self) -> bool:
        """Whether it is one slice without a place in space: a photograph, a microscope's image."""
        return self.codes is None and self.stored[0] == 1 and self.format not in (NIFTI, ITK)

    def turn(self, orientation: str) -> Turn:
        """How the stored axes become (D, H, W): to the `orientation`, three codes such as IPL; where that is empty or
        the file names none, by the format: (z, y, x) of NIfTI and ITK's formats, the others as stored."""
        if not orientation or self.codes is None:
            return Turn((2, 1, 0) if self.format in (NIFTI, ITK) else (0, 1, 2), (False, False, False))
        world = [WORLD[code][0] for code in self.codes]
        order = tuple(world.index(WORLD[code][0]) for code in orientation)
        flips = tuple(self.codes[axis] != code for axis, code in zip(order, orientation, strict=True))
        return Turn(order, flips)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Turn:
    """How axes as stored lie in the order of the network: the stored axis of each of D, H, W, and which run
    backwards."""

    order: Triple
    flips: tuple[bool, bool, bool]

    @property
    def _backwards(self) -> tuple[Any, ...]:
        return (Ellipsis, *(slice(None, None, -1 if flip else 1) for flip in self.flips))

    def sizes(self, stored: Any) -> Any:
        """What is given for each stored axis, for each of D, H, W."""
        return tuple(stored[axis] for axis in self.order)

    def apply(self, volume: Array) -> Array:
        """(..., a, b, c) as stored -> (..., D, H, W): a view."""
        lead = volume.ndim - 3
        axes = (*range(lead), *(lead + axis for axis in self.order))
        return volume.transpose(axes)[self._backwards]

    def undo(self, volume: Array) -> Array:
        """(..., D, H, W) -> (..., a, b, c) as stored: a view."""
        lead = volume.ndim - 3
        return volume[self._backwards].transpose((*range(lead), *(lead + int(axis) for axis in np.argsort(self.order))))


def format_of(path: Path) -> str | None:
    """The format by the name's end; None for another one."""
    name = path.name.lower()
    return next((kind for suffix, kind in FORMATS.items() if name.endswith(suffix)), None)


def is_image(path: Path) -> bool:
    return format_of(path) is not None and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The name without the suffix of its format."""
    name = path.name.lower()
    return next((path.name[: -len(suffix)] for suffix in FORMATS if name.endswith(suffix)), path.stem)


def suffix(path: Path) -> str:
    """The suffix of its format, in small letters."""
    return next((suffix for suffix in FORMATS if path.name.lower().endswith(suffix)), path.suffix.lower())


def read_head(path: Path) -> Head:
    """What a file says of its image. Raises DataError for a damaged file, an unknown format, more than one volume."""
    kind = format_of(path)
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
        head = nifti.read_header(path)
        spaced = head.spacing if head.raw["pixdim"][1] else None
        notes = [*head.notes, *_odd_places(head)]
        return Head(path, kind, head.shape, 1, head.dtype, spaced, head.codes, head.affine, notes)
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
            if _apart(one, other, head.shape) > 0.5:
                found.append(
                    f"{head.path}: its sform and its qform differ (origin {_numbers(one[:3, 3])} and"
                    f" {_numbers(other[:3, 3])} mm); the sform is taken"
                )
    return found


def _itk_head(path: Path) -> Head:
    found = itk.header(path)
    if found.axes not in (2, 3):
        raise DataError(f"{path}: has {found.axes} axes; an image has two or three.", "Give one volume a file.")
    return Head(path, ITK, found.shape, found.channels, found.dtype, found.spacing, found.codes, found.affine)


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
        source = nifti.read_header(head.path)
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
        source = nifti.read_header(head.path)
        return _whole(head, nifti.read_volume(source, None), nifti.slack_of(source))
    if head.format in (PNG, TIFF):
        array = pictures.read_labels(head.path)
    else:
        array = _values(head)
        if len(array) != 1:
            raise DataError(f"{head.path}: has {len(array)} channels; a mask has one.", "Save one label map a file.")
        array = array[0]
    return _whole(head, array, nifti.ROUNDED)


def _values(head: Head) -> Array:
    """(C, a, b, c) of the file's own type."""
    if head.format == NPY:
        array = np.array(open_npy(head.path))
        return array.reshape(head.channels, *head.stored)
    if head.format == ITK:
        return itk.read(head.path).reshape(head.channels, *head.stored)
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


def mismatch(image: Head, mask: Head, fit: float = 0.1) -> list[str]:
    """What differs between the grids of an image and of another file of the case, in words with both values: size,
    spacing, origin, direction. `fit`: share of a voxel that the corners may lie apart, for rounded headers. Only the
    sizes are compared where one of them has no place in space."""
    if image.affine is None or mask.affine is None:
        own, other = image.turn("").sizes(image.stored), mask.turn("").sizes(mask.stored)
        return [] if own == other else [f"size {times(own)} and {times(other)}"]
    if image.stored == mask.stored and _apart(image.affine, mask.affine, image.stored) <= fit:
        return []
    turned = mask.turn("".join(image.codes)) if image.codes and mask.codes else mask.turn("")
    found = []
    if (sizes := turned.sizes(mask.stored)) != image.stored:
        found.append(f"size {times(image.stored)} and {times(sizes)}")
    elif _apart(image.affine, _turned_affine(mask, turned), image.stored) <= fit:
        return []  # the same grid, with its axes stored in another order
    spaced = turned.sizes(mask.spacing or (1.0, 1.0, 1.0))
    if image.spacing and not np.allclose(image.spacing, spaced, rtol=1e-3):
        found.append(f"spacing {times(image.spacing)} and {times(spaced)} mm")
    ours, theirs = image.affine, _turned_affine(mask, turned)
    if not np.allclose(ours[:3, 3], theirs[:3, 3], atol=fit * min(image.spacing or (1.0,))):
        found.append(f"origin {_numbers(ours[:3, 3])} and {_numbers(theirs[:3, 3])} mm")
    one, two = (each[:3, :3] / np.linalg.norm(each[:3, :3], axis=0) for each in (ours, theirs))
    if not np.allclose(one, two, atol=1e-3):
        found.append(f"direction {_numbers(one.ravel())} and {_numbers(two.ravel())}")
    return found or ["the place of their voxels"]


def _turned_affine(head: Head, turn: Turn) -> Array:
    """The affine of a file whose axes were turned."""
    assert head.affine is not None
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(turn.order, turn.flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = head.stored[old] - 1 if flip else 0
    return head.affine @ change


def _apart(one: Array, other: Array, shape: Triple) -> float:
    """How far the corners of two grids lie apart at most, in the smallest side of a voxel."""
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, side - 1) for side in shape))], float).T
    distance = np.linalg.norm(((one - other) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(one[:3, :3], axis=0).min())


def _numbers(values: Any) -> str:
    return " ".join(f"{0.0 if math.isclose(value, 0, abs_tol=5e-4) else value:.4g}" for value in values)


def output_suffix(image: Path) -> str:
    """The ending of a label map's file: that of its image, of which a lossy format becomes PNG, and two files one."""
    own = suffix(image)
    return {".jpg": ".png", ".jpeg": ".png", ".nhdr": ".nrrd", ".mhd": ".mha"}.get(own, own)


def write_labels(path: Path, labels: Array, like: Path, names: Mapping[str, str]) -> None:
    """Write label values, axes as stored, in the format of `path` on the grid of the image `like`; `names` of the
    classes are kept in the header where the format has a place. Atomic. Raises DataError."""
    kind = format_of(path)
    told = "\n".join(f"{key}: {name}" for key, name in names.items())
    if kind == NIFTI:
        nifti.write_like(path, labels, like, told)
    elif kind == ITK:
        itk.write_like(path, labels, like, names)
    elif kind == TIFF:
        pixel, unit = pictures.pixel_size(like)
        write_label_stack(path, labels, pixel, unit, told)
    elif kind == NPY:
        shape = open_npy(like).shape[-3:] if labels.shape[0] > 1 else open_npy(like).shape[-2:]
        write_npy(path, labels.reshape(shape) if math.prod(shape) == labels.size else labels)
    else:
        write_label_png(path, labels[0], names)
