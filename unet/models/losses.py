"""Losses, in float32 whatever the arithmetic of the network."""

from __future__ import annotations

from torch import Tensor


def batch_dice_loss(probabilities: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) over the whole batch: two tensors of one shape -> scalar.

    Source: DiceLoss of brain-segmentation-pytorch, which flattens batch and pixels (s = 1).
    """
    p, t = probabilities.float(), target.float()
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)
