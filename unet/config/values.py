"""Converts typed text, or a value of a settings file, to the value of an option: type, bounds, choices. No torch."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import os
import re
import unicodedata
from typing import Any

from unet.errors import UsageError

NONE, TRUE, FALSE = "none", "true", "false"
NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
WHOLE = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
SEVERAL = re.compile(r"[-+\d.,eE\s'\"\[\]()]+", re.ASCII)  # "0.9, 0.999", [128, 128, 128], ['0', '1']
# characters that reverse the order of text: a name would not look like what it is
ORDER = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
MOST = 10**9  # largest whole number for options without a maximum
LONGEST = 4095, 255  # bytes of a path, and of each name in it


@dataclasses.dataclass(frozen=True)
class Option:
    """How one setting is spelled and checked.

    Aliases are spellings of the same setting; an alias that is a pair (spelling, value) is a switch that sets that
    value. `synonyms` are other words for a value; `value_aliases` are spellings of a switch that take such a word.
    `const` is the value of the flag when nothing follows it. `default_text` is what the help gives as default. The
    values of all uses of a `repeated` flag are kept; each takes one where the command has positional arguments, and
    those words after it that end with `suffixes`. `pattern` is what a text must match, and the same in words.
    `optional`: None is a value. `meant`: unknown spellings that probably mean this one. `common`: the short help shows
    it. `section`: of a task's own setting, the group that it belongs to.
    """

    help: str
    aliases: tuple[str | tuple[str, Any], ...] = ()
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    const: Any = None
    synonyms: tuple[tuple[str, Any], ...] = ()
    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    suffixes: tuple[str, ...] = ()
    value_aliases: tuple[str, ...] = ()
    default_text: str | None = None
    pattern: tuple[str, str] | None = None
    optional: bool = False
    common: bool = False
    section: str = ""
    meant: tuple[str, ...] = ()


def convert(name: str, option: Option, kind: type, value: Any) -> Any:
    """`value` (text, or an item of a settings file) as `kind`, within the option's bounds. Raises ValueError in
    words.
    """
    said = str(value) if isinstance(value, bool) and kind is str else value  # a file of when this was a switch
    word = said.strip().lower() if isinstance(said, str) else None
    for synonym, meaning in option.synonyms:
        if word is not None and synonym.lower() == word:
            return meaning
    if value is None and option.optional:
        return None
    nothing = value is None or (word == NONE if kind is not str else value == "None")
    if nothing and not (option.choices and NONE in option.choices):
        if option.optional:
            return None
        raise ValueError(f"{name} takes {_noun(option, kind)}, not {_shown(value)}")
    if option.const is not None and value == option.const:
        return value
    if kind is bool:
        if isinstance(value, bool) or word in (TRUE, FALSE):
            return value if isinstance(value, bool) else word == TRUE
        words = ", ".join(synonym for synonym, _ in option.synonyms) or "true or false"
        raise ValueError(f"{name} takes {words}, not {_shown(value)}")
    result = _text(name, option, value) if kind is str else _number(name, option, kind, value)
    if option.choices and result not in option.choices and not _matches(option, result):
        near = difflib.get_close_matches(str(result).lower(), [str(item) for item in option.choices], 1)
        other = f", or {option.pattern[1]}" if option.pattern else ""
        raise ValueError(
            f"{name} is one of {', '.join(map(str, option.choices))}{other}, not {_shown(value)}"
            + (f" (did you mean {near[0]}?)" if near else "")
        )
    return result


def _number(name: str, option: Option, kind: type, value: Any) -> Any:
    """A finite number within the option's bounds. Raises ValueError in words."""
    wrong = ValueError(f"{name} takes {_noun(option, kind)}, not {_shown(value)}")
    if isinstance(value, str):
        if not (WHOLE if kind is int else NUMBER).fullmatch(value):
            raise wrong
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong
    try:
        result = kind(value)
    except (ValueError, OverflowError):
        raise wrong from None
    fraction = kind is int and isinstance(value, float) and result != value
    if fraction or result != result or abs(result) == float("inf"):
        raise wrong
    highest = option.maximum if option.maximum is not None or kind is float else MOST
    for bound, outside, words in (
        (option.minimum, lambda a, b: a < b, "at least"),
        (highest, lambda a, b: a > b, "at most"),
        (option.above, lambda a, b: a <= b, "above"),
    ):
        if bound is not None and outside(result, bound):
            raise ValueError(f"{name} is {words} {bound:.10g}, not {_shown(value, quoted=False)}")
    return result


def _text(name: str, option: Option, value: Any) -> str:
    """Check a text: valid UTF-8, no control characters, not too long. Raises ValueError with a message for the user."""
    if option.pattern and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} takes {_noun(option, str)}, not {_shown(value)}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in ORDER for letter in value):
        raise ValueError(f"{name} {_shown(value)} holds a control character, or bytes that are not UTF-8")
    if value.startswith("-") and not option.pattern:
        raise ValueError(f"{name} {_shown(value)} begins with a dash (a file of this name: ./{_shown(value, False)})")
    if value.startswith("~"):
        value = os.path.expanduser(value)  # noqa: PTH111 (an unknown user is left as it is)
    if len(value.encode()) > LONGEST[0] or any(len(part.encode()) > LONGEST[1] for part in value.split("/")):
        raise ValueError(f"{name} {_shown(value)} is too long: at most {LONGEST[1]} bytes a name, {LONGEST[0]} a path")
    if option.pattern and not option.choices and not _matches(option, value):
        raise ValueError(f"{name} takes {option.pattern[1]}, not {_shown(value)}")
    return value


def _matches(option: Option, value: str) -> bool:
    return option.pattern is not None and re.fullmatch(option.pattern[0], value, re.ASCII) is not None


def convert_many(label: str, option: Option, kind: type, many: bool, raw: Any) -> Any:
    """The value of an option that may take several: `0.9 0.999`, `"0.9, 0.999"` and `[0.9, 0.999]` are the same."""
    if not many:
        return convert(label, option, kind, raw)
    items = list(raw) if isinstance(raw, list | tuple) else [raw]
    if raw == []:  # as a run's config.json has it
        return ()
    if kind is not str:
        none = [item.strip().lower() for item in items if isinstance(item, str)] == [NONE]
        if none or raw is None or (not items and isinstance(raw, list | tuple)):  # as a run's config.json has it
            return ()
        items = [part for item in items for part in _parts(item)]
    if not items:
        raise ValueError(f"{label} takes {_noun(option, kind)} or more" if kind is str else f"{label} takes numbers")
    return tuple(convert(label, option, kind, item) for item in items)


def _parts(item: Any) -> list[Any]:
    """The numbers in a text."""
    if not isinstance(item, str) or not SEVERAL.fullmatch(item) or not re.search(r"[,\s\[\]()'\"]", item):
        return [item]
    return [part for part in re.split(r"[,\s\[\]()'\"]+", item) if part]


def _noun(option: Option, kind: type) -> str:
    if option.pattern:
        return option.pattern[1]
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a word")


def _shown(value: Any, quoted: bool = True) -> str:
    """A value in a message: never longer than a line."""
    try:
        text = repr(value) if quoted else str(value)
    except ValueError:  # a whole number of more digits than Python prints
        text = "so large a number"
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def import_class(label: str, name: str, base: type, hint: str) -> type:
    """The class `package.module:Class`, a subclass of `base`, that the flag `label` names. Raises UsageError."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does at its top
        words = str(error).splitlines()[0] if str(error) else ""
        raise UsageError(f"{label} {name}: {type(error).__name__}: {words}.", hint) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UsageError(f"{label} {name}: {attribute} is no subclass of {base.__module__}.{base.__name__}.", hint)
    return found
