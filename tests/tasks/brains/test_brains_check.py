"""`check` of a folder of brains, and of their cache, names every fault."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import read_json

from unet.data.cache import cache
from unet.data.checks import Report
from unet.tasks.brains import check, dataset
from unet.tasks.brains.settings import Settings

SHAPE = (32, 36, 30)
LAS = np.diag([-4.0, 4.0, 4.0, 1.0])
SMALL = Settings(resolution=8)

pytestmark = pytest.mark.usefixtures("here")


def brain(seed: int) -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.6
    return np.where(inside, np.random.default_rng(seed).normal(600, 50, SHAPE), 0).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: Any = LAS) -> None:
    nib.Nifti1Image(array, affine).to_filename(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("brains")
    for number in range(5):
        save(folder / f"sub-{number}.nii.gz", brain(number))
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy of a made set, to damage."""
    return Path(shutil.copytree(original, tmp_path / "set"))


def named(items: list[str], *words: str) -> bool:
    """Whether one of the items holds all of the words."""
    return any(all(word in item for word in words) for item in items)


def test_a_set_without_faults(made: Path) -> None:
    report = check.raw(made, SMALL)
    assert not report.errors and not report.warnings
    assert (
        report.facts["volumes"] == 5 and report.facts["orientation"] == "LAS 5" and report.facts["types"] == "int16 5"
    )
    assert report.facts["shape"] == "32 x 36 x 30" and report.facts["spacing"] == "4 x 4 x 4 mm"
    assert "5" in report.text("raw set") and "0 errors, 0 warnings" in report.text("raw set")


def put(array: np.ndarray, value: Any, affine: Any = LAS) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save(path, np.full_like(array, value) if value is not None else array, affine)

    return write


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


ERRORS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "zeros": (put(brain(1), 0), "are 0: there is no brain"),
    "NaN": (put(brain(1).astype(np.float32), np.nan), "voxels are NaN"),
    "cut": (cut, "cut short or damaged"),
    "4-D": (put(np.stack([brain(1), brain(2)], -1), None), "holds 2 volumes (32 x 36 x 30 x 2)"),
    "slice": (put(brain(1)[..., 0], None), "is 32 x 36; one volume"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_file_that_cannot_be_used_is_an_error(name: str, made: Path) -> None:
    damage, words = ERRORS[name]
    damage(made / "sub-1.nii.gz")
    report = check.raw(made, SMALL)
    assert len(report.errors) == 1 and named(report.errors, "sub-1.nii.gz", words), report.errors
    assert name != "4-D" or named(report.errors, "--volume N")


def test_odd_files_are_warnings(made: Path) -> None:
    save(made / "sub-1.nii.gz", (brain(1) > 0).astype(np.uint8))
    turned = nib.as_closest_canonical(nib.Nifti1Image(brain(2), LAS))
    save(made / "sub-2.nii.gz", np.asarray(turned.dataobj), turned.affine)
    save(made / "sub-3.nii.gz", brain(3)[:, :, :10], np.diag([-4.0, 4.0, 12.0, 1]))
    grey = brain(4).astype(np.float32)
    grey[grey == 0] = np.nan
    save(made / "sub-4.nii.gz", grey)
    save(made / "sub-0_lesion.nii.gz", np.zeros(SHAPE, np.uint8))
    save(made / "sub-9_lesion.nii.gz", np.zeros(SHAPE, np.uint8))
    report = check.raw(made, SMALL)
    assert not report.errors, report.errors
    assert named(report.warnings, "sub-1.nii.gz", "holds 0 and 1 and nothing between: a mask?")
    assert named(report.warnings, "orientations differ (LAS 4, RAS 1): sub-2")
    assert named(report.warnings, "spacings differ: 1 of 5 volumes are not of 4 x 4 x 4 mm (sub-3)")
    assert named(report.warnings, "sub-3.nii.gz", "32 x 36 x 10 voxels: few along an axis")
    assert named(report.warnings, "sub-4.nii.gz", "voxels are NaN; they are taken as background (0)")
    assert named(report.warnings, "sub-0_lesion.nii.gz: holds no lesion")
    assert named(report.warnings, "1 masks of lesions have no volume beside them: sub-9_lesion.nii.gz")
    assert report.facts["with NaN"] == 1 and report.facts["with a lesion mask"] == 1


def test_equal_volumes_are_leakage_where_one_validates(made: Path) -> None:
    save(made / "sub-1.nii", brain(0).astype(np.float32))  # in another type, not packed
    (made / "sub-1.nii.gz").unlink()
    assert check.raw(made, SMALL).warnings == ["duplicate: sub-0 and sub-1 hold the same volume"]
    save(made / "sub-4.nii.gz", brain(0))  # the last of the sorted ones validates
    errors = check.raw(made, SMALL).errors
    assert errors == ["leakage: sub-0 and sub-4 hold the same volume; one trains, the other validates"]
    report = check.raw(made, SMALL, lambda ids: {"train": ids, "validation": []})
    assert not report.errors and len(report.warnings) == 2


def test_a_set_that_is_none(made: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert named(check.raw(tmp_path / "empty", SMALL).errors, "is an empty folder")
    for path in sorted(made.iterdir())[1:]:
        path.unlink()
    assert named(check.raw(made, SMALL).errors, "1 volume (sub-0) cannot be split", "--split none")


@pytest.mark.real
def test_real_sets(real_data: Path) -> None:
    report = check.raw(real_data / "brains" / "flair", Settings(resolution=32))
    assert not report.errors and named(report.warnings, "orientations differ (LAS 3, RAS 1): niivue_FLAIR")
    assert named(report.warnings, "spacings differ", "TCGA-FG-6692_FLAIR")


# A cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    save(made / "sub-1_lesion.nii.gz", (brain(1) > 300).astype(np.uint8))
    wanted = cache.make_manifest(dataset.LAYOUT, dataset.cache_settings(SMALL))
    work = functools.partial(dataset.prepare, settings=SMALL)
    cache.build(tmp_path / "cache", dataset.LAYOUT, dataset.index(made, SMALL), work, wanted)
    return tmp_path / "cache"


def changed(folder: Path, name: str, edit: Callable[[np.ndarray], Any]) -> Report:
    """The report of a cache, one of whose arrays was changed by a program that took the manifest away."""
    array = np.load(folder / name)
    edit(array)
    np.save(folder / name, array)
    (folder / cache.MANIFEST).unlink(missing_ok=True)
    return check.cached(folder, SMALL)


def test_a_cache_without_faults(folder: Path) -> None:
    report = check.cached(folder, SMALL)
    assert not report.errors and not report.warnings
    assert report.facts["cases"] == 5 and report.facts["cube"] == "8 x 8 x 8" and report.facts["with lesions"] == 1
    assert report.facts["manifest"] == read_json(folder / cache.MANIFEST)["fingerprint"]
    assert not check.cached(folder, Settings(resolution=32)).errors  # by its own settings


def test_faults_of_a_cache(folder: Path) -> None:
    path = folder / "sub-2_volume.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert named(check.cached(folder, SMALL).errors, "sub-2")

    def high(array: np.ndarray) -> None:
        array[0, 1, 1, 1] = 1.5

    def infinite(array: np.ndarray) -> None:
        array[0, 1, 1, 1] = np.nan

    for edit in (high, infinite):
        report = changed(folder, "sub-2_volume.npy", edit)
        assert named(report.errors, "sub-2_volume.npy", "not within -1 to 1") and named(report.warnings, "no manifest")
    shutil.copy(folder / "sub-0_volume.npy", folder / "sub-3_volume.npy")
    assert named(check.cached(folder, SMALL).warnings, "duplicate: sub-0 and sub-3")
    assert named(check.cached(folder, Settings(resolution=32)).errors, "Type --resolution 8")
    (folder / "sub-1_mask.npy").unlink()
    assert named(check.cached(folder, SMALL).errors, "sub-1_volume.npy", "has no sub-1_mask.npy")
