"""MD5 or SHA-256 sums of a data set's files against a list: what is missing, differs, or is not in it. No torch."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from unet import files, host
from unet.data.checks import Report
from unet.errors import DataError, StorageError, UnetError

COMPLETE = 420  # files of MLPerf's cache: 210 cases
SHOWN = 4
NAMES = {"md5": "MD5", "sha256": "SHA-256"}
KINDS = {"md5": "[0-9a-f]{32}", "sha256": "[0-9a-f]{64}"}


def some(names: Sequence[str]) -> str:
    """The first names of a list, in words."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def read_checksums(path: Path) -> dict[str, str]:
    """name -> sum of a list: JSON {"case_00000_x.npy": "md5", ...} (MLPerf's checksum.json), or the `sum  name` of
    md5sum or sha256sum, all of one kind.

    Raises DataError for anything else.
    """
    files.require_regular(path)
    try:
        text = files.read_text(path)
    except StorageError:
        raise
    except UnetError:  # not text
        text = "?"
    try:
        pairs = json.loads(text).items() if text.lstrip().startswith("{") else _lines(text)
        found = {str(name).replace("\\", "/").removeprefix("./"): str(value).lower() for name, value in pairs}
    except (ValueError, AttributeError, RecursionError):
        found = {}
    if not found or not any(all(re.fullmatch(sums, value) for value in found.values()) for sums in KINDS.values()):
        raise DataError(
            f"{path.absolute()}: not a list of MD5 sums, nor of SHA-256 sums.",
            'Give JSON {"case_00000_x.npy": "md5", ...}, or the lines of md5sum or sha256sum: sum, two spaces, name.',
        )
    return found


def _lines(text: str) -> list[tuple[str, str]]:
    rows = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name.lstrip(" *"), value) for value, _, name in (row.partition(" ") for row in rows)]


def verify(folder: Path, checksums: Path, own: Sequence[str], report: Report) -> None:
    """Compare the files `own` of a folder (names relative to it) with a list; what is wrong goes into the report."""
    listed, here = read_checksums(checksums), set(own)
    kind = next(kind for kind, sums in KINDS.items() if re.fullmatch(sums, next(iter(listed.values()))))
    sums: dict[str, str] = {}
    for name, future in host.process_map(
        functools.partial(_digest, folder, kind), sorted(here & set(listed)), "checksums", "file"
    ):
        try:
            sums[name] = future.result()
        except host.ProcessLost:
            report.errors.append(f"{name}: not checked: a process was killed")
        except UnetError as error:
            report.errors.append(error.message)
    differ = sorted(name for name, value in sums.items() if value != listed[name])
    missing, extra = sorted(set(listed) - here), sorted(here - set(listed))
    if missing:
        report.errors.append(f"{checksums.name}: {len(missing)} files of the list are missing: {some(missing)}")
    if differ:
        report.errors.append(
            f"{checksums.name}: {len(differ)} files differ from the list's {NAMES[kind]}: {some(differ)}"
        )
    if extra:
        report.warnings.append(f"{checksums.name}: {len(extra)} files are not in the list: {some(extra)}")
    if len(listed) == COMPLETE != len(here):
        report.errors.append(f"{folder}: holds {len(here)} files; a complete set has {COMPLETE}")
    report.facts["checksums"] = f"{len(sums) - len(differ)} of {len(listed)} files as listed"


def _digest(folder: Path, kind: str, name: str) -> str:
    """In a worker: the sum of one file."""
    total = hashlib.new(kind, usedforsecurity=False)
    try:
        with open(folder / name, "rb") as stream:
            while piece := stream.read(2**20):
                total.update(piece)
    except OSError as error:
        raise files.explain(error, folder / name) from error
    return total.hexdigest()
