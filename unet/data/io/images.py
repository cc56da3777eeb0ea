"""Images from files: TIFF and PNG, slices and stacks, one reader for all tasks. No torch.

What the tags of a file say is obeyed: WhiteIsZero is inverted, palettes are looked up, the orientation is turned
upright, planes become channels, an opaque alpha channel is dropped, each page is a slice. Plain slices are read by
Pillow, which takes a third of tifffile's time; the others by tifffile, and compressions that it cannot read by Pillow
from a copy in memory whose tags are neutral: which tags Pillow obeys by itself depends on its version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io.tiff import Kind, open_tiff, step_of
from unet.errors import DataError, UnetError
from unet.files import require_regular

Array = NDArray[Any]
Load = Callable[[int | None], Array]
LARGEST = 2**31
SURE = 2**28  # bytes that are taken without a look at the free memory
GREY = "Convert it to 8-bit grey (Fiji: Image, Type, 8-bit)."
RGB = "Give an RGB image of 8 bits a channel (Fiji: Image, Type, RGB Color)."
BITS, PHOTOMETRIC, DESCRIPTION, STRIPS, ORIENTATION = 258, 262, 270, 273, 274  # TIFF tags
SAMPLES, ROWS, PLANES, EXTRA, FORMAT = 277, 278, 284, 338, 339
PLAIN = {(1, "L"): 2, (2, "RGB"): 3}  # (photometric, mode of Pillow): axes of the array


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """A file with one RGB image of 8 bits -> (H, W, 3). Raises DataError for any other, with what it is."""
    image = read_page(path)
    if image.ndim != 3 or image.dtype != np.uint8:
        depth = "" if image.dtype == np.uint8 else f" of {values_of(image)}"
        raise DataError(
            f"{path}: is {words(image.shape)}{depth}; 3 channels are expected (H x W x 3), of 8-bit values.", RGB
        )
    return image


def read_page(path: Path) -> Array:
    """A file with one image -> (H, W) or (H, W, 3), as its tags say it is shown. Raises DataError."""
    image = _plain(path)
    if image is not None:
        return image
    with opened(path) as (kind, load):
        if kind.pages != 1:
            raise DataError(
                f"{path}: has {kind.pages} pages; a slice is a file with one.",
                "Save each slice as a file of its own; channels become one RGB image (Fiji: Image, Type, RGB Color).",
            )
        return shown(load(None), kind, path)[0]


def read_stack(path: Path, page: int | None = None) -> NDArray[np.uint8]:
    """Grey images of 8 bits -> (S, H, W), or one page of them (H, W). RGB with equal channels is grey. Raises
    DataError."""
    with opened(path) as (kind, load):
        if kind.dtype != np.uint8:
            raise DataError(
                f"{path}: is {words(kind.shape)} of {values_of(kind)}; grey values of 8 bits are expected.", GREY
            )
        images = one_channel(shown(load(page), kind, path))
        if images is None:
            raise DataError(f"{path}: is {words(kind.shape)} of colour; grey values of 8 bits are expected.", GREY)
    return images if page is None else images[0]


def read_labels(path: Path, page: int | None = None) -> Array:
    """Masks -> (S, H, W), or one page of them (H, W), of any kind of number; 1 bit becomes uint8 of 0 and 255, RGB with
    equal channels one channel. Raises DataError for colours and for values that are not finite."""
    found = _plain(path)
    if found is not None:
        images = one_channel(found[None])
    else:
        with opened(path) as (kind, load):
            images = one_channel(shown(load(page), kind, path))
    if images is None:
        raise DataError(
            f"{path}: is a mask in colours; a mask has one channel (or equal ones).",
            "Save it as grey values, 0 and 255.",
        )
    if images.dtype == bool:
        images = images.astype(np.uint8) * np.uint8(255)
    elif images.dtype.kind == "f" and not np.isfinite(images).all():
        raise DataError(f"{path}: a mask with values that are not finite (NaN).", "Save it with two values, 0 and 255.")
    return images if page is None else images[0]


def read_mask(path: Path) -> Array:
    """A file with one mask -> (H, W), as `read_labels`. Raises DataError."""
    images = read_labels(path)
    if len(images) != 1:
        raise DataError(
            f"{path}: has {len(images)} pages; a mask is a file with one.", "Save each mask as a file of its own."
        )
    image: Array = images[0]
    return image


def stack_shape(path: Path) -> tuple[int, int, int]:
    """(S, H, W) of a file; its pixels are not read. Raises DataError."""
    _require_file(path)
    with contextlib.suppress(Exception), pillow().open(path, formats=("TIFF",)) as file:
        if _plain_axes(file):
            return 1, file.height, file.width
    with opened(path) as (kind, _):
        return kind.pages, *kind.upright


def pixel_size(path: Path) -> tuple[tuple[Any, Any] | None, str | None]:
    """(pixels a unit along x and y, the unit) that a TIFF gives; None where it gives none."""
    import tifffile

    if path.is_dir() or path.suffix.lower() not in (".tif", ".tiff"):
        return None, None
    with contextlib.suppress(Exception), tifffile.TiffFile(require_regular(path)) as file:
        tags, about = file.pages.first.tags, file.imagej_metadata or {}
        pixel = tuple(tags[name].value for name in ("XResolution", "YResolution"))
        if all(len(item) == 2 and min(item) > 0 for item in pixel):
            number = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
            turned = "Orientation" in tags and int(tags["Orientation"].value) > 4
            return pixel[:: -1 if turned else 1], about.get("unit") or {2: "inch", 3: "cm"}.get(number)
    return None, None


def irregular(paths: Iterable[Path]) -> list[str]:
    """What is wrong with paths that are no files that can be read to their end, in words: links in a circle, pipes,
    folders with the name of an image."""
    found = []
    for path in paths:
        try:
            _require_file(path)
        except DataError as error:
            found.append(error.message.rstrip("."))
    return found


def _require_file(path: Path) -> None:
    try:
        require_regular(path)
    except UnetError as error:
        raise DataError(error.message, "Copy the file again from its source, or remove it.") from error


def words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def values_of(of: Array | Kind) -> str:
    """The kind of values, in words."""
    return "1-bit values" if of.dtype == bool else f"{of.dtype} values"


@functools.cache
def pillow() -> Any:
    """Pillow, without its warnings: sizes are checked here, and damage becomes an error."""
    import warnings

    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    return Image


def _plain(path: Path) -> Array | None:
    """A TIFF with one page of 8-bit grey or RGB and nothing to obey in its tags -> (H, W) or (H, W, 3); None for any
    other file, damaged ones among them."""
    _require_file(path)
    try:
        with pillow().open(path, formats=("TIFF",)) as file:
            axes = _plain_axes(file)
            image = np.asarray(file) if axes else None
            return image if image is not None and image.ndim == axes else None
    except Exception:  # decoders raise many kinds on damaged files; the general way names them
        return None


def _plain_axes(file: Any) -> int:
    """Axes of the array of a plain TIFF that Pillow has opened (2 for grey, 3 for RGB), 0 for any other file."""
    tags = file.tag_v2
    axes = PLAIN.get((tags.get(PHOTOMETRIC), file.mode), 0)
    plain = (
        not file.is_animated
        and set(tags.get(BITS, ())) == {8}
        and set(tags.get(FORMAT, (1,))) == {1}
        and tags.get(ORIENTATION, 1) == 1
        and EXTRA not in tags
        and tags.get(PLANES, 1) == 1
        and len(tags.get(STRIPS, ())) == math.ceil(file.height / max(1, tags.get(ROWS, file.height)))
        and tags.get(SAMPLES, 1) == (1 if axes == 2 else 3)
        and "images=" not in str(tags.get(DESCRIPTION, ""))
        and math.prod(file.size) * 3 <= SURE
    )
    return axes if plain else 0


@contextlib.contextmanager
def opened(path: Path, lossy: bool = False) -> Iterator[tuple[Kind, Load]]:
    """(what a file holds, what reads a page of it, or all); `lossy`: JPEG is read too. Raises DataError for damaged
    files and those that would take too much memory."""
    _require_file(path)
    try:
        with open(path, "rb") as stream:
            start = stream.read(8)
        png, jpeg = start == b"\x89PNG\r\n\x1a\n", lossy and start.startswith(b"\xff\xd8\xff")
        with _open_png(path) if png else _open_jpeg(path) if jpeg else open_tiff(path) as (kind, load):
            _require_room(path, kind)
            yield kind, load
    except UnetError:
        raise
    except Exception as error:  # decoders raise many kinds on damaged files
        raise DataError(
            f"{path}: cannot be read as a TIFF{', PNG or JPEG' if lossy else ' or PNG'} image"
            f" ({type(error).__name__}: {str(error)[:80]};"
            f" {path.stat().st_size} bytes).",
            "Copy the file again from its source, or remove it.",
        ) from error


def _require_room(path: Path, kind: Kind) -> None:
    size = math.prod(kind.shape) * kind.dtype.itemsize
    if size > LARGEST or (size > SURE and size > host.memory()[1] > 0):
        raise DataError(
            f"{path}: {words(kind.shape)} would take {host.format_bytes(size)} ({path.stat().st_size} bytes in the"
            f" file; at"
            f" most {host.format_bytes(LARGEST)} are read, {host.format_bytes(host.memory()[1])} are free).",
            "Save it in parts, or remove it.",
        )


@contextlib.contextmanager
def _open_png(path: Path) -> Iterator[tuple[Kind, Load]]:
    """As `opened`, for a PNG."""
    with open(path, "rb") as stream:
        head = stream.read(26)
    with pillow().open(path, formats=("PNG",)) as file:
        width, height = file.size
        deep = head[24:25] == b"\x10"
        dtype = np.dtype(bool if file.mode == "1" else np.uint16 if deep else np.uint8)
        coloured = file.mode in ("P", "RGB", "RGBA")
        clear = file.mode in ("LA", "RGBA") or "transparency" in file.info
        shape = (getattr(file, "n_frames", 1), height, width, (3 if coloured else 1) + clear)
        step = step_of(head[24]) if file.mode == "L" else 1
        kind = Kind(shape, dtype, 2 if coloured else 1, (2,) if clear else (), 1, step=step)
        if deep and coloured:
            raise DataError(f"{path}: is {words(shape[1:])} of uint16 values; 8 bits are expected.", RGB)

        def load(page: int | None) -> Array:
            mode = ("RGBA" if clear else "RGB") if coloured else "LA" if clear else file.mode
            image = np.asarray(file if mode == file.mode else file.convert(mode))
            return image.astype(dtype, copy=False).reshape(1, *shape[1:])

        yield dataclasses.replace(kind, orientation=file.getexif().get(ORIENTATION, 1)), load


@contextlib.contextmanager
def _open_jpeg(path: Path) -> Iterator[tuple[Kind, Load]]:
    """As `opened`, for a JPEG. Raises DataError for what is neither grey nor RGB."""
    with pillow().open(path, formats=("JPEG",)) as file:
        if file.mode not in ("L", "RGB"):
            raise DataError(f"{path}: is a JPEG with {file.mode} colours; grey or RGB is expected.", RGB)
        width, height = file.size
        shape = (1, height, width, 1 if file.mode == "L" else 3)
        orientation = file.getexif().get(ORIENTATION, 1)
        kind = Kind(shape, np.dtype(np.uint8), 1 if file.mode == "L" else 2, (), orientation)
        yield kind, lambda page: np.asarray(file).reshape(shape)


def shown(array: Array, kind: Kind, path: Path) -> Array:
    """(S, H, W, C) as stored -> (S, H, W) or (S, H, W, 3) as the tags say that it is shown. Raises DataError."""
    if kind.extra:
        colours, extra = array[..., : -len(kind.extra)], array[..., -len(kind.extra) :]
        full = 1 if array.dtype == bool else np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
        if not (extra == full).all():
            raise DataError(
                f"{path}: is {words(kind.shape[1:])}, and what is beyond its colours is no opaque alpha channel; 3"
                " channels are expected, or 1 for a mask.",
                "Save it without the alpha channel (Fiji: Image, Type, RGB Color or 8-bit).",
            )
        array = colours
    if kind.photometric == 0:
        array = kind.inverted(array)
    if kind.palette is not None:
        if array.size and int(array.max()) >= len(kind.palette):
            raise DataError(
                f"{path}: holds the value {array.max()}, its palette has {len(kind.palette)} colours.",
                "Save it again without a palette.",
            )
        array = kind.palette[array[..., 0]]
    if array.shape[-1] == 1:
        array = array[..., 0]
    elif array.shape[-1] != 3:
        raise DataError(f"{path}: has {array.shape[-1]} channels; 1 or 3 channels are expected.", RGB)
    return _upright(array, kind.orientation)


def _upright(array: Array, orientation: int) -> Array:
    """(S, H, W, ...) as stored -> upright, by the TIFF tag Orientation."""
    if orientation > 4:  # stored as columns
        array = array.swapaxes(1, 2)
    flips = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}.get(orientation, ())
    return np.ascontiguousarray(np.flip(array, flips)) if flips or orientation > 4 else array


def one_channel(images: Array) -> Array | None:
    """(S, H, W) or (S, H, W, 3) with equal channels -> (S, H, W); None for colours."""
    if images.ndim == 3:
        return images
    first = images[..., 0]
    equal = all(np.array_equal(first, images[..., other]) for other in (1, 2))
    return np.ascontiguousarray(first) if equal else None
