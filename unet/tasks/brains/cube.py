"""From a volume on its own grid to the cube of the network and back: axes to R, A, S, voxels by area, intensities
between two percentiles. No torch.

A cube is (r, r, r): x to the right, y to the front, z to the top of the head. Copies of one volume with axes flipped or
swapped become the same numbers, to the bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io import nifti
from unet.data.io.nifti_header import times
from unet.data.preprocessing import alignment, area, grids
from unet.errors import DataError
from unet.host import counted

Array = NDArray[Any]
FRAME = ("R", "A", "S")
PERCENTILES = (0.05, 99.95)  # of the resampled volume (3d_very_deep_vae: its MONAI transforms)
CONTRAST = 1e-6  # of the largest value: less is rounding of single precision
BRAIN = 0.05  # of the range of a cube: above -0.9 in [-1, 1] is brain
OTHER_SIZES = "they have other sizes"
REMOVE = "Remove it from the folder, or leave it out with --pattern."


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a volume came to its cube: enough to undo it.

    `raw`: voxels as stored. `order`: the stored axis of each of (x, y, z); `flips`: which of those run backwards.
    `low`, `high`: the intensities that became `bottom` (-1, or 0 with a sigmoid) and 1.
    """

    raw: tuple[int, int, int]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    low: float
    high: float
    bottom: float = -1.0

    def plain(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Grid:
        """The grid that `plain` was made from, also where it went through JSON."""
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()
        }
        return cls(**found)

    @property
    def turned(self) -> tuple[int, int, int]:
        """Voxels of (x, y, z) before resampling."""
        return self.raw[self.order[0]], self.raw[self.order[1]], self.raw[self.order[2]]

    @property
    def scale(self) -> float:
        """Intensity of one unit of the cube."""
        return (self.high - self.low) / (1 - self.bottom)


def turn(head: nifti.Header) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """(the stored axis of each of x, y, z; whether it runs backwards), as nibabel's closest canonical; a file without
    orientation is taken as stored."""
    return grids.axes_to(FRAME, head.codes or FRAME)


def remarks(head: nifti.Header) -> list[list[str]]:
    """What is unusual about a volume's header and how it was taken: [kind, words]."""
    words = f"{head.path}: names no orientation; its axes are taken as (x, y, z), to the right, the front and the top"
    return ([["axes", words]] if head.codes is None else []) + [["header", note] for note in head.notes]


def cube(volume: Array, resolution: int, bottom: float = -1.0) -> tuple[Array, float, float]:
    """A volume (X, Y, Z) without NaN -> (cube (r, r, r) float32 from `bottom` to 1, the intensity that became `bottom`,
    the one that became 1).

    By area, clamped to the percentiles 0.05 and 99.95 of the resampled voxels, which become the ends of the range: the
    validation pipeline of 3d_very_deep_vae, whose z-score cancels in its rescaling. Where more than 99.9 % of the
    voxels are equal there is no range: low and high are the same, and the cube is `bottom`.
    """
    found = area.area(volume, (resolution,) * 3)
    low, high = (float(value) for value in np.percentile(found, PERCENTILES))
    if high - low <= CONTRAST * max(abs(low), abs(high)):
        return np.full(found.shape, bottom, np.float32), low, low
    np.clip(found, low, high, out=found)
    found -= low
    found *= (1 - bottom) / (high - low)
    found += bottom
    return found.astype(np.float32), low, high


def brain(image: Array, bottom: float = -1.0) -> Array:
    """Where a cube holds brain: voxels above the lowest twentieth of the range (-0.9 in [-1, 1])."""
    return image > bottom + BRAIN * (1 - bottom)


def fill(head: nifti.Header, volume: Array) -> Array:
    """NaN in place by the background, with a note in `head.notes`; returns the volume. Raises DataError where every
    voxel is NaN, or every other one has one value.

    The background is 0, as brain extraction writes it, so that a volume is the same with NaN and with 0 around it.
    Where values below 0 are no rarity (z-scores, say) it is the 0.05th percentile of the volume: 0 would be grey there,
    and taken for brain. It is not the smallest value: a background far below the brain, because of one odd voxel,
    would take the range for itself, and no clamping would mend that where it fills more than the percentile.
    """
    gaps = np.isnan(volume)
    count = int(gaps.sum())
    finite = volume[~gaps] if count else volume
    if not finite.size:
        raise DataError(f"{head.path}: all of its {times(volume.shape)} voxels are NaN.", REMOVE)
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        which = f" that are not NaN ({count} are)" if count else ""
        raise DataError(
            f"{head.path}: all of its {times(volume.shape)} voxels{which} are {low:g}: there is no brain in it.", REMOVE
        )
    if count:
        background = min(0.0, float(np.percentile(finite, PERCENTILES[0]))) if low < 0 else 0.0
        volume[gaps] = background
        head.notes.append(nifti.nan_note(head.path, count, background))
    return volume


def of_file(head: nifti.Header, resolution: int, bottom: float = -1.0) -> tuple[Array, Grid]:
    """The volume of a file -> (its cube (r, r, r) float32, the way back); what was odd about its voxels is added to
    `head.notes`. Raises DataError for one without contrast, of NaN, or that cannot be read."""
    return of_volume(head, fill(head, nifti.read_volume(head, None)), resolution, bottom)


def of_volume(head: nifti.Header, volume: Array, resolution: int, bottom: float = -1.0) -> tuple[Array, Grid]:
    """As `of_file`, of the voxels that were read, axes as stored and without NaN."""
    order, flips = turn(head)
    grid = Grid(head.shape, order, flips, 0.0, 1.0, bottom)
    image, low, high = cube(grids.turned(volume, grid), resolution, bottom)
    if low == high:
        raise DataError(
            f"{head.path}: 99.9 % of its voxels at {times(image.shape)} are {low:.6g}: there is no brain in it.",
            REMOVE,
        )
    return image, dataclasses.replace(grid, low=low, high=high)


def restore(array: Array, grid: Grid, values: bool = True) -> Array:
    """A cube (r, r, r) -> float32 on the file's own grid, axes as stored: trilinear between the centres of voxels.
    `values`: in the file's intensities; otherwise the numbers of the cube as they are (residuals)."""
    if values:
        array = (np.asarray(array, np.float64) - grid.bottom) * grid.scale + grid.low
    return grids.stored(area.linear(np.asarray(array, np.float32), grid.turned), grid)


def restore_deviation(array: Array, grid: Grid) -> Array:
    """Standard deviations of a cube (r, r, r) -> in the file's intensities, on its own grid, axes as stored."""
    return restore(np.asarray(array, np.float64) * grid.scale, grid, values=False)


def lesions(path: Path, head: nifti.Header, grid: Grid, size: Sequence[int]) -> tuple[Array, list[list[str]]]:
    """(where a cube of `size` holds a lesion, bool: at least half of the voxel is; what was odd: [kind, words]).
    A voxel of the mask is a lesion from 0.5 on. Raises DataError where the mask is not on the grid of its volume."""
    label, own = nifti.read_header(path), grid
    odd: list[list[str]] = []
    words = "" if label.shape == head.shape else OTHER_SIZES
    if head.codes is not None and label.codes is not None:
        order, flips = turn(label)
        own = dataclasses.replace(grid, raw=label.shape, order=order, flips=flips)
        words = alignment.grid_mismatch(head, label, grid, own) if own.turned == grid.turned else OTHER_SIZES
    elif head.codes != label.codes:
        odd.append(["lesions", f"{path}: it or its volume names no orientation; it is taken as its volume is stored"])
    if words:
        raise DataError(
            f"{path}: a mask of {times(label.shape)} voxels of {times(label.spacing)} mm is not on the grid of"
            f" {head.path.name}, {times(head.shape)} of {times(head.spacing)} mm: {words}.",
            "Save the mask on the grid of its volume, or remove it.",
        )
    inside = grids.turned(nifti.read_volume(label) >= 0.5, own)
    found = area.area(inside, size) >= 0.5 - 1e-9
    if not found.any():
        count = int(np.count_nonzero(inside))
        told = f"its lesion of {counted(count, 'voxel')} is lost at {times(size)}" if count else "holds no lesion"
        odd.append(["lesions", f"{path}: {told}"])
    return found, odd
