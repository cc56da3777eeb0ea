"""The header of a safetensors file: names, types and sizes of its tensors, and this program's metadata. No torch: the
command line reads the task of weights before torch is imported.

The file is 8 bytes (length of the header, little endian), the header (JSON), and the tensors' bytes in sequence.
This program's metadata ("facts") is one JSON text in the header's `__metadata__`, beside a digest of the content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from unet.errors import CheckpointError, DamagedError
from unet.files import explain, require_regular, schema_error

MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library
WIDTHS = {  # types of elements by their bytes
    8: ("F64", "I64", "U64", "C64"),
    4: ("F32", "I32", "U32"),
    2: ("F16", "BF16", "I16", "U16"),
    1: ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"),
}
SIZES = {name: width for width, names in WIDTHS.items() for name in names}
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of torch's format before 1.6, as a pickle
ONNX = [bytes([number << 3 | 2]) for number in (2, 3, 4, 6, 7, 8, 14)]  # what follows the version of the format
TENSOR = {"dtype": str, "shape": [int], "data_offsets": [int]}
FACTS = {  # the metadata of weights and states
    "format": str,
    "task?": str,
    "run_name?": str,
    "run_id?": (str, None),
    "data?": (str, None),
    "training?": [str],
    "validation?": [str],
    "trained_before?": [str],  # by the weights that the run began from
    "settings?": {str: object},
    "epoch?": (int, None),
    "step?": (int, None),
    "score?": (float, None),
    "ranks?": int,
}


@dataclasses.dataclass(frozen=True)
class Header:
    """`table`: name -> {"dtype", "shape", "data_offsets"}; `facts`: this program's metadata, empty in another program's
    file; `start`: offset of the tensors' first byte."""

    table: Mapping[str, Any]
    facts: Mapping[str, Any]
    digest: str | None
    text: str
    start: int


def damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path.absolute()}: {why}.", "Copy the file again, or name another one.")


def kind(path: Path) -> str:
    """The format of a file, by its first bytes: "safetensors", "zip" or "pickle" (torch's two), "onnx", "openvino" (the
    .xml file). Raises DamagedError for another format, StorageError if it is no regular file."""
    try:
        with open(require_regular(path), "rb") as stream:
            first, size = stream.read(16), os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise explain(error, path) from error
    if not size:
        raise damaged(path, "empty (0 bytes)")
    if first[:4] == b"PK\x03\x04":
        return "zip"
    if first[4:9] == b"\0\0\0\0{":
        return "safetensors"
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if first[:1] == b"\x08" and first[1:2] < b"\x20" and first[2:3] in ONNX:
        return "onnx"
    if first[:5] in (b"<?xml", b"<net "):
        return "openvino"
    zeros = "; it begins with zeros" if not any(first) else ""
    raise damaged(path, f"not a file of weights, or damaged ({size} bytes{zeros})")


def read(path: Path) -> Header:
    """The header of a safetensors file, checked against the file's size. Raises DamagedError."""
    try:
        with open(require_regular(path), "rb") as stream:
            return parse(path, stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise explain(error, path) from error


def parse(path: Path, stream: BinaryIO, size: int) -> Header:
    """The header at the beginning of `stream`, of a file of `size` bytes. Raises DamagedError."""
    length = int.from_bytes(stream.read(8), "little")
    if length > min(MAX_HEADER, size - 8):
        raise damaged(path, f"cut short, or damaged (a header of {length} bytes in a file of {size})")
    try:
        content = json.loads(stream.read(length).decode(), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"damaged (its header is not valid JSON: {str(error)[:80]})") from error
    about = content.pop("__metadata__", {}) if isinstance(content, dict) else {}
    wrong = schema_error(content, {str: TENSOR}, "its header") or schema_error(
        about, {str: str}, "its header's metadata"
    )
    if wrong := wrong or _offset_error(content, size - 8 - length):
        raise damaged(path, f"cut short, or damaged ({wrong})")
    text, facts = about.get("facts", ""), {}
    if text:
        try:
            facts = json.loads(text, object_pairs_hook=_unique_keys)
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"damaged (its facts are not valid JSON: {str(error)[:80]})") from error
    require_facts(facts, path)
    return Header(content, facts, about.get("digest"), text, 8 + length)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _offset_error(table: Mapping[str, Any], room: int) -> str:
    """What is wrong with the tensors' offsets in `room` bytes, which they must fill exactly; empty if nothing."""
    end = 0
    for name, about in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        size, shape, offsets = SIZES.get(about["dtype"]), about["shape"], about["data_offsets"]
        if size is None:
            return f"{name} has the unknown type {about['dtype'][:20]!r}"
        if min(shape, default=0) < 0 or len(shape) > 64:
            return f"{name} has the shape {shape[:8]}"
        if len(offsets) != 2 or offsets[0] != end or offsets[1] - end != size * math.prod(shape):
            return f"{name}, {about['dtype']} {shape}, does not match its offsets {offsets}"
        end = offsets[1]
    return f"its tensors take {end} bytes, and {room} are there" if end != room else ""


def require_facts(facts: Any, path: Path) -> None:
    """Raise CheckpointError if metadata (of any version of this program) have wrong types."""
    wrong = schema_error(facts, FACTS, "its list of facts") if facts else ""
    if wrong:
        raise CheckpointError(f"{path.absolute()}: {wrong}.", "Give weights that `python -m unet train` wrote.")


def content_digest(text: str, table: Mapping[str, Any], pieces: Iterable[Any]) -> str:
    """Thirty-two hex digits of BLAKE2b over the metadata (as text), the table and the tensors' bytes."""
    total = hashlib.blake2b(digest_size=16)
    total.update(text.encode() + b"\0" + json.dumps(table, sort_keys=True).encode() + b"\0")
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()
