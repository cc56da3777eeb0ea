"""The voxels of slices: unpacked by what pydicom finds, in the units that the header gives them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io.dicom.files import DEFLATED, require_inflatable
from unet.data.io.dicom.library import AGAIN, explained, pydicom
from unet.data.io.dicom.planes import Plane
from unet.errors import DataError

Array = NDArray[Any]
CORRECT = "correct_unused_bits"  # pydicom's option
MUCH = 4  # times the pixels of a header that a compressed slice may say it has
SURE = 2**28  # bytes that are taken without a look at the free memory
EXTENDED = "1.2.840.10008.1.2.4.51"
TWELVE_BITS = "For JPEG of 12 bits type: pip install pylibjpeg pylibjpeg-libjpeg (licence: GPL), or export it anew."
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", DEFLATED, "")


def require_memory(name: str, planes: Sequence[Plane]) -> None:
    """Raise DataError for a series whose voxels do not fit the free memory, by its headers."""
    needed, free = sum(plane.bytes for plane in planes), host.memory()[1]
    if needed > SURE and needed > free > 0:
        rows, columns = planes[0].size
        raise DataError(
            f"{name}: {len(planes)} slices of {rows} x {columns} take {host.format_bytes(needed)}, and"
            f" {host.format_bytes(free)} of memory are free.",
            "Give a smaller series, or use a machine with more memory.",
        )


def require_decoder(path: Path, syntax: str) -> None:
    """Raise DataError for voxels that nothing here unpacks, with their syntax and what to install."""
    if syntax in NATIVE:
        return
    library = pydicom()
    uid = library.uid.UID(syntax)
    name = uid.name if not uid.is_private and uid.is_transfer_syntax else syntax
    try:
        decoder = library.pixels.get_decoder(uid)
    except NotImplementedError:
        raise DataError(
            f"{path}: its voxels are stored as {name}, which is not read.",
            "Export it uncompressed, or with JPEG 2000, JPEG-LS or RLE.",
        ) from None
    if not decoder.is_available:
        raise DataError(
            f"{path}: its voxels are stored as {name}, which no installed package unpacks.",
            "Type: pip install pylibjpeg pylibjpeg-openjpeg python-gdcm",
        )


def read(name: str, planes: Sequence[Plane]) -> Array:
    """The values of slices of one size, (C, D, H, W) float32. Raises DataError for what cannot be unpacked, and for
    series that the memory does not hold."""
    require_memory(name, planes)
    result = np.empty((planes[0].samples, len(planes), *planes[0].size), np.float32)
    by_file: dict[Path, list[int]] = {}
    for number, plane in enumerate(planes):
        by_file.setdefault(plane.path, []).append(number)
    for path, numbers in by_file.items():
        header = _open(path)
        for number in numbers:
            plane = planes[number]
            values = _values(path, header, plane)
            result[:, number] = values.transpose(2, 0, 1) if values.ndim == 3 else values
    return result


def _open(path: Path) -> Any:
    library = pydicom()
    with explained(path):
        meta = library.filereader.read_file_meta_info(path) if _has_meta(path) else {}
        syntax = str(meta.get("TransferSyntaxUID", ""))
        require_decoder(path, syntax)
        if syntax == DEFLATED:
            require_inflatable(path)
        found = library.dcmread(path, force=True)
        if "TransferSyntaxUID" not in getattr(found, "file_meta", {}):
            found.ensure_file_meta()
            implicit = found.original_encoding[0]
            found.file_meta.TransferSyntaxUID = NATIVE[0 if implicit else 1]
        return found


def _has_meta(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _values(path: Path, header: Any, plane: Plane) -> Array:
    """A slice (H, W) or (H, W, 3) float32."""
    pixels = pydicom().pixels
    syntax = header.file_meta.TransferSyntaxUID
    hint = TWELVE_BITS if syntax == EXTENDED else AGAIN
    with explained(path, f"its voxels ({syntax.name}) cannot be unpacked", hint):
        if syntax not in NATIVE:
            require_stated_size(path, header, plane)
        stored = int(header.get("BitsStored") or 0)
        above = int(header.get("HighBit") or 0) - stored + 1  # 0 in all but old files; pydicom takes it for 0
        moved = above > 0 and stored > 0 and syntax in NATIVE
        array = np.asarray(pixels.pixel_array(header, index=plane.frame, **({CORRECT: False} if moved else {})))
        shape = (*plane.size, 3) if array.ndim == 3 else plane.size
        if array.shape != shape:
            raise DataError(f"{path}: its voxels are not those that its header tells of.", AGAIN)
        if moved and array.dtype.kind in "iu":
            array = _moved_bits(array, stored, above)
        if str(header.PhotometricInterpretation) == "PALETTE COLOR":
            return np.asarray(pixels.apply_color_lut(array, header)[..., :3], np.float32)
        if header.get("ModalityLUTSequence"):
            array = np.asarray(pixels.apply_modality_lut(array, header), np.float32)
            return np.asarray(array.max() + array.min() - array if plane.inverted else array)
        if plane.inverted and array.dtype.kind in "iu":
            bits = int(header.BitsStored)
            array = (-1 if array.dtype.kind == "i" else 2**bits - 1) - array.astype(np.int64)
        if (plane.slope, plane.intercept) != (1.0, 0.0):
            return np.asarray(array * plane.slope + plane.intercept, np.float32)
        return np.asarray(array, np.float32)


def require_stated_size(path: Path, header: Any, plane: Plane) -> None:
    """Raise DataError for a compressed slice that says itself that it is much larger than its header does: it would
    fill the memory."""
    count = int(header.get("NumberOfFrames") or 1)
    frame = pydicom().encaps.get_frame(header.PixelData, plane.frame or 0, number_of_frames=count)
    size = stated_size(frame)
    if size and size[0] * size[1] > MUCH * plane.size[0] * plane.size[1]:
        raise DataError(
            f"{path}: its header tells of {plane.size[0]} x {plane.size[1]} pixels, its compressed voxels of"
            f" {size[0]} x {size[1]}.",
            AGAIN,
        )


def stated_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG 2000, JPEG or JPEG-LS stream says it has; None for another one."""
    if (at := frame.find(b"\xff\x4f\xff\x51", 0, 4096)) >= 0 and len(frame) >= at + 24:
        right, bottom, left, top = struct.unpack(">4I", frame[at + 8 : at + 24])
        return bottom - top, right - left
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 9 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # filled up
            at += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return struct.unpack(">HH", frame[at + 5 : at + 9])
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _moved_bits(array: Array, stored: int, above: int) -> Array:
    """Values whose `stored` bits begin `above` bits higher than usual."""
    array = array.astype(array.dtype.newbyteorder("="))
    spare = array.dtype.itemsize * 8 - stored - above
    return (array << spare) >> (spare + above)
