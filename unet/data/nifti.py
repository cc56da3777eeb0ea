"""NIfTI in and out: headers without the data, volumes in pieces as they are unpacked, masks on a given file's grid.

nibabel understands the headers; the voxels are read here, in the file's own order and type, a block at a time and the
next block in a second thread: most of the time goes into unpacking, and a volume need never be in memory as a whole.
No torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import math
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError
from unet.files import atomic, explain

Array = NDArray[Any]
SUFFIXES = (".nii.gz", ".nii")
LARGEST = 2**31  # voxels
BLOCK = 2**24  # bytes unpacked at a time
CHUNK = 2**17  # bytes read at a time
DENSEST = 1032  # deflate cannot pack tighter
MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a NIfTI file says of its voxels. `shape` and `spacing` (mm) in the order of storage (the first axis is the
    fastest), `codes` the world direction that each axis runs to (R, L, A, P, S, I), None where the file names no
    orientation; `slope` and `intercept` None where values are stored as they are; `raw` nibabel's header."""

    path: Path
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    codes: tuple[str, str, str] | None
    affine: Array
    dtype: np.dtype[Any]
    offset: int
    slope: float | None
    intercept: float | None
    raw: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_header(path: Path) -> Header:
    """The header of a .nii or .nii.gz file of one volume.

    Raises DataError for a damaged file, more than three dimensions, complex or colour voxels, a spacing of 0, an affine
    that fits no grid or another spacing, or a size that cannot be.
    """
    raw = _raw_header(path)
    shape, dtype = _shape(path, raw), _dtype(path, raw)
    packed = path.stat().st_size
    offset = int(raw["vox_offset"]) or raw.single_vox_offset
    size = math.prod(shape) * dtype.itemsize
    if offset < raw.single_vox_offset or offset + size > packed * (DENSEST if _is_packed(path) else 1):
        raise _cut(
            path, f"its header tells of {' x '.join(map(str, shape))} {dtype.name} voxels, {offset + size} bytes"
        )
    spacing = _spacing(path, raw)
    affine, codes = _orientation(path, raw, spacing)
    try:
        slope, intercept = raw.get_slope_inter()
    except Exception as error:
        raise DataError(f"{path}: the scaling in its header is not finite ({error}).", _AGAIN) from error
    return Header(path, shape, spacing, codes, affine, dtype, offset, slope, intercept, raw)


_AGAIN = "Copy the file again from its source, or remove the case."


def _cut(path: Path, words: str) -> DataError:
    size = path.stat().st_size if path.exists() else 0
    return DataError(f"{path}: cut short or damaged: {words}; the file has {size} bytes.", _AGAIN)


def _is_packed(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _raw_header(path: Path) -> Any:
    """nibabel's header as it stands in the file: its own loader would make 1 of a spacing of 0."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    try:
        start = _start(path)
        size = {int.from_bytes(start[:4], order) for order in ("little", "big")}
        kind = next((kind for kind in (Nifti1Header, Nifti2Header) if kind.sizeof_hdr in size), None)
        if kind is None or len(start) < kind.sizeof_hdr:
            raise DataError(f"{path}: is no NIfTI file ({len(start)} bytes of a header).", _AGAIN)
        raw = kind(start[: kind.sizeof_hdr], check=False)
    except FileNotFoundError as error:
        raise explain(error, path) from error
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, PermissionError | IsADirectoryError):
            raise explain(error, path) from error
        raise _cut(path, f"it cannot be unpacked ({error})") from error
    if bytes(raw["magic"])[:2] != b"n+":
        raise DataError(f"{path}: is half of a .hdr/.img pair, or no NIfTI file.", "Convert it to one .nii.gz file.")
    return raw


def _start(path: Path) -> bytes:
    if _is_packed(path):
        with gzip.open(path) as stream:
            return stream.read(540)
    with open(path, "rb") as stream:
        return stream.read(540)


def _shape(path: Path, raw: Any) -> tuple[int, int, int]:
    dims = [int(item) for item in raw["dim"]]
    count = dims[0]
    shape = dims[1 : count + 1] if 0 < count < 8 else []
    words = " x ".join(map(str, shape)) or f"{count} dimensions"
    if len(shape) < 3 or any(item != 1 for item in shape[3:]):
        raise DataError(f"{path}: is {words}; one volume of three dimensions is expected.", "Give one volume a file.")
    if min(shape) < 1 or math.prod(shape) > LARGEST:
        raise DataError(f"{path}: is {words} voxels: no volume, or more than {LARGEST}.", _AGAIN)
    return shape[0], shape[1], shape[2]


def _dtype(path: Path, raw: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = raw.get_data_dtype()
    except Exception as error:  # nibabel raises its own kinds for codes it does not know
        raise DataError(f"{path}: voxels of a type that NIfTI does not have ({error}).", _AGAIN) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        what = "colours" if dtype.names else dtype.name
        raise DataError(f"{path}: its voxels are {what}; real numbers are expected.", "Convert it to one grey channel.")
    return dtype


def _spacing(path: Path, raw: Any) -> tuple[float, float, float]:
    try:
        unit = MILLIMETRES.get(raw.get_xyzt_units()[0], 1.0)
    except KeyError:  # a code that is not in the standard
        unit = 1.0
    found = [abs(float(item)) * unit for item in raw["pixdim"][1:4]]
    if not all(0 < item < math.inf for item in found):
        raise DataError(
            f"{path}: its voxel spacing is {' x '.join(f'{item:g}' for item in found)} mm.",
            "Write the true spacing into its header, or remove the case.",
        )
    return found[0], found[1], found[2]


def _orientation(
    path: Path, raw: Any, spacing: tuple[float, float, float]
) -> tuple[Array, tuple[str, str, str] | None]:
    """The affine, and the codes of the axes where the header has an orientation. Raises DataError where affine and
    spacing contradict each other."""
    from nibabel.orientations import aff2axcodes

    try:
        affine = np.asarray(raw.get_best_affine(), np.float64)
        codes: Any = aff2axcodes(affine) if np.isfinite(affine).all() else (None,)
    except Exception as error:  # a quaternion longer than 1, a singular matrix
        raise DataError(f"{path}: its orientation cannot be read ({error}).", "Mend its affine.") from error
    if None in codes:
        raise DataError(f"{path}: its affine maps the grid to no volume.", "Mend its affine, or remove the case.")
    if not int(raw["sform_code"]) and not int(raw["qform_code"]):
        return affine, None
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(0))
    stored = np.abs(np.asarray(raw["pixdim"][1:4], np.float64))
    if not np.allclose(lengths, stored, rtol=0.02):
        a, b = (" x ".join(f"{item:.4g}" for item in items) for items in (stored, lengths))
        raise DataError(
            f"{path}: the spacing in its header is {a}, that of its affine {b}: one of them is wrong, or the axis order"
            " is.",
            "Write one spacing into both, in the order of the axes.",
        )
    return affine, codes


class _Unpacked:
    """The bytes of a file, unpacked where it is gzipped (in one member or several), read into given memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = open(path, "rb")  # noqa: SIM115 (closed by close)
        self.decoder = zlib.decompressobj(31) if _is_packed(path) else None
        self.rest = b""

    def close(self) -> None:
        self.file.close()

    def fill(self, target: memoryview) -> None:
        """Fill `target` with the next bytes. Raises DataError where there are fewer, or where they are damaged."""
        done = 0
        while done < len(target):
            piece = self.read(min(len(target) - done, 8 * CHUNK))
            if not piece:
                raise _cut(self.path, "its voxels end too early")
            target[done : done + len(piece)] = piece
            done += len(piece)

    def finish(self) -> None:
        """Read on to the check sum, which follows the last byte. Raises DataError where it is missing or wrong."""
        for _ in range(16):  # what may follow the voxels is no volume
            if not self.read(8 * CHUNK):
                break
        else:
            return
        if self.decoder is not None and not self.decoder.eof:
            raise _cut(self.path, "its end is missing")

    def read(self, most: int) -> bytes:
        """The next bytes, up to `most`; none at the end of the file."""
        if self.decoder is None:
            return self.file.read(most)
        try:
            while True:
                if self.decoder.eof:
                    self.rest = self.decoder.unused_data.lstrip(b"\0") or self.file.read(CHUNK).lstrip(b"\0")
                    if not self.rest:
                        return b""
                    self.decoder = zlib.decompressobj(31)
                packed = self.rest or self.file.read(CHUNK)
                piece = self.decoder.decompress(packed, most)
                self.rest = self.decoder.unconsumed_tail
                if piece or (not packed and not self.decoder.eof):
                    return piece
        except zlib.error as error:
            raise _cut(self.path, f"it cannot be unpacked ({error})") from error


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
    stream = _Unpacked(head.path)
    try:
        stream.fill(memoryview(bytearray(head.offset)))
        for first in range(0, deep, planes):
            block = np.empty((min(planes, deep - first), high, wide), head.dtype)
            stream.fill(block.data.cast("B"))
            yield block
        stream.finish()
    finally:
        stream.close()


def values(head: Header, block: Array) -> Array:
    """A block as numbers: scaled as the header says, in the byte order of this machine. Raises DataError where they
    are not finite."""
    if head.slope is not None and (head.slope, head.intercept) != (1, 0):
        block = (block * np.float64(head.slope) + np.float64(head.intercept or 0)).astype(np.float32)
    elif not block.dtype.isnative or block.dtype == np.float64:
        block = block.astype(np.float32 if block.dtype == np.float64 else block.dtype.newbyteorder("="))
    with np.errstate(over="ignore", invalid="ignore"):
        doubtful = block.dtype.kind == "f" and not math.isfinite(block.sum(dtype=np.float32))
    if doubtful and not np.isfinite(block).all():
        count = int((~np.isfinite(block)).sum())
        raise DataError(f"{head.path}: {count} voxels or more are NaN or infinite.", "Mend the volume, or remove it.")
    return block


def labels(head: Header, block: Array) -> Array:
    """A block of labels as uint8. Raises DataError for values that are not 0, 1 or 2."""
    block = values(head, block)
    if block.dtype == np.uint8 and block.max() <= 2:
        return block
    found = block.astype(np.uint8) if block.min() >= 0 and block.max() <= 2 else None
    if found is None or (block.dtype.kind == "f" and not np.array_equal(found, block)):
        shown = np.unique(block)
        odd = shown[(shown != 0) & (shown != 1) & (shown != 2)][:4].tolist()
        raise DataError(
            f"{head.path}: holds labels {', '.join(f'{item:g}' for item in odd)}; 0 is background, 1 kidney, 2 tumour.",
            "Give these labels one of the three numbers, or remove the case.",
        )
    return found


def read_image(path: Path) -> Array:
    """A whole volume as float32, axes as stored."""
    return _whole(read_header(path), values, np.float32)


def read_label(path: Path) -> Array:
    """A whole volume of labels 0, 1, 2 as uint8, axes as stored."""
    return _whole(read_header(path), labels, np.uint8)


def _whole(head: Header, convert: Any, dtype: Any) -> Array:
    result = np.empty(head.shape[::-1], dtype)
    first = 0
    for block in blocks(head):
        result[first : first + len(block)] = convert(head, block)
        first += len(block)
    return result.transpose(2, 1, 0)


def write_like(path: Path, array: Array, like: Path) -> None:
    """Write a volume (uint8 mask or float32), axes as stored, on the grid of `like`: its shape, affine with the codes,
    spacing and units, byte for byte. Atomic; packed where the name ends in .gz."""
    raw = _raw_header(like).copy()
    shape = _shape(like, raw)
    if array.shape != shape:
        raise DataError(f"{path}: a volume of {array.shape} does not fit {like.name}, {shape}.", "Report this.")
    raw.set_data_dtype(array.dtype)
    raw.set_slope_inter(1, 0)
    raw["vox_offset"], raw["magic"] = raw.single_vox_offset, raw.single_magic
    raw["cal_min"] = raw["cal_max"] = 0
    with atomic(path) as stream, _packer(path, stream) as target:
        target.write(raw.binaryblock + bytes(raw.single_vox_offset - len(raw.binaryblock)))
        planes = max(1, BLOCK // (shape[0] * shape[1] * array.dtype.itemsize))
        order = raw.get_data_dtype()
        for first in range(0, shape[2], planes):
            part = array[:, :, first : first + planes].transpose(2, 1, 0)
            target.write(np.ascontiguousarray(part, order).tobytes())


@contextlib.contextmanager
def _packer(path: Path, stream: BinaryIO) -> Iterator[Any]:
    if path.name.lower().endswith(".gz"):
        with gzip.GzipFile("", "wb", 1, stream, mtime=0) as packed, io.BufferedWriter(packed, 2**20) as target:
            yield target
    else:
        yield stream
