"""Which files are the images and the mask of a case, in every layout; what is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from builders import task_config
from PIL import Image
from tasks.folder import sets as made

from unet import files
from unet.config.flags_training import PredictOptions
from unet.errors import DataError, UnetError
from unet.tasks.folder import dataset, scoring, sets
from unet.tasks.folder.labels import IGNORED, from_values, read_names
from unet.tasks.folder.settings import Settings
from unet.tasks.folder.task import Folder

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase


def test_the_layout_of_nnunet(tmp_path: Path) -> None:
    found = sets.find(made.nnunet(tmp_path, cases=2, channels=2, classes=3))
    assert {name: [path.name for path in case.images] for name, case in found.cases.items()} == {
        "case_0": ["case_0_0000.nii.gz", "case_0_0001.nii.gz"],
        "case_1": ["case_1_0000.nii.gz", "case_1_0001.nii.gz"],
    }
    assert found.names.channels == ("T1", "T2")
    assert found.names.classes == {"background": 0, "organ 1": 1, "organ 2": 2}


def test_the_first_version_of_dataset_json_and_its_ignore_label(tmp_path: Path) -> None:
    content = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "ignore"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    names = read_names(tmp_path / "dataset.json")
    assert (names.channels, names.classes, names.ignore) == (("CT",), {"background": 0, "liver": 1}, 2)


def test_pairs_of_the_same_name_whatever_their_folders_are_called(tmp_path: Path) -> None:
    made.pairs(tmp_path, ".png", cases=2)
    (tmp_path / "masks").rename(tmp_path / "Labels")
    assert sorted(sets.find(tmp_path).cases) == ["case_0", "case_1"]


@pytest.mark.parametrize(("delimiter", "end"), [(",", "\n"), (";", "\n"), (",", "\r\n"), (";", "\r")])
def test_a_table_with_patients(delimiter: str, end: str, tmp_path: Path) -> None:
    made.pairs(tmp_path / "files", ".nii.gz", cases=3)
    rows = [("image", "mask", "patient")]
    rows += [(f"files/images/case_{n}.nii.gz", f"files/masks/case_{n}.nii.gz", f"P{n // 2}") for n in range(3)]
    (tmp_path / "set.csv").write_bytes(("\ufeff" + end.join(delimiter.join(row) for row in rows)).encode())
    found = sets.find(tmp_path / "set.csv")
    assert {name: case.group for name, case in found.cases.items()} == {"case_0": "P0", "case_1": "P0", "case_2": "P1"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "masks/case_1.png").unlink(), "images/case_1.png: no mask of the name case_1"),
        (lambda root: (root / "images/case_1.png").unlink(), "masks/case_1.png: no image of the name case_1"),
        (lambda root: (root / "masks").rename(root / "answers"), "images and masks are not told apart"),
        (lambda root: [path.unlink() for path in root.glob("*/*")], "holds no image of a known format"),
        (
            lambda root: made.write(root / "masks/case_1.npy", np.zeros((4, 4, 1))),
            r"case_1: 2 masks \(case_1.npy, case_1.png\)",
        ),
    ],
)
def test_what_is_missing_is_named(change: object, words: str, tmp_path: Path) -> None:
    change(made.pairs(tmp_path, ".png", cases=3))  # type: ignore[operator]
    with pytest.raises(DataError, match=words):
        sets.find(tmp_path)


def test_channels_that_are_not_numbered_from_0(tmp_path: Path) -> None:
    made.nnunet(tmp_path, cases=2, channels=3)
    (tmp_path / "imagesTr/case_0_0001.nii.gz").unlink()
    with pytest.raises(
        DataError, match=r"case_0: its files are not the channels 0 to 1: case_0_0000.nii.gz, case_0_0002"
    ):
        sets.find(tmp_path)


def test_labels_that_are_regions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2]}}))
    with pytest.raises(DataError, match=r"the label 'whole' is a region, \[1, 2\]"):
        read_names(tmp_path / "dataset.json")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 0, "a": 1, "b": 1}, "the classes 'a' and 'b' have one value, 1"),
        ({"0": "background", "1": "lesion", "2": "lesion"}, "the class 'lesion' has two values, 1 and 2"),
        ({"background": 0, "a": 1, "ignore": 1}, "the classes 'a' and 'ignore' have one value, 1"),
        ({"lesion": 1, "organ": 2}, r"no class is named background or has the value 0 \(lesion 1, organ 2\)"),
        ({"background": 0, "a": 1.5}, "1.5 is no whole number"),
        ({"background": False, "a": True}, "True is no whole number|False is no whole number"),
    ],
)
def test_labels_of_dataset_json_that_contradict_each_other(labels: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DataError, match=words):
        read_names(tmp_path / "dataset.json")


def test_classes_that_are_typed_have_names_of_their_own() -> None:
    wrong = Settings(classes=("background", "a", "a"), label_values=(0, 1, 2)).check_values()
    assert wrong == ["--classes background a a names one class twice"]


@pytest.mark.parametrize("background", ["background", "Background", "rest"])
def test_the_background_comes_first_beside_negative_values(background: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"b": 2, "x": -1, background: 0, "ignore": 3}}))
    names = read_names(tmp_path / "dataset.json")
    assert list(names.classes.items()) == [(background, 0), ("x", -1), ("b", 2)]
    assert names.aside == (0, 3)
    assert from_values([-1, 0, 2, 3], names.classes, names.ignore, tmp_path).classes_of(
        np.array([-1, 0, 2, 3]), tmp_path
    ).tolist() == [1, 0, 2, IGNORED]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has the columns a, b; image and mask are needed"),
        ("image,mask\n", "image and mask are needed|has no rows"),
        ("image,mask\nx.png,y.png\n", "line 2: .*x.png is not there"),
        ("image,mask\n,y.png\n", "line 2: an image is empty"),
        (f"image,mask\n{'x' * 200_000},y.png\n", "line 1: field larger than field limit"),
    ],
)
def test_a_table_with_faults(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        sets.find(tmp_path / "set.csv")


def test_inputs_of_a_prediction(tmp_path: Path) -> None:
    made.nnunet(tmp_path, cases=2, channels=2)
    first = tmp_path / "imagesTr/case_1_0000.nii.gz"
    both = first, first.with_name("case_1_0001.nii.gz")
    assert sets.inputs([both[1]], 2) == {"case_1": both}
    assert list(sets.inputs([tmp_path], 2)) == ["case_0", "case_1"]
    both[1].unlink()
    assert sets.inputs([tmp_path], 2)["case_1"] == both  # told when its turn comes; the others are predicted
    with pytest.raises(DataError, match=r"case_1: its channel case_1_0001\.nii\.gz is not there"):
        dataset.one_grid("case_1", both)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/none: no such file or folder")):
        sets.inputs([tmp_path / "none"], 1)


@pytest.mark.parametrize(("colours", "start"), [(1, 0), (1, 1), (3, 0), (3, 1)])
def test_numbered_frames_are_cases(colours: int, start: int, tmp_path: Path) -> None:
    """frame_0000.png with a mask of the same name is no channel, as nnU-Net's CASE_0000 with a mask CASE is."""
    names = [f"frame_{number:04}" for number in range(start, start + 3)]
    for name in names:
        for folder, mode in (("images", "L" if colours == 1 else "RGB"), ("masks", "L")):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new(mode, (8, 8)).save(tmp_path / folder / f"{name}.png")
    assert list(sets.find(tmp_path).cases) == names
    assert list(sets.inputs([tmp_path], colours)) == names
    assert list(sets.inputs([tmp_path / "images" / f"{names[0]}.png"], colours)) == names[:1]
    table = tmp_path / "set.csv"
    table.write_text("image,mask\n" + "".join(f"images/{name}.png,masks/{name}.png\n" for name in names))
    assert list(sets.find(table).cases) == names


@pytest.mark.parametrize("colours", [1, 3])
def test_one_name_from_image_to_mask_to_score(colours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """a_0000.png, b_0000.png: whether _0000 is a channel is said by the masks. Where there are none it is, as in
    nnU-Net's folders, and a score goes by the mask."""
    names = ["a_0000", "b_0000"]
    for folder, mode in (("images", "L" if colours == 1 else "RGB"), ("masks", "L")):
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new(mode, (8, 8)).save(tmp_path / folder / f"{name}.png")
    assert list(sets.find(tmp_path).cases) == names
    assert list(sets.inputs([tmp_path], colours)) == list(sets.inputs([tmp_path / "images"], colours)) == names
    monkeypatch.chdir(tmp_path / "images")
    assert list(sets.inputs([Path("b_0000.png")], colours)) == names[1:]
    shutil.copytree(tmp_path / "images", tmp_path / "new")
    assert list(sets.inputs([tmp_path / "new"], colours)) == ["a", "b"]
    (tmp_path / "found").mkdir()
    for name in ("a", "b"):
        shutil.copy(tmp_path / f"masks/{name}_0000.png", tmp_path / f"found/{name}.png")
    found = scoring.pairs(tmp_path / "found", tmp_path / "masks")
    assert [(pair.name, pair.prediction.name) for pair in found] == [("a_0000", "a.png"), ("b_0000", "b.png")]
    shutil.copy(tmp_path / "masks/a_0000.png", tmp_path / "masks/a.png")  # whose prediction a.png is
    with pytest.raises(DataError, match="a_0000: no prediction of this name"):
        scoring.pairs(tmp_path / "found", tmp_path / "masks")
    for folder in ("images", "masks"):
        (tmp_path / folder).rename(tmp_path / {"images": "imagesTr", "masks": "labelsTr"}[folder])
    for name in names:
        (tmp_path / f"labelsTr/{name}.png").rename(tmp_path / f"labelsTr/{name[0]}.png")
    assert list(sets.inputs([tmp_path], colours)) == ["a", "b"]  # nnU-Net's


def test_colours_in_the_layout_of_nnunet_are_found_without_a_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / "imagesTs").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"imagesTs/case_{number}_0000.png")
    listed, calls = sets.listed, []
    monkeypatch.setattr(sets, "listed", lambda folder: calls.append(folder) or listed(folder))
    assert list(sets.inputs([tmp_path], 3)) == ["case_0", "case_1", "case_2"]
    assert len(calls) == 1


def test_channels_in_files_of_several_formats(tmp_path: Path) -> None:
    image, _ = made.volume(0)
    first = made.write(tmp_path / "case_0000.nii.gz", image)
    second = made.write(tmp_path / "case_0001.nrrd", image)
    assert sets.inputs([tmp_path], 2) == {"case": (first, second)}


def test_a_table_is_predicted_as_it_is_trained(tmp_path: Path) -> None:
    image, _ = made.volume(0)
    pair = made.write(tmp_path / "sub-1_flair.nii.gz", image), made.write(tmp_path / "sub-1_t1.nii.gz", image)
    (tmp_path / "new.csv").write_text("case,image_1,image_2\nsub-1,sub-1_flair.nii.gz,sub-1_t1.nii.gz\n")
    assert sets.inputs([tmp_path / "new.csv"], 2) == {"sub-1": pair}


def test_columns_of_a_table_are_whole_words(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    table = tmp_path / "set.csv"
    table.write_text("ImagePath,label,mask,pathology\na.png,3,b.png,benign\n")
    found = sets.find(table).cases["a"]
    assert found.images == (tmp_path / "a.png",)
    assert found.mask == tmp_path / "b.png"
    columns = ["image_1", "img2", "channel 0", "t1_path", "filepath", "Images", "modality_0"]
    assert all(sets.IMAGE_COLUMN.search(sets.plain(name)) for name in columns)
    assert not any(sets.IMAGE_COLUMN.search(sets.plain(name)) for name in ("filename", "pathology", "imaging", "Age"))


@pytest.mark.parametrize("name", ["a\tb", "x" * 230])
def test_names_that_no_file_of_a_cache_can_have(name: str, tmp_path: Path) -> None:
    made.pairs(tmp_path, ".png", cases=1)
    for folder in ("images", "masks"):
        (tmp_path / folder / "case_0.png").rename(tmp_path / folder / f"{name}.png")
    with pytest.raises(DataError, match="its name cannot be that of a case"):
        sets.find(tmp_path)


def test_names_with_wide_spaces(tmp_path: Path) -> None:
    """An ideographic space is a letter of Japanese names."""
    assert files.path_inside(tmp_path, "case\u30001_image.npy").name == "case\u30001_image.npy"
    with pytest.raises(UnetError):
        files.path_inside(tmp_path, "case\n1")


def test_names_with_spaces_and_umlauts(tmp_path: Path) -> None:
    made.pairs(tmp_path, ".png", cases=1)
    for folder in ("images", "masks"):
        (tmp_path / folder / "case_0.png").rename(tmp_path / folder / "Frau Müller 1.png")
    assert list(sets.find(tmp_path).cases) == ["Frau Müller 1"]


def test_folders_are_listed_once_however_many_cases_they_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made.nnunet(tmp_path / "set", cases=5, channels=2)
    own: dict[str, Any] = {
        "channels": ("a", "b"),
        "classes": ("background", "organ 1"),
        "label_values": (0, 1),
        "patch": (8, 8, 8),
    }
    task = Folder(task_config("folder", data=str(root), spacing=(2.0, 1.0, 1.0), **own))
    cases, listed = task.find_cases(), sets.listed
    calls: list[Path] = []

    def counted(folder: Path) -> list[Path]:
        calls.append(folder)
        return listed(folder)

    monkeypatch.setattr(sets, "listed", counted)
    for case in cases:
        facts = dataset.prepare(case, task.settings)
        assert task.truth(cast("CachedCase", SimpleNamespace(id=case.id, facts=facts))) is not None
    assert calls == []
    found = task.find_inputs([root])
    assert all(len(task.source_files(images[0], PredictOptions())) == 2 for images in found.values())
    assert len(calls) == 1


def test_the_masks_of_a_set_are_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 images of one channel cost 20,000 listings before."""
    root = made.nnunet(tmp_path, channels=1, cases=9)
    listed: list[Path] = []
    whole = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or whole(path))
    images = sorted((root / "imagesTr").glob("*_0000.nii.gz"))
    assert list(sets.inputs(images, 1)) == [f"case_{number}" for number in range(9)]
    assert listed.count(root) <= 1
    assert listed.count(root / "labelsTr") <= 1
