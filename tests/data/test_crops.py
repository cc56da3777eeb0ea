"""Crops of volumes: where they are cut, how they are changed; a batch depends on (seed, epoch, number) alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet.data.loading.augment import Change, changes, finish
from unet.data.loading.crops import EpochCrops, Volumes
from unet.data.loading.loader import Loader
from unet.data.loading.sampling import balanced_window, generator
from unet.errors import DataError

SHAPE = (20, 24, 28)
PATCH = (8, 8, 16)
BOXES = {"1": [[4, 9, 2, 6, 3, 20], [15, 20, 20, 24, 0, 5]], "2": [[0, 3, 10, 20, 8, 12]]}


@dataclasses.dataclass
class Stored:
    """What the sampler needs of a cached case."""

    id: str
    image: Path
    mask: Path
    shape: tuple[int, ...]
    facts: dict[str, Any]

    def arrays(self) -> tuple[Any, Any]:
        return np.load(self.image, mmap_mode="r"), np.load(self.mask, mmap_mode="r")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Five volumes whose voxels are all different and tell the case."""
    folder = tmp_path_factory.mktemp("crops")
    result = []
    for number in range(5):
        image, mask = folder / f"case_{number:05}_x.npy", folder / f"case_{number:05}_y.npy"
        values = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE) + 1e5 * number
        np.save(image, values)
        np.save(mask, (values % 3).astype(np.uint8))
        result.append(Stored(image.stem[:-2], image, mask, (1, *SHAPE), {"boxes": BOXES}))
    return result


def crops(cases: list[Stored], where: str = "disk", change: Change | None = None, **how: Any) -> EpochCrops:
    settings = {"batch_size": 2, "seed": 3, "oversampling": 0.4, "change": change, **how}
    return EpochCrops(Volumes(cases, where, lambda tensor: tensor), PATCH, **settings)  # type: ignore[arg-type]


def test_uniform_crops_reach_every_offset_to_the_last() -> None:
    draws = generator(1)
    windows = [balanced_window(SHAPE, PATCH, {}, 0.4, draws) for _ in range(3000)]
    for axis in range(3):
        lows = Counter(window[axis][0] for window in windows)
        assert set(lows) == set(range(SHAPE[axis] - PATCH[axis] + 1))
        assert all(window[axis][1] - window[axis][0] == PATCH[axis] for window in windows)


def test_the_reference_never_reaches_the_last_offset() -> None:
    draws = generator(1)
    lows = {balanced_window(SHAPE, PATCH, {}, 0.4, draws, last_offset=False)[0][0] for _ in range(500)}
    assert max(lows) == SHAPE[0] - PATCH[0] - 1


def test_a_volume_of_the_crops_size_is_taken_whole() -> None:
    for last in (True, False):
        assert balanced_window(PATCH, PATCH, {}, 0.0, generator(1), last) == tuple((0, side) for side in PATCH)


def test_foreground_crops_hold_their_box_or_lie_in_it() -> None:
    draws = generator(2)
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(2000):
        window = balanced_window(SHAPE, PATCH, BOXES, 1.0, draws)
        fits = []
        for boxes in BOXES.values():
            for box in boxes:
                inside = True
                for axis, (low, high) in enumerate(window):
                    start, stop = box[2 * axis], box[2 * axis + 1]
                    held = low <= start and stop <= high
                    within = start <= low and high <= stop
                    inside &= held or within
                if inside:
                    fits.append(tuple(box))
        assert fits
        assert all(low >= 0 and high <= side for (low, high), side in zip(window, SHAPE, strict=True))
        if len(fits) == 1:
            seen[fits[0]] += 1
    small, large = seen[tuple(BOXES["2"][0])], seen[tuple(BOXES["1"][0])]
    assert small == pytest.approx(2 * large, rel=0.25)  # the class is drawn first, then its component


def test_the_share_of_foreground_crops_is_the_oversampling() -> None:
    draws, box = generator(3), {"1": [[2, 4, 2, 4, 2, 4]]}
    shape = (200, 200, 200)
    near = sum(balanced_window(shape, PATCH, box, 0.4, draws)[0][0] < 5 for _ in range(4000))
    assert near / 4000 == pytest.approx(0.4 + 0.6 * 5 / 193, abs=0.03)


def test_each_case_gives_one_crop_an_epoch_and_the_dropped_ones_change(cases: list[Stored]) -> None:
    data = crops(cases)
    orders = []
    for epoch in (1, 2, 3, 4):
        index = torch.cat([data[epoch, number]["index"] for number in range(len(data))]).tolist()
        assert len(set(index)) == 4
        orders.append(tuple(index))
    assert len({frozenset(order) for order in orders}) > 1


def test_a_crop_is_a_piece_of_its_volume_with_its_mask(cases: list[Stored]) -> None:
    batch = crops(cases)[1, 0]
    assert batch["image"].shape == (2, 1, *PATCH) and batch["image"].dtype == torch.float32
    assert batch["mask"].dtype == torch.uint8 and batch["mask"].shape == batch["image"].shape
    for image, mask, number in zip(batch["image"], batch["mask"], batch["index"], strict=True):
        values = image - 1e5 * int(number)
        assert torch.equal((image % 3).to(torch.uint8), mask)
        d, h, w = np.unravel_index(int(values[0, 0, 0, 0]), SHAPE)
        whole = torch.from_numpy(np.array(cases[int(number)].arrays()[0]))
        assert torch.equal(image, whole[:, d : d + PATCH[0], h : h + PATCH[1], w : w + PATCH[2]])


def test_ranks_share_an_epoch_without_overlap(cases: list[Stored]) -> None:
    shares = [crops(cases, shard=(rank, 2))[5, 0]["index"].tolist() for rank in (0, 1)]
    assert not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize("where", ["ram", "device"])
def test_batches_are_the_same_wherever_the_volumes_lie(cases: list[Stored], where: str) -> None:
    change = Change()
    for number in (0, 1):
        a, b = crops(cases, "disk", change)[2, number], crops(cases, where, change)[2, number]
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_batches_are_the_same_with_workers_and_from_any_position(cases: list[Stored]) -> None:
    data = crops(cases, change=Change())
    alone = list(Loader(data).epoch(3))
    many = list(Loader(data, workers=2).epoch(3))
    late = list(Loader(data).epoch(3, start=1))
    for a, b in zip([*alone, alone[1]], [*many, late[0]], strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_flips_brightness_and_noise_come_as_often_as_published() -> None:
    draws, how = generator(4), Change()
    drawn = [changes(how, draws) for _ in range(4000)]
    for axis in range(3):
        assert np.mean([item.flips[axis] for item in drawn]) == pytest.approx(1 / 3, abs=0.02)
    factors = [item.factor for item in drawn if item.factor is not None]
    sigmas = [item.sigma for item in drawn if item.sigma is not None]
    assert len(factors) / 4000 == pytest.approx(0.1, abs=0.015)
    assert len(sigmas) / 4000 == pytest.approx(0.1, abs=0.015)
    assert min(factors) >= 1.7 and max(factors) <= 2.3 and np.mean(factors) == pytest.approx(2.0, abs=0.03)
    assert min(sigmas) >= 0 and max(sigmas) <= 0.1 and np.mean(sigmas) == pytest.approx(0.05, abs=0.005)


def test_a_change_alters_the_image_as_drawn() -> None:
    image = torch.full((1, 30, 30, 30), 2.0)
    how = dataclasses.replace(changes(Change(), generator(5)), factor=1.5, sigma=0.2)
    result = finish(image.clone(), how)
    assert result.mean() == pytest.approx(3.0, abs=0.01) and result.std() == pytest.approx(0.2, abs=0.01)
    assert torch.equal(result, finish(image.clone(), how))


def test_what_does_not_fit_is_said(cases: list[Stored]) -> None:
    with pytest.raises(DataError, match="5 volumes") as error:
        crops(cases, batch_size=6)
    assert "--batch-size 5" in error.value.hint
    with pytest.raises(DataError, match="8 processes") as error:
        crops(cases, batch_size=1, shard=(0, 8))
    with pytest.raises(DataError, match="20 x 24 x 28 voxels are smaller than the crop of 8 x 8 x 32") as error:
        EpochCrops(Volumes(cases), (8, 8, 32), 1, 0, 0.4, None)
    assert "--patch" in error.value.hint and "--pad-to" in error.value.hint
