"""The shape of a UNet whose stages are planned one by one (`planned_unet`): what it is, what is wrong with it, how many
parameters it has, which sides fit. No torch, so that a network too large is refused before torch is imported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from unet.errors import UnetError

Triple = tuple[int, int, int]
ONE: Triple = (1, 1, 1)
RESIDUAL_BLOCKS = (1, 3, 4, 6)  # of the first stages; deeper ones have as many as the last. Source: nnU-Net's ResEnc


@dataclasses.dataclass(frozen=True)
class Stage:
    """One resolution. `kernel` and `stride` are along depth, height and width; the stride is that of the way down to
    this stage. `blocks`: convolutions on the way down, or residual blocks of two; `decoder`: convolutions on the way up
    (the lowest stage has none)."""

    channels: int
    kernel: Triple = (3, 3, 3)
    stride: Triple = ONE
    blocks: int = 2
    decoder: int = 2


@dataclasses.dataclass(frozen=True)
class PlannedShape:
    """Hyperparameters of a planned UNet, stages from full resolution down.

    `dims` 2: slices (depth 1). `residual`: the encoder is a stem and residual blocks. `deep_supervision`: in training,
    logits of every decoder stage but the lowest. `bias`: also for convolutions before a norm, which takes it out again
    (nnU-Net's networks have them).
    """

    dims: int
    inputs: int
    outputs: int
    stages: tuple[Stage, ...]
    residual: bool = False
    deep_supervision: bool = True
    bias: bool = False

    @property
    def heads(self) -> int:
        """How many outputs the network has in training."""
        return max(1, len(self.stages) - 2) if self.deep_supervision else 1

    @property
    def multiples(self) -> Triple:
        """What the sides of an input (D, H, W) must be multiples of."""
        depth, height, width = (math.prod(steps) for steps in zip(*(item.stride for item in self.stages), strict=True))
        return depth, height, width


def standard_stages(
    kernels: Sequence[Triple], strides: Sequence[Triple], width: int = 32, most: int = 320, residual: bool = False
) -> tuple[Stage, ...]:
    """Stages with nnU-Net's usual sizes: channels double from `width` up to `most` (it takes 320 in 3D, 512 in 2D), two
    convolutions on either way; with `residual` 1, 3, 4, 6, 6 ... blocks and one convolution (its presets M and L)."""
    return tuple(
        Stage(
            min(width * 2**level, most),
            kernel,
            stride,
            RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)] if residual else 2,
            1 if residual else 2,
        )
        for level, (kernel, stride) in enumerate(zip(kernels, strides, strict=True))
    )


def faults(shape: PlannedShape) -> list[str]:
    """What is wrong with a shape, in words; empty for one that can be built."""
    found = []
    if shape.dims not in (2, 3):
        found.append(f"the network has {shape.dims} dimensions, and must have 2 or 3")
    for name, count in (("input channels", shape.inputs), ("classes", shape.outputs)):
        if count < 1:
            found.append(f"the network has {count} {name}, and needs 1 or more")
    if len(shape.stages) < 2:
        found.append(f"the network has {len(shape.stages)} stages, and needs 2 or more")
    for number, stage in enumerate(shape.stages):
        found += [f"stage {number}: {fault}" for fault in stage_faults(stage, shape.dims, first=number == 0)]
    return found


def stage_faults(stage: Stage, dims: int, first: bool) -> list[str]:
    """What is wrong with one stage, in words."""
    found = [
        f"{name} is {value}, and must be 1 or more"
        for name, value in (("channels", stage.channels), ("blocks", stage.blocks), ("decoder", stage.decoder))
        if value < 1
    ]
    for name, triple in (("kernel", stage.kernel), ("stride", stage.stride)):
        if len(triple) != 3 or min(triple) < 1:
            return [*found, f"{name} is {list(triple)}, and must be three numbers of 1 or more"]
    if any(side % 2 == 0 for side in stage.kernel):
        found.append(f"kernel is {list(stage.kernel)}, and its numbers must be odd, so that sides stay the same")
    if first and tuple(stage.stride) != ONE:
        found.append(f"stride is {list(stage.stride)}, and the first stage has 1 1 1: it is the full resolution")
    if dims == 2 and (stage.kernel[0], stage.stride[0]) != (1, 1):
        found.append(f"kernel is {list(stage.kernel)}, stride {list(stage.stride)}: of slices both begin with 1")
    return found


def require(shape: PlannedShape) -> None:
    """Raise UnetError, with all that is wrong, for a shape that cannot be built."""
    if found := faults(shape):
        raise UnetError(
            f"This network cannot be built: {'; '.join(found)}.",
            "Correct these values in the plan, or make a new one: python -m unet plan --data DIR",
        )


def parameters(shape: PlannedShape) -> int:
    """Parameters of the network, exactly."""

    def conv(inputs: int, outputs: int, kernel: Sequence[int], bias: bool = True) -> int:
        return inputs * outputs * math.prod(kernel) + (outputs if bias else 0)

    def normed(inputs: int, outputs: int, kernel: Sequence[int], bias: bool = shape.bias) -> int:
        return conv(inputs, outputs, kernel, bias) + 2 * outputs  # the norm's weight and bias

    stages = shape.stages
    total, channels = 0, shape.inputs
    if shape.residual:
        total += normed(channels, stages[0].channels, stages[0].kernel)
        channels = stages[0].channels
    for stage in stages:
        width, convolutions = stage.channels, stage.blocks * (2 if shape.residual else 1)
        total += normed(channels, width, stage.kernel) + (convolutions - 1) * normed(width, width, stage.kernel)
        if shape.residual and channels != width:
            total += normed(channels, width, ONE, bias=False)
        channels = width
    for below, stage in zip(stages[:0:-1], stages[-2::-1], strict=True):
        width = stage.channels
        total += conv(below.channels, width, below.stride) + normed(2 * width, width, stage.kernel)
        total += (stage.decoder - 1) * normed(width, width, stage.kernel)
    return total + sum(conv(stage.channels, shape.outputs, ONE) for stage in stages[: shape.heads])


def check_sides(sides: Sequence[int], shape: PlannedShape) -> None:
    """Raise UnetError, with the next larger sides that fit, for an input (D, H, W) that the network cannot take: sides
    that are no multiples of its strides, slices with a depth, or one voxel left at the lowest stage (of which a norm of
    each sample by itself would leave nothing)."""
    given = shown(sides)
    if shape.dims == 2 and sides[0] != 1:
        raise UnetError(
            f"An input of {given} has {sides[0]} slices; a network of 2 dimensions takes them one by one.",
            f"Give slices of {shown((1, *sides[1:]))}, or plan a network of 3 dimensions.",
        )
    steps = shape.multiples
    fitting = [-(-side // step) * step for side, step in zip(sides, steps, strict=True)]
    if alone := fitting == list(steps):
        axis = max(range(3), key=lambda each: (shape.dims == 3 or each > 0, -steps[each]))
        fitting[axis] *= 2
    if any(side % step for side, step in zip(sides, steps, strict=True)):
        fault = f"does not fit its strides: sides must be multiples of {shown(steps)}."
    elif alone:
        fault = f"leaves one voxel at the lowest of {len(shape.stages)} stages, too few for instance normalisation."
    else:
        return
    raise UnetError(f"An input of {given} {fault}", f"Pad or resize to {shown(fitting)}, or plan fewer stages.")


def shown(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
