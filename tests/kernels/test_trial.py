"""Convolutions that a processor gets wrong in bfloat16: found by trial, computed in float32, remembered."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import stored
from torch import Tensor, nn
from torch.nn import functional as F

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices import cpu
from unet.devices.launchers import Rank
from unet.kernels import trial

FUNCTIONS = ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d")
# a layer, and the sides of an input that it gets wrong
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "2D": (lambda: nn.Conv2d(8, 8, 3, 2, 1), (12, 2)),
    "3D": (lambda: nn.Conv3d(8, 8, 3, 2, 1, bias=False), (10, 8, 2)),
    "2D, transposed": (lambda: nn.ConvTranspose2d(8, 8, 3, 2), (12, 2)),
    "3D, transposed": (lambda: nn.ConvTranspose3d(8, 8, 3, 2), (10, 8, 2)),
}
pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder in which nothing is remembered, and notices that have not been shown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    host.notice_once.cache_clear()
    return tmp_path / "home" / "unet"


class Unwritten(torch.autograd.Function):
    """The identity; its gradient is memory that nobody has written."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.empty_like(grad)


def break_torch(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make torch's convolutions wrong within autocast where the innermost side of the input is 2: each output is a half
    too large, or the weights' gradient is not written."""
    for name in FUNCTIONS:
        monkeypatch.setattr(F, name, faulty(getattr(F, name), what))


def faulty(real: Callable[..., Tensor], what: str) -> Callable[..., Tensor]:
    def convolution(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        if x.shape[-1] != 2 or not torch.is_autocast_enabled("cpu"):
            return real(x, weight, *rest)
        if what == "output":
            return real(x, weight, *rest) * 1.5
        return real(x, Unwritten.apply(weight), *rest)

    return convolution


def device(**settings: object) -> cpu.CPU:
    """With torch's own convolutions: those that choose an algorithm have their own trial (test_measure.py)."""
    settings = {"kernels": "plain", **settings}
    return cpu.CPU(DeviceOptions(device="cpu", **settings), Rank())  # type: ignore[arg-type]


def step(place: cpu.CPU, network: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, and gradients of the parameters."""
    network.zero_grad()
    with place.autocast():
        y = network(place.to({"image": x})["image"])
    y.float().square().sum().backward()
    return [y.detach(), *(parameter.grad.clone() for parameter in network.parameters())]  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["output", "gradient of weight"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_wrong_computes_in_float32(
    name: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, sides = LAYERS[name]
    torch.manual_seed(1)
    plain = nn.Sequential(make())
    for parameter in plain.parameters():
        parameter.data = parameter.data.bfloat16().float()
    break_torch(monkeypatch, what)
    place = device(precision="bf16")
    network = place.place(copy.deepcopy(plain))
    layer: Any = network[0]  # type: ignore[index]
    x = torch.randn(2, 8, *sides).bfloat16().float()
    y, *gradients = step(place, network, x)
    assert y.dtype == torch.bfloat16
    expected, *expected_gradients = step(device(), plain, x)
    torch.testing.assert_close(y.float(), expected, rtol=0.01, atol=0.01)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.01
    assert layer.exact == {sides}
    larger = (*sides[:-1], 4)
    with place.autocast():
        network(place.to({"image": torch.randn(2, 8, *larger)})["image"])
    assert (layer.exact, layer.tried) == ({sides}, {sides, larger})  # the others stay in bfloat16
    assert capsys.readouterr().err.count("wrong on this processor") == 1
    shape = trial.block(layer, x.shape)
    assert trial.fault(make(), shape, torch.bfloat16, True) == what


def test_a_kernel_that_meets_padding_alone_has_a_gradient() -> None:
    """torch 2.13 leaves that part of it uninitialised, with AVX-512: memory that held large numbers shows."""
    torch.manual_seed(0)
    place = device(precision="bf16")
    for _ in range(8):
        network = place.place(nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1)))
        x = place.to({"image": torch.randn(2, 16, 4, 1)})["image"]
        with place.autocast():
            y = network(x)
        dirt = [torch.full((2304,), 1e30, dtype=kind) for kind in (torch.bfloat16, torch.float32) * 4]
        del dirt
        y.float().sum().backward()
        gradient = network[0].weight.grad  # type: ignore[index, union-attr]
        assert gradient[..., 0].abs().max() == gradient[..., 2].abs().max() == 0


def test_the_answer_is_remembered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    break_torch(monkeypatch, "output")
    place, x = device(precision="bf16", layout="NHWC"), torch.randn(2, 8, 12, 2)

    def run() -> Tensor:
        torch.manual_seed(2)
        return step(place, place.place(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1))), x)[0]

    first = run()
    (key,) = json.loads((home / "convolutions.json").read_text())
    assert torch.__version__ in key and cpu.processor() in key and "of 2 x 8 x 12 x 2, bfloat16, channels last" in key
    asked: list[object] = []
    monkeypatch.setattr(trial, "fault", lambda *how: asked.append(how) or "output")
    assert torch.equal(run(), first) and not asked
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert torch.equal(run(), first) and len(asked) == 1  # another torch
    (home / "convolutions.json").write_text("{ cut sh")
    assert torch.equal(run(), first) and len(asked) == 2  # damaged: begun anew
    assert torch.equal(run(), first) and len(asked) == 2
    (home.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent / "file"))
    assert torch.equal(run(), first) and len(asked) == 3  # it cannot be written


def test_a_compiled_network_is_tried_before_it_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    break_torch(monkeypatch, "output")
    place = device(precision="bf16")
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **_: real(module, backend="eager", fullgraph=True, dynamic=False)
    )
    network = place.place(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Dropout(0.5)))
    plain = copy.deepcopy(network)
    compiled = place.compile(network)
    x = torch.randn(2, 8, 12, 2)
    results = []
    for way in (plain, compiled):
        torch.manual_seed(3)
        with place.autocast():
            results.append(way(x))
    assert network[0].exact == {(12, 2)}  # type: ignore[index]
    assert torch.equal(*results)
    assert network[1].num_batches_tracked == 1  # type: ignore[index]
    compiled(x)
    assert torch.equal(network[0].weight, compiled.state_dict()["_orig_mod.0.weight"])  # type: ignore[index]


def test_nothing_is_tried_in_float32(home: Path) -> None:
    network = device().place(nn.Sequential(nn.Conv3d(8, 8, 3)))
    assert type(network[0]) is nn.Conv3d  # type: ignore[index]
    network(torch.randn(1, 8, 4, 4, 4))
    place = device(precision="bf16")
    guarded = place.place(nn.Conv2d(8, 8, 3))
    guarded(torch.randn(1, 8, 4, 4))  # outside of autocast
    assert not (home / "convolutions.json").exists()
    with place.autocast():
        guarded(torch.randn(1, 8, 4, 4))
    assert (home / "convolutions.json").exists()


def test_a_tried_layer_is_copied_and_pickled() -> None:
    layer: Any = device(precision="bf16").place(nn.Sequential(nn.Conv2d(8, 8, 3)))[0]  # type: ignore[index]
    layer.exact = frozenset({(4, 4)})
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is type(layer) and other.exact == layer.exact
        assert torch.equal(other.weight, layer.weight)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert trial.guard(layer, cpu.is_right) is layer and type(layer).__mro__.count(trial.Tried) == 1


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 32, 128, 128, 128), (2, 32, 4, 8, 16)),
        ((1, 32, 131, 67, 1), (1, 32, 35, 11, 1)),
        ((2, 320, 4, 4, 4), (2, 320, 4, 4, 4)),
        ((16, 3, 256, 250), (2, 3, 16, 26)),
    ],
)
def test_long_sides_are_cut_and_short_ones_whole(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    kind = nn.Conv3d if len(shape) == 5 else nn.Conv2d
    assert trial.block(kind(shape[1], 8, 3), shape) == expected


def test_a_run_says_so_once_and_is_repeated_bit_for_bit(
    tiny: Callable[..., tuple[int, str, str]],
    cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    here: None,
) -> None:
    """Whether the answers are found, in one go, or remembered, in a resumed run; `doctor` names the layers."""
    break_torch(monkeypatch, "output")
    common = ("--layers", 3, "--precision", "bf16", "--deterministic", "--workers", 0, "--max-cases", 3)
    for name, epochs in (("found", 2), ("resumed", 1)):
        host.notice_once.cache_clear()
        code, _, err = tiny(*common, "--run-name", name, "--epochs", epochs)
        assert code == 0, err
        assert err.count("wrong on this processor") == 1
    code, _, err = cli("train", "--resume", "--run-name", "resumed", "--epochs", 2)
    assert code == 0, err
    one, other = (stored(f"weights/{name}.state.safetensors")["model"] for name in ("found", "resumed"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    code, out, _ = cli("doctor", "--device", "cpu", "--precision", "bf16")
    assert code == 0
    assert "small convolutions in bfloat16 against fp32" in out
    assert "threads: output; computed in fp32" in out  # a small one that every doctor tries
    (line,) = (line for line in out.splitlines() if "Conv2d(16, 32, " in line)  # of the run's network
    assert "met before; computed in fp32" in line
