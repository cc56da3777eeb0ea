"""Tables and text that fit the terminal: on narrow ones columns are narrower, then split into several blocks."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from unet.tasks.base import Column

UNLIMITED = 10_000  # where standard output is no terminal and COLUMNS is not set
NAME, CELL = 28, 13  # columns of a table where there is room
LEAST = 30  # narrower ones wrap


def width() -> int:
    """Width of standard output in characters, from COLUMNS or the terminal."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return max(LEAST, int(columns))
    try:
        return max(LEAST, os.get_terminal_size(sys.stdout.fileno()).columns or UNLIMITED)
    except (OSError, AttributeError, ValueError):  # no terminal, or no file at all
        return UNLIMITED


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], name: int = NAME) -> list[str]:
    """Lines of a table: the first column (`name` wide) left-aligned, the others right-aligned. If it is wider than the
    terminal, the columns are split into several blocks, and long names are shortened."""
    room, rows = width(), [list(heads), *map(list, rows)]
    sizes = [max(len(row[column]) for row in rows) + 2 for column in range(len(heads))]
    first, cells = max(name, sizes[0] - 2), [max(CELL, size - 1) for size in sizes[1:]]
    if 2 + first + sum(cells) <= room:
        return [
            f"  {row[0]:<{first}}" + "".join(f"{cell:>{size}}" for cell, size in zip(row[1:], cells, strict=True))
            for row in rows
        ]
    first = min(sizes[0] - 2, max(8, room - 2 - max(sizes[1:], default=0)))
    groups: list[list[int]] = []
    for column in range(1, len(heads)):
        if not groups or 2 + first + sum(sizes[other] for other in [*groups[-1], column]) > room:
            groups.append([])
        groups[-1].append(column)
    lines: list[str] = []
    for group in groups:
        lines += [""] if lines else []
        lines += [f"  {_cut(row[0], first):<{first}}" + "".join(f"{row[i]:>{sizes[i]}}" for i in group) for row in rows]
    return lines


def _cut(name: str, room: int) -> str:
    """A name shortened to `room` characters; its end is kept."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


def text(line: str, indent: int = 2) -> list[str]:
    """Wrap a line to the terminal; all but the first line are indented by `indent` spaces."""
    room = width()
    if len(line) <= room:
        return [line]
    return textwrap.wrap(
        line,
        room,
        subsequent_indent=" " * min(indent, room // 3),
        break_long_words=False,
        break_on_hyphens=False,
    )


def note(words: str) -> list[str]:
    """Notes below a table, indented by two spaces; wrapped again if a line does not fit."""
    lines = [f"  {line}" for line in words.splitlines()]
    if max(map(len, lines), default=0) <= width():
        return lines
    return textwrap.wrap(" ".join(words.split()), width(), initial_indent="  ", subsequent_indent="  ")


def score_cells(columns: Sequence[Column], name: str, values: Mapping[str, float]) -> list[str]:
    """A row of a table of scores; a dash for NaN."""
    return [name, *("-" if math.isnan(values[key]) else form.format(values[key]) for key, _, form in columns)]


def csv_text(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """The rows as CSV, with these columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
