"""The blocks of the U-Net, in two and three dimensions, of torch's own layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
}


def normalization(kind: str, dims: int, channels: int) -> list[nn.Module]:
    """The norm layer `batch`, `instance` (affine, no running statistics) or `none`, as a list of no or one module."""
    if kind == "none":
        return []
    layer = NORMS[kind][dims]
    return [layer(channels) if kind == "batch" else layer(channels, affine=True)]


class ConvBlock(nn.Sequential):
    """[convolution of kernel 3 -> norm -> activation] twice: (N, in, *S) -> (N, out, *S).

    The first convolution has the `stride`. With `padding="valid"` each convolution makes every side two voxels shorter.
    Convolutions have a bias only where no norm follows. A dropout comes last, if there is any.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        norm: str = "batch",
        activation: str = "relu",
        padding: str = "same",
        stride: int = 1,
        dropout: float = 0.0,
    ) -> None:
        pad, bias = 1 if padding == "same" else 0, norm == "none"
        layers: list[nn.Module] = [
            CONV[dims](inputs, outputs, 3, stride, pad, bias=bias),
            *normalization(norm, dims, outputs),
            ACTIVATIONS[activation](),
            CONV[dims](outputs, outputs, 3, 1, pad, bias=bias),
            *normalization(norm, dims, outputs),
            ACTIVATIONS[activation](),
        ]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers)


class Up(nn.Module):
    """Transposed convolution of stride 2, then the activation if there is one: (N, in, *S) -> (N, out, *2S).

    With kernel 3 the output is one voxel longer than 2S; the last row, column and slice are cropped, as in TensorFlow's
    transposed convolution with "same" padding.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int = 2, activation: str | None = None) -> None:
        super().__init__()
        self.conv = TRANSPOSED[dims](inputs, outputs, kernel, stride=2)
        self.activation = ACTIVATIONS[activation]() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        sides = [2 * side for side in x.shape[2:]]
        return self.activation(crop(self.conv(x), sides, at_start=True))


def crop(x: Tensor, sides: Sequence[int], at_start: bool = False) -> Tensor:
    """Crop the spatial sides of `x` (N, C, *S) to `sides`: around the centre (an odd margin is smaller in front), or
    keep the start."""
    for axis, side in enumerate(sides, 2):
        if x.shape[axis] != side:
            x = x.narrow(axis, 0 if at_start else (x.shape[axis] - side) // 2, side)
    return x


def join(upsampled: Tensor, skip: Tensor) -> Tensor:
    """Concatenate (upsampled, skip) along the channels; after valid convolutions the skip is larger: centre crop."""
    return torch.cat((upsampled, crop(skip, upsampled.shape[2:])), 1)
