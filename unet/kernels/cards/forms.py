"""Gives the operators of norm and loss their forms in Triton on a type of device, and tries each of them before its
first use against its formula in fp64: a form that is wrong here, or does not run, is left out with a notice.

Triton comes with torch's builds for cards and is no dependency of the program. Where it is missing nothing changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from unet import host
from unet.kernels import norms
from unet.kernels.trial import agree

EXACT, HALF = 1e-4, 0.01  # largest error of a trial by the result's size, in fp32 and in bf16 or fp16
SMALL = 8  # programs of a trial, so that each makes several tiles
IGNORED = 255  # the label of a trial that does not count
REST = {True: 48, False: 37}  # voxels beside the whole tiles: where all are a multiple of 16, more are read at once

_on: set[str] = set()  # types of devices that use the forms now
_right: dict[tuple[Any, ...], bool] = {}  # what was tried


def install(kind: str, on: bool = True) -> bool:
    """Whether the operators take their Triton forms on devices of torch's type `kind` from now on."""
    _on.discard(kind)
    if on and _registered(kind):
        _on.add(kind)
    return kind in _on


@functools.cache
def _registered(kind: str) -> bool:
    try:
        from unet.kernels.cards import loss, norm
    except ImportError:
        host.notice_once("note: Triton is not installed: norms and the loss take torch's own kernels")
        return False
    norms.operator.register_kernel(kind, functools.partial(_norm, norm))
    norms.operator_backward.register_kernel(kind, functools.partial(_norm_backward, norm))
    torch.library.impl("unet::dice_ce_sums", kind)(functools.partial(_sums, loss))
    torch.library.impl("unet::dice_ce_backward", kind)(functools.partial(_gradient, loss))
    return True


def is_right(device: torch.device, key: tuple[Any, ...], test: Callable[[], str]) -> bool:
    """Whether a form may be used: `test` says in words what is wrong. While a graph is recorded nothing is tried, and
    what was not tried before is not used."""
    if device.type not in _on:
        return False
    place = (device.type, *key)
    if place not in _right:
        recording = getattr(torch.get_device_module(device), "is_current_stream_capturing", bool)
        if recording():
            return False
        wrong = _said(test)
        _right[place] = not wrong
        if wrong:
            named = " ".join(str(word).removeprefix("torch.") for word in key if not isinstance(word, bool))
            host.notice_once(f"note: Triton's {named} is left out here for torch's own: {wrong}")
    return _right[place]


def tried(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Lines for `doctor`: whether the forms are right on this device, in this type, for volumes of 32 channels and for
    three classes."""
    if not install(device.type):
        return ["  Triton is not installed: norms and the loss take torch's own kernels"]
    from unet.kernels.cards import loss, norm

    named, lines = str(dtype).removeprefix("torch."), []
    for last, order in ((True, "channels last"), (False, "channels first")):
        for name, fault in (
            ("norm", functools.partial(fault_of_norm, norm, device, dtype, 32 if last else 3)),
            ("loss", functools.partial(fault_of_loss, loss, device, dtype, 3)),
        ):
            found = _said(functools.partial(fault, last, True)) or "right"
            lines.append(f"  Triton's {name} of {named}, {order}: {found}")
    return lines


def _said(test: Callable[[], str]) -> str:
    """What a test says is wrong, or that it does not run."""
    try:
        return test()
    except Exception as error:  # whatever the compiler and the driver raise
        first = next(iter(str(error).splitlines()), "")
        return f"it does not run ({type(error).__name__}: {first[:120]})"


def _norm(norm: ModuleType, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float) -> tuple[Tensor, ...]:
    form = norm.forward if _may_norm(norm, x, weight) else norms.plain
    return form(x, weight, bias, eps, slope)


def _norm_backward(
    norm: ModuleType,
    grad: Tensor,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float,
    slope: float,
) -> tuple[Tensor, ...]:
    if _may_norm(norm, x, weight):
        return norm.backward(grad, x, weight, bias, mean, variance, eps, slope)
    return norms.plain_backward(grad, x, y, weight, bias, mean, variance, eps, slope)


def _may_norm(norm: ModuleType, x: Tensor, weight: Tensor) -> bool:
    last, channels, even = norms.channel_last(x), x.shape[1], x[0, 0].numel() % 16 == 0
    known = x.dtype in (torch.float32, torch.bfloat16, torch.float16) and weight.dtype == torch.float32
    if not known or not (last or x.is_contiguous()):
        return False
    shown = channels if last else 3
    key = "norm of", x.dtype, "channels last" if last else "channels first", shown, even
    return is_right(x.device, key, lambda: fault_of_norm(norm, x.device, x.dtype, shown, last, even))


def _sums(loss: ModuleType, logits: Tensor, labels: Tensor, chunk: int, batch_dice: bool, ignore: int | None) -> Tensor:
    form = loss.sums if _may_loss(loss, logits) else loss.plain_sums
    found: Tensor = form(logits, labels, batch_dice, ignore)
    return found


def _gradient(
    loss: ModuleType,
    grad: Tensor,
    logits: Tensor,
    labels: Tensor,
    slope: Tensor,
    shift: Tensor,
    voxels: Tensor,
    chunk: int,
    batch_dice: bool,
    ignore: int | None,
) -> Tensor:
    form = loss.gradient if _may_loss(loss, logits) else loss.plain_gradient
    found: Tensor = form(grad, logits, labels, slope, shift, voxels, batch_dice, ignore)
    return found


def _may_loss(loss: ModuleType, logits: Tensor) -> bool:
    if not loss.applies(logits):
        return False
    last, classes, even = loss.is_last(logits.flatten(2)), logits.shape[1], logits[0, 0].numel() % 16 == 0
    key = "loss of", logits.dtype, "channels last" if last else "channels first", classes, even
    return is_right(logits.device, key, lambda: fault_of_loss(loss, logits.device, logits.dtype, classes, last, even))


def fault_of_norm(
    norm: ModuleType, device: torch.device, dtype: torch.dtype, channels: int, last: bool, even: bool
) -> str:
    """What differs from the formula in fp64, or an empty text: two samples of several tiles and a remainder."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sides: int) -> Tensor:
        return torch.randn(sides, generator=generator)

    wide = min(norm.WIDEST, channels) if last else 1
    sides = (2, channels, 1, 1, 2 * SMALL * norm.TILE // wide // (1 if last else 4) + REST[even])
    order = torch.channels_last_3d if last else torch.contiguous_format
    x, grad = ((draw(*sides) + shift).to(dtype).contiguous(memory_format=order) for shift in (3.0, 0.0))
    weight, bias = draw(channels) + 1.5, draw(channels)
    given = [item.to(device) for item in (grad, x, weight, bias)]
    for slope in (1.0, 0.0, 0.01):
        y, mean, variance = norm.forward(*given[1:], 1e-5, slope, programs=SMALL)
        found = y, mean, variance, *norm.backward(*given, mean, variance, 1e-5, slope, programs=SMALL)
        expected = norm_by_formula(grad.double(), x.double(), weight.double(), bias.double(), 1e-5, slope)
        names = "output", "mean", "variance", "gradient of the input", "of the weight", "of the bias"
        for name, a, b in zip(names, found, expected, strict=True):
            if not agree(a.double().cpu(), b, HALF if a.dtype != torch.float32 else EXACT):
                return f"{name} differs from the formula"
    return ""


def norm_by_formula(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float
) -> tuple[Tensor, ...]:
    """(output, mean, variance, gradients of input, weight and bias)."""
    axes, voxels = (2, 3, 4), x[0, 0].numel()
    mean, variance = x.mean(axes), x.var(axes, correction=0)
    root, own = norms.spread((variance + eps).rsqrt()), norms.spread(weight[None])
    standard = (x - norms.spread(mean)) * root
    z = standard * own + norms.spread(bias[None])
    positive = z > 0
    y, g = z.where(positive, z * slope), grad.where(positive, grad * slope)
    plain, times = g.sum(axes), (g * standard).sum(axes)
    by_input = (g - norms.spread(plain) / voxels - standard * norms.spread(times) / voxels) * root * own
    return y, mean, variance, by_input, times.sum(0), plain.sum(0)


def fault_of_loss(
    loss: ModuleType, device: torch.device, dtype: torch.dtype, classes: int, last: bool, even: bool
) -> str:
    """What differs from the formula in fp64, or an empty text: with and without a label that does not count."""
    generator = torch.Generator().manual_seed(0)
    voxels = SMALL * loss.TILE // loss.triton.next_power_of_2(classes) + REST[even]
    logits = (2 * torch.randn(2, classes, voxels, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (2, 1, voxels), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORED
    rows = torch.randn(2, 2, classes, generator=generator)
    logits = logits.transpose(1, 2).contiguous().transpose(1, 2) if last else logits
    for ignore in (None, IGNORED):
        t = labels.where(labels != IGNORED, 0) if ignore is None else labels
        counted = torch.tensor(float((t != IGNORED).sum()))
        given = torch.tensor(2.0), logits, t, *rows, counted
        there = [item.to(device) for item in given]
        exact = [item.double() if item.is_floating_point() else item for item in given]
        how = False, ignore
        pairs = [(loss.sums(*there[1:3], *how, programs=SMALL), loss.plain_sums(*exact[1:3], *how), EXACT)]
        limit = EXACT if dtype == torch.float32 else HALF
        pairs += [(loss.gradient(*there, *how), loss.plain_gradient(*exact, *how), limit)]
        for name, (a, b, most) in zip(("sums differ", "gradient differs"), pairs, strict=True):
            if not agree(a.double().cpu(), b, most):
                return f"{name} from the formula"
    return ""
