"""A dataclass field is a flag: name, aliases, type, bounds and help stand at the field and nowhere else.

`option(...)` declares the field, `parser(...)` turns groups of fields into an argparse parser, `read(...)` turns a
command line into values and reports every mistake at once. No torch, no third-party package.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from unet.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Option:
    """How one setting is spelt and checked.

    Aliases are spellings of the same setting; an alias that is a pair (spelling, value) is a switch that sets that
    value. `synonyms` are other words for a value; `worded` are spellings of a switch that take such a word. `bare` is
    the value of the flag when nothing follows it. `shown` is what the help gives as default. A `repeated` flag takes
    one value each time and keeps them all.
    """

    help: str
    aliases: tuple[str | tuple[str, Any], ...] = ()
    choices: tuple[Any, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    bare: Any = None
    synonyms: tuple[tuple[str, Any], ...] = ()
    metavar: str | None = None
    positional: bool = False
    repeated: bool = False
    worded: tuple[str, ...] = ()
    shown: str | None = None


def option(default: Any, help: str, **how: Any) -> Any:
    """A dataclass field with its flag. Keywords are those of `Option`."""
    return dataclasses.field(default=default, metadata={"option": Option(help, **how)})


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


@functools.cache
def fields(group: type) -> dict[str, tuple[Option, type, bool, Any]]:
    """name -> (option, element type, whether many, default) of the options of a dataclass."""
    hints = typing.get_type_hints(group)
    return {
        field.name: (field.metadata["option"], *shape(hints[field.name]), field.default)
        for field in dataclasses.fields(group)
        if "option" in field.metadata
    }


def convert(name: str, option: Option, kind: type, value: Any) -> Any:
    """`value` (text, or an item of a settings file) as `kind`, within the option's bounds. Raises ValueError in
    words.
    """
    if value is None or (value == "none" and option.choices is None and kind is not str):
        return None
    value = dict(option.synonyms).get(value, value) if isinstance(value, str) else value
    if option.bare is not None and value == option.bare:
        return value
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"{name} takes true or false, not {value!r}")
    if isinstance(value, bool) or (isinstance(value, float) and kind is int and not value.is_integer()):
        raise ValueError(f"{name} takes {_noun(kind)}, not {value!r}")
    try:
        result = kind(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} takes {_noun(kind)}, not {value!r}") from None
    if option.choices and result not in option.choices:
        near = difflib.get_close_matches(str(result), [str(item) for item in option.choices], 1)
        raise ValueError(
            f"{name} is one of {', '.join(map(str, option.choices))}, not {value!r}"
            + (f" (did you mean {near[0]}?)" if near else "")
        )
    if isinstance(result, float) and result != result:
        raise ValueError(f"{name} takes {_noun(kind)}, not {value!r}")
    for bound, wrong, word in (
        (option.minimum, lambda a, b: a < b, "at least"),
        (option.maximum, lambda a, b: a > b, "at most"),
        (option.above, lambda a, b: a <= b, "above"),
    ):
        if bound is not None and wrong(result, bound):
            raise ValueError(f"{name} is {word} {bound:g}, not {value}")
    return result


def _noun(kind: type) -> str:
    return {int: "a whole number", float: "a number"}.get(kind, "a word")


class _Collect(argparse.Action):
    """Keep every (spelling, raw value) of a setting, in order: contradictions are told from repetitions later."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, spelling: str | None = None) -> None:
        if self.const is not None and (values is self.const or values == []):
            values = self.const[0]
        namespace.given.setdefault(self.dest, []).append((spelling or self.dest, values))


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=80)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action)) if action.nargs != 0 else ""
        return f"{action.option_strings[0]} {values}".strip()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].upper() + message[1:] + ".", f"See: {self.prog} --help")


def parser(prog: str, description: str, groups: Sequence[type], usage: str | None = None) -> argparse.ArgumentParser:
    """An argparse parser whose options are the fields of `groups`; the first line of a group's docstring is its
    title.
    """
    result = _Parser(
        prog=prog,
        description=description,
        usage=usage or f"{prog} [options]",
        allow_abbrev=False,
        formatter_class=_Help,
        add_help=False,
    )
    for index, group in enumerate(groups):
        section = result.add_argument_group((group.__doc__ or group.__name__).strip().splitlines()[0].rstrip("."))
        if index == 0:
            section.add_argument("-h", "--help", action="help", help="show this text")
        for name, (option, kind, many, default) in fields(group).items():
            _add(section, name, option, kind, many, default)
    return result


def _add(section: Any, name: str, option: Option, kind: type, many: bool, default: Any) -> None:
    spellings = [flag(name), *(alias for alias in option.aliases if isinstance(alias, str))]
    unique = list(dict.fromkeys(fold(item) for item in spellings))
    how: dict[str, Any] = {
        "action": _Collect,
        "dest": name,
        "default": argparse.SUPPRESS,
        "help": _describe(option, kind, default, spellings[1:]),
    }
    if option.positional:
        del how["dest"]
        section.add_argument(name, nargs="*", metavar=option.metavar, **how)
        return
    if kind is bool:
        section.add_argument(*unique, nargs=0, const=(True,), **how)
        section.add_argument("--no-" + unique[0][2:], nargs=0, const=(False,), **{**how, "help": argparse.SUPPRESS})
    else:
        metavar = option.metavar or (
            "|".join(map(str, option.choices)) if option.choices and len(option.choices) < 6 else None
        )
        if many and not option.repeated:
            how["nargs"] = "+"
        elif option.bare is not None:
            how |= {"nargs": "?", "const": (option.bare,)}
        section.add_argument(
            *unique, metavar=metavar or {int: "N", float: "X"}.get(kind, name.rsplit("_", 1)[-1].upper()), **how
        )
    for spelling in option.worded:
        words = "|".join(word for word, _ in option.synonyms)
        section.add_argument(fold(spelling), metavar=words, **{**how, "help": argparse.SUPPRESS})
    for alias in option.aliases:
        if not isinstance(alias, str):
            section.add_argument(fold(alias[0]), **{**how, "help": argparse.SUPPRESS, "nargs": 0, "const": (alias[1],)})


def _describe(option: Option, kind: type, default: Any, aliases: Sequence[str]) -> str:
    text = option.help
    switches = [f"{alias[0]} = {alias[1]}" for alias in option.aliases if not isinstance(alias, str)]
    worded = [f"{spelling} {'|'.join(word for word, _ in option.synonyms)}" for spelling in option.worded]
    also = [*aliases, *switches, *worded]
    if option.choices and option.metavar and "|" not in option.metavar and str(option.choices[0]) not in text:
        text += ": " + ", ".join(map(str, option.choices))
    if also:
        text += f" (also {', '.join(also)})"
    shown = option.shown or ("on" if default is True else None if default in (None, False, ()) else str(default))
    if isinstance(default, tuple) and default and not option.shown:
        shown = " ".join(map(str, default))
    return (text + (f" [{shown}]" if shown else "")).replace("%", "%%")


def fold(token: str) -> str:
    """`--batch_size=4` -> `--batch-size=4`: in option names `_` and `-` are the same; in values they are not."""
    if not token.startswith("--"):
        return token
    name, equals, value = token.partition("=")
    return name.replace("_", "-") + equals + value


def read(parser: argparse.ArgumentParser, groups: Sequence[type], argv: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Parse `argv` -> {setting: (value, the spelling that set it)}. Raises one UsageError with every mistake found."""
    folded = _folded(argv)
    namespace = argparse.Namespace(given={})
    _, unknown = parser.parse_known_args(folded, namespace)
    known = [text for action in parser._actions for text in action.option_strings]
    mistakes = [_unknown(token, known) for token in unknown if token.startswith("-")]
    mistakes += [f"unexpected {token!r}" for token in unknown if not token.startswith("-")] if not mistakes else []
    declared = {name: spec for group in groups for name, spec in fields(group).items()}
    result: dict[str, tuple[Any, str]] = {}
    for name, uses in namespace.given.items():
        option, kind, many, _ = declared[name]
        values: dict[str, Any] = {}
        for spelling, raw in uses:
            label = spelling if spelling.startswith("-") else option.metavar or name
            try:
                values[spelling] = convert_many(label, option, kind, many, raw)
            except ValueError as error:
                swallowed = many and kind is not str and any(spec[0].positional for spec in declared.values())
                mistakes.append(f"{error}{' (files stand before the options)' if swallowed else ''}")
        if option.repeated:
            values = {
                "--" + name: tuple(item for _, raw in uses for item in convert_many(name, option, kind, many, raw))
            }
        if len({repr(value) for value in values.values()}) > 1:
            mistakes.append(
                f"{' and '.join(f'{spelling} ({value})' for spelling, value in values.items())} contradict each other:"
                f" both set {flag(name)}"
            )
        if values:
            spelling = list(values)[-1]
            result[name] = (values[spelling], spelling)
    if mistakes:
        raise UsageError("; ".join(mistakes) + ".", f"See: {parser.prog} --help")
    return result


def convert_many(label: str, option: Option, kind: type, many: bool, raw: Any) -> Any:
    if not many:
        return convert(label, option, kind, raw)
    items = raw if isinstance(raw, list | tuple) else [raw]
    if list(items) == ["none"] and kind is not str:
        return ()
    return tuple(convert(label, option, kind, item) for item in items)


def _folded(argv: Iterable[str]) -> list[str]:
    result: list[str] = []
    literal = False
    for token in argv:
        literal = literal or token == "--"
        result.append(token if literal else fold(token))
    return result


def _unknown(token: str, known: Sequence[str]) -> str:
    name = token.split("=")[0]
    near = difflib.get_close_matches(name, known, 1, 0.6)
    return f"unknown option {name}" + (f" (did you mean {near[0]}?)" if near else "")
