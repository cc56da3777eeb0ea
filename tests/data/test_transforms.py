"""Each random change of a volume on its own: what it changes, what it leaves, its bounds; the generator decides."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unet.data.loading.sampling import generator
from unet.data.transforms import geometry, intensity, kspace

SIDES = (8, 16, 32)
SEEDS = range(40)
DRAWN: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        geometry.shrink_axis,
        geometry.zero_ends,
        geometry.affine,
        geometry.crop,
        geometry.elastic,
        intensity.histogram_shift,
        intensity.scale_intensity,
        intensity.blur,
        intensity.noise,
        intensity.bias_field,
        kspace.ghosting,
        kspace.motion,
        kspace.spike,
    )
}
NO_STRENGTH: dict[str, dict[str, Any]] = {
    "shrink_axis": {"factor": (1.0, 1.0)},
    "zero_ends": {"depth": (0, 0)},
    "affine": {"turn": 0, "shear": 0, "voxels": 0, "scale": 0},
    "crop": {"share": 1.0},
    "elastic": {"magnitude": (0, 0)},
    "scale_intensity": {"strength": 0},
    "blur": {"deviation": (0, 0)},
    "noise": {"deviation": (0, 0)},
    "bias_field": {"coefficient": 0},
    "ghosting": {"strength": (0, 0)},
    "motion": {"degrees": 0, "voxels": 0},
    "spike": {"strength": (0, 0)},
}
WITHIN = ("shrink_axis", "zero_ends", "affine", "crop", "elastic", "histogram_shift", "blur")  # no value beyond
KEEP_BACKGROUND = ("histogram_shift", "scale_intensity", "bias_field", "shrink_axis", "blur", "zero_ends")
KEEP_MEAN = ("ghosting", "motion", "spike")


@functools.cache
def ball(side: int, low: float = -1.0) -> Tensor:
    """(1, side, side, side): an uneven ellipsoid over a third of the side on an empty ground."""
    draws = generator(side)
    z, y, x = (torch.linspace(-1, 1, side).reshape([-1 if at == axis else 1 for at in range(3)]) for axis in range(3))
    inside = (z / 0.5) ** 2 + (y / 0.7) ** 2 + (x / 0.6) ** 2 < 1
    values = 0.4 + 0.3 * z + 0.2 * x + 0.1 * torch.rand(side, side, side, generator=draws)
    return intensity.rescale(torch.where(inside, values, torch.zeros(()))[None], low)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", DRAWN)
def test_shape_type_and_generator(name: str, side: int) -> None:
    volume, transform = (torch.ones(1, side, side, side) if name == "zero_ends" else ball(side)), DRAWN[name]
    before = volume.clone()
    for seed in SEEDS:
        result = transform(volume, generator(seed), -1.0)
        wanted = (1, *(int(0.95 * side),) * 3) if name == "crop" else volume.shape
        assert result.shape == wanted and result.dtype == torch.float32 and result.is_contiguous()
        assert result.isfinite().all()
    assert torch.equal(volume, before)
    assert torch.equal(transform(volume, generator(5)), transform(volume, generator(5)))
    assert any(not torch.equal(transform(volume, generator(5)), transform(volume, generator(n))) for n in range(6, 12))
    known = torch.random.get_rng_state()
    transform(volume, generator(1))
    assert torch.equal(torch.random.get_rng_state(), known)


@pytest.mark.parametrize("name", NO_STRENGTH)
def test_no_strength_changes_nothing(name: str) -> None:
    volume = ball(16)
    for seed in range(5):
        assert torch.allclose(DRAWN[name](volume, generator(seed), **NO_STRENGTH[name]), volume, atol=2e-6)


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("name", WITHIN)
def test_no_value_leaves_the_scale(name: str, low: float) -> None:
    for seed in SEEDS:
        result = DRAWN[name](ball(16, low), generator(seed), low)
        assert result.min() >= low - 1e-5 and result.max() <= 1 + 1e-5


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("name", KEEP_BACKGROUND)
def test_the_background_away_from_the_brain_stays(name: str, low: float) -> None:
    volume = ball(32, low)
    near = torch.nn.functional.max_pool3d(volume[None], 9, stride=1, padding=4)[0]
    away = near <= low
    assert away.sum() > 10000
    for seed in range(10):
        assert torch.allclose(DRAWN[name](volume, generator(seed), low)[away], torch.tensor(low), atol=1e-6)


@pytest.mark.parametrize("name", KEEP_MEAN)
def test_the_centre_of_k_space_stays(name: str) -> None:
    for side in SIDES:
        volume = ball(side)
        for seed in SEEDS:
            assert float(DRAWN[name](volume, generator(seed)).mean()) == pytest.approx(float(volume.mean()), abs=1e-5)


@pytest.mark.parametrize("value", [-1.0, 0.25, 1.0])
@pytest.mark.parametrize("name", [*DRAWN, "clamp", "rescale"])
def test_a_constant_volume_stays_finite(name: str, value: float) -> None:
    volume = torch.full((1, 8, 8, 8), value)
    if name in DRAWN:
        assert all(DRAWN[name](volume, generator(seed)).isfinite().all() for seed in range(10))
    else:
        assert torch.equal(getattr(intensity, name)(volume), torch.full_like(volume, -1))


def test_rescale_and_resize() -> None:
    volume = torch.tensor([3.0, 4.0, 7.0]).expand(1, 3, 3, 3)
    assert torch.allclose(intensity.rescale(volume)[0, 0, 0], torch.tensor([-1, -0.5, 1]))
    assert torch.allclose(intensity.rescale(volume, 0.0)[0, 0, 0], torch.tensor([0, 0.25, 1]))
    smaller = geometry.resize(ball(32), 8)
    assert torch.allclose(smaller, ball(32).reshape(1, 8, 4, 8, 4, 8, 4).mean((2, 4, 6)), atol=1e-6)
    assert torch.equal(geometry.resize(ball(16), 16), ball(16))


@pytest.mark.parametrize("side", [3, 8, 16, 32])
def test_the_clamp_is_at_numpys_percentiles(side: int) -> None:
    volume = torch.randn(1, side, side, side, generator=generator(side)) ** 3
    low, high = np.percentile(volume.numpy(), [0.05, 99.95])
    wanted = 2 * (np.clip(volume.numpy(), low, high) - low) / (high - low) - 1
    assert np.allclose(intensity.clamp(volume).numpy(), wanted, atol=2e-6)


def test_one_axis_gets_coarser() -> None:
    volume = torch.randn(1, 16, 16, 16, generator=generator(0))
    seen = set()
    for seed in SEEDS:
        result = geometry.shrink_axis(volume, generator(seed))
        rough = [float(result.diff(dim=axis).pow(2).mean()) for axis in (1, 2, 3)]
        axis = int(np.argmin(rough))
        seen.add(axis)
        assert rough[axis] < 0.8 * min(rough[other] for other in range(3) if other != axis)
        assert float(result.mean()) == pytest.approx(float(volume.mean()), abs=0.02)
    assert seen == {0, 1, 2}


def test_empty_ends_are_one_or_two_planes_of_one_axis() -> None:
    volume, seen = torch.ones(1, 8, 8, 8), set()
    for seed in range(60):
        empty = geometry.zero_ends(volume, generator(seed), -1.0) == -1
        wanted = []
        for axis in range(3):
            for count in (1, 2):
                planes = torch.zeros(8, dtype=torch.bool)
                planes[:count] = planes[8 - count :] = True
                shape = [1, *(8 if at == axis else 1 for at in range(3))]
                wanted.append(planes.reshape(shape).expand(1, 8, 8, 8))
        matches = [number for number, planes in enumerate(wanted) if torch.equal(planes, empty)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 6
    assert all((geometry.zero_ends(volume[:, :4, :4, :4], generator(seed)) == 1).any() for seed in range(9))


def test_the_histogram_shift_keeps_the_order_of_grey_values() -> None:
    values = torch.linspace(-1, 1, 8**3).reshape(1, 8, 8, 8)
    bends = set()
    for seed in SEEDS:
        result = intensity.histogram_shift(values, generator(seed)).flatten()
        slope = result.diff()
        assert (slope >= -1e-6).all() and float(result[0]) == -1 and float(result[-1]) == pytest.approx(1, abs=1e-6)
        assert float((result - values.flatten()).abs().max()) > 0.01
        bends.add(int((slope.diff().abs() > 1e-4).sum()))
    assert max(bends) <= 2 * 13  # a bend between two values shows in two differences


def test_the_factor_is_within_its_bounds() -> None:
    volume = ball(8, 0.0)
    peaks = [float(intensity.scale_intensity(volume, generator(seed), 0.0).max()) for seed in range(200)]
    assert 0.95 <= min(peaks) < 0.96 and 1.04 < max(peaks) <= 1.05
    assert float(intensity.scale_intensity(ball(8), generator(0), -1.0).max()) + 1 == pytest.approx(2 * peaks[0])


def test_the_blur_is_a_gaussian_of_the_drawn_width() -> None:
    point = torch.full((1, 9, 9, 9), -1.0)
    point[0, 4, 4, 4] = 1.0
    widths = []
    for seed in SEEDS:
        spread = (intensity.blur(point, generator(seed)) + 1) / 2
        assert float(spread.sum()) == pytest.approx(1, abs=1e-4)
        for axis in (1, 2, 3):
            line = spread.sum([other for other in (1, 2, 3) if other != axis]).flatten()
            widths.append(float((line * (torch.arange(9) - 4) ** 2).sum()))
    # a Gaussian integrated over voxels has a twelfth more variance; below a quarter of a voxel nearly nothing
    assert 0 <= min(widths) < 0.01 and 0.25 < max(widths) <= 0.25 + 1 / 12 + 0.01
    assert np.std(np.array(widths).reshape(-1, 3), axis=1).min() > 0  # each axis its own


@pytest.mark.parametrize("low", [-1.0, 0.0])
def test_the_noise_has_the_drawn_energy(low: float) -> None:
    volume, whole = ball(16, low), (1 - low) / 2
    sizes = []
    for seed in range(100):
        added = (intensity.noise(volume, generator(seed), low) - volume) / whole
        sizes.append(float(added.std()))
        assert abs(float(added.mean())) < 4.5 * sizes[-1] / 64
    assert 0.009 < min(sizes) < 0.03 and 0.27 < max(sizes) < 0.31
    fixed = intensity.noise(volume, generator(1), low, deviation=(0.2, 0.2)) - volume
    assert float(fixed.pow(2).mean()) == pytest.approx((0.2 * whole) ** 2, rel=0.05)


def test_the_bias_field_is_the_exponential_of_a_cubic() -> None:
    volume, logs = torch.ones(1, 8, 16, 12), []
    grids = np.meshgrid(*(np.linspace(-1, 1, side) for side in (8, 16, 12)), indexing="ij")
    terms = [
        grids[0] ** a * grids[1] ** b * grids[2] ** c
        for a in range(4)
        for b in range(4)
        for c in range(4)
        if a + b + c <= 3
    ]
    matrix = np.stack([term.ravel() for term in terms], 1)
    assert matrix.shape[1] == 20
    for seed in range(20):
        field = (intensity.bias_field(volume, generator(seed), 0.0)).log().double().numpy().ravel()
        found, *_ = np.linalg.lstsq(matrix, field, rcond=None)
        assert np.abs(matrix @ found - field).max() < 1e-5
        logs.extend(found)
    assert np.abs(logs).max() <= 0.5 + 1e-4 and np.abs(logs).max() > 0.45 and abs(np.mean(logs)) < 0.06


def test_ghosts_weaken_every_nth_plane_of_k_space() -> None:
    volume, seen = torch.randn(1, 32, 32, 32, generator=generator(0), dtype=torch.float64), set()
    before = torch.fft.fftn(volume, dim=(1, 2, 3))
    for seed in range(60):
        after = torch.fft.fftn(kspace.ghosting(volume, generator(seed)), dim=(1, 2, 3))
        ratio = (after / before).real[0]
        changed = [(ratio - 1).abs().amax([other for other in range(3) if other != axis]) > 1e-3 for axis in range(3)]
        axis = int(np.argmin([int(each.sum()) for each in changed]))
        frequencies = np.flatnonzero(changed[axis].numpy())
        step = int(frequencies[0])
        seen.add((axis, step))
        assert 4 <= step <= 10
        wanted = {number for number in range(1, 32) if min(number, 32 - number) % step == 0}
        assert set(frequencies.tolist()) == wanted
        shares = 1 - ratio.movedim(axis, 0)[frequencies]
        assert float(shares.std()) < 1e-4 and 0.5 - 1e-4 <= float(shares.mean()) <= 1 + 1e-4
    assert len({axis for axis, _ in seen}) == 3 and {step for _, step in seen} == set(range(4, 11))


def test_motion_leaves_the_low_frequencies_and_moves_the_high_ones() -> None:
    volume = ball(32).double()
    for seed in range(20):
        difference = torch.fft.fftn(kspace.motion(volume, generator(seed)) - volume, dim=(1, 2, 3))[0].abs()
        limits = []
        for axis in range(3):
            plane = difference.amax([other for other in range(3) if other != axis])
            held = (plane[:17] < 1e-7 * difference.max()).numpy()
            limits.append(int(held.argmin()))
        assert 1 <= max(limits) <= 9  # the centre is kept, and at most a quarter of the axis on each side of it


def test_motion_is_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    poses: list[tuple[list[float], list[float]]] = []

    def noted(volume: Tensor, turns: list[float], shifts: list[float]) -> Tensor:
        poses.append((turns, shifts))
        return volume

    monkeypatch.setattr(kspace, "moved", noted)
    for seed in range(200):
        kspace.motion(ball(32), generator(seed))
    turns, shifts = (np.array(part) for part in zip(*poses, strict=True))
    assert np.radians(9) < np.abs(turns).max() <= np.radians(10)
    assert 2.4 < np.abs(shifts).max() <= 2.5  # 10 voxels of 128
    assert np.abs(turns.mean(0)).max() < 0.03 and np.abs(shifts.mean(0)).max() < 0.4


def test_a_spike_is_one_plane_wave() -> None:
    volume = ball(16).double()
    mean = float(volume.mean()) + 1
    for seed in SEEDS:
        added = kspace.spike(volume, generator(seed)) - volume
        found = torch.fft.fftn(added, dim=(1, 2, 3)).abs() / added.numel()
        assert int((found > 1e-9).sum()) in (1, 2) and float(found[0, 0, 0, 0]) < 1e-9
        assert mean - 1e-6 <= float(found.sum()) <= 2 * mean + 1e-6


def test_a_turn_is_a_turn() -> None:
    volume = torch.randn(1, 9, 9, 9, generator=generator(0))
    for axis, plane in ((0, (2, 3)), (1, (1, 3)), (2, (1, 2))):
        turns = [np.pi / 2 if at == axis else 0.0 for at in range(3)]
        result = geometry.moved(volume, turns, [0, 0, 0])
        assert any(torch.allclose(result, volume.rot90(k, plane), atol=1e-4) for k in (1, -1))
    shifted = geometry.moved(volume, [0, 0, 0], [1, 0, 2])
    assert torch.allclose(shifted[:, :8, :, :7], volume[:, 1:, :, 2:], atol=1e-4)
    assert torch.allclose(shifted[:, 8, :, :7], volume[:, 8, :, 2:], atol=1e-4)  # the border's value goes on
    uneven = torch.randn(1, 5, 9, 7, generator=generator(1))
    assert torch.allclose(geometry.moved(uneven, [0, 0, 0], [0, 1, 0])[:, :, :8], uneven[:, :, 1:], atol=1e-4)


def test_the_affine_is_within_its_bounds_on_all_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[np.ndarray[Any, Any], list[float]]] = []

    def noted(volume: Tensor, matrix: Tensor, shifts: list[float]) -> Tensor:
        seen.append((matrix.numpy(), shifts))
        return volume

    monkeypatch.setattr(geometry, "sampled", noted)
    for seed in range(300):
        geometry.affine(ball(32), generator(seed))
    matrices, shifts = (np.array(part) for part in zip(*seen, strict=True))
    assert np.abs(shifts).max(0).min() > 2.4 and np.abs(shifts).max() <= 2.5
    lengths = np.linalg.norm(matrices, axis=1)  # of the columns: stretch, and at most 1.3 % more by the shears
    assert lengths.min() >= 0.9 and lengths.max() <= 1.1 * (1 + 2 * 0.0873**2) ** 0.5
    assert (lengths.max(0) > 1.08).all() and (lengths.min(0) < 0.92).all()
    off = matrices[:, ~np.eye(3, dtype=bool)]
    assert (np.abs(off).max(0) > 0.1).all() and np.abs(off).max() < 0.23 and np.abs(off.mean(0)).max() < 0.02


def test_the_crop_is_a_piece_of_the_volume_from_anywhere() -> None:
    volume = torch.arange(32**3, dtype=torch.float32).reshape(1, 32, 32, 32)
    places = set()
    for seed in range(100):
        piece = geometry.crop(volume, generator(seed))
        at = tuple(int(part) for part in np.unravel_index(int(piece[0, 0, 0, 0]), (32, 32, 32)))
        places.add(at)
        assert torch.equal(piece, volume[:, at[0] : at[0] + 30, at[1] : at[1] + 30, at[2] : at[2] + 30])
    assert {axis for place in places for axis in place} == {0, 1, 2} and len(places) == 27


def test_elastic_moves_by_some_voxels_of_its_size() -> None:
    """A ramp shows by how far each voxel was moved along its axis."""
    for axis in range(3):
        ramp = torch.arange(32, dtype=torch.float32).reshape([1, *(32 if at == axis else 1 for at in range(3))])
        ramp = ramp.expand(1, 32, 32, 32)
        sizes = []
        for seed in range(12):
            shift = (geometry.elastic(ramp, generator(seed)) - ramp)[:, 4:-4, 4:-4, 4:-4]
            assert float(shift.abs().max()) < 5 * 32 / 128 and abs(float(shift.mean())) < 0.05
            sizes.append(float(shift.std()))
        assert min(sizes) > 0.01 and max(sizes) < 0.3
    wide = geometry.elastic(ramp, generator(3), deviation=(1, 1), magnitude=(4, 4)) - ramp
    small = geometry.elastic(ramp, generator(3), deviation=(1, 1), magnitude=(4, 4), at=256) - ramp
    inner = (..., slice(4, -4))
    assert torch.allclose(wide[inner], 2 * small[inner], atol=1e-4)
