"""Masks are two values. What other values mean is not guessed: they are cut in the middle where they lie near two, as
after one lossy compression, and refused otherwise. NumPy only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.errors import DataError

if TYPE_CHECKING:
    from unet.data.cache.cache import CachedCase

Array = NDArray[Any]
FULL = (1, 255, 65535)  # what alone means foreground everywhere
NEAR = 1 / 4  # of the largest value: what lies within of it, or of 0, is near
GAP = 1 / 32  # noise has a value at least every so much of the largest on average; the classes of a label map have not
HALF = 0.5
MEND = (
    "Save masks with two values, 0 and 255 (or 0 and 1), without smoothing or lossy compression; of a label map, one"
    " class."
)


@dataclasses.dataclass(frozen=True)
class Levels:
    """What the masks of a set are written with: above `cut` is foreground. `noise` says in words what was found where
    that is not exactly two values, "" otherwise."""

    cut: float
    noise: str = ""

    @property
    def told(self) -> str:
        """What was done to masks that hold nearly two values, in words."""
        return f"masks hold {self.noise}, as after lossy compression: cut in the middle, at {self.cut:g}"

    def remarks(self, case: str) -> list[list[str]]:
        """The same as a remark on a case: its kind and its words."""
        return [["nearly two values", f"{case}: {self.told}"]]

    def foreground(self, mask: Array) -> NDArray[np.bool_]:
        """Whether each pixel of a mask is foreground."""
        return mask > (math.floor(self.cut) if mask.dtype.kind in "iu" else self.cut)

    def fits(self, found: Array) -> bool:
        """Whether values could be of this set."""
        if not self.noise:
            return bool(np.isin(found, (0, 2 * self.cut)).all())
        share = found / (2 * self.cut)
        return bool(((share >= 0) & ((share <= NEAR) | (share >= 1 - NEAR)) & (share <= 1 + NEAR)).all())


def values(masks: Iterable[Array]) -> Array:
    """Every value of masks, sorted."""
    found: Array | None = None
    for mask in masks:
        own = _values(mask)
        found = own if found is None else np.union1d(found, own)
    return np.zeros(0) if found is None else found


def _values(mask: Array) -> Array:
    if not mask.size:
        return mask.ravel()
    top, some = mask.max(), np.count_nonzero(mask)
    if np.count_nonzero(mask == top) == (some or mask.size):  # nothing but 0 and the largest, most often
        return np.unique([mask.dtype.type(0), top] if some < mask.size else [top])
    return np.unique(mask)


def levels(found: Array) -> Levels | None:
    """How masks with the values `found` are to be read; None where that cannot be told."""
    if not len(found):
        return Levels(0.5)
    if not np.isfinite(found).all() or found[0] < 0:
        return None
    top = float(found[-1])
    if top == 0:
        return Levels(0.5)
    if len(found) == 1:
        return Levels(top / 2) if top in FULL else None
    if len(found) == 2 and found[0] == 0:
        return Levels(top / 2)
    share = found.astype(np.float64) / top
    groups = share[share <= NEAR], share[share >= 1 - NEAR]
    if sum(map(len, groups)) < len(found) or not all(_is_noise(group) for group in groups):
        return None
    low, high = len(groups[0]), len(found) - len(groups[1])
    return Levels(top / 2, f"{_span(found[:low])} and {_span(found[high:])}")


def _is_noise(group: Array) -> bool:
    return len(group) >= max(2, (group[-1] - group[0]) / GAP)


def _span(group: Array) -> str:
    return f"{group[0]:g} to {group[-1]:g}"


def words(found: Array) -> str:
    """Values in words, five at most."""
    return f"[{', '.join(f'{value:g}' for value in found[:5])}{', ...' if len(found) > 5 else ''}]"


def binary(masks: Sequence[Array], paths: Sequence[Path]) -> tuple[list[NDArray[np.bool_]], Levels]:
    """Masks of one case, read by one rule -> (whether each pixel is foreground, the rule). Raises DataError that names
    the file and the values where they are not two."""
    found = values(masks)
    rule = levels(found)
    if rule is None:
        raise DataError(_odd(masks, paths, found), MEND)
    return [rule.foreground(mask) for mask in masks], rule


def _odd(masks: Sequence[Array], paths: Sequence[Path], found: Array) -> str:
    """What is wrong, with the file that has most of it."""
    top = found[-1]
    strange = [len(set(values([mask]).tolist()) - {0, top}) for mask in masks]
    worst = strange.index(max(strange))
    own = values([masks[worst]])
    others = "" if len(own) == len(found) else f"; the masks of its case hold {len(found)}: {words(found)}"
    return f"{paths[worst]}: mask values {words(own)} ({len(own)}{others}); a mask has two."


def remarks(cases: Iterable[CachedCase], name: str, background: bool = False) -> list[str]:
    """What is odd about the masks of cached slices: a class `name` (the foreground, or the `background`) that fills
    more than half of the set, or none of it."""
    foreground = pixels = count = 0
    for case in cases:
        foreground += sum(case.foreground)
        pixels += math.prod(case.shape[:3])
        count += 1
    if pixels and not foreground and not background:
        return [f"no mask of the {host.counted(count, 'case')} holds {name}: every pixel is background"]
    share = foreground / max(1, pixels)
    return crowded(name, 1 - share if background else share) if pixels else []


def crowded(name: str, share: float) -> list[str]:
    """A warning where a class fills more than half of a set."""
    if share <= HALF:
        return []
    return [
        f"{name} fills {share:.0%} of the set, more than half of it: are the masks inverted, or saved as"
        " WhiteIsZero (as tifffile saves 1-bit masks)?"
    ]
