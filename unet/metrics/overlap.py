"""Scores of a prediction against a reference, per case: of masks by NumPy and SciPy on the host, of logits and label
maps of several classes by torch where they lie, in chunks that stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Mask = NDArray[np.bool_]
SMOOTH = 1e-6  # of MLPerf's Dice
CHUNK, CHUNK_OFF_HOST = 2**18, 2**24  # voxels; on the host three channels of float32 fit into a core's cache


def largest_component(mask: Mask) -> Mask:
    """The largest connected component of a mask (face connectivity, so neighbouring slices connect); an empty mask
    stays empty.

    Source: postprocessing of brain-segmentation-pytorch. Of components of equal size the first in array order stays.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def dice(prediction: Mask, target: Mask) -> float:
    """2 |p t| / (|p| + |t|) by integer counts; 1 where both are empty, 0 where one is."""
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(target))
    return 2 * int(np.count_nonzero(prediction & target)) / total if total else 1.0


def volume_error(prediction: Mask, target: Mask) -> float:
    """(|p| - |t|) / |t|: relative error of the volume, signed; 0 where both are empty, NaN where only the target is."""
    p, t = int(np.count_nonzero(prediction)), int(np.count_nonzero(target))
    return (p - t) / t if t else (0.0 if p == 0 else math.nan)


def hausdorff95(prediction: Mask, target: Mask, spacing: tuple[float, ...] | None = None) -> float:
    """The larger of the two directed 95th percentiles of surface distances, in the unit of `spacing` (default: pixels,
    one for a step along each axis). 0 where both are empty, NaN where one is.

    Surface: mask voxels with a face neighbour outside the mask. Source: Huttenlocher et al. 1993 (percentile form);
    the maximum of the two directions as in MONAI and in DeepMind's surface-distance.
    """
    from unet.metrics import surface

    return surface.distances(prediction, target, spacing).hausdorff95()


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


def label_map(logits: Tensor) -> Tensor:
    """(K, D, H, W) -> the class of the highest logit (D, H, W) uint8, the lowest class where several are equal.

    What argmax says, by comparing channel with channel; torch's argmax takes fifteen times as long on a CPU.
    """
    import torch

    result = torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    for rows in _chunks(result):
        highest, label = logits[0, rows], result[rows]
        for number in range(1, len(logits)):
            channel = logits[number, rows]
            torch.maximum(label, (channel > highest).to(torch.uint8).mul_(number), out=label)
            highest = torch.maximum(highest, channel)
    return result


def confusion(prediction: Tensor, target: Tensor, classes: int = 3) -> Tensor:
    """Voxels of each class (rows: target, columns: prediction) of two uint8 label maps: (classes, classes) int64, where
    the maps lie. Raises DataError for a class that there is not (on the host; a device is not asked).
    """
    import torch

    counts = torch.zeros(classes * classes, dtype=torch.int64, device=target.device)
    for rows in _chunks(target):
        pairs = (target[rows].clamp(max=classes) * classes + prediction[rows]).flatten()
        if target.device.type == "cpu":
            found = torch.bincount(pairs, minlength=len(counts))
            if len(found) > len(counts):
                raise DataError(
                    f"The label map holds a class above {classes - 1} (it goes up to {int(target.max())}).",
                    "Check the labels: python -m unet check",
                )
            counts += found
        else:  # bincount reads the device for the highest number
            counts += torch.stack([(pairs == number).sum() for number in range(len(counts))])
    return counts.view(classes, classes)


def dice_by_class(counts: Tensor) -> list[float]:
    """MLPerf's Dice of each class, background first, from `confusion`: (2 |p t| + 1e-6) / (|p| + |t| + 1e-6), so 1 for
    a class that is in neither. The only read from the device."""
    table = counts.cpu().double()
    return ((2 * table.diagonal() + SMOOTH) / (table.sum(0) + table.sum(1) + SMOOTH)).tolist()


def dice_ce_of(logits: Tensor, labels: Tensor, include_background: bool = False) -> float:
    """MLPerf's loss of one case, (1 - mean soft Dice + cross entropy) / 2: logits (K, D, H, W), labels (D, H, W) uint8.

    Softmax, cross entropy and the sums of the Dice of each chunk in turn, so nothing of the size of the logits is made;
    one read from the device. Without gradients: training has `unet.models.losses`.
    """
    import torch

    first = 0 if include_background else 1
    classes = torch.arange(len(logits), dtype=torch.float32, device=logits.device)[:, None]
    parts = []
    for rows in _chunks(labels):
        log_p = torch.log_softmax(logits[:, rows].float().flatten(1), 0)
        truth = labels[rows].flatten().float().repeat(len(logits), 1).eq_(classes)  # in place: 7 times as fast on a CPU
        agreed = (log_p * truth).sum()
        p, t = log_p[first:].exp_(), truth[first:]
        parts.append(torch.cat((agreed[None], (p * t).sum(1), p.sum(1), t.sum(1))))
    sums = torch.stack(parts).cpu().double().sum(0)
    both, predicted, true = sums[1:].chunk(3)
    dice = (2 * both + SMOOTH) / (predicted + true + SMOOTH)
    return float((1 - dice.mean() - sums[0] / labels.numel()) / 2)


def _chunks(volume: Tensor) -> Iterator[slice]:
    """Slices along the first axis with about as many voxels as are worked on at a time."""
    size = CHUNK if volume.device.type == "cpu" else CHUNK_OFF_HOST
    step = max(1, size * len(volume) // max(1, volume.numel()))
    return (slice(first, first + step) for first in range(0, len(volume), step))
