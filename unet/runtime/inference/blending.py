"""What each of overlapping windows contributes to the voxels that it shares with others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gaussian_1d(length: int) -> Tensor:
    """(length,) float64: a window's weight along one axis, 1 at most.

    The cube root of a Gaussian with a standard deviation of an eighth of the window; the product over three axes is
    MLPerf's importance map, but for a factor that the division by the sum removes.
    """
    offset = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / (0.125 * length)
    return torch.exp(-(offset**2) / 6)


def narrow_1d(length: int) -> Tensor:
    """(length,) float64: nnU-Net's weight along one axis: a Gaussian with a standard deviation of an eighth of the
    window, about its voxel length // 2."""
    offset = (torch.arange(length, dtype=torch.float64) - length // 2) / (0.125 * length)
    return torch.exp(-(offset**2) / 2)


def window_weights(length: int, starts: Sequence[int], blend: str) -> Tensor:
    """(windows, length) float32: what each of the windows that begin at `starts` along an axis contributes at each of
    its voxels; the contributions to a voxel add up to 1. `blend`: "gaussian", "narrow" or "constant"."""
    if blend == "constant":
        weight = torch.ones(length, dtype=torch.float64)
    else:
        weight = narrow_1d(length) if blend == "narrow" else gaussian_1d(length)
    total = torch.zeros(starts[-1] + length, dtype=torch.float64)
    for start in starts:
        total[start : start + length] += weight
    return torch.stack([weight / total[start : start + length] for start in starts]).float()
