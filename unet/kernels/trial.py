"""Convolutions in a lower precision are tried against float32 before their first use, because some are wrong.

torch's (oneDNN's) bfloat16 convolutions with a stride above 1 are wrong on processors with AMX where the innermost side
of the output is 1. The weights' gradient is left uninitialised where a part of the kernel meets padding alone (torch
2.13, processors with AVX-512), and over few voxels. So each layer of a network is tried when it first meets a size, on
random numbers: output, gradient of the input, gradients of the parameters. A layer that fails computes this size in
float32. The caller remembers the answers. A type that the processor has no fast convolutions of is computed in float32
and rounded at the ends.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unet.kernels.algorithms import is_native
from unet.kernels.conv3d import Unfolded

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BLOCK = 512  # voxels of a trial, about
NORM, PEAK = 0.02, 0.3  # largest error of a trial: of its norm by that of the result; of a number by their RMS
REPEATS = 2  # whether memory is read before it is written is a matter of chance

Sides = tuple[int, ...]
Ask = Callable[
    [str, Callable[[], bool]], bool
]  # whether the layer of a key is right: remembered, or what the test says


class Tried:
    """Mixed into the class of a convolution: within autocast, sizes that it gets wrong are computed in float32.

    `tried`: sides of the inputs that were tried; `exact`: those that failed. Nothing is tried while a compiler traces
    (`try_before`). Copies and pickles as the plain class does, without what was tried.
    """

    plain: type[nn.Module]
    ask: Ask
    tried: frozenset[Sides] = frozenset()
    exact: frozenset[Sides] = frozenset()

    def forward(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        layer: Any = self
        forward: Callable[..., Tensor] = super().forward  # type: ignore[misc]
        if not torch.is_autocast_enabled("cpu") or x.ndim != layer.weight.ndim:
            return forward(x, *rest, **named)
        sides, native = tuple(x.shape[2:]), is_native(torch.get_autocast_dtype("cpu"))
        if native and not torch.compiler.is_compiling() and sides not in self.tried:
            how = block(layer, x.shape), torch.get_autocast_dtype("cpu"), is_channels_last(x)
            if not type(self).ask(key_of(layer, *how), lambda: not fault(layer, *how)):
                self.exact = self.exact | {sides}
            self.tried = self.tried | {sides}
        if native and sides not in self.exact:
            return forward(x, *rest, **named)
        with torch.autocast("cpu", enabled=False):
            return forward(x.to(layer.weight.dtype), *rest, **named).to(torch.get_autocast_dtype("cpu"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        how: Any = super().__reduce_ex__(protocol)
        return _new, (self.plain, type(self).ask), *how[2:]


@functools.cache
def tried(plain: type[nn.Module], ask: Ask) -> type[nn.Module]:
    """The class of a convolution with `Tried` mixed in."""
    return type(
        plain.__name__, (Tried, plain), {"plain": plain, "ask": staticmethod(ask), "__module__": plain.__module__}
    )


def _new(plain: type[nn.Module], ask: Ask) -> nn.Module:
    cls = tried(plain, ask)  # type: ignore[arg-type]  # mypy takes a class for unhashable
    return cls.__new__(cls)


def guard(model: nn.Module, ask: Ask) -> nn.Module:
    """Mix `Tried` into the convolutions of `model`, in place. Gives `model`; twice changes nothing. `ask`: a function
    of a module, which copies and pickles share. Those that choose an algorithm have tried it (`measure`); products of
    matrices need no trial."""
    for layer in model.modules():
        known = isinstance(layer, Tried | Unfolded) or hasattr(layer, "choices")
        if isinstance(layer, CONVOLUTIONS) and not known:
            layer.__class__ = tried(type(layer), ask)  # type: ignore[assignment, arg-type]
    return model


def try_before(compiled: nn.Module, model: nn.Module) -> None:
    """Let the layers of `model` be tried before `compiled`, its compiled form, traces them for new inputs: by a forward
    pass of a copy, whose random numbers and running statistics are nobody's."""
    seen: set[Any] = set()

    def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shapes = tuple(getattr(value, "shape", None) for value in (*args, *kwargs.values()))
        if shapes in seen:
            return
        seen.add(shapes)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            double = copy.deepcopy(model)
            double(*args, **kwargs)
        for layer, other in zip(model.modules(), double.modules(), strict=True):
            if isinstance(layer, Tried) and isinstance(other, Tried):
                layer.tried, layer.exact = other.tried, other.exact

    compiled.register_forward_pre_hook(run, with_kwargs=True)


def block(layer: Any, shape: Sides) -> Sides:
    """The size (N, C, *sides) of the trial of an input: at most two images of about `BLOCK` voxels. The innermost side
    is whole up to 16, the others as far as there is room; of a longer one the remainder is kept, in which loops end."""
    sides: list[int] = []
    for axis in range(len(shape) - 1, 1, -1):
        room = BLOCK // math.prod(sides) if axis == 2 else 8 if sides else 16
        extent = layer.dilation[axis - 2] * (layer.kernel_size[axis - 2] - 1) + 1 + layer.stride[axis - 2]
        most = 4
        while most < extent or 2 * most <= room:
            most *= 2
        sides.insert(0, shape[axis] if shape[axis] <= most else most + shape[axis] % most)
    return (min(shape[0], 2), shape[1], *sides)


def is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=order_of(x))


def order_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last_3d if x.ndim == 5 else torch.channels_last


def key_of(layer: Any, shape: Sides, dtype: torch.dtype, last: bool) -> str:
    """What decides how a convolution is computed, in words."""
    kind, size = getattr(layer, "plain", type(layer)).__name__, " x ".join(map(str, shape))
    how = f"{str(dtype).removeprefix('torch.')}, channels {'last' if last else 'first'}"
    return f"{kind}({layer.extra_repr()}) of {size}, {how}, {torch.get_num_threads()} threads"


def fault(layer: Any, shape: Sides, dtype: torch.dtype, last: bool) -> str:
    """What differs from float32, or an empty text: output, gradient of the input, gradient of a parameter.

    Memory that is freed before is full of NaN, so that numbers which are read before they are written show. Input,
    weights and the output's gradient are numbers of `dtype`: only the rounding of sums and results is left.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*sides: int, scale: float = 1.0) -> Tensor:
        numbers = (torch.randn(sides, generator=generator) * scale).to(dtype).float()
        return numbers.contiguous(memory_format=order_of(numbers)) if last and numbers.ndim > 3 else numbers

    with alone():
        trial = copy.deepcopy(layer)
        trial.tried = frozenset({shape[2:]})  # as it is
        names, parameters = zip(*trial.named_parameters(), strict=True)
        for parameter in parameters:
            parameter.data.copy_(draw(*parameter.shape, scale=layer.weight[0].numel() ** -0.5))
        x = draw(*shape).requires_grad_()
        plain = next(kind for kind in CONVOLUTIONS if isinstance(layer, kind))
        expected = [plain.forward(trial, x)]
        slope = draw(*expected[0].shape)
        expected += torch.autograd.grad(expected[0], (x, *parameters), slope)
        for _ in range(REPEATS):
            poison(expected, dtype)
            with torch.autocast("cpu", dtype=dtype, cache_enabled=False):
                y = trial(x)
            found = [y]
            poison(expected, dtype)
            found += torch.autograd.grad(y, (x, *parameters), slope.to(y.dtype))
            for name, a, b in zip(("output", "input", *names), found, expected, strict=True):
                if not agree(a.detach().float(), b.detach()):
                    return name if name == "output" else f"gradient of {name}"
    return ""


def probes() -> Iterator[tuple[nn.Module, Sides]]:
    """Small layers with the sizes of their inputs, for a machine on which no network has run: strides 1 to 3, innermost
    sides down to 1, plain and transposed, in two and three dimensions."""
    kinds: dict[int, Any] = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
    for dims, (plain, transposed) in kinds.items():
        layers = [*(plain(16, 16, 3, stride, 1) for stride in (1, 2, 3)), *(transposed(16, 16, k, 2) for k in (2, 3))]
        for layer in layers:
            for inner in (1, 2):
                yield layer, (2, 16, *[4] * (dims - 1), inner)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The context of a computation that nothing around it is to touch, with gradients."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        yield


def poison(results: list[Tensor], dtype: torch.dtype) -> None:
    """Free memory of the sizes of some results that is full of NaN."""
    kinds = (dtype, torch.float32) * 4
    dirt = [torch.full((item.numel(),), math.nan, dtype=kind) for item in results for kind in kinds]
    del dirt


def agree(found: Tensor, expected: Tensor, norm: float = NORM, most: float = PEAK) -> bool:
    """Whether two results differ by rounding alone; NaN does not."""
    error, size = found - expected, expected.norm()
    peak = error.abs().max() <= most * size / expected.numel() ** 0.5
    return bool(peak & (error.norm() <= norm * size))
