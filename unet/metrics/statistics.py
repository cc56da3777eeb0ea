"""Statistics over the scores of cases. NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

PIECE = 2**21  # values that are resampled at a time


def bootstrap_interval(values: list[float], resamples: int = 10000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean over cases, by resampling the cases; NaN values are left out."""
    data = np.array([value for value in values if not math.isnan(value)])
    if not len(data):
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    piece = max(1, PIECE // len(data))  # resamples at a time: the memory does not grow with the cases
    rows = [min(piece, resamples - first) for first in range(0, resamples, piece)]
    means = np.concatenate([data[generator.integers(0, len(data), (count, len(data)))].mean(1) for count in rows])
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


class Difference(NamedTuple):
    """The mean difference over the shared cases, its 95 % interval, and how many cases they are."""

    mean: float
    low: float
    high: float
    cases: int


def paired_interval(
    a: Mapping[str, float], b: Mapping[str, float], resamples: int = 10000, seed: int = 0
) -> Difference:
    """How much more `b` scores than `a`: the mean of the differences over the cases that have a number in both, and its
    95 % percentile interval by resampling these cases (paired bootstrap); NaN where there are none."""
    pairs = [b[case] - a[case] for case in sorted(a.keys() & b.keys())]
    known = [value for value in pairs if not math.isnan(value)]
    mean = math.fsum(known) / len(known) if known else math.nan
    return Difference(mean, *bootstrap_interval(known, resamples, seed), len(known))
