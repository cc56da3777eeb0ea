"""Faster 3D convolutions on the CPU: matrix products where a convolution is one, Winograd where it pays, and outputs in
the memory order of their inputs. Every class computes what `nn.Conv3d` computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.kernels import winograd
from unet.kernels.norms import channel_last

FEW = 64  # voxels
WIDE = 8  # channels, from which on a product of matrices pays


class Conv3d(nn.Conv3d):
    """`nn.Conv3d`, with the output in the memory order of the input: (N, I, D, H, W) -> (N, O, *S).

    torch's CPU code for small volumes (not oneDNN) returns contiguous outputs, and all later layers would lose the
    channels-last order. Up to 64 voxels are computed in float32: in bfloat16 torch (2.13) leaves the weights' gradient
    uninitialised at 2 x 2 x 2 voxels.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() <= FEW:
            dtype = to_autocast_dtype(x).dtype
            with torch.autocast("cpu", enabled=False):
                return keep_order(super().forward(x.to(self.weight.dtype)), x).to(dtype)
        return keep_order(super().forward(x), x)


class OneChannelConv3d(Conv3d):
    """`nn.Conv3d` of volumes with one channel, in a network in channels-last order: only their strides tell the order,
    so they are set here."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)[..., None].movedim(-1, 1) if x.ndim == 5 else x)


class PointwiseConv3d(Conv3d):
    """`nn.Conv3d` of kernel 1: one product of matrices, (voxels, I) with (I, O)."""

    def forward(self, x: Tensor) -> Tensor:
        if not channel_last(x) or x.shape[2:].numel() == 1:  # one voxel is in every order
            return super().forward(x)
        y = F.linear(x.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias)
        return y.permute(0, 4, 1, 2, 3)


class WinogradConv3d(Conv3d):
    """`nn.Conv3d` of kernel 3, stride 1 and padding 1, by `winograd.conv` where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:].numel() > FEW:
            x = to_autocast_dtype(x)
            if winograd.applies_to(x, self.weight):
                return winograd.conv(x, self.weight, self.bias)
        return super().forward(x)


def faster(layer: nn.Conv3d, channels_last: bool = True) -> type[nn.Conv3d]:
    """The class that computes what this plain layer computes, faster, in a network in this order."""
    usual = layer.stride == layer.dilation == (1, 1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    wide = min(layer.in_channels, layer.out_channels) >= WIDE
    if usual and wide and layer.kernel_size == (1, 1, 1) and layer.padding == (0, 0, 0):
        return PointwiseConv3d
    if channels_last and layer.in_channels == 1:
        return OneChannelConv3d
    return WinogradConv3d if usual and layer.kernel_size == (3, 3, 3) and layer.padding == (1, 1, 1) else Conv3d


def keep_order(y: Tensor, x: Tensor) -> Tensor:
    """`y` in the memory order of `x`."""
    return y.contiguous(memory_format=torch.channels_last_3d) if channel_last(x) else y


def to_autocast_dtype(x: Tensor) -> Tensor:
    """`x` in the type of the autocast that is active on the CPU, if any."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x
