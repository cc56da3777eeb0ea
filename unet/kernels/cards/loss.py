"""Dice and cross-entropy in Triton: one pass over logits and labels for the sums, one for the gradient. For fp32, bf16
and fp16 in either memory order, with fp32 inside; the sums are made in two stages in a fixed order, so they repeat to
the bit.

`plain_sums` and `plain_gradient` are the same by their formulas, with all numbers in fp32 or fp64: for other inputs
and to compare with.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048  # numbers that a program holds at once
MOST = 128  # classes
PROGRAMS = 2048  # that make sums, about


@triton.jit
def _voxels(logits, labels, sample, voxel, classes, voxels, BV: tl.constexpr, BC: tl.constexpr, LAST: tl.constexpr):
    """(log of the softmax, labels, which voxels there are, offsets of the logits) of a tile (BV, BC)."""
    v, c = (voxel + tl.arange(0, BV)).to(tl.int64), tl.arange(0, BC)
    there = v < voxels
    start = sample.to(tl.int64)
    if LAST:
        offsets = (start * voxels + v)[:, None] * classes + c[None, :]
    else:
        offsets = (start * classes + c.to(tl.int64))[None, :] * voxels + v[:, None]
    z = tl.load(logits + offsets, mask=there[:, None] & (c < classes)[None, :], other=0.0).to(tl.float32)
    z = tl.where((c < classes)[None, :], z, float("-inf"))
    z -= tl.max(z, 1)[:, None]
    log_p = z - tl.log(tl.sum(tl.exp(z), 1))[:, None]
    return log_p, tl.load(labels + start * voxels + v, mask=there, other=0).to(tl.int32), there, offsets


@triton.jit
def _sums(
    logits,
    labels,
    out,
    ignore,
    classes,
    voxels,
    per,
    parts,
    IGNORES: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
):
    """Sums of p t, p, t, t log p over a part of the voxels: out (4, N, parts, C)."""
    part, sample = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, BC)
    both, predicted = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    true, likelihood = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for i in range(per):
        log_p, label, counts, _ = _voxels(logits, labels, sample, (part * per + i) * BV, classes, voxels, BV, BC, LAST)
        if IGNORES:
            counts = counts & (label != ignore)
        p = tl.exp(log_p)
        hot = (label[:, None] == c[None, :]) & counts[:, None]
        both += tl.sum(tl.where(hot, p, 0.0), 0)
        predicted += tl.sum(tl.where(counts[:, None], p, 0.0), 0)
        true += tl.sum(hot.to(tl.float32), 0)
        likelihood += tl.sum(tl.where(hot, log_p, 0.0), 0)
    place = out + (sample * parts + part) * classes + c
    step = tl.num_programs(1) * parts * classes
    tl.store(place, both, mask=c < classes)
    tl.store(place + step, predicted, mask=c < classes)
    tl.store(place + 2 * step, true, mask=c < classes)
    tl.store(place + 3 * step, likelihood, mask=c < classes)


@triton.jit
def _gradient(
    logits,
    labels,
    out,
    grad,
    slope,
    shift,
    counted,
    ignore,
    row,
    classes,
    voxels,
    IGNORES: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
):
    """`row`: 1 where each sample has a row of slope and shift, 0 where all have the same."""
    sample, c = tl.program_id(1), tl.arange(0, BC)
    log_p, label, there, offsets = _voxels(logits, labels, sample, tl.program_id(0) * BV, classes, voxels, BV, BC, LAST)
    p = tl.exp(log_p)
    hot = (label[:, None] == c[None, :]).to(tl.float32)
    own = sample * row * classes + c
    by_p = tl.load(slope + own, mask=c < classes, other=0.0)[None, :] * hot
    by_p += tl.load(shift + own, mask=c < classes, other=0.0)[None, :]
    mean = tl.sum(p * by_p, 1)[:, None]
    found = p * (by_p - mean) + (p - hot) * (0.5 / tl.load(counted))
    if IGNORES:
        found = tl.where((label != ignore)[:, None], found, 0.0)
    inside = there[:, None] & (c < classes)[None, :]
    tl.store(out + offsets, found * tl.load(grad), mask=inside)


def applies(logits: Tensor) -> bool:
    """Whether these kernels take such logits."""
    known = logits.dtype in (torch.float32, torch.bfloat16, torch.float16) and logits.shape[1] <= MOST
    values = logits.flatten(2)
    return known and (values.is_contiguous() or is_last(values))


def is_last(values: Tensor) -> bool:
    """Whether logits (N, C, V) are in channels-last order."""
    return not values.is_contiguous() and values.transpose(1, 2).is_contiguous()


def tiles(values: Tensor) -> tuple[int, int]:
    """(voxels, classes) of a tile."""
    wide = triton.next_power_of_2(values.shape[1])
    return min(TILE // wide, triton.next_power_of_2(values.shape[2])), wide


def sums(logits: Tensor, labels: Tensor, batch_dice: bool, ignore: int | None, programs: int = PROGRAMS) -> Tensor:
    """What the operator `unet::dice_ce_sums` gives: (4, N or 1, C)."""
    values, truth = logits.flatten(2), labels.flatten(1).contiguous()
    n, classes, voxels = values.shape
    long, wide = tiles(values)
    count = -(-voxels // long)
    per = -(-count * n // programs)
    parts = -(-count // per)
    out = values.new_empty((4, n, parts, classes), dtype=torch.float32)
    _sums[parts, n](
        values,
        truth,
        out,
        ignore or 0,
        classes,
        voxels,
        per,
        parts,
        IGNORES=ignore is not None,
        BV=long,
        BC=wide,
        LAST=is_last(values),
    )
    return out.sum((1, 2))[:, None] if batch_dice else out.sum(2)


def gradient(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    shift: Tensor,
    voxels: Tensor,
    batch_dice: bool,
    ignore: int | None,
) -> Tensor:
    """What the operator `unet::dice_ce_backward` gives."""
    values, truth = logits.flatten(2), labels.flatten(1).contiguous()
    counted = voxels if ignore is not None else torch.full_like(voxels, truth.numel())
    result = torch.empty_like(values)
    long, wide = tiles(values)
    _gradient[-(-values.shape[2] // long), len(values)](
        values,
        truth,
        result,
        grad.float(),
        slope.contiguous(),
        shift.contiguous(),
        counted,
        ignore or 0,
        int(not batch_dice),
        *values.shape[1:],
        IGNORES=ignore is not None,
        BV=long,
        BC=wide,
        LAST=is_last(values),
    )
    return result.view(logits.shape)


def plain_sums(logits: Tensor, labels: Tensor, batch_dice: bool, ignore: int | None) -> Tensor:
    """The same, a sample at a time."""
    rows = []
    for z, hot, counts in parts_of(logits, labels, ignore):
        log_p = torch.log_softmax(z, 0)
        p = log_p.exp()
        rows.append(torch.stack([(p * hot).sum(1), (p * counts).sum(1), hot.sum(1), (log_p * hot).sum(1)]))
    found = torch.stack(rows, 1)
    return found.sum(1, keepdim=True) if batch_dice else found


def plain_gradient(
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    shift: Tensor,
    voxels: Tensor,
    batch_dice: bool,
    ignore: int | None,
) -> Tensor:
    """The same, a sample at a time."""
    result = torch.empty_like(logits.flatten(2))
    each = 1 / (2 * (labels.numel() if ignore is None else voxels))
    for sample, (z, hot, counts) in enumerate(parts_of(logits, labels, ignore)):
        row, p = 0 if batch_dice else sample, torch.softmax(z, 0)
        by_p = slope[row][:, None] * hot + shift[row][:, None]
        result[sample] = (p * (by_p - (p * by_p).sum(0)) + (p - hot) * each) * counts * grad
    return result.view(logits.shape)


def parts_of(logits: Tensor, labels: Tensor, ignore: int | None) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(logits, one-hot labels, which voxels count) of each sample, numbers."""
    kind = torch.float64 if logits.dtype == torch.float64 else torch.float32
    classes = torch.arange(logits.shape[1], device=labels.device)[:, None]
    parts = []
    for z, t in zip(logits.flatten(2), labels.flatten(1), strict=True):
        counts = torch.ones_like(t, dtype=torch.bool) if ignore is None else t != ignore
        parts.append((z.to(kind), (t == classes).to(kind), counts.to(kind)))
    return parts
