"""NIfTI in and out: volumes in pieces as they are unpacked, masks on a given file's grid. Headers: `nifti_header`.

The voxels are read here, in the file's own order and type, a block at a time and the next block in a second thread:
most of the time goes into unpacking, and a volume need never be in memory as a whole. No torch.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import math
import struct
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unet.data.io.gzipped import Unpacked
from unet.data.io.nifti_header import LARGEST, Header, is_nifti, raw_header, read_header, shape_of, stem, volumes_of
from unet.errors import DataError
from unet.files import atomic

__all__ = ["LARGEST", "Header", "is_nifti", "read_header", "stem"]

Array = NDArray[Any]
BLOCK = 2**24  # bytes unpacked at a time
LABELS = (0, 1, 2)
ROUNDED = 1e-3  # labels may be this far from a whole number: single precision, sums of products
ROUGH = 0.01  # and this far where the header scales them: half a step of 8 bits from 0 to 5


def blocks(head: Header) -> Iterator[Array]:
    """The voxels as stored, as arrays (planes, shape[1], shape[0]) of the file's type, of about 16 MB.

    The next block is unpacked while one is used. Raises DataError for a file that is cut short or damaged.
    """
    with contextlib.closing(_blocks(head)) as source, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, source, None)
        while (block := waiting.result()) is not None:
            waiting = pool.submit(next, source, None)
            yield block


def _blocks(head: Header) -> Generator[Array, None, None]:
    wide, high, deep = head.shape
    planes = max(1, BLOCK // (wide * high * head.dtype.itemsize))
    if head.planes is not None:
        whole = head.planes()
        for first in range(0, deep, planes):
            yield whole[first : first + planes]
        return
    stream = Unpacked(head.path)
    try:
        stream.skip(head.offset)
        for first in range(0, deep, planes):
            block = np.empty((min(planes, deep - first), high, wide), head.dtype)
            stream.fill(block.data.cast("B"))
            yield block
        stream.skip(head.rest)
        stream.finish(max(4096, wide * high * head.dtype.itemsize))
    finally:
        stream.close()


def _scaled(head: Header, block: Array, exact: bool = False) -> Array:
    """A block as numbers: scaled as the header says, in the byte order of this machine; of double precision where that
    is `exact` and single precision is not."""
    if head.slope is not None:
        with np.errstate(over="ignore"):
            return (block * np.float64(head.slope) + np.float64(head.intercept or 0)).astype(number_of(head, exact))
    if block.dtype.kind == "f" and block.dtype.itemsize == 8 and not exact:
        with np.errstate(over="ignore"):
            return block.astype(np.float32)
    return block if block.dtype.isnative else block.astype(block.dtype.newbyteorder("="))


def number_of(head: Header, exact: bool) -> np.dtype[Any]:
    """The type of a file's numbers: single precision, or where they are to be `exact` that of the file, double
    precision where it scales numbers that single precision does not hold."""
    if not exact or (head.slope is not None and head.dtype.itemsize < 4):
        return np.dtype(np.float32)
    return np.dtype(np.float64) if head.slope is not None else head.dtype.newbyteorder("=")


def values(head: Header, background: float | None = 0.0, exact: bool = False) -> Iterator[Array]:
    """The voxels as numbers, in blocks (planes, shape[1], shape[0]). NaN becomes `background` where it reaches the
    border of the volume (SPM and others write it outside of the body), with a note in `head.notes`; where `background`
    is None it stays, for the caller to fill and to note. `exact`: numbers above 2^24 keep their last digits.

    Raises DataError for infinite values, for NaN that is only inside, and as `blocks` does.
    """
    count, outside, first = 0, False, 0
    for block in blocks(head):
        block = _scaled(head, block, exact)
        with np.errstate(over="ignore", invalid="ignore"):
            doubtful = block.dtype.kind == "f" and not math.isfinite(block.sum(dtype=np.float32))
        if doubtful and not np.isfinite(block).all():
            if infinite := int(np.isinf(block).sum()):
                raise _no_numbers(head, infinite)
            gaps = np.isnan(block)
            count += int(gaps.sum())
            outside = outside or _at_border(gaps, first, head.shape[2])
            if background is not None:
                block = np.where(gaps, block.dtype.type(background), block)
        first += len(block)
        yield block
    if count and not outside:
        raise _no_numbers(head, count)
    if count and background is not None:
        head.notes.append(nan_note(head.path, count, background))


def nan_note(path: Path, count: int, background: float) -> str:
    """How NaN at the border of a volume was taken, in words."""
    return f"{path}: {count} voxels are NaN; they are taken as background ({background:g})"


def _no_numbers(head: Header, count: int) -> DataError:
    return DataError(
        f"{head.path}: {count} voxels or more are NaN or infinite; only NaN that reaches the border of the volume is"
        " taken as background.",
        "Repair the volume, or remove it.",
    )


def _at_border(gaps: Array, first: int, planes: int) -> bool:
    """Whether one of the voxels lies on a face of the volume; `gaps` are the planes from `first` on."""
    ends = [gaps[0]] * (first == 0) + [gaps[-1]] * (first + len(gaps) == planes)
    faces = (*ends, gaps[:, 0], gaps[:, -1], gaps[:, :, 0], gaps[:, :, -1])
    return any(bool(face.any()) for face in faces)


def labels(head: Header) -> Iterator[Array]:
    """The labels as uint8, in blocks as `values` has them. Values that are whole but for rounding are rounded: up to
    0.001, and up to half a step of the scaling, at most 0.01, where the header scales them.

    Raises DataError for values that are not 0, 1 or 2, and as `values` does.
    """
    slack = slack_of(head)
    off = 0.0
    for block in values(head):
        if block.dtype.kind == "f":
            whole = np.rint(block)
            distance = float(np.abs(whole - block).max())
            off = max(off, distance)
        else:
            whole, distance = block, 0.0
        if distance > slack or whole.min() < LABELS[0] or whole.max() > LABELS[-1]:
            raise _wrong_labels(head, block, slack)
        yield whole.astype(np.uint8, copy=False)
    if off:
        cause = f" (its header scales them by {head.slope:.4g})" if head.slope else ""
        head.notes.append(f"{head.path}: its labels are up to {off:.2g} from whole numbers{cause}; they are rounded")


def is_label(block: Array, number: int, slack: float) -> Array:
    """Where the voxels of a block are a label, but for rounding."""
    return np.abs(block - block.dtype.type(number)) <= slack if block.dtype.kind == "f" else block == number


def slack_of(head: Header) -> float:
    """How far a label may be from a whole number (see `labels`)."""
    return max(ROUNDED, min(ROUGH, 0.51 * abs(head.slope or 0)))


def shown_value(value: Any) -> str:
    """A voxel's value with the digits that tell it from its neighbours."""
    return np.format_float_positional(value, trim="-") if isinstance(value, np.floating) else str(value)


def _wrong_labels(head: Header, block: Array, slack: float) -> DataError:
    found = np.unique(block)
    odd = found[~np.any([is_label(found, number, slack) for number in LABELS], axis=0)][:4]
    shown = ", ".join(map(shown_value, odd))
    cause = f" (scaled by {head.slope:.6g} and {head.intercept:.6g} as its header says)" if head.slope else ""
    return DataError(
        f"{head.path}: holds labels {shown}{cause}; expected: 0 (background), 1 and 2.",
        "Give these labels one of the three numbers, saved as whole numbers without a scaling, or remove the case.",
    )


def read_image(path: Path) -> Array:
    """A whole volume as float32, axes as stored."""
    return read_volume(read_header(path))


def read_volume(head: Header, background: float | None = 0.0) -> Array:
    """The whole volume of a header as float32, axes as stored; `background` and errors as in `values`."""
    return _whole(head, functools.partial(values, background=background), np.float32)


def read_numbers(head: Header) -> Array:
    """The whole label map of a header, axes as stored, in the file's own type where it is not scaled: whole numbers of
    any size stay what they are. NaN stays; errors as in `values`."""
    exact = functools.partial(values, background=None, exact=True)
    return _whole(head, exact, number_of(head, True))


def read_label(path: Path, grid: bool = True) -> Array:
    """A whole volume of labels 0, 1, 2 as uint8, axes as stored; `grid` as in `read_header`."""
    return _whole(read_header(path, grid), labels, np.uint8)


def _whole(head: Header, convert: Callable[[Header], Iterator[Array]], dtype: Any) -> Array:
    result = np.empty(head.shape[::-1], dtype)
    first = 0
    for block in convert(head):
        result[first : first + len(block)] = block
        first += len(block)
    return result.transpose(2, 1, 0)


def write_like(path: Path, array: Array, like: Path, comment: str = "") -> None:
    """Write a volume (mask or float32), axes as stored, on the grid of `like`: its shape, affine with the codes,
    spacing and units, byte for byte; of a file of several volumes, that of one. `comment` becomes an extension of the
    header. Atomic; packed where the name ends in .gz."""
    raw = raw_header(like).copy()
    shape = shape_of(like, raw, 0)
    if array.shape != shape:
        raise DataError(f"{path}: a volume of {array.shape} does not fit {like.name}, {shape}.", "Report this.")
    if volumes_of(raw) > 1:
        raw["dim"][0], raw["dim"][4:], raw["pixdim"][4:] = 3, 1, 0
    raw.set_data_dtype(array.dtype)
    raw["vox_offset"], raw["magic"] = raw.single_vox_offset, raw.single_magic
    raw["cal_min"] = raw["cal_max"] = 0
    write(path, array, raw, comment)


def new_header(shape: Sequence[int], dtype: Any, spacing: Sequence[float]) -> Any:
    """A NIfTI-1 header of a volume with axes to the right, to the front and up, centred on the origin; spacing in
    mm."""
    from nibabel.nifti1 import Nifti1Header

    affine = np.diag([*map(float, spacing), 1.0])
    affine[:3, 3] = [-mm * (count - 1) / 2 for mm, count in zip(spacing, shape, strict=True)]
    header = Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(tuple(shape))
    header.set_zooms(tuple(map(float, spacing)))
    header.set_xyzt_units("mm")
    header.set_sform(affine, "aligned")
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    return header


def write(path: Path, array: Array, raw: Any, comment: str = "") -> None:
    """Write a volume, axes as stored, under a header that has its shape and type. Atomic; packed where the name ends in
    .gz."""
    shape = array.shape
    raw.set_slope_inter(1, 0)
    room = bytes(raw.single_vox_offset - len(raw.binaryblock))
    if comment:
        room = _extension(comment, raw.endianness)
        raw["vox_offset"] = len(raw.binaryblock) + len(room)
    with atomic(path) as stream, _packer(path, stream) as target:
        target.write(raw.binaryblock + room)
        planes = max(1, BLOCK // (shape[0] * shape[1] * array.dtype.itemsize))
        order = raw.get_data_dtype()
        for first in range(0, shape[2], planes):
            part = array[:, :, first : first + planes].transpose(2, 1, 0)
            target.write(np.ascontiguousarray(part, order).tobytes())


def _extension(comment: str, order: str) -> bytes:
    """A comment as the NIfTI standard keeps it between header and voxels: a flag, then size, code 6 and text."""
    text = comment.encode()
    size = -(-(8 + len(text)) // 16) * 16
    return bytes((1, 0, 0, 0)) + struct.pack(f"{order}ii", size, 6) + text.ljust(size - 8, b"\0")


@contextlib.contextmanager
def _packer(path: Path, stream: BinaryIO) -> Iterator[Any]:
    if path.name.lower().endswith(".gz"):
        with gzip.GzipFile("", "wb", 1, stream, mtime=0) as packed, io.BufferedWriter(packed, 2**20) as target:
            yield target
    else:
        yield stream
