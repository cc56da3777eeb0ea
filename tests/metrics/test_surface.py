"""Distances between surfaces in mm against shapes whose answer is known, and the scores of KiTS19."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from unet.metrics import surface
from unet.tasks.kits19 import metrics

Array = np.ndarray[Any, Any]
SPACING = (3.0, 0.7, 1.5)


def box(shape: tuple[int, ...], *sides: tuple[int, int]) -> Array:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]) -> Array:
    """A sphere in mm."""
    axes = np.ogrid[tuple(slice(0, side) for side in shape)]
    away = sum(((axis - c) * s) ** 2 for axis, c, s in zip(axes, centre, spacing, strict=True))
    return np.asarray(away <= radius**2)


def brute(own: Array, true: Array, spacing: tuple[float, ...]) -> Array:
    """Distance of each surface voxel of `own` to the nearest of `true`, by all pairs and the definition."""

    def points(mask: Array) -> Array:
        found = []
        for place in np.argwhere(mask):
            for axis in range(mask.ndim):
                for step in (-1, 1):
                    next_to = place.copy()
                    next_to[axis] += step
                    if not 0 <= next_to[axis] < mask.shape[axis] or not mask[tuple(next_to)]:
                        found.append(tuple(place))
        return np.array(sorted(set(found))) * spacing

    return np.sqrt(((points(own)[:, None] - points(true)[None]) ** 2).sum(2)).min(1)


@pytest.fixture(params=["tree", "transform"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to find the nearest voxel."""
    monkeypatch.setattr(surface, "VOXELS_A_QUERY", 0 if request.param == "tree" else 10**9)
    monkeypatch.setattr(surface, "CHUNK", 50)
    return str(request.param)


@pytest.mark.parametrize("slab", [1, 60, 10**6])
def test_distances_are_those_of_all_pairs(slab: int, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ragged masks that touch the border of the array."""
    monkeypatch.setattr(surface, "SLAB", slab)
    generator = np.random.default_rng(1)
    own, true = generator.random((2, 9, 8, 7)) < 0.6
    true[6:] = False
    found = surface.distances(own, true, SPACING)
    np.testing.assert_allclose(found.prediction, brute(own, true, SPACING), atol=1e-12)
    np.testing.assert_allclose(found.target, brute(true, own, SPACING), atol=1e-12)


@pytest.mark.parametrize(("axis", "steps"), [(0, 1), (0, 2), (1, 5), (2, 3)])
def test_a_shifted_plate(axis: int, steps: int, way: str) -> None:
    """One voxel thick, moved at right angles to itself: every distance is the shift."""
    sides = [(0, 12)] * 3
    sides[axis] = (4, 5)
    moved = list(sides)
    moved[axis] = (4 + steps, 5 + steps)
    a, b = box((12, 12, 12), *sides), box((12, 12, 12), *moved)
    found = surface.distances(a, b, SPACING)
    shift = steps * SPACING[axis]
    assert len(found.prediction) == len(found.target) == 144
    assert found.hausdorff95() == pytest.approx(shift, rel=1e-12)
    assert found.dice(shift) == 1  # 3 x 0.7 is below 2.1 by rounding, and 5 x 0.7 is 3.5
    assert found.dice(shift - 0.01) == 0


def test_a_shifted_box() -> None:
    """20 x 10 x 10 voxels moved by 6 mm along the first axis: the sides slide over themselves, so only the ends and
    what overhangs is away from the other surface."""
    a, b = box((30, 14, 14), (2, 22), (2, 12), (2, 12)), box((30, 14, 14), (4, 24), (2, 12), (2, 12))
    found = surface.distances(a, b, (3.0, 1.0, 1.0))
    total = 20 * 10 * 10 - 18 * 8 * 8
    ring, inner = 36, 64  # voxels of an end of the box: its border, and the rest
    # away from the other surface: the border of the two layers that overhang (6 and 3 mm), the rest of that end (6 mm),
    # and the rest of the other end, which lies inside the other box
    assert len(found.prediction) == total
    assert np.count_nonzero(np.isclose(found.prediction, 6)) >= ring
    assert found.dice(6.0) == 1
    assert found.dice(0.5) == pytest.approx((total - 2 * ring - 2 * inner) / total)
    expected = np.percentile(brute(a, b, (3.0, 1.0, 1.0)), 95)
    assert found.hausdorff95() == pytest.approx(expected)


def test_balls_of_two_sizes() -> None:
    """Concentric, radii 12 and 15 mm, on an anisotropic grid: 3 mm apart everywhere, but for the voxels' size."""
    spacing = (1.6, 1.2, 1.2)
    shape = (25, 31, 31)
    small, large = (ball(shape, (12, 15, 15), radius, spacing) for radius in (12, 15))
    found = surface.distances(small, large, spacing)
    assert found.hausdorff95() == pytest.approx(3, abs=0.8)
    assert found.dice(3 + 1.6) == 1
    assert found.dice(3 - 1.6) == 0
    assert surface.distances(large, large, spacing).dice(0) == 1


@pytest.mark.parametrize("margin", [0, 1, 40])
def test_what_lies_around_does_not_count(margin: int) -> None:
    generator = np.random.default_rng(2)
    own, true = generator.random((2, 6, 7, 8)) < 0.5
    expected = surface.distances(own, true, SPACING)
    found = surface.distances(np.pad(own, margin), np.pad(true, margin), SPACING)
    assert np.array_equal(np.sort(found.prediction), np.sort(expected.prediction))


def test_empty_masks() -> None:
    empty, some = np.zeros((4, 5, 6), bool), box((4, 5, 6), (1, 3), (1, 3), (1, 3))
    neither = surface.distances(empty, empty, SPACING)
    assert (neither.hausdorff95(), neither.dice(1.0)) == (0, 1)
    for one in (surface.distances(empty, some, SPACING), surface.distances(some, empty, SPACING)):
        assert math.isnan(one.hausdorff95())
        assert one.dice(1.0) == 0


def labels() -> tuple[Array, Array]:
    """Truth: a kidney of 8 x 8 x 8 with a tumour of 4 x 4 x 4; prediction: the tumour one step off, called kidney."""
    target = np.zeros((20, 16, 16), np.uint8)
    target[4:12, 4:12, 4:12] = 1
    target[6:10, 6:10, 6:10] = 2
    prediction = target.copy()
    prediction[6:10, 6:10, 6:10] = 1
    prediction[7:11, 6:10, 6:10] = 2
    return prediction, target


def kits(prediction: Any, target: Any) -> dict[str, float]:
    scores = metrics.full_scores(prediction, target, (1, 1, 1))
    return {name: value for name, value in scores.items() if name.startswith("kits_")}


def test_kits_counts_kidney_and_tumour_together() -> None:
    prediction, target = labels()
    assert kits(prediction, target) == {"kits_kidney": 1.0, "kits_tumour": 0.75}
    empty = np.zeros_like(target)
    assert kits(empty, target) == {"kits_kidney": 0.0, "kits_tumour": 0.0}
    assert kits(empty, empty) == {"kits_kidney": 1.0, "kits_tumour": 1.0}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray])
def test_full_scores_in_any_order(order: tuple[int, ...], layout: Callable[[Array], Array]) -> None:
    """Axes permuted with their spacing, in either memory order: the same scores."""
    prediction, target = (np.asarray(each.transpose(order)) for each in labels())
    found = metrics.full_scores(prediction, layout(target), [SPACING[axis] for axis in order], tolerance=1.0)
    tumour = surface.distances(*(each == 2 for each in labels()), SPACING)
    assert found == {
        "kits_kidney": 1.0,
        "kits_tumour": 0.75,
        "hd95_kidney": 0.0,
        "hd95_tumour": pytest.approx(tumour.hausdorff95()),
        "surface_kidney": 1.0,
        "surface_tumour": pytest.approx(tumour.dice(1.0)),
    }
    assert 0 < found["hd95_tumour"] <= 3
    assert 0 < found["surface_tumour"] < 1


def test_full_scores_of_nothing() -> None:
    empty = np.zeros((4, 5, 6), np.uint8)
    some = empty.copy()
    some[1, 1, 1] = 1
    scores = metrics.full_scores(empty, empty, SPACING)
    assert list(scores.values()) == [1, 0, 1, 1, 0, 1]
    scores = metrics.full_scores(some, empty, SPACING)
    assert (scores["kits_kidney"], scores["surface_kidney"], scores["surface_tumour"]) == (0, 0, 1)
    assert math.isnan(scores["hd95_kidney"])
    assert scores["hd95_tumour"] == 0


def test_metrics_measures_in_the_same_way() -> None:
    own, true = (each > 0 for each in labels())
    own = np.roll(own, 2, 1)
    assert surface.hausdorff95(own, true, SPACING) == surface.distances(own, true, SPACING).hausdorff95() > 0


def discs() -> tuple[Array, Array]:
    """Two discs, one moved by 3 pixels."""
    y, x = np.mgrid[:64, :64]
    return (y - 32) ** 2 + (x - 32) ** 2 <= 400, (y - 32) ** 2 + (x - 35) ** 2 <= 400


def test_a_flat_image_has_an_outline_in_every_task() -> None:
    true, found = discs()
    spacing = 5.0, 0.8, 0.8
    outline = surface.distances(found, true, spacing[1:])
    for axis in range(3):
        deep = np.expand_dims(found, axis), np.expand_dims(true, axis), np.insert(spacing[1:], axis, spacing[0])
        flat = surface.distances(*deep)
        assert (flat.hausdorff95(), flat.dice(1.0)) == (outline.hausdorff95(), outline.dice(1.0))
        labels = [each.astype(np.uint8) for each in deep[:2]]
        kits = metrics.full_scores(*labels, deep[2].tolist())
        assert (kits["hd95_kidney"], kits["surface_kidney"]) == (outline.hausdorff95(), outline.dice(1.0))
    assert outline.hausdorff95() > 2
    one = np.ones((1, 1, 1), bool)
    assert (surface.distances(one, one).hausdorff95(), surface.distances(one, one).dice(1.0)) == (0, 1)


def test_what_lies_in_one_slice_of_a_volume_is_all_surface() -> None:
    true, found = (np.stack([np.zeros_like(each), each, np.zeros_like(each)]) for each in discs())
    whole = surface.distances(found, true)
    assert len(whole.prediction) == found.sum()
    kits = metrics.full_scores(found.astype(np.uint8), true.astype(np.uint8), (1.0, 1.0, 1.0))
    assert kits["hd95_kidney"] == whole.hausdorff95()
