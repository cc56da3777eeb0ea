"""Against the limit: the convolutions of a step, each alone in its fastest form; the loader beside a plain copy.

A training step cannot be much shorter than its convolutions; what it takes more is norms, activations, copies, the loss
and the optimiser. Which they are is recorded on tensors without content.
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from unet.benchmarks import ceiling

if TYPE_CHECKING:
    from torch import Tensor

    from unet.commands import setup
    from unet.devices.base import Device

MOST_BATCHES = 30  # of a round of the loader
ENOUGH, MOST = 0.1, 5  # seconds of repeats of a convolution, and their number at most
PASSES = ("forward", "input_gradient", "weight_gradient")
FORMS = ("channels_first", "channels_last", "own")


def flops(build: Callable[[], Any], shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """(floating-point operations of forward and backward pass of a network over an input, two for a multiply and add;
    shape of its output), counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    output = without_content(build, shape, counter)
    return int(counter.get_total_flops()), tuple(output.shape)


def without_content(build: Callable[[], Any], shape: tuple[int, ...], mode: Any) -> Tensor:
    """Forward and backward pass of a network on tensors without content, within `mode`; gives the output, the first of
    several."""
    import torch

    with torch.device("meta"), mode:
        output = build()(torch.empty(shape))
        parts = output if isinstance(output, tuple) else (output,)
        sum(part.float().sum() for part in parts).backward()
    first: Tensor = parts[0]
    return first


class Conv(NamedTuple):
    """A convolution as torch is asked for it; `inner`: its input has a gradient (that of the first layer has none)."""

    shape: tuple[int, ...]
    weight: tuple[int, ...]
    bias: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    inner: bool


def fixed(value: Any) -> Any:
    """A list as a tuple."""
    return tuple(value) if isinstance(value, list) else value


def recorded(context: setup.Context) -> collections.Counter[Conv]:
    """The convolutions of a step of the plain network over a training batch, and how often each comes: torch is asked
    once for the gradients of each."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: collections.Counter[Conv] = collections.Counter()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.convolution_backward.default:
                _, x, weight, bias, *how, wanted = args
                shapes = tuple(x.shape), tuple(weight.shape)
                asked: tuple[Any, ...] = (*shapes, bias is not None and wanted[2], *map(fixed, how), wanted[0])
                found[Conv(*asked)] += 1
            return function(*args, **(kwargs or {}))

    _, *rest = context.task.input_shape()
    without_content(context.task.build_model, (context.config.train.batch_size, *rest), Record())
    return found


def convolutions(context: setup.Context) -> dict[str, Any]:
    """Seconds of all convolutions of a step by pass, each in its fastest form, and how often each form is that."""
    seconds: dict[str, float] = dict.fromkeys(PASSES, 0.0)
    fastest: collections.Counter[str] = collections.Counter()
    found = recorded(context)
    for conv, times in found.items():
        forms = {name: passes(context.device, conv, name) for name in FORMS}
        timed = {name: each for name, each in forms.items() if each}
        best = min(timed, key=lambda name: sum(timed[name].values()))
        fastest[best] += times
        for name, value in timed[best].items():
            seconds[name] += times * value
    return {
        "count": sum(found.values()),
        "fastest": {name: fastest[name] for name in FORMS},
        "seconds": {**seconds, "all": sum(seconds.values())},
    }


def passes(device: Device, conv: Conv, form: str) -> dict[str, float]:
    """Seconds of each pass of a convolution alone, in the type of the run: channels first, channels last, or the layer
    that this device puts in its place ({} where that is torch's own)."""
    import torch

    made = own_layer(device, conv) if form == "own" else plain(device, conv, form)
    if made is None:
        return {}
    x, weight, forward = made
    with torch.no_grad():
        found = {"forward": repeated(device, forward)}
    for name, about in (("input_gradient", x), ("weight_gradient", weight)):
        if name == "input_gradient" and not conv.inner:
            continue
        about.requires_grad_()
        y = forward()
        slope = torch.ones_like(y)
        found[name] = repeated(
            device,
            lambda y=y, about=about, slope=slope: torch.autograd.grad(y, about, slope, retain_graph=True),
        )
        about.requires_grad_(False)
    return found


def plain(device: Device, conv: Conv, form: str) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """(input, weight, torch's convolution of them) in a memory order."""
    import torch

    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    order = orders.get(len(conv.shape)) if form == "channels_last" else None

    def draw(*shape: int) -> Tensor:
        made = torch.rand(*shape, device=device.device, dtype=device.dtype) - 0.5
        return made.contiguous(memory_format=order or torch.contiguous_format) if made.ndim > 2 else made

    x, weight = draw(*conv.shape), draw(*conv.weight)
    outputs = conv.weight[1] * conv.groups if conv.transposed else conv.weight[0]
    bias = draw(outputs) if conv.bias else None
    how = (conv.stride, conv.padding, conv.dilation, conv.transposed, conv.output_padding, conv.groups)
    return x, weight, lambda: torch.convolution(x, weight, bias, *how)


def own_layer(device: Device, conv: Conv) -> tuple[Tensor, Tensor, Callable[[], Tensor]] | None:
    """As `plain`, by the layer that this device computes it with; None where that is torch's own."""
    import torch

    from unet.models.layers import CONV, TRANSPOSED

    dims, (first, second, *kernel) = len(conv.shape) - 2, conv.weight
    if dims not in CONV:
        return None
    how: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
    how |= {"groups": conv.groups, "bias": conv.bias}
    inputs, outputs = (first, second * conv.groups) if conv.transposed else (second * conv.groups, first)
    how |= {"output_padding": conv.output_padding} if conv.transposed else {}
    usual: Any = (TRANSPOSED if conv.transposed else CONV)[dims]
    layer = usual(inputs, outputs, tuple(kernel), **how)
    placed: Any = device.place(layer).requires_grad_(False)
    if type(placed) is usual:
        return None
    image = torch.rand(*conv.shape, dtype=device.dtype) - 0.5
    x = device.to({"image": image})["image"]

    def forward() -> Tensor:
        with device.autocast():
            found: Tensor = placed(x)
        return found

    return x, placed.weight, forward


def repeated(device: Device, work: Any) -> float:
    """Median seconds of some repeats after a first."""
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < ENOUGH and len(seconds) <= MOST):
        seconds += ceiling.durations(device, work, 1)
    return statistics.median(seconds[1:])


def loading(loader: Any, batch: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds a batch of the loader alone for each round (a first is left out), the bytes of a batch, and the bytes a
    second of a plain copy of them by NumPy."""
    count = min(MOST_BATCHES, len(loader))
    seconds = []
    for epoch in range(1, rounds + 2):
        start = time.perf_counter()
        for _ in loader.epoch(epoch, 0, count):
            pass
        seconds.append((time.perf_counter() - start) / count)
    arrays = list(batch.values())
    size = sum(array.nbytes for array in arrays)
    return {
        "seconds_a_batch": seconds[1:],
        "bytes_a_batch": size,
        "copy_bytes_per_second": size / statistics.median(copies(arrays)),
    }


def copies(arrays: list[Any]) -> Iterator[float]:
    """Seconds of copies of arrays into memory that was used before."""
    import numpy as np

    targets = [np.empty_like(array) for array in arrays]
    for number in range(10):
        start = time.perf_counter()
        for target, array in zip(targets, arrays, strict=True):
            np.copyto(target, array)
        if number:
            yield time.perf_counter() - start
