"""Images in and out: TIFF slices and stacks, PNG, npy. No torch.

Sizes are checked before memory is taken; arrays never carry pickles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError
from unet.files import atomic, explain

LARGEST = 2**31
GREY = "Convert it to 8-bit grey (Fiji: Image, Type, 8-bit)."
BITS = 258  # TIFF tag BitsPerSample
COLOURED = (2, 3)  # TIFF tag PhotometricInterpretation: RGB, palette


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


def read_slice(path: Path) -> NDArray[np.uint8]:
    """One grey image of 8 bits, PNG or TIFF -> (H, W). Raises DataError for any other kind, colour among them."""
    from PIL import Image

    if path.suffix.lower() != ".png":
        pages, height, width = stack_shape(path)
        if pages != 1:
            raise DataError(
                f"{path}: has {pages} pages; one slice of a stack is expected in a file of a folder.",
                "Give the stack itself, or a folder with a file for each slice.",
            )
        return read_stack(path).reshape(height, width)
    try:
        with Image.open(path, formats=("PNG",)) as file:
            mode, (width, height) = file.mode, file.size
            if width * height > LARGEST:
                raise DataError(f"{path}: {height} x {width} would take more than 2 GB.", "Remove the file.")
            image = np.asarray(file.convert("L") if mode == "1" else file)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise explain(error, path) from error
    except Exception as error:  # decoders raise many kinds on damaged files
        raise DataError(_unreadable(path, error), "Copy the file again from its source.") from error
    if mode not in ("L", "1"):
        raise DataError(f"{path}: is a PNG of mode {mode}; grey values of 8 bits are expected.", GREY)
    return image


def stack_shape(path: Path) -> tuple[int, int, int]:
    """(S, H, W) of a TIFF of grey pages of 8 bits; its pixels are not read. Raises DataError for any other file."""
    with _series(path) as series:
        *pages, height, width = series.shape
        return math.prod(pages), height, width


def read_stack(path: Path, page: int | None = None) -> NDArray[np.uint8]:
    """A TIFF of grey pages of 8 bits -> (S, H, W), or one of its pages (H, W). Raises DataError."""
    shape = stack_shape(path)
    try:
        with _series(path) as series:
            array: NDArray[np.uint8] = np.asarray(series.asarray()).reshape(shape)
    except DataError:
        raise
    except Exception as error:
        raise DataError(_unreadable(path, error), "Copy the file again from its source.") from error
    return array if page is None else array[page]


@contextlib.contextmanager
def _series(path: Path) -> Iterator[Any]:
    """The one series of a TIFF stack. Raises DataError where it is no stack of grey pages of 8 bits."""
    import tifffile

    try:
        file = tifffile.TiffFile(path)
    except FileNotFoundError as error:
        raise explain(error, path) from error
    except Exception as error:
        raise DataError(_unreadable(path, error), "Copy the file again from its source.") from error
    with file:
        try:
            colour = any("S" in item.axes or int(item.keyframe.photometric) in COLOURED for item in file.series)
        except Exception as error:  # damaged tags raise many kinds
            raise DataError(_unreadable(path, error), "Copy the file again from its source.") from error
        if len(file.series) != 1:
            shapes = ", ".join("x".join(map(str, series.shape)) for series in file.series[:3])
            raise DataError(f"{path}: pages of different kinds ({shapes}).", "Save a stack of equal pages.")
        series = file.series[0]
        if colour or series.dtype != np.uint8:
            kind = "colour" if colour else f"{series.dtype} values"
            shape = " x ".join(map(str, series.shape))
            raise DataError(f"{path}: is {shape} of {kind}; grey values of 8 bits are expected.", GREY)
        if series.size > LARGEST:
            raise DataError(f"{path}: would take {series.size / 1e9:.1f} GB.", "Save it in parts.")
        yield series


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path}: cannot be read as an image ({type(error).__name__}: {str(error)[:80]}; {_bytes(path)})."


def write_stack(path: Path, stack: NDArray[Any], pixel: tuple[Any, Any] | None = None, unit: str | None = None) -> None:
    """Write (S, H, W) or (S, H, W, 3) as a multi-page TIFF that ImageJ and Fiji open as a stack, atomically.

    `pixel`: pixels a `unit` along x and y, as rational numbers, of the image that it belongs to.
    """
    import tifffile

    axes = "ZYXS" if stack.ndim == 4 else "ZYX"
    with atomic(path) as stream:
        tifffile.imwrite(
            stream,
            stack,
            imagej=True,
            photometric="rgb" if stack.ndim == 4 else "minisblack",
            resolution=pixel,
            metadata={"axes": axes, **({"unit": unit} if unit else {})},
        )


def pixel_size(path: Path) -> tuple[tuple[Any, Any] | None, str | None]:
    """(pixels a unit along x and y, the unit) that a TIFF gives; None where it gives none."""
    import tifffile

    if path.is_dir() or path.suffix.lower() not in (".tif", ".tiff"):
        return None, None
    with tifffile.TiffFile(path) as file:
        tags, about = file.pages.first.tags, file.imagej_metadata or {}
        if "XResolution" not in tags or "YResolution" not in tags:
            return None, None
        unit = about.get("unit") or {2: "inch", 3: "cm"}.get(
            int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
        )
        return (tags["XResolution"].value, tags["YResolution"].value), unit


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


def write_npy(path: Path, array: NDArray[Any]) -> str:
    """Write an array, atomically. Returns the digest of the file, that of `files.digest_files`."""
    with atomic(path) as stream:
        hashed = _Hashed(stream)
        np.save(hashed, array, allow_pickle=False)
    return hashed.total.hexdigest()


class _Hashed:
    """A stream that makes a digest of what is written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.total = stream, hashlib.blake2b(digest_size=16)

    def write(self, content: bytes) -> int:
        self.total.update(content)
        return self.stream.write(content)


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
