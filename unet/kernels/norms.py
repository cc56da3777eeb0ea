"""Instance normalisation for volumes whose channel lies last in memory (torch's own takes a copy of them in the other
order, and gives one back), with the activation that follows; the backward pass computes its outputs again instead of
keeping them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 4096  # voxels whose sums may be kept in float32 one after the other


def channel_last(x: Tensor) -> bool:
    """Whether a volume (N, C, D, H, W) lies with its channel last in memory; of one with a single channel, whether its
    strides say so."""
    return x.ndim == 5 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


class InstanceNorm3d(nn.InstanceNorm3d):
    """torch's, (N, C, D, H, W) with affine weights and without running statistics; no copies where the channel lies
    last."""

    def forward(self, x: Tensor, slope: float = 1.0) -> Tensor:
        """`slope`: of a (leaky) ReLU that follows; 1 for none."""
        if channel_last(x) and not torch.compiler.is_compiling():
            y: Tensor = _Normalised.apply(x, self.weight, self.bias, self.eps, slope)
            return y
        y = instance_norm(x, self.weight, self.bias, self.eps) if channel_last(x) else super().forward(x)
        return y if slope == 1 else F.leaky_relu_(y, slope) if slope else F.relu_(y)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The formula, in float32 inside; a compiler makes two passes of it in any memory order."""
    values = x.float()
    var, mean = torch.var_mean(values, (2, 3, 4), correction=0, keepdim=True)
    scale = torch.rsqrt(var + eps) * weight[:, None, None, None]
    return ((values - mean) * scale + bias[:, None, None, None]).to(x.dtype)


class _Normalised(torch.autograd.Function):
    """Of one sample it is batch normalisation, whose kernels take either memory order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        mean, variance = (torch.stack(part) for part in zip(*map(statistics, x.split(1)), strict=True))
        recipe = Recipe(x, weight, bias, mean, variance, eps, slope)
        y = recipe.made()
        if _kept_as_recipes is not None:
            _kept_as_recipes[y.untyped_storage().data_ptr()] = weakref.ref(y), recipe
        ctx.save_for_backward(weight)
        ctx.recipe = recipe  # which has the input
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        recipe = ctx.recipe
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        if recipe.slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, recipe.output(), recipe.slope, True)
        x = recipe.spent()
        scale = torch.rsqrt(recipe.variance + recipe.eps)
        parts = [
            torch.ops.aten.native_batch_norm_backward(
                grad[n : n + 1],
                x[n : n + 1],
                weight,
                None,
                None,
                recipe.mean[n],
                scale[n],
                True,
                recipe.eps,
                [True] * 3,
            )
            for n in range(len(x))
        ]
        dx, dweight, dbias = zip(*parts, strict=True)
        return torch.cat(dx) if len(dx) > 1 else dx[0], sum(dweight), sum(dbias), None, None


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """One sample (1, C, D, H, W) -> means and variances of its channels, float32.

    A processor's kernel adds up all voxels of a channel in float32, one after the other (1e-4 of error at 64 x 64 x 64
    voxels): there the statistics are those of pieces, put together.
    """
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x.float(), (0, 2, 3, 4), correction=0)
        return mean, variance
    voxels = x.permute(0, 2, 3, 4, 1).reshape(1, -1, 1, x.shape[1]).permute(0, 3, 1, 2)
    pieces = voxels.split(ROWS, 2)
    each = [torch.ops.aten.batch_norm_update_stats(piece.float(), None, None, 0.0) for piece in pieces]
    share = torch.tensor([piece.shape[2] / voxels.shape[2] for piece in pieces])[:, None]
    means, variances = (torch.stack(part) for part in zip(*each, strict=True))
    mean = (share * means).sum(0)
    return mean, (share * (variances + (means - mean) ** 2)).sum(0)


class Recipe:
    """How to make a normalised volume from the one before, which is kept until the backward pass has gone by."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, slope: float
    ) -> None:
        self.x: Tensor | None = x.detach()
        self.weight, self.bias = weight.detach(), bias.detach()
        self.mean, self.variance, self.eps, self.slope = mean, variance, eps, slope
        self.held: Tensor | None = None

    def made(self) -> Tensor:
        if self.x is None:
            raise RuntimeError("The backward pass has gone by: what it needs is kept for one.")
        parts = [
            torch.ops.aten.native_batch_norm(part, self.weight, self.bias, mean, variance, False, 0.0, self.eps)[0]
            for part, mean, variance in zip(self.x.split(1), self.mean, self.variance, strict=True)
        ]
        y = torch.cat(parts) if len(parts) > 1 else parts[0]
        if self.slope == 1:
            return y
        return F.leaky_relu_(y, self.slope) if self.slope else y.clamp_min_(0)

    def output(self) -> Tensor:
        """The volume, made once for all who need it in the backward pass."""
        if self.held is None:
            with torch.no_grad():
                self.held = self.made()
        return self.held

    def spent(self) -> Tensor:
        """The volume before, and an end to keeping anything: nodes of a graph outlive the backward pass."""
        if self.x is None:
            raise RuntimeError("The backward pass has gone by: what it needs is kept for one.")
        x, self.x, self.held = self.x, None, None
        return x


_kept_as_recipes: dict[int, tuple[weakref.ref[Tensor], Recipe]] | None = None


@contextlib.contextmanager
def sparing(x: Tensor) -> Iterator[None]:
    """Within: on a processor, what layers keep of the outputs of `InstanceNorm3d` for their backward pass is how to
    make them again. A third less memory for a hundredth of the time."""
    global _kept_as_recipes
    if x.ndim != 5 or x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return

    def pack(kept: Tensor) -> Any:
        reference, recipe = recipes.get(kept.untyped_storage().data_ptr(), (None, None))
        if reference is None or reference() is None:  # of a volume that is gone, another may have the address
            return kept
        return recipe, kept.size(), kept.stride(), kept.storage_offset()

    def unpack(kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        recipe, *place = kept
        return recipe.output().as_strided(*place)

    before = _kept_as_recipes
    recipes: dict[int, tuple[weakref.ref[Tensor], Recipe]] = {}
    _kept_as_recipes = recipes
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _kept_as_recipes = before
