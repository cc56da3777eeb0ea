"""The arithmetic of overlapping windows over a volume: what is cropped, what is padded, how many windows there are.
No torch.

Along each axis windows of `roi` voxels start every `stride = int(roi * (1 - overlap))` voxels. Two rules:

- "rounded", MLPerf's (sliding_window_inference of the U-Net3D reference): a remainder below half a stride is cropped
  away on both sides, from image and label, and never scored; a larger one is padded up.
- "full": nothing is cropped, every voxel is seen, and windows lie evenly so that none sees padding (a side shorter
  than the roi is padded); for prediction.

Where the rules leave MLPerf's, because that one fails or skips voxels: a side shorter than the roi is only padded (its
crop makes image and label disagree: 70 voxels give an output of 70 and a label of 64); and the remainder counts from
the first window's end, the same number unless the stride does not divide the roi.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from unet.errors import UsageError

PAD_VALUE = -2.2  # of MLPerf's reference; about the darkest value of a normalised CT
REGIONS = ("rounded", "full")

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How windows cover a volume.

    `crop`: slices of the volume that are looked at. `pad`: (low, high) voxels to add along each axis after it.
    `inner`: slices that cut the padded volume back to the cropped one. `scored`, `padded`: the two shapes. `grid`:
    windows along each axis.
    """

    crop: Slices
    pad: tuple[tuple[int, int], ...]
    inner: Slices
    scored: tuple[int, ...]
    padded: tuple[int, ...]
    grid: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(self.grid)


def stride(roi: int, overlap: float) -> int:
    """Voxels from window to window; the small number undoes 1 - 0.9 = 0.0999..."""
    return max(1, int(roi * (1 - overlap) + 1e-9))


def plan(shape: Sequence[int], roi: Sequence[int], overlap: float = 0.5, region: str = "rounded") -> Plan:
    """The plan of a volume (D, H, W) for windows `roi` (one length an axis). Raises UsageError."""
    if len(shape) != len(roi) or min(*shape, *roi) < 1 or not 0 <= overlap < 1 or region not in REGIONS:
        raise UsageError(
            f"No windows of {tuple(roi)} with overlap {overlap} and region {region!r} over a volume {tuple(shape)}.",
            f"One length of at least 1 for each axis, 0 <= overlap < 1, and a region of {' or '.join(REGIONS)}.",
        )
    crop, pad, grid = [], [], []
    for side, length in zip(shape, roi, strict=True):
        step = stride(length, overlap)
        rest = (side - length) % step if side > length else 0
        lost = rest if region == "rounded" and rest < step // 2 else 0
        kept = side - lost
        steps = max(0, -((length - kept) // step))
        missing = length + steps * step - kept if region == "rounded" else max(0, length - kept)
        crop.append((lost // 2, kept))
        pad.append((missing // 2, missing - missing // 2))
        grid.append(steps + 1)
    return Plan(
        crop=tuple(slice(low, low + kept) for low, kept in crop),
        pad=tuple(pad),
        inner=tuple(slice(low, low + kept) for (low, _), (_, kept) in zip(pad, crop, strict=True)),
        scored=tuple(kept for _, kept in crop),
        padded=tuple(low + kept + high for (low, high), (_, kept) in zip(pad, crop, strict=True)),
        grid=tuple(grid),
    )


def count(shape: Sequence[int], roi: Sequence[int], overlap: float = 0.5, region: str = "rounded") -> int:
    """Number of windows that a volume takes: its cost."""
    return plan(shape, roi, overlap, region).count


def cropped(volume: Any, plan: Plan) -> Any:
    """The part of an array or tensor (..., D, H, W) that is looked at: a view."""
    return volume[(...,) + plan.crop]


def padded(volume: Any, plan: Plan, value: float = PAD_VALUE) -> Any:
    """A cropped array or tensor (..., D, H, W), padded; itself where nothing is to be added."""
    if not any(map(any, plan.pad)):
        return volume
    shape = (*volume.shape[: -len(plan.pad)], *plan.padded)
    if hasattr(volume, "new_full"):
        result = volume.new_full(shape, value)
    else:
        import numpy as np

        result = np.full(shape, value, volume.dtype)
    result[(...,) + plan.inner] = volume
    return result


def inner(volume: Any, plan: Plan) -> Any:
    """A padded array or tensor (..., D, H, W) cut back to the part that is looked at: a view."""
    return volume[(...,) + plan.inner]
