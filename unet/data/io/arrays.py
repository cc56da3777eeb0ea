"""Arrays in files: TIFF, PNG and npy out, npy in (images in: `images`). No torch. Arrays never carry pickles."""

from __future__ import annotations

import hashlib
import tokenize
from collections.abc import Mapping
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
            metadata={"axes": axes, **({"unit": _escaped(unit)} if unit else {})},
        )


def _escaped(unit: str) -> str:
    """A unit in ASCII, as ImageJ writes it: \\u00B5m."""
    return "".join(letter if letter.isascii() else f"\\u{ord(letter):04X}" for letter in unit)


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


def write_label_stack(
    path: Path,
    labels: NDArray[Any],
    pixel: tuple[Any, Any] | None,
    unit: str | None,
    about: str,
    depth: float | None = None,
) -> None:
    """Write label values (S, H, W) as a TIFF, a page for each slice, deflated, with the pixel size of its image and
    `about` in the description of the first page; with `depth`, units a slice, in ImageJ's form. Atomic."""
    import tifffile

    kind = {"inch": "INCH", "cm": "CENTIMETER"}.get(unit or "", "NONE")
    how: dict[str, Any] = {"resolution": pixel, "resolutionunit": kind} if pixel else {}
    if depth is not None:
        count = f"images={len(labels)}\nslices={len(labels)}\n" if len(labels) > 1 else ""
        about = f"ImageJ=1.11a\n{count}unit={_escaped(unit or '')}\nspacing={depth!r}\n{about}"
    with atomic(path) as stream:
        tifffile.imwrite(
            stream,
            labels if len(labels) > 1 else labels[0],
            photometric="minisblack",
            compression="zlib",
            description=about.encode(),  # as text tifffile takes ASCII alone
            metadata=None,
            **how,
        )


def write_label_png(path: Path, labels: NDArray[Any], about: Mapping[str, str]) -> None:
    """Write label values (H, W) as grey PNG, of 8 bits or 16, with `about` as text. Atomic. Raises DataError for values
    that PNG does not have."""
    from PIL import Image, PngImagePlugin

    if labels.min(initial=0) < 0 or labels.max(initial=0) > 65535:
        raise DataError(
            f"{path}: PNG holds values from 0 to 65535, not {labels.min()} to {labels.max()}.",
            "Number the classes from 0 on, or give images as TIFF or NIfTI.",
        )
    text = PngImagePlugin.PngInfo()
    for key, value in about.items():
        text.add_itxt(key, value)
    with atomic(path) as stream:
        kind = np.uint8 if labels.max(initial=0) < 256 else np.uint16
        Image.fromarray(labels.astype(kind)).save(stream, "PNG", pnginfo=text)


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
    except (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError) as error:  # of a header that is damaged
        raise DataError(
            f"{path}: cannot be read as npy ({str(error)[:100]}; {_bytes(path)}).",
            "Delete the file, then build the cache again with --rebuild-cache.",
        ) from error
