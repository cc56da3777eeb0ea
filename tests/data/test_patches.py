"""Batches of patches: which cases and where, over the border, from disk, memory or a device, changed here or later."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unet.data.cache.cached_case import CachedCase
from unet.data.loading.crops import Volumes
from unet.data.loading.loader import Loader
from unet.data.loading.patches import EpochPatches
from unet.data.transforms.augmentation import NAMES, Augmentation
from unet.errors import CacheError, DataError

SHAPES = ((2, 20, 24, 28), (2, 9, 30, 14), (2, 20, 8, 8))
PATCH = (10, 12, 16)
OUTSIDE = (-7.0, 255)
ALWAYS = dataclasses.replace(Augmentation(), **dict.fromkeys((*NAMES, "blur_channel", "coarse_channel"), 1.0))


def stored(folder: Path, number: int, shape: tuple[int, ...]) -> CachedCase:
    """A case of two channels whose voxels all differ and tell case and place; its mask tells the place too."""
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1e6 * number
    mask = (np.arange(np.prod(shape[1:])) % 5).astype(np.uint8).reshape(1, *shape[1:])
    paths = folder / f"case{number}.npy", folder / f"case{number}_mask.npy"
    for path, array in zip(paths, (image, mask), strict=True):
        np.save(path, array)
    voxels = {str(label): np.argwhere(mask[0] == label)[:40].tolist() for label in range(5) if label != 3}
    return CachedCase(f"case{number}", *paths, shape, (1,), {"voxels": {**voxels, "3": []}})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[CachedCase]:
    folder = tmp_path_factory.mktemp("patches")
    return [stored(folder, number, shape) for number, shape in enumerate(SHAPES)]


def patches(cases: list[CachedCase], where: str = "disk", **how: Any) -> EpochPatches:
    given = {"patch": PATCH, "batch_size": 3, "length": 5, "seed": 3, "outside": OUTSIDE, **how}
    return EpochPatches(Volumes(cases, where, lambda tensor: tensor), **given)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def centred(data: EpochPatches, case: int, place: int, count: int = 400) -> list[tuple[tuple[int, int], ...]]:
    draws = torch.Generator().manual_seed(1)
    return [data._window(case, place, draws) for _ in range(count)]


def middle_of(window: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    return tuple(low + length // 2 for (low, _), length in zip(window, PATCH, strict=True))


def test_a_batch_has_its_shapes_and_each_patch_is_a_piece_of_its_case(cases: list[CachedCase]) -> None:
    data = patches(cases)
    assert len(data) == 5
    seen = set()
    for number in range(5):
        batch = data[2, number]
        assert batch["image"].shape == (3, 2, *PATCH) and batch["image"].dtype == torch.float32
        assert batch["mask"].shape == (3, 1, *PATCH) and batch["mask"].dtype == torch.uint8
        assert batch.keys() == {"image", "mask", "index"} and batch["index"].shape == (3,)
        for image, mask, case in zip(batch["image"], batch["mask"], batch["index"].tolist(), strict=True):
            whole, labels = cases[case].arrays()
            inside = image[0] != OUTSIDE[0]
            assert inside.any() and (mask[0][~inside] == 255).all() and (image[1][~inside] == OUTSIDE[0]).all()
            flat = (image[0][inside] - 1e6 * case).long()
            assert torch.equal(mask[0][inside], torch.from_numpy(np.array(labels)).reshape(-1)[flat])
            corner = np.array(np.unravel_index(int(flat[0]), whole.shape[1:]))
            box = [int(inside.any(2).any(1).sum()), int(inside.any(2).any(0).sum()), int(inside.any(1).any(0).sum())]
            cut = tuple(slice(low, low + length) for low, length in zip(corner, box, strict=True))
            assert np.array_equal(image[:, inside].reshape(2, *box), whole[(slice(None), *cut)])
            seen.add(data.name(case))
    assert seen == {"case0", "case1", "case2"}


def test_cases_are_drawn_with_replacement_and_evenly(cases: list[CachedCase]) -> None:
    data = patches(cases, length=2000, batch_size=1)
    drawn = Counter(int(data.drawn(1, number)) for number in range(2000))
    assert all(drawn[case] / 2000 == pytest.approx(1 / 3, abs=0.04) for case in range(3))
    assert patches(cases[:1], batch_size=8)[1, 0]["index"].tolist() == [0] * 8


def test_epochs_batches_ranks_and_seeds_differ(cases: list[CachedCase]) -> None:
    def images(epoch: int = 1, number: int = 0, **how: Any) -> Tensor:
        return patches(cases[:1], change=ALWAYS, **how)[epoch, number]["image"]

    first = images()
    assert torch.equal(first, images())
    for other in (images(epoch=2), images(number=1), images(seed=4), images(shard=(1, 2))):
        assert not torch.equal(first, other)
    orders = [[patches(cases, shard=(rank, 2), length=8).drawn(3, at).tolist() for at in range(8)] for rank in (0, 1)]
    whole = patches(cases, batch_size=6, length=8)
    assert [a + b for a, b in zip(*orders, strict=True)] == [whole.drawn(3, at).tolist() for at in range(8)]


def test_the_last_share_of_a_batch_is_about_a_label(cases: list[CachedCase]) -> None:
    third = ((3, 0.33, [0, 0, 1]), (2, 0.33, [0, 1]), (12, 0.33, [0] * 8 + [1] * 4))
    for size, share, expected in (*third, (2, 1.0, [1, 1])):
        data = patches(cases, batch_size=size, oversampling=share)
        for coin in (0.0, 0.999):
            assert [int(data._about_a_label(place, coin)) for place in range(size)] == expected
    alone = patches(cases, batch_size=1, oversampling=0.33)
    assert alone._about_a_label(0, 0.32) and not alone._about_a_label(0, 0.34)
    none = patches(cases, batch_size=4, oversampling=0.0)
    assert not any(none._about_a_label(place, 0.0) for place in range(4))


def test_a_patch_about_a_label_is_centred_on_a_voxel_of_a_class_drawn_first(tmp_path: Path) -> None:
    shape = (1, 60, 60, 60)
    case = stored(tmp_path, 0, shape)
    facts = {"voxels": {"0": [[50, 50, 50]], "1": [[30, 31, 32]] * 99, "7": [[20, 21, 40]], "9": []}}
    data = patches([dataclasses.replace(case, facts=facts)], batch_size=1, oversampling=1.0)
    middles = Counter(map(middle_of, centred(data, 0, 0)))
    assert set(middles) == {(30, 31, 32), (20, 21, 40)}  # background is not drawn
    assert middles[20, 21, 40] / 400 == pytest.approx(0.5, abs=0.08)  # by class, not by voxels


def test_a_patch_about_a_label_at_the_border_is_moved_inside(cases: list[CachedCase]) -> None:
    data = patches(cases, batch_size=1, oversampling=1.0)
    for window in centred(data, 0, 0):
        assert all(low >= 0 and high <= side for (low, high), side in zip(window, SHAPES[0][1:], strict=True))


def test_ordinary_patches_lie_anywhere_inside(cases: list[CachedCase]) -> None:
    data = patches(cases, batch_size=3)
    lows = [tuple(low for low, _ in window) for window in centred(data, 0, 0, 2000)]
    for axis, (side, length) in enumerate(zip(SHAPES[0][1:], PATCH, strict=True)):
        assert {low[axis] for low in lows} == set(range(side - length + 1))


def test_small_cases_lie_anywhere_in_their_patch(cases: list[CachedCase]) -> None:
    for place in (0, 2):  # an ordinary one, one about a label
        windows = centred(patches(cases), 2, place, 1000)
        assert all(low <= 0 and high >= 8 for window in windows for low, high in window[1:])
        assert {window[1][0] for window in windows} == set(range(8 - 12, 1))


def test_without_labels_a_patch_lies_anywhere(cases: list[CachedCase]) -> None:
    bare = [dataclasses.replace(case, facts={}) for case in cases]
    assert len({window[2] for window in centred(patches(bare, batch_size=1, oversampling=1.0), 0, 0)}) == 28 - 16 + 1


def test_sets_with_few_labels_take_their_background_where_it_is_labelled(tmp_path: Path) -> None:
    case = stored(tmp_path, 0, (1, 60, 60, 60))
    sparse = {"voxels": {"0": [[50, 20, 30]], "1": [[30, 31, 32]]}}
    only = {"voxels": {"1": [[30, 31, 32]]}}
    for facts, middle in ((sparse, (50, 20, 30)), (only, (30, 31, 32))):
        data = patches([dataclasses.replace(case, facts=facts)], labelled_only=True)
        for window in centred(data, 0, 0, 20):
            assert middle_of(window) == middle


def test_a_plane_is_a_slice_of_a_volume(cases: list[CachedCase]) -> None:
    data = patches(cases, patch=(1, 12, 16), length=40, change=Augmentation.off())
    depths = set()
    for number in range(40):
        batch = data[1, number]
        assert batch["image"].shape == (3, 2, 1, 12, 16)
        for image, case in zip(batch["image"], batch["index"].tolist(), strict=True):
            value = image[0][image[0] != OUTSIDE[0]].min() - 1e6 * case
            depths.add((case, int(np.unravel_index(int(value), SHAPES[case][1:])[0])))
    assert len(depths) > 30
    assert patches(cases[:1], patch=(1, 12, 16), change=ALWAYS)[1, 0]["image"].shape == (3, 2, 1, 12, 16)


@pytest.mark.parametrize("change", [None, Augmentation(), ALWAYS])
@pytest.mark.parametrize("where", ["ram", "device"])
def test_batches_are_the_same_wherever_the_volumes_lie(
    cases: list[CachedCase], where: str, change: Augmentation | None
) -> None:
    for number in range(3):
        assert same(patches(cases, change=change)[2, number], patches(cases, where, change=change)[2, number])


def test_batches_are_the_same_with_workers_and_from_any_position(cases: list[CachedCase]) -> None:
    data = patches(cases, change=Augmentation())
    alone, many, late = list(Loader(data).epoch(3)), list(Loader(data, 2).epoch(3)), list(Loader(data).epoch(3, 4))
    assert len(alone) == len(many) == 5
    assert all(same(a, b) for a, b in zip([*alone, alone[4]], [*many, *late], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_patches_that_are_changed_after_they_arrived_are_the_same(cases: list[CachedCase], workers: int) -> None:
    moved, boundaries = [], []

    def place(tensor: Tensor) -> Tensor:
        moved.append(tuple(tensor.shape))
        return tensor.clone()

    now, late = patches(cases, change=ALWAYS), patches(cases, change=ALWAYS, late=True)
    finish = functools.partial(late.finish, place=place, after=lambda: boundaries.append(1))
    batches = list(Loader(late, workers, finish=finish).epoch(2))
    assert len(batches) == 5 and all(same(a, b) for a, b in zip(batches, Loader(now).epoch(2), strict=True))
    assert set(moved) == {(2, *late.region), (1, *late.region)}  # two shapes, whatever the sizes of the cases
    assert len(boundaries) == 5 * 3 * 8


def test_only_turned_and_scaled_patches_are_cut_larger(cases: list[CachedCase]) -> None:
    data = patches(cases, change=dataclasses.replace(Augmentation(), rotate=0.5, scale=0.0), length=30, late=True)
    shapes = Counter(
        tuple(tensor.shape) for number in range(30) for name, tensor in data[1, number].items() if "image" in name
    )
    assert set(shapes) == {(2, *PATCH), (2, *data.region)}
    ordinary: tuple[int, ...] = (2, *PATCH)
    assert shapes[ordinary] / 90 == pytest.approx(0.5, abs=0.2)


def test_mirrored_patches_are_mirrored_with_their_mask(cases: list[CachedCase]) -> None:
    plain, mirror = Augmentation.off(), Augmentation.off().alone("mirror")
    for axes in ((0,), (1, 2), (0, 1, 2)):
        a = patches(cases, change=plain)[1, 0]
        b = patches(cases, change=dataclasses.replace(mirror, axes=axes))[1, 0]
        flipped = [axis + 2 for axis in axes]
        assert torch.equal(a["image"].flip(flipped), b["image"]) and torch.equal(a["mask"].flip(flipped), b["mask"])


def test_a_turned_patch_has_the_same_centre(tmp_path: Path) -> None:
    """A ball about the label that is sought stays in the middle of its patch, whatever happens to it."""
    shape = (1, 64, 64, 64)
    at = np.stack(np.meshgrid(*(np.arange(64.0),) * 3, indexing="ij"))
    ball = (np.square(at - 31.5).sum(0) < 7**2).astype(np.uint8)
    np.save(tmp_path / "a.npy", ball[None].astype(np.float32))
    np.save(tmp_path / "a_mask.npy", ball[None])
    case = CachedCase("a", tmp_path / "a.npy", tmp_path / "a_mask.npy", shape, (1,), {"voxels": {"1": [[32, 32, 32]]}})
    change = dataclasses.replace(Augmentation.off(), rotate=1.0, scale=1.0, mirror=0.5)
    data = EpochPatches(Volumes([case]), (32, 32, 32), 8, 1, 0, 1.0, change)
    batch = data[1, 0]
    for image, mask in zip(batch["image"], batch["mask"], strict=True):
        middle = torch.nonzero(mask[0]).double().mean(0)
        assert torch.allclose(middle, torch.full((3,), 15.5, dtype=torch.float64), atol=0.35)
        assert torch.equal(image[0] > 0.5, mask[0] == 1) or ((image[0] > 0.5) != (mask[0] == 1)).float().mean() < 0.01


def test_masks_keep_their_values_and_ignored_voxels(cases: list[CachedCase]) -> None:
    data = patches(cases, change=dataclasses.replace(ALWAYS, scale_range=(1.4, 1.4)))
    for number in range(5):
        batch = data[1, number]
        assert set(batch["mask"].unique().tolist()) <= {0, 1, 2, 3, 4, 255} and (batch["mask"] == 255).any()


def test_volumes_on_a_device_are_never_written_to(cases: list[CachedCase]) -> None:
    """Also where the window is the whole volume, of which a device needs no copy to cut it out."""
    volumes = Volumes(cases, "device", lambda tensor: tensor.to("meta"))
    assert volumes._placed
    for window in (((0, 20), (0, 24), (0, 28)), ((0, 20), (2, 9), (0, 28)), ((-1, 21), (0, 24), (0, 28))):
        for flips in ((False, False, False), (True, False, False)):
            image, mask = volumes.crop(0, window, flips)
            lengths = tuple(high - low for low, high in window)
            assert image.shape == (2, *lengths) and mask.shape == (1, *lengths)
            for tensor, kept in zip((image, mask), volumes._placed[0], strict=True):
                assert tensor.untyped_storage()._cdata != kept.untyped_storage()._cdata and tensor.is_contiguous()


def test_a_case_whose_mask_does_not_fit_is_refused(tmp_path: Path) -> None:
    case = stored(tmp_path, 0, (2, 6, 7, 8))
    assert [array.shape for array in case.arrays()] == [(2, 6, 7, 8), (1, 6, 7, 8)]
    for shape in ((1, 6, 7, 9), (2, 6, 7, 9), (1, 6, 8, 8)):
        np.save(case.mask, np.zeros(shape, np.uint8))
        with pytest.raises(CacheError, match="with a mask of"):
            case.arrays()


def test_no_case_is_an_error() -> None:
    with pytest.raises(DataError, match="no case"):
        EpochPatches(Volumes([]), PATCH, 2, 1, 0)
