"""How the arrays of a task lie in a cache: names, shapes, types, and what is kept of each mask. No torch.

Each task declares its `Layout` in its `dataset`; `slice_layout` is the one that 2-D tasks share.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import CacheError
from unet.files import path_inside

Array = NDArray[Any]
Shape = tuple[int, ...]
Settings = Mapping[str, Any]
EMPTY: tuple[Any, ...] = (None, [], ())  # settings that no flag gives


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the cases of a task are kept. Its functions stand at the top of a module: worker processes are sent them.

    `image`, `mask`: what follows the case's id in the names of its files; `voxels`: in that of a third, of drawn voxels
    (see `CachedCase.voxels`), where there is one. `version`: of the code that makes the arrays.
    `cost` of an image's shape: what scoring it takes, in slices or windows.
    `require(image's path, image, mask, settings)`: raise CacheError unless the arrays of another program fit. `facts`
    of a mask, as the manifest has them, in the form of `schema` (see `files.schema_error`); `counted` of an image's
    shape: how many numbers `foreground` among them holds; `possible(shape, facts)`: whether facts can be
    true. `needed`: what else of a record a run needs; `kept`: the file beside such a cache that keeps the facts, where
    they are costly. `left_out`: which images of a case the cache does not hold, in words.
    """

    task: str
    image: str
    mask: str
    version: int
    cost: Callable[[Shape], int]
    require: Callable[[Path, Array, Array, Settings], None]
    facts: Callable[[Array], dict[str, Any]]
    counted: Callable[[Shape], int]
    possible: Callable[[Shape, Settings], bool] | None = None
    schema: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()
    kept: str | None = None
    voxels: str | None = None
    left_out: str = ""

    def paths(self, folder: Path, case: str) -> tuple[Path, ...]:
        """Image and mask of a case, and its drawn voxels where the layout has them. Raises CacheError for a name that
        leads out of the folder or is no file name."""
        if not case.strip(".") or "/" in case:
            raise CacheError(
                f"{folder.absolute()}: {case!r} is not the name of a case.",
                "The list of its files was changed or damaged: restore it, or use another folder.",
            )
        ends = (self.image, self.mask, *([self.voxels] if self.voxels else []))
        return tuple(path_inside(folder, case + end) for end in ends)

    def ids(self, folder: Path) -> list[str]:
        """The cases whose images lie in a folder, sorted."""
        names = [path.name for path in folder.glob(f"*{self.image}") if not path.name.endswith(self.mask)]
        return sorted(name.removesuffix(self.image) for name in names)


def flags(settings: Settings) -> str:
    """Settings as they are typed in a shell: --image-size 64. One that is None or empty is left out."""
    return " ".join(_typed(name.replace("_", "-"), value) for name, value in settings.items() if value not in EMPTY)


def _typed(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    values = value if isinstance(value, list | tuple) else [value]
    return shlex.join([f"--{name}", *map(str, values)])


def require_values(mask: Array, allowed: set[int]) -> None:
    """Raise CacheError for a mask with other values."""
    values = np.unique(mask)
    if not set(values.tolist()) <= allowed:
        words = " and ".join(map(str, sorted(allowed))).replace(" and ", ", ", max(0, len(allowed) - 2))
        raise CacheError(f"holds values {values[:4].tolist()}; a mask is {words}.", "Build the cache again.")


def slice_layout(
    task: str, version: int, require: Callable[[Path, Array, Array, Settings], None], **how: Any
) -> Layout:
    """Images (S, H, W, C) float32 in `<case>.npy`, masks (S, H, W, 1) uint8 of 0 and 1 in `<case>_mask.npy`."""
    return Layout(task, ".npy", "_mask.npy", version, slices_of, require, slice_facts, slices_of, **how)


def slices_of(shape: Shape) -> int:
    return shape[0]


def slice_facts(mask: Array) -> dict[str, Any]:
    """foreground: the labelled pixels of each slice."""
    require_values(mask, {0, 1})
    return {"foreground": np.asarray(mask).sum((1, 2, 3)).astype(int).tolist()}
