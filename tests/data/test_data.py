"""Splits, sampling, augmentation, loaders."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from unet.config.flags import SplitOptions
from unet.data import splits
from unet.data.cache.cache import CachedCase
from unet.data.loading import augment, sampling
from unet.data.loading.loader import EpochBatches, Loader, Slices
from unet.errors import DataError

GOLDEN_VALIDATION = [
    "TCGA_HT_7616_19940813",
    "TCGA_CS_6668_20011025",
    "TCGA_CS_4944_20010208",
    "TCGA_HT_7879_19981009",
    "TCGA_DU_7014_19860618",
    "TCGA_DU_6408_19860521",
    "TCGA_DU_6404_19850629",
    "TCGA_DU_5851_19950428",
    "TCGA_CS_6667_20011105",
    "TCGA_HT_7692_19960724",
]


def test_the_published_split_is_random_sample_of_seed_42() -> None:
    """Positions that random.seed(42); random.sample(range(110), 10) draws, by which the ten published names stand in
    110.
    """
    ids = [f"P{number:03}" for number in range(110)]
    expected = [81, 14, 3, 94, 35, 31, 28, 17, 13, 86]
    assert splits.published(ids)["validation"] == sorted(ids[number] for number in expected)
    assert len(splits.published(ids)["train"]) == 100


def test_the_seeds_split_is_the_last_ten() -> None:
    ids = [f"P{number:03}" for number in range(110)]
    assert splits.last(ids[::-1])["validation"] == ids[100:]


def test_few_cases_keep_a_fifth() -> None:
    assert len(splits.published([str(number) for number in range(15)])["validation"]) == 3
    assert len(splits.published([str(number) for number in range(24)])["validation"]) == 10


def test_folds_are_disjoint_and_complete() -> None:
    ids = [f"P{number}" for number in range(23)]
    parts = [splits.fold(ids, number, 5, seed=7)["validation"] for number in range(5)]
    assert sorted([case for part in parts for case in part]) == sorted(ids)
    assert {len(part) for part in parts} == {4, 5}


def test_a_split_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = GOLDEN_VALIDATION
    path = tmp_path / "split.txt"
    path.write_text("# held out\nCS_6668\nHT_7692\n")
    assert splits.from_file(ids, path)["validation"] == ["TCGA_CS_6668_20011025", "TCGA_HT_7692_19960724"]
    told = "CS_6668 is taken as TCGA_CS_6668_20011025 (and 1 more)"
    assert told in capsys.readouterr().err
    path.write_text(json.dumps({"train": ids[:3], "validation": ids[3:5]}))
    assert splits.from_file(ids, path) == {"train": sorted(ids[:3]), "validation": sorted(ids[3:5])}
    path.write_text(json.dumps({"train": ids[:3], "validation": ids[2:5]}))
    with pytest.raises(DataError, match="both parts"):
        splits.from_file(ids, path)
    for part in ("CS_666", "S_6668", "668", "_200110"):  # a part of a word is another name
        path.write_text(f"{part}\n")
        with pytest.raises(DataError, match=f"{part}' names 0 cases"):
            splits.from_file(ids, path)
    path.write_text("case_1\n")
    with pytest.raises(DataError, match="'case_1' names 0 cases"):
        splits.from_file(["case_10", "case_2"], path)
    path.write_text("fold-1\n")
    with pytest.raises(DataError, match="'fold-1' names 2 cases"):
        splits.from_file(["fold-1_a", "b_fold-1", "fold-10"], path)
    path.write_text("a b_1\n")
    capsys.readouterr()
    assert splits.from_file(["x-a b_1-y", "xa b_1", "a b_12"], path)["validation"] == ["x-a b_1-y"]
    assert "a b_1 is taken as x-a b_1-y" in capsys.readouterr().err
    path.write_text("TCGA_XX\n")
    with pytest.raises(DataError, match="names 0 cases"):
        splits.from_file(ids, path)
    path.write_text("\n")
    with pytest.raises(DataError, match="no validation cases"):
        splits.make(ids, SplitOptions(split=str(path), held_out=10), 0)


def test_slices_are_drawn_by_patient_and_by_tumour() -> None:
    """p_i = (s_i + 0.1 S / n) / (1.1 S) within a patient, patients uniform (brain-segmentation-pytorch)."""
    probabilities = sampling.slice_probabilities([[0, 30, 10], [0, 0], [5]])
    expected = np.array([4 / 3, 30 + 4 / 3, 10 + 4 / 3]) / 44
    assert probabilities[:3].tolist() == pytest.approx((expected / 3).tolist())
    assert probabilities[3:].tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 3])
    drawn = sampling.draw(probabilities, 60000, seed=1, epoch=1)
    shares = torch.bincount(drawn, minlength=6) / 60000
    assert shares.tolist() == pytest.approx(
        probabilities.tolist(), abs=0.01
    )  # three standard deviations at 60,000 draws


def make_cases(folder: Path, count: int = 3, slices: int = 5, size: int = 16) -> list[CachedCase]:
    generator = np.random.default_rng(3)
    result = []
    for number in range(count):
        image, mask = folder / f"P{number}.npy", folder / f"P{number}_mask.npy"
        np.save(image, generator.normal(size=(slices, size, size, 3)).astype(np.float32))
        np.save(mask, (generator.random((slices, size, size, 1)) > 0.8).astype(np.uint8))
        result.append(
            CachedCase(f"P{number}", image, mask, (slices, size, size, 3), tuple(np.load(mask).sum((1, 2, 3)).tolist()))
        )
    return result


def epoch(loader: Loader, number: int, start: int = 0) -> list[dict[str, torch.Tensor]]:
    return list(loader.epoch(number, start))


def test_draws_differ_by_epoch_and_repeat_by_seed(tmp_path: Path) -> None:
    """Defect of the seed's program: shuffle=False."""
    loader = Loader(EpochBatches(Slices(make_cases(tmp_path)), 4, 5, augment.affine_with(0.05, 15)))
    one, two, again = (torch.cat([batch["index"] for batch in epoch(loader, number)]) for number in (1, 2, 1))
    assert not torch.equal(one, two)
    assert torch.equal(one, again)
    assert not torch.equal(one, one.sort().values)


def test_workers_and_position_do_not_change_a_batch(tmp_path: Path) -> None:
    """A stopped run goes on in the middle of an epoch, with any number of workers, with the same batches."""
    cases = make_cases(tmp_path)
    whole = epoch(Loader(EpochBatches(Slices(cases), 4, 5, augment.affine_with(0.05, 15))), 3)
    assert len(whole) == 3
    for workers in (0, 2):
        loader = Loader(EpochBatches(Slices(cases), 4, 5, augment.affine_with(0.05, 15)), workers)
        epoch(loader, 1)
        rest = epoch(loader, 3, 1)
        assert len(rest) == 2
        for a, b in zip(whole[1:], rest, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("where", ["ram", "device"])
def test_data_elsewhere_give_the_same_batches(tmp_path: Path, where: str) -> None:
    cases = make_cases(tmp_path)
    a = epoch(Loader(EpochBatches(Slices(cases), 4, 5, None)), 1)
    b = epoch(Loader(EpochBatches(Slices(cases, where, lambda tensor: tensor), 4, 5, None)), 1)
    assert all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in x)


def test_what_a_worker_is_given_does_not_hold_the_data(tmp_path: Path) -> None:
    """Defect of the seed's program: every worker pickled the whole data set again in every epoch."""
    sizes = []
    for slices in (5, 200):
        folder = tmp_path / str(slices)
        folder.mkdir()
        batches = EpochBatches(Slices(make_cases(folder, slices=slices)), 4, 5, None)
        batches[(1, 0)]
        sizes.append(len(pickle.dumps(batches)))
    assert sizes[1] < 20_000
    assert sizes[1] < 0.02 * 3 * 200 * 16 * 16 * 13


def test_shards_are_one_draw_dealt_out(tmp_path: Path) -> None:
    cases = make_cases(tmp_path, slices=8)
    whole = torch.cat([batch["index"] for batch in epoch(Loader(EpochBatches(Slices(cases), 4, 5, None)), 1)])
    parts = [epoch(Loader(EpochBatches(Slices(cases), 2, 5, None, (rank, 2))), 1) for rank in range(2)]
    dealt = torch.cat([batch["index"] for pair in zip(*parts, strict=True) for batch in pair])
    assert torch.equal(whole, dealt)


def test_a_batch_larger_than_the_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="A batch of 16 is larger than the training set of 15 slices") as caught:
        EpochBatches(Slices(make_cases(tmp_path)), 16, 0, None)
    assert "--batch-size 15" in caught.value.hint


def test_names_of_samples(tmp_path: Path) -> None:
    loader = Loader(EpochBatches(Slices(make_cases(tmp_path)), 4, 0, None))
    assert loader.names(torch.tensor([0, 4, 5, 14])) == ["P0 slice 0", "P0 slice 4", "P1 slice 0", "P2 slice 4"]


def test_augmentation_is_random_in_its_range() -> None:
    """Defect of the seed's program: the same scale 0.995 and +5 degrees for every sample."""
    image = torch.zeros(400, 1, 65, 65)
    image[:, :, 28:37, 52:55] = 1  # a bar right of the centre: its place gives angle, scale and mirror
    moved, mask = augment.affine(image, (image > 0).float(), sampling.generator(1), 0.05, 15.0)
    rows, columns = torch.meshgrid(torch.arange(65.0) - 32, torch.arange(65.0) - 32, indexing="ij")
    weight = moved[:, 0] / moved[:, 0].sum((1, 2), keepdim=True)
    y, x = (weight * rows).sum((1, 2)), (weight * columns).sum((1, 2))
    radius, angle = torch.hypot(x, y) / 21, torch.rad2deg(torch.atan2(y, x.abs()))
    assert 0.94 < radius.min() < 0.96 < 1.04 < radius.max() < 1.06
    assert -15.5 < angle.min() < -13 < 13 < angle.max() < 15.5
    assert 0.4 < (x < 0).float().mean() < 0.6
    assert set(mask.unique().tolist()) == {0.0, 1.0}


def test_augmentation_without_change_is_identity_or_mirror() -> None:
    image, mask = torch.rand(8, 3, 20, 20), (torch.rand(8, 1, 20, 20) > 0.5).float()
    moved, kept = augment.affine(image, mask, sampling.generator(2), 0.0, 0.0)
    mirrored = 0
    for before, after, m, k in zip(image, moved, mask, kept, strict=True):
        flipped = not torch.allclose(before, after, atol=1e-5)
        mirrored += flipped
        torch.testing.assert_close(after, before.flip(2) if flipped else before, atol=1e-5, rtol=0)
        assert torch.equal(k, m.flip(2) if flipped else m)
    assert 0 < mirrored < 8


def test_generators_of_different_keys_differ() -> None:
    seen = {
        torch.rand(1, generator=sampling.generator(seed, epoch, batch)).item()
        for seed in range(5)
        for epoch in range(5)
        for batch in range(5)
    }
    assert len(seen) == 125
    assert math.isclose(sum(seen) / 125, 0.5, abs_tol=0.1)


def test_equal_faults_of_many_files_are_one_line() -> None:
    from unet.data.checks import Report

    faults = [f"masks/{number:02}.png: is a mask in colours" for number in range(24)]
    report = Report(errors=[*faults, "leakage: a and b hold the same image", "no colon at all"])
    assert report.text("set").splitlines() == [
        "set",
        "  error: masks/00.png: is a mask in colours (and 23 more like it: 01.png, 02.png, 03.png, 04.png ...)",
        "  error: leakage: a and b hold the same image",
        "  error: no colon at all",
        "  26 errors, 0 warnings",
    ]
    report = Report(warnings=[f"{number}.png: fault {number}" for number in range(12)] + ["x.png: fault 11"])
    assert report.text("set").splitlines()[-2:] == ["  ... and 3 more warnings", "  0 errors, 13 warnings"]
