"""Losses, in float32 whatever the type of the network's outputs; call them outside of autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-6
CHUNK = 2**24  # voxels that are worked on at a time, where the caller does not say


def batch_dice_loss(probabilities: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - (2 sum(p t) + s) / (sum(p) + sum(t) + s) over the whole batch: two tensors of one shape -> scalar.

    Source: DiceLoss of brain-segmentation-pytorch, which flattens batch and pixels (s = 1).
    """
    p, t = probabilities.float(), target.float()
    return 1 - (2 * (p * t).sum() + smooth) / (p.sum() + t.sum() + smooth)


def dice_ce_loss(logits: Tensor, labels: Tensor, include_background: bool = False, chunk: int = CHUNK) -> Tensor:
    """(mean(1 - dice) + cross-entropy) / 2: logits (N, C, *S), integer labels (N, 1, *S) -> scalar.

    dice = (2 sum(p t) + 1e-6) / (sum(p) + sum(t) + 1e-6) of softmax and one-hot labels for every sample and class, sums
    over the voxels, class 0 left out unless `include_background`; cross-entropy is the mean over batch and voxels.
    Source: DiceCELoss of MLPerf Training's U-Net3D. Nothing of the logits' size is kept for the backward pass.
    A sample is worked on `chunk` voxels at a time. The plain form is `plain_dice_ce`.
    """
    loss: Tensor = _DiceCE.apply(logits, labels, include_background, chunk)
    return loss


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


def plain_dice_ce(logits: Tensor, labels: Tensor) -> Tensor:
    """The same by its formula, as the reference computes it (without background): what tests and `benchmark` compare
    with."""
    p, labels = logits.softmax(1), labels[:, 0].long()
    hot = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).float()
    p, hot = p[:, 1:].flatten(2), hot[:, 1:].flatten(2)
    dice = (2 * (p * hot).sum(2) + SMOOTH) / (p.sum(2) + hot.sum(2) + SMOOTH)
    return ((1 - dice).mean() + F.cross_entropy(logits, labels)) / 2


class _DiceCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, include_background: bool, chunk: int) -> Tensor:
        n, classes = logits.shape[:2]
        sums = logits.new_zeros((4, n, classes), dtype=torch.float32)  # p t, p, t, t log p
        for sample, _, z, hot in chunks(logits, labels, chunk):
            log_p = torch.log_softmax(z, 0)
            p = log_p.exp()
            sums[0, sample] += (p * hot).sum(1)
            sums[1, sample] += p.sum(1)
            sums[2, sample] += hot.sum(1)
            sums[3, sample] += (log_p * hot).sum(1)
        overlap, predicted, true, log_likelihood = sums
        counted = sums.new_ones(classes)
        counted[0] = float(include_background)
        counted /= n * counted.sum()
        total = predicted + true + SMOOTH
        dice = (2 * overlap + SMOOTH) / total
        # d loss / d p = slope t + shift, and d cross-entropy / d logit = (p - t) / voxels
        ctx.save_for_backward(logits, labels, -counted / total, counted * dice / (2 * total))
        ctx.chunk = chunk
        return ((1 - dice) * counted).sum() / 2 - log_likelihood.sum() / (2 * labels.numel())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, slope, shift = ctx.saved_tensors
        result, each = torch.empty_like(logits.flatten(2)), 1 / (2 * labels.numel())
        for sample, where, z, hot in chunks(logits, labels, ctx.chunk):
            p = torch.softmax(z, 0)
            by_p = slope[sample][:, None] * hot + shift[sample][:, None]
            mean = (p * by_p).sum(0)
            part = p * (by_p - mean) + (p - hot) * each
            result[sample, :, where] = part * grad
        return result.view(logits.shape), None, None, None


def chunks(logits: Tensor, labels: Tensor, size: int) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """(sample, its voxels, logits (C, n), one-hot labels (C, n)), both float32, of `size` voxels at most."""
    values, truth = logits.flatten(2), labels.flatten(1)
    classes = torch.arange(logits.shape[1], device=labels.device, dtype=labels.dtype)[:, None]
    for sample in range(len(values)):
        for start in range(0, values.shape[2], size):
            where = slice(start, min(values.shape[2], start + size))
            hot = (truth[sample, where] == classes).float()
            yield sample, where, values[sample, :, where].float().contiguous(), hot
