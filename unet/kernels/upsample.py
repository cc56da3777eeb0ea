"""Faster transposed convolution of volumes on the CPU: one matrix product."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from unet.kernels.conv3d import to_autocast_dtype
from unet.kernels.norms import channel_last


class ConvTranspose3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` whose kernel is its stride: (N, I, D, H, W) -> (N, O, aD, bH, cW).

    Faster where the input is channels-last; any other input takes the plain form.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if channel_last(x) and output_size is None:
            return upsample(to_autocast_dtype(x), self.weight, self.bias)
        return super().forward(x, output_size)


def applies_to(layer: nn.ConvTranspose3d) -> bool:
    """Whether this plain layer puts blocks of voxels (2 x 2 x 2, 1 x 2 x 2) side by side, without overlap."""
    tiles = layer.kernel_size == layer.stride and layer.padding == layer.output_padding == (0, 0, 0)
    return tiles and layer.dilation == (1, 1, 1) and layer.groups == 1


def upsample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` (N, I, D, H, W) times `weight` (I, O, a, b, c) as one matrix product -> (N, O, aD, bH, cW), channels-last."""
    (n, _, d, h, w), (a, b, c) = x.shape, weight.shape[2:]
    matrix = weight.permute(2, 3, 4, 1, 0).flatten(0, 3)  # a b c O, I
    y = F.linear(x.permute(0, 2, 3, 4, 1), matrix, None if bias is None else bias.repeat(a * b * c))
    y = y.view(n, d, h, w, a, b, c, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(n, a * d, b * h, c * w, -1).permute(0, 4, 1, 2, 3)
