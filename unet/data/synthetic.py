"""Made brain MRI in the layout of kaggle_3m: heads with a tumour that only shape, place and channels together give away.

A patient is painted layer by layer from smooth random fields: scalp, skull, folded cortex, ventricles, face, vessels, and one
lesion. The fat of scalp and face and the caps of the ventricles are as bright on FLAIR as the lesion, so no threshold finds it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.errors import DataError, UnetError
from unet.files import atomic, make_folder, read_json, remove_leftovers, write_json

Array = NDArray[Any]
VERSION = 1
RECORD, UNFINISHED = "phantom.json", "phantom.unfinished.json"
# Grey values of (pre-contrast, FLAIR, post-contrast), before bias field, gain and noise.
TISSUES = {"fat": (186, 150, 178), "skull": (18, 14, 18), "fluid": (30, 20, 30), "grey": (70, 84, 76), "white": (96, 66, 98),
           "muscle": (62, 50, 78), "air": (4, 4, 4), "vessel": (70, 50, 172), "cap": (74, 136, 76), "lesion": (56, 136, 56)}


def _stretch(grid: Array, size: int, axis: int) -> Array:
    """Cubic B-spline through the `n` knots of one axis, at `size` points: n -> size."""
    at = (np.arange(size) + 0.5) / size * (grid.shape[axis] - 3)
    first = at.astype(int)
    t = at - first
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    shape = [-1 if other == axis else 1 for other in range(grid.ndim)]
    result = np.take(grid, first, axis) * (weights[0] / 6).astype(np.float32).reshape(shape)
    for k in range(1, 4):
        result += np.take(grid, first + k, axis) * (weights[k] / 6).astype(np.float32).reshape(shape)
    return result


def _field(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, ...]) -> Array:
    """Smooth Gaussian random field of `shape` and unit variance; `cells` along each axis set how fine it is."""
    field: Array = rng.standard_normal([count + 3 for count in cells], dtype=np.float32)
    for axis in reversed(range(len(shape))):
        field = _stretch(field, shape[axis], axis)
    # 151/315 is the mean over t of the sum of squared weights of the cubic B-spline.
    return field * np.float32((315 / 151) ** (len(shape) / 2))


def _ramp(distance: Array, width: float) -> Array:
    """0 outside, 1 inside, a soft edge of `width` where the signed `distance` is 0."""
    result = distance * np.float32(1 / width)
    result += np.float32(0.5)
    return np.clip(result, 0, 1, out=result)


@dataclasses.dataclass(frozen=True)
class _Head:
    """Head coordinates of each voxel: x to the right, y to the back, z up (S, H, W), skin at `radius` 1; `pixel` is a step."""

    x: Array
    y: Array
    z: Array
    radius: Array
    pixel: float


def _head(rng: np.random.Generator, shape: tuple[int, int, int]) -> _Head:
    """A turned, shifted, slightly dented ellipsoid, small at both ends of the stack."""
    side = shape[1]
    angle, across, along = rng.uniform(-0.2, 0.2), rng.uniform(0.34, 0.375), rng.uniform(0.41, 0.445)
    row, column = ((np.arange(side) + 0.5) / side - 0.5 + shift for shift in rng.uniform(-0.025, 0.025, 2))
    flat_x = (np.cos(angle) * column + np.sin(angle) * row[:, None]) / across
    flat_y = (np.cos(angle) * row[:, None] - np.sin(angle) * column) / along
    x = flat_x * (1.08 - 0.1 * flat_y) + 0.035 * _field(rng, shape, (3, 4, 4))
    y = flat_y + 0.03 * _field(rng, shape, (3, 4, 4))
    z = np.linspace(-0.985, 0.985, shape[0], dtype=np.float32)[:, None, None]
    x, y = x.astype(np.float32), y.astype(np.float32)
    return _Head(x, y, z, np.sqrt(x * x + y * y + np.abs(z) ** np.float32(2.6)), 1 / (side * 0.39))


class _Canvas:
    """The three channels (3, S, H, W) that tissues are painted on, with this patient's own contrast and gain."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
        self.image = np.zeros((3, *shape), np.float32)
        power, gain = rng.uniform(0.88, 1.14, 3), rng.uniform(0.75, 1.2, 3)
        self.values = {tissue: (255 * (np.array(grey) / 255) ** power * gain * rng.normal(1, 0.04, 3)).astype(np.float32)
                       for tissue, grey in TISSUES.items()}

    def paint(self, tissue: str, alpha: Array, flair: Any = 1, channels: tuple[int, ...] = (0, 1, 2)) -> None:
        """Blend a tissue in with opacity `alpha` (S, H, W); `flair` modulates its FLAIR value."""
        for channel in channels:
            value = self.values[tissue][channel] * (flair if channel == 1 else 1)
            self.image[channel] += alpha * (value - self.image[channel])


def _shell(rng: np.random.Generator, canvas: _Canvas, head: _Head) -> Array:
    """Paint scalp, skull, fluid, folded cortex and white matter; returns the opacity of the brain (S, H, W)."""
    shape, pixel = head.x.shape, head.pixel
    patches = np.clip(1.05 + 0.22 * _field(rng, shape, (4, 7, 7)), 0.75, 1.5)
    canvas.paint("fat", _ramp(1 - head.radius, 2 * pixel) * (1 - 0.6 * np.abs(head.z) ** 12), patches)
    canvas.paint("skull", _ramp(0.92 - head.radius, 2 * pixel))
    canvas.paint("fluid", _ramp(0.855 - head.radius, 2 * pixel))
    depth = 0.84 - head.radius
    brain = _ramp(depth, 2 * pixel)
    canvas.paint("grey", brain)
    fold = np.abs(_field(rng, shape, (max(2, shape[0] * 2 // 3), 34, 34)))
    inner = np.maximum(depth - 0.16 - 0.06 * _field(rng, shape, (5, 8, 8)), 0)
    canvas.paint("white", _ramp(np.minimum(depth - 0.05, 0.07 * (fold - 0.6) + 0.25 * inner), 3 * pixel))
    wide = 0.13 + 0.05 * _field(rng, shape, (4, 5, 5))
    sulcus = _ramp(np.minimum(0.05 * (0.3 - fold), wide - depth), 1.5 * pixel) * brain
    canvas.paint("fluid", 0.85 * sulcus)
    canvas.paint("vessel", sulcus * _ramp(_field(rng, shape, (8, 12, 12)) - 1, 0.5), channels=(2,))
    canvas.paint("fluid", _ramp(0.012 - np.abs(head.x), 2 * pixel) * _ramp(0.3 - depth, 0.05) * brain * 0.8)
    return brain


def _oval(head: _Head, centre: tuple[float, float, float], radii: tuple[float, float, float], bend: float = 0) -> Array:
    """Signed distance (positive inside, S H W) to a pair of ellipsoids left and right, bent outwards by `bend`."""
    (x, y, z), (a, b, c) = centre, radii
    u, v = (np.abs(head.x) - x - bend * head.y**2) / a, (head.y - y) / b
    level = np.sqrt(u * u + v * v + ((head.z - z) / c) ** 2) + 1e-3
    return (1 - level) * level / (np.sqrt((u / a) ** 2 + (v / b) ** 2) + 1e-3)


def _inner(rng: np.random.Generator, canvas: _Canvas, head: _Head, brain: Array) -> Array:
    """Paint nuclei, ventricles with their bright caps, spots, sinus and face; returns what is left of the brain."""
    shape, pixel = head.x.shape, head.pixel
    canvas.paint("grey", 0.8 * _ramp(_oval(head, (0.26, 0.05, 0.05), (0.09, 0.2, 0.25)), 3 * pixel))
    canvas.paint("grey", 0.7 * _ramp(_oval(head, (0.1, 0.22, 0.0), (0.08, 0.12, 0.2)), 3 * pixel))
    size = rng.uniform(0.85, 1.25)
    horns = _oval(head, (0.07, 0.0, 0.1), (0.055 * size, 0.42, 0.34), 0.32)
    thick = 0.025 + 0.02 * _field(rng, shape, (6, 10, 10))
    caps = _ramp(np.minimum(horns + thick, 0.01 - horns), 2 * pixel) * _ramp(np.abs(head.y) - 0.2, 0.1) * brain
    canvas.paint("cap", caps)
    canvas.paint("fluid", _ramp(horns, 1.5 * pixel))
    hind = _oval(head, (0.24, 0.42, -0.62), (0.34, 0.3, 0.26))
    folia = 0.5 + 0.5 * np.sin(70 * head.y + 25 * head.x * head.x + 1.5 * _field(rng, shape, (5, 12, 12)))
    stem = _oval(head, (0.0, 0.08, -0.6), (0.16, 0.17, 0.4))
    canvas.paint("fluid", 0.9 * _ramp(np.maximum(hind, stem) + 0.035, 2 * pixel) * brain)
    canvas.paint("grey", _ramp(hind, 2 * pixel) * brain)
    canvas.paint("white", _ramp(hind - 0.04, 2 * pixel) * (0.6 * folia))
    canvas.paint("white", _ramp(stem, 2 * pixel))
    low = 0.6 * (-0.52 - head.z - 1.3 * (head.y + 0.35)) + 0.035 * _field(rng, shape, (4, 8, 8))
    face = _ramp(low, 3 * pixel) * _ramp(0.93 - head.radius, 3 * pixel)
    lumps = _field(rng, shape, (9, 18, 18))
    canvas.paint("muscle", face)
    canvas.paint("fat", face * _ramp(lumps - 0.6, 0.3))
    canvas.paint("air", face * _ramp(-0.9 - lumps, 0.3))
    orbit = _oval(head, (0.38, -0.62, -0.5), (0.2, 0.24, 0.17))
    canvas.paint("fat", _ramp(orbit, 2 * pixel))
    canvas.paint("fluid", _ramp(orbit - 0.07, 2 * pixel))
    sinus = 0.05 - np.abs(head.x) - np.abs(head.radius - 0.85)
    canvas.paint("vessel", _ramp(sinus, 2 * pixel) * (head.y > -0.2), channels=(2,))
    return brain * (1 - face)


def _spots(rng: np.random.Generator, canvas: _Canvas, brain: Array, tissue: str, count: int, channels: tuple[int, ...]) -> None:
    """Paint `count` small bright blobs, one or two slices high, at random places of the brain."""
    depth, side = brain.shape[:2]
    reach = max(3, side // 40)
    steps = np.arange(-reach, reach + 1)
    for _ in range(count):
        z, y, x = (int(rng.integers(0, depth)), *(int(value) for value in rng.integers(reach, side - reach, 2)))
        radius, squeeze = side * rng.uniform(0.005, 0.009), rng.uniform(0.6, 1.6)
        blob = np.exp(-((steps[:, None] / squeeze) ** 2 + (steps * squeeze) ** 2) / (2 * radius**2)).astype(np.float32)
        place = np.s_[z:z + 1 + int(rng.integers(0, 2)), y - reach:y + reach + 1, x - reach:x + reach + 1]
        part = _Canvas.__new__(_Canvas)
        part.image, part.values = canvas.image[(slice(None), *place)], canvas.values
        part.paint(tissue, blob * brain[place], channels=channels)


def _lesion(rng: np.random.Generator, canvas: _Canvas, head: _Head, brain: Array) -> Array:
    """Paint one irregular lesion with a soft edge and a ring that takes contrast; returns its mask (S, H, W), bool."""
    from scipy import ndimage

    shape = head.x.shape
    area, aspect = rng.uniform(0.032, 0.055), rng.uniform(0.75, 1.3)
    across, along = (np.sqrt(area / np.pi * ratio) / 0.39 for ratio in (aspect, 1 / aspect))
    x, y, z = rng.choice((-1, 1)) * rng.uniform(0.25, 0.42), rng.uniform(-0.35, 0.3), rng.uniform(-0.1, 0.2)
    level = ((head.x - x) / across) ** 2 + ((head.y - y) / along) ** 2 + ((head.z - z) / rng.uniform(0.36, 0.44)) ** 4
    level += 0.3 * _field(rng, shape, (5, 8, 8)) + 0.2 * _field(rng, shape, (8, 18, 18))
    parts, _ = ndimage.label((level < 1) & (brain > 0.5))
    mask = parts == np.argmax(np.bincount(parts.ravel())[1:]) + 1
    near = ndimage.binary_dilation(mask, iterations=2)
    alpha = _ramp(1 - level, 0.25) * brain * near
    canvas.paint("lesion", alpha, 1 + 0.07 * _field(rng, shape, (8, 24, 24)))
    ring = _ramp(0.1 + 0.06 * _field(rng, shape, (6, 14, 14)) - np.abs(level - 0.35), 0.08)
    canvas.paint("vessel", alpha * ring * rng.uniform(0.3, 1), channels=(2,))
    return mask


def make_patient(seed: int, index: int, slices: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One head: images (S, side, side, 3) of pre-contrast, FLAIR and post-contrast, masks (S, side, side) of 0 and 255.

    S is `slices` up to a quarter more. The same arguments give the same arrays.
    """
    rng = np.random.default_rng((seed, index))
    shape = (_count(seed, index, slices), side, side)
    head = _head(rng, shape)
    canvas = _Canvas(rng, shape)
    brain = _inner(rng, canvas, head, _shell(rng, canvas, head))
    _spots(rng, canvas, brain, "cap", 25, (0, 1))
    _spots(rng, canvas, brain, "vessel", 60, (2,))
    mask = _lesion(rng, canvas, head, brain)
    result = np.empty((*shape, 3), np.uint8)
    sigma = np.float32(rng.uniform(2, 4.5))
    for channel, plane in enumerate(canvas.image):
        plane *= 1 + 0.12 * _field(rng, shape, (2, 3, 3))
        plane += sigma * rng.standard_normal(shape, dtype=np.float32)
        noisy = np.hypot(plane, sigma * rng.standard_normal(shape, dtype=np.float32))  # magnitude of a complex signal: Rician
        result[..., channel] = np.clip(noisy + 0.5, 0, 255)
    return result, mask.astype(np.uint8) * np.uint8(255)


def _count(seed: int, index: int, slices: int) -> int:
    return slices + int(np.random.default_rng((seed, index, 1)).integers(0, slices // 4 + 1))
