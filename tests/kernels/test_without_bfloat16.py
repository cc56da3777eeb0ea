"""A processor that has no fast convolutions in lower precision: they are computed in float32 and rounded."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn

from unet.kernels import algorithms, measure, select, trial
from unet.kernels.algorithms import PASSES
from unet.kernels.geometry import Geometry

pytestmark = pytest.mark.usefixtures("not_native")
USUAL = Geometry((1, 8, 16, 16, 16), 8, (3, 3, 3), (1, 1, 1), (1, 1, 1), torch.float32)
LOW = USUAL._replace(dtype=torch.bfloat16)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2D": (lambda: nn.Conv2d(8, 8, 3, 1, 1), (12, 10)),
    "3D": (lambda: nn.Conv3d(8, 8, 3, 2, 1, bias=False), (10, 8, 6)),
    "3D, faster": (lambda: nn.Conv3d(8, 8, 3, 1, 1), (10, 8, 6)),
    "2D, transposed": (lambda: nn.ConvTranspose2d(8, 8, 2, 2), (12, 10)),
    "3D, transposed": (lambda: nn.ConvTranspose3d(8, 8, 3, 2), (6, 8, 4)),
}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LAYERS)
def test_a_processor_without_the_type_computes_in_float32(name: str, kind: torch.dtype) -> None:
    """Output and gradients are those of float32, rounded once; nothing is tried."""
    torch.manual_seed(0)
    plain = LAYERS[name][0]()
    layer = copy.deepcopy(plain)
    if name == "3D, faster":  # fp16 has no choice of algorithms
        select.optimize(layer, choices=Refused() if kind == torch.float16 else None)
    trial.guard(layer, refuse)
    x = torch.randn(2, 8, *LAYERS[name][1]).to(kind)
    inputs = [x.clone().requires_grad_(), x.float().requires_grad_()]
    with torch.autocast("cpu", dtype=kind):
        y = layer(inputs[0])
    expected = plain(inputs[1])
    assert y.dtype == kind and torch.equal(y, expected.to(kind))
    slope = torch.randn_like(expected).to(kind)
    y.backward(slope)
    expected.backward(slope.float())
    assert torch.equal(inputs[0].grad, inputs[1].grad.to(kind))
    assert torch.equal(layer.weight.grad, plain.weight.grad)


class Refused:
    def names(self, how: Geometry, parts: Sequence[str]) -> dict[str, str]:
        raise AssertionError(how)


def refuse(key: str, test: Callable[[], bool]) -> bool:
    raise AssertionError(key)


def test_a_processor_without_bfloat16_computes_in_float32_or_products() -> None:
    for part in PASSES:
        assert set(algorithms.candidates(LOW, part)) == {"matrix", "fp32"}
        assert "winograd" in algorithms.candidates(USUAL, part)
    assert {record["algorithm"] for record in measure.chosen(LOW, PASSES, "torch").values()} <= {"matrix", "fp32"}


def test_a_torch_that_does_not_tell_computes_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two questions are not in torch's public interface: one that lacks them computes as before."""
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: False))
    assert algorithms.native_types() == {torch.float32, torch.float64, torch.float16}
