"""The training pipeline of volumes: its steps and their order, how often each comes, what comes out."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from torch import Tensor

from unet.data.loading.sampling import generator
from unet.data.transforms.intensity import rescale
from unet.tasks.brains.transforms import ALWAYS, STEPS, Pipeline, Step, alone, augment


def cube(side: int, low: float = -1.0) -> Tensor:
    line = torch.linspace(-1, 1, side)
    level = line[:, None, None] ** 2 + (line[None, :, None] / 0.8) ** 2 + line[None, None] ** 2
    values = 0.5 + 0.5 * torch.rand(side, side, side, generator=generator(side))
    return rescale(torch.where(level < 0.6, values, torch.zeros(()))[None], low)


def test_the_steps_are_those_that_were_published_in_their_order() -> None:
    assert [step.name for step in STEPS] == [
        "one axis coarser",
        "empty ends",
        "percentiles",
        "histogram shift",
        "intensity factor",
        "blur",
        "noise",
        "ghosting",
        "bias field",
        "motion",
        "spike",
        "affine",
        "crop",
        "elastic",
    ]
    assert {step.name for step in STEPS if step.probability == ALWAYS} == {"percentiles", "crop"}
    assert {step.probability for step in STEPS} == {0.1, 1.0}


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize("side", [8, 16, 32])
def test_a_cube_comes_out_on_its_scale(side: int, low: float) -> None:
    volume = cube(side, low)
    before = volume.clone()
    for seed in range(40):
        result = augment(volume, generator(seed), low)
        assert result.shape == volume.shape and result.dtype == torch.float32
        assert float(result.min()) == low and float(result.max()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(volume, before)


@pytest.mark.parametrize("side", [2, 4, 8, 16, 32])
def test_all_steps_together_give_numbers(side: int) -> None:
    certain = tuple(step._replace(probability=1.0) for step in STEPS)
    for seed in range(20):
        result = augment(cube(side), generator(seed), -1.0, certain)
        assert result.isfinite().all() and result.shape == (1, side, side, side)
        for empty in (torch.full((1, side, side, side), value) for value in (-1.0, 0.3)):
            assert augment(empty, generator(seed), -1.0, certain).isfinite().all()


def test_each_step_comes_as_often_as_it_should() -> None:
    counts: Counter[str] = Counter()

    def counted(step: Step) -> Step:
        def function(volume: Tensor, draws: torch.Generator, low: float) -> Tensor:
            counts[step.name] += 1
            return volume

        return step._replace(function=function)

    steps = tuple(map(counted, STEPS))
    for seed in range(2000):
        augment(torch.zeros(1, 2, 2, 2), generator(seed), -1.0, steps)
    for step in STEPS:
        assert counts[step.name] / 2000 == pytest.approx(step.probability, abs=0.025)


def test_the_generator_alone_decides() -> None:
    pipeline, volume = Pipeline(), cube(16)
    results = [pipeline(volume, generator(seed)) for seed in range(12)]
    torch.manual_seed(99)
    again = pickle.loads(pickle.dumps(pipeline))
    assert all(torch.equal(again(volume, generator(seed)), result) for seed, result in enumerate(results))
    assert len({result.numpy().tobytes() for result in results}) == 12


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_step_can_be_shown_alone(step: Step) -> None:
    volume = cube(16).clamp(min=-0.9)  # no plane is empty
    shown = [alone(step, volume, generator(seed)) for seed in range(8)]
    assert all(each.shape == volume.shape for each in shown)
    if step.name != "percentiles":
        assert max(float((each - volume).abs().max()) for each in shown) > 0.01
