"""What a TIFF holds, and its values as they are stored: read by tifffile, or by Pillow where it lacks the codec."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError

Array = NDArray[Any]
WHITE_IS_ZERO, BLACK_IS_ZERO, COLOUR, PALETTE, YCBCR = 0, 1, 2, 3, 6  # values of the tag PhotometricInterpretation
CONVERT = (
    "Save it without compression, as 8-bit grey or RGB (Fiji: File, Save As, Tiff; or: tiffcp -c none IN.tif OUT.tif)."
)
APART = "Save one volume a file (Fiji: Image, Hyperstacks, Reduce Dimensionality; then File, Save As, Tiff)."
COPY = "Copy the file again from its source, or remove it."
FORMS = {1: "B", 3: "H", 4: "I"}  # struct's letters of TIFF's whole numbers
OME = re.compile(r"<(?:\w+:)?(Pixels|TiffData)\b([^>]*)>")  # elements of the description of an OME-TIFF
ATTRIBUTE = re.compile(r"(\w+)\s*=\s*[\"']([^\"']*)")
ONE_FILE = ("ome", "mmstack", "ndtiff")  # kinds in which tifffile would follow the names of other files


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file holds: `shape` (S, H, W, C) and `dtype` as stored, and the tags that say what the values mean.

    `extra` has an item for each channel beyond the colours. `palette` (N, 3) uint8. `top` is what white is where that
    is not the dtype's largest value. `lead`: the axes that the pages run over, the first the slowest, by their letters
    in tifffile (Z, C, T ...) with their lengths. `step`: what is read is so many times the number that is stored: grey
    of 2 or 4 bits is spread over 0 to 255.
    """

    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    photometric: int
    extra: tuple[int, ...]
    orientation: int
    palette: NDArray[np.uint8] | None = None
    top: int | None = None
    lead: tuple[tuple[str, int], ...] = ()
    step: int = 1

    @property
    def pages(self) -> int:
        return self.shape[0]

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width as shown."""
        _, height, width, _ = self.shape
        return (width, height) if self.orientation > 4 else (height, width)

    def inverted(self, array: Array) -> Array:
        """White for black."""
        if array.dtype == bool:
            return ~array
        return (self.top or np.iinfo(array.dtype).max) - array


@functools.cache
def _tifffile() -> Any:
    """tifffile, without its log: what is wrong becomes an error here."""
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    return tifffile


@contextlib.contextmanager
def open_tiff(path: Path) -> Iterator[tuple[Kind, Callable[[int | None], Array]]]:
    """(what a TIFF holds, what reads a page of it, or all, as (S, H, W, C)). Raises DataError, and tifffile's and
    Pillow's errors for damaged files."""
    tifffile = _tifffile()
    off = {f"is_{name}": False for name in ONE_FILE if name in tifffile.TIFF.FILE_FLAGS}
    with tifffile.TiffFile(path, **off) as file:
        if not file.series:
            raise DataError(f"{path}: holds no image.", COPY)
        if len(file.series) != 1:
            shapes = ", ".join("x".join(map(str, series.shape)) for series in file.series[:3])
            raise DataError(
                f"{path}: pages of different kinds ({shapes}; {len(file.pages)} pages).",
                "Save a stack of equal pages, or each page as a file of its own.",
            )
        series = file.series[0]
        kind = _kind(path, series)
        kind = dataclasses.replace(kind, orientation=_orientation(path, file, kind.pages))

        def load(page: int | None) -> Array:
            return _read(path, file, series, kind, page)

        yield kind, load


def _orientation(path: Path, file: Any, pages: int) -> int:
    """The tag Orientation of all pages, 1 where there is none. Raises DataError where pages differ in it or in
    WhiteIsZero (tifffile looks at the first page), and where the file ends before its last page."""
    found = list(_tags_of_pages(path, file, (262, 274)))
    told = int((file.imagej_metadata or {}).get("images", 1))
    if told > pages:
        raise DataError(f"{path}: is cut short: it has {pages} of {told} pages.", COPY)
    if len(set(found)) != 1:
        number = next(number for number, item in enumerate(found) if item != found[0])
        raise DataError(
            f"{path}: page {number} has another orientation or another meaning of white than page 0.", CONVERT
        )
    number = found[0][1]
    return number if 1 <= number <= 8 else 1


def _tags_of_pages(path: Path, file: Any, codes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The numbers that a TIFF's pages give for tags, 0 where they give none. Raises DataError where the chain of pages
    has no end in the file: each page names the place of the next one, the last one none."""
    how, stream, size = file.tiff, file.filehandle, file.filehandle.size
    order: str = file.byteorder
    seen: set[int] = set()
    stream.seek(4 if how.version == 42 else 8)
    (place,) = struct.unpack(how.offsetformat, stream.read(how.offsetsize))
    while place:
        stream.seek(place)
        head = stream.read(how.tagnosize) if 0 < place < size and place not in seen else b""
        count = struct.unpack(how.tagnoformat, head)[0] if len(head) == how.tagnosize else size
        body = stream.read(count * how.tagsize + how.offsetsize) if count < 65536 else b""
        if len(body) < count * how.tagsize + how.offsetsize:
            raise DataError(f"{path}: is cut short or damaged: page {len(seen)} is not whole ({size} bytes).", COPY)
        seen.add(place)
        told = dict.fromkeys(codes, 0)
        for start in range(0, count * how.tagsize, how.tagsize):
            code, kind = struct.unpack_from(f"{order}HH", body, start)
            if code in told and kind in FORMS:
                (told[code],) = struct.unpack_from(order + FORMS[kind], body, start + how.tagsize - how.offsetsize)
        yield tuple(told.values())
        (place,) = struct.unpack_from(how.offsetformat, body, count * how.tagsize)


def _require_all_pieces(path: Path, pages: Iterable[Any]) -> None:
    """Raise DataError where a page lacks strips or tiles, which would be read as zeros."""
    for page in pages:
        wanted, found = math.prod(page.chunked), sum(1 for size in page.databytecounts if size)
        if found < wanted and not page.is_contiguous:
            raise DataError(f"{path}: page {page.index} has {found} of {wanted} strips or tiles.", COPY)


def _kind(path: Path, series: Any) -> Kind:
    """Raises DataError for what is neither grey nor RGB, and for values of unknown meaning."""
    first = series.keyframe
    samples, height, width = int(first.samplesperpixel), int(first.imagelength), int(first.imagewidth)
    if not samples * height * width:
        raise DataError(f"{path}: holds no image: {height} x {width} x {samples}.", COPY)
    photometric = int(first.photometric)
    if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, COLOUR, PALETTE, YCBCR):
        raise DataError(
            f"{path}: has colours of the kind {getattr(first.photometric, 'name', photometric)}; grey or RGB images are"
            " read.",
            CONVERT,
        )
    if series.dtype is None:
        raise DataError(f"{path}: has values of an unknown kind ({first.bitspersample} bits).", CONVERT)
    bits = int(first.bitspersample)
    dtype = np.dtype(np.uint8 if 1 < bits < 8 else series.dtype).newbyteorder("=")
    if photometric == WHITE_IS_ZERO and dtype.kind not in "bu":
        raise DataError(f"{path}: is WhiteIsZero with {dtype} values: what is white is not known.", CONVERT)
    extra = tuple(int(item) for item in first.extrasamples or ())
    colours = 3 if photometric in (COLOUR, YCBCR) else 1
    if samples - len(extra) != colours:  # not told: what is beyond the colours is extra
        extra = (0,) * max(0, samples - colours)
    pages = math.prod(series.shape) // (samples * height * width)
    if math.prod(series.shape) != pages * samples * height * width or not pages:
        raise DataError(f"{path}: holds no images of {height} x {width} ({series.shape}).", CONVERT)
    return Kind(
        (pages, height, width, samples),
        dtype,
        photometric,
        extra,
        1,
        _palette(first) if photometric == PALETTE else None,
        2**bits - 1 if 8 < bits < 16 else None,
        _ome_axes(path, first, pages)
        or tuple((axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS"),
        step_of(bits) if photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO) else 1,
    )


def step_of(bits: int) -> int:
    """What Pillow multiplies grey values of so many bits by."""
    return 255 // (2**bits - 1) if bits in (2, 4) else 1


def _ome_axes(path: Path, page: Any, pages: int) -> tuple[tuple[str, int], ...]:
    """What the pages of an OME-TIFF run over, the slowest axis first, by its description; () of other files, of those
    with one page, and of those whose pages are slices alone. Raises DataError where the description tells of other
    pages than the file has, or of another order than that of its axes."""
    text = str(page.description)
    if pages == 1 or not re.search(r"<(\w+:)?OME\b", text[:1000]):
        return ()
    elements = [(kind, dict(ATTRIBUTE.findall(rest))) for kind, rest in OME.findall(text)]
    pixels = next((told for kind, told in elements if kind == "Pixels"), {})
    order = pixels.get("DimensionOrder", "")[2:]
    sizes = {axis: int(size) if (size := pixels.get(f"Size{axis}", "")).isdecimal() else 0 for axis in "ZCT"}
    if sizes["C"] > 1 and page.samplesperpixel > 1:  # channels within a page
        sizes["C"] //= int(page.samplesperpixel)
    if max(sizes["C"], sizes["T"]) == 1:
        return ()
    if sorted(order) != ["C", "T", "Z"] or math.prod(sizes.values()) != pages:
        told = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        raise DataError(f"{path}: has {pages} pages; its OME-XML tells of other ones ({told}).", APART)
    number = {axis: math.prod(sizes[before] for before in order[: order.index(axis)]) for axis in order}
    for kind, place in elements:
        if kind == "TiffData" and "IFD" in place:
            meant = sum(int(place.get(f"First{axis}") or 0) * number[axis] for axis in order)
            if int(place["IFD"]) != meant:
                raise DataError(f"{path}: page {place['IFD']} is out of the order of its axes, {order}.", APART)
    return tuple((axis, sizes[axis]) for axis in reversed(order))


def _palette(page: Any) -> NDArray[np.uint8]:
    """(N, 3) uint8. Some programs store 8 bits where the format asks for 16."""
    colours = np.asarray(page.colormap).T
    return (colours >> 8 if colours.max(initial=0) > 255 else colours).astype(np.uint8)


def _read(path: Path, file: Any, series: Any, kind: Kind, page: int | None) -> Array:
    """(S, H, W, C) as stored: of all pages, or of one. Raises DataError for a compression that neither reads."""
    first = series.keyframe
    bits = int(first.bitspersample)
    why = "tifffile"
    if kind.photometric != YCBCR and not 1 < bits < 8:
        try:
            return _by_tifffile(path, file, series, kind, page)
        except Exception as error:
            if not isinstance(error, ImportError) and "imagecodecs" not in str(error):
                raise
            why = str(error)[:80]
    exact = bits in (1, 2, 4, 8) or (8 < bits <= 32 and kind.shape[3] == 1)  # others Pillow would cut to 8 bits
    if not exact or not _known(first):
        name = getattr(first.compression, "name", first.compression)
        raise DataError(f"{path}: {bits} bits a value with compression {name} cannot be read ({why}).", CONVERT)
    return _by_pillow(path, file, kind, page)


def _known(page: Any) -> bool:
    """Whether Pillow has a name for the compression of a page."""
    from PIL import TiffImagePlugin

    return int(page.compression) in TiffImagePlugin.COMPRESSION_INFO


def _by_tifffile(path: Path, file: Any, series: Any, kind: Kind, page: int | None) -> Array:
    pages, height, width, samples = kind.shape
    if series.dataoffset is None:
        _require_all_pieces(path, series.pages if page is None else [series.pages[page]])
    if page is None:
        array = series.asarray()
    elif series.dataoffset is not None:  # one block of values
        count = height * width * samples
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        file.filehandle.seek(series.dataoffset + page * count * dtype.itemsize)
        array = np.frombuffer(file.filehandle.read(count * dtype.itemsize), dtype)
    else:
        array = series.pages[page].asarray() if pages > 1 else series.asarray()
    if int(series.keyframe.planarconfig) == 2 and samples > 1:
        array = np.moveaxis(array.reshape(-1, samples, height, width), 1, 3)
    return array.reshape(-1, height, width, samples).astype(kind.dtype, copy=False)


def _by_pillow(path: Path, file: Any, kind: Kind, page: int | None) -> Array:
    """Through Pillow, from a copy whose tags have no meaning that it might obey."""
    from PIL import Image

    content = bytearray(path.read_bytes())
    wanted = range(kind.pages) if page is None else (page,)
    for number in wanted:
        tags = file.pages.get(number, aspage=True).tags
        for name, meant in (("PhotometricInterpretation", WHITE_IS_ZERO), ("Orientation", None)):
            tag = tags.get(name)
            if tag is not None and meant in (None, int(tag.value)):
                struct.pack_into(file.byteorder + FORMS[int(tag.dtype)], content, tag.valueoffset, 1)
    _, height, width, samples = kind.shape
    result = []
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as frames:
        for number in wanted:
            frames.seek(number)
            array = np.asarray(frames)
            if array.dtype.kind in "iu" and array.dtype.isnative and array.dtype.itemsize == kind.dtype.itemsize:
                array = array.view(kind.dtype)  # Pillow has one kind of each size, signed or not
            result.append(array.reshape(height, width, samples).astype(kind.dtype, copy=False))
    return np.stack(result)
