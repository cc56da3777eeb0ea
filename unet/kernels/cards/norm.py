"""Instance norm and (leaky) ReLU of volumes in Triton: eight passes over memory a training step, with no copy in
another order or type. In channels-last or contiguous order, fp32, bf16 or fp16, with fp32 inside.

Sums are made in two stages in a fixed order, without atomic additions: the same input gives the same bits. Means and
variances of parts are combined by Chan et al. 1979, so that a mean far from 0 costs no digits.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from unet.kernels.norms import channel_last

TILE = 4096  # numbers that a program holds at once
WIDEST = 64  # channels of a tile in channels-last order
PROGRAMS = 2048  # that make sums, about
ROWS = 64  # partial results that are combined at once


@triton.jit
def _place(pointer, sample, channel, voxel, channels, voxels, LAST: tl.constexpr):
    """Where a tile of a volume begins; 64 bits, since a volume may have more than 2^31 numbers."""
    start = sample.to(tl.int64) * channels * voxels
    if LAST:
        start += voxel.to(tl.int64) * channels + channel
    else:
        start += channel.to(tl.int64) * voxels + voxel
    return pointer + start


@triton.jit
def _tile(channels, voxels, BV: tl.constexpr, BC: tl.constexpr, LAST: tl.constexpr):
    """The offsets (BV, BC) within a tile."""
    v, c = tl.arange(0, BV)[:, None], tl.arange(0, BC)[None, :]
    if LAST:
        result = v * channels + c
    else:
        result = v + c * voxels
    return result


@triton.jit
def _parts(x, out, channels, voxels, per, parts, BV: tl.constexpr, BC: tl.constexpr, LAST: tl.constexpr):
    """Mean and sum of squares about it of a part of the voxels: out (2, N, parts, C)."""
    part, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = block * BC
    c = first + tl.arange(0, BC)
    offsets = _tile(channels, voxels, BV, BC, LAST)
    mean, squares = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for i in range(per):
        voxel = (part * per + i) * BV
        inside = (voxel + tl.arange(0, BV) < voxels)[:, None] & (c < channels)[None, :]
        values = tl.load(_place(x, sample, first, voxel, channels, voxels, LAST) + offsets, mask=inside, other=0.0)
        values = values.to(tl.float32)
        count = tl.minimum(tl.maximum(voxels - voxel, 0), BV).to(tl.float32)
        own = tl.sum(values, 0) / tl.maximum(count, 1.0)
        centred = tl.where(inside, values - own[None, :], 0.0)
        before = tl.minimum(i * BV, tl.maximum(voxels - part * per * BV, 0)).to(tl.float32)
        share = count / tl.maximum(before + count, 1.0)
        distance = own - mean
        squares += tl.sum(centred * centred, 0) + distance * distance * before * share
        mean += distance * share
    place = (sample * parts + part) * channels + c
    samples = tl.num_programs(2)
    tl.store(out + place, mean, mask=c < channels)
    tl.store(out + samples * parts * channels + place, squares, mask=c < channels)


@triton.jit
def _combine(
    parts_of, mean_of, variance_of, channels, voxels, per, parts, BV: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr
):
    """Mean and variance (N, C) of the parts."""
    block, sample = tl.program_id(0), tl.program_id(1)
    c = block * BC + tl.arange(0, BC)
    size = per * BV
    mean, squares = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for start in range(0, parts, BP):
        p = start + tl.arange(0, BP)
        inside = (p < parts)[:, None] & (c < channels)[None, :]
        count = tl.minimum(tl.maximum(voxels - p * size, 0), size).to(tl.float32)[:, None]
        place = (sample * parts + p)[:, None] * channels + c[None, :]
        mean += tl.sum(tl.load(parts_of + place, mask=inside, other=0.0) * (count / voxels), 0)
    for start in range(0, parts, BP):
        p = start + tl.arange(0, BP)
        inside = (p < parts)[:, None] & (c < channels)[None, :]
        count = tl.minimum(tl.maximum(voxels - p * size, 0), size).to(tl.float32)[:, None]
        place = (sample * parts + p)[:, None] * channels + c[None, :]
        own = tl.load(parts_of + place, mask=inside, other=0.0)
        within = tl.load(parts_of + tl.num_programs(1) * parts * channels + place, mask=inside, other=0.0)
        distance = tl.where(inside, own - mean[None, :], 0.0)
        squares += tl.sum(within + distance * distance * count, 0)
    place = sample * channels + c
    tl.store(mean_of + place, mean, mask=c < channels)
    tl.store(variance_of + place, squares / voxels, mask=c < channels)


@triton.jit
def _channel(values, sample, c, channels):
    """A number for each channel of a sample (1, BC): values (N, C)."""
    return tl.load(values + sample * channels + c, mask=c < channels, other=0.0)[None, :]


@triton.jit
def _normalise(
    x,
    y,
    weight,
    bias,
    mean,
    variance,
    eps,
    slope,
    channels,
    voxels,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
):
    part, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, voxel = block * BC, part * BV
    c = first + tl.arange(0, BC)
    offsets = _tile(channels, voxels, BV, BC, LAST)
    inside = (voxel + tl.arange(0, BV) < voxels)[:, None] & (c < channels)[None, :]
    values = tl.load(_place(x, sample, first, voxel, channels, voxels, LAST) + offsets, mask=inside, other=0.0)
    scale = 1.0 / tl.sqrt(_channel(variance, sample, c, channels) + eps) * _channel(weight, 0, c, channels)
    z = (values.to(tl.float32) - _channel(mean, sample, c, channels)) * scale + _channel(bias, 0, c, channels)
    z = tl.where(z > 0, z, z * slope)
    tl.store(_place(y, sample, first, voxel, channels, voxels, LAST) + offsets, z, mask=inside)


@triton.jit
def _slopes(grad, x, weight, bias, mean, variance, eps, slope, sample, c, channels):
    """(gradient before the activation, normalised value) of a tile: the sign is that of the recomputed output."""
    root = 1.0 / tl.sqrt(_channel(variance, sample, c, channels) + eps)
    own = _channel(weight, 0, c, channels)
    centred = x.to(tl.float32) - _channel(mean, sample, c, channels)
    z = centred * (root * own) + _channel(bias, 0, c, channels)  # as in the forward pass
    g = grad.to(tl.float32)
    return tl.where(z > 0, g, g * slope), centred * root


@triton.jit
def _sums(
    grad,
    x,
    out,
    weight,
    bias,
    mean,
    variance,
    eps,
    slope,
    channels,
    voxels,
    per,
    parts,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
):
    """Sums of the gradient, and of it times the normalised value, over a part of the voxels: out (2, N, parts, C)."""
    part, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = block * BC
    c = first + tl.arange(0, BC)
    offsets = _tile(channels, voxels, BV, BC, LAST)
    plain, times = tl.zeros((BC,), tl.float32), tl.zeros((BC,), tl.float32)
    for i in range(per):
        voxel = (part * per + i) * BV
        inside = (voxel + tl.arange(0, BV) < voxels)[:, None] & (c < channels)[None, :]
        g = tl.load(_place(grad, sample, first, voxel, channels, voxels, LAST) + offsets, mask=inside, other=0.0)
        values = tl.load(_place(x, sample, first, voxel, channels, voxels, LAST) + offsets, mask=inside, other=0.0)
        g, standard = _slopes(g, values, weight, bias, mean, variance, eps, slope, sample, c, channels)
        plain += tl.sum(g, 0)
        times += tl.sum(g * standard, 0)
    place = (sample * parts + part) * channels + c
    tl.store(out + place, plain, mask=c < channels)
    tl.store(out + tl.num_programs(2) * parts * channels + place, times, mask=c < channels)


@triton.jit
def _by_input(
    grad,
    x,
    dx,
    weight,
    bias,
    mean,
    variance,
    plain,
    times,
    eps,
    slope,
    channels,
    voxels,
    BV: tl.constexpr,
    BC: tl.constexpr,
    LAST: tl.constexpr,
):
    part, block, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first, voxel = block * BC, part * BV
    c = first + tl.arange(0, BC)
    offsets = _tile(channels, voxels, BV, BC, LAST)
    inside = (voxel + tl.arange(0, BV) < voxels)[:, None] & (c < channels)[None, :]
    g = tl.load(_place(grad, sample, first, voxel, channels, voxels, LAST) + offsets, mask=inside, other=0.0)
    values = tl.load(_place(x, sample, first, voxel, channels, voxels, LAST) + offsets, mask=inside, other=0.0)
    g, standard = _slopes(g, values, weight, bias, mean, variance, eps, slope, sample, c, channels)
    by_bias, by_weight = _channel(plain, sample, c, channels) / voxels, _channel(times, sample, c, channels) / voxels
    scale = _channel(weight, 0, c, channels) / tl.sqrt(_channel(variance, sample, c, channels) + eps)
    found = (g - by_bias - standard * by_weight) * scale
    tl.store(_place(dx, sample, first, voxel, channels, voxels, LAST) + offsets, found, mask=inside)


class Plan:
    """How a volume (N, C, D, H, W) is cut into tiles: `per` tiles in a row make one of `parts` sums, of about
    `programs` in all."""

    def __init__(self, x: Tensor, programs: int) -> None:
        self.samples, self.channels = x.shape[:2]
        self.voxels = x[0, 0].numel()
        self.last = channel_last(x)
        self.wide = min(WIDEST, triton.next_power_of_2(self.channels)) if self.last else 1
        self.long = min(TILE // self.wide, triton.next_power_of_2(self.voxels))
        self.blocks = -(-self.channels // self.wide)
        tiles = -(-self.voxels // self.long)
        self.per = -(-tiles * self.blocks * self.samples // programs)
        self.parts = -(-tiles // self.per)
        self.sums = self.parts, self.blocks, self.samples
        self.tiles = tiles, self.blocks, self.samples
        self.size = self.channels, self.voxels
        self.shape: dict[str, Any] = {"BV": self.long, "BC": self.wide, "LAST": self.last}

    def partial(self, x: Tensor) -> Tensor:
        """Room for two sums of each part."""
        return x.new_empty((2, self.samples, self.parts, self.channels), dtype=torch.float32)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, programs: int = PROGRAMS
) -> tuple[Tensor, Tensor, Tensor]:
    """What `unet.kernels.norms.operator` gives."""
    plan, y = Plan(x, programs), torch.empty_like(x)
    partial = plan.partial(x)
    mean, variance = (x.new_empty((plan.samples, plan.channels), dtype=torch.float32) for _ in range(2))
    _parts[plan.sums](x, partial, *plan.size, plan.per, plan.parts, **plan.shape)
    _combine[plan.blocks, plan.samples](
        partial, mean, variance, *plan.size, plan.per, plan.parts, BV=plan.long, BC=plan.wide, BP=ROWS
    )
    _normalise[plan.tiles](x, y, weight, bias, mean, variance, eps, float(slope), *plan.size, **plan.shape)
    return y, mean, variance


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    slope: float,
    programs: int = PROGRAMS,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `unet.kernels.norms.operator_backward` gives."""
    plan, dx = Plan(x, programs), torch.empty_like(x)
    grad = grad.contiguous(memory_format=torch.channels_last_3d if plan.last else torch.contiguous_format)
    numbers, partial = (weight, bias, mean, variance), plan.partial(x)
    how = eps, float(slope), *plan.size
    _sums[plan.sums](grad, x, partial, *numbers, *how, plan.per, plan.parts, **plan.shape)
    plain, times = partial.sum(2)
    _by_input[plan.tiles](grad, x, dx, *numbers, plain, times, *how, **plan.shape)
    return dx, times.sum(0), plain.sum(0)
