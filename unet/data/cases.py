"""A case of a raw set: its files, and what a run must know of it before it is read. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from unet.errors import DataError


@dataclasses.dataclass(frozen=True)
class Case:
    """One patient, volume or stack: its files, and what the run must know of it before it is read.

    `cost` is what scoring it takes, in slices or windows. `spacing` is in mm (z, y, x), None where the format has none.
    `memory` is about what preparing it takes, in bytes, 0 where that is little. `parts`: the files of images and labels
    where one of these is a folder. `group`: the patient or group that it belongs to, where the set names one.
    """

    id: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()
    cost: int = 1
    spacing: tuple[float, ...] | None = None
    memory: int = 0
    parts: tuple[Path, ...] = ()
    group: str = ""

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that the case is made of."""
        return self.parts or (*self.images, *self.labels)


def require_folder(root: Path, hint: str) -> None:
    """Raise DataError, with what lies beside it, if the folder of a raw set does not exist."""
    if not root.is_dir():
        near = sorted(item.name for item in root.parent.iterdir() if item.is_dir())[:5] if root.parent.is_dir() else []
        beside = f" (beside it: {', '.join(near)})" if near else ""
        raise DataError(f"{root.absolute()}: no such folder{beside}.", hint)
