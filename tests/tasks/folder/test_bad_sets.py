"""What users' sets look like when something is odd: each is taken in a stated way, or refused with the mend."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from builders import task_config
from conftest import error_of
from PIL import Image
from tasks.folder import sets as made

from unet import host
from unet.data.io import volumes
from unet.errors import DataError
from unet.tasks.folder import sets
from unet.tasks.folder.labels import from_values
from unet.tasks.folder.task import Folder

Cli = Callable[..., tuple[int, str, str]]
QUICK = ["--size", "S", "--width", "4", "--epochs", "1", "--epoch-batches", "2", "--batch-size", "2", "--device", "cpu"]


def lossy(root: Path) -> None:
    """Masks of 0 and 255 that went through JPEG and were saved as PNG again."""
    for number in range(4):
        mask = np.zeros((96, 96), np.uint8)
        mask[20 + number : 60, 30:70] = 255
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask // 2 + np.random.default_rng(number).integers(0, 9, mask.shape, np.uint8)).save(
            root / f"images/{number}.png"
        )
        stream = io.BytesIO()
        Image.fromarray(mask).save(stream, "JPEG", quality=70)
        Image.open(stream).save(root / f"masks/{number}.png")


def mixed(root: Path) -> None:
    made.pairs(root, ".png")
    for folder, array in zip(("images", "masks"), made.volume(7), strict=True):
        made.write(root / folder / "deep.nii.gz", array)


def short_of_a_channel(root: Path) -> None:
    (made.nnunet(root, channels=2) / "imagesTr/case_1_0001.nii.gz").unlink()


def nowhere(root: Path) -> None:
    path = made.pairs(root, ".npy") / "images/case_1.npy"
    path.unlink()
    path.symlink_to("/nothing/here.npy")


def objects(root: Path) -> None:
    np.save(made.pairs(root, ".npy") / "images/case_1.npy", np.array([1, None]), allow_pickle=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lossy, "they were smoothed or saved as JPEG"),
        (mixed, "case_0 is one slice (24 x 20), deep a volume"),
        (short_of_a_channel, "case_1 has 1 channel, 3 of 4 cases have 2"),
        (lambda root: made.nnunet(root, channels=9), "the images have 9 channels; 1 to 8 are possible"),
        (nowhere, "images/case_1.npy: No such file or directory"),
        (objects, "Python objects"),
        (lambda root: made.pairs(root, ".npy", values=lambda mask: mask + np.uint8(1)), "--label-values 1 2"),
    ],
)
def test_check_and_training_refuse_the_same(make: Any, words: str, cli: Cli, tmp_path: Path) -> None:
    make(tmp_path / "data/set")
    code, out, err = cli("check", "--task", "folder", "--data", "set")
    assert code == 1, out + err
    assert words in out
    assert "--rebuild-cache" not in out
    assert words in error_of(cli("train", "--task", "folder", "--data", "set", "--run-name", "a", *QUICK))


def test_names_with_marks_meet_however_they_are_written(tmp_path: Path) -> None:
    made.pairs(tmp_path, ".png")
    for folder, form in (("images", "NFC"), ("masks", "NFD")):
        (tmp_path / folder / "case_0.png").rename(
            tmp_path / folder / (unicodedata.normalize(form, "Müller ä") + ".png")
        )
    assert "Müller ä" in sets.find(tmp_path).cases


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    made.pairs(tmp_path, ".png")
    (tmp_path / "images/case_0.png").rename(tmp_path / "images/case_0.bmp")
    with pytest.raises(DataError, match=r"images/case_0\.bmp is of no format that is read here"):
        sets.find(tmp_path)


def test_the_ending_in_dataset_json_says_which_files_count(tmp_path: Path) -> None:
    made.nnunet(tmp_path)
    Image.new("L", (5, 5)).save(tmp_path / "imagesTr/screenshot_0000.png")
    assert list(sets.find(tmp_path).cases) == [f"case_{number}" for number in range(4)]


def test_zero_is_the_background_beside_negative_values(tmp_path: Path) -> None:
    assert from_values([-1, 0, 3], {}, None, tmp_path).values == (0, -1, 3)


def test_splits_of_nnunet_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host.notice_once.cache_clear()
    root, ids = made.nnunet(tmp_path / "set"), [f"case_{number}" for number in range(4)]
    folds = [{"train": ids[:3], "val": ids[3:]}, {"train": ids[1:], "val": ids[:1]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    assert Folder(task_config("folder", data=str(root))).split(ids)["validation"] == ["case_3"]
    assert "fold 0 of splits_final.json" in capsys.readouterr().err
    assert Folder(task_config("folder", data=str(root), fold=1)).split(ids) == {"train": ids[1:], "validation": ids[:1]}
    drawn = Folder(task_config("folder", data=str(root), held_out=2)).split(ids)
    assert len(drawn["validation"]) == 2
    with pytest.raises(DataError, match="has the folds 0 to 1, not 4"):
        Folder(task_config("folder", data=str(root), fold=4)).split(ids)
    (root / "splits_final.json").write_text(json.dumps([{"train": ids[:3], "val": ["case_9"]}]))
    with pytest.raises(DataError, match="names case_9, not in the set"):
        Folder(task_config("folder", data=str(root))).split(ids)


@pytest.mark.usefixtures("here")
def test_the_folds_of_a_set_are_as_many_as_are_trained(cli: Cli, tmp_path: Path) -> None:
    root, ids = made.nnunet(tmp_path / "data/set"), [f"case_{number}" for number in range(4)]
    folds = [{"train": ids[:3], "val": ids[3:]}, {"train": ids[1:], "val": ids[:1]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    words = ["crossval", "--task", "folder", "--data", "set", "--dry-run", "--device", "cpu"]
    for number in (3, 10):
        assert "the set has 2 folds of its own" in error_of(cli(*words, "--folds", str(number)), 2)
    code, out, err = cli(*words)
    assert code == 0, err
    assert "folder-crossval-fold1 would be trained" in out
    assert "fold2" not in out
    drawn = cli(*words, "--folds", "3", "--held-out", "1")
    assert "folds of its own" not in drawn[2]


def test_the_first_cases_of_the_folds_of_a_set(tmp_path: Path) -> None:
    root, ids = made.nnunet(tmp_path / "set"), [f"case_{number}" for number in range(4)]
    folds = [{"train": ids[1:], "val": ids[:1]}, {"train": ids[:3], "val": ids[3:]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    task = Folder(task_config("folder", data=str(root), max_cases=2))
    assert task.split(ids[:2]) == {"train": ids[1:2], "validation": ids[:1]}
    with pytest.raises(DataError, match="fold 1 has no validation case among the first 2 cases of the set"):
        Folder(task_config("folder", data=str(root), max_cases=2, fold=1)).split(ids[:2])


def table(root: Path, head: str, rows: list[str], code: str = "utf-8") -> Path:
    made.pairs(root / "my files", ".npy")
    (root / "set.csv").write_bytes("\r\n".join([head, *rows, ""]).encode(code))
    return root / "set.csv"


PAIRS = [f"my files/images/case_{number}.npy,my files/masks/case_{number}.npy" for number in range(4)]


def test_tables_as_spreadsheets_write_them(tmp_path: Path) -> None:
    rows = [row.replace(",", ";") + f";P{number // 2}" for number, row in enumerate(PAIRS)]
    path = table(tmp_path, "\ufeffimage_path;Mask File;Patient ID", [rows[0], "", *rows[1:], ";;"])
    found = sets.find(path).cases
    assert [case.group for case in found.values()] == ["P0", "P0", "P1", "P1"]
    task = Folder(task_config("folder", data=str(path)))
    assert len(task.split(list(found))["validation"]) == 2
    path = table(tmp_path, "image,mask,patient", [f"{row},P" for row in PAIRS])
    with pytest.raises(DataError, match="The set has 1 patient: nothing is left to validate on"):
        Folder(task_config("folder", data=str(path))).split(list(found))


@pytest.mark.parametrize(
    ("head", "rows", "code", "words"),
    [
        ("image,mask,case", [f"{row},../{n}" for n, row in enumerate(PAIRS)], "utf-8", "cannot be the name of a file"),
        ("image,mask,patient", [f"{row},Müller" for row in PAIRS], "latin-1", "not a text file"),
        ("image,mask", [], "utf-8", "has no rows"),
        ("image,mask", [PAIRS[0], "", "", "nothing.npy,nothing.npy"], "utf-8", "line 5: .*nothing.npy is not there"),
    ],
)
def test_tables_that_are_refused(head: str, rows: list[str], code: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        sets.find(table(tmp_path, head, rows, code))


def test_a_place_in_space_that_is_odd_is_told(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(made.volume(0)[0], made.AFFINE)
    image.set_sform(made.AFFINE, 1)
    moved = made.AFFINE.copy()
    moved[0, 3] = 50
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert (
        "its sform and its qform differ (origin 0 0 0 and 50 0 0 mm)"
        in volumes.read_head(tmp_path / "a.nii.gz").notes[0]
    )
    sheared = made.AFFINE.copy()
    sheared[0, 1] = 0.3
    nibabel.save(nibabel.Nifti1Image(made.volume(0)[0], sheared), tmp_path / "b.nii.gz")
    assert "17 degrees off right angles" in volumes.read_head(tmp_path / "b.nii.gz").notes[0]
    nibabel.save(nibabel.Nifti1Image(made.volume(0)[0], made.AFFINE), tmp_path / "c.nii.gz")
    assert volumes.read_head(tmp_path / "c.nii.gz").notes == []
