"""What a NIfTI file says of its voxels: sizes, type, spacing, orientation, scaling; each checked before it is believed.
No torch.

nibabel understands the headers; it does not correct them: its own loader would make 1 of a spacing of 0.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io.gzipped import AGAIN, Unpacked, cut, is_packed
from unet.errors import DataError, StorageError
from unet.files import explain, require_regular

Array = NDArray[Any]
Spacing = tuple[float, float, float]
SUFFIXES = (".nii.gz", ".nii")
LARGEST = 2**31  # voxels
DENSEST = 1032  # deflate cannot pack tighter
FINEST, COARSEST = 0.01, 1000.0  # mm of a voxel of a patient; others were written in another unit, or are no spacing
ALIKE = 0.02  # two spacings in one header are the same up to this share: headers are rounded
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a NIfTI file says of its voxels. `shape` and `spacing` (mm) in the order of storage (the first axis is the
    fastest), `codes` the world direction that each axis runs to (R, L, A, P, S, I), None where the file names no
    orientation; `affine` from voxels to mm; `forms` the codes of sform and qform; `slope` and `intercept` None where
    values are stored as they are; `raw` nibabel's header. `notes`: what was odd and how it was taken, in words; reading
    the voxels adds to it. `offset` and `rest`: bytes in front of the volume's voxels, and those of volumes that
    follow. `planes` gives the voxels, (z, y, x), of a scan in another format that is taken as NIfTI."""

    path: Path
    shape: tuple[int, int, int]
    spacing: Spacing
    codes: tuple[str, str, str] | None
    affine: Array
    forms: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    intercept: float | None
    raw: Any
    notes: list[str] = dataclasses.field(default_factory=list, compare=False)
    rest: int = 0
    planes: Callable[[], Array] | None = None


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def times(numbers: Iterable[float]) -> str:
    """Sizes or spacings in words: 40 x 40 x 20."""
    return " x ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in numbers)


def read_header(path: Path, grid: bool = True, volume: int | None = None, finest: float = FINEST) -> Header:
    """The header of a .nii or .nii.gz file of one volume. `grid` false: its spacing and orientation are not looked at
    (1 mm, no orientation). `volume`: the one to read, from 0, of a file that may hold several. `finest`: the least mm
    of a voxel that is believed.

    Raises DataError for a file that is damaged or no regular file, more than three dimensions (unless a volume is
    chosen, which must be there), complex or colour voxels, a scaling that is none, a spacing below `finest` or
    above 1000 mm, an affine that fits no grid or another spacing, or a size that cannot be.
    """
    raw = raw_header(path)
    size, dtype, offset = shape_of(path, raw, volume), _dtype(path, raw), _offset(path, raw)
    count, bulk = volumes_of(raw), math.prod(size) * dtype.itemsize
    claimed = offset + count * bulk
    if claimed > path.stat().st_size * (DENSEST if is_packed(path) else 1):
        words = times(size) if count == 1 else f"{count} x {times(size)}"
        raise cut(path, f"its header tells of {words} {dtype.name} voxels, {claimed} bytes")
    slope, intercept = _scaling(path, raw)
    forms = max(0, int(raw["sform_code"])), max(0, int(raw["qform_code"]))
    notes: list[str] = []
    spacing, affine, codes = (1.0, 1.0, 1.0), np.eye(4), None
    if grid:
        spacing, unit = _spacing(path, raw, finest)
        affine, codes = _orientation(path, raw, notes)
        affine[:3] *= unit
    offset, rest = offset + (volume or 0) * bulk, (count - 1 - (volume or 0)) * bulk
    return Header(path, size, spacing, codes, affine, forms, dtype, offset, slope, intercept, raw, notes, rest)


def raw_header(path: Path) -> Any:
    """nibabel's header as it stands in the file. Raises DataError where there is none."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    try:
        start = _start(require_regular(path))
    except StorageError as error:
        raise DataError(error.message, error.hint) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(*explain(error, path).args) if isinstance(error, OSError) else cut(path, str(error)) from error
    size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
    kind = next((kind for kind in (Nifti1Header, Nifti2Header) if kind.sizeof_hdr in size), None)
    if kind is None or len(start) < kind.sizeof_hdr:
        what = f"its header tells of {min(size)} bytes" if len(start) >= 348 else f"it has {len(start)} bytes"
        raise DataError(f"{path}: is no NIfTI file: {what}; one of 348 or 540 bytes is expected.", AGAIN)
    raw = kind(start[: kind.sizeof_hdr], check=False)
    if bytes(raw["magic"])[:2] != b"n+":
        raise DataError(f"{path}: is half of a .hdr/.img pair, or no NIfTI file.", "Convert it to one .nii.gz file.")
    return raw


def _start(path: Path) -> bytes:
    with contextlib.closing(Unpacked(path)) as stream:
        found = b""
        while len(found) < 540 and (piece := stream.read(540 - len(found))):
            found += piece
        return found


def shape_of(path: Path, raw: Any, volume: int | None = None) -> tuple[int, int, int]:
    """Voxels along the three axes of the file's volume, or of its volume number `volume`. Raises DataError where there
    are more axes and no volume is chosen, one that is not there, or a size that cannot be."""
    shape = sides_of(raw)
    words = times(shape) or f"{int(raw['dim'][0])} dimensions"
    if len(shape) < 3 or (volume is None and any(item != 1 for item in shape[3:])):
        raise DataError(f"{path}: is {words}; one volume of three dimensions is expected.", "Give one volume a file.")
    if min(shape) < 1 or math.prod(shape[:3]) > LARGEST:
        raise DataError(f"{path}: is {words} voxels: no volume, or more than {LARGEST}.", AGAIN)
    count = math.prod(shape[3:])
    if volume is not None and not 0 <= volume < count:
        held = f"it is {words}: volumes 0 to {count - 1}" if count > 1 else f"it holds one, {words}"
        raise DataError(
            f"{path}: has no volume {volume}; {held}.", f"Give one from 0 to {count - 1}, or remove the file."
        )
    return shape[0], shape[1], shape[2]


def volumes_of(raw: Any) -> int:
    """How many volumes of three dimensions a file holds, by nibabel's header `raw`; 0 where its sizes cannot be."""
    shape = sides_of(raw)
    return math.prod(shape[3:]) if len(shape) >= 3 and min(shape) > 0 else 0


def sides_of(raw: Any) -> list[int]:
    """The sizes that a header tells of, [] where their number cannot be."""
    dims = [int(item) for item in raw["dim"]]
    return dims[1 : dims[0] + 1] if 0 < dims[0] < 8 else []


def _dtype(path: Path, raw: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except Exception as error:  # nibabel raises its own kinds for codes it does not know
        raise DataError(f"{path}: voxels of a type that NIfTI does not have ({error}).", AGAIN) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        what = "colours" if dtype.names else dtype.name
        raise DataError(f"{path}: its voxels are {what}; real numbers are expected.", "Convert it to one grey channel.")
    return dtype


def _offset(path: Path, raw: Any) -> int:
    """Where the voxels begin, in bytes."""
    found, least = float(raw["vox_offset"]), raw.single_vox_offset
    if found == 0:
        return int(least)
    if not (math.isfinite(found) and found == int(found) >= least):
        raise DataError(
            f"{path}: its voxels begin at byte {found:g} by its header (vox_offset); {least} is the usual place.", AGAIN
        )
    return int(found)


def _scaling(path: Path, raw: Any) -> tuple[float | None, float | None]:
    """(slope, intercept), None where values are stored as they are: 1 and 0, 0 and 0, or both NaN (nibabel's form of a
    scaling that is not set). Anything else that is no scaling is an error: programs take it in different ways."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if (slope, intercept) in ((1, 0), (0, 0)) or (math.isnan(slope) and math.isnan(intercept)):
        return None, None
    if slope and math.isfinite(slope) and math.isfinite(intercept):
        return slope, intercept
    raise DataError(
        f"{path}: its header scales the values by {slope:g} and {intercept:g} (scl_slope, scl_inter), which is no"
        " scaling.",
        "Write the true ones into its header (1 and 0 where values are stored as they are), or remove the case.",
    )


def _spacing(path: Path, raw: Any, finest: float) -> tuple[Spacing, float]:
    """(mm of a voxel along each axis, mm of the header's unit)."""
    try:
        unit = MILLIMETRES.get(raw.get_xyzt_units()[0], 1.0)
    except KeyError:  # a code that is not in the standard
        unit = 1.0
    found = [float(item) * unit for item in raw["pixdim"][1:4]]
    if not all(finest <= item <= COARSEST for item in found):
        raise DataError(
            f"{path}: its voxel spacing is {times(found)} mm; {finest:g} to {COARSEST:g} mm can be.",
            "Write the true spacing into its header (pixdim and affine), or remove the case.",
        )
    return (found[0], found[1], found[2]), unit


def _orientation(path: Path, raw: Any, notes: list[str]) -> tuple[Array, tuple[str, str, str] | None]:
    """The affine in the header's unit, and the codes of the axes where the header has an orientation.

    The sform is taken before the qform, as the standard says; a sform that has directions but no scale (the public set
    of ACDC) gives way to a qform of the same directions, which always has the header's spacing. Raises DataError where
    affine and spacing contradict each other.
    """
    forms = {"sform": int(raw["sform_code"]) > 0, "qform": int(raw["qform_code"]) > 0}
    stored = np.abs(np.asarray(raw["pixdim"][1:4], np.float64))
    if not any(forms.values()):
        return np.asarray(raw.get_base_affine(), np.float64), None
    if not forms["sform"]:
        return _form(path, raw, "qform")
    affine, codes = _form(path, raw, "sform")
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
    fits = np.allclose(lengths, stored, rtol=ALIKE, atol=0)
    other = _qform(path, raw) if forms["qform"] else None
    if other and other[1] != codes:
        said = f"its sform names the axes {', '.join(codes)}, its qform {', '.join(other[1])}"
        if not fits:
            raise DataError(
                f"{path}: {said}; the spacing of its sform is {times(lengths)}, that in its header {times(stored)}.",
                "Write one orientation into both, in the order of the axes, or remove the case.",
            )
        notes.append(f"{path}: {said}; the sform is taken")
    if fits:
        return affine, codes
    if other and np.allclose(lengths, 1, rtol=ALIKE, atol=0):
        notes.append(f"{path}: its sform has directions without a scale; the spacing of its qform is taken")
        return other
    raise DataError(
        f"{path}: the spacing in its header is {times(stored)}, that of its affine {times(lengths)}: one of them is"
        " wrong, or the axis order is.",
        "Write one spacing into both, in the order of the axes.",
    )


def _form(path: Path, raw: Any, name: str) -> tuple[Array, tuple[str, str, str]]:
    """The affine of "sform" or "qform", and its codes. Raises DataError for one that maps the grid to no volume."""
    from nibabel.orientations import aff2axcodes

    try:
        if name == "qform" and float(raw["pixdim"][0]) == 0:  # the standard: taken as 1
            raw = raw.copy()
            raw["pixdim"][0] = 1
        affine = np.asarray(getattr(raw, f"get_{name}")(), np.float64)
        codes: Any = aff2axcodes(affine) if np.isfinite(affine).all() else (None,)
    except Exception as error:  # a quaternion longer than 1, a singular matrix
        raise DataError(f"{path}: its orientation ({name}) cannot be read ({error}).", "Correct its affine.") from error
    if None in codes or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise DataError(
            f"{path}: its affine ({name}) maps the grid to no volume.", "Correct its affine, or remove the case."
        )
    return affine, codes


def _qform(path: Path, raw: Any) -> tuple[Array, tuple[str, str, str]] | None:
    """The qform beside a sform; None where it cannot be read: the sform is what counts."""
    try:
        return _form(path, raw, "qform")
    except DataError:
        return None
