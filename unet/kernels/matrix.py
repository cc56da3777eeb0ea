"""A 3D convolution of few voxels as one product of matrices: the windows of the volume, unfolded, times the weights.

The library's kernels split a convolution over its voxels, of which the lowest levels of a U-Net have a few dozen; a
product of matrices also splits over channels. The plain form is `F.conv3d`. Volumes are channels-last, (N, C, D, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from unet.kernels.geometry import Geometry


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, how: Geometry) -> Tensor:
    """`weight` (O, I, a, b, c) in the type of `x`."""
    y = F.linear(windows(x, how.kernel, how.stride, how.padding), rows(weight), bias)
    return y.view(x.shape[0], *how.sides, how.outputs).permute(0, 4, 1, 2, 3)


def input_gradient(grad: Tensor, weight: Tensor, how: Geometry) -> Tensor:
    """For stride 1: the convolution of the output's gradient with the kernel turned round."""
    around = [side - 1 - pad for side, pad in zip(how.kernel, how.padding, strict=True)]
    turned = weight.flip(2, 3, 4).permute(1, 2, 3, 4, 0).flatten(1)
    dx = windows(grad, how.kernel, (1, 1, 1), around) @ turned.T
    return dx.view(how.shape[0], *how.shape[2:], how.inputs).permute(0, 4, 1, 2, 3)


def weight_gradient(grad: Tensor, x: Tensor, how: Geometry) -> Tensor:
    """(O, I, a, b, c), channels-last."""
    slopes = grad.permute(0, 2, 3, 4, 1).flatten(0, 3)
    dw = slopes.T @ windows(x, how.kernel, how.stride, how.padding)
    return dw.view(how.outputs, *how.kernel, how.inputs).permute(0, 4, 1, 2, 3)


def windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The windows of `x` (N, C, *S) that give an output each -> (outputs, a b c C); zeros around `x`."""
    voxels = x.permute(0, 2, 3, 4, 1)
    if any(padding):
        sides = [side + 2 * pad for side, pad in zip(x.shape[2:], padding, strict=True)]
        padded = x.new_zeros(x.shape[0], *sides, x.shape[1])
        inner = padded
        for axis, pad in enumerate(padding, 1):
            inner = inner.narrow(axis, pad, voxels.shape[axis])
        inner.copy_(voxels)
        voxels = padded
    for axis, (side, step) in enumerate(zip(kernel, stride, strict=True), 1):
        voxels = voxels.unfold(axis, side, step)
    return voxels.permute(0, 1, 2, 3, 5, 6, 7, 4).reshape(-1, x.shape[1] * kernel[0] * kernel[1] * kernel[2])


def rows(weight: Tensor) -> Tensor:
    """(O, I, a, b, c) -> (O, a b c I), the order of `windows`; a view of weights in channels-last order."""
    return weight.permute(0, 2, 3, 4, 1).flatten(1)


def size(how: Geometry) -> int:
    """Elements of the unfolded windows."""
    return how.shape[0] * how.voxels * how.window * how.inputs
