"""Scores of label maps with voxels that are ignored, against the definitions, voxel by voxel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from unet.metrics import classes

Array = np.ndarray[Any, Any]
IGNORED = 255
SPACING = (3.0, 0.7, 1.5)


def random_maps(seed: int, count: int = 3, shape: tuple[int, ...] = (5, 8, 7)) -> tuple[Array, Array]:
    generator = np.random.default_rng(seed)
    prediction, target = generator.integers(0, count, (2, *shape)).astype(np.uint8)
    target[generator.random(shape) < 0.3] = IGNORED
    return prediction, target


def test_a_prediction_that_holds_the_ignored_value_has_background_there() -> None:
    """A class that is not one counts as none of them, also where its number is that of a pair of classes."""
    prediction, target = random_maps(0)
    odd = prediction.copy()
    odd[:, :3] = IGNORED
    plain = np.where(odd == IGNORED, 0, odd)
    kept = odd.copy()
    for count in (3, 100):
        one, other = (classes.dice_of(each, target, count, IGNORED) for each in (odd, plain))
        assert one == pytest.approx(other, nan_ok=True)
        found, expected = (classes.full_scores(each, target, SPACING, count, 1.0, IGNORED) for each in (odd, plain))
        assert found == pytest.approx(expected, nan_ok=True)
    assert np.array_equal(odd, kept)
    lesion = np.ones((4, 4), np.uint8)
    half = np.where(np.arange(4) < 2, lesion, IGNORED)
    assert classes.dice_of(half, lesion, 2, IGNORED) == [pytest.approx(2 / 3)]


def definition(prediction: Array, target: Array, number: int, tolerance: float) -> tuple[float, float]:
    """(surface Dice, HD95) of a class by all pairs of surface voxels: those with a face neighbour that is annotated and
    of another class, or beyond the array."""

    def points(labels: Array) -> Array:
        found = set()
        for place in np.argwhere((labels == number) & (target != IGNORED)):
            for axis in range(labels.ndim):
                for step in (-1, 1):
                    beside = place.copy()
                    beside[axis] += step
                    at = tuple(beside)
                    beyond = not 0 <= beside[axis] < labels.shape[axis]
                    if beyond or (target[at] != IGNORED and labels[at] != number):
                        found.add(tuple(place))
        return np.array(sorted(found)).reshape(-1, labels.ndim) * SPACING[-labels.ndim :]

    one, other = points(prediction), points(target)
    if not len(one) or not len(other):
        return (0.0 if len(one) or len(other) else math.nan), math.nan
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(2))
    near = [apart.min(1), apart.min(0)]
    share = sum(int((each <= tolerance + 1e-9).sum()) for each in near) / sum(map(len, near))
    return share, max(float(np.percentile(each, 95)) for each in near)


@pytest.mark.parametrize("seed", range(6))
def test_surfaces_are_those_of_the_annotated_part(seed: int) -> None:
    shape = (1, 8, 9) if seed > 3 else (5, 8, 7)
    prediction, target = random_maps(seed, shape=shape)
    if seed == 1:  # one slice of all is annotated
        target[[0, 1, 3, 4]], target[2] = IGNORED, np.where(target[2] == IGNORED, 1, target[2])
    if seed == 2:  # the masks end where the annotation does
        prediction[:, 2:6], target[:, 2:6], target[:, :2] = 1, 1, IGNORED
    found = classes.full_scores(prediction, target, SPACING, 3, 1.6, IGNORED)
    flat = prediction[0] if shape[0] == 1 else prediction, target[0] if shape[0] == 1 else target
    for number in (1, 2):
        expected = definition(*flat, number, 1.6)
        assert (found[f"surface_{number}"], found[f"hd95_{number}"]) == pytest.approx(expected, nan_ok=True)


def test_a_surface_that_is_not_seen_has_no_score() -> None:
    """All that is annotated is of the class in both maps, and not at the border of the array."""
    target = np.full((5, 6, 7), IGNORED, np.uint8)
    target[1:4, 2:4, 2:5] = 1
    found = classes.full_scores(np.ones_like(target), target, SPACING, 2, 1.0, IGNORED)
    assert found["dice_1"] == 1
    assert math.isnan(found["surface_1"])
    assert math.isnan(found["hd95_1"])
    prediction = np.ones_like(target)
    prediction[2, 2] = 0
    found = classes.full_scores(prediction, target, SPACING, 2, 1.0, IGNORED)
    assert found["surface_1"] == 0


def test_one_annotated_slice_is_scored_as_it_is_alone() -> None:
    rows, columns = np.mgrid[:40, :40]
    away = np.hypot(rows - 20, columns - 20)
    prediction = np.repeat((away <= 12).astype(np.uint8)[None], 7, 0)
    target = np.full_like(prediction, IGNORED)
    target[3] = away <= 15
    whole = classes.full_scores(prediction, target, (1, 1, 1), 2, 1.0, IGNORED)
    alone = classes.full_scores(prediction[3:4], target[3:4], (1, 1, 1), 2, 1.0, IGNORED)
    assert whole == alone
    assert whole["surface_1"] == 0
