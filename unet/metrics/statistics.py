"""Statistics over the scores of cases. NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

PIECE = 2**21  # values that are resampled at a time


def rank(score: float, sign: int = 1) -> float:
    """What cases are sorted by, the worst first; those without a score (NaN) come last. `sign`: 1 where a higher score
    is better, else -1."""
    return math.inf if math.isnan(score) else sign * score


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


def paired_interval(
    first: Sequence[float], second: Sequence[float], resamples: int = 10000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean of second - first, the ends of its 95 % interval): scores of the same cases in the same order, whose pairs
    are resampled. Pairs with a NaN are left out. Raises ValueError if the lengths differ."""
    gains = [b - a for a, b in zip(first, second, strict=True) if not math.isnan(b - a)]
    if not gains:
        return math.nan, math.nan, math.nan
    return math.fsum(gains) / len(gains), *bootstrap_interval(gains, resamples, seed)


def unpaired_interval(
    first: Sequence[float], second: Sequence[float], resamples: int = 10000, seed: int = 0
) -> tuple[float, float, float]:
    """(difference of the means, the ends of its 95 % interval): scores of other cases, each set resampled by itself.
    NaN values are left out."""
    sets = [np.array([value for value in values if not math.isnan(value)]) for values in (first, second)]
    if not all(map(len, sets)):
        return math.nan, math.nan, math.nan
    generator = np.random.default_rng(seed)
    piece = max(1, PIECE // max(map(len, sets)))
    found = []
    for start in range(0, resamples, piece):
        count = min(piece, resamples - start)
        means = [data[generator.integers(0, len(data), (count, len(data)))].mean(1) for data in sets]
        found.append(means[1] - means[0])
    differences = np.concatenate(found)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(sets[1].mean() - sets[0].mean()), float(low), float(high)


class Difference(NamedTuple):
    """The mean difference over the shared cases, its 95 % interval, and how many cases they are."""

    mean: float
    low: float
    high: float
    cases: int


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], resamples: int = 10000, seed: int = 0
) -> Difference:
    """`paired_interval` over the cases that have a number in both; NaN where there are none."""
    shared = [case for case in sorted(first.keys() & second.keys()) if not math.isnan(second[case] - first[case])]
    found = paired_interval([first[case] for case in shared], [second[case] for case in shared], resamples, seed)
    return Difference(*found, len(shared))
