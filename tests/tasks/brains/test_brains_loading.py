"""Batches of whole cubes: every case once an epoch, each sample with draws of its own, the same however it is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unet.data.cache.cached_case import CachedCase
from unet.data.loading.crops import Volumes
from unet.data.loading.loader import Loader
from unet.data.loading.sampling import generator
from unet.errors import DataError
from unet.tasks.brains.transforms import EpochVolumes, Pipeline

SIDE = 8


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    folder, rng, found = tmp_path_factory.mktemp("cubes"), np.random.default_rng(0), []
    for number in range(7):
        image, mask = folder / f"{number}.npy", folder / f"{number}_mask.npy"
        np.save(image, rng.uniform(-1, 1, (1, SIDE, SIDE, SIDE)).astype(np.float32))
        np.save(mask, np.ones((1, SIDE, SIDE, SIDE), np.uint8))
        found.append(CachedCase(f"brain_{number}", image, mask, (1, SIDE, SIDE, SIDE), (SIDE**3,)))
    return found


def batches(cases: list[CachedCase], where: str = "disk", shard: tuple[int, int] = (0, 1), **more: object):
    return EpochVolumes(Volumes(cases, where), 2, 5, shard=shard, **more)  # type: ignore[arg-type]


def test_without_changes_a_batch_is_the_cached_cubes(cases: list[CachedCase]) -> None:
    data = batches(cases)
    assert len(data) == 3
    batch = data[1, 0]
    assert set(batch) == {"image", "index", "noise_key"}
    assert batch["image"].shape == (2, 1, SIDE, SIDE, SIDE) and batch["image"].dtype == torch.float32
    for image, number in zip(batch["image"], batch["index"], strict=True):
        assert np.array_equal(image.numpy(), cases[int(number)].arrays()[0])
    assert data.name(3) == "brain_3"


def test_every_case_once_an_epoch_and_the_dropped_one_changes(cases: list[CachedCase]) -> None:
    data, orders = batches(cases), []
    for epoch in range(1, 7):
        index = torch.cat([data[epoch, number]["index"] for number in range(3)]).tolist()
        assert len(set(index)) == 6
        orders.append(frozenset(index))
    assert len(set(orders)) > 1


def test_ranks_share_an_epoch_without_overlap_and_without_common_draws(cases: list[CachedCase]) -> None:
    seen: list[torch.Generator] = []

    class Noted(Pipeline):
        def __call__(self, volume: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
            seen.append(draws)
            return volume

    shares = [batches(cases, shard=(rank, 3), pipeline=Noted())[4, 0]["index"].tolist() for rank in range(3)]
    assert len({case for share in shares for case in share}) == 6
    assert len({draws.initial_seed() for draws in seen}) == 6


def test_a_sample_is_changed_by_its_own_generator(cases: list[CachedCase]) -> None:
    pipeline = Pipeline()
    batch = batches(cases, pipeline=pipeline, shard=(1, 2))[3, 0]
    for place, (image, number) in enumerate(zip(batch["image"], batch["index"], strict=True)):
        volume = torch.from_numpy(np.array(cases[int(number)].arrays()[0]))
        assert torch.equal(image, pipeline(volume, generator(5, 3, 1, 1, place)))
        assert not torch.equal(image, volume)


@pytest.mark.parametrize("where", ["ram", "device"])
def test_batches_are_the_same_wherever_the_volumes_lie(cases: list[CachedCase], where: str) -> None:
    for number in range(3):
        a, b = (batches(cases, place, pipeline=Pipeline())[2, number] for place in ("disk", where))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_changes_leave_the_volumes_alone(cases: list[CachedCase]) -> None:
    data = batches(cases, "ram", pipeline=Pipeline())
    first = [data[1, number]["image"] for number in range(3)]
    assert all(torch.equal(data[1, number]["image"], image) for number, image in enumerate(first))


def test_batches_are_the_same_with_workers_and_from_any_position(cases: list[CachedCase]) -> None:
    data = batches(cases, pipeline=Pipeline())
    alone, many = list(Loader(data).epoch(3)), list(Loader(data, workers=2).epoch(3))
    late = list(Loader(data).epoch(3, start=2))
    for a, b in zip([*alone, alone[2]], [*many, late[0]], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_set_that_fills_no_batch_is_refused_with_numbers(cases: list[CachedCase]) -> None:
    with pytest.raises(DataError, match=r"batch of 8 is larger than the training set of 7 volumes\.") as error:
        EpochVolumes(Volumes(cases), 8, 0)
    assert error.value.hint == "Type --batch-size 7 or less."
    with pytest.raises(DataError, match="batch of 4 on each of 2 processes is larger") as error:
        EpochVolumes(Volumes(cases), 4, 0, shard=(0, 2))
    assert error.value.hint == "Type --batch-size 3 or less."
    with pytest.raises(DataError, match="of 1 volume") as error:
        EpochVolumes(Volumes(cases[:1]), 1, 0, shard=(0, 2))
    assert error.value.hint == "Type --batch-size 1 or less on fewer processes."


def test_each_batch_of_each_process_has_noise_of_its_own(cases: list[CachedCase]) -> None:
    keys = [int(batches(cases, shard=(rank, 2))[epoch, 0]["noise_key"][0]) for rank in (0, 1) for epoch in (1, 2)]
    keys += [int(batches(cases)[1, number]["noise_key"][0]) for number in (1, 2)]
    assert len(set(keys)) == len(keys)
    assert int(batches(cases)[1, 1]["noise_key"][0]) == keys[-2]
