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
