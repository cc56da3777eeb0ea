"""How well membranes part cells: the foreground-restricted Rand and information-theoretic scores of the ISBI 2012
challenge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.integer]
THRESHOLDS = tuple(number / 10 for number in range(1, 10))


def scores(probability: NDArray[np.float32], cells: NDArray[np.bool_]) -> dict[float, tuple[float, float]]:
    """threshold -> (V_Rand, V_Info) of the probability of "cell" (H, W) against the true cells (H, W), after border
    thinning; 1 is perfect.

    Cells are 4-connected components; the predicted ones are grown into the predicted membranes until they touch (a
    watershed of the probability), so the width of a membrane does not count. A stack has one threshold, at which its
    score is best: `best`. Source: Arganda-Carreras et al., Frontiers in Neuroanatomy 2015.
    """
    from scipy import ndimage

    truth, _ = ndimage.label(cells)
    return {threshold: rand_and_information(truth, thinned(probability, threshold)) for threshold in THRESHOLDS}


def best(by_slice: Sequence[Mapping[float, float]]) -> list[float]:
    """The score of each slice, one or more, at the threshold at which their mean is best."""
    threshold = max(THRESHOLDS, key=lambda each: sum(found[each] for found in by_slice))
    return [found[threshold] for found in by_slice]


def thinned(probability: NDArray[np.float32], threshold: float) -> Labels:
    """Predicted cells (H, W), numbered from 1, without membranes between them; one cell where none is predicted."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    labels, count = ndimage.label(probability > threshold)
    if not count:
        return np.ones(probability.shape, np.int32)
    grown: Labels = watershed(-probability, labels)
    return grown


def rand_and_information(truth: Labels, found: Labels) -> tuple[float, float]:
    """(V_Rand, V_Info) of two labellings (H, W); pixels of the true background (0) do not count. With p_ij the share of
    pixels in true cell i and found cell j, s_j and t_i its sums:

    V_Rand = sum p_ij^2 / (sum s_j^2 / 2 + sum t_i^2 / 2) and V_Info = 2 I(S; T) / (H(S) + H(T)), both the mean of split
    and merge error with equal weights (a harmonic mean); 1 where both have one cell, or nothing is true.
    """
    from skimage.metrics import contingency_table

    if not truth.any():
        return 1.0, 1.0
    table = contingency_table(truth, found, ignore_labels=[0], normalize=True).tocsr()
    joint, true, pred = table.data[table.data > 0], _positive(table.sum(1)), _positive(table.sum(0))
    rand = float((joint**2).sum() / ((pred**2).sum() / 2 + (true**2).sum() / 2))
    h_true, h_pred, h_joint = (-float((p * np.log(p)).sum()) for p in (true, pred, joint))
    total = h_true + h_pred
    return rand, 1.0 if total <= 1e-12 else 2 * (h_true + h_pred - h_joint) / total


def _positive(values: Iterable[float]) -> NDArray[np.float64]:
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[flat > 0]
