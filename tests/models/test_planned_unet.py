"""The UNet that is planned stage by stage, against the numbers of nnU-Net's networks and, where they are installed, the
networks themselves."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from builders import formula_state, wave
from conftest import GOLDEN
from torch import Tensor, nn

from unet.config.flags import DeviceOptions
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.errors import CheckpointError, UnetError
from unet.kernels import conv3d, norms, upsample
from unet.models import convert
from unet.models.planned_shape import PlannedShape, Stage, check_sides, faults, parameters, standard_stages
from unet.models.planned_unet import PlannedUNet, ResidualBlock, initialize

REFERENCE = json.loads((GOLDEN / "nnunet_reference.json").read_text())
NETWORKS = {item["name"]: item for item in REFERENCE["networks"]}
COUNTS = {item["name"]: item for item in REFERENCE["counts"]}
FLAT, CUBE, ONE, HALF, HALF_FLAT = (1, 3, 3), (3, 3, 3), (1, 1, 1), (2, 2, 2), (1, 2, 2)
ANISOTROPIC = standard_stages([FLAT, CUBE, CUBE], [ONE, HALF_FLAT, HALF], 8, 12)


def shape_of(item: dict[str, Any], bias: bool = True) -> PlannedShape:
    """The shape of a network of the golden file. Its decoder begins at the lowest stage."""
    decoder = [*item["decoder"][::-1], 1]
    rows = zip(item["features"], item["kernels"], item["strides"], item["blocks"], decoder, strict=True)
    stages = tuple(Stage(row[0], tuple(row[1]), tuple(row[2]), *row[3:]) for row in rows)
    return PlannedShape(item["dims"], item["inputs"], item["outputs"], stages, item["residual"], bias=bias)


def nnunet_state(item: dict[str, Any]) -> dict[str, Tensor]:
    return formula_state({key: torch.empty(sides) for key, sides in item["state_dict"]})


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_nnunet_with_the_same_weights(name: str) -> None:
    """In training all outputs but nnU-Net's lowest, in evaluation the full one."""
    item = NETWORKS[name]
    state = convert.from_nnunet(nnunet_state(item))
    network = PlannedUNet(shape_of(item))
    network.load_state_dict(state)
    x = wave(tuple(item["input"]), 0.013, 0.0)
    with torch.no_grad():
        outputs = network(x)
        assert torch.equal(network.eval()(x), outputs[0])
    assert len(outputs) == len(item["results"]) - 1
    for found, expected in zip(outputs, item["results"], strict=False):
        assert found.ndim == 5
        assert list(found.shape) == expected["shape"][:2] + [1] * (3 - item["dims"]) + expected["shape"][2:]
        values = found.double()
        assert float(values.abs().sum()) == pytest.approx(expected["absolute_sum"], rel=1e-5)
        assert float(values.sum()) == pytest.approx(expected["sum"], abs=1e-5 * expected["absolute_sum"])
        assert values.flatten()[:4].tolist() == pytest.approx(expected["first"], rel=1e-4, abs=1e-5)
        assert values.flatten()[-4:].tolist() == pytest.approx(expected["last"], rel=1e-4, abs=1e-5)
    assert convert.planned_shape_of(state) == shape_of(item)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_equal_the_installed_networks(name: str) -> None:
    """Random weights of nnU-Net's own package, to 1e-6 of the largest logit."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet", exc_type=ImportError)
    item = NETWORKS[name]
    dims, residual = item["dims"], item["residual"]
    kind = unet.ResidualEncoderUNet if residual else unet.PlainConvUNet
    torch.manual_seed(3)
    cut = {key: [sides[3 - dims :] for sides in item[key]] for key in ("kernels", "strides")}
    theirs = kind(
        *(item["inputs"], len(item["features"]), item["features"]),
        conv_op=(nn.Conv2d, nn.Conv3d)[dims - 2],
        kernel_sizes=cut["kernels"],
        strides=cut["strides"],
        **{"n_blocks_per_stage" if residual else "n_conv_per_stage": item["blocks"]},
        num_classes=item["outputs"],
        n_conv_per_stage_decoder=item["decoder"],
        conv_bias=True,
        norm_op=(nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 2],
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, 0.1, 0.2)
    own = PlannedUNet(shape_of(item))
    own.load_state_dict(convert.from_nnunet(theirs.state_dict()))  # with its second names
    x = torch.randn(item["input"])
    with torch.no_grad():
        expected = theirs(x[:, :, 0] if dims == 2 else x)
        for a, b in zip(own(x), expected, strict=False):
            assert float((a.view_as(b) - b).abs().max()) <= 1e-6 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", [*NETWORKS, *COUNTS])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_counted_without_the_network(name: str, bias: bool) -> None:
    """nnU-Net's numbers, less the head of its lowest decoder stage, which it does not train."""
    item = {**NETWORKS, **COUNTS}[name]
    shape = shape_of(item, bias)
    with torch.device("meta"):
        network = PlannedUNet(shape)
    assert sum(value.numel() for value in network.parameters()) == parameters(shape)
    if bias:
        assert parameters(shape) + item["outputs"] * (item["features"][-2] + 1) == item["parameters"]


def test_standard_stages_are_those_of_nnunet() -> None:
    for name, most, residual in (
        ("2d, 8 stages", 512, False),
        ("3d anisotropic, 7 stages", 320, False),
        ("ResEnc-M 3d, 6 stages", 320, True),
    ):
        item = COUNTS[name]
        kernels, strides = ([tuple(sides) for sides in item[key]] for key in ("kernels", "strides"))
        made = standard_stages(kernels, strides, most=most, residual=residual)
        assert made[:-1] == shape_of(item).stages[:-1]  # the lowest stage has no decoder
        assert (made[-1].channels, made[-1].blocks) == (item["features"][-1], item["blocks"][-1])


def test_a_key_of_no_network_is_an_error_and_second_names_are_left_out() -> None:
    item = NETWORKS["residual 3d"]
    state = nnunet_state(item)
    assert convert.is_nnunet(state)
    own = convert.from_nnunet(state)
    assert not convert.is_nnunet(own)
    twice = {f"decoder.encoder.{key.removeprefix('encoder.')}": value for key, value in state.items() if "enc" in key}
    twice["encoder.stem.convs.0.all_modules.0.weight"] = state["encoder.stem.convs.0.conv.weight"]
    assert list(convert.from_nnunet({**state, **twice})) == list(own)
    with pytest.raises(CheckpointError, match=r"'encoder\.other'"):
        convert.from_nnunet({**state, "encoder.other": state["decoder.seg_layers.0.bias"]})
    with pytest.raises(CheckpointError, match="is missing"):
        convert.planned_shape_of({"encoders.0.0.weight": torch.zeros(2, 1, 3, 3, 3)})


def test_outputs_in_training_and_in_evaluation() -> None:
    stages = standard_stages([CUBE] * 4, [ONE, HALF, HALF, HALF], 4, 8)
    x = torch.randn(1, 2, 16, 16, 8)
    network = PlannedUNet(PlannedShape(3, 2, 5, stages))
    assert [tuple(logits.shape) for logits in network(x)] == [(1, 5, 16, 16, 8), (1, 5, 8, 8, 4)]
    assert network.eval()(x).shape == (1, 5, 16, 16, 8)
    plain = PlannedUNet(PlannedShape(3, 2, 5, stages, deep_supervision=False))
    assert plain(x).shape == (1, 5, 16, 16, 8)
    loss = sum(logits.square().mean() for logits in network.train()(x))
    loss.backward()
    assert all(value.grad is not None for value in network.parameters())  # none is left out, as DDP asks


def test_it_starts_as_nnunet_does() -> None:
    """Kaiming: a variance of 2 / (1 + 0.01^2) / fan-in; residual blocks begin as their skip."""
    torch.manual_seed(2)
    stages = standard_stages([CUBE] * 3, [ONE, HALF, HALF], 32, residual=True)
    network = PlannedUNet(PlannedShape(3, 1, 3, stages, residual=True))
    weight = network.encoders[1][1].convolutions[0].weight
    assert float(weight.detach().var()) == pytest.approx(2 / 1.0001 / (64 * 27), rel=0.02)
    assert not network.heads[0].bias.any()
    assert not network.ups[0].bias.any()
    block = network.encoders[1][1]
    assert isinstance(block, ResidualBlock)
    x = torch.randn(1, 64, 4, 4, 4)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(x, 0.01))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(2)
    initialize(network)
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("sides", "words", "fitting"),
    [
        ((8, 30, 32), "multiples of 2 x 4 x 4", "8 x 32 x 32"),
        ((3, 4, 1), "multiples of 2 x 4 x 4", "4 x 4 x 4"),
        ((1, 1, 1), "multiples of 2 x 4 x 4", "4 x 4 x 4"),
        ((2, 4, 4), "one voxel at the lowest of 3 stages", "4 x 4 x 4"),
    ],
)
def test_sides_that_do_not_fit(sides: tuple[int, ...], words: str, fitting: str) -> None:
    shape = PlannedShape(3, 1, 2, ANISOTROPIC)
    for network in (PlannedUNet(shape), PlannedUNet(shape).eval()):
        with pytest.raises(UnetError, match=words) as raised:
            network(torch.zeros(1, 1, *sides))
    assert f"Pad or resize to {fitting}," in raised.value.hint
    check_sides([int(side) for side in fitting.split(" x ")], shape)
    network(torch.zeros(1, 1, *(int(side) for side in fitting.split(" x "))))


def test_a_network_of_slices_takes_them_one_by_one() -> None:
    shape = PlannedShape(2, 1, 2, standard_stages([FLAT] * 3, [ONE, HALF_FLAT, HALF_FLAT], 4))
    with pytest.raises(UnetError, match="has 5 slices") as raised:
        PlannedUNet(shape)(torch.zeros(1, 1, 5, 8, 8))
    assert "slices of 1 x 8 x 8" in raised.value.hint
    with pytest.raises(UnetError, match="one voxel") as raised:
        PlannedUNet(shape)(torch.zeros(1, 1, 1, 4, 4))
    assert "to 1 x 8 x 4" in raised.value.hint
    assert all(layer.weight.ndim == 4 for layer in PlannedUNet(shape).modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": 4}, "4 dimensions"),
        ({"inputs": 0}, "0 input channels"),
        ({"outputs": 0}, "0 classes"),
        ({"stages": ANISOTROPIC[:1]}, "1 stages"),
        ({"stages": (*ANISOTROPIC, Stage(0))}, "stage 3: channels is 0"),
        (
            {"stages": (*ANISOTROPIC, Stage(8, (3, 3, 2)))},
            r"stage 3: kernel is \[3, 3, 2\], and its numbers must be odd",
        ),
        ({"stages": (*ANISOTROPIC, Stage(8, CUBE, (0, 2, 2)))}, r"stage 3: stride is \[0, 2, 2\]"),
        ({"stages": (*ANISOTROPIC, Stage(8, (3, 3)))}, r"stage 3: kernel is \[3, 3\]"),  # type: ignore[arg-type]
        ({"stages": ANISOTROPIC[1:]}, "stage 0: stride is .* full resolution"),
        ({"dims": 2}, "stage 2: kernel .* begin with 1"),
    ],
)
def test_a_shape_that_cannot_be_built(change: dict[str, Any], words: str) -> None:
    shape = PlannedShape(**{"dims": 3, "inputs": 1, "outputs": 2, "stages": ANISOTROPIC, **change})
    assert faults(PlannedShape(3, 1, 2, ANISOTROPIC)) == []
    with pytest.raises(UnetError, match=words) as raised:
        PlannedUNet(shape)
    assert "unet plan" in raised.value.hint


@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("case", ["2d", "3d", "anisotropic"])
def test_faster_layers_compute_the_same(case: str, residual: bool) -> None:
    """On the CPU's own layers: outputs, and gradients of all parameters."""
    kernels, strides, sides = {
        "2d": ([FLAT] * 3, [ONE, HALF_FLAT, HALF_FLAT], (1, 32, 32)),
        "3d": ([CUBE] * 3, [ONE, HALF, HALF], (16, 16, 16)),
        "anisotropic": ([FLAT, CUBE, CUBE], [ONE, HALF_FLAT, HALF], (8, 32, 32)),
    }[case]
    torch.manual_seed(5)
    shape = PlannedShape(2 if case == "2d" else 3, 1, 3, standard_stages(kernels, strides, 8, 16, residual))
    plain = PlannedUNet(shape)
    for layer in plain.modules():  # or half of a residual block is 0
        if isinstance(layer, nn.InstanceNorm2d | nn.InstanceNorm3d):
            nn.init.normal_(layer.weight, 1, 0.2)
            nn.init.normal_(layer.bias, 0, 0.2)
        if isinstance(layer, nn.LeakyReLU):  # a value that rounds to the other side of 0 must not change its gradient
            layer.negative_slope = 0.999
    place = CPU(DeviceOptions(device="cpu"), Rank())
    fast = place.place(copy.deepcopy(plain))
    x = torch.randn(2, 1, *sides)
    results = [network(image) for network, image in ((plain, x), (fast, place.to({"image": x})["image"]))]
    slopes = [torch.randn_like(logits) for logits in results[0]]
    grads = []
    for network, outputs in zip((plain, fast), results, strict=True):
        loss = sum((logits * slope).sum() for logits, slope in zip(outputs, slopes, strict=True))
        grads.append(torch.autograd.grad(loss, list(network.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(*grads, strict=True):
        assert float((a - b).norm()) <= 1e-4 * float(a.norm()) + 1e-5
    kinds = {type(layer) for layer in fast.modules()}
    if case != "2d":
        assert {norms.InstanceNorm3d, upsample.ConvTranspose3d} <= kinds
        assert any(issubclass(kind, conv3d.Chosen) for kind in kinds)
        assert nn.ConvTranspose3d not in kinds
