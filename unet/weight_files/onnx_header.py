"""The outside of an ONNX file, read without the onnx package: its parts, its metadata, the files that it names.

The file is one message of protocol buffers (`ModelProto` of onnx.proto): fields in sequence, each a key (its number and
kind) and a value. A field that may occur again may stand at the end of the file too, so this program's metadata are
appended: one entry with JSON, and after it one with a digest of every byte before.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unet.errors import CheckpointError, UnetError
from unet.files import explain, path_inside, real_path, require_regular
from unet.weight_files.safetensors_header import damaged

KEY, DIGEST = "unet", "unet_digest"  # names of the entries
LARGEST = 2**31 - 1  # bytes of a message
DEEPEST = 32  # messages within messages that are followed
METADATA = 14  # the field of ModelProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields
PARTS = {  # message -> number of a field -> the message in it; those that lead to tensors
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}


class Field(NamedTuple):
    """A field of a message: its number, where it starts, its bytes (empty for a number)."""

    number: int
    start: int
    content: memoryview


def read(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file, by name. Raises DamagedError where it is cut short."""
    with opened(path) as content:
        return dict(map(entry, (field.content for field in _parts(path, content) if field.number == METADATA)))


def verify(path: Path) -> list[Path]:
    """The files that hold tensors of this one, all beside it. Raises DamagedError unless every byte of this one is as
    this program wrote it, CheckpointError where a file that it names does not lie beside it."""
    with opened(path) as content:
        last = _parts(path, content)[-1]
        name, told = entry(last.content) if last.number == METADATA else ("", "")
        if name != DIGEST:
            raise damaged(path, "damaged (it does not end with this program's digest)")
        now = hashlib.blake2b(content[: last.start], digest_size=16).hexdigest()
        if now != told:
            raise damaged(path, f"damaged (digest {now[:8]}, {told[:8]} when it was written)")
        names = sorted(_external(path, content))
    for name in names:
        require_beside(path, name)
    return [path.parent / name for name in names]


def require_beside(path: Path, name: str) -> None:
    """Raise CheckpointError unless `name`, a file that another one names, is a regular file in the same folder."""
    try:
        inside = "/" not in name and real_path(path_inside(path.parent, name)).parent == real_path(path.parent)
    except UnetError:
        inside = False
    if not inside:
        raise CheckpointError(
            f"{path.absolute()}: names {name[:80]!r}, which is no file of its folder; it was not opened.",
            "Export the weights again: python -m unet export --weights FILE",
        )
    require_regular(path.parent / name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[memoryview]:
    """The bytes of a file, mapped. Raises DamagedError for one that is no message."""
    try:
        with open(require_regular(path), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if not 0 < size <= LARGEST:
                raise damaged(path, f"no ONNX file ({size} bytes; at most {LARGEST})")
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise explain(error, path) from error
    yield memoryview(mapped)  # the map ends with the last view of it, which may be that of a traceback


def _parts(path: Path, content: memoryview) -> list[Field]:
    """The fields of the file. Raises DamagedError."""
    try:
        return list(fields(content))
    except ValueError as error:
        raise damaged(path, f"cut short, or damaged ({error})") from error


def fields(content: memoryview) -> Iterator[Field]:
    """The fields of a message. Raises ValueError for bytes that are none."""
    at, size = 0, len(content)
    while at < size:
        start = at
        key, at = _number(content, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            _, at = _number(content, at)
            inner = content[:0]
        elif kind in (FIXED64, FIXED32, BYTES):
            length, at = _number(content, at) if kind == BYTES else ({FIXED64: 8, FIXED32: 4}[kind], at)
            if at + length > size:
                raise ValueError(f"a part of {length} bytes at byte {at}, and {size - at} are there")
            inner, at = content[at : at + length] if kind == BYTES else content[:0], at + length
        else:
            raise ValueError(f"byte {start} begins no part")
        yield Field(number, start, inner)


def _number(content: memoryview, at: int) -> tuple[int, int]:
    """(a number of seven bits a byte, where it ends)."""
    value = shift = 0
    while at < len(content) and shift < 70:
        byte = content[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError(f"it ends within a number, at byte {at}")


def entry(content: memoryview) -> tuple[str, str]:
    """(name, value) of an entry of metadata; what is no text is replaced."""
    found = {field.number: bytes(field.content).decode(errors="replace") for field in fields(content)}
    return found.get(1, ""), found.get(2, "")


def _external(path: Path, content: memoryview) -> set[str]:
    """The names of the files that hold tensors outside of this one."""
    found: set[str] = set()

    def follow(message: str, part: memoryview, depth: int) -> None:
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} parts within each other")
        for field in fields(part):
            inner = PARTS[message].get(field.number)
            if inner == "external":
                name, value = entry(field.content)
                found.update([value] if name == "location" else [])
            elif inner is not None:
                follow(inner, field.content, depth + 1)

    try:
        follow("model", content, 0)
    except ValueError as error:
        raise damaged(path, f"damaged ({error})") from error
    return found


def appended(content: bytes, text: str) -> bytes:
    """The bytes of a model with this program's metadata, `text`, and the digest of all that is before it."""
    content += _entry(KEY, text)
    return content + _entry(DIGEST, hashlib.blake2b(content, digest_size=16).hexdigest())


def _entry(name: str, value: str) -> bytes:
    """An entry of metadata as a field of the model."""
    parts = b"".join(_field(number, text.encode()) for number, text in ((1, name), (2, value)))
    return _field(METADATA, parts)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
