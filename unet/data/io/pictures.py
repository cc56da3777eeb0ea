"""TIFF, PNG and JPEG files of any depth as volumes (C, S, H, W): photographs, microscopes' stacks, and label maps in
them. `images` has the readers; here channels and slices are told apart. No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unet import files
from unet.data.io import images
from unet.data.io.images import pixel_size
from unet.data.io.tiff import BLACK_IS_ZERO, WHITE_IS_ZERO, Kind
from unet.errors import DataError, UnetError

__all__ = ["grid", "look", "pixel_size", "read", "read_labels", "spacing"]

Array = NDArray[Any]
SLICES = "ZIQT"  # tifffile's letters of an axis that counts slices: depth, a series, an unknown one, time
TO_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "micron": 1e-3, "um": 1e-3, "nm": 1e-6}
TO_MM |= dict.fromkeys(("µm", "μm", "\\u00b5m", "\\u03bcm"), 1e-3)  # in small letters; ImageJ escapes both mu


class Found(NamedTuple):
    """What a file holds: slices, rows, columns as shown, channels, the type of the values."""

    shape: tuple[int, int, int]
    channels: int
    dtype: np.dtype[Any]


def look(path: Path) -> Found:
    """What a file holds; its pixels are not read. Raises DataError."""
    with images.opened(path, lossy=True) as (kind, _):
        slices, channels = _pages(kind, path)
        colours = kind.shape[3] - len(kind.extra) if kind.palette is None else 3
        return Found(
            (slices, *kind.upright), channels * colours, np.dtype(np.uint8) if kind.palette is not None else kind.dtype
        )


def read(path: Path) -> Array:
    """(C, S, H, W) of the file's own type: channels of the pages, or the colours of RGB. Raises DataError."""
    with images.opened(path, lossy=True) as (kind, load):
        slices, channels = _pages(kind, path)
        array = images.shown(load(None), kind, path)
    if array.ndim == 4:
        return np.ascontiguousarray(array.transpose(3, 0, 1, 2))
    if channels == 1:
        return array[None]
    names = "".join(letter for letter, size in kind.lead if size > 1)
    first = names.startswith("C")
    split = array.reshape(*((channels, slices) if first else (slices, channels)), *array.shape[1:])
    return np.ascontiguousarray(split if first else split.swapaxes(0, 1))


def read_labels(path: Path) -> Array:
    """The values of a mask, (S, H, W), as they are stored: of a file with a palette the numbers of its colours, of one
    that is WhiteIsZero not inverted; RGB with equal channels is grey. Raises DataError for colours, and for several
    channels."""
    with images.opened(path, lossy=True) as (kind, load):
        _, channels = _pages(kind, path)
        if channels > 1:
            raise DataError(f"{path}: has {channels} channels; a mask has one.", "Save one label map a file.")
        indices = _palette_numbers(path)
        if indices is not None:
            return indices
        if kind.palette is not None:
            return np.ascontiguousarray(load(None)[..., 0])
        if kind.photometric == WHITE_IS_ZERO:  # a number is no brightness; tifffile saves 1-bit arrays like that
            kind = dataclasses.replace(kind, photometric=BLACK_IS_ZERO)
        found = images.one_channel(images.shown(load(None), kind, path))
    if found is None:
        raise DataError(
            f"{path}: is a mask in colours; a mask has one channel with the number of a class in each pixel.",
            "Save it as grey values or with a palette, one number for each class.",
        )
    return found // kind.step if kind.step > 1 else found


class Grid(NamedTuple):
    """How large the voxels of a TIFF are: pixels a `unit` along x and y, as rational numbers, and units a slice."""

    pixel: tuple[tuple[Any, Any], tuple[Any, Any]]
    unit: str
    depth: float

    def spacing(self) -> tuple[float, float, float]:
        """mm of a voxel along slices, rows and columns."""
        scale = TO_MM[self.unit.lower()]
        x, y = (scale * down / up for up, down in self.pixel)
        return scale * self.depth, y, x


def spacing(path: Path) -> tuple[float, float, float] | None:
    """mm of a voxel of a TIFF along slices, rows and columns, where it is known. Raises DataError."""
    found = grid(path)
    return found.spacing() if found else None


def grid(path: Path) -> Grid | None:
    """The voxels of a TIFF: nnU-Net's of the file beside it, or those that ImageJ gives in a unit of length; None
    elsewhere: dots per inch of a photograph say nothing of what it shows. Raises DataError."""
    import tifffile

    if beside := sidecar(path):
        z, *sides = files.read_json(beside)["spacing"]
        y, x = (Fraction(mm).limit_denominator(max(1, int(2**31 / max(1, mm)))) for mm in sides)
        return Grid(((x.denominator, x.numerator), (y.denominator, y.numerator)), "mm", z)
    about: dict[str, Any] = {}
    with contextlib.suppress(Exception), tifffile.TiffFile(path) as file:
        about = file.imagej_metadata or {}
    pixel, _ = pixel_size(path)
    unit = str(about.get("unit"))  # the tag ResolutionUnit is a printer's
    if pixel is None or unit.lower() not in TO_MM:
        return None
    depth = pixel[1][1] / pixel[1][0]
    with contextlib.suppress(ValueError, TypeError):
        depth = float(about.get("spacing", depth))
    found = Grid(pixel, unit, depth)
    return found if min(found.spacing()) > 0 else None


def sidecar(path: Path) -> Path | None:
    """The file CASE.json that nnU-Net has beside CASE_0000.tif and beside the mask CASE.tif, {"spacing": mm of slices,
    rows and columns}. Raises DataError for a spacing that is none."""
    for name in dict.fromkeys((re.sub(r"_\d{4}$", "", path.stem), path.stem)):
        beside = path.with_name(f"{name}.json")
        with contextlib.suppress(UnetError):  # of another program
            content = files.read_json(beside, dict) if beside.is_file() else {}
            if "spacing" in content:
                break
    else:
        return None
    given = content["spacing"]
    plain = isinstance(given, list) and len(given) == 3 and all(type(mm) in (int, float) for mm in given)
    if not plain or not all(0 < mm < math.inf for mm in given):
        raise DataError(
            f"{beside}: spacing is {str(given)[:60]}, not three lengths in mm (slices, rows, columns).",
            "Correct it, or remove the file.",
        )
    return beside


def _pages(kind: Kind, path: Path) -> tuple[int, int]:
    """(slices, channels) that the pages of a file are. Raises DataError where that is not clear."""
    lead = [(letter, size) for letter, size in kind.lead if size > 1]
    channels = [size for letter, size in lead if letter == "C"]
    slices = [size for letter, size in lead if letter in SLICES]
    if len(channels) + len(slices) != len(lead) or len(slices) > 1 or len(channels) > 1:
        axes = ", ".join(f"{letter} {size}" for letter, size in lead)
        raise DataError(
            f"{path}: its pages run over several axes ({axes}); slices and channels are read.",
            "Save one volume a file (Fiji: Image, Hyperstacks, Reduce Dimensionality).",
        )
    return (slices or [kind.pages // (channels or [1])[0]])[0], (channels or [1])[0]


def _palette_numbers(path: Path) -> Array | None:
    """The stored numbers (1, H, W) of a PNG with a palette; None for another file."""
    with contextlib.suppress(Exception), images.pillow().open(path, formats=("PNG",)) as file:
        if file.mode == "P":
            return np.asarray(file)[None]
    return None
