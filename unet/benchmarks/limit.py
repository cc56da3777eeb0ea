"""Against the limit: the convolutions of a step, each alone in its best memory order; the loader beside a plain copy.

A training step cannot be much shorter than its convolutions; what it takes more is norms, activations, copies, the loss
and the optimiser. Which they are is recorded on tensors without content.
"""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from unet.commands import setup
    from unet.devices.base import Device

MOST_BATCHES = 30  # of a round of the loader
ENOUGH, MOST = 0.1, 5  # seconds of repeats of a convolution, and their number at most
PASSES = ("forward", "input_gradient", "weight_gradient")


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
    """Seconds of all convolutions of a step by pass, each the faster of channels first and channels last."""
    seconds: dict[str, float] = dict.fromkeys(PASSES, 0.0)
    last, found = 0, recorded(context)
    for conv, times in found.items():
        orders = [in_order(context.device, conv, order) for order in (False, True)]
        best = min(orders, key=lambda each: sum(each.values()))
        last += times * (best is orders[1])
        for name, value in best.items():
            seconds[name] += times * value
    return {
        "count": sum(found.values()),
        "channels_last": last,
        "seconds": {**seconds, "all": sum(seconds.values())},
    }


def in_order(device: Device, conv: Conv, channels_last: bool) -> dict[str, float]:
    """Seconds of each pass of a convolution in one memory order, in the type of the run."""
    import torch

    orders = {4: torch.channels_last, 5: torch.channels_last_3d}
    order = orders.get(len(conv.shape), torch.contiguous_format) if channels_last else torch.contiguous_format

    def draw(*shape: int) -> Tensor:
        made = torch.rand(*shape, device=device.device, dtype=device.dtype) - 0.5
        return made.contiguous(memory_format=order) if made.ndim > 2 else made

    x, weight = draw(*conv.shape), draw(*conv.weight)
    outputs = conv.weight[1] * conv.groups if conv.transposed else conv.weight[0]
    bias = draw(outputs) if conv.bias else None
    how = (conv.stride, conv.padding, conv.dilation, conv.transposed, conv.output_padding, conv.groups)
    with torch.no_grad():
        found = {"forward": repeated(device, lambda: torch.convolution(x, weight, bias, *how))}
    for name, about in (("input_gradient", x), ("weight_gradient", weight)):
        if name == "input_gradient" and not conv.inner:
            continue
        about.requires_grad_()
        y = torch.convolution(x, weight, bias, *how)
        slope = torch.ones_like(y)
        found[name] = repeated(
            device,
            lambda y=y, about=about, slope=slope: torch.autograd.grad(y, about, slope, retain_graph=True),
        )
        about.requires_grad_(False)
    return found


def repeated(device: Device, work: Any) -> float:
    """Median seconds of some repeats after a first."""
    seconds: list[float] = []
    while len(seconds) < 2 or (sum(seconds) < ENOUGH and len(seconds) <= MOST):
        start = device.now()
        work()
        device.flush()
        seconds.append(device.now() - start)
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
