"""Reads torch checkpoints in which other programs keep numbers of NumPy's beside the weights (nnU-Net: scores, losses).

torch reads them only where NumPy's own unpickling is allowed, which a crafted type can make read memory that is not its
own. So the opcodes are checked (`weight_files.pickles`), and the numbers are left out: what stands in for NumPy gives
None.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from unet.weight_files import pickles


class Nothing:
    """Stands in for a type of NumPy's, whatever it is made of."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read(path: Path) -> Any:
    """The content of a checkpoint, with None for each number of NumPy's. Raises pickles.UnsafePickle for any other
    object."""
    pickles.structure(path)
    with stand_ins(), open(path, "rb") as stream:
        return torch.load(stream, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Within this context torch takes stand-ins for what NumPy's numbers are made of."""
    made = []
    for name in pickles.NUMPY:
        module, _, own = name.partition(" ")
        copy: Any = type(own, (Nothing,), {}) if own == "dtype" else lambda *_: None
        copy.__module__, copy.__name__, copy.__qualname__ = module, own, own
        made.append(copy)
    before = list(torch.serialization.get_safe_globals())  # torch 2.4 gives its own list
    torch.serialization.add_safe_globals(made)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)
