"""How the arrays of a task lie in a cache: names, shapes, types, and what is kept of each mask. No torch.

`SLICES` are volumes of slices for 2-D networks, `VOLUMES` those of MLPerf's 3-D U-Net, under its names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data import boxes, em, preprocess, windows
from unet.errors import CacheError
from unet.files import inside

Array = NDArray[Any]
Shape = tuple[int, ...]
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way to keep cases.

    `image`, `mask`: what follows the case's id in the names of its files. `version`: of the code that makes the arrays.
    `mask_shape` of an image's shape. `windows` of an image's shape: what scoring takes where that is not its slices.
    `require(image's path, image, mask, settings)`: raise CacheError unless the arrays of another program fit. `facts`
    of a mask, as the manifest has them; `counted` of an image's shape: how many numbers `foreground` among them holds;
    `needed`: what else of a record a run needs; `kept`: the file beside such a cache that keeps the facts, where they
    are costly.
    """

    image: str
    mask: str
    version: int
    mask_shape: Callable[[Shape], Shape]
    windows: Callable[[Shape], int]
    require: Callable[[Path, Array, Array, Settings], None]
    facts: Callable[[Array], dict[str, Any]]
    counted: Callable[[Shape], int]
    needed: tuple[str, ...] = ()
    kept: str | None = None

    def paths(self, folder: Path, case: str) -> tuple[Path, Path]:
        """Image and mask of a case. Raises CacheError for a name that leads out of the folder or is no file name."""
        if not case.strip(".") or "/" in case:
            raise CacheError(
                f"{folder.absolute()}: {case!r} is not the name of a case.",
                "The list of its files was changed or damaged: restore it, or use another folder.",
            )
        return inside(folder, case + self.image), inside(folder, case + self.mask)

    def ids(self, folder: Path) -> list[str]:
        """The cases whose images lie in a folder, sorted."""
        names = [path.name for path in folder.glob(f"*{self.image}") if not path.name.endswith(self.mask)]
        return sorted(name.removesuffix(self.image) for name in names)


def flags(settings: Settings) -> str:
    """Settings as they are typed: --image-size 64."""
    return " ".join(
        f"--{name.replace('_', '-')} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in settings.items()
    )


def _require_slices(path: Path, image: Array, mask: Array, settings: Settings) -> None:
    size = settings["image_size"]
    if image.ndim != 4 or mask.shape != (*image.shape[:3], 1) or image.dtype.kind != "f":
        raise CacheError(
            f"{path.absolute()}: {image.shape} {image.dtype} with mask {mask.shape} is not (slices, H, W, channels)"
            " floats with (slices, H, W, 1).",
            "Give a cache of this task, or build one from the raw set.",
        )
    if image.shape[1:3] != (size, size):
        raise CacheError(
            f"{path.parent.absolute()}: the cache holds slices of {image.shape[1]} x {image.shape[2]}, asked:"
            f" {flags(settings)}.",
            f"Type --image-size {image.shape[1]}, or name another --cache.",
        )


def _require_squares(path: Path, image: Array, mask: Array, settings: Settings) -> None:
    side = settings["image_size"] - 12 * 2 ** settings["layers"] + 8  # the network's output
    if image.shape != (1, side, side, 1) or image.dtype != np.float32 or mask.shape != image.shape:
        raise CacheError(
            f"{path.absolute()}: {image.shape} {image.dtype} with mask {mask.shape} is not (1, {side}, {side}, 1)"
            " float32 with a mask of that shape.",
            "Build the cache from the raw set.",
        )


def _slice_facts(mask: Array) -> dict[str, Any]:
    _require_values(mask, {0, 1})
    return {"foreground": np.asarray(mask).sum((1, 2, 3)).astype(int).tolist()}


def _require_values(mask: Array, allowed: set[int]) -> None:
    values = np.unique(mask)
    if not set(values.tolist()) <= allowed:
        words = " and ".join(map(str, sorted(allowed))).replace(" and ", ", ", max(0, len(allowed) - 2))
        raise CacheError(f"holds values {values[:4].tolist()}; a mask is {words}.", "Build the cache again.")


def _require_volumes(path: Path, image: Array, mask: Array, settings: Settings) -> None:
    if image.ndim != 4 or image.shape[0] != 1 or image.dtype != np.float32 or mask.shape != image.shape:
        fits = False
    else:
        fits = mask.dtype == np.uint8
    if not fits:
        raise CacheError(
            f"{path.absolute()}: {image.shape} {image.dtype} with labels {mask.shape} {mask.dtype} is not (1, D, H, W)"
            " float32 with (1, D, H, W) uint8.",
            "Give a cache of this task, or build one from the raw set.",
        )
    least = tuple(settings["pad_to"])
    if any(side < wanted for side, wanted in zip(image.shape[1:], least, strict=True)):
        sides = " ".join(str(min(side, wanted)) for side, wanted in zip(image.shape[1:], least, strict=True))
        raise CacheError(
            f"{path.absolute()}: the cache holds a volume of {' x '.join(map(str, image.shape[1:]))}, asked:"
            f" --pad-to {' '.join(map(str, least))}.",
            f"Type --pad-to {sides} or less, or name another --cache.",
        )


def _volume_facts(mask: Array) -> dict[str, Any]:
    if int(mask.max()) > max(boxes.CLASSES):
        _require_values(mask, {0, *boxes.CLASSES})
    return boxes.facts(mask)


SLICES = Layout(
    ".npy",
    "_mask.npy",
    preprocess.VERSION,
    lambda shape: (*shape[:3], 1),
    lambda shape: 0,
    _require_slices,
    _slice_facts,
    lambda shape: shape[0],
)
VOLUMES = Layout(
    "_x.npy",
    "_y.npy",
    1,
    lambda shape: shape,
    lambda shape: windows.count(shape[1:], (128, 128, 128)),
    _require_volumes,
    _volume_facts,
    lambda shape: len(boxes.CLASSES),
    ("boxes", "geometry"),
    "boxes.json",
)
SQUARES = dataclasses.replace(SLICES, version=em.VERSION, require=_require_squares, needed=("raw",))
OF_TASK = {"lgg": SLICES, "em": SQUARES, "kits19": VOLUMES}
