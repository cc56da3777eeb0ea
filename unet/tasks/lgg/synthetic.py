"""Made brain MRI in the layout of kaggle_3m: heads with a tumour that shape, place and channels give away together.

A patient is painted tissue by tissue from smooth random fields. On FLAIR, fat and the caps of the ventricles are as
bright as the tumour, so no threshold finds it; a network with some context learns it within minutes.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.errors import DataError
from unet.files import atomic, make_folder, read_json, remove_leftovers, write_json

Array = NDArray[Any]
VERSION = 1
# Grey values of (pre-contrast, FLAIR, post-contrast), before the patient's contrast, bias field and noise.
TISSUES = {
    "fat": (186, 150, 178),
    "skull": (18, 14, 18),
    "fluid": (30, 20, 30),
    "grey": (70, 84, 76),
    "air": (4, 4, 4),
    "white": (96, 66, 98),
    "muscle": (62, 50, 78),
    "vessel": (70, 50, 172),
    "cap": (74, 136, 76),
    "lesion": (56, 136, 56),
}
POST = (2,)
NAME = "TCGA_PH_{:04d}_20000101"  # PH: phantom


def _power(base: Array, exponent: float) -> Array:
    """In float64, then rounded: numpy's powers of float32 differ in the last bit between processors, and the same seed
    is to give the same set on all of them."""
    return np.asarray((base.astype(np.float64) ** exponent).astype(np.float32))


class _Head:
    """A canvas `image` (3, S, H, W); x (sideways), y (to the back) and z (up) in a head whose skin is at `radius` 1."""

    def __init__(self, rng: np.random.Generator, slices: int, side: int) -> None:
        self.rng, self.shape, self.pixel = rng, (slices, side, side), 1 / (0.39 * side)
        angle, shifts = rng.uniform(-0.2, 0.2), rng.uniform(-0.025, 0.025, 2)
        row, column = ((np.arange(side) + 0.5) / side - 0.5 + shift for shift in shifts)
        x = (np.cos(angle) * column + np.sin(angle) * row[:, None]) / rng.uniform(0.34, 0.375)
        y = (np.cos(angle) * row[:, None] - np.sin(angle) * column) / rng.uniform(0.41, 0.445)
        self.x = (x * (1.08 - 0.1 * y)).astype(np.float32) + 0.035 * self.field(3, 4, 4)
        self.y = y.astype(np.float32) + 0.03 * self.field(3, 4, 4)
        self.z = np.linspace(-0.985, 0.985, slices, dtype=np.float32)[:, None, None]
        self.radius = np.sqrt(self.x**2 + self.y**2 + _power(np.abs(self.z), 2.6))
        self.image = np.zeros((3, *self.shape), np.float32)
        power, gain = rng.uniform(0.88, 1.14, 3), 255 * rng.uniform(0.75, 1.2, 3)
        self.values = {
            tissue: ((np.array(grey) / 255) ** power * gain * rng.normal(1, 0.04, 3)).tolist()
            for tissue, grey in TISSUES.items()
        }

    def field(self, *cells: int) -> Array:
        """Smooth random field (S, H, W) of unit variance: a cubic B-spline over noise on `cells` along each axis."""
        field: Array = self.rng.standard_normal([count + 3 for count in cells], dtype=np.float32)
        for axis in (2, 1, 0):
            at = (np.arange(self.shape[axis]) + 0.5) / self.shape[axis] * cells[axis]
            first, t = at.astype(int), at % 1
            terms = np.array(((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)) / 6
            # 151 / 315 is the mean over t of the sum of the squared terms.
            weights = (terms * (315 / 151) ** 0.5).astype(np.float32).reshape(4, -1, *(1,) * (2 - axis))
            grid, field = field, np.take(field, first, axis) * weights[0]
            for k in (1, 2, 3):
                field += np.take(grid, first + k, axis) * weights[k]
        return field

    def edge(self, distance: Array, pixels: float = 2, width: float | None = None) -> Array:
        """0 outside, 1 inside, with an edge of some pixels, or of `width`, where the signed `distance` is 0."""
        return np.asarray(np.clip(distance / (width or pixels * self.pixel) + 0.5, 0, 1))

    def pair(self, centre: tuple[float, float, float], radii: tuple[float, float, float], bend: float = 0) -> Array:
        """Signed distance (S, H, W), positive inside, to two ellipsoids left and right, bent outwards by `bend`."""
        (x, y, z), (a, b, c) = centre, radii
        u, v = (np.abs(self.x) - x - bend * self.y**2) / a, (self.y - y) / b
        level: Array = np.sqrt(u * u + v * v + ((self.z - z) / c) ** 2) + 1e-3
        level *= (1 - level) / (np.sqrt((u / a) ** 2 + (v / b) ** 2) + 1e-3)
        return level

    def paint(self, tissue: str, alpha: Array, channels: tuple[int, ...] = (0, 1, 2), flair: Any = 1) -> None:
        """Blend a tissue in with opacity `alpha` (S, H, W); `flair` modulates its FLAIR value."""
        for channel in channels:
            plane = self.image[channel]
            plane += alpha * ((flair if channel == 1 else 1) * self.values[tissue][channel] - plane)


def _shell(head: _Head) -> Array:
    """Paint scalp, skull, fluid, folded cortex and white matter; returns the brain's opacity (S, H, W)."""
    head.paint(
        "fat",
        head.edge(1 - head.radius) * (1 - 0.6 * _power(head.z, 12)),
        flair=np.clip(1.05 + 0.22 * head.field(4, 7, 7), 0.75, 1.5),
    )
    head.paint("skull", head.edge(0.92 - head.radius))
    head.paint("fluid", head.edge(0.855 - head.radius))
    depth = 0.84 - head.radius
    brain = head.edge(depth)
    head.paint("grey", brain)
    fold = np.abs(head.field(max(2, head.shape[0] * 2 // 3), 34, 34))
    core = np.maximum(depth - 0.16 - 0.06 * head.field(5, 8, 8), 0)
    head.paint("white", head.edge(np.minimum(depth - 0.05, 0.07 * (fold - 0.6) + 0.25 * core), 3))
    sulci = head.edge(np.minimum(0.05 * (0.3 - fold), 0.13 + 0.05 * head.field(4, 5, 5) - depth), 1.5) * brain
    head.paint("fluid", 0.85 * sulci)
    head.paint("vessel", sulci * head.edge(head.field(8, 12, 12) - 1, width=0.5), POST)
    head.paint("fluid", 0.8 * head.edge(0.012 - np.abs(head.x)) * head.edge(0.3 - depth, width=0.05) * brain)
    return brain


def _inside(head: _Head, brain: Array) -> Array:
    """Paint nuclei, ventricles with bright caps, hindbrain, face, vessels; returns the opacity of what is brain now."""
    head.paint("grey", 0.8 * head.edge(head.pair((0.26, 0.05, 0.05), (0.09, 0.2, 0.25)), 3))
    head.paint("grey", 0.7 * head.edge(head.pair((0.1, 0.22, 0.0), (0.08, 0.12, 0.2)), 3))
    horns = head.pair((0.07, 0.0, 0.1), (0.055 * head.rng.uniform(0.85, 1.25), 0.42, 0.34), 0.32)
    rim = np.minimum(horns + 0.025 + 0.02 * head.field(6, 10, 10), 0.01 - horns)
    head.paint("cap", head.edge(rim) * head.edge(np.abs(head.y) - 0.2, width=0.1) * brain)
    head.paint("fluid", head.edge(horns, 1.5))
    hind, stem = head.pair((0.24, 0.42, -0.62), (0.34, 0.3, 0.26)), head.pair((0.0, 0.08, -0.6), (0.16, 0.17, 0.4))
    waves = 70 * head.y + 25 * head.x**2 + 1.5 * head.field(5, 12, 12)
    folia = 0.3 + 0.3 * np.sin(waves.astype(np.float64)).astype(np.float32)  # as in `_power`
    head.paint("fluid", 0.9 * head.edge(np.maximum(hind, stem) + 0.035) * brain)
    head.paint("grey", head.edge(hind) * brain)
    head.paint("white", head.edge(hind - 0.04) * folia)
    head.paint("white", head.edge(stem))
    below = 0.6 * (-0.52 - head.z - 1.3 * (head.y + 0.35)) + 0.035 * head.field(4, 8, 8)
    face, lumps = head.edge(below, 3) * head.edge(0.93 - head.radius, 3), head.field(9, 18, 18)
    head.paint("muscle", face)
    head.paint("fat", face * head.edge(lumps - 0.6, width=0.3))
    head.paint("air", face * head.edge(-0.9 - lumps, width=0.3))
    orbit = head.pair((0.38, -0.62, -0.5), (0.2, 0.24, 0.17))
    head.paint("fat", head.edge(orbit))
    head.paint("fluid", head.edge(orbit - 0.07))
    head.paint("vessel", head.edge(0.05 - np.abs(head.x) - np.abs(head.radius - 0.85)) * (head.y > -0.2), POST)
    brain *= 1 - face
    spots = head.field(head.shape[0], 60, 60)  # rarely beyond 3 deviations, and then in small spots
    head.paint("cap", head.edge(spots - 3.2, width=0.5) * brain, (0, 1))
    head.paint("vessel", head.edge(-2.9 - spots, width=0.5) * brain, POST)
    return brain


def _lesion(head: _Head, brain: Array) -> Array:
    """Paint one irregular lesion with a soft edge, and a ring in it that takes contrast; returns its mask (S, H, W)."""
    from scipy import ndimage

    rng, share, aspect = head.rng, head.rng.uniform(0.011, 0.019), head.rng.uniform(0.75, 1.3)  # share of all voxels
    across, along = (float(np.sqrt(3 * share / np.pi * ratio)) / 0.39 for ratio in (aspect, 1 / aspect))
    x, y, z = int(rng.choice((-1, 1))) * rng.uniform(0.25, 0.42), rng.uniform(-0.35, 0.3), rng.uniform(-0.1, 0.2)
    level = (
        ((head.x - x) / across) ** 2 + ((head.y - y) / along) ** 2 + _power((head.z - z) / rng.uniform(0.36, 0.44), 4)
    )
    level += 0.4 * head.field(5, 8, 8) + 0.28 * head.field(8, 18, 18)
    count = int(share * level.size)
    level += 1 - np.partition(np.where(brain > 0.5, level, np.inf).ravel(), count)[count]
    parts, _ = ndimage.label((level < 1) & (brain > 0.5))
    mask: Array = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    alpha = head.edge(1 - level, width=0.25) * brain * ndimage.binary_dilation(mask, iterations=2)
    head.paint("lesion", alpha, flair=1 + 0.07 * head.field(8, 24, 24))
    ring = head.edge(0.1 + 0.06 * head.field(6, 14, 14) - np.abs(level - 0.35), width=0.08)
    head.paint("vessel", alpha * ring * rng.uniform(0.3, 1), POST)
    return mask


def _count(seed: int, index: int, slices: int) -> int:
    return slices + int(np.random.default_rng((seed, index, 1)).integers(0, slices // 4 + 1))


def make_patient(seed: int, index: int, slices: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One head: images (S, side, side, 3) of pre-contrast, FLAIR, post-contrast; masks (S, side, side) of 0 and 255.

    S is `slices` up to a quarter more. The same arguments give the same arrays.
    """
    rng = np.random.default_rng((seed, index))
    head = _Head(rng, _count(seed, index, slices), side)
    brain = _inside(head, _shell(head))
    mask = _lesion(head, brain)
    images, sigma = np.empty((*head.shape, 3), np.uint8), np.float32(rng.uniform(2, 4.5))
    for channel, plane in enumerate(head.image):
        plane *= 1 + 0.12 * head.field(2, 3, 3)  # bias field
        real, imaginary = (sigma * rng.standard_normal(head.shape, dtype=np.float32) for _ in range(2))
        images[..., channel] = np.clip(np.hypot(plane + real, imaginary) + 0.5, 0, 255)  # Rician noise
    return images, mask.astype(np.uint8) * np.uint8(255)


def _files(seed: int, index: int, slices: int) -> list[str]:
    stem, numbers = NAME.format(index + 1), range(1, _count(seed, index, slices) + 1)
    return [f"{stem}_{n}{end}.tif" for n in numbers for end in ("", "_mask")]


def _write_patient(folder: Path, seed: int, slices: int, side: int, index: int) -> None:
    import tifffile

    target = make_folder(folder / NAME.format(index + 1))
    remove_leftovers(target)
    arrays = (array for pair in zip(*make_patient(seed, index, slices, side), strict=True) for array in pair)
    for name, array in zip(_files(seed, index, slices), arrays, strict=True):
        with atomic(target / name) as stream:
            tifffile.imwrite(stream, array, photometric="rgb" if array.ndim == 3 else "minisblack", metadata=None)


RECORD = {"patients": int}  # what phantom.json must say
MOST = 100_000  # patients of a made set: a larger number is a damaged one


def write_set(folder: Path, patients: int, slices: int, side: int, seed: int, overwrite: bool = False) -> None:
    """Write `<folder>/<patient>/<patient>_<n>.tif` and `<patient>_<n>_mask.tif` from n = 1 on, then phantom.json.

    Leaves a whole set of the same parameters alone and completes an interrupted one. Raises DataError where the folder
    holds a set of other parameters, or patients of none; `overwrite` replaces made patients and never touches others.
    """
    wanted = {"seed": seed, "patients": patients, "slices": slices, "side": side, "version": VERSION}
    record, begun = make_folder(folder) / "phantom.json", folder / "phantom.unfinished.json"
    found = next((read_json(path, RECORD) for path in (record, begun) if path.exists()), None)
    older = min(found["patients"], MOST) if found else 0
    targets = [folder / NAME.format(index + 1) for index in range(max(patients, older))]
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path not in targets)
    clash = [target for target in targets[older:] if target.is_dir() and any(target.iterdir())]
    if clash:
        raise DataError(
            f"{folder.absolute()}: holds {clash[0].name}, which was not made here.", "Name another folder with --data."
        )
    if found != wanted and (found or others) and not overwrite:
        held = f"made patients with {found}" if found else f"{len(others)} folders of no made set ({others[0]}, ...)"
        raise DataError(
            f"{folder.absolute()}: holds {held}; asked for is {wanted}.",
            "Add --overwrite to replace made patients (other folders stay), or name another folder with --data.",
        )
    if found != wanted or overwrite:  # old slices go first: none may pass for new, should this call be interrupted
        for path in (record, begun, *(path for target in targets for path in target.glob(f"*{target.name}_*.tif*"))):
            path.unlink(missing_ok=True)
        for target in targets:
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
    missing = [
        index
        for index, target in enumerate(targets[:patients])
        if not all((target / name).exists() for name in _files(seed, index, slices))
    ]
    if missing or not record.exists():
        write_json(begun, wanted)
        work = functools.partial(_write_patient, folder, seed, slices, side)
        host.run_all(work, missing, "making patients", "patient")
        write_json(record, wanted)
        begun.unlink()
