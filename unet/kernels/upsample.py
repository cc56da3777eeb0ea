"""Faster transposed convolution of volumes on the CPU: one matrix product."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from unet.kernels.conv3d import to_autocast_dtype
from unet.kernels.norms import channel_last


class ConvTranspose3d(nn.ConvTranspose3d):
    """`nn.ConvTranspose3d` of kernel and stride 2: (N, I, D, H, W) -> (N, O, 2D, 2H, 2W).

    Faster where the input is channels-last; any other input takes the plain form.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if channel_last(x) and output_size is None:
            return upsample(to_autocast_dtype(x), self.weight, self.bias)
        return super().forward(x, output_size)


def applies_to(layer: nn.ConvTranspose3d) -> bool:
    """Whether this plain layer puts 2 x 2 x 2 voxels side by side, without overlap or padding."""
    tiles = layer.kernel_size == layer.stride == (2, 2, 2) and layer.padding == layer.output_padding == (0, 0, 0)
    return tiles and layer.dilation == (1, 1, 1) and layer.groups == 1


def upsample(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` (N, I, D, H, W) times `weight` (I, O, 2, 2, 2) as one matrix product -> (N, O, 2D, 2H, 2W), channels-last."""
    n, _, d, h, w = x.shape
    matrix = weight.permute(2, 3, 4, 1, 0).flatten(0, 3)  # 2 2 2 O, I
    y = F.linear(x.permute(0, 2, 3, 4, 1), matrix, None if bias is None else bias.repeat(8))
    y = y.view(n, d, h, w, 2, 2, 2, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(n, 2 * d, 2 * h, 2 * w, -1).permute(0, 4, 1, 2, 3)
