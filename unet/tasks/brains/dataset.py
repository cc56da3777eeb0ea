"""A folder of brain volumes (NIfTI): which files are cases, their way to a normalised cube, and the way back. No torch.

The cube's axes run to the right, to the front and up. Its values are those of 3d_very_deep_vae's validation: resized by
area, cut off at two percentiles, scaled to [-1, 1].
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files, host
from unet.config.schema import shell_path
from unet.data.cache.layout import Layout, require_values
from unet.data.cases import Case
from unet.data.io import nifti
from unet.data.io.nifti_header import times, volumes
from unet.data.splits import Split, split_off
from unet.errors import CacheError, DataError, StorageError, UnetError
from unet.tasks.brains.settings import Settings

Array = NDArray[Any]
CANONICAL = ("R", "A", "S")
OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}
PERCENTILES = 0.05, 99.95
BRAIN, LESION = 1, 2
DARKEST = 0.05  # of the scale: voxels above are the brain's (x > -0.9 in [-1, 1])
LESIONS = "_lesion"  # a mask of lesions beside a volume: <name>_lesion.nii.gz
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Grid:
    """How a volume came to the cube: enough to undo it.

    `raw`: voxels as stored. `order`: the stored axis of each axis of the cube; `flips`: which of those run backwards.
    `low`, `high`: the intensities that became the ends of the scale, whose first end is `start`.
    """

    raw: tuple[int, int, int]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    low: float
    high: float
    start: float


# Which files.


def find(root: Path, settings: Settings) -> list[Path]:
    """The volumes of a folder, sorted: files that match --pattern, without masks of lesions. Raises DataError where
    there is none."""
    if not root.is_dir():
        raise DataError(
            f"{root.absolute()}: no such folder.", "Give the folder of the volumes with --data, or type --synth-data."
        )
    paths = sorted(root.rglob("*") if settings.recursive else root.iterdir())
    every = [path for path in paths if nifti.is_nifti(path) and not nifti.stem(path).endswith(LESIONS)]
    found = [path for path in every if fnmatch.fnmatchcase(path.name, settings.pattern)]
    if not found:
        raise nothing_found(root, settings, every)
    return found


def nothing_found(root: Path, settings: Settings, every: Sequence[Path]) -> DataError:
    """The error for a folder without a volume, with what it holds."""
    if every:
        names = ", ".join(path.name for path in every[:SHOWN])
        return DataError(
            f"{root.absolute()}: none of its {host.counted(len(every), 'NIfTI file')} ({names}) matches --pattern"
            f" {settings.pattern!r}.",
            "Type --pattern '*.nii*' for all of them.",
        )
    below = 0 if settings.recursive else sum(nifti.is_nifti(path) for path in root.rglob("*"))
    if below:
        return DataError(
            f"{root.absolute()}: holds no NIfTI file; the folders in it hold {below}.",
            "Type --recursive to take those, or name one of these folders with --data.",
        )
    others = sorted(path.name for path in root.iterdir())[:SHOWN]
    held = f"only {', '.join(others)}" if others else "nothing"
    return DataError(
        f"{root.absolute()}: holds no NIfTI file (.nii, .nii.gz), {held}.",
        "Give a folder of volumes with --data, or type --synth-data for made brains.",
    )


def name_of(path: Path, root: Path) -> str:
    """The id of a volume's case: its name, with the folders below `root` in front."""
    return "__".join([*path.relative_to(root).parts[:-1], nifti.stem(path)])


def index(root: Path, settings: Settings) -> list[Case]:
    """Every case of a raw set. Raises DataError for volumes of one name, and for headers that cannot be read, which it
    names and counts."""
    cases: dict[str, Case] = {}
    faults: list[UnetError] = []
    for path in find(root, settings):
        name = name_of(path, root)
        if name in cases:
            raise DataError(
                f"{root.absolute()}: {cases[name].images[0].name} and {path.name} are both case {name}.",
                "Remove one of them, or choose with --pattern, for example --pattern '*.nii.gz'.",
            )
        try:
            head = read_header(path, settings)
        except UnetError as error:
            faults.append(error)
            continue
        cases[name] = Case(name, (path,), lesions_of(path), 1, head.spacing, memory(head))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise DataError(
            f"{faults[0].message.rstrip('.')}{more}.",
            f"{faults[0].hint.rstrip('.')}; all faults: python -m unet check --task brains --data {shell_path(root)}",
        )
    return list(cases.values())


def lesions_of(path: Path) -> tuple[Path, ...]:
    """The mask of lesions beside a volume, where there is one."""
    names = [f"{nifti.stem(path)}{LESIONS}{suffix}" for suffix in (".nii.gz", ".nii")]
    return tuple(path.with_name(name) for name in names if path.with_name(name).exists())[:1]


def inputs(paths: Sequence[Path], settings: Settings) -> dict[str, Path]:
    """name -> volume, of files and folders that a user named. Raises DataError for two of one name."""
    found: dict[str, Path] = {}
    for path in paths:
        each = {name_of(file, path): file for file in find(path, settings)} if path.is_dir() else {}
        if not path.is_dir():
            try:
                files.require_regular(path)
            except StorageError as error:
                raise DataError(error.message, error.hint) from error
            each = {nifti.stem(path): path}
        for name, file in each.items():
            if found.setdefault(name, file) != file:
                raise DataError(
                    f"{file}: another volume, {found[name]}, is case {name} too; their results would meet.",
                    "Predict them one after the other, each with its own --output.",
                )
    return found


def split(ids: Sequence[str], fraction: float) -> Split:
    """The first floor(n x fraction) of the sorted ids train; the others validate, at least one of them unless the
    fraction is 1. Raises DataError for a set of one volume."""
    ordered = sorted(ids)
    if len(ordered) < 2:
        raise DataError(
            f"{host.counted(len(ordered), 'volume')} cannot be split into training and validation"
            f" (--train-fraction {fraction:g}).",
            "Add volumes to the set, or type --split none to train without validation.",
        )
    count = min(math.floor(len(ordered) * fraction), len(ordered) - (fraction < 1))
    return split_off(ordered, ordered[max(1, count) :])


# One volume.


def read_header(path: Path, settings: Settings) -> nifti.Header:
    """The header of a volume. Raises DataError that says how to choose one of several volumes."""
    count = volumes(nifti.raw_header(path))
    if count > 1 and settings.volume is None:
        raise DataError(
            f"{path}: holds {count} volumes (4-D); one is expected.",
            f"Type --volume N to take volume N, 0 to {count - 1}, of such files, or leave this file out.",
        )
    return nifti.read_header(path, volume=settings.volume if count > 1 else None)


def memory(head: nifti.Header) -> int:
    """About how many bytes preparing a volume takes at its peak."""
    return 12 * math.prod(head.shape) + 300_000_000


def turn(head: nifti.Header) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """(the stored axis of each axis of the cube, whether it runs backwards); as stored where the header names no
    orientation."""
    if head.codes is None:
        return (0, 1, 2), (False, False, False)
    order = [next(axis for axis, own in enumerate(head.codes) if own in (code, OPPOSITE[code])) for code in CANONICAL]
    flips = [head.codes[axis] != code for axis, code in zip(order, CANONICAL, strict=True)]
    return tuple(order), tuple(flips)  # type: ignore[return-value]


def turned(volume: Array, order: Sequence[int], flips: Sequence[bool]) -> Array:
    """A volume with axes as stored -> axes of the cube (a view)."""
    return volume.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def stored(volume: Array, order: Sequence[int], flips: Sequence[bool]) -> Array:
    """The inverse of `turned`."""
    return volume[tuple(slice(None, None, -1 if flip else 1) for flip in flips)].transpose(np.argsort(order))


@functools.lru_cache(64)
def _area(count: int, side: int) -> Array:
    """(side, count): row i is the mean over voxels floor(i count / side) .. ceil((i + 1) count / side) - 1."""
    weights = np.zeros((side, count))
    for row in range(side):
        first, last = row * count // side, -(-(row + 1) * count // side)
        weights[row, first:last] = 1 / (last - first)
    return weights


@functools.lru_cache(64)
def _linear(count: int, side: int) -> Array:
    """(side, count): linear interpolation between the centres of voxels; the outermost values go on beyond them."""
    place = np.clip((np.arange(side) + 0.5) * count / side - 0.5, 0, count - 1)
    below = np.minimum(place.astype(int), max(0, count - 2))
    weights = np.zeros((side, count))
    weights[np.arange(side), below] = 1 - (place - below)
    if count > 1:
        weights[np.arange(side), below + 1] += place - below
    return weights


def resized(volume: Array, sides: Sequence[int], kind: Any = _area) -> Array:
    """A volume with other sides, float32: by area (the mean of the voxels that a new one covers, as adaptive average
    pooling) or linearly, along one axis after the other."""
    for axis, side in enumerate(sides):
        matrix = kind(volume.shape[axis], side).astype(np.float32 if volume.size > 2**22 else np.float64)
        volume = np.moveaxis(np.tensordot(matrix, volume, (1, axis)), 0, axis)
    return np.ascontiguousarray(volume, np.float32)


def normalised(cube: Array, start: float) -> tuple[Array, float, float]:
    """A cube cut off at its percentiles 0.05 and 99.95 and scaled to [start, 1], and these two values. Raises
    ValueError for a cube of one value."""
    low, high = (float(value) for value in np.percentile(cube, PERCENTILES))
    if not low < high:
        raise ValueError(f"{low:g}")
    scaled = (np.clip(cube, low, high) - low) / (high - low)
    return (start + (1 - start) * scaled).astype(np.float32), low, high


def start_of(settings: Settings) -> float:
    """The dark end of the scale."""
    return 0.0 if settings.output_activation == "sigmoid" else -1.0


def without_nan(volume: Array, path: Path) -> Array:
    """NaN as background: 0 where the volume's values lie on both sides of it or begin there, since scanners and
    strippers write 0 (and interpolation a little less), else the smallest value. Raises DataError where all is NaN."""
    gaps = np.isnan(volume)
    if not gaps.any():
        return volume
    if gaps.all():
        raise DataError(f"{path}: all of its voxels are NaN.", "Mend the volume, or remove it.")
    low, high = float(np.nanmin(volume)), float(np.nanmax(volume))
    return np.where(gaps, np.float32(0 if low <= 0 <= high else low), volume)


def prepare_image(path: Path, settings: Settings) -> tuple[Array, Grid, list[list[str]]]:
    """A volume -> cube (1, side, side, side) float32, the way back, and what was odd (kind, words). Raises
    DataError."""
    head = read_header(path, settings)
    header_notes = len(head.notes)
    volume = without_nan(nifti.read_volume(head, math.nan), path)
    order, flips = turn(head)
    cube = resized(turned(volume, order, flips), (settings.resolution,) * 3)
    start = start_of(settings)
    try:
        cube, low, high = normalised(cube, start)
    except ValueError as error:
        raise DataError(
            f"{path}: its {times(head.shape)} voxels hold one value, {error}, but for a share of"
            f" {100 - PERCENTILES[1]:.2g} %: there is nothing to learn from it.",
            "Give the volume with its true values, or remove the file.",
        ) from error
    remarks = [["header", note] for note in head.notes[:header_notes]]
    remarks += [["NaN", note] for note in head.notes[header_notes:]]
    if head.codes is None:
        remarks.append(["orientation", f"{path}: names no orientation; its axes are taken as stored"])
    return cube[None], Grid(head.shape, order, flips, low, high, start), remarks


def prepare(case: Case, settings: Settings) -> dict[str, Any]:
    """A raw case -> arrays for the cache: image (1, D, H, W) float32, mask (1, D, H, W) uint8 of 1 in the brain, 2 in a
    lesion. Raises DataError."""
    image, grid, remarks = prepare_image(case.images[0], settings)
    mask = (image > grid.start + (1 - grid.start) * DARKEST).astype(np.uint8)
    if case.labels:
        mask[lesions(case.labels[0], grid, settings)[None]] = LESION
    return {"image": image, "mask": mask, "grid": grid, **mask_facts(mask), "remarks": remarks}


def lesions(path: Path, grid: Grid, settings: Settings) -> Array:
    """Where at least half of a voxel of the cube (D, H, W) is lesion, by the mask of a volume. Raises DataError."""
    head = nifti.read_header(path)
    if head.shape != grid.raw:
        raise DataError(
            f"{path}: a mask of {times(head.shape)} voxels; its volume has {times(grid.raw)}.",
            "Give the mask the grid of its volume, or remove it.",
        )
    inside = (nifti.read_volume(head) > 0).astype(np.float32)
    return resized(turned(inside, grid.order, grid.flips), (settings.resolution,) * 3) >= 0.5


def restore(cube: Array, grid: Grid, scale: bool = False, shift: bool = False) -> Array:
    """A cube (D, H, W) -> float32 on the volume's own grid, axes as stored; `scale`: in units of its intensities (a
    standard deviation), `shift`: and from its zero (a mean)."""
    sides = [grid.raw[axis] for axis in grid.order]
    if shift:
        cube = cube - grid.start
    if scale:
        cube = cube * ((grid.high - grid.low) / (1 - grid.start))
    if shift:
        cube = cube + grid.low
    return stored(resized(cube, sides, _linear), grid.order, grid.flips)


def content_key(volume: Array) -> str:
    """A name for a volume's content."""
    return files.digest(np.ascontiguousarray(volume).tobytes())


# The cache.


def mask_facts(mask: Array) -> dict[str, Any]:
    """foreground: the voxels of the brain (with its lesions), and of lesions."""
    require_values(mask, {0, BRAIN, LESION})
    return {"foreground": [int((mask > 0).sum()), int((mask == LESION).sum())]}


def require_cube(path: Path, image: Array, mask: Array, settings: Mapping[str, Any]) -> None:
    """Raise CacheError unless arrays of another program are a cube of the resolution asked for."""
    side = settings["resolution"]
    if image.shape != (1, side, side, side) or mask.shape != image.shape or image.dtype != np.float32:
        raise CacheError(
            f"{path.absolute()}: {times(image.shape)} {image.dtype} with a mask of {times(mask.shape)} is not"
            f" 1 x {side} x {side} x {side} float32 (--resolution {side}).",
            f"Type --resolution {image.shape[-1]}, or name another --cache.",
        )


def cost_of(shape: tuple[int, ...]) -> int:
    return 1


def counted(shape: tuple[int, ...]) -> int:
    return 2


LAYOUT = Layout("brains", ".npy", "_brain.npy", 1, cost_of, require_cube, mask_facts, counted)


def require_levels(state: Mapping[str, Any], resolution: int) -> None:
    """Raise DataError where weights are of a network for another resolution."""
    levels = {int(name.split(".")[1]) for name in state if name.startswith("encoder.") and name.split(".")[1].isdigit()}
    if levels and 1 << max(levels) != resolution:
        raise DataError(
            f"These weights are of a network for {1 << max(levels)}^3 voxels; --resolution {resolution} is asked.",
            f"Leave --resolution out, type --resolution {1 << max(levels)}, or give other weights.",
        )
