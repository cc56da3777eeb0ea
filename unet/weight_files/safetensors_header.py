"""The header of a safetensors file: names, types and sizes of its tensors, and the facts that this program writes with
them. No torch: the command line reads the task of weights before torch is imported.

The file is 8 bytes (length of the header, little endian), the header (JSON), and the tensors' bytes one after another.
Our facts are one JSON text in the header's `__metadata__`, beside a digest of the whole content.
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
from unet.files import explain, misfit, require_regular

LONGEST = 100_000_000  # bytes of a header: what the safetensors library allows
WIDTHS = {  # types of elements by their bytes
    8: ("F64", "I64", "U64", "C64"),
    4: ("F32", "I32", "U32"),
    2: ("F16", "BF16", "I16", "U16"),
    1: ("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"),
}
SIZES = {name: width for width, names in WIDTHS.items() for name in names}
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch's form before 1.6: a number
TENSOR = {"dtype": str, "shape": [int], "data_offsets": [int]}
FACTS = {  # of weights and states; `content` is how a state's values hang together
    "format": str,
    "task?": str,
    "run_name?": str,
    "run_id?": (str, None),
    "training?": [str],
    "validation?": [str],
    "settings?": {str: object},
    "epoch?": (int, None),
    "step?": (int, None),
    "score?": (float, None),
    "ranks?": int,
}


@dataclasses.dataclass(frozen=True)
class Header:
    """What stands before the tensors. `table` is name -> {"dtype", "shape", "data_offsets"}; `facts` are empty for
    another program's file; `start` is the first byte of the tensors."""

    table: Mapping[str, Any]
    facts: Mapping[str, Any]
    digest: str | None
    text: str
    start: int


def damaged(path: Path, why: str) -> DamagedError:
    return DamagedError(f"{path.absolute()}: {why}.", "Copy the file again, or name another one.")


def kind(path: Path) -> str:
    """What a file holds, by its first bytes: "safetensors", "zip" or "pickle" (torch's two forms). Raises DamagedError
    for anything else, StorageError for what is no regular file."""
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
    if first[:1] == b"\x80" and first[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    zeros = "; it begins with zeros" if not any(first) else ""
    raise damaged(path, f"not a file of weights, or damaged ({size} bytes{zeros})")


def read(path: Path) -> Header:
    """The header of a safetensors file, checked against the size of the file. Raises DamagedError."""
    try:
        with open(require_regular(path), "rb") as stream:
            return parse(path, stream, os.fstat(stream.fileno()).st_size)
    except OSError as error:
        raise explain(error, path) from error


def parse(path: Path, stream: BinaryIO, size: int) -> Header:
    """The header at the beginning of `stream`, of a file of `size` bytes. Raises DamagedError."""
    length = int.from_bytes(stream.read(8), "little")
    if length > min(LONGEST, size - 8):
        raise damaged(path, f"cut short, or damaged (a header of {length} bytes in a file of {size})")
    try:
        content = json.loads(stream.read(length).decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"damaged (its header is not valid JSON: {str(error)[:80]})") from error
    about = content.pop("__metadata__", {}) if isinstance(content, dict) else {}
    wrong = misfit(content, {str: TENSOR}, "its header") or misfit(about, {str: str}, "its header's metadata")
    wrong = wrong or _wrong_sizes(content, size - 8 - length)
    if wrong:
        raise damaged(path, f"cut short, or damaged ({wrong})")
    text, facts = about.get("facts", ""), {}
    if text:
        try:
            facts = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"damaged (its facts are not valid JSON: {str(error)[:80]})") from error
    require_facts(facts, path)
    return Header(content, facts, about.get("digest"), text, 8 + length)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _wrong_sizes(table: Mapping[str, Any], room: int) -> str:
    """What is wrong with the places of the tensors in `room` bytes; empty where they fill it exactly."""
    end = 0
    for name, about in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        size, shape, places = SIZES.get(about["dtype"]), about["shape"], about["data_offsets"]
        if size is None:
            return f"{name} has the unknown type {about['dtype'][:20]!r}"
        if min(shape, default=0) < 0 or len(shape) > 64:
            return f"{name} has the shape {shape[:8]}"
        if len(places) != 2 or places[0] != end or places[1] - end != size * math.prod(shape):
            return f"{name}, {about['dtype']} {shape}, does not lie in the bytes {places}"
        end = places[1]
    return f"its tensors take {end} bytes, and {room} are there" if end != room else ""


def require_facts(facts: Any, path: Path) -> None:
    """Raise CheckpointError where facts (of any version of this program; empty for others') have not their types."""
    wrong = misfit(facts, FACTS, "its list of facts") if facts else ""
    if wrong:
        raise CheckpointError(f"{path.absolute()}: {wrong}.", "Give weights that `python -m unet train` wrote.")


def content_digest(text: str, table: Mapping[str, Any], pieces: Iterable[Any]) -> str:
    """Thirty-two hex digits over the facts (as text), the table and the bytes of the tensors."""
    total = hashlib.blake2b(digest_size=16)
    total.update(text.encode() + b"\0" + json.dumps(table, sort_keys=True).encode() + b"\0")
    for piece in pieces:
        total.update(piece)
    return total.hexdigest()
