"""Made sets: whole ones are kept, broken off ones begun again, and what others wrote is never touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tasks.folder import sets as made

from unet.errors import UsageError
from unet.tasks.folder import sets, synthetic

SMALL = {"cases": 2, "slices": 4, "side": 8, "seed": 1}


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["dataset.json", "labelsTr/case_001.nii.gz", "imagesTr/case_000_0001.nii.gz", "imagesTr/liver_0000.nii.gz"]
)
def test_files_of_the_user_are_never_touched(name: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"holds {name}, which was not made here"):
        synthetic.write_set(tmp_path, **SMALL, overwrite=overwrite)
    assert contents(tmp_path) == {name: b"mine"}


def test_a_whole_set_is_kept_and_another_replaces_it_if_asked(tmp_path: Path) -> None:
    synthetic.write_set(tmp_path, **SMALL)
    before = contents(tmp_path)
    assert {*synthetic.files_of(SMALL), "synthetic.json"} == set(before)
    synthetic.write_set(tmp_path, **SMALL)
    assert contents(tmp_path) == before
    fewer = {**SMALL, "cases": 1}
    with pytest.raises(UsageError, match="holds a made set of"):
        synthetic.write_set(tmp_path, **fewer)
    assert contents(tmp_path) == before
    synthetic.write_set(tmp_path, **fewer, overwrite=True)
    assert list(sets.find(tmp_path).cases) == ["case_000"]
    made.write(tmp_path / "labelsTr/liver.nii.gz", made.volume(0)[1])
    with pytest.raises(UsageError, match=r"holds labelsTr/liver\.nii\.gz, which was not made here"):
        synthetic.write_set(tmp_path, **SMALL, overwrite=True)


def test_a_set_that_was_broken_off_is_made_whole(tmp_path: Path) -> None:
    synthetic.write_set(tmp_path, **SMALL)
    before = contents(tmp_path)
    (tmp_path / "synthetic.json").unlink()
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "labelsTr/case_001.nii.gz").unlink()
    (tmp_path / "synthetic.unfinished.json").write_text(json.dumps(SMALL))
    synthetic.write_set(tmp_path, **SMALL)
    assert contents(tmp_path).keys() == before.keys()


def test_a_made_dicom_set_knows_its_files(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    synthetic.write_set(tmp_path, **SMALL, dicom=True)
    assert {*synthetic.files_of({**SMALL, "dicom": True}), "synthetic.json"} == set(contents(tmp_path))
    synthetic.write_set(tmp_path, **SMALL, dicom=True, overwrite=True)
