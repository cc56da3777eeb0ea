"""Faster instance normalisation of volumes that lie in channels-last order, with the activation that follows.

torch's own (`nn.InstanceNorm3d`, the plain form) makes a contiguous copy of such a volume and copies the result back.
The backward pass recomputes the normalised volume instead of storing it (activation recomputation; source: Rota Bulò
et al., In-place activated batch norm, CVPR 2018, does the same by inverting the activation).
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALL, SMALLER = 2**20, 2**17  # elements of several samples, and of any, that are worked on at once in float32
ROWS = 4096  # voxels whose sums may be kept in float32 one after the other
# the operators' types; torch 2.4 does not read them from annotations that are text
FORWARD = "(Tensor x, Tensor weight, Tensor bias, float eps, float slope) -> (Tensor, Tensor, Tensor)"
BACKWARD = (
    "(Tensor grad, Tensor x, Tensor y, Tensor weight, Tensor bias, Tensor mean, Tensor variance, float eps,"
    " float slope) -> (Tensor, Tensor, Tensor)"
)
ONCE = (
    "The stored input was released by the first backward pass. For a second one through the same graph use"
    " --layout NCDHW, which keeps torch's own layers in effect."
)


def channel_last(x: Tensor) -> bool:
    """Whether a volume (N, C, D, H, W) is in channels-last order; with a single channel, whether its strides say so."""
    return x.ndim == 5 and x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last_3d)


def order_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if channel_last(x) else torch.contiguous_format


class OfOneSample:
    """Mixed into an instance norm of torch's. On the CPU its gradient for a single sample is wrong, by more than its
    size (torch 2.13), where that of the output is channels-last, as convolutions give it: it is made contiguous."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[misc]
        if len(x) == 1 and y.requires_grad and not torch.compiler.is_compiling():
            y.register_hook(torch.Tensor.contiguous)
        return y


class InstanceNorm2d(OfOneSample, nn.InstanceNorm2d):
    """`nn.InstanceNorm2d` with the right gradient."""


class PlainInstanceNorm3d(OfOneSample, nn.InstanceNorm3d):
    """`nn.InstanceNorm3d` with the right gradient."""


class InstanceNorm3d(PlainInstanceNorm3d):
    """`nn.InstanceNorm3d` with affine weights and without running statistics, then (leaky) ReLU: (N, C, D, H, W).

    Faster where the input is channels-last; any other input takes the plain form, unless a device has one for it.
    """

    slope = 1.0  # of the activation for negative values: 0 is ReLU, 1 is none
    whole = False  # the device has a form of the operator, in either order: it is always used

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if channel_last(x) or (self.whole and x.is_contiguous()):
            if self.whole or torch.compiler.is_compiling():
                return operator(x, self.weight, self.bias, self.eps, self.slope)[0]
            y = _Normalised.apply(x, self.weight, self.bias, self.eps, self.slope)
            return y
        return activate(super().forward(x), self.slope)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, slope={self.slope}"


def activate(y: Tensor, slope: float) -> Tensor:
    """(Leaky) ReLU in place."""
    return y if slope == 1 else F.leaky_relu_(y, slope) if slope else y.clamp_min_(0)


def plain(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """Norm and activation as one operator, which compilers and recorders of graphs keep whole: in type and memory order
    of `x`, with float32 inside. Gives the volume, and mean and variance of each channel (N, C), float32."""
    mean, variance = statistics_of_all(x)
    return normalised(x, weight, bias, mean, variance, eps, slope), mean, variance


operator = torch.library.custom_op("unet::instance_norm", plain, mutates_args=(), schema=FORWARD)


@operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    size = x.shape[:2]
    return torch.empty_like(x), x.new_empty(size, dtype=torch.float32), x.new_empty(size, dtype=torch.float32)


def plain_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, weight and bias by that of the volume `y`, which the operator gave."""
    return gradients(grad, x, y, weight, mean, variance, eps, slope)


operator_backward = torch.library.custom_op(
    "unet::instance_norm_backward", plain_backward, mutates_args=(), schema=BACKWARD
)


@operator_backward.register_fake
def _(grad: Tensor, x: Tensor, y: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps, ctx.slope = inputs
    ctx.save_for_backward(x, output[0], weight, bias, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *operator_backward(grad, *ctx.saved_tensors, ctx.eps, ctx.slope), None, None


operator.register_autograd(_backward, setup_context=_keep)


class _Normalised(torch.autograd.Function):
    """Instance norm of one sample is batch norm, and torch's batch norm kernels take either memory order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> Tensor:
        mean, variance = statistics_of_all(x)
        norm = RecomputedNorm(x, weight, bias, mean, variance, eps, slope)
        y = norm.recompute()
        if _recomputed is not None:
            _recomputed[y.untyped_storage().data_ptr()] = weakref.ref(y), y._version, norm
        ctx.save_for_backward(weight)
        ctx.norm = norm  # holds the input
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), norm = ctx.saved_tensors, ctx.norm
        y = None if norm.slope == 1 else norm.output()
        x = norm.release()
        found = gradients(grad, x, y, weight, norm.mean, norm.variance, norm.eps, norm.slope)
        return *found, None, None


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, slope: float
) -> Tensor:
    """Norm and activation (N, C, D, H, W), with mean and variance (N, C)."""
    if at_once(x):
        scale = torch.rsqrt(variance + eps) * weight
        shift = torch.addcmul(bias, mean, scale, value=-1)
        y = torch.addcmul(spread(shift), x.float(), spread(scale))
        return activate(y, slope).to(x.dtype).contiguous(memory_format=order_of(x))
    parts = [
        torch.ops.aten.native_batch_norm(part, weight, bias, *of_part, False, 0.0, eps)[0]
        for part, *of_part in zip(x.split(1), mean, variance, strict=True)
    ]
    return activate(torch.cat(parts) if len(parts) > 1 else parts[0], slope)


def gradients(
    grad: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, mean: Tensor, variance: Tensor, eps: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, weight and bias by that of `normalised`, whose result `y` is needed where it activates."""
    grad = grad.contiguous(memory_format=order_of(x))
    if y is not None and slope != 1:
        grad = torch.ops.aten.leaky_relu_backward(grad, y, slope, True)
    scale = torch.rsqrt(variance + eps)
    if at_once(x, SMALLER):
        slopes = grad.float()
        by_bias, voxels = slopes.mean((2, 3, 4)), x[0, 0].numel()
        standard = (x.float() - spread(mean)).mul_(spread(scale))
        by_weight = (slopes * standard).mean((2, 3, 4))
        by_input = (
            (slopes - spread(by_bias)).addcmul_(standard, spread(by_weight), value=-1).mul_(spread(scale * weight))
        )
        return by_input.to(x.dtype), by_weight.sum(0).mul_(voxels), by_bias.sum(0).mul_(voxels)
    parts = [
        torch.ops.aten.native_batch_norm_backward(
            grad[n : n + 1], x[n : n + 1], weight, None, None, mean[n], scale[n], True, eps, [True] * 3
        )
        for n in range(len(x))
    ]
    dx, dweight, dbias = zip(*parts, strict=True)
    return torch.cat(dx) if len(dx) > 1 else dx[0], sum(dweight), sum(dbias)


def statistics_of_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (N, C) of the channels of each sample."""
    if at_once(x):
        voxels = x.permute(0, 2, 3, 4, 1).flatten(1, 3).float()
        centre = voxels.mean(1)
        return centre, (voxels - centre[:, None]).square_().mean(1)
    mean, variance = (torch.stack(part) for part in zip(*map(statistics, x.split(1)), strict=True))
    return mean, variance


def at_once(x: Tensor, several: int | None = None) -> bool:
    """Whether all samples are worked on at once, in copies in float32: on the CPU, where a few small operations for
    each sample take longer than these copies."""
    return x.device.type == "cpu" and x.numel() <= ((several or SMALL) if len(x) > 1 else SMALLER)


def spread(values: Tensor) -> Tensor:
    """(N, C) for a volume (N, C, D, H, W)."""
    return values[:, :, None, None, None]


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """One sample (1, C, D, H, W) -> mean and variance (C) of its channels, float32.

    torch's CPU kernel adds up all voxels of a channel in float32 one after the other (an error of 1e-4 at 64 x 64 x 64
    voxels). So the CPU computes the statistics of pieces and combines them (Chan et al. 1979).
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


class RecomputedNorm:
    """Recomputes a normalised volume from its input, which it stores until the backward pass is done."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float, slope: float
    ) -> None:
        self.x: Tensor | None = x.detach()
        self.weight, self.bias = weight.detach(), bias.detach()
        self.mean, self.variance, self.eps, self.slope = mean, variance, eps, slope
        self.cached: Tensor | None = None

    def recompute(self) -> Tensor:
        """Norm and activation of the stored input."""
        if self.x is None:
            raise RuntimeError(ONCE)
        return normalised(self.x, self.weight, self.bias, self.mean, self.variance, self.eps, self.slope)

    def output(self) -> Tensor:
        """The normalised volume, recomputed once for all layers that need it in the backward pass."""
        if self.cached is None:
            with torch.no_grad():
                self.cached = self.recompute()
        return self.cached

    def release(self) -> Tensor:
        """Return the input and free the stored tensors: a graph's nodes outlive the backward pass."""
        if self.x is None:
            raise RuntimeError(ONCE)
        x, self.x, self.cached = self.x, None, None
        return x


_recomputed: dict[int, tuple[weakref.ref[Tensor], int, RecomputedNorm]] | None = None


@contextlib.contextmanager
def recompute_activations() -> Iterator[None]:
    """Within this context, layers that save the output of an `InstanceNorm3d` for their backward pass save how to
    recompute it instead. It takes a third less memory and one percent more time."""
    global _recomputed

    def pack(saved: Tensor) -> Any:
        reference, version, norm = norms.get(saved.untyped_storage().data_ptr(), (None, 0, None))
        volume = None if reference is None else reference()
        if volume is None or volume._version != version:  # freed (another tensor has its address now), or changed since
            return saved
        return norm, saved.size(), saved.stride(), saved.storage_offset()

    def unpack(saved: Any) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        norm, *view = saved
        return norm.output().as_strided(*view)

    before = _recomputed
    norms: dict[int, tuple[weakref.ref[Tensor], int, RecomputedNorm]] = {}
    _recomputed = norms
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield
    finally:
        _recomputed = before


class Recomputing:
    """Mixed into the class of a network: its forward pass in training runs under `recompute_activations`.

    Copies and pickles as the plain class does: the mixed class is made again when an object is loaded.
    """

    plain: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with recompute_activations():
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        how: Any = super().__reduce_ex__(protocol)
        return _new_recomputing, (self.plain,), *how[2:]


@functools.cache
def recomputing(plain: type[nn.Module]) -> type[nn.Module]:
    """The class of a network with `Recomputing` mixed in."""
    return type(plain.__name__, (Recomputing, plain), {"plain": plain, "__module__": plain.__module__})


def _new_recomputing(plain: type[nn.Module]) -> nn.Module:
    cls = recomputing(plain)  # type: ignore[arg-type]  # mypy takes a class for unhashable
    return cls.__new__(cls)
