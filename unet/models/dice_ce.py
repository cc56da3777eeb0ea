"""Dice and cross-entropy as operators of torch, which compilers and recorders of graphs keep whole.

`unet::dice_ce` is the loss, `unet::dice_ce_sums` the sums over voxels that it needs, `unet::dice_ce_backward` its
gradient. The last two pass over the volume; a device may have its own form of them.

Nothing of the logits' size is kept for the backward pass, but the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHUNK = 2**24  # voxels that are worked on at a time, where the caller does not say
FEW = 3  # classes, up to which a chunk has that many voxels; with more it has the same memory
LEAST = 1e-8  # of a Dice's denominator, which could be 0 only without smoothing
# the operators' types; torch 2.4 does not read them from annotations that are text
SUMS = "(Tensor logits, Tensor labels, int chunk, bool batch_dice, int? ignore) -> Tensor"
FORWARD = (
    "(Tensor logits, Tensor labels, bool include_background, int chunk, bool batch_dice, int? ignore, float smooth)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
BACKWARD = (
    "(Tensor grad, Tensor logits, Tensor labels, Tensor slope, Tensor shift, Tensor voxels, int chunk, bool batch_dice,"
    " int? ignore) -> Tensor"
)


@torch.library.custom_op("unet::dice_ce_sums", mutates_args=(), schema=SUMS)
def sums_over_voxels(logits: Tensor, labels: Tensor, chunk: int, batch_dice: bool, ignore: int | None) -> Tensor:
    """Logits (N, C, *S), labels (N, 1, *S) -> (4, N, C), with `batch_dice` (4, 1, C): sums of p t, p, t, t log p of
    softmax p and one-hot labels t."""
    n, classes = logits.shape[:2]
    sums = logits.new_zeros((4, 1 if batch_dice else n, classes), dtype=exact(logits))
    for sample, _, z, hot, valid in chunks(logits, labels, chunk, ignore):
        row = 0 if batch_dice else sample
        log_p = torch.log_softmax(z, 0)
        p = log_p.exp()
        sums[0, row] += (p * hot).sum(1)
        sums[1, row] += (p if valid is None else p * valid).sum(1)
        sums[2, row] += hot.sum(1)
        sums[3, row] += (log_p * hot).sum(1)
    return sums


@sums_over_voxels.register_fake
def _(logits: Tensor, labels: Tensor, chunk: int, batch_dice: bool, ignore: int | None) -> Tensor:
    n, classes = logits.shape[:2]
    return logits.new_empty((4, 1 if batch_dice else n, classes), dtype=exact(logits))


@torch.library.custom_op("unet::dice_ce", mutates_args=(), schema=FORWARD)
def operator(
    logits: Tensor,
    labels: Tensor,
    include_background: bool,
    chunk: int,
    batch_dice: bool,
    ignore: int | None,
    smooth: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, slope, shift, voxels): d (mean(1 - dice) / 2) / d p = slope t + shift, each (rows, C); how many voxels
    count, where some are ignored."""
    sums = sums_over_voxels(logits, labels, chunk, batch_dice, ignore)
    overlap, predicted, true, log_likelihood = sums
    rows, classes = overlap.shape
    counted = sums.new_ones(classes)
    counted[0] = float(include_background)
    counted /= rows * counted.sum()
    bare = predicted + true + smooth
    total = bare.clamp_min(LEAST)
    dice = (2 * overlap + smooth) / total
    shift = counted * dice / (2 * total) * (bare > LEAST)
    found = sums.new_ones(()) if ignore is None else (labels != ignore).sum().clamp_min(1).to(sums.dtype)
    voxels = labels.numel() if ignore is None else found  # a number: float32 does not count beyond 2^24
    loss = ((1 - dice) * counted).sum() / 2 - log_likelihood.sum() / (2 * voxels)
    return loss, -counted / total, shift, found


@operator.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    include_background: bool,
    chunk: int,
    batch_dice: bool,
    ignore: int | None,
    smooth: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    one = logits.new_empty((), dtype=exact(logits))
    rows = one.new_empty((1 if batch_dice else logits.shape[0], logits.shape[1]))
    return one, rows, torch.empty_like(rows), torch.empty_like(one)


@torch.library.custom_op("unet::dice_ce_backward", mutates_args=(), schema=BACKWARD)
def operator_backward(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    shift: Tensor,
    voxels: Tensor,
    chunk: int,
    batch_dice: bool,
    ignore: int | None,
) -> Tensor:
    """The gradient of the logits by that of the loss; of cross-entropy it is (p - t) / voxels."""
    result = torch.empty_like(logits.flatten(2))
    each = 1 / (2 * (labels.numel() if ignore is None else voxels))
    for sample, where, z, hot, valid in chunks(logits, labels, chunk, ignore):
        row = 0 if batch_dice else sample
        p = torch.softmax(z, 0)
        by_p = slope[row][:, None] * hot + shift[row][:, None]
        mean = (p * by_p).sum(0)
        part = p * (by_p - mean) + (p - hot) * each
        if valid is not None:
            part *= valid
        result[sample, :, where] = part * grad
    return result.view(logits.shape)


@operator_backward.register_fake
def _(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    shift: Tensor,
    voxels: Tensor,
    chunk: int,
    batch_dice: bool,
    ignore: int | None,
) -> Tensor:
    return torch.empty_like(logits.flatten(2)).view(logits.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, _, chunk, batch_dice, ignore, _ = inputs
    ctx.save_for_backward(logits, labels, *output[1:])
    ctx.settings = chunk, batch_dice, ignore


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return operator_backward(grad, *ctx.saved_tensors, *ctx.settings), *(None,) * 6


operator.register_autograd(_backward, setup_context=_keep)


def exact(logits: Tensor) -> torch.dtype:
    """The type in which a loss of these logits is computed."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def chunks(
    logits: Tensor, labels: Tensor, size: int, ignore: int | None = None
) -> Iterator[tuple[int, slice, Tensor, Tensor, Tensor | None]]:
    """(sample, its voxels, logits (C, n), one-hot labels (C, n), which voxels count (n), or None for all), numbers of
    one type, of `size` voxels at most."""
    values, truth, kind = logits.flatten(2), labels.flatten(1), exact(logits)
    classes = torch.arange(logits.shape[1], device=labels.device, dtype=labels.dtype)[:, None]
    size = max(1, size * FEW // max(FEW, logits.shape[1]))
    for sample in range(len(values)):
        for start in range(0, values.shape[2], size):
            where = slice(start, min(values.shape[2], start + size))
            hot = (truth[sample, where] == classes).to(kind)
            valid = None if ignore is None else truth[sample, where] != ignore
            yield sample, where, values[sample, :, where].to(kind).contiguous(), hot, valid
