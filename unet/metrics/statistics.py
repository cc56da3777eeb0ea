"""Statistics over the scores of cases. NumPy."""

from __future__ import annotations

import math

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
