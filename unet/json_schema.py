"""Whether parsed JSON has the form that is expected of it, and where it has not. Standard library only."""

from __future__ import annotations

import json
from typing import Any


def schema_error(value: Any, schema: Any, at: str = "the file") -> str:
    """The first mismatch between `value` (parsed JSON) and `schema`, in words; empty if there is none.

    A schema is: a type (`int` takes no bool, `float` takes int, no NaN or infinity); `object` for anything; None for
    null; a set of allowed values; a tuple of schemas, one of which must match; a list of one schema, for each item; a
    dict of name -> schema, where `"name?"` may be missing and others may be added; a dict `{str: schema}`, for each
    value.
    """
    if isinstance(schema, tuple):
        return "" if any(not schema_error(value, item, at) for item in schema) else _mismatch(value, schema, at)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return _mismatch(value, list, at)
        return next(
            (wrong for i, item in enumerate(value) if (wrong := schema_error(item, schema[0], f"{at}[{i}]"))), ""
        )
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return _mismatch(value, dict, at)
        within = "" if at == "the file" else f"{at}."
        if str in schema:
            fits = ((f"{within}{name}", item, schema[str]) for name, item in value.items())
        else:
            missing = [name for name in schema if not name.endswith("?") and name not in value]
            if missing:
                return f"{at} lacks {missing[0]!r}"
            names = ((name.removesuffix("?"), item) for name, item in schema.items())
            fits = ((f"{within}{name}", value[name], item) for name, item in names if name in value)
        return next((wrong for name, item, wanted in fits if (wrong := schema_error(item, wanted, name))), "")
    return "" if _matches(value, schema) else _mismatch(value, schema, at)


def _matches(value: Any, schema: Any) -> bool:
    if schema is None or isinstance(schema, set):
        return value is None if schema is None else isinstance(value, str | int | float) and value in schema
    if schema is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if schema is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, schema)


def _mismatch(value: Any, schema: Any, at: str) -> str:
    return f"{at} is {json.dumps(value, default=str)[:60]}, expected {_schema_text(schema)}"


def _schema_text(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(_schema_text(item) for item in schema)
    if isinstance(schema, set):
        return " or ".join(sorted(map(str, schema)))
    kinds: dict[Any, str] = {
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        None: "null",
        list: "a list",
    }
    kinds[dict] = "an object"
    kind = type(schema) if isinstance(schema, list | dict) else schema
    return kinds.get(kind, "a value")
