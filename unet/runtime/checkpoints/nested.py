"""Nested dicts, lists and tuples of numbers, texts and tensors <-> one JSON value and a flat dict of tensors.

A JSON object is always one of these: {"dict": {...}}, {"items": [[key, value], ...]} for other keys than texts,
{"tuple": [...]}, {"float": "nan"}, {"tensor": name}. Other values are stored as they are; numbers are restored exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def flatten(value: Any, tensors: dict[str, Tensor], at: str = "") -> Any:
    """The JSON form of `value`; its tensors are added to `tensors` under the path to them. Raises TypeError for
    anything else than the kinds above."""
    if isinstance(value, Tensor):
        name = at
        while name in tensors:
            name += "'"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: flatten(item, tensors, f"{at}/{key}".lstrip("/")) for key, item in value.items()}}
        return {"items": [[key, flatten(item, tensors, f"{at}/{key}".lstrip("/"))] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [flatten(item, tensors, f"{at}/{index}".lstrip("/")) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} at {at} cannot be saved")


def unflatten(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `flatten` was given. Raises ValueError, KeyError or TypeError for JSON of another form."""
    if isinstance(value, list):
        return [unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((form, inner),) = value.items()
    if form == "tensor":
        return tensors[inner]
    if form == "dict":
        return {key: unflatten(item, tensors) for key, item in inner.items()}
    if form == "items":
        return {key: unflatten(item, tensors) for key, item in inner}
    if form == "tuple":
        return tuple(unflatten(item, tensors) for item in inner)
    if form == "float":
        return float(inner)
    raise ValueError(f"unknown form {form!r}")
