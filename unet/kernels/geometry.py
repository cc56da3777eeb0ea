"""A 3D convolution as a layer meets it: sizes, type, and what follows from them. It is the key under which the fastest
algorithm is noted."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

Triple = tuple[int, int, int]
Sides = tuple[int, ...]
CROPPED = (16, 32)  # least depth and height of a volume that stands for a larger one


class Geometry(NamedTuple):
    """Input (N, I, D, H, W) in channels-last order, weight (O, I, *kernel), zeros around; in this type."""

    shape: Sides
    outputs: int
    kernel: Triple
    stride: Triple
    padding: Triple
    dtype: torch.dtype

    @property
    def inputs(self) -> int:
        return self.shape[1]

    @property
    def sides(self) -> Sides:
        """Of the output."""
        return tuple(
            (side + 2 * pad - kernel) // step + 1
            for side, pad, kernel, step in zip(self.shape[2:], self.padding, self.kernel, self.stride, strict=True)
        )

    @property
    def voxels(self) -> int:
        """Of an output."""
        return math.prod(self.sides)

    @property
    def window(self) -> int:
        """Voxels of the kernel."""
        return math.prod(self.kernel)

    @property
    def flops(self) -> int:
        """Floating-point operations of a pass, two for a multiply and add."""
        return 2 * self.shape[0] * self.voxels * self.window * self.inputs * self.outputs

    @property
    def size(self) -> int:
        """Bytes of the input and the output."""
        values = self.inputs * math.prod(self.shape[2:]) + self.outputs * self.voxels
        return self.shape[0] * values * self.dtype.itemsize

    def words(self) -> str:
        """What decides how fast an algorithm is, for a file that people read."""
        triples = (self.kernel, self.stride, self.padding)
        kernel, stride, padding = ("x".join(map(str, triple)) for triple in triples)
        size, kind = " x ".join(map(str, self.shape)), str(self.dtype).removeprefix("torch.")
        return (
            f"{self.inputs} -> {self.outputs}, kernel {kernel}, stride {stride}, padding {padding}, of {size}, {kind}"
        )

    def cropped(self, most: int, least_size: int = 0) -> Geometry:
        """A smaller one of about `most` operations, if this has more: less depth, then less height, then fewer samples,
        down to what still computes the same way, of `least_size` bytes or more. Width and channels stay."""
        found = self
        for axis, least in ((2, CROPPED[0]), (3, CROPPED[1]), (0, 2)):
            while found.flops > most and found.shape[axis] >= 2 * least:
                shape = list(found.shape)
                # a multiple of four stays one, which an algorithm may need
                half = shape[axis] // 2
                shape[axis] = half if axis == 0 or shape[axis] % 4 else max(least, half // 4 * 4)
                smaller = found._replace(shape=tuple(shape))
                if smaller.size < least_size:
                    return found
                found = smaller
        return found


def of_layer(layer: Any, x: Tensor, dtype: torch.dtype) -> Geometry:
    """The geometry of an `nn.Conv3d` and its input."""
    return Geometry(tuple(x.shape), layer.out_channels, layer.kernel_size, layer.stride, layer.padding, dtype)


def strided(x: Tensor) -> Tensor:
    """A volume with one channel, with strides that say channels-last."""
    return x.flatten(0, 1)[..., None].movedim(-1, 1) if x.ndim == 5 and x.shape[1] == 1 else x
