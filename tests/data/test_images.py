"""The one reader of images: every kind of TIFF and PNG as its tags say that it is shown; damaged and unfit files are
named. Files are made by tifffile and Pillow."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from unet.data.io import images
from unet.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")
HEIGHT, WIDTH = 20, 30
Array = np.ndarray[Any, Any]
Write = Callable[[Path], None]
_random = np.random.default_rng(0)
GREY = _random.integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
RGB = _random.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
STACK = _random.integers(0, 256, (4, HEIGHT, WIDTH)).astype(np.uint8)
BITS = _random.random((HEIGHT, WIDTH)) > 0.6
MASK = BITS.astype(np.uint8) * np.uint8(255)
SLOPE = np.add.outer(np.arange(HEIGHT) * 4, np.arange(WIDTH) * 3).astype(np.uint8)
OPAQUE = np.dstack([RGB, np.full((HEIGHT, WIDTH), 255, np.uint8)])
COLOURS = _random.integers(0, 256, (256, 3)).astype(np.uint8)
TURNED: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def tiff(array: Array, **how: Any) -> Write:
    return lambda path: tifffile.imwrite(path, array, **how)


def pillow(array: Array | Image.Image, kind: str = "TIFF", **how: Any) -> Write:
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    return lambda path: image.save(path, kind, **how)


def pages(stack: Array, **how: Any) -> Write:
    first, *others = (Image.fromarray(page) for page in stack)
    return lambda path: first.save(path, "TIFF", save_all=True, append_images=others, **how)


def white_is_zero(write: Write) -> Write:
    """The same bytes with the tag's value 0."""

    def change(path: Path) -> None:
        write(path)
        with tifffile.TiffFile(path, mode="r+b") as file:
            for page in file.pages:
                page.tags["PhotometricInterpretation"].overwrite(0)

    return change


def indexed(bits: int = 8) -> Image.Image:
    image = Image.fromarray(GREY & (2**bits - 1)).convert("P")
    image.putpalette(COLOURS.ravel().tolist())
    return image


def by_palette(image: Image.Image) -> Array:
    return COLOURS[np.asarray(image)]


PAGE: dict[str, tuple[Write, Array]] = {
    "grey": (tiff(GREY), GREY),
    "rgb": (tiff(RGB, photometric="rgb"), RGB),
    "big-endian": (tiff(RGB, photometric="rgb", byteorder=">"), RGB),
    "bigtiff": (tiff(RGB, photometric="rgb", bigtiff=True), RGB),
    "bigtiff, big-endian": (tiff(RGB, photometric="rgb", bigtiff=True, byteorder=">"), RGB),
    "deflate": (tiff(RGB, photometric="rgb", compression="zlib"), RGB),
    "deflate with predictor": (tiff(RGB, photometric="rgb", compression="zlib", predictor=True), RGB),
    "lzw": (pillow(RGB, compression="tiff_lzw"), RGB),
    "packbits": (pillow(GREY, compression="packbits"), GREY),
    "strips": (tiff(GREY, rowsperstrip=3), GREY),
    "tiles": (tiff(RGB, photometric="rgb", tile=(16, 16)), RGB),
    "tiles, deflate": (tiff(GREY, tile=(16, 16), compression="zlib"), GREY),
    "planes": (tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate"), RGB),
    "planes, deflate": (
        tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate", compression="zlib"),
        RGB,
    ),
    "alpha": (tiff(OPAQUE, photometric="rgb", extrasamples=["unassalpha"]), RGB),
    "alpha, associated": (tiff(OPAQUE, photometric="rgb", extrasamples=["assocalpha"]), RGB),
    "alpha, not told": (tiff(OPAQUE, photometric="rgb", extrasamples=["unspecified"]), RGB),
    "alpha, lzw": (pillow(OPAQUE, compression="tiff_lzw"), RGB),
    "grey and alpha": (pillow(np.dstack([GREY, OPAQUE[..., 3]]), compression="tiff_lzw"), GREY),
    "white is zero": (tiff(GREY, photometric="miniswhite"), 255 - GREY),
    "white is zero, deflate": (tiff(GREY, photometric="miniswhite", compression="zlib"), 255 - GREY),
    "white is zero, lzw": (white_is_zero(pillow(GREY, compression="tiff_lzw")), 255 - GREY),
    "white is zero, 16 bits": (tiff(GREY.astype(np.uint16), photometric="miniswhite"), 65535 - GREY.astype(np.uint16)),
    "palette": (tiff(GREY, photometric="palette", colormap=COLOURS.T.astype(np.uint16) * 257), COLOURS[GREY]),
    "palette, lzw": (pillow(indexed(), compression="tiff_lzw"), by_palette(indexed())),
    "png": (pillow(RGB, "PNG"), RGB),
    "png, grey": (pillow(GREY, "PNG"), GREY),
    "png, alpha": (pillow(OPAQUE, "PNG"), RGB),
    "png, palette": (pillow(indexed(), "PNG"), by_palette(indexed())),
    "png, palette of 4 bits": (pillow(indexed(4), "PNG", bits=4), by_palette(indexed(4))),
    **{
        f"orientation {number}": (tiff(RGB, photometric="rgb", extratags=[(274, 3, 1, number, True)]), turn(RGB))
        for number, turn in TURNED.items()
    },
    **{
        f"orientation {number}, lzw": (pillow(RGB, compression="tiff_lzw", tiffinfo={274: number}), turn(RGB))
        for number, turn in TURNED.items()
    },
}


@pytest.mark.parametrize("name", PAGE)
def test_a_page_is_read_as_its_tags_say(name: str, tmp_path: Path) -> None:
    write, wanted = PAGE[name]
    path = tmp_path / "page"
    write(path)
    found = images.read_page(path)
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)
    assert images.stack_shape(path) == (1, *wanted.shape[:2])


@pytest.mark.parametrize("number", TURNED)
def test_jpeg_in_tiff(number: int, tmp_path: Path) -> None:
    """Lossy: near the original, and upright as by the tag."""
    image = np.dstack([SLOPE, SLOPE, 255 - SLOPE])
    for wanted in (SLOPE, image):
        pillow(wanted, compression="jpeg", quality=95, tiffinfo={274: number})(tmp_path / "x.tif")
        found = images.read_page(tmp_path / "x.tif")
        assert np.abs(found.astype(int) - TURNED[number](wanted)).mean() < 4


NUMBERS = {
    f"{order}{kind}{', deflate' if packed else ''}": (
        tiff(BITS.astype(kind) * 100, byteorder=order, photometric="minisblack", compression=packed),
        BITS.astype(kind) * 100,
    )
    for order in "<>"
    for kind in ("i1", "u2", "i2", "u4", "i4", "u8", "f2", "f4", "f8")
    for packed in (None, "zlib")
}
LABELS: dict[str, tuple[Write, Array]] = {
    **NUMBERS,
    "1 bit": (tiff(BITS, photometric="minisblack"), MASK),
    "1 bit, white is zero": (tiff(BITS, photometric="miniswhite"), 255 - MASK),
    "1 bit, fax": (pillow(BITS, compression="group4"), MASK),
    "1 bit, lzw": (pillow(BITS, compression="tiff_lzw"), MASK),
    "1 bit, png": (pillow(BITS, "PNG"), MASK),
    "1 bit, tiled": (tiff(BITS, photometric="minisblack", tile=(16, 16)), MASK),
    "equal channels": (tiff(np.dstack([MASK] * 3), photometric="rgb"), MASK),
    "equal channels, png with alpha": (pillow(np.dstack([MASK] * 3 + [OPAQUE[..., 3]]), "PNG"), MASK),
    "16 bits, lzw": (pillow(MASK.astype(np.uint16) * 257, compression="tiff_lzw"), MASK.astype(np.uint16) * 257),
    "16 bits, png": (pillow(MASK.astype(np.uint16) * 257, "PNG"), MASK.astype(np.uint16) * 257),
    "signed, lzw": (pillow(BITS.astype(np.int32) * -5, compression="tiff_lzw"), BITS.astype(np.int32) * -5),
    "float, lzw": (pillow(BITS.astype(np.float32), compression="tiff_lzw"), BITS.astype(np.float32)),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_mask_of_any_number(name: str, tmp_path: Path) -> None:
    write, wanted = LABELS[name]
    write(tmp_path / "mask.tif")
    found = images.read_mask(tmp_path / "mask.tif")
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


STACKS: dict[str, Write] = {
    "pages": tiff(STACK, photometric="minisblack"),
    "big-endian": tiff(STACK, photometric="minisblack", byteorder=">"),
    "bigtiff": tiff(STACK, photometric="minisblack", bigtiff=True),
    "imagej": tiff(STACK, imagej=True),
    "imagej, one directory": tiff(STACK, imagej=True, truncate=True),
    "ome": tiff(STACK, ome=True, photometric="minisblack"),
    "deflate": tiff(STACK, photometric="minisblack", compression="zlib"),
    "lzw": pages(STACK, compression="tiff_lzw"),
    "zstd": pages(STACK, compression="zstd"),
    "white is zero": tiff(255 - STACK, photometric="miniswhite"),
    "white is zero, lzw": white_is_zero(pages(255 - STACK, compression="tiff_lzw")),
    "equal channels": tiff(np.stack([STACK] * 3, -1), photometric="rgb"),
    "upside down": tiff(STACK[:, ::-1], photometric="minisblack", extratags=[(274, 3, 1, 4, False)]),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_stack_and_each_of_its_pages(name: str, tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    STACKS[name](path)
    np.testing.assert_array_equal(images.read_stack(path), STACK)
    for number, page in enumerate(STACK):
        np.testing.assert_array_equal(images.read_stack(path, number), page)
    assert images.stack_shape(path) == STACK.shape
    with pytest.raises(DataError, match="has 4 pages"):
        images.read_rgb(path)


def one_page_turned(path: Path) -> None:
    tiff(STACK, photometric="minisblack")(path)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[2].tags["PhotometricInterpretation"].overwrite(0)


UNFIT: dict[str, tuple[Write, Callable[[Path], object], str]] = {
    "16 bits a channel": (tiff(RGB.astype(np.uint16), photometric="rgb"), images.read_rgb, "uint16 values"),
    "16 bits a channel, png": (
        lambda path: path.write_bytes(SIXTEEN_BITS),
        images.read_rgb,
        "uint16 values",
    ),
    "grey": (tiff(GREY), images.read_rgb, "3 channels are expected"),
    "transparent": (
        tiff(np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unassalpha"]),
        images.read_rgb,
        "no opaque alpha channel",
    ),
    "float": (tiff(STACK.astype(np.float32), photometric="minisblack"), images.read_stack, "float32 values"),
    "not finite": (tiff(np.full((5, 5), np.nan, np.float32)), images.read_mask, "not finite"),
    "colours": (tiff(RGB, photometric="rgb"), images.read_mask, "in colours"),
    "colours of print": (tiff(OPAQUE, photometric="separated"), images.read_page, "SEPARATED"),
    "white of floats": (tiff(GREY.astype(np.float32), photometric="miniswhite"), images.read_page, "WhiteIsZero"),
    "pages of two sizes": (
        lambda path: [tifffile.imwrite(path, page, append=True) for page in (GREY, GREY[:9])],  # type: ignore[func-returns-value]
        images.read_stack,
        "different kinds",
    ),
    "a page with other tags": (one_page_turned, images.read_stack, "different kinds|page 2 has another"),
    "larger than memory": (
        lambda path: path.write_bytes(huge()),
        images.read_page,
        r"would take 3\.6 GB",
    ),
    "no image": (lambda path: path.write_bytes(b"II*\0\x08\0\0\0\0\0\0\0\0\0"), images.read_page, "image"),
    "a jpeg": (pillow(GREY, "JPEG"), images.read_page, "cannot be read as a TIFF or PNG"),
    "text": (lambda path: path.write_text("not an image"), images.read_page, "12 bytes"),
    "empty": (lambda path: path.write_bytes(b""), images.read_page, "0 bytes"),
    "a folder": (lambda path: path.mkdir(), images.read_page, "is a folder"),
    "a pipe": (lambda path: os.mkfifo(path), images.read_page, "is a pipe"),
    "a link in a circle": (lambda path: path.symlink_to(path), images.read_page, "symbolic links"),
    "missing": (lambda path: None, images.read_page, "No such file"),
}


def png_of(head: bytes, rows: bytes) -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


SIXTEEN_BITS = png_of(b"\0\0\0\x02\0\0\0\x01\x10\x02\0\0\0", b"\0" + b"\1\2" * 6)


def huge() -> bytes:
    """A small file that says 60,000 x 60,000."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, GREY, compression="zlib")
    content = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = file.pages[0].tags[name]
            content[tag.valueoffset : tag.valueoffset + 2] = (60000).to_bytes(2, "little")
    return bytes(content)


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    write, read, words = UNFIT[name]
    path = tmp_path / "x.tif"
    write(path)
    began = time.monotonic()
    with pytest.raises(DataError, match=words) as caught:
        read(path)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert time.monotonic() - began < 5


WHOLE: dict[str, tuple[Write, Callable[[Path], Array]]] = {
    **{name: (PAGE[name][0], images.read_page) for name in ("rgb", "bigtiff", "lzw", "tiles, deflate", "png")},
    **{name: (STACKS[name], images.read_stack) for name in ("pages", "imagej", "deflate", "lzw")},
    "1 bit, fax": (LABELS["1 bit, fax"][0], images.read_labels),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_cut_short_is_refused_or_whole(name: str, tmp_path: Path) -> None:
    """Wherever it is cut: never fewer pages, never zeros for what is missing."""
    write, read = WHOLE[name]
    path = tmp_path / "x.tif"
    write(path)
    content, wanted = path.read_bytes(), read(path)
    for kept in [*range(0, len(content), len(content) // 25), len(content) - 1]:
        path.write_bytes(content[:kept])
        try:
            found = read(path)
        except DataError:
            continue
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", WHOLE)
def test_changed_bytes_end_in_an_error_or_an_image(name: str, tmp_path: Path) -> None:
    write, read = WHOLE[name]
    path = tmp_path / "x.tif"
    write(path)
    content, random = path.read_bytes(), np.random.default_rng(7)
    for _ in range(40):
        changed = bytearray(content)
        for place in random.integers(0, min(len(content), 400), random.integers(1, 4)):
            changed[place] = random.integers(0, 256)
        path.write_bytes(changed)
        began = time.monotonic()
        for step in (read, images.stack_shape, images.pixel_size):
            try:
                step(path)
            except DataError:
                continue
        assert time.monotonic() - began < 5


def test_the_size_of_a_pixel(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, STACK, imagej=True, resolution=((200, 1), (100, 1)), metadata={"unit": "micron"})
    assert images.pixel_size(path) == (((200, 1), (100, 1)), "micron")
    tifffile.imwrite(path, GREY, resolution=((200, 1), (100, 1)), extratags=[(274, 3, 1, 6, True)])
    assert images.pixel_size(path)[0] == ((100, 1), (200, 1))  # turned as the image is
    pillow(GREY, "PNG")(path)
    assert images.pixel_size(path) == (None, None)
