"""One U-Net for all tasks: 2D or 3D, any norm, same or valid padding, max pooling or strided convolution on the way
down, transposed convolution of kernel 2 or 3 on the way up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from unet.errors import UnetError
from unet.models.layers import CONV, POOL, ConvBlock, Up, join


@dataclasses.dataclass(frozen=True)
class UNetShape:
    """Hyperparameters of a U-Net. `features`: channels of each level from the top; `bottleneck`: below the last."""

    dims: int = 2
    inputs: int = 3
    outputs: int = 1
    features: tuple[int, ...] = (32, 64, 128, 256)
    bottleneck: int = 512
    norm: str = "batch"
    activation: str = "relu"
    padding: str = "same"
    down: str = "pool"
    up_kernel: int = 2
    up_activation: str | None = None
    dropout: float = 0.0


class UNet(nn.Module):
    """(N, inputs, *S) -> logits (N, outputs, *S); with valid padding the sides of the output are shorter.

    Source: Ronneberger et al., U-Net, MICCAI 2015; 3D form: Çiçek et al., MICCAI 2016. With the default shape this is
    the network of brain-segmentation-pytorch (Buda et al. 2019) without its final sigmoid: 7,763,041 parameters.
    MLPerf's 3D U-Net is `UNetShape(3, 1, 3, (32, 64, 128, 256, 320), 320, "instance", down="stride")`: 31,190,243
    parameters. With same padding, sides must be multiples of 2^levels, and an instance norm needs more than one voxel
    at the bottleneck; `forward` raises UnetError otherwise.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__()
        self.shape = shape
        dims: int = shape.dims
        rest: dict[str, Any] = {"norm": shape.norm, "activation": shape.activation, "padding": shape.padding}
        strided = shape.down == "stride"
        channels = shape.inputs
        self.encoders = nn.ModuleList()
        for level, width in enumerate(shape.features):
            self.encoders.append(ConvBlock(dims, channels, width, **rest, stride=2 if strided and level else 1))
            channels = width
        self.pool = nn.Identity() if strided else POOL[dims](2)
        self.bottleneck = ConvBlock(
            dims, channels, shape.bottleneck, **rest, stride=2 if strided else 1, dropout=shape.dropout
        )
        channels = shape.bottleneck
        self.ups = nn.ModuleList()
        self.decoders = nn.ModuleList()
        for width in reversed(shape.features):
            self.ups.append(Up(dims, channels, width, shape.up_kernel, shape.up_activation))
            self.decoders.append(ConvBlock(dims, 2 * width, width, **rest))
            channels = width
        self.head = CONV[dims](channels, shape.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.shape.padding == "same":
            check_sides(x.shape[2:], 2 ** len(self.shape.features), alone=self.shape.norm == "instance")
        skips = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottleneck(x)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            x = decoder(join(up(x), skips.pop()))
        return self.head(x)


def glorot(model: nn.Module) -> nn.Module:
    """Initialise the convolutions of a network as TensorFlow does: weights Glorot-uniform, biases 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def check_sides(sides: Sequence[int], step: int, alone: bool = False) -> None:
    """Raise UnetError, with the next larger sides that fit, unless every side is a multiple of `step`.

    `alone`: the bottleneck needs more than one voxel, because each sample is normalised by its own statistics.
    """
    levels, given = step.bit_length() - 1, " x ".join(map(str, sides))
    fitting = [-(-side // step) * step for side in sides]
    alone = alone and all(side <= step for side in fitting)
    if any(side % step for side in sides):
        fault = f"does not fit {levels} levels: sides must be multiples of {step}."
    elif alone:
        fault = f"leaves one voxel after {levels} levels, too few for instance normalisation."
    else:
        return
    if alone:
        fitting = [2 * side for side in fitting]
    raise UnetError(
        f"An input of {given} {fault}",
        f"Pad or resize to {' x '.join(map(str, fitting))}, or use fewer --layers.",
    )
