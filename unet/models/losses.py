"""Losses, in float32 whatever the type of the network's outputs (float64 stays); call them outside of autocast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.errors import UnetError
from unet.models import dice_ce
from unet.models.dice_ce import CHUNK, LEAST

SMOOTH = 1e-6


def batch_dice_loss(probabilities: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) over the whole batch: two tensors of one shape -> scalar.

    Source: DiceLoss of brain-segmentation-pytorch, which flattens batch and pixels (s = 1).
    """
    p, t = probabilities.float(), target.float()
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)


def batch_dice_bce_loss(logits: Tensor, target: Tensor) -> Tensor:
    """`batch_dice_loss` of the sigmoid plus the mean binary cross-entropy: two tensors of one shape -> scalar."""
    logits, target = logits.float(), target.float()
    return batch_dice_loss(logits.sigmoid(), target) + F.binary_cross_entropy_with_logits(logits, target)


def dice_ce_loss(
    logits: Tensor,
    labels: Tensor,
    include_background: bool = False,
    chunk: int = CHUNK,
    *,
    batch_dice: bool = False,
    ignore: int | None = None,
    smooth: float = SMOOTH,
) -> Tensor:
    """(mean(1 - dice) + cross-entropy) / 2: logits (N, C, *S), integer labels (N, 1, *S) -> scalar.

    dice = (2 sum(p t) + s) / (sum(p) + sum(t) + s) of softmax and one-hot labels for every sample and class, sums over
    the voxels, class 0 left out unless `include_background`; with `batch_dice` for every class, sums over the batch.
    Cross-entropy is the mean over batch and voxels. Voxels of the label `ignore`, which is no class, count in neither;
    where a sample has no others its dice is 1. Source: DiceCELoss of MLPerf Training's U-Net3D (s = 1e-6). Nothing of
    the logits' size is kept for the backward pass. A sample is worked on `chunk` voxels at a time, fewer where there
    are many classes. One operator (`unet.models.dice_ce`); the plain form is `plain_dice_ce`.
    """
    return dice_ce.operator(logits, labels, include_background, chunk, batch_dice, ignore, smooth)[0]


def nnunet_loss(
    logits: Tensor, labels: Tensor, include_background: bool = False, chunk: int = CHUNK, **how: Any
) -> Tensor:
    """Cross-entropy - mean(dice), from -1 up: twice `dice_ce_loss`, less 1, with s = 1e-5. The same settings.

    Source: nnU-Net's DC_and_CE_loss, whose learning rate and clipping of gradients are made for its scale. Over several
    processes `batch_dice` is of each one's own batch.
    """
    return 2 * dice_ce_loss(logits, labels, include_background, chunk, **{"smooth": 1e-5, **how}) - 1


def deep_supervision_loss(
    outputs: Sequence[Tensor], labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Weighted mean of `loss(logits, labels)` over the outputs (N, C, *S) of a network, full resolution first: weights
    1, 1/2, 1/4 ... by their sum; labels (N, 1, *S) of the full resolution. Source: nnU-Net, where the lowest output has
    weight 0 (here it is left out)."""
    total = sum(0.5**level for level in range(len(outputs)))
    terms = [
        0.5**level / total * loss(logits, down_sampled(labels, logits.shape[2:]))
        for level, logits in enumerate(outputs)
    ]
    return torch.stack(terms).sum()


def down_sampled(labels: Tensor, sides: Sequence[int]) -> Tensor:
    """Labels (N, 1, *S) at a lower resolution, the nearest voxel of each: a view (N, 1, *sides).

    Of f voxels number f // 2 is taken, as by torch's "nearest-exact". Raises UnetError where f is no whole number.
    """
    factors = [own // side for own, side in zip(labels.shape[2:], sides, strict=True)]
    if [side * factor for side, factor in zip(sides, factors, strict=True)] != list(labels.shape[2:]):
        raise UnetError(
            f"Labels of {' x '.join(map(str, labels.shape[2:]))} are no multiple of an output of"
            f" {' x '.join(map(str, sides))}.",
            "Give labels with the sides of the image, which are multiples of the network's strides.",
        )
    for axis, factor in enumerate(factors, 2):
        labels = labels.movedim(axis, 0)[factor // 2 :: factor].movedim(0, axis)
    return labels


def two_class_losses(logits: Tensor, target: Tensor, cross_entropy: str = "softmax") -> tuple[Tensor, Tensor]:
    """(cross-entropy, dice loss) of two classes, each scalar: logits (N, 2, H, W), target (N, 1, H, W) of 0 and 1.

    Cross-entropy is the mean over all pixels: of the softmax, or with "sigmoid" of each logit with its one-hot label
    (mean over both classes too). dice = (2 sum(p t) + 1e-6) / (sum(p^2 + t^2) + 1e-6) of the softmax over the pixels of
    each image and class, background included; the loss is 1 - its mean over batch and classes. Source: NVIDIA's UNet
    Medical (softmax), Habana's UNet2D (sigmoid).
    """
    logits, inside = logits.float(), target[:, 0].float()
    truth = torch.stack((1 - inside, inside), 1)
    p = logits.softmax(1)
    both, squares = (p * truth).sum((2, 3)), (p * p + truth * truth).sum((2, 3))
    dice = 1 - ((2 * both + SMOOTH) / (squares + SMOOTH)).mean()
    if cross_entropy == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, truth), dice
    return F.cross_entropy(logits, truth), dice


def plain_dice_ce(
    logits: Tensor,
    labels: Tensor,
    include_background: bool = False,
    batch_dice: bool = False,
    ignore: int | None = None,
    smooth: float = SMOOTH,
) -> Tensor:
    """The same by its formula, as the reference computes it: what tests and `benchmark` compare with."""
    p, labels = logits.softmax(1), labels[:, 0].long()
    valid = torch.ones_like(labels, dtype=torch.bool) if ignore is None else labels != ignore
    hot = F.one_hot(labels.where(valid, 0), logits.shape[1]).movedim(-1, 1).to(p.dtype)
    if ignore is not None:
        p, hot = p * valid[:, None], hot * valid[:, None]
    first = 0 if include_background else 1
    p, hot = p[:, first:].flatten(2), hot[:, first:].flatten(2)
    if batch_dice:
        p, hot = (item.movedim(0, 1).flatten(1)[None] for item in (p, hot))
    total = (p.sum(2) + hot.sum(2) + smooth).clamp_min(LEAST)
    dice = (2 * (p * hot).sum(2) + smooth) / total
    if ignore is None:
        return ((1 - dice).mean() + F.cross_entropy(logits, labels)) / 2
    log_likelihood = F.cross_entropy(logits, labels.where(valid, -100), ignore_index=-100, reduction="sum")
    return ((1 - dice).mean() + log_likelihood / valid.sum().clamp_min(1)) / 2
