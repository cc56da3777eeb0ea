"""Reading a text log: its lines with their numbers, whatever ends them and whoever wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unet.files import require_regular

LARGEST = 2**28  # bytes of a log: weeks of samples of eight cards are a tenth of it
PREFIX = re.compile(r"^\[\d+,\d+\]<std(?:out|err)>:\s?")  # mpirun --tag-output puts it before each line


class Line(NamedTuple):
    """A line without its end; `whole`: the end was there, so that nothing of the line is lost."""

    number: int
    text: str
    whole: bool


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of a log. Raises UnetError where `path` is no readable file."""
    pieces = text_of(require_regular(path).read_bytes()).split("\n")
    for number, piece in enumerate(pieces, 1):
        if piece or number < len(pieces):
            yield Line(number, PREFIX.sub("", piece.rstrip("\r")), number < len(pieces))


def text_of(content: bytes) -> str:
    """UTF-8, or UTF-16 where its mark says so (PowerShell's `>` writes it); other bytes become question marks."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="replace")


def number_of(cell: str) -> float | None:
    """The number in a cell, NaN included; None for an empty cell. Raises ValueError for anything else."""
    return float(cell) if cell.strip() else None


def passed_over(path: Path, places: list[int], what: str) -> list[str]:
    """A sentence on lines that were not read, empty where there are none."""
    if not places:
        return []
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    words = "line" if len(places) == 1 else "lines"
    return [f"{path}, {words} {', '.join(map(str, places[:5]))}{more}: {what}"]
