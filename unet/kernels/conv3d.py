"""Faster 3D convolutions on the CPU: each pass by the algorithm that was chosen for its size, and outputs in the memory
order of their inputs. Every class computes what `nn.Conv3d` computes; two are for what torch computes wrongly."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.kernels import algorithms, matrix, winograd
from unet.kernels.algorithms import FEW, PASSES, TABLE, Weights
from unet.kernels.geometry import Geometry, of_layer, strided
from unet.kernels.norms import channel_last

WIDE = 8  # channels, from which on a product of matrices pays


class Choices(Protocol):
    """Who knows the algorithm of each pass of a convolution, or finds it."""

    def names(self, how: Geometry, parts: Sequence[str]) -> dict[str, str]: ...


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with the output in the memory order of the input: (N, I, D, H, W) -> (N, O, *S).

    torch's CPU code for small volumes (not oneDNN) returns contiguous outputs, and all later layers would lose the
    channels-last order. Up to 64 voxels are computed in float32: in bfloat16 torch (2.13) leaves the weights' gradient
    uninitialised at 2 x 2 x 2 voxels. So are types that this processor does not have.
    """

    def forward(self, x: Tensor) -> Tensor:
        dtype = to_autocast_dtype(x).dtype
        if x.shape[2:].numel() <= FEW or not algorithms.is_native(dtype):
            with torch.autocast("cpu", enabled=False):
                return keep_order(super().forward(x.to(self.weight.dtype)), x).to(dtype)
        return keep_order(super().forward(x), x)


class OneChannelConv3d(Conv3d):
    """`nn.Conv3d` of volumes with one channel, in a network in channels-last order: only their strides tell the order,
    so they are set here."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(strided(x))


class Unfolded:
    """Mixed into a convolution of one channel with a stride: (N, 1, *S) -> (N, O, *S') by a product of matrices.

    torch (2.13, oneDNN) is wrong where a row of the output is one voxel and the order is channels-last, and for large
    kernels in any order: numbers that nobody wrote, wrong gradients of the weights, or the end of the process. Networks
    of this program have such a layer with `--width 1` alone, so time does not matter. `last`: the order of the output.
    """

    last = False

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        flat = x.ndim == 4
        x = to_autocast_dtype(x.unsqueeze(2) if flat else x)
        kernel, stride, padding = (
            (first, *sides) if flat else sides
            for first, sides in ((1, layer.kernel_size), (1, layer.stride), (0, layer.padding))
        )
        how = Geometry(tuple(x.shape), layer.out_channels, kernel, stride, padding, x.dtype)
        weight = layer.weight.unsqueeze(2) if flat else layer.weight
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        y = matrix.forward(x, weight.to(x.dtype), bias, how)
        y = y.squeeze(2) if flat else y
        return y if layer.last else y.contiguous()


class UnfoldedConv2d(Unfolded, nn.Conv2d):
    """`nn.Conv2d` of one channel with a stride."""


class UnfoldedConv3d(Unfolded, nn.Conv3d):
    """`nn.Conv3d` of one channel with a stride."""


UNFOLDED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: UnfoldedConv2d, nn.Conv3d: UnfoldedConv3d}


class PointwiseConv3d(Conv3d):
    """`nn.Conv3d` of kernel 1: one product of matrices, (voxels, I) with (I, O)."""

    def forward(self, x: Tensor) -> Tensor:
        if not channel_last(x) or x.shape[2:].numel() == 1:  # one voxel is in every order
            return super().forward(x)
        y = F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 4, 1, 2, 3)


class Chosen:
    """Mixed into one of these classes: channels-last volumes take the algorithms that `choices` names for their size.
    What a compiler traces, and all other inputs, take that class's own way. Copies and pickles as it does."""

    plain: type[nn.Module]
    choices: Choices

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        if torch.compiler.is_compiling() or not is_usual(x, layer.weight):
            return super().forward(x)  # type: ignore[misc]
        x = to_autocast_dtype(strided(x) if layer.in_channels == 1 else x)
        if x.dtype not in (torch.float32, torch.bfloat16) or not channel_last(x):
            return super().forward(x)  # type: ignore[misc]
        wanted = torch.is_grad_enabled()
        needed = (True, wanted and x.requires_grad, wanted and layer.weight.requires_grad)
        how = of_layer(layer, x, x.dtype)
        names = self.choices.names(how, [part for part, need in zip(PASSES, needed, strict=True) if need])
        if set(names.values()) == {"torch"}:
            return keep_order(nn.Conv3d.forward(layer, x), x)
        y: Tensor
        with torch.autocast("cpu", enabled=False):
            if wanted:
                y = _Conv.apply(x, layer.weight, layer.bias, how, names)
            else:
                y = forward(x, Weights(layer.weight, layer.weight.to(x.dtype)), layer.bias, how, names)
        return y

    def __reduce_ex__(self, protocol: Any) -> Any:
        how: Any = super().__reduce_ex__(protocol)
        return _new, (self.plain, type(self).choices), *how[2:]


@functools.cache
def choosing(plain: type[nn.Module], choices: Choices) -> type[nn.Module]:
    """The class of a convolution with `Chosen` mixed in."""
    return type(plain.__name__, (Chosen, plain), {"plain": plain, "choices": choices, "__module__": plain.__module__})


def _new(plain: type[nn.Module], choices: Choices) -> nn.Module:
    cls = choosing(plain, choices)  # type: ignore[arg-type]  # mypy takes a class for unhashable
    return cls.__new__(cls)


def forward(x: Tensor, weights: Weights, bias: Tensor | None, how: Geometry, names: dict[str, str]) -> Tensor:
    """The output, (N, O, *S) channels-last."""
    own = None if bias is None else bias.to(x.dtype)
    return TABLE[names["forward"]].forward(x, weights, own, how)


class _Conv(torch.autograd.Function):
    """Each pass by its algorithm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: Geometry, names: dict[str, str]
    ) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, weight, cast)
        ctx.how, ctx.names = how, names
        return forward(x, Weights(weight, cast), bias, how, names)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, cast = ctx.saved_tensors
        how, names, weights = ctx.how, ctx.names, Weights(weight, cast)
        need_x, need_w, need_b = ctx.needs_input_grad[:3]
        dx = dw = None
        with torch.autocast("cpu", enabled=False):
            grad = grad.to(x.dtype).contiguous(memory_format=algorithms.LAST)
            by_x, by_w = (names.get(part, "torch") for part in PASSES[1:])
            if need_x and need_w and by_x == by_w == "winograd":  # the gradient is transformed once
                dx, dw = winograd.backward(grad, x, weight, (True, True))
            else:
                dx = TABLE[by_x].input_gradient(grad, weights, how) if need_x else None
                dw = TABLE[by_w].weight_gradient(grad, x, weights, how) if need_w else None
            db = grad.sum((0, 2, 3, 4), dtype=weight.dtype) if need_b else None
        return dx, None if dw is None else as_trained(dw, weight), db, None, None


def as_trained(gradient: Tensor, weight: Tensor) -> Tensor:
    """A gradient in the type and the memory order of the weight."""
    if gradient.dtype == weight.dtype and gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight).copy_(gradient)


def is_usual(x: Tensor, weight: Tensor) -> bool:
    """Whether these are tensors with content on the host, of a training in float32."""
    return type(x) is Tensor and x.ndim == 5 and x.device.type == "cpu" and weight.dtype == torch.float32


def faster(layer: nn.Conv3d, channels_last: bool = True, choices: Choices | None = None) -> type[nn.Module]:
    """The class that computes what this plain layer computes, faster, in a network in this order."""
    dense = is_dense(layer)
    wide = min(layer.in_channels, layer.out_channels) >= WIDE
    plain: type[nn.Module] = OneChannelConv3d if channels_last and layer.in_channels == 1 else Conv3d
    if dense and wide and layer.kernel_size == layer.stride == (1, 1, 1) and layer.padding == (0, 0, 0):
        plain = PointwiseConv3d
    if channels_last and choices is not None and dense and isinstance(layer.padding, tuple):
        return choosing(plain, choices)  # type: ignore[arg-type]  # mypy takes a class for unhashable
    return plain


def is_dense(layer: nn.Conv2d | nn.Conv3d) -> bool:
    """Whether a convolution has neither dilation nor groups, and zeros around."""
    return max(layer.dilation) == 1 and layer.groups == 1 and layer.padding_mode == "zeros"


def right(layer: nn.Conv2d | nn.Conv3d) -> type[nn.Module]:
    """The class of a plain layer that is right for every size: its own, but for one channel with a stride."""
    alone = layer.in_channels == 1 and max(layer.stride) > 1 and isinstance(layer.padding, tuple)
    return UNFOLDED[type(layer)] if alone and is_dense(layer) else type(layer)


def keep_order(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory order of `x`."""
    return y.contiguous(memory_format=torch.channels_last_3d) if channel_last(x) else y


def to_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in the type of the autocast that is active on the CPU, if any."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x
