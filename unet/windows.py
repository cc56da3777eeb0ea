"""Where overlapping windows lie over a volume: what is cropped, what is padded, where each window starts. The one place
of this arithmetic, for the cost of a case, for scoring and for prediction. Standard library only.

Along each axis windows of `length` voxels start every `stride = int(length * (1 - overlap))` voxels. Two rules:

- "rounded", MLPerf's (sliding_window_inference of the U-Net3D reference): a remainder below half a stride is cropped
  away on both sides, from image and label, and never scored; a larger one is padded up.
- "full": nothing is cropped and every voxel is seen. Where the stride leaves a remainder, windows lie evenly, a little
  closer, so that the last one ends with the volume (as in nnU-Net) and none sees padding. A side shorter than the
  window is padded.

Two differences from MLPerf's reference, which fails or skips voxels there: a side shorter than the window is only
padded (the reference's crop makes image and label disagree: 70 voxels give an output of 70 and a label of 64); and the
remainder counts from the first window's end, the same number unless the stride does not divide the window.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from unet.errors import UsageError

REGIONS = ("rounded", "full")

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How windows cover a volume.

    `window`: length of a window along each axis. `crop`: slices of the volume that are looked at. `pad`: (low, high)
    voxels to add along each axis after it. `inner`: slices that cut the padded volume back to the cropped one.
    `starts`: where windows start in the padded volume, by axis.
    """

    window: tuple[int, ...]
    crop: Slices
    pad: tuple[tuple[int, int], ...]
    inner: Slices
    starts: tuple[tuple[int, ...], ...]

    @property
    def scored(self) -> tuple[int, ...]:
        """Shape of the part that is looked at."""
        return tuple(part.stop - part.start for part in self.crop)

    @property
    def padded(self) -> tuple[int, ...]:
        """Shape of that part with its padding: what the windows cover."""
        return tuple(low + side + high for (low, high), side in zip(self.pad, self.scored, strict=True))

    @property
    def grid(self) -> tuple[int, ...]:
        """Windows along each axis."""
        return tuple(map(len, self.starts))

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.prod(self.grid)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """The number of each window along the axes, in C order."""
        return itertools.product(*map(range, self.grid))

    def place(self, index: Sequence[int]) -> Slices:
        """Slices of a window in the padded volume."""
        first = [starts[number] for number, starts in zip(index, self.starts, strict=True)]
        return tuple(slice(start, start + length) for start, length in zip(first, self.window, strict=True))


def stride(length: int, overlap: float) -> int:
    """Voxels from window to window; the small number undoes 1 - 0.9 = 0.0999..."""
    return max(1, int(length * (1 - overlap) + 1e-9))


def plan(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5, region: str = "rounded") -> Plan:
    """The plan of a volume (D, H, W) for windows of one length an axis. Raises UsageError."""
    if len(shape) != len(window) or min(*shape, *window) < 1 or not 0 <= overlap < 1 or region not in REGIONS:
        raise UsageError(
            f"No windows of {tuple(window)} with overlap {overlap} and region {region!r} over a volume {tuple(shape)}.",
            f"One length of at least 1 for each axis, 0 <= overlap < 1, and a region of {' or '.join(REGIONS)}.",
        )
    crop, pad, starts = [], [], []
    for side, length in zip(shape, window, strict=True):
        step = stride(length, overlap)
        rest = (side - length) % step if side > length else 0
        lost = rest if region == "rounded" and rest < step // 2 else 0
        kept = side - lost
        steps = max(0, -((length - kept) // step))
        padded = length + steps * step if region == "rounded" else max(length, kept)
        low = (padded - kept) // 2
        crop.append(slice(lost // 2, lost // 2 + kept))
        pad.append((low, padded - kept - low))
        starts.append(tuple(round(number * (padded - length) / max(1, steps)) for number in range(steps + 1)))
    inner = tuple(slice(low, low + part.stop - part.start) for (low, _), part in zip(pad, crop, strict=True))
    return Plan(tuple(window), tuple(crop), tuple(pad), inner, tuple(starts))


def count(shape: Sequence[int], window: Sequence[int], overlap: float = 0.5, region: str = "rounded") -> int:
    """Number of windows that a volume takes: its cost."""
    return plan(shape, window, overlap, region).count
