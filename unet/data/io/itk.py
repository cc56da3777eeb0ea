"""NRRD and MetaImage files, read and written by SimpleITK (the extra `formats`). No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError
from unet.files import atomic

Array = NDArray[Any]
NAMED = {".mhd": r"elementdatafile\s*=", ".nhdr": r"data ?file\s*:"}  # what names the file with the voxels
LONGEST = 2**22  # bytes of a header
MOST_FILES = 2**16
ROW = re.compile(r"[^%]*%0?\d{0,2}d[^%]*")  # a name with a place for a number of at most 99 digits
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file says of its image: axes in space, voxels along (x, y, z), channels, type, spacing in mm, the world
    direction of each axis and the affine from voxels to mm (RAS), None for a flat image."""

    axes: int
    shape: tuple[int, int, int]
    channels: int
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float]
    codes: tuple[str, str, str] | None
    affine: Array | None


def library() -> Any:
    """SimpleITK. Raises DataError where it is not installed."""
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError(
            "NRRD and MetaImage files are read by SimpleITK, which is not installed.",
            "Type: pip install 'unet-accelerators[formats]'",
        ) from error
    return SimpleITK


def header(path: Path) -> Found:
    """What a file says of its image; its voxels are not read. Raises DataError."""
    reader = _reader(path)
    with _explained(path):
        reader.ReadImageInformation()
    axes = reader.GetDimension()
    sizes = tuple(reader.GetSize())
    kind = library().GetPixelIDValueAsString(reader.GetPixelID())
    channels, dtype = reader.GetNumberOfComponents(), _dtype(path, kind)
    if axes != 3:
        shape = (*sizes, 1, 1)[:3]
        return Found(axes, shape, channels, dtype, (*reader.GetSpacing()[:2], 1.0), None, None)
    spacing = tuple(map(float, reader.GetSpacing()))
    affine = np.eye(4)
    affine[:3, :3] = np.array(reader.GetDirection(), float).reshape(3, 3) * spacing
    affine[:3, 3] = reader.GetOrigin()
    affine = LPS_TO_RAS @ affine
    if np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise DataError(f"{path}: its directions map the grid to no volume.", "Correct its header, or remove the case.")
    from nibabel.orientations import aff2axcodes

    return Found(axes, sizes, channels, dtype, spacing, aff2axcodes(affine), affine)  # type: ignore[arg-type]


def data_files(path: Path) -> list[Path]:
    """The files with the voxels of a header (.mhd, .nhdr) that are there: one, a list of them, or a row of numbers."""
    key = NAMED.get(path.suffix.lower())
    if key is None:
        return []
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        text = stream.read(LONGEST).decode("utf-8", "surrogateescape")
        if found := re.search(rf"^[ \t]*{key}[ \t]*(\S[^\r\n]*)", text, re.IGNORECASE | re.MULTILINE):
            return [
                file for name in _names(found[1].strip(), text[found.end() :]) if (file := path.parent / name).is_file()
            ]
    return []


def _names(value: str, rest: str) -> list[str]:
    """The names that a header's value means; `rest`: the lines below it."""
    words = value.split()
    if words[0].upper() == "LIST":
        return [line.strip() for line in rest.splitlines() if line.strip()][:MOST_FILES]
    if not ROW.fullmatch(words[0]) or len(words) < 3:
        return [] if value.upper() == "LOCAL" else [value]
    with contextlib.suppress(ValueError, TypeError):
        low, high, step = map(int, [*words[1:4], "1"][:3])
        return [words[0] % number for number in range(low, high + 1, step)[:MOST_FILES]]
    return []


def read(path: Path) -> Array:
    """(C, x, y, z) in the file's own type. Raises DataError."""
    itk = library()
    with _explained(path):
        image = _reader(path).Execute()
    array: Array = itk.GetArrayFromImage(image)  # (z, y, x) or (z, y, x, C); a flat image lacks z
    lead = array if image.GetNumberOfComponentsPerPixel() > 1 else array[..., None]
    if image.GetDimension() == 2:
        lead = lead[None]
    return np.ascontiguousarray(lead.transpose(3, 2, 1, 0))


def write_like(path: Path, array: Array, like: Path, notes: Mapping[str, str]) -> None:
    """Write a volume (x, y, z) on the grid of `like`, with `notes` in the file's header. Atomic. Raises DataError."""
    itk = library()
    reader = _reader(like)
    with _explained(like):
        reader.ReadImageInformation()
    flat = reader.GetDimension() == 2
    image = itk.GetImageFromArray(np.ascontiguousarray(array[..., 0].T if flat else array.transpose(2, 1, 0)))
    image.SetSpacing(reader.GetSpacing())
    image.SetOrigin(reader.GetOrigin())
    image.SetDirection(reader.GetDirection())
    for name, value in notes.items():
        image.SetMetaData(name, value)
    one_file = {".nhdr": ".nrrd", ".mhd": ".mha"}.get(path.suffix.lower(), path.suffix.lower())
    with atomic(path) as stream:
        inner = Path(f"{stream.name}{one_file}")
        try:
            itk.WriteImage(image, str(inner), useCompression=True)
            stream.write(inner.read_bytes())
        finally:
            inner.unlink(missing_ok=True)


def _reader(path: Path) -> Any:
    reader = library().ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def _dtype(path: Path, kind: str) -> np.dtype[Any]:
    words = kind.removeprefix("vector of ").replace("-bit", "").split()
    names = {"unsigned": "uint", "signed": "int"}
    if len(words) >= 3 and words[0].isdecimal() and words[1] in names:
        return np.dtype(f"{names[words[1]]}{words[0]}")
    if words[:2] == ["32", "float"] or words[:2] == ["64", "float"]:
        return np.dtype(f"float{words[0]}")
    raise DataError(f"{path}: its voxels are {kind}; real numbers are expected.", "Convert it to grey values.")


@contextlib.contextmanager
def _explained(path: Path) -> Any:
    try:
        yield
    except RuntimeError as error:  # SimpleITK's only kind
        words = str(error).strip().splitlines()[-1][:120]
        raise DataError(f"{path}: cannot be read as an image ({words}).", "Copy the file again from its source.") from (
            error
        )
