"""A UNet whose stages are planned one by one: channels, kernel, stride and depth of each, for anisotropic voxels too,
with a plain or a residual encoder and deep supervision."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from unet.models import layers
from unet.models.layers import ACTIVATIONS, join, normalization
from unet.models.planned_shape import ONE, PlannedShape, Triple, check_sides, require

CONV: dict[int, Any] = dict(layers.CONV)  # with a size for each axis
TRANSPOSED: dict[int, Any] = dict(layers.TRANSPOSED)
MEAN_POOL: dict[int, Any] = {2: nn.AvgPool2d, 3: nn.AvgPool3d}
SLOPE = 0.01  # of the leaky ReLU


class PlannedUNet(nn.Module):
    """(N, inputs, D, H, W) -> logits (N, outputs, D, H, W); D is 1 for a shape of 2 dimensions.

    In training a shape with deep supervision gives a tuple of logits, full resolution first, then of each decoder stage
    but the lowest. Source: Isensee et al., nnU-Net, Nature Methods 2021; residual encoder: Isensee et al., nnU-Net
    Revisited, MICCAI 2024. Their networks also have a head at the lowest decoder stage, whose weight in the loss is 0.
    Sides must be multiples of the strides' products; `forward` raises UnetError otherwise.
    """

    def __init__(self, shape: PlannedShape) -> None:
        super().__init__()
        require(shape)
        self.shape = shape
        dims, stages = shape.dims, shape.stages
        channels = shape.inputs
        self.stem = nn.Sequential()
        if shape.residual:
            self.stem.extend(normed(shape, channels, stages[0].channels, stages[0].kernel, ONE))
            channels = stages[0].channels
        self.encoders = nn.ModuleList()
        for stage in stages:
            block = residual_blocks if shape.residual else convolutions
            self.encoders.append(block(shape, channels, stage.channels, stage.kernel, stage.stride, stage.blocks))
            channels = stage.channels
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for below, stage in zip(stages[:0:-1], stages[-2::-1], strict=True):
            step = below.stride[3 - dims :]
            self.ups.append(TRANSPOSED[dims](channels, stage.channels, step, step))
            channels = stage.channels
            self.decoders.append(convolutions(shape, 2 * channels, channels, stage.kernel, ONE, stage.decoder))
        self.heads = nn.ModuleList(CONV[dims](stage.channels, shape.outputs, 1) for stage in stages[: shape.heads])
        initialize(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        check_sides(x.shape[2:], self.shape)
        flat = self.shape.dims == 2
        x = self.stem(x.squeeze(2) if flat else x)
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        x = skips.pop()
        wanted = len(self.heads) if self.training else 1
        outputs = []
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(join(up(x), skips.pop()))
            if len(skips) < wanted:
                logits = self.heads[len(skips)](x)
                outputs.append(logits.unsqueeze(2) if flat else logits)
        return tuple(reversed(outputs)) if self.training and self.shape.deep_supervision else outputs[-1]


class ResidualBlock(nn.Module):
    """[convolution -> norm -> leaky ReLU -> convolution -> norm] + skip, then leaky ReLU: (N, in, *S) -> (N, out, *S').

    Where the block strides, the skip takes the mean of each stride's voxels; where channels change, it ends in a
    convolution of kernel 1 and a norm. Source: ResNet-D (He et al., Bag of Tricks, CVPR 2019).
    """

    def __init__(self, shape: PlannedShape, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        first = normed(shape, inputs, outputs, kernel, stride)
        self.convolutions = nn.Sequential(*first, *normed(shape, outputs, outputs, kernel, ONE)[:2])
        self.skip = nn.Sequential()
        if max(stride) > 1:
            self.skip.append(MEAN_POOL[shape.dims](stride[3 - shape.dims :]))
        if inputs != outputs:
            conv = CONV[shape.dims](inputs, outputs, 1, bias=False)
            self.skip.extend([conv, *normalization("instance", shape.dims, outputs)])
        self.activation = ACTIVATIONS["leaky_relu"]()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.convolutions(x) + self.skip(x))
        return y


def normed(shape: PlannedShape, inputs: int, outputs: int, kernel: Triple, stride: Triple) -> list[nn.Module]:
    """Convolution with same padding, instance norm, leaky ReLU."""
    sides, steps = kernel[3 - shape.dims :], stride[3 - shape.dims :]
    pads = tuple(side // 2 for side in sides)
    conv = CONV[shape.dims](inputs, outputs, sides, steps, pads, bias=shape.bias)
    return [conv, *normalization("instance", shape.dims, outputs), ACTIVATIONS["leaky_relu"]()]


def convolutions(
    shape: PlannedShape, inputs: int, outputs: int, kernel: Triple, stride: Triple, count: int
) -> nn.Sequential:
    """`count` times [convolution -> norm -> leaky ReLU]; the first one has the stride."""
    layers = normed(shape, inputs, outputs, kernel, stride)
    for _ in range(count - 1):
        layers += normed(shape, outputs, outputs, kernel, ONE)
    return nn.Sequential(*layers)


def residual_blocks(
    shape: PlannedShape, inputs: int, outputs: int, kernel: Triple, stride: Triple, count: int
) -> nn.Sequential:
    """`count` residual blocks; the first one has the stride."""
    rest = (ResidualBlock(shape, outputs, outputs, kernel, ONE) for _ in range(count - 1))
    return nn.Sequential(ResidualBlock(shape, inputs, outputs, kernel, stride), *rest)


def initialize(model: nn.Module) -> nn.Module:
    """Initialise as nnU-Net does: weights Kaiming-normal for a leaky ReLU, biases 0, and the last norm of each residual
    block 0, so that the block begins as its skip."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, ResidualBlock):
            for parameter in layer.convolutions[-1].parameters():
                nn.init.zeros_(parameter)
    return model
