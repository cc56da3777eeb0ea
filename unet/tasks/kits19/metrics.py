"""KiTS19's own scores of two label maps (0 background, 1 kidney, 2 tumour) on the scan's own grid. NumPy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from unet.metrics.overlap import Mask, dice
from unet.metrics.surface import bounding_box, distances

Labels = NDArray[np.uint8]


def organs(prediction: Labels, target: Labels) -> Iterator[tuple[str, Mask, Mask]]:
    """What KiTS19 scores of two label maps (0 background, 1 kidney, 2 tumour): name, prediction, target. The kidney is
    kidney and tumour together.
    """
    yield "kidney", prediction > 0, target > 0
    yield "tumour", prediction == 2, target == 2


def full_scores(
    prediction: Labels, target: Labels, spacing: Sequence[float], tolerance: float = 1.0
) -> dict[str, float]:
    """Scores of two label maps on the scan's own grid, `spacing` and `tolerance` in mm: kits_kidney, kits_tumour,
    hd95_kidney, hd95_tumour (mm), surface_kidney, surface_tumour.

    In all of them the kidney is kidney and tumour together. Where something is in neither map its Dice is 1, its hd95 0
    and its surface Dice 1, where it is in one of them 0, NaN and 0. Source of kits_*: evaluation of the KiTS19
    challenge (Heller et al., Med Image Anal 2021).
    """
    order = np.argsort(target.strides, kind="stable")[::-1]  # NIfTI arrays lie the other way round in memory
    prediction, target, spacing = prediction.transpose(order), target.transpose(order), [spacing[i] for i in order]
    box = bounding_box((prediction | target) > 0) or (slice(0, 1),) * target.ndim
    box = tuple(slice(max(0, side.start - 1), side.stop + 1) for side in box)  # what is flat in it is flat in the scan
    scores: dict[str, float] = {}
    for name, own, true in organs(prediction[box], target[box]):
        found = distances(own, true, spacing)
        scores |= {
            f"kits_{name}": dice(own, true),
            f"hd95_{name}": found.hausdorff95(),
            f"surface_{name}": found.dice(tolerance),
        }
    return scores
