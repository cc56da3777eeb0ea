"""Each algorithm of a 3D convolution against torch's in float64, pass by pass, and in a layer."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet.kernels import algorithms, conv3d, geometry, select, trial, winograd
from unet.kernels.algorithms import PASSES, TABLE, Weights
from unet.kernels.geometry import Geometry, strided

LAST = torch.channels_last_3d
BOX = (3, 3, 3)
# input, outputs, kernel, stride, padding
SIZES: dict[str, tuple[Any, ...]] = {
    "usual": ((2, 8, 16, 16, 20), 12, BOX, (1, 1, 1), (1, 1, 1)),
    "odd": ((1, 8, 17, 16, 16), 12, BOX, (1, 1, 1), (1, 1, 1)),
    "strided": ((2, 8, 8, 9, 10), 12, BOX, (2, 2, 2), (1, 1, 1)),
    "flat": ((2, 8, 5, 8, 8), 12, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    "one channel": ((2, 1, 8, 8, 8), 8, BOX, (1, 1, 1), (1, 1, 1)),
    "one output": ((2, 8, 4, 4, 4), 1, BOX, (1, 1, 1), (1, 1, 1)),
    "kernel of 1": ((2, 8, 4, 5, 6), 12, (1, 1, 1), (1, 1, 1), (0, 0, 0)),
    "few voxels": ((1, 16, 2, 2, 2), 16, BOX, (1, 1, 1), (1, 1, 1)),
    "to one voxel": ((2, 16, 2, 2, 2), 16, BOX, (2, 2, 2), (1, 1, 1)),
    "without padding": ((1, 8, 6, 6, 6), 12, BOX, (1, 1, 1), (0, 0, 0)),
    "wide padding": ((1, 8, 4, 4, 4), 12, BOX, (1, 1, 1), (3, 3, 3)),
}
# of the whole tensor, relative to its size: float32 rounds at 1e-7, bfloat16 at 0.4 %, and Winograd's in it at 0.85 %
ERRORS = {torch.float32: 3e-6, torch.bfloat16: 0.01}


class Fixed:
    """One algorithm, where it computes a pass."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[tuple[Geometry, tuple[str, ...]]] = []

    def __deepcopy__(self, memo: Any) -> Fixed:
        return self

    def names(self, how: Geometry, parts: Sequence[str]) -> dict[str, str]:
        self.asked.append((how, tuple(parts)))
        fits = {part: TABLE[self.name].applies(how, part) for part in parts}
        return {part: self.name if fits[part] else algorithms.candidates(how, part)[0] for part in parts}


CASES = [
    pytest.param(Geometry(*SIZES[size], kind), name, parts, id=f"{size}, {name}, {str(kind).removeprefix('torch.')}")
    for size in SIZES
    for name in TABLE
    for kind in ERRORS
    if (parts := [part for part in PASSES if TABLE[name].applies(Geometry(*SIZES[size], kind), part)])
]


@pytest.mark.parametrize(("how", "name", "parts"), CASES)
def test_an_algorithm_computes_the_convolution(how: Geometry, name: str, parts: list[str]) -> None:
    compare(how, name, parts)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("size", SIZES)
def test_a_volume_in_slabs(size: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the fewest planes, and of so many that the last slab has fewer."""
    how, part = Geometry(*SIZES[size], kind), PASSES[2]
    asked = []
    for planes in (2, 3):
        monkeypatch.setattr(algorithms, "SLAB", how.size // how.shape[0] * planes // how.shape[2] + 1)
        if TABLE["slabs"].applies(how, part):
            asked.append(planes)
            compare(how, "slabs", [part])
    assert asked or size not in ("usual", "odd", "strided")


def compare(how: Geometry, name: str, parts: list[str]) -> None:
    """Passes by an algorithm with those of torch in float64."""
    kind, generator = how.dtype, torch.Generator().manual_seed(4)

    def draw(*sides: int) -> Tensor:
        return strided(torch.randn(sides, generator=generator).to(kind).contiguous(memory_format=LAST))

    x, grad = draw(*how.shape), draw(how.shape[0], how.outputs, *how.sides)
    weight = draw(how.outputs, how.inputs, *how.kernel)
    inputs = x.double().requires_grad_(), weight.double().requires_grad_()
    exact = F.conv3d(*inputs, None, how.stride, how.padding)
    expected = (exact.detach(), *torch.autograd.grad(exact, inputs, grad.double()))
    for part in parts:
        found = algorithms.run(name, part, how, grad, x, Weights(weight.float(), weight))
        reference = expected[PASSES.index(part)]
        assert found.shape == reference.shape
        if part != "weight gradient":
            assert found.dtype == kind and found.is_contiguous(memory_format=LAST)
        assert float((found.double() - reference).norm() / reference.norm()) < ERRORS[kind]


@pytest.mark.parametrize(
    ("size", "name"),
    [
        *(("few voxels", "torch"), ("few voxels", "matrix"), ("few voxels", "fp32"), ("usual", "winograd")),
        *(("usual", "channels_first"), ("one channel", "padded"), ("kernel of 1", "matrix"), ("strided", "matrix")),
        ("without padding", "onednn"),
    ],
)
def test_a_layer_takes_it_in_a_network(size: str, name: str) -> None:
    """With a bias, in float32 and within autocast: output and all gradients as the plain layer's."""
    shape, outputs, kernel, stride, padding = SIZES[size]
    torch.manual_seed(1)
    plain = nn.Conv3d(shape[1], outputs, kernel, stride, padding).to(memory_format=LAST)  # type: ignore[call-overload]
    choices = Fixed(name)
    fast = select.optimize(copy.deepcopy(plain), True, choices)
    assert isinstance(fast, conv3d.Chosen)
    x = torch.randn(shape).contiguous(memory_format=LAST)
    slope = torch.randn_like(plain(x))
    expected = [plain(x), *torch.autograd.grad(plain(x), plain.parameters(), slope)]
    for low in (False, True):
        image = x.clone(memory_format=torch.preserve_format).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = fast(image)
        assert y.dtype == (torch.bfloat16 if low else torch.float32)
        assert y.is_contiguous(memory_format=LAST)
        dx, *rest = torch.autograd.grad(y, (image, *fast.parameters()), slope.to(y.dtype))
        assert dx.dtype == torch.float32 and dx.shape == x.shape
        for a, b in zip((y, *rest), expected, strict=True):
            assert float((a.float() - b).norm() / b.norm()) < (0.012 if low else 1e-5)
            assert a is y or a.dtype == torch.float32
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
            assert torch.equal(fast(image), y)
    assert {parts for _, parts in choices.asked} == {PASSES, ("forward",)}


def test_what_is_not_asked_for_is_not_chosen() -> None:
    """A volume in the other order, one without content, a layer with groups or dilation, and what a compiler traces."""
    choices = Fixed("matrix")
    fast = select.optimize(nn.Conv3d(8, 8, 3, padding=1), True, choices)
    first = torch.randn(1, 8, 4, 5, 6)
    torch.testing.assert_close(fast(first), nn.Conv3d.forward(fast, first))  # type: ignore[arg-type]
    assert fast.to("meta")(first.to("meta")).shape == first.shape
    for other in (nn.Conv3d(8, 8, 3, groups=2), nn.Conv3d(8, 8, 3, dilation=2), nn.Conv3d(8, 8, 3, padding="same")):
        assert not isinstance(select.optimize(other, True, choices), conv3d.Chosen)
    assert not isinstance(select.optimize(nn.Conv3d(8, 8, 3), False, choices), conv3d.Chosen)
    assert not choices.asked


def test_both_gradients_of_winograd_share_a_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    real = winograd.backward
    monkeypatch.setattr(winograd, "backward", lambda *how: asked.append(how[-1]) or real(*how))
    fast = select.optimize(nn.Conv3d(8, 8, 3, padding=1), True, Fixed("winograd"))
    x = torch.randn(1, 8, 16, 16, 16).contiguous(memory_format=LAST).requires_grad_()
    fast(x).sum().backward()
    assert asked == [(True, True)]


def test_a_layer_that_chooses_is_copied_and_pickled() -> None:
    from unet.config.flags import DeviceOptions
    from unet.devices.cpu import CPU
    from unet.devices.launchers import Rank

    place = CPU(DeviceOptions(device="cpu"), Rank())
    layer: Any = place.place(nn.Sequential(nn.Conv3d(8, 8, 3)))[0]  # type: ignore[index]
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    for other in (copy.deepcopy(layer), torch.load(stream, weights_only=False)):
        assert isinstance(other, conv3d.Chosen) and torch.equal(other.weight, layer.weight)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert copy.deepcopy(layer).choices is layer.choices is place.choices


@pytest.mark.parametrize(
    ("shape", "most", "expected"),
    [
        ((1, 32, 128, 128, 128), 4e9, (1, 32, 16, 32, 128)),
        ((8, 32, 64, 64, 64), 4e9, (2, 32, 16, 32, 64)),
        ((2, 320, 8, 8, 8), 1e9, (2, 320, 8, 8, 8)),
        ((1, 32, 36, 64, 64), 4e9, (1, 32, 16, 64, 64)),
        ((1, 32, 4, 4, 4), 1e9, (1, 32, 4, 4, 4)),
    ],
)
def test_a_large_volume_is_cropped(shape: tuple[int, ...], most: float, expected: tuple[int, ...]) -> None:
    how = geometry.Geometry(shape, 32, BOX, (1, 1, 1), (1, 1, 1), torch.float32)
    assert how.cropped(int(most)).shape == expected


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_compiler_traces_a_layer_as_a_whole(kind: torch.dtype) -> None:
    """Whether this processor has the type or not."""
    layer = trial.guard(nn.Conv2d(4, 4, 3), lambda key, test: True)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with torch.autocast("cpu", dtype=kind):
        assert compiled(torch.ones(1, 4, 8, 8)).dtype == kind
