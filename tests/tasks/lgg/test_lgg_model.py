"""The network against the published one, the two other UNets' sizes, checkpoints of both key spellings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from builders import formula_state, make_config, wave
from conftest import GOLDEN

from unet.errors import CheckpointError, UnetError
from unet.models import convert
from unet.models.losses import batch_dice_loss
from unet.models.unet import UNet, UNetShape
from unet.runtime.checkpoints import checkpoint

REFERENCE = json.loads((GOLDEN / "lgg_reference.json").read_text())


@pytest.fixture
def published() -> UNet:
    network = UNet(UNetShape())
    state = formula_state(convert.to_published_lgg(network.state_dict()))
    network.load_state_dict(convert.from_published_lgg(state))
    return network


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_state_dict_is_the_published_one() -> None:
    state = convert.to_published_lgg(UNet(UNetShape()).state_dict())
    assert [[key, list(value.shape)] for key, value in state.items()] == REFERENCE["state_dict"]
    assert len(state) == 118


def test_forward_equals_the_published_network(published: UNet) -> None:
    """In float64, whose rounding no processor shows; the golden numbers are float32: their smallest one, at the end of
    the sigmoid, is off by 2.2e-4 of it."""
    published.double().eval()
    probabilities = published(wave((2, 3, 64, 64), 0.013, 0.0).double()).sigmoid().detach()
    expected = REFERENCE["forward_64"]["probabilities"]
    assert list(probabilities.shape) == expected["shape"]
    found = {
        "mean": probabilities.mean(),
        "std": probabilities.std(),
        "min": probabilities.min(),
        "max": probabilities.max(),
    }
    for name, value in found.items():
        assert float(value) == pytest.approx(expected[name], rel=3e-4 if name == "min" else 1e-4), name
    assert probabilities.flatten()[expected["flat_index"]].tolist() == pytest.approx(expected["values"], rel=1e-4)
    rounded = published.float()(wave((2, 3, 64, 64), 0.013, 0.0)).sigmoid().detach().double()
    assert float((rounded - probabilities).norm() / probabilities.norm()) < 1e-4
    assert float(rounded.min()) == pytest.approx(float(probabilities.min()), rel=3e-4)


def test_loss_and_three_adam_steps_equal_the_published_ones(published: UNet) -> None:
    image, label = wave((2, 3, 64, 64), 0.013, 0.0), (wave((2, 1, 64, 64), 0.0007, 0.3) > 0.9).float()
    assert float(label.sum()) == REFERENCE["label_sum"]
    published.eval()
    assert float(batch_dice_loss(published(image).sigmoid(), label)) == pytest.approx(REFERENCE["dice_loss"], rel=1e-4)
    published.train()
    optimizer = torch.optim.Adam(published.parameters(), 1e-4, fused=True)
    for expected in REFERENCE["adam_losses"]["losses"]:
        loss = batch_dice_loss(published(image).sigmoid(), label)
        assert float(loss) == pytest.approx(expected, rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("width", "expected"), [(32, 7_763_041), (4, 122_093), (8, 486_553), (16, 1_942_577), (64, 31_037_633)]
)
def test_parameters_of_lgg(width: int, expected: int) -> None:
    assert count(UNet(UNetShape(features=(width, 2 * width, 4 * width, 8 * width), bottleneck=16 * width))) == expected


def test_the_same_class_is_the_other_unets() -> None:
    """Parameter counts of the UNet Medical benchmark (34,512,258; 572 -> 388) and of MLPerf's 3D UNet (31,190,243; 78
    tensors).
    """
    em = UNet(
        UNetShape(
            inputs=1,
            outputs=2,
            features=(64, 128, 256, 512),
            bottleneck=1024,
            norm="none",
            padding="valid",
            up_kernel=3,
            up_activation="relu",
            dropout=0.5,
        )
    )
    assert count(em) == 34_512_258
    narrow = UNet(
        UNetShape(inputs=1, outputs=2, features=(2, 2, 2, 2), bottleneck=2, norm="none", padding="valid", up_kernel=3)
    )
    assert narrow(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    shape = UNetShape(
        dims=3, inputs=1, outputs=3, features=(32, 64, 128, 256, 320), bottleneck=320, norm="instance", down="stride"
    )
    kits = UNet(shape)
    assert (count(kits), len(kits.state_dict())) == (31_190_243, 78)
    small = UNet(UNetShape(dims=3, inputs=1, outputs=3, features=(2, 2), bottleneck=2, norm="instance", down="stride"))
    assert small(torch.zeros(1, 1, 8, 12, 16)).shape == (1, 3, 8, 12, 16)


def test_kernel_three_up_is_the_definition() -> None:
    """TensorFlow's "same" transposed convolution, stride 2: out[2i + k] += in[i] w[k], k = 0..2, cut to twice the
    input.
    """
    from unet.models.layers import Up

    up = Up(2, 1, 1, kernel=3)
    image, weight = torch.randn(1, 1, 3, 4), up.conv.weight.detach()
    expected = torch.zeros(1, 1, 7, 9)
    for i in range(3):
        for j in range(4):
            expected[0, 0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += image[0, 0, i, j] * weight[0, 0]
    expected = expected[:, :, :6, :8] + up.conv.bias.detach()
    torch.testing.assert_close(up(image).detach(), expected)


def test_an_input_that_does_not_fit_is_told_what_fits() -> None:
    with pytest.raises(UnetError, match="multiples of 16") as caught:
        UNet(UNetShape())(torch.zeros(1, 3, 50, 64))
    assert "64 x 64" in caught.value.hint


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("spelling", ["published", "argonne"])
def test_foreign_checkpoints_load(published: UNet, prefix: str, spelling: str) -> None:
    from unet.tasks.lgg.task import LGG

    state: dict[str, Any] = convert.to_published_lgg(published.state_dict())
    if spelling == "argonne":
        state = {key.replace("encoder", "enc").replace("decoder", "dec"): value for key, value in state.items()}
        assert "enc1.enc1conv1.weight" in state
    network, own = LGG(make_config()).convert_checkpoint({prefix + key: value for key, value in state.items()})
    checkpoint.fit(network, own, GOLDEN)
    for (key, a), b in zip(network.state_dict().items(), published.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert (
        convert.to_published_lgg(network.state_dict()).keys() == convert.to_published_lgg(published.state_dict()).keys()
    )


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_other_depths_go_through_the_published_form_and_back(layers: int) -> None:
    network = UNet(UNetShape(features=tuple(4 * 2**i for i in range(layers)), bottleneck=4 * 2**layers))
    back = convert.from_published_lgg(convert.to_published_lgg(network.state_dict()))
    assert back.keys() == network.state_dict().keys()
    assert convert.shape_of(back, "lgg") == network.shape


def test_weights_of_another_network_name_keys_and_shapes() -> None:
    from pathlib import Path

    narrow = UNet(UNetShape(features=(4, 8), bottleneck=16))
    wide = UNet(UNetShape(features=(8, 16), bottleneck=32))
    with pytest.raises(CheckpointError, match=r"encoders\.0\.0\.weight \(8, 3, 3, 3\) \(here \(4, 3, 3, 3\)\)"):
        checkpoint.fit(narrow, wide.state_dict(), Path("x.pt"))
    deep = UNet(UNetShape(features=(4, 8, 16), bottleneck=32))
    with pytest.raises(CheckpointError, match="missing"):
        checkpoint.fit(deep, narrow.state_dict(), Path("x.pt"))
