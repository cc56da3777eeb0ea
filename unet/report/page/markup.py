"""HTML and SVG as text: tags, escaped words, numbers as people read them."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from unet.files import digest, jsonable

VOID = ("img", "input", "meta", "link", "br")
NONE = "–"  # where there is no number
LONGEST, DIGEST = 60, 8  # bytes of a word in the name of a file, digits of its digest


def escaped(value: Any) -> str:
    return html.escape(str(value))


def tag(_name: str, *inner: str, **attributes: Any) -> str:
    """An element. `inner` is HTML; the values of attributes are escaped, None and False leave an attribute out, True
    gives it no value; `_` in a name stands for `-`, one at its end for nothing (class_)."""
    words = [_name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{escaped(value)}"')
    return f"<{' '.join(words)}>" + ("" if _name in VOID else f"{''.join(inner)}</{_name}>")


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", numbers: int = 1, last: int | None = None
) -> str:
    """A table in a box of its own, which scrolls where the screen is narrow. Heads and cells are HTML; the first column
    names the row; columns from `numbers` on (and before `last`, where the table has long rows) are numbers, to the
    right."""

    def kind(column: int) -> str | None:
        return "n" if column >= numbers and (last is None or column < last) else None

    head = tag("tr", *(tag("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(heads)))
    lines = []
    for row in rows:
        first = tag("th", row[0], scope="row")
        lines.append(tag("tr", first, *(tag("td", cell, class_=kind(i)) for i, cell in enumerate(row[1:], 1))))
    words = tag("caption", escaped(caption)) if caption else ""
    inner = tag("table", words, tag("thead", head), tag("tbody", *lines), class_=None if last is None else "long")
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption or "table")


def folded(title: str, *inner: str, open_: bool = False, id_: str | None = None) -> str:
    """A part that is shown on a click; `title` is HTML."""
    return tag("details", tag("summary", title), *inner, open=open_, id=id_)


def script_json(value: Any, id_: str) -> str:
    """Data for scripts and machines; no text in it can end the element."""
    text = json.dumps(jsonable(value), allow_nan=False, separators=(",", ":"))
    text = text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script type="application/json" id="{escaped(id_)}">{text}</script>'


def figure(value: float | None, signed: bool = False) -> str:
    """A number with about three digits that matter."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value) if abs(value) >= 1e-6 else 0.0
    form = ".3f" if 0.001 <= size < 10 or not size else ".2f" if 10 <= size < 100 else ".1f" if size >= 1 else ".2e"
    if size >= 1000:
        form = ",.0f"
    value = value if size else 0.0
    return minus(f"{value:{'+' if signed else ''}{form}}").replace(",", "\u202f")


def minus(text: str) -> str:
    """A number with the sign that is as wide as a plus, in place of the hyphen."""
    return text.replace("-", "\u2212")


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes in words."""
    if count is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}" if count < 100 else f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def file_name(*parts: str) -> str:
    """Words as one name of a file, with the letters of all alphabets. Where that changes them a short digest of them
    follows, so that other words have another name."""
    names = [short_name(part) for part in parts]
    changed = [] if names == list(parts) else [digest("\0".join(parts).encode("utf-8", "surrogateescape"))[:DIGEST]]
    return "-".join([*names, *changed])


def short_name(part: str) -> str:
    """Letters, digits and _ of a word, at most `LONGEST` bytes."""
    kept = re.sub(r"\W+", "_", part).encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    return kept.strip("_") or "run"
