"""Blocks that the UNets are made of, in two and three dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.kernels import winograd
from unet.kernels.norms import InstanceNorm3d, channel_last

FEW = 64  # voxels


class Conv3d(nn.Conv3d):
    """torch's, by the cheaper algorithm of `models.winograd` where that suits; a processor's keeps the memory order.

    On a processor a volume of few voxels is taken in float32: in bfloat16 torch (2.13) leaves the gradient of the
    weights at 2 x 2 x 2 voxels uninitialised, and a run ends in numbers like 1e31.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[2:].numel() <= FEW:
            kind = in_arithmetic(x).dtype
            with torch.autocast("cpu", enabled=False):
                return ordered(super().forward(x.float()), x).to(kind)
        unit = self.kernel_size == (3, 3, 3) and self.stride == self.padding == (1, 1, 1) and self.bias is None
        if unit and x.device.type == "cpu":
            x = in_arithmetic(x)
            if winograd.suits(x, self.weight):
                return winograd.conv(x, self.weight)
        return ordered(super().forward(x), x)


def ordered(y: Tensor, x: Tensor) -> Tensor:
    """A result in the memory order of what it was made of: on a processor small layers leave oneDNN, and with it the
    order."""
    last = y.device.type == "cpu" and channel_last(x)
    return y.contiguous(memory_format=torch.channels_last_3d) if last else y


CONV = {2: nn.Conv2d, 3: Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS: dict[str, dict[int, type[nn.Module]]] = {
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
    "instance": {2: nn.InstanceNorm2d, 3: InstanceNorm3d},
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
    """[3-wide convolution -> norm -> activation] twice: (N, in, *S) -> (N, out, *S).

    `stride` acts in the first convolution. With `padding="valid"` each convolution takes one voxel off every side.
    Convolutions have a bias only where no norm follows.
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
        layers: list[nn.Module] = []
        for index, (a, b) in enumerate(((inputs, outputs), (outputs, outputs))):
            layers.append(
                CONV[dims](
                    a,
                    b,
                    3,
                    stride=stride if index == 0 else 1,
                    padding=1 if padding == "same" else 0,
                    bias=norm == "none",
                )
            )
            layers += normalization(norm, dims, b)
            layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """An instance norm takes the activation after it along."""
        layers = iter(self)
        for layer in layers:
            if isinstance(layer, InstanceNorm3d):
                x = layer(x, slope=getattr(next(layers), "negative_slope", 0.0))
            else:
                x = layer(x)
        return x


class Up(nn.Module):
    """Transposed convolution that doubles every side exactly: (N, in, *S) -> (N, out, *2S).

    Kernel 2 tiles. Kernel 3 has stride 2 and no padding, its last row and column (and slice) dropped: the "same"-padded
    transposed convolution of TensorFlow. `activation` follows where it is given.
    """

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int = 2, activation: str | None = None) -> None:
        super().__init__()
        self.conv = TRANSPOSED[dims](inputs, outputs, kernel, stride=2)
        self.activation = ACTIVATIONS[activation]() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self.conv.kernel_size == (2, 2, 2) and channel_last(x):
            return self.activation(tiled(in_arithmetic(x), self.conv.weight, self.conv.bias))
        sides = [2 * side for side in x.shape[2:]]
        return self.activation(crop(self.conv(x), sides, at_start=True))


def tiled(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A transposed convolution of kernel and stride 2 as one matrix product: (N, I, D, H, W) -> (N, O, 2D, 2H, 2W), the
    channel last in memory."""
    n, _, d, h, w = x.shape
    matrix = weight.permute(2, 3, 4, 1, 0).flatten(0, 3)  # 2 2 2 O, I
    y = F.linear(x.permute(0, 2, 3, 4, 1), matrix, None if bias is None else bias.repeat(8))
    y = y.view(n, d, h, w, 2, 2, 2, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return y.reshape(n, 2 * d, 2 * h, 2 * w, -1).permute(0, 4, 1, 2, 3)


def in_arithmetic(x: Tensor) -> Tensor:
    """`x` of a processor in the type of the autocast that is in force."""
    return x.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else x


def crop(x: Tensor, sides: Sequence[int], at_start: bool = False) -> Tensor:
    """Cut the spatial sides of `x` (N, C, *S) to `sides`, around the centre (floor of the margin first) or at the
    start.
    """
    for axis, side in enumerate(sides, 2):
        if x.shape[axis] != side:
            x = x.narrow(axis, 0 if at_start else (x.shape[axis] - side) // 2, side)
    return x


def join(upsampled: Tensor, skip: Tensor) -> Tensor:
    """Concatenate (upsampled, skip) on the channel axis, the skip centre-cropped where convolutions are valid."""
    return torch.cat((upsampled, crop(skip, upsampled.shape[2:])), 1)
