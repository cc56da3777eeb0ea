"""Clipping by part, and steps that are skipped, on the host and without reading from a device."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from unet.config.flags import DeviceOptions
from unet.config.flags_training import TrainOptions
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.errors import UnetError
from unet.runtime.gradients import Gradients

TRAIN = TrainOptions(clip=2.0, skip_norm=100.0, skip_warmup=0, skip_limit=3, lr=0.1)


class Card(CPU):
    """A device with memory of its own, as far as skipping goes."""

    own_memory = True


def parts(device: type[CPU], train: TrainOptions = TRAIN) -> tuple[nn.ModuleDict, Gradients]:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(3, 2) for name in ("a", "b")})
    groups = [{"params": list(model[name].parameters()), "part": name} for name in ("a", "b")]
    optimizer = torch.optim.Adamax(groups, lr=train.lr)
    return model, Gradients(train, optimizer, device(DeviceOptions(), Rank()))


def backward(model: nn.ModuleDict, gradients: Gradients, scales: tuple[float, float], number: int = 1) -> None:
    for part, scale in zip(model.values(), scales, strict=True):
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, scale)
    gradients.step(torch.amp.GradScaler("cpu", enabled=False), number)


def read(gradients: Gradients, step: int = 1) -> list[dict[str, float]]:
    return gradients.read([row.tolist() for row in gradients.pending], step)


@pytest.mark.parametrize("device", [CPU, Card])
def test_each_part_is_clipped_by_its_own_norm(device: type[CPU], monkeypatch: pytest.MonkeyPatch) -> None:
    model, gradients = parts(device)
    seen: list[float] = []
    step = gradients.optimizer.step

    def looked(*args: object) -> None:
        seen.extend(torch.cat([p.grad.flatten() for p in part.parameters()]).norm().item() for part in model.values())  # type: ignore[union-attr]
        step(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(gradients.optimizer, "step", looked)
    backward(model, gradients, (0.1, 10.0))
    assert seen == pytest.approx([0.1 * 8**0.5, 2.0], rel=1e-4)
    assert read(gradients)[0] == pytest.approx({"gradient_norm_a": 0.1 * 8**0.5, "gradient_norm_b": 10 * 8**0.5})


@pytest.mark.parametrize("device", [CPU, Card])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e4])
def test_a_step_whose_norm_is_too_large_is_not_taken(device: type[CPU], bad: float) -> None:
    model, gradients = parts(device)
    backward(model, gradients, (0.1, 0.1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = [value.clone() for state in gradients.optimizer.state.values() for value in state.values() if value.ndim]
    backward(model, gradients, (0.1, bad))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    after = [value for state in gradients.optimizer.state.values() for value in state.values() if value.ndim]
    assert all(map(torch.equal, states, after))
    read(gradients)
    assert gradients.skipped == 1
    backward(model, gradients, (0.1, 0.1))
    assert not torch.equal(before["a.weight"], model.state_dict()["a.weight"])


def test_the_first_step_skipped_on_a_card_leaves_no_trace() -> None:
    model, gradients = parts(Card)
    backward(model, gradients, (math.nan, 0.1))
    backward(model, gradients, (0.1, 0.1))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_in_the_warm_up_only_norms_that_are_not_finite_are_skipped() -> None:
    model, gradients = parts(CPU, dataclasses.replace(TRAIN, skip_warmup=50))
    for number, scale, skipped in ((0, 1e4, 0), (48, 1e4, 0), (48, math.nan, 1), (49, 1e4, 2)):
        backward(model, gradients, (scale, 0.1), number)
        read(gradients)
        assert gradients.skipped == skipped, number


def test_skips_in_a_row_end_the_run_with_their_numbers() -> None:
    model, gradients = parts(CPU)
    for scale in (1e4, 1e4, 0.1, 1e4, 1e4):
        backward(model, gradients, (scale, 0.1))
    read(gradients, 5)
    backward(model, gradients, (1e4, 0.1))
    with pytest.raises(
        UnetError, match=r"3 steps in a row up to step 6 were skipped.*a 2.83e\+04, b 0.283.*100"
    ) as error:
        read(gradients, 6)
    assert "start a new run" in error.value.hint and "--resume" not in error.value.hint


def test_a_loss_that_is_not_finite_gives_gradients_that_are_not() -> None:
    model, gradients = parts(CPU)
    weight = model["a"].weight  # type: ignore[union-attr]
    assert torch.equal(gradients.prepare(weight.sum()), weight.sum())  # type: ignore[operator]
    gradients.prepare(weight.sum() * 0 + torch.tensor(math.inf)).backward()  # type: ignore[operator]
    assert not torch.isfinite(weight.grad).any()  # type: ignore[arg-type, union-attr]
