"""Twenty training steps with the fast layers have the loss curve of the plain ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from unet.config.flags import DeviceOptions
from unet.devices import cpu
from unet.devices.launchers import Rank
from unet.kernels import algorithms, conv3d
from unet.models.losses import dice_ce_loss
from unet.models.unet import UNet, UNetShape

STEPS = 20
SHAPE = UNetShape(3, 1, 3, (8, 16, 16), 24, "instance", "leaky_relu", down="stride")


def curve(network: nn.Module, kernels: str, precision: str) -> torch.Tensor:
    """The losses of training on two volumes of 16^3 and on one in turn, float64; at a rate of learning at which
    rounding does not grow."""
    torch.manual_seed(3)
    place = cpu.CPU(DeviceOptions(device="cpu", kernels=kernels, precision=precision), Rank())
    network = place.place(copy.deepcopy(network))
    optimizer = torch.optim.SGD(network.parameters(), 0.001, momentum=0.9, nesterov=True)
    volumes, found = torch.randn(2, 2, 1, 16, 16, 16), []
    labels = (volumes > 0).long() + (volumes > 1).long()
    for step in range(STEPS):
        image, target = volumes[step % 2][: 2 - step % 2], labels[step % 2][: 2 - step % 2]
        with place.autocast():
            outputs = network(place.to({"image": image})["image"])
        loss = dice_ce_loss(outputs, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small operations in two threads take long where other processes run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def start() -> nn.Module:
    torch.manual_seed(2)
    return UNet(SHAPE)


@pytest.fixture(scope="module")
def plain(start: nn.Module) -> dict[str, torch.Tensor]:
    return {precision: curve(start, "plain", precision) for precision in ("fp32", "bf16")}


@pytest.mark.parametrize("kernels", ["measured", *(name for name in algorithms.TABLE if name != "fp32")])
def test_the_curve_is_that_of_the_plain_layers(
    kernels: str, start: nn.Module, plain: dict[str, torch.Tensor], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp32 to 1e-6; in bf16 within what rounding does to the plain layers (Winograd's rounds five times as much)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(algorithms, "SLAB", 2**14)
    taken: set[str] = set()
    real = conv3d.forward
    monkeypatch.setattr(conv3d, "forward", lambda *how: taken.update(how[-1].values()) or real(*how))
    exact = curve(start, kernels, "fp32")
    assert (exact / plain["fp32"] - 1).abs().max() < 1e-6
    low = curve(start, kernels, "bf16")
    noise = (plain["bf16"] - plain["fp32"]).abs()
    assert (low - plain["fp32"]).abs().max() < 5 * noise.max()
    assert plain["fp32"][-1] < 0.99 * plain["fp32"][0]
    assert kernels in (*taken, "measured", "torch")
