"""Images in and out: TIFF slices and stacks, PNG, npy. No torch.

Sizes are checked before memory is taken; arrays never carry pickles.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError
from unet.files import atomic, explain

LARGEST = 2**31
BITS = 258  # TIFF tag BitsPerSample


@dataclasses.dataclass(frozen=True)
class Case:
    """One patient, volume or stack: its files, and what the run must know of it before it is read.

    `cost` is what scoring it takes, in slices or windows. `spacing` is in mm (z, y, x), None where the format has none.
    `memory` is about what preparing it takes, in bytes, 0 where that is little.
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    cost: int = 1
    spacing: tuple[float, ...] | None = None
    memory: int = 0


def read_tiff(path: Path, channels: int | None = None) -> NDArray[np.uint8]:
    """One 8-bit TIFF image: (H, W) where `channels` is None, else (H, W, channels).

    Raises DataError for a file that is missing, cut short, of another depth, or of another number of channels. Pillow
    reads such slices in a third of tifffile's time.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("TIFF",)) as file:
            (width, height), bands = file.size, len(file.getbands())
            bits = sorted({int(item) for item in file.tag_v2.get(BITS, (1,))})
            if width * height * bands > LARGEST:
                raise DataError(f"{path}: {height} x {width} x {bands} would take more than 2 GB.", "Remove the file.")
            image = np.asarray(file)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise explain(error, path) from error
    except Exception as error:  # decoders raise many kinds on damaged files
        raise DataError(
            f"{path}: cannot be read as an 8-bit TIFF ({type(error).__name__}: {str(error)[:80]}; {_bytes(path)}).",
            "Copy the file again from its source, or remove the case.",
        ) from error
    shape = " x ".join(map(str, (height, width, bands)[: image.ndim]))
    if image.dtype != np.uint8 or bits != [8]:
        raise DataError(
            f"{path}: is {shape} with {bits[-1]} bits a value; 8-bit slices are expected.",
            "Convert it to 8 bits, or remove it.",
        )
    if channels is None and image.ndim != 2:
        raise DataError(f"{path}: is {shape}; a mask has one channel.", "Give a mask of one channel, 0 and 255.")
    if channels is not None and (image.ndim != 3 or bands != channels):
        raise DataError(
            f"{path}: is {shape}; {channels} channels are expected (H x W x {channels}).",
            "Give an RGB image (pre-contrast, FLAIR, post-contrast).",
        )
    return image


def _bytes(path: Path) -> str:
    try:
        return f"{path.stat().st_size} bytes"
    except OSError:
        return "unreadable"


def write_tiff(path: Path, image: NDArray[Any]) -> None:
    """Write one image (H, W) or (H, W, 3) as TIFF, atomically; uint8 masks are deflated without loss."""
    import tifffile

    with atomic(path) as stream:
        tifffile.imwrite(stream, image, photometric="rgb" if image.ndim == 3 else "minisblack", compression="zlib")


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one image (H, W, 3) as PNG, atomically."""
    from PIL import Image

    with atomic(path) as stream:
        Image.fromarray(image).save(stream, "PNG")


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write an array, atomically."""
    with atomic(path) as stream:
        try:
            np.save(stream, array, allow_pickle=False)
        except OSError as error:  # numpy reports a short write without an error number
            raise error if error.errno else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def open_npy(path: Path) -> NDArray[Any]:
    """An npy file as a read-only memory map. Raises DataError for a missing, truncated or pickled file."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise explain(error, path) from error
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read as npy ({str(error)[:100]}; {_bytes(path)}).",
            "Delete the file, then build the cache again with --rebuild-cache.",
        ) from error
