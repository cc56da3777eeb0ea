"""Whether a file that came is whole and what it should be: it is read to its end, whatever a server said of it. No
torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

from unet import files
from unet.data.io import images, nifti_header
from unet.data.io.gzipped import CHUNK, Unpacked, cut
from unet.errors import DataError, UnetError

LOAD_AGAIN = "Type the command again: the file is loaded anew. --from URL names another address."
PAGES = (b"<!doctype", b"<html", b"<?xml")
POINTER = b"version https://git-lfs"


def digests(path: Path) -> dict[str, str]:
    """MD5 and SHA-256 of a file, in hexadecimal digits."""
    found = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    try:
        with open(files.require_regular(path), "rb") as stream:
            while piece := stream.read(2**20):
                for total in found.values():
                    total.update(piece)
    except OSError as error:
        raise files.explain(error, path) from error
    return {name: total.hexdigest() for name, total in found.items()}


def verify(path: Path, name: str, expected: Mapping[str, str], where: str = "") -> str:
    """Check a file against digests, and as what its name says that it is. Returns its SHA-256. Raises DataError."""
    label = where or str(path)
    own = digests(path)
    require_no_page(path, label)
    for kind, value in expected.items():
        if own[kind] != value:
            raise DataError(
                f"{label}: its {kind.upper()} is {own[kind]}, and {value} is expected.",
                LOAD_AGAIN,
            )
    try:
        whole(path, name)
    except UnetError as error:
        raise DataError(error.message.replace(str(path), label, 1), LOAD_AGAIN) from error
    return own["sha256"]


def whole(path: Path, name: str) -> None:
    """Read a file to its end as what `name` says: NIfTI, TIFF, JSON; others are not looked into. Raises DataError."""
    lower = name.lower()
    if lower.endswith(nifti_header.SUFFIXES):
        head = nifti_header.read_header(path, grid=False)
        with contextlib.closing(Unpacked(path)) as stream:
            stream.skip(head.offset + math.prod(head.shape) * head.dtype.itemsize + head.rest)
            stream.finish(head.dtype.itemsize)
    elif lower.endswith((".tif", ".tiff")):
        with images.opened(path) as (_, load):
            load(None)
    elif lower.endswith(".json"):
        try:
            json.loads(files.read_text(path))
        except (ValueError, RecursionError) as error:
            raise cut(path, f"it is not valid JSON ({str(error)[:80]})") from error


def require_no_page(path: Path, label: str) -> None:
    """Raise DataError for what stands where a file should be: the page of a log-in or a proxy, a pointer of Git LFS."""
    with open(path, "rb") as stream:
        start = stream.read(CHUNK)[:64].lstrip().lower()
    if start.startswith(PAGES):
        raise DataError(
            f"{label}: is a web page, not the file: a log-in, or the notice of a proxy.",
            "Open the address in a browser to see it; --from URL names another one.",
        )
    if start.startswith(POINTER):
        raise DataError(f"{label}: is a pointer of Git LFS, not the file.", "Name another address with --from URL.")
