"""The channels-last instance norm against `nn.InstanceNorm3d`, its statistics, and recomputation in training."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet.kernels import norms, select
from unet.models.unet import UNet, UNetShape

SMALL = UNetShape(dims=3, inputs=1, outputs=3, features=(8, 16), bottleneck=16, norm="instance", down="stride")
LAST = torch.channels_last_3d


def test_the_statistics_of_many_voxels_are_exact() -> None:
    """torch's kernel adds 262,144 values of a channel in float32 one after the other, which is off by 1e-4 here."""
    x = 3 + torch.randn(1, 4, 64, 64, 64, generator=torch.Generator().manual_seed(6))
    x = x.contiguous(memory_format=LAST)
    mean, variance = norms.statistics(x)
    exact = x.double()
    torch.testing.assert_close(mean.double(), exact.mean((0, 2, 3, 4)), rtol=2e-6, atol=0)
    torch.testing.assert_close(variance.double(), exact.var((0, 2, 3, 4), correction=0), rtol=2e-6, atol=0)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_normalised_volumes_are_recomputed_instead_of_stored(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients are the same bits as with everything stored, and afterwards nothing is held."""
    torch.manual_seed(7)
    network = select.optimize(UNet(dataclasses.replace(SMALL, activation=activation)).to(memory_format=LAST))
    image, created, asked = torch.randn(2, 1, 16, 16, 16), [], []
    create, output = norms.RecomputedNorm.__init__, norms.RecomputedNorm.output

    def noted(norm: norms.RecomputedNorm, *parts: Any) -> None:
        create(norm, *parts)
        created.append(norm)

    monkeypatch.setattr(norms.RecomputedNorm, "__init__", noted)
    monkeypatch.setattr(norms.RecomputedNorm, "output", lambda norm: asked.append(norm) or output(norm))

    def step() -> list[Tensor]:
        network.zero_grad()
        network(image).square().mean().backward()
        return [parameter.grad.clone() for parameter in network.parameters()]  # type: ignore[union-attr]

    recomputed = step()
    assert len(created) == 10
    assert set(created) == set(asked)
    assert len(asked) > 10  # by the layers that follow, and by the activation's own gradient
    assert all(norm.cached is None and norm.x is None for norm in created)
    asked.clear()
    monkeypatch.setattr(norms, "recompute_activations", contextlib.nullcontext)
    assert all(torch.equal(a, b) for a, b in zip(recomputed, step(), strict=True))
    assert len(asked) == 10


@pytest.mark.parametrize("change", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), lambda y: y.add_(1.0)])
def test_a_normalised_volume_that_is_changed_in_place(change: Any) -> None:
    """What a layer saves of it is then another volume than the one that can be recomputed."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.InstanceNorm3d(4, affine=True), nn.Conv3d(4, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(change(self.norm(x)))  # type: ignore[no-any-return]

    torch.manual_seed(3)
    plain = Network()
    fast = select.optimize(copy.deepcopy(plain).to(memory_format=LAST))
    x = torch.randn(2, 4, 8, 8, 8)
    for network in (plain, fast):
        network(x.contiguous(memory_format=LAST)).square().mean().backward()
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("shape", [(6, 5, 6), (6, 4, 5, 6)], ids=["2D", "3D"])
def test_the_gradient_of_one_sample_is_right(shape: tuple[int, ...], samples: int) -> None:
    """torch's own is not where that of the output is channels-last: on the CPU, with or without affine weights, before
    an activation in place."""
    for how in ({}, {"affine": True}, {"affine": True, "track_running_stats": True}):
        plain = (nn.InstanceNorm2d if len(shape) == 3 else nn.InstanceNorm3d)(6, **how)
        fast = select.correct_norms(nn.Sequential(plain, nn.LeakyReLU(0.5, inplace=True)))
        x = torch.randn(samples, *shape).requires_grad_()
        order = LAST if x.ndim == 5 else torch.channels_last
        slope = torch.randn_like(x).contiguous(memory_format=order)
        exact = x.detach().double().requires_grad_()
        axes = tuple(range(2, x.ndim))
        centred = exact - exact.mean(axes, keepdim=True)
        y = nn.functional.leaky_relu(centred / (exact.var(axes, correction=0, keepdim=True) + 1e-5).sqrt(), 0.5)
        (expected,) = torch.autograd.grad(y, exact, slope.double())
        (found,) = torch.autograd.grad(fast(x), x, slope)
        assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("at_once", [True, False])
def test_instance_norm_is_that_of_torch_in_any_order(
    at_once: bool, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all samples are worked on at once."""
    if not at_once:
        monkeypatch.setattr(norms, "SMALL", 0)
        monkeypatch.setattr(norms, "SMALLER", 0)
    own, stock = norms.InstanceNorm3d(6, affine=True), norms.PlainInstanceNorm3d(6, affine=True)
    with torch.no_grad():
        own.weight.uniform_(0.5, 2)
        own.bias.uniform_(-1, 1)
    stock.load_state_dict(own.state_dict())
    x = torch.randn(samples, 6, 4, 5, 6).contiguous(memory_format=LAST).requires_grad_()
    assert norms.at_once(x) is at_once
    slope = torch.randn_like(x)
    found, expected = own(x), stock(x)
    operator = norms.operator(x, own.weight, own.bias, own.eps, 1.0)[0]
    assert found.is_contiguous(memory_format=LAST)
    for y in (found, operator):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        pairs = (torch.autograd.grad(y, (x, own.weight, own.bias), slope),)
        pairs += (torch.autograd.grad(expected, (x, stock.weight, stock.bias), slope, retain_graph=True),)
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_operator_is_a_good_citizen() -> None:
    """Its form without content, its gradients, and what compilers ask of it."""
    x = torch.randn(2, 3, 4, 2, 6).contiguous(memory_format=LAST).requires_grad_()
    weight, bias = torch.rand(3, requires_grad=True), torch.randn(3, requires_grad=True)
    for slope in (1.0, 0.0, 0.01):
        torch.library.opcheck(norms.operator, (x, weight, bias, 1e-5, slope))


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.LeakyReLU(0.01)])
def test_compiled_norm_and_activation_are_one_operator_in_bf16(activation: nn.Module | None) -> None:
    """Also within autocast, which would compute a norm in float32; the bits are those of the layer that is not
    compiled."""
    kinds: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        kinds.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    torch.manual_seed(8)
    parts = [nn.InstanceNorm3d(8, affine=True), *([activation] if activation else [])]
    layer = select.optimize_norms(nn.Sequential(*parts))
    x = torch.randn(2, 8, 4, 4, 4).bfloat16().contiguous(memory_format=LAST)
    slope, results = torch.randn_like(x), []
    for way in (layer, torch.compile(layer, backend=backend)):
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = way(own)
        assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=LAST)
        results.append([y, *torch.autograd.grad(y, (own, *layer.parameters()), slope)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    forward = [kind for kind in kinds[0] if "getitem" not in kind]
    assert forward == ["unet.instance_norm.default"]
