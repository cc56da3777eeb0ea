"""Intervals of the difference of two runs' scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unet.metrics.statistics import bootstrap_interval, paired_interval, unpaired_interval


def test_the_paired_interval_sees_what_the_unpaired_one_does_not() -> None:
    """Cases differ by far more than the two runs: pairs take that away."""
    generator = np.random.default_rng(0)
    first = list(generator.uniform(0.2, 0.9, 22))
    second = [value + 0.012 + gain for value, gain in zip(first, generator.normal(0, 0.01, 22), strict=True)]
    gain, low, high = paired_interval(first, second)
    assert 0 < low < gain < high < 0.03
    wide = unpaired_interval(first, second)
    assert wide[0] == pytest.approx(gain)
    assert wide[1] < 0 < wide[2]


def test_it_is_the_interval_of_the_differences() -> None:
    first, second = [0.5, 0.6, math.nan, 0.7], [0.6, 0.8, 0.9, math.nan]
    assert paired_interval(first, second)[0] == pytest.approx(0.15)
    assert paired_interval(first, second)[1:] == bootstrap_interval([0.6 - 0.5, 0.8 - 0.6])
    assert paired_interval(second, first)[0] == pytest.approx(-0.15)


def test_its_width_is_that_of_the_normal_approximation() -> None:
    generator = np.random.default_rng(1)
    gains = generator.normal(0.1, 0.05, 400)
    _, low, high = paired_interval([0.0] * 400, list(gains))
    error = gains.std(ddof=1) / 20
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.05)  # 10,000 resamples: about 1 % of the width


def test_sets_of_other_sizes_and_without_values() -> None:
    gain, low, high = unpaired_interval([0.5, 0.5, 0.5], [0.75, 0.75])
    assert (gain, low, high) == (0.25, 0.25, 0.25)
    assert all(map(math.isnan, unpaired_interval([], [0.5])))
    assert all(map(math.isnan, paired_interval([math.nan], [0.5])))
    with pytest.raises(ValueError, match="zip"):
        paired_interval([0.5], [0.5, 0.6])
