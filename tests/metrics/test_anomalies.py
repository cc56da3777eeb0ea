"""Average precision and best Dice of lesions, against other ways to compute them."""

from __future__ import annotations

import numpy as np
import pytest

from unet.metrics import anomalies


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_and_dice_by_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, truth = rng.integers(0, 6, 40).astype(float), rng.random(40) < 0.3
    thresholds = np.unique(score)[::-1]
    precision = [truth[score >= t].mean() for t in thresholds]
    recall = [truth[score >= t].sum() / truth.sum() for t in thresholds]
    expected = sum(p * (r - before) for p, r, before in zip(precision, recall, [0, *recall], strict=False))
    dice = max(2 * (truth & (score >= t)).sum() / (truth.sum() + (score >= t).sum()) for t in thresholds)
    assert anomalies.average_precision(score, truth) == pytest.approx(expected)
    assert anomalies.best_dice(score, truth) == pytest.approx(dice)


def test_a_perfect_score_a_constant_one_and_nothing_to_find() -> None:
    truth = np.array([True, False, False, False])
    assert anomalies.average_precision(truth.astype(float), truth) == 1
    assert anomalies.average_precision(np.ones(4), truth) == pytest.approx(0.25)
    assert np.isnan(anomalies.average_precision(np.ones(4), np.zeros(4, bool)))


def test_a_painted_sphere_lies_in_the_brain() -> None:
    image = np.full((16, 16, 16), -1.0, np.float32)
    image[4:12, 4:12, 4:12] = 0.2
    brain = image > -0.9
    changed, sphere = anomalies.painted(image, brain, 2, 0.5, 7)
    assert sphere.any() and not (sphere & ~brain).any()
    assert np.array_equal(changed != image, sphere & (image < image.max()) | (changed != image) & sphere)
    again, _ = anomalies.painted(image, brain, 2, 0.5, 7)
    assert np.array_equal(changed, again)


def test_plain_thresholding_takes_the_better_sign() -> None:
    image, inside = np.array([0.0, 1.0, 2.0, 9.0]), np.ones(4, bool)
    lesion = np.array([True, False, False, False])
    found = anomalies.scores(np.array([3.0, 0, 0, 0]), image, inside, lesion)
    assert found["lesion_ap"] == found["threshold_ap"] == 1
