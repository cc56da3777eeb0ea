"""A dataclass field is a flag: its name, aliases, type, bounds and help are declared at the field and nowhere else.

`option(...)` declares a field, `parser(...)` makes the text of --help, `read(...)` parses a command line and reports
all mistakes at once. No torch, no third-party package.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from unet.config.values import FALSE, NONE, NUMBER, SEVERAL, TRUE, Option, convert_many

NARROW, WIDE = 40, 80  # columns of the help


def option(default: Any, help: str, **how: Any) -> Any:
    """A dataclass field with its flag. Keywords are those of `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, optional=default is None, **how)})


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def shape(hint: Any) -> tuple[type, bool]:
    """(element type, whether many) of a field's annotation: `int | None` -> (int, False), `tuple[int, ...]` -> (int,
    True).
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(item for item in typing.get_args(hint) if item is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


class Declared(NamedTuple):
    """A setting as it is declared: its option, the type of an element, whether it takes many, its default."""

    option: Option
    kind: type
    many: bool
    default: Any


def fields(group: type) -> dict[str, Declared]:
    """name -> declaration of the options of a dataclass."""
    return _fields(group)


@functools.cache
def _fields(group: Any) -> dict[str, Declared]:
    hints = typing.get_type_hints(group)
    return {
        field.name: Declared(field.metadata["option"], *shape(hints[field.name]), field.default)
        for field in dataclasses.fields(group)
        if "option" in field.metadata
    }


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((WIDE, 24)).columns
        super().__init__(prog, max_help_position=28, width=max(NARROW, min(WIDE, columns)))

    def start_section(self, heading: str | None) -> None:
        super().start_section(textwrap.fill(heading or "", self._width - 1))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action)) if action.nargs != 0 else ""
        return f"{action.option_strings[0]} {values}".strip()


def parser(
    prog: str,
    description: str,
    sections: Mapping[str, Mapping[str, Declared]],
    usage: str | None = None,
    about_help: str = "show this text",
) -> argparse.ArgumentParser:
    """The help of a command: a section for each title, with its settings by name."""
    result = argparse.ArgumentParser(
        prog=prog, description=description, usage=usage or f"{prog} [options]", formatter_class=_Help, add_help=False
    )
    for index, (title, declared) in enumerate(sections.items()):
        section = result.add_argument_group(title)
        if index == 0:
            section.add_argument("-h", "--help", action="help", help=about_help)
        for name, item in declared.items():
            _add(section, name, item)
    return result


def title_of(group: type) -> str:
    """The title of a group: the first line of its docstring."""
    return (group.__doc__ or group.__name__).strip().splitlines()[0].rstrip(".")


def _add(section: Any, name: str, declared: Declared) -> None:
    option, kind, many, default = declared
    metavar = option.metavar or (
        "|".join(map(str, option.choices)) if option.choices and len(option.choices) < 6 else None
    )
    how: dict[str, Any] = {"metavar": metavar or {int: "N", float: "X"}.get(kind, name.rsplit("_", 1)[-1].upper())}
    if option.positional:
        section.add_argument(name, nargs="*", metavar=option.metavar, help=_describe(option, default))
        return
    if kind is bool:
        how = {"action": "store_true"}
    elif many and not option.repeated:
        how["nargs"] = "+"
    elif option.const is not None:
        how["nargs"] = "?"
    section.add_argument(flag(name), help=_describe(option, default), **how)


def _describe(option: Option, default: Any) -> str:
    text = option.help
    plain = [alias for alias in option.aliases if isinstance(alias, str)]
    switches = [f"{alias[0]} = {alias[1]}" for alias in option.aliases if not isinstance(alias, str)]
    words = [f"{spelling} {'|'.join(word for word, _ in option.synonyms)}" for spelling in option.value_aliases]
    also = [*plain, *switches, *words]
    if option.choices and option.metavar and "|" not in option.metavar and str(option.choices[0]) not in text:
        text += ": " + ", ".join(map(str, option.choices))
    if also:
        text += f" (also {', '.join(also)})"
    default_text = "on" if default is True else None if default is None or default is False else str(default)
    if isinstance(default, tuple):
        default_text = " ".join(map(str, default))
    default_text = option.default_text or default_text
    return (text + (f" [{default_text}]" if default_text else "")).replace("%", "%%")


def normalize_dashes(token: str) -> str:
    """`--batch_size=4` -> `--batch-size=4`: in option names `_` and `-` are the same; in values they are not."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One spelling of an option: a flag with a value, or a switch that sets `value` (and `off` if it is negated)."""

    name: str
    option: Option
    kind: type
    many: bool
    switch: bool = False
    value: Any = None
    off: Any = None


@dataclasses.dataclass
class Reading:
    """A parsed command line: `given` {setting: (value, spelling)}, `mistakes`, notices (`remarks`); `wrong`: the
    settings with invalid values, "*" for an unknown option; `unknown`: those."""

    given: dict[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    mistakes: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)
    wrong: set[str] = dataclasses.field(default_factory=set)
    unknown: list[str] = dataclasses.field(default_factory=list)


def spellings(declared: Mapping[str, Declared]) -> dict[str, Spelling]:
    """All spellings of these settings, with `-` for `_`."""
    found: dict[str, Spelling] = {}
    for name, (option, kind, many, _) in declared.items():
        if option.positional:
            continue
        plain = Spelling(name, option, kind, many)
        for spelling in (flag(name), *(alias for alias in option.aliases if isinstance(alias, str))):
            on = dataclasses.replace(plain, switch=True, value=True, off=False)
            found[normalize_dashes(spelling)] = on if kind is bool else plain
        if kind is bool:
            found["--no-" + flag(name)[2:]] = dataclasses.replace(plain, switch=True, value=False, off=True)
        found |= {normalize_dashes(spelling): plain for spelling in option.value_aliases}
        for alias in option.aliases:
            if not isinstance(alias, str):
                off = (not alias[1]) if kind is bool else None
                found[normalize_dashes(alias[0])] = dataclasses.replace(plain, switch=True, value=alias[1], off=off)
    return found


def read(declared: Mapping[str, Declared], argv: Sequence[str]) -> Reading:
    """Parse the arguments of a command. Mistakes are collected, not raised."""
    known, result = spellings(declared), Reading()
    positional = [(name, spec) for name, spec in declared.items() if spec[0].positional]
    uses: dict[str, list[tuple[str, Any]]] = {}
    rest: list[str] = []
    words = list(argv)
    position, literal = 0, False
    while position < len(words):
        token = words[position]
        position += 1
        if literal or not token.startswith("-") or NUMBER.fullmatch(token) or token == "-":
            rest.append(token)
            continue
        if token == "--":
            literal = True
            continue
        spelling, equals, attached = normalize_dashes(token).partition("=")
        spec = known.get(spelling)
        if spec is None:
            own = next((flag(spec.name) for spec in known.values() if spelling in spec.option.meant), None)
            near = f" (did you mean {own}?)" if own else meant(spelling, known)
            result.mistakes.append(f"unknown option {_short(spelling, quoted=False)}{near}")
            result.unknown.append(spelling)
            result.wrong.add("*")
            while position < len(words) and not positional and not words[position].startswith("-"):
                position += 1  # what belongs to it
            continue
        values = [attached] if equals else list(values_after(spec, words[position:], bool(positional)))
        position += 0 if equals else len(values)
        try:
            uses.setdefault(spec.name, []).extend((spelling, value) for value in _used(spelling, spec, values))
        except ValueError as error:
            result.mistakes.append(str(error))
            result.wrong.add(spec.name)
    if rest and positional:
        uses[positional[0][0]] = [(positional[0][1][0].metavar or "", tuple(rest))]
    elif rest:
        result.mistakes += [f"unexpected {_short(token)}" for token in rest]
    for name, each in uses.items():
        _take(result, name, declared[name], each)
    return result


def values_after(spec: Spelling, following: Sequence[str], positional: bool) -> Iterator[str]:
    """The words after a flag that are its values."""
    for count, word in enumerate(following):
        if spec.switch:
            if count == 0 and word.lower() in (TRUE, FALSE):
                yield word
            return
        if word.startswith("-") and word != "-" and not re.match(r"-(\.?\d|inf|nan)", word, re.IGNORECASE):
            return
        named = word.lower().endswith(spec.option.suffixes)
        if count and (not spec.many or (spec.option.repeated and positional and not named)):
            return
        numbers = spec.kind is not str and (SEVERAL.fullmatch(word) or word.lower() == "none")
        if count and positional and not (numbers or named) and word not in (spec.option.choices or ()):
            return  # an input file
        yield word


def _used(spelling: str, spec: Spelling, values: list[str]) -> list[Any]:
    """The values that one use of a flag gives. Raises ValueError in words."""
    if spec.switch:
        word = values[0].lower() if values else TRUE
        if word not in (TRUE, FALSE):
            raise ValueError(f"{spelling} takes no value, or true or false, not {_short(values[0])}")
        chosen = spec.value if word == TRUE else spec.off
        return [] if chosen is None else [chosen]
    if not values:
        if spec.option.const is None:
            raise ValueError(f"{spelling} needs a value{_example(spec)}")
        return [spec.option.const]
    return [tuple(values)] if spec.many and not spec.option.repeated else values


def _example(spec: Spelling) -> str:
    if spec.option.choices:
        return f": {', '.join(map(str, spec.option.choices))}"
    return {int: ": a whole number", float: ": a number"}.get(spec.kind, "")


def _take(result: Reading, name: str, spec: Declared, uses: list[tuple[str, Any]]) -> None:
    """Convert the values of one setting: repetitions give a notice, contradictions are mistakes."""
    option, kind, many, _ = spec
    values: dict[str, Any] = {}
    for spelling, raw in uses:
        if raw == "None" and not (option.optional or option.synonyms or NONE in (option.choices or ())):
            also = " (a file of this name: ./None)" if kind is str and not option.choices else ""
            result.remarks.append(f"{spelling} None is taken as not given{also}")
            continue
        try:
            value = convert_many(spelling, option, kind, many, raw)
        except ValueError as error:
            result.mistakes.append(str(error))
            result.wrong.add(name)
            continue
        if option.repeated:
            value = values.get(flag(name), ()) + value
        elif spelling in values and values[spelling] != value:
            result.remarks.append(f"{spelling} is given more than once: {value} is used, not {values[spelling]}")
        values[flag(name) if option.repeated else spelling] = value
    if len({repr(value) for value in values.values()}) > 1:
        result.mistakes.append(
            f"{' and '.join(f'{spelling} ({value})' for spelling, value in values.items())} contradict each other:"
            f" both set {flag(name)}"
        )
        result.wrong.add(name)
    if values:
        spelling = list(values)[-1]
        result.given[name] = (values[spelling], spelling)


def elsewhere(unknown: Sequence[str], commands: Mapping[str, Mapping[str, Declared]]) -> str:
    """The commands that have options which another one lacks, in words; empty where none has."""
    known = {command: spellings(declared) for command, declared in commands.items()}
    said: list[str] = []
    for spelling in dict.fromkeys(unknown):
        if having := [command for command, its in known.items() if spelling in its]:
            shown = having[:4] if len(having) > 5 else having
            *first, last = [*shown, *([f"{len(having) - 4} more"] if shown != having else [])]
            names = f"{', '.join(first)} and {last}" if first else last
            said.append(f"{spelling} {'' if said else 'is an option '}of {names}")
    return f"{'; '.join(said)}. " if said else ""


def meant(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    """In brackets, the name in `known` that was probably meant; empty where there is none."""
    near = nearest(name, known)
    return f" (did you mean {near}?)" if near else ""


def nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str | None:
    """The name in `known` that was probably meant: a few letters differ, or it is the only one that starts so."""
    bare = {item.lstrip("-").replace("_", "-"): item for item in known}
    wanted = name.lstrip("-").replace("_", "-").lower()
    starts = [item for item in bare if len(wanted) > 2 and item.startswith(wanted)]
    near = starts if len(starts) == 1 else difflib.get_close_matches(wanted[:64], list(bare), 1, 0.75)
    return bare[near[0]] if near else None


def _short(text: str, quoted: bool = True) -> str:
    cut = text if len(text) <= 60 else f"{text[:40]}..."
    return repr(cut) if quoted or not cut.isprintable() else cut
