"""The settings in the command line that a log holds, ours or that of a program whose flags we know."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from unet.config.options import Declared, fields, normalize_dashes, read, spellings
from unet.config.schema import Config

# what the benchmark's program takes where nothing is typed, in all of its versions
DEFAULTS: Mapping[str, Any] = {"batch_size": 64, "epochs": 25, "lr": 1e-4, "layers": 4}


def words_of(text: str) -> list[str]:
    """The words of a command: `sys.argv` as Python prints it, or a line as it was typed."""
    try:
        found = ast.literal_eval(text)
        if isinstance(found, list):
            return [str(word) for word in found]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def settings_of(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """(values, sources) by the names that they have here; a flag that is not known keeps its own name."""
    declared: dict[str, Declared] = {
        name: item for kind in Config.GROUPS.values() for name, item in fields(kind).items()
    }
    declared = {name: item for name, item in declared.items() if not item.option.positional}
    flags = arguments(words)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    if words and words[0].endswith(".py"):
        values, sources = dict(DEFAULTS), dict.fromkeys(DEFAULTS, "default of the benchmark's program")
    for name, value in _unknown(flags, set(spellings(declared))).items():
        values[name], sources[name] = value, f"flag --{name.replace('_', '-')}"
    for name, (value, spelling) in read(declared, flags).given.items():
        values[name], sources[name] = value, f"flag {spelling}"
    return values, sources


def arguments(words: Sequence[str]) -> list[str]:
    """The words after the program's name and the subcommand."""
    first = next((place for place, word in enumerate(words) if word.startswith("-") and word != "-m"), len(words))
    return list(words[first:])


def _unknown(flags: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Flags of the log that are none of the common ones, with one value each, or true."""
    found: dict[str, Any] = {}
    for place, word in enumerate(flags):
        spelling, equals, attached = normalize_dashes(word).partition("=")
        if not spelling.startswith("--") or spelling in known:
            continue
        after = flags[place + 1] if place + 1 < len(flags) else "-"
        text = attached if equals else after
        found[spelling[2:].replace("-", "_")] = value_of(text) if equals or not after.startswith("-") else True
    return found


def value_of(text: str) -> Any:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
