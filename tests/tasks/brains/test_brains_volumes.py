"""Which files of a folder are brains, what their cases are called, and which of them train. No file is opened."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import task_config

from unet.errors import DataError
from unet.tasks.brains import volumes
from unet.tasks.brains.settings import Settings
from unet.tasks.registry import create


def make(root: Path, *names: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(root: Path, **settings: Any) -> list[str]:
    return [path.relative_to(root).as_posix() for path in volumes.find(root, Settings(**settings))]


def refused(work: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    message, hint = str(caught.value).splitlines()
    assert message and hint
    return f"{message}\n{hint}"


def test_volumes_are_found_sorted_without_masks_and_hidden_files(tmp_path: Path) -> None:
    root = make(tmp_path, "b.nii", "a.nii.gz", "C.NII.GZ", "a_lesion.nii.gz", ".d.nii", "e.txt", "f/g.nii", ".h/i.nii")
    (root / "folder.nii").mkdir()
    assert names(root) == ["C.NII.GZ", "a.nii.gz", "b.nii"]
    assert names(root, pattern="*.nii") == ["b.nii"]
    assert names(root, pattern="a*") == ["a.nii.gz"]
    assert names(root, recursive=True) == ["C.NII.GZ", "a.nii.gz", "b.nii", "f/g.nii"]
    assert volumes.name_of(root / "f" / "g.nii", root) == "f__g"


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "one/a.nii")
    (root / "two").symlink_to(make(tmp_path / "elsewhere", "b.nii"))
    (root / "one" / "back").symlink_to(root)
    assert names(root, recursive=True) == ["one/a.nii", "two/b.nii"]


def test_nothing_found_says_what_is_there_and_what_to_type(tmp_path: Path) -> None:
    make(tmp_path / "sets")
    found = refused(lambda: names(tmp_path / "set"))
    assert "no such folder (beside it: sets)" in found and "--data" in found
    assert "is a file" in refused(lambda: names(make(tmp_path, "x.nii") / "x.nii"))
    assert "is an empty folder" in refused(lambda: names(make(tmp_path / "empty")))
    assert "(there are: readme.txt)" in refused(lambda: names(make(tmp_path / "other", "readme.txt")))
    packed = make(tmp_path / "packed", *(f"sub-{number:02}.nii.gz" for number in range(12)))
    found = refused(lambda: names(packed, pattern="*.nii"))
    assert "12 files .nii.gz (first: sub-00.nii.gz), and none of them matches --pattern '*.nii'" in found
    assert "Type --pattern '*.nii.gz'" in found
    found = refused(lambda: names(make(tmp_path / "deep", "sub-1/anat/a.nii", "sub-2/anat/b.nii")))
    assert "folders below it hold 2 (sub-1/anat/a.nii ...)" in found and "Type --recursive" in found
    found = refused(lambda: names(make(tmp_path / "masks", "a_lesion.nii.gz")))
    assert "1 file match '*.nii*', all of them masks of lesions (a_lesion.nii.gz)" in found


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    found = refused(lambda: names(make(tmp_path / "a", "x.nii", "x.nii.gz")))
    assert "case x is x.nii too" in found and "--pattern" in found
    assert "case x__y is x/y.nii too" in refused(
        lambda: names(make(tmp_path / "b", "x/y.nii", "x__y.nii"), recursive=True)
    )


def test_masks_of_lesions_lie_beside_their_volumes(tmp_path: Path) -> None:
    root = make(tmp_path, "a.nii", "a_lesion.nii.gz", "b.nii.gz", "b_lesion.nii", "c.nii", "d.nii", "d_lesion.nii")
    assert volumes.lesion_of(root / "a.nii") == root / "a_lesion.nii.gz"
    assert volumes.lesion_of(root / "b.nii.gz") == root / "b_lesion.nii"
    assert volumes.lesion_of(root / "c.nii") is None
    make(root, "d_lesion.nii.gz")
    assert "two masks of lesions" in refused(lambda: volumes.lesion_of(root / "d.nii"))


def test_inputs_are_files_and_folders(tmp_path: Path) -> None:
    root = make(tmp_path / "set", "a.nii", "a_lesion.nii.gz", "b.nii.gz", "sub/c.nii")
    assert volumes.inputs([root], Settings()) == {"a": root / "a.nii", "b": root / "b.nii.gz"}
    assert set(volumes.inputs([root], Settings(recursive=True))) == {"a", "b", "sub__c"}
    one = [root / "a.nii", root / "a_lesion.nii.gz", root / "a.nii"]
    assert volumes.inputs(one, Settings(pattern="b*")) == {"a": root / "a.nii"}
    other = make(tmp_path / "other", "a.nii.gz")
    found = refused(lambda: volumes.inputs([root, other], Settings()))
    assert "is called a too; their outputs would meet" in found and "--output" in found
    assert "no such file" in refused(lambda: volumes.inputs([root / "z.nii"], Settings()))
    (root / "x.txt").touch()
    assert "is no .nii or .nii.gz file" in refused(lambda: volumes.inputs([root / "x.txt"], Settings()))
    assert "mask of a lesion" in refused(lambda: volumes.inputs([root / "a_lesion.nii.gz"], Settings()))
    assert "No volume was given" in refused(lambda: volumes.inputs([], Settings()))
    (root / "gone.nii").symlink_to(root / "none")
    assert "gone.nii" in refused(lambda: volumes.inputs([root / "gone.nii"], Settings()))


def test_the_first_of_the_sorted_ids_train() -> None:
    ids = [f"{number:05}" for number in range(40)]
    found = volumes.split(ids[::-1], 0.95)
    assert found == {"train": ids[:38], "validation": ids[38:]} and json.loads(json.dumps(found)) == found
    for count in range(2, 300):
        parts = volumes.split([f"{number:05}" for number in range(count)], 0.95)
        usual = int(count * 0.95)  # as 3d_very_deep_vae has it
        assert len(parts["train"]) == min(usual, count - 1) and len(parts["validation"]) >= 1
    assert len(volumes.split([f"{number:03}" for number in range(100)], 0.29)["train"]) == 29  # not 28.999...
    assert volumes.split(["b", "a"], 0.01) == {"train": ["a"], "validation": ["b"]}
    assert volumes.split(["b", "a"], 1.0) == {"train": ["a", "b"], "validation": []}
    assert math.floor(19 * 0.95) == 18 == len(volumes.split([f"{n:02}" for n in range(19)], 0.95)["train"])


@pytest.mark.parametrize("how", [{}, *({"fold": number, "folds": 3} for number in range(3))])
def test_the_volumes_of_a_subject_stay_in_one_part(how: dict[str, int]) -> None:
    ids = [f"sub-{number}__ses-{session}__sub-{number}_T1w" for number in (1, 10, 2, 3, 4, 5) for session in (1, 2)]
    found = create(task_config("brains", train_fraction=0.6, **how)).split([*ids, "sub-7_T1w", "other"])
    parts = [{case.split("_")[0] for case in found[part]} for part in ("train", "validation")]
    assert all(parts) and not parts[0] & parts[1]
    assert sum(map(len, found.values())) == len(ids) + 2


def test_subjects_of_one_volume_are_split_as_any_names() -> None:
    ids = [f"sub-{number}_T1w" for number in range(1, 31)]
    ordered = sorted(ids)
    assert volumes.split(ids, 0.5) == {"train": ordered[:15], "validation": ordered[15:]}
    names = [name.replace("sub-", "brain") for name in ordered]
    folds = [create(task_config("brains", fold=1, folds=5)).split(each)["validation"] for each in (ordered, names)]
    assert folds[1] == [name.replace("sub-", "brain") for name in folds[0]]
    assert "2 volumes of sub-1 cannot be split" in refused(lambda: volumes.split(["sub-1_a", "sub-1_b"], 0.95))
    with pytest.raises(DataError, match="sub-1' is in both parts"):
        create(task_config("brains", held_out=1)).split(["sub-1_a", "sub-1_b"])


def test_one_volume_is_no_set_to_split() -> None:
    found = refused(lambda: volumes.split(["only"], 0.95))
    assert "1 volume (only)" in found and "--train-fraction 0.95" in found and "--split none" in found
    assert volumes.split(["only"], 1.0) == {"train": ["only"], "validation": []}
    assert "No volumes" in refused(lambda: volumes.split([], 0.95))
