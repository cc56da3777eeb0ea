"""Arrays in files: TIFF, PNG and npy out, npy in (images in: `images`). No torch. Arrays never carry pickles."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError
from unet.files import atomic, explain, require_regular


def _bytes(path: Path) -> str:
    try:
        return f"{path.stat().st_size} bytes"
    except OSError:
        return "unreadable"


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
        require_regular(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise explain(error, path) from error
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path}: cannot be read as npy ({str(error)[:100]}; {_bytes(path)}).",
            "Delete the file, then build the cache again with --rebuild-cache.",
        ) from error
