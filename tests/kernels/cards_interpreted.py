"""The forms of norm and loss in Triton, computed on the CPU by Triton's interpreter: test_cards.py runs these tests
with TRITON_INTERPRET=1. The type of device that has the forms is the CPU here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet import host
from unet.kernels import norms, select
from unet.kernels.cards import forms, loss, norm
from unet.models import dice_ce, losses

LAST = torch.channels_last_3d
CPU = torch.device("cpu")
IGNORE = 255
# an output is rounded to its type; the interpreter cuts off bf16, which a card rounds
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles so small that volumes of some hundred voxels have several, and sums several parts."""
    for module, name, value in (
        (norm, "TILE", 64),
        (norm, "WIDEST", 16),
        (norm, "ROWS", 2),
        (loss, "TILE", 64),
        (norm.forward, "__defaults__", (5,)),
        (norm.backward, "__defaults__", (5,)),
        (loss.sums, "__defaults__", (3,)),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(forms, "_right", {})
    monkeypatch.setattr(forms, "is_right", lambda device, key, test: device.type in forms._on)
    assert forms.install("cpu")
    yield
    forms.install("cpu", False)


def drawn(*sides: int, kind: torch.dtype = torch.float32, order: torch.memory_format = LAST, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(sides, generator=generator).to(kind)
    return numbers.contiguous(memory_format=order) if len(sides) == 5 else numbers


def close(found: Tensor, expected: Tensor, kind: torch.dtype, factor: float = 1.0) -> None:
    most = factor * ROUNDING[kind] * float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) <= most


@pytest.mark.parametrize("kind", list(ROUNDING))
@pytest.mark.parametrize(
    ("shape", "order"),
    [
        ((1, 1, 3, 5, 7), torch.contiguous_format),
        ((3, 5, 3, 5, 7), torch.contiguous_format),
        ((1, 3, 3, 5, 7), LAST),
        ((3, 20, 1, 2, 3), LAST),
        ((2, 16, 1, 1, 1), LAST),
        ((1, 320, 2, 1, 3), LAST),
    ],
)
def test_norm_and_its_gradients_are_those_of_the_formula(
    shape: tuple[int, ...], order: torch.memory_format, kind: torch.dtype
) -> None:
    """Also far from 0, where sums of squares would have no digits left; sizes that are no multiple of a tile."""
    x = (drawn(*shape) + (100 if kind == torch.float32 else 3)).to(kind).contiguous(memory_format=order)
    grad = drawn(*shape, kind=kind, order=order, seed=1) + 0.5
    weight, bias = drawn(shape[1], seed=2) + 1.5, drawn(shape[1], seed=3)
    for slope in (1.0, 0.01) if kind == torch.float32 else (0.0,):
        own = [item.clone().requires_grad_() for item in (x, weight, bias)]
        y, mean, variance = norms.operator(*own, 1e-5, slope)
        found = y, mean, variance, *torch.autograd.grad(y, own, grad)
        expected = forms.norm_by_formula(*(item.double() for item in (grad, x, weight, bias)), 1e-5, slope)
        assert y.stride() == x.stride() and y.dtype == kind
        for a, b in zip(found[:3], expected[:3], strict=True):
            close(a, b, a.dtype, 10 if kind == torch.float32 else 1)  # at 100 an input has two digits less
        if x[0, 0].numel() > 1:  # of one voxel the gradient is 0
            for a, b in zip(found[3:], expected[3:], strict=True):
                close(a, b, a.dtype, 20)


@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
def test_a_layer_is_one_operator_compiled_or_not(order: torch.memory_format) -> None:
    parts = [nn.InstanceNorm3d(5, affine=True), nn.LeakyReLU(0.01), nn.InstanceNorm3d(5, affine=True)]
    plain = copy.deepcopy(nn.Sequential(*parts))
    layer = select.optimize_norms(nn.Sequential(*parts), whole=True)
    x, slope = drawn(2, 5, 3, 4, 3, order=order), drawn(2, 5, 3, 4, 3, order=order, seed=1)
    results = []
    for way in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        own = x.clone().requires_grad_()
        y = way(own)
        results.append([y, *torch.autograd.grad(y, (own, *layer.parameters()), slope)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    torch.testing.assert_close(results[0][0], plain(x), rtol=1e-4, atol=1e-5)
    torch.library.opcheck(norms.operator, (x.requires_grad_(), *parts[0].parameters(), 1e-5, 0.01))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignore", [None, IGNORE])
@pytest.mark.parametrize(("shape", "batch_dice"), [((1, 3, 7, 9), True), ((2, 5, 3, 4, 5), False), ((2, 3, 37), True)])
@pytest.mark.parametrize("last", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(
    last: bool, shape: tuple[int, ...], batch_dice: bool, ignore: int | None, kind: torch.dtype
) -> None:
    logits = 2 * drawn(*shape, kind=kind, order=torch.contiguous_format)
    logits = (logits.movedim(1, -1).contiguous().movedim(-1, 1) if last else logits).requires_grad_()
    assert loss.applies(logits) and loss.is_last(logits.flatten(2)) == last
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator).to(torch.uint8)
    if ignore is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = ignore
    how: dict[str, Any] = {"batch_dice": batch_dice, "ignore": ignore, "smooth": 1e-5}
    found = losses.dice_ce_loss(logits, labels, **how)
    exact = logits.detach().double().requires_grad_()
    expected = losses.plain_dice_ce(exact, labels, **how)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (a,), (b,) = torch.autograd.grad(3 * found, logits), torch.autograd.grad(3 * expected, exact)
    assert loss.is_last(a.flatten(2)) == last and a.dtype == kind
    close(a, b, kind)


def test_other_inputs_take_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp64, more classes than a tile has room for, an order that is neither; and all, with --kernels plain."""
    x, weight, bias = drawn(2, 4, 3, 4, 5), torch.ones(4), torch.zeros(4)
    logits, labels = drawn(2, 3, 3, 4, 5), torch.zeros(2, 1, 3, 4, 5, dtype=torch.uint8)
    odd = drawn(2, 3, 3, 4, 10)[..., ::2]
    for module, name in ((norm, "forward"), (loss, "sums"), (loss, "gradient")):
        monkeypatch.setattr(module, name, None)
    for other in (logits.double(), odd, logits.repeat(1, 50, 1, 1, 1)):
        own = other.requires_grad_()
        value = losses.dice_ce_loss(own, labels.reshape(2, 1, *own.shape[2:]))
        (slope,) = torch.autograd.grad(value, own)
        plain = losses.plain_dice_ce(own, labels.reshape(2, 1, *own.shape[2:]))
        assert float(value.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
        torch.testing.assert_close(slope, torch.autograd.grad(plain, own)[0], rtol=1e-4, atol=1e-7)
    norms.operator(x.double(), weight.double(), bias.double(), 1e-5, 1.0)
    forms.install("cpu", False)
    norms.operator(x, weight, bias, 1e-5, 1.0)
    losses.dice_ce_loss(logits, labels, ignore=IGNORE)
    forms.install("cpu")
    with pytest.raises(TypeError, match="not callable"):
        norms.operator(x, weight, bias, 1e-5, 1.0)
    with pytest.raises(TypeError, match="not callable"):
        dice_ce.sums_over_voxels(logits, labels, 9, False, None)


def wrong_by(form: Any, factor: float) -> Any:
    """A form whose first result is off by a factor."""

    def wrong(*given: Any, **how: Any) -> Any:
        found = form(*given, **how)
        return (found[0] * factor, *found[1:]) if isinstance(found, tuple) else found * factor

    return wrong


@pytest.mark.parametrize(("kind", "last"), [(torch.float32, False), (torch.bfloat16, True)])
def test_a_trial_finds_what_is_wrong(kind: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "SMALL", 2)
    how = CPU, kind, 3, last, last
    assert forms.fault_of_norm(norm, *how) == forms.fault_of_loss(loss, *how) == ""
    for module, name, fault, said in (
        (norm, "backward", forms.fault_of_norm, "gradient of the input differs"),
        (norm, "forward", forms.fault_of_norm, "output differs"),
        (loss, "gradient", forms.fault_of_loss, "gradient differs"),
        (loss, "sums", forms.fault_of_loss, "sums differ"),
    ):
        monkeypatch.setattr(module, name, wrong_by(getattr(module, name), 1.03))
        assert fault(module, *how).startswith(said)


def test_a_form_that_is_wrong_or_does_not_run_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for a type, an order and a number of channels, with one notice; not while a graph is recorded."""
    monkeypatch.undo()
    monkeypatch.setattr(forms, "_right", {})
    host.notice_once.cache_clear()
    forms.install("cpu")
    asked: list[str] = []

    def fails() -> str:
        asked.append("")
        raise RuntimeError("no C compiler\nin the PATH")

    key = "norm of", torch.bfloat16, "channels last", 3, True
    for _ in range(2):
        assert not forms.is_right(CPU, key, fails)
    assert len(asked) == 1
    said = "Triton's norm of bfloat16 channels last 3 is left out here for torch's own: it does not run"
    assert f"{said} (RuntimeError: no C compiler)" in capsys.readouterr().err
    assert not forms.is_right(CPU, ("loss",), lambda: "sums differ") and not forms._right["cpu", "loss"]
    recording = SimpleNamespace(is_current_stream_capturing=lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda _: recording)
    assert not forms.is_right(CPU, ("other",), lambda: "") and ("cpu", "other") not in forms._right
    monkeypatch.undo()
    assert forms.is_right(CPU, ("other",), lambda: "")
    forms.install("cpu", False)
    assert not forms.is_right(CPU, ("other",), lambda: "")


def test_doctor_tells_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "SMALL", 1)
    monkeypatch.setattr(loss, "gradient", wrong_by(loss.gradient, 1.03))
    assert forms.tried(CPU, torch.bfloat16) == [
        "  Triton's norm of bfloat16, channels last: right",
        "  Triton's loss of bfloat16, channels last: gradient differs from the formula",
        "  Triton's norm of bfloat16, channels first: right",
        "  Triton's loss of bfloat16, channels first: gradient differs from the formula",
    ]
