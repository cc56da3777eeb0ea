"""A volume becomes a cube as the reference program makes it, whatever the order of its axes, and comes back."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import GOLDEN, read_json

from unet.data.io import nifti
from unet.tasks.brains import cube, dataset
from unet.tasks.brains.cube import Grid
from unet.tasks.brains.settings import Settings

REFERENCE = read_json(GOLDEN / "brains_preprocess.json")["values"]
SHAPE = (21, 30, 17)
RAS = np.diag([2.0, 1.5, 3.0, 1.0])


def head_of(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """An ellipsoid of noise in a background of 0."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.6
    noise = np.random.default_rng(seed).uniform(300, 900, shape) + 80 * axes[0] + 50 * axes[1] - 40 * axes[2]
    return np.where(inside, noise, 0).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: Any = RAS, order: Any = None) -> Path:
    """Write a volume whose axes are R, A, S; `order`: nibabel's orientation to store it in."""
    image = nib.Nifti1Image(array, affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if order is None else image.as_reoriented(order)).to_filename(path)
    return path


def orders() -> list[np.ndarray]:
    """All 48 ways to store the axes of a volume."""
    return [
        np.array(list(zip(axes, signs, strict=True)))
        for axes in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]


@pytest.mark.real
@pytest.mark.parametrize("name", REFERENCE)
def test_cubes_are_those_of_the_reference(name: str, real_data: Path) -> None:
    """5e-7: the reference computes in single precision, in another order."""
    wanted = REFERENCE[name]
    path, resolution = name.split("@")
    r = int(resolution)
    array = nifti.read_image(real_data / "brains" / f"{path}.nii.gz")  # axes as stored: so the reference takes them
    image, low, high = cube.cube(array, r)
    exact, place = image.astype(np.float64), np.arange(r)
    assert image.dtype == np.float32 and image.shape == (r, r, r)
    assert np.allclose((low, high), wanted["clip"], rtol=5e-7, atol=1e-6)
    found = {
        "mean": exact.mean(),
        "std": exact.std(),
        "share_below_-0.99": (exact < -0.99).mean(),
        "corner": exact[0, 0, 0],
        "centre": exact[(r // 2,) * 3],
        "probe_[r/4,r/2,r/3]": exact[r // 4, r // 2, r // 3],
    }
    for key, value in found.items():
        assert abs(value - wanted[key]) < 5e-7, key
    for axis, letter in enumerate("xyz"):
        others = tuple(other for other in range(3) if other != axis)
        weighted = (exact.mean(others) * place).mean()
        assert abs(weighted - wanted[f"sum_of_{letter}_index_weighted"]) < 1e-5, letter


def test_every_order_of_the_axes_is_the_same_cube_to_the_bit(tmp_path: Path) -> None:
    array, settings = head_of(), Settings(resolution=8)
    wanted, usual = dataset.prepare_image(save(tmp_path / "a.nii", array), settings)
    back = dataset.restore(wanted[0], usual)
    assert usual.order == (0, 1, 2) and not any(usual.flips) and usual.turned == SHAPE
    for number, order in enumerate(orders()):
        path = save(tmp_path / f"{number}.nii", array, order=order)
        image, grid = dataset.prepare_image(path, settings)
        assert np.array_equal(image, wanted) and grid.turned == SHAPE, order
        stored = nib.load(path)
        restored = dataset.restore(image[0], grid)
        assert restored.shape == stored.shape and restored.dtype == np.float32
        canonical = nib.as_closest_canonical(nib.Nifti1Image(restored, stored.affine))
        assert np.array_equal(np.asarray(canonical.dataobj), back), order
        assert np.array_equal(nib.as_closest_canonical(stored).get_fdata(), array)


def test_the_frame_is_that_of_nibabel_for_an_oblique_volume(tmp_path: Path) -> None:
    turn = np.array([[0.2, -0.95, 0.2], [0.1, 0.2, 0.97], [-0.97, -0.2, 0.1]])
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(turn)[0] * 2
    image = nib.Nifti1Image(head_of(), affine)
    image.to_filename(tmp_path / "a.nii.gz")
    found, grid = dataset.prepare_image(tmp_path / "a.nii.gz", Settings(resolution=16))
    canonical = nib.as_closest_canonical(image).get_fdata()
    assert grid.order != (0, 1, 2)
    assert np.array_equal(found[0], cube.cube(canonical.astype(np.float32), 16)[0])


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 8, 3), (20, 33, 9), (16, 6, 41)])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_values_come_back(shape: tuple[int, int, int], activation: str, tmp_path: Path) -> None:
    """Of a volume that is linear in space, within half a voxel's step of the cube; to rounding where no voxel is
    resampled."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    array = (500 + 100 * axes[0] - 50 * axes[1] + 20 * axes[2]).astype(np.float32)
    path = save(tmp_path / "a.nii.gz", array, np.diag([-1.0, 2.0, -1.5, 1.0]))
    image, grid = dataset.prepare_image(path, Settings(resolution=8, output_activation=activation))
    bottom = 0 if activation == "sigmoid" else -1
    assert image.shape == (1, 8, 8, 8) and image.min() == bottom and image.max() == 1 and grid.bottom == bottom
    assert grid.flips == (True, False, True)
    back = dataset.restore(image[0], grid)
    assert back.shape == shape and np.abs(back - array).max() < (2 if shape == (8, 8, 8) else 40)
    middle = np.abs(back - np.clip(array, grid.low, grid.high))
    assert shape != (8, 8, 8) or middle.max() < 1e-4 * 500
    deviation = dataset.restore_deviation(np.full((8, 8, 8), 0.25), grid)
    assert np.allclose(deviation, 0.25 * (grid.high - grid.low) / (1 - bottom))
    residual = dataset.restore(image[0], grid, values=False)
    assert np.allclose(residual * grid.scale + grid.low - bottom * grid.scale, back, rtol=1e-5)
    assert np.array_equal(dataset.restore(np.ones((8, 8, 8)), grid), np.full(shape, grid.high, np.float32))


def test_a_grid_goes_through_json(tmp_path: Path) -> None:
    order = np.array([[2, -1], [0, 1], [1, -1]])
    _, grid = dataset.prepare_image(save(tmp_path / "a.nii", head_of(), order=order), Settings(resolution=8))
    assert Grid.of(json.loads(json.dumps(grid.plain()))) == grid and any(grid.flips) and grid.order != (0, 1, 2)


def test_an_array_of_one_value_has_no_range() -> None:
    image, low, high = cube.cube(np.full((5, 6, 7), 3.3, np.float32), 4)
    assert low == high == pytest.approx(3.3) and (image == -1).all()


@pytest.mark.real
def test_real_brains_come_back_on_their_own_grid(real_data: Path, tmp_path: Path) -> None:
    """At 64 voxels a T1 keeps its values: a correlation of 0.9 and more, not its detail."""
    path = real_data / "brains" / "t1" / "1000_SS.nii.gz"
    image, grid = dataset.prepare_image(path, Settings(resolution=64))
    back, stored = dataset.restore(image[0], grid), nifti.read_image(path)
    assert back.shape == stored.shape and np.corrcoef(back.ravel(), stored.ravel())[0, 1] > 0.97
    assert np.corrcoef(back[::-1].ravel(), stored.ravel())[0, 1] < 0.95  # axis L is turned, and turned back
    nifti.write_like(tmp_path / "a.nii.gz", back, path)
    assert np.array_equal(nib.load(tmp_path / "a.nii.gz").affine, nib.load(path).affine)
