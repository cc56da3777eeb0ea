"""What a set looks like: which voxels and which cases its intensities come from, and what a plan makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from builders import task_config
from tasks.folder import sets as made

from unet import host
from unet.errors import DataError
from unet.tasks.folder import fingerprint, sets
from unet.tasks.folder.settings import FROM_DATA
from unet.tasks.folder.task import Folder

pytestmark = pytest.mark.usefixtures("here")
LIMITS = ("low", "high")


def ct(root: Path, masks: list[Any], labels: dict[str, int] | None = None) -> Path:
    """A set of CT: air of -1000 where a mask is lowest, 50 to 60 where it is 1, 900 elsewhere."""
    for number, mask in enumerate(masks):
        noise = np.random.default_rng(number).integers(50, 60, mask.shape)
        image = np.where(mask == mask.min(), -1000, np.where(mask == mask.min() + 1, noise, 900)).astype(np.int16)
        made.write(root / f"imagesTr/case_{number}_0000.nii.gz", image)
        made.write(root / f"labelsTr/case_{number}.nii.gz", mask)
    about = {"channel_names": {"0": "CT"}, "labels": labels or {"background": 0, "lesion": 1}}
    (root / "dataset.json").write_text(json.dumps(about))
    return root


def box(background: int = 0) -> Any:
    mask = np.full((8, 8, 8), background, np.uint8)
    mask[2:5, 2:5, 2:5] = background + 1
    return mask


def planned(root: Path, **typed: Any) -> dict[str, Any]:
    task = Folder(task_config("folder", data=str(root), cache=str(root / "cache"), **typed))
    return {found.name: found.value for found in task.decisions([name for name in FROM_DATA if name not in typed])}


@pytest.mark.parametrize("background", [0, 1])
def test_the_background_is_not_among_the_labelled_values(background: int, tmp_path: Path) -> None:
    root = ct(tmp_path, [box(background)] * 2)
    (root / "dataset.json").unlink()
    found = planned(root, label_values=(background, background + 1), normalize=("ct",))
    assert 50 <= found["intensities"][0] < found["intensities"][1] < 60


def test_what_is_ignored_is_not_among_the_labelled_values(tmp_path: Path) -> None:
    mask = box()
    mask[6:] = 9
    root = ct(tmp_path, [mask] * 2, {"background": 0, "lesion": 1, "other": 9})
    keep = tmp_path / "cache"
    assert fingerprint.look(sets.find(root), keep).intensities(0)["high"] == 900
    (root / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "lesion": 1, "ignore": 9}}))
    assert fingerprint.look(sets.find(root), keep).intensities(0)["high"] < 60  # not what was kept before
    (root / "dataset.json").unlink()
    assert planned(root, label_values=(0, 1), ignore_value=9)["intensities"][1] < 60


def test_the_cases_that_are_read_are_spread_over_the_set() -> None:
    places = [int(name) for name in fingerprint.evenly([str(number) for number in range(60)], 40)]
    assert (len(places), places[0], places[-1]) == (40, 0, 59)
    assert max(np.diff(places)) == 2
    assert fingerprint.evenly(["a", "b"], 40) == ["a", "b"]
    assert fingerprint.evenly([], 40) == fingerprint.evenly(["a"], 0) == []


def test_labelled_cases_are_read_where_the_spread_ones_are_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SAMPLED", 2)
    empty = np.zeros((8, 8, 8), np.uint8)
    found = fingerprint.look(sets.find(ct(tmp_path, [empty, empty, box(), empty])))
    assert [bool(case.darkest) for case in found.cases] == [True, False, True, True]
    assert 50 <= found.intensities(0)["low"] < found.intensities(0)["high"] < 60


def test_ct_whose_labelled_values_do_not_differ_is_not_clipped_to_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host.notice_once.cache_clear()
    root = ct(tmp_path, [np.zeros((8, 8, 8), np.uint8)] * 2)
    assert planned(root)["normalize"] == ("zscore",)
    assert "CT: the labelled values are none, so zscore is taken in place of ct" in capsys.readouterr().err
    with pytest.raises(DataError, match="The labelled values of channel CT are none: ct would make all voxels one"):
        planned(root, normalize=("ct",))
    assert planned(root, normalize=("ct",), intensities=(-100.0, 200.0, 50.0, 20.0))["intensities"][1] == 200


def test_masks_on_another_grid_are_looked_at_where_they_lie(tmp_path: Path) -> None:
    root = ct(tmp_path, [box()] * 2)
    for path in (root / "labelsTr").iterdir():  # half the side of the voxels, and moved within the volume
        fine = np.repeat(np.repeat(box()[1:], 2, 0), 2, 1)
        affine = np.diag([0.5, 0.5, 2.0, 1.0])
        affine[:3, 3] = 0.75, -0.25, 0
        nibabel.save(nibabel.Nifti1Image(fine, affine), path)
    found = planned(root, resample_masks=True)
    assert 50 <= found["intensities"][0] < found["intensities"][1] < 60
    for path in (root / "labelsTr").iterdir():  # the same size, moved by three voxels
        affine = made.AFFINE.copy()
        affine[0, 3] = -3
        nibabel.save(nibabel.Nifti1Image(np.roll(box(), 3, 0), affine), path)
    found = planned(root, resample_masks=True)
    assert 50 <= found["intensities"][0] < found["intensities"][1] < 60


def test_a_file_of_the_same_name_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ct(tmp_path / "set", [box()])
    for text in ('{"mine": 1}', "not JSON"):
        (tmp_path / "fingerprint.json").write_text(text)
        fingerprint.look(sets.find(root), tmp_path)
        kept = sorted(tmp_path.glob("fingerprint.json.*"))[-1]
        assert kept.read_text() == text
        assert f"was not made here; kept as {kept.name}" in capsys.readouterr().err
    (root / "dataset.json").write_text("{}")
    before = sorted(tmp_path.iterdir())
    fingerprint.look(sets.find(root), tmp_path, (0, 7))  # its own is replaced
    assert sorted(tmp_path.iterdir()) == before
