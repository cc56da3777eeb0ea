"""Swaps layers of a network for their faster forms.

A layer changes its class and nothing else: parameters, buffers, names and state dict stay the same objects in the same
order. Only exact torch layers are swapped, never subclasses, so doing it twice changes nothing.
"""

from __future__ import annotations

import collections
import itertools

import torch
from torch import nn

from unet.kernels import conv3d, gaussian_kl, norms, upsample


def optimize(model: nn.Module, channels_last: bool = True, choices: conv3d.Choices | None = None) -> nn.Module:
    """Swap all layers of `model` that are faster another way on the CPU, in place. Gives `model`. `channels_last`:
    whether its volumes are in that order; in the other one the new layers compute what the plain ones do, bit for bit,
    where those are right.
    `choices`: who knows the algorithms of 3D convolutions; None: torch's own.

    3D convolutions, 3D instance norms with the (leaky) ReLU after them, and transposed 3D convolutions of kernel 2.
    With such norms, training recomputes their outputs in the backward pass instead of storing them.
    """
    correct_convolutions(model, channels_last)
    for layer in model.modules():
        if type(layer) is nn.Conv3d:
            layer.__class__ = conv3d.faster(layer, channels_last, choices)  # type: ignore[assignment]
        elif type(layer).__name__ == gaussian_kl.PLAIN:
            layer.__class__ = gaussian_kl.fused(type(layer))  # type: ignore[arg-type]
        elif type(layer) is nn.ConvTranspose3d and upsample.applies_to(layer):
            layer.__class__ = upsample.ConvTranspose3d
    optimize_norms(model)
    correct_norms(model)
    if not isinstance(model, norms.Recomputing) and any(isinstance(m, norms.InstanceNorm3d) for m in model.modules()):
        model.__class__ = norms.recomputing(type(model))  # type: ignore[arg-type]
    return model


def optimize_norms(model: nn.Module, whole: bool = False) -> nn.Module:
    """Swap the 3D instance norms of `model` in place, for a device with volumes in channels-last order. Gives `model`.
    `whole`: norm and activation are always the one operator, in either order: the device has a form of it.

    In an `nn.Sequential` a norm also computes the (leaky) ReLU after it, whose place is taken by `nn.Identity`.
    """
    uses = collections.Counter(id(layer) for _, layer in model.named_modules(remove_duplicate=False))
    for layer in model.modules():
        if type(layer) is nn.InstanceNorm3d and has_faster_form(layer):
            layer.__class__ = norms.InstanceNorm3d
            layer.whole = whole  # type: ignore[assignment]
    for layer in list(model.modules()):
        if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
            for index, (norm, activation) in enumerate(itertools.pairwise(list(layer))):
                slope = slope_of(activation)
                if isinstance(norm, norms.InstanceNorm3d) and uses[id(norm)] == 1 and slope is not None:
                    norm.slope, layer[index + 1] = slope, nn.Identity()
    return model


def correct_norms(model: nn.Module) -> nn.Module:
    """Swap instance norms of torch's in place for such whose gradient is right for one sample on the CPU. Gives
    `model`."""
    for layer in model.modules():
        if type(layer) is nn.InstanceNorm2d:
            layer.__class__ = norms.InstanceNorm2d
        elif type(layer) is nn.InstanceNorm3d:
            layer.__class__ = norms.PlainInstanceNorm3d
    return model


def correct_convolutions(model: nn.Module, channels_last: bool = False) -> nn.Module:
    """Swap convolutions of one channel with a stride in place for such that are right on the CPU. Gives `model`."""
    for layer in model.modules():
        if type(layer) in conv3d.UNFOLDED:
            layer.__class__ = conv3d.right(layer)  # type: ignore[arg-type]
        if isinstance(layer, conv3d.Unfolded):
            layer.last = channels_last
    return model


def correct(model: nn.Module) -> nn.Module:
    """Swap what torch computes wrongly on the CPU, in place, and nothing else. Gives `model`."""
    return correct_norms(correct_convolutions(model))


def has_faster_form(norm: nn.InstanceNorm3d) -> bool:
    """Whether the norm has float32 weights and uses the statistics of its input only."""
    return norm.affine and norm.weight.dtype == torch.float32 and not norm.track_running_stats


def slope_of(activation: nn.Module) -> float | None:
    """What a ReLU or leaky ReLU multiplies negative values with; None for any other layer."""
    if type(activation) is nn.ReLU:
        return 0.0
    if type(activation) is nn.LeakyReLU and activation.negative_slope >= 0:
        return activation.negative_slope
    return None
