"""The algorithms among which a 3D convolution chooses, each for the forward pass, the gradient of the input and the
gradient of the weights alone. All compute what `F.conv3d` and its gradients do, of channels-last volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.kernels import matrix, winograd
from unet.kernels.geometry import Geometry

PASSES = ("forward", "input gradient", "weight gradient")
LAST = torch.channels_last_3d
FEW = 64  # voxels, up to which torch's gradient of the weights in a lower precision is not trusted
NARROW = 16  # channels, up to which the other memory order is tried
SLAB = 8 * 2**20  # bytes of input and output that are worked on at a time
NATIVE = 20480  # channels x depth x height, up to which torch leaves oneDNN for one sample in float32
UNFOLDED = 2**24  # elements of unfolded windows that are tried


class Weights(NamedTuple):
    """The weight (O, I, a, b, c) as it is trained, and the same in the type of the input."""

    trained: Tensor
    cast: Tensor


Forward = Callable[[Tensor, Weights, Tensor | None, Geometry], Tensor]
InputGradient = Callable[[Tensor, Weights, Geometry], Tensor]
WeightGradient = Callable[[Tensor, Tensor, Weights, Geometry], Tensor]


class Algorithm(NamedTuple):
    """Three functions: (x, weights, bias) -> output, (output's gradient, weights) -> input's, (output's gradient, x,
    weights) -> weights'. `applies`: whether it computes a pass of a geometry. Results are channels-last."""

    applies: Callable[[Geometry, str], bool]
    forward: Forward
    input_gradient: InputGradient
    weight_gradient: WeightGradient


def native_types() -> frozenset[torch.dtype]:
    """The types whose convolutions oneDNN computes on this processor. Those of others are torch's own loops, which take
    many times as long as float32 does (torch 2.13, AVX2), and whose gradient of the input is less exact."""
    found = {torch.float32, torch.float64}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        supported = getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", None)
        if supported is None or (torch.backends.mkldnn.is_available() and supported()):
            found.add(dtype)  # also where this torch does not tell: then nothing changes
    return frozenset(found)


NATIVE_TYPES = native_types()


def is_native(dtype: torch.dtype) -> bool:
    """Whether a type is one of these; may be traced by a compiler."""
    return dtype in NATIVE_TYPES


def backward(grad: Tensor, x: Tensor, weight: Tensor, how: Geometry, wanted: int) -> Tensor:
    """torch's gradient of the input (`wanted` 0) or of the weight (1)."""
    mask = [wanted == 0, wanted == 1, False]
    steps, pads = list(how.stride), list(how.padding)
    rest: Any = (None, steps, pads, [1, 1, 1], False, [0, 0, 0], 1, mask)
    found: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, *rest)[wanted]
    return found


def unread(how: Geometry, like: Tensor) -> Tensor:
    """An input of which torch reads the sizes alone."""
    return torch.empty(how.shape, dtype=like.dtype, memory_format=LAST)


def last(x: Tensor) -> Tensor:
    """torch's code for small volumes gives another order, and all later layers would lose it."""
    return x.contiguous(memory_format=LAST)


def turns(how: Geometry) -> bool:
    """Whether the gradient of the input is a convolution of the output's gradient with the kernel turned round."""
    fits = all(pad < side for pad, side in zip(how.padding, how.kernel, strict=True))
    return fits and how.stride == (1, 1, 1)


def torchs() -> Algorithm:
    """torch's own."""

    def applies(how: Geometry, part: str) -> bool:
        return how.dtype == torch.float32 or (is_native(how.dtype) and (part != "weight gradient" or how.voxels > FEW))

    return Algorithm(
        applies,
        lambda x, w, bias, how: last(F.conv3d(x, w.cast, bias, how.stride, how.padding)),
        lambda grad, w, how: last(backward(grad, unread(how, grad), w.cast, how, 0)),
        lambda grad, x, w, how: backward(grad, x, w.cast, how, 1),
    )


def in_float32() -> Algorithm:
    """torch's own in float32, for what is wrong or slower in a lower precision, or what the processor lacks."""

    def applies(how: Geometry, part: str) -> bool:
        return how.dtype != torch.float32 and (how.voxels <= FEW or part == "" or not is_native(how.dtype))

    def forward(x: Tensor, w: Weights, bias: Tensor | None, how: Geometry) -> Tensor:
        exact = None if bias is None else bias.float()
        return last(F.conv3d(x.float(), w.trained.float(), exact, how.stride, how.padding)).to(x.dtype)

    return Algorithm(
        applies,
        forward,
        lambda grad, w, how: last(backward(grad.float(), unread(how, w.trained.float()), w.trained.float(), how, 0)).to(
            grad.dtype
        ),
        lambda grad, x, w, how: backward(grad.float(), x.float(), w.trained.float(), how, 1),
    )


def channels_first() -> Algorithm:
    """torch's own in the other memory order, for few channels."""

    def applies(how: Geometry, part: str) -> bool:
        return 1 < min(how.inputs, how.outputs) <= NARROW and TORCH.applies(how, part)

    return Algorithm(
        applies,
        lambda x, w, bias, how: last(F.conv3d(x.contiguous(), w.cast.contiguous(), bias, how.stride, how.padding)),
        lambda grad, w, how: last(
            backward(grad.contiguous(), unread(how, grad).contiguous(), w.cast.contiguous(), how, 0)
        ),
        lambda grad, x, w, how: last(backward(grad.contiguous(), x.contiguous(), w.cast.contiguous(), how, 1)),
    )


def padded() -> Algorithm:
    """torch's own with a second channel of zeros beside the only one, which its fast code needs."""

    def applies(how: Geometry, part: str) -> bool:
        return how.inputs == 1 and part != "input gradient" and TORCH.applies(how, part)

    def doubled(x: Tensor) -> Tensor:
        wide = x.new_zeros(x.shape[0], *x.shape[2:], 2)
        wide[..., 0] = x[:, 0]
        return wide.permute(0, 4, 1, 2, 3)

    return Algorithm(
        applies,
        lambda x, w, bias, how: last(F.conv3d(doubled(x), doubled(w.cast), bias, how.stride, how.padding)),
        lambda grad, w, how: TORCH.input_gradient(grad, w, how),
        lambda grad, x, w, how: backward(grad, doubled(x), doubled(w.cast), how, 1)[:, :1],
    )


def onednn() -> Algorithm:
    """oneDNN's, where torch has slower code for one small sample in float32. The gradient of the input is a convolution
    with the kernel turned round; that of the weights is of two samples, the second of zeros."""

    def applies(how: Geometry, part: str) -> bool:
        samples, channels, depth, height, _ = how.shape
        left = how.dtype == torch.float32 and samples == 1 and torch.backends.mkldnn.is_available()
        return left and channels * depth * height <= NATIVE and (part != "input gradient" or turns(how))

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], stride: Sequence[int]) -> Tensor:
        found: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, [1, 1, 1], 1)
        return last(found)

    def input_gradient(grad: Tensor, w: Weights, how: Geometry) -> Tensor:
        turned = last(w.cast.flip(2, 3, 4).transpose(0, 1))
        around = [side - 1 - pad for side, pad in zip(how.kernel, how.padding, strict=True)]
        return conv(grad, turned, None, around, (1, 1, 1))

    def doubled(x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x)])

    return Algorithm(
        applies,
        lambda x, w, bias, how: conv(x, w.cast, bias, how.padding, how.stride),
        input_gradient,
        lambda grad, x, w, how: backward(doubled(grad), doubled(x), w.cast, how, 1),
    )


def slabs() -> Algorithm:
    """torch's own gradient of the weights, of a few planes at a time: at half the time where the whole volume does not
    fit into a cache."""

    def planes(how: Geometry) -> int:
        """Of the output, that are worked on at a time."""
        return max(2, SLAB * how.shape[2] // max(1, how.size // how.shape[0]))

    def applies(how: Geometry, part: str) -> bool:
        usual = how.inputs > 1 and how.padding[0] < how.kernel[0] and how.stride[0] <= how.kernel[0]
        large = how.size > 2 * SLAB * how.shape[0] and how.sides[0] > planes(how)
        return part == "weight gradient" and usual and large and TORCH.applies(how, part)

    def weight_gradient(grad: Tensor, x: Tensor, w: Weights, how: Geometry) -> Tensor:
        step, pad, depth = how.stride[0], how.padding[0], how.shape[2]
        total = torch.zeros_like(w.cast, dtype=torch.float32, memory_format=LAST)
        for sample in range(how.shape[0]):
            for start in range(0, how.sides[0], planes(how)):
                slope = grad[sample : sample + 1, :, start : start + planes(how)]
                first = start * step - pad
                last = first + (slope.shape[2] - 1) * step + how.kernel[0]
                part = x[sample : sample + 1, :, max(0, first) : min(depth, last)]
                if first < 0 or last > depth:
                    part = F.pad(part, (0, 0, 0, 0, max(0, -first), max(0, last - depth)))
                inner = how._replace(shape=tuple(part.shape), padding=(0, *how.padding[1:]))
                total += backward(slope, part, w.cast, inner, 1)
        return total

    return Algorithm(applies, TORCH.forward, TORCH.input_gradient, weight_gradient)


def products() -> Algorithm:
    """A product of matrices."""

    def applies(how: Geometry, part: str) -> bool:
        small = how.window == 1 or matrix.size(how) <= UNFOLDED
        return small and (part != "input gradient" or turns(how))

    return Algorithm(
        applies,
        lambda x, w, bias, how: matrix.forward(x, w.cast, bias, how),
        lambda grad, w, how: matrix.input_gradient(grad, w.cast, how),
        lambda grad, x, w, how: matrix.weight_gradient(grad, x, how),
    )


def winograds() -> Algorithm:
    """Winograd's, which takes half of the multiplications and more memory traffic."""

    def applies(how: Geometry, part: str) -> bool:
        usual = how.kernel == (3, 3, 3) and how.stride == how.padding == (1, 1, 1)
        wide = min(how.inputs, how.outputs) >= 8
        return (
            usual
            and wide
            and is_native(how.dtype)
            and how.shape[2] % winograd.OUT == 0
            and how.voxels >= winograd.LEAST
        )

    def gradient(grad: Tensor, x: Tensor, w: Weights, wanted: int) -> Tensor:
        found = winograd.backward(grad, x, w.trained, (wanted == 0, wanted == 1))[wanted]
        assert found is not None
        return found

    return Algorithm(
        applies,
        lambda x, w, bias, how: winograd.forward(x, w.trained, bias),
        lambda grad, w, how: gradient(grad, unread(how, grad), w, 0),
        lambda grad, x, w, how: gradient(grad, x, w, 1),
    )


TORCH = torchs()
TABLE = {  # name -> algorithm; the names are those of --kernels
    "torch": TORCH,
    "winograd": winograds(),
    "matrix": products(),
    "padded": padded(),
    "onednn": onednn(),
    "slabs": slabs(),
    "channels_first": channels_first(),
    "fp32": in_float32(),
}


def candidates(how: Geometry, part: str) -> list[str]:
    """The algorithms that compute a pass, torch's own first."""
    return [name for name, algorithm in TABLE.items() if algorithm.applies(how, part)] or ["fp32"]


def run(name: str, part: str, how: Geometry, grad: Tensor, x: Tensor, weights: Weights) -> Tensor:
    """A pass by an algorithm; the forward pass has no bias."""
    algorithm = TABLE[name]
    if part == "forward":
        return algorithm.forward(x, weights, None, how)
    if part == "input gradient":
        return algorithm.input_gradient(grad, weights, how)
    return algorithm.weight_gradient(grad, x, weights, how)
