"""Made brains in the layout of a raw set: skull-stripped T1 volumes with folded surfaces, ventricles, deep grey matter,
and in some of them lesions with their masks. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet import host
from unet.data.io import nifti
from unet.errors import DataError, UnetError
from unet.files import make_folder, read_json, remove_leftovers, write_json

Array = NDArray[Any]
VERSION = 1
RECORD = "made_brains.json"
NAME = "brain_{:05d}"
HEAD = 200.0  # mm of the cube
SHARE = 0.25  # of the brains that have lesions
CSF, GREY, WHITE = 250.0, 600.0, 950.0
SCHEMA = {"version": int, "seed": int, "side": int, "patients": int}


def write_set(path: Path, count: int, side: int, seed: int, overwrite: bool = False) -> None:
    """Write `count` brains of side^3 voxels, `brain_00000.nii.gz` and so on, int16, with `brain_00000_lesion.nii.gz`
    beside those that have lesions. A set of the same settings is kept, and completed where it was not finished. Raises
    DataError for a folder that holds other files."""
    wanted = {"version": VERSION, "seed": seed, "side": side, "patients": count}
    require_own(path, wanted, overwrite)
    make_folder(path)
    remove_leftovers(path)
    if read_record(path) != wanted:
        for file in made_files(path):
            file.unlink(missing_ok=True)
        write_json(path / RECORD, wanted)
    todo = [number for number in range(count) if not (path / f"{NAME.format(number)}.nii.gz").exists()]
    for number in host.progress(todo, name="synthesize", unit="brain"):
        volume, lesions = make_brain(seed, number, side)
        spacing = (HEAD / side,) * 3
        if lesions.any():
            target = path / f"{NAME.format(number)}_lesion.nii.gz"
            nifti.write(target, lesions.astype(np.uint8), nifti.new_header(lesions.shape, np.uint8, spacing))
        header = nifti.new_header(volume.shape, np.int16, spacing)
        nifti.write(path / f"{NAME.format(number)}.nii.gz", volume, header)  # last: it says that the brain is made


def read_record(path: Path) -> dict[str, Any] | None:
    """What made the set of a folder; None where no set was made there."""
    try:
        found: dict[str, Any] = read_json(path / RECORD, SCHEMA)
    except UnetError:
        return None
    return found


def made_files(path: Path) -> list[Path]:
    """The volumes and masks of a made set, those that its record tells of."""
    record = read_record(path)
    names = [NAME.format(number) for number in range(record["patients"])] if record else []
    each = [path / f"{name}{ending}" for name in names for ending in (".nii.gz", "_lesion.nii.gz")]
    return [file for file in each if file.exists()]


def require_own(path: Path, wanted: dict[str, Any], overwrite: bool) -> None:
    """Raise DataError unless a folder is new, or holds a made set of these settings (of any with `overwrite`)."""
    if not path.exists():
        return
    record, held = read_record(path), sorted(item.name for item in path.iterdir()) if path.is_dir() else [path.name]
    if record is None and held:
        raise DataError(
            f"{path.absolute()}: holds {host.counted(len(held), 'file')} of another origin ({held[0]}).",
            "Name another folder with --data.",
        )
    if record is not None and record != wanted and not overwrite:
        raise DataError(
            f"{path.absolute()}: holds {record['patients']} brains of {record['side']}^3 (seed {record['seed']}), not"
            f" {wanted['patients']} of {wanted['side']}^3 (seed {wanted['seed']}).",
            "Name another folder with --data, or replace them with --overwrite.",
        )


def make_brain(seed: int, number: int, side: int) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A brain (side, side, side) int16, axes to the right, to the front and up, 0 outside; and its lesions. The same
    arguments give the same arrays."""
    rng = np.random.default_rng((seed, number))
    axes = np.stack(np.meshgrid(*[(np.arange(side) + 0.5) * 2 / side - 1] * 3, indexing="ij")).astype(np.float32)
    head = np.array([0.68, 0.84, 0.64]) * rng.uniform(0.92, 1.06, 3)  # half axes, of half the cube
    shift = rng.uniform(-0.03, 0.03, 3)
    x, y, z = (axes[i] - shift[i] for i in range(3))
    grooves = sum(depth * np.exp(-((bumps(rng, side, waves) / 0.22) ** 2)) for waves, depth in ((9, 0.3), (13, 0.2)))
    folds = 0.03 * bumps(rng, side, 5) - grooves
    radius = np.sqrt((x / head[0]) ** 2 + (y / head[1]) ** 2 + ((z + 0.12 * z**2) / head[2]) ** 2)
    fissure = 0.6 * np.exp(-((x / 0.03) ** 2)) * np.clip(0.3 + z, 0, 1)  # between the halves, open above
    depth = 1 - radius + (folds - fissure) * np.clip(4 * (radius - 0.55), 0, 1)  # folds are of the surface
    edge = 2.0 / side
    brain = step(depth, edge) >= 0.5
    rim = 0.11 + 0.02 * bumps(rng, side, 8)
    white = step(depth - rim, edge)
    volume = GREY + (WHITE - GREY) * white
    ventricles = np.zeros_like(volume)
    for sign in (-1, 1):
        size = np.array([0.07, 0.34, 0.16]) * rng.uniform(0.8, 1.5)
        middle = np.array([sign * rng.uniform(0.1, 0.15), rng.uniform(-0.05, 0.08), rng.uniform(0.0, 0.1)])
        ventricles = np.maximum(ventricles, ellipsoid((x, y, z - 0.25 * (y - 0.1) ** 2), middle, size, edge))
        nucleus = np.array([0.12, 0.2, 0.13]) * rng.uniform(0.9, 1.2)
        place = np.array([sign * rng.uniform(0.24, 0.3), rng.uniform(-0.02, 0.1), rng.uniform(-0.08, 0.0)])
        volume += (GREY + 100 - volume) * ellipsoid((x, y, z), place, nucleus, edge)
    volume += (CSF - volume) * ventricles
    lesions = np.zeros(volume.shape, bool)
    if rng.random() < SHARE:
        volume, lesions = with_lesions(rng, volume, (x, y, z), brain & (depth > 0.1) & (ventricles < 0.1), side)
    bias = np.exp(0.06 * bumps(rng, side, 2))
    volume = volume * bias + rng.normal(0, 12, volume.shape)
    volume = np.where(brain, np.clip(volume * step(depth, edge), 1, 2000), 0)
    return volume.round().astype(np.int16), lesions & brain


def bumps(rng: np.random.Generator, side: int, waves: int) -> Array:
    """A smooth random field (side, side, side), about `waves` bumps along an axis, mean 0 and deviation 1; the same
    field at every resolution."""
    coarse = rng.normal(size=(waves + 4,) * 3)
    place = (np.arange(side) + 0.5) / side * (waves + 1) + 1
    field = coarse
    for axis in range(3):  # cubic splines along one axis after the other
        field = ndimage.spline_filter1d(field, 3, axis)
    points = np.meshgrid(place, place, place, indexing="ij")
    result: Array = ndimage.map_coordinates(field, points, order=3, prefilter=False).astype(np.float32)
    return (result - result.mean()) / result.std()


def step(distance: Array, edge: float) -> Array:
    """0 below, 1 above 0, with a soft edge as partial volumes have it."""
    return np.clip(distance / edge + 0.5, 0, 1)


def ellipsoid(axes: tuple[Array, Array, Array], middle: Array, half: Array, edge: float) -> Array:
    """1 inside an ellipsoid, 0 outside, with a soft edge."""
    radius = np.sqrt(sum(((axis - m) / h) ** 2 for axis, m, h in zip(axes, middle, half, strict=True)))
    return step((1 - radius) * half.min(), edge)


def with_lesions(
    rng: np.random.Generator, volume: Array, axes: tuple[Array, Array, Array], where: Array, side: int
) -> tuple[Array, NDArray[np.bool_]]:
    """One to three bright or dark ellipsoids about voxels of `where`, and where they cover half of a voxel."""
    covered = np.zeros(volume.shape, np.float32)
    voxels = np.argwhere(where)
    for _ in range(rng.integers(1, 4)):
        place = voxels[rng.integers(len(voxels))]
        middle = np.array([axis[tuple(place)] for axis in axes])
        half = rng.uniform(0.07, 0.18) * rng.uniform(0.7, 1.3, 3)
        inside = ellipsoid(axes, middle, half, 3.0 / side)
        volume = volume + inside * (rng.choice((150.0, 1300.0)) - volume)
        covered = np.maximum(covered, inside)
    return volume, covered >= 0.5
