"""Made brains: what is in them, the layout on disk, completion after a stop, what is left alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from unet.errors import DataError
from unet.files import read_json
from unet.tasks.brains.anatomy import make_brain
from unet.tasks.brains.synthetic import files, has_lesions, write_set

SMALL: dict[str, Any] = {"count": 5, "side": 16, "seed": 3}


@pytest.fixture(scope="module")
def brains() -> list[tuple[Any, Any]]:
    return [make_brain(1, index, 64, ill=index < 3) for index in range(6)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_set(folder, **SMALL)
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy of a made set, to damage."""
    return Path(shutil.copytree(original, tmp_path / "made"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_seed_and_number_determine_a_brain() -> None:
    image, lesion = make_brain(3, 1, 16, ill=True)
    again, lesion_again = make_brain(3, 1, 16, ill=True)
    assert np.array_equal(image, again) and np.array_equal(lesion, lesion_again)
    for other in (make_brain(4, 1, 16)[0], make_brain(3, 2, 16)[0]):
        assert not np.array_equal(other, image)


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_a_brain_is_one_piece_on_an_empty_ground(side: int) -> None:
    image, lesion = make_brain(7, 0, side)
    assert image.shape == lesion.shape == (side,) * 3 and image.dtype == np.int16 and lesion.dtype == np.uint8
    inside = image > 0
    assert image.min() == 0 and not lesion.any() and 0.1 < inside.mean() < 0.25
    parts, _ = ndimage.label(inside)
    assert np.bincount(parts.ravel())[1:].max() > 0.99 * inside.sum()
    for axis in range(3 if side > 8 else 0):  # nothing is cut off
        assert not inside.take((0, -1), axis).any()
    assert inside.any((1, 2)).sum() <= inside.any((0, 2)).sum()  # longer than wide


def test_grey_matter_around_white_matter_around_ventricles(brains: list[tuple[Any, Any]]) -> None:
    for image, _ in brains[3:]:
        inside = image > 0
        top = np.percentile(image[inside], 95)
        depth = ndimage.distance_transform_edt(inside)
        rim, deep = np.median(image[(depth > 1) & (depth <= 2)]), np.median(image[depth > 8])
        assert rim < 0.8 * top and deep > 0.9 * top
        middle = image[26:38, 26:38, 33:42]  # lateral ventricles: dark on both sides of the middle
        dark = middle < 0.5 * top
        assert dark[:6].any() and dark[6:].any()


def test_the_surface_is_folded(brains: list[tuple[Any, Any]]) -> None:
    """Below the surface, fluid, grey and white matter change places: an ellipsoid's shell would be even."""
    for image, _ in brains[3:]:
        depth = ndimage.distance_transform_edt(image > 0)
        shell = image[(depth > 1.5) & (depth < 3)] / np.percentile(image[image > 0], 95)
        assert np.std(shell) > 0.15 and (shell < 0.55).mean() > 0.1 and (shell > 0.8).mean() > 0.1


def test_brains_differ_yet_share_a_frame(brains: list[tuple[Any, Any]]) -> None:
    scaled = np.stack([image / np.percentile(image[image > 0], 95) for image, _ in brains])
    mean, inside = scaled.mean(0), (scaled > 0).all(0)
    assert inside.sum() > 0.6 * (scaled[0] > 0).sum()
    total, own = scaled[:, inside].var(), (scaled - mean)[:, inside].var()
    assert 0.2 < own / total < 0.95
    sizes = [(image > 0).sum() for image, _ in brains]
    assert max(sizes) > 1.03 * min(sizes)


def test_lesions_are_bright_or_dark_and_where_the_mask_says(brains: list[tuple[Any, Any]]) -> None:
    for number, (image, lesion) in enumerate(brains[:3]):
        healthy = make_brain(1, number, 64)[0]
        assert set(np.unique(lesion)) == {0, 1} and not lesion[image == 0].any()
        assert 1 <= ndimage.label(lesion, np.ones((3, 3, 3)))[1] <= 6
        scale = np.percentile(healthy[healthy > 0], 95)
        change = np.abs(image / np.percentile(image[image > 0], 95) - healthy / scale)
        assert change[lesion > 0].mean() > 2 * change[(lesion == 0) & (image > 0)].mean()


def test_a_fourth_has_lesions() -> None:
    for seed in (0, 5):
        ill = [has_lesions(seed, index) for index in range(400)]
        assert sum(ill) == 100 and all(sum(ill[first : first + 4]) == 1 for first in range(0, 400, 4))
        assert len({index % 4 for index, item in enumerate(ill) if item}) == 4


def test_the_layout_is_that_of_a_raw_set(original: Path) -> None:
    names = {name for index in range(5) for name in files(3, index)}
    assert set(contents(original)) == {*names, "phantom.json"}
    assert {f"brain_{index:04d}.nii.gz" for index in range(5)} <= names
    assert read_json(original / "phantom.json") == {"seed": 3, "brains": 5, "side": 16, "version": 1}
    for index in range(5):
        image, lesion = make_brain(3, index, 16, has_lesions(3, index))
        stored: Any = nibabel.load(original / f"brain_{index:04d}.nii.gz")
        assert stored.get_data_dtype() == np.int16 and np.array_equal(np.asarray(stored.dataobj), image)
        assert nibabel.aff2axcodes(stored.affine) == ("R", "A", "S")
        assert np.allclose(stored.header.get_zooms(), 13) and stored.header.get_xyzt_units()[0] == "mm"
        assert np.allclose(stored.affine @ [7.5, 7.5, 7.5, 1], [0, 0, 0, 1])
        if has_lesions(3, index):
            mask: Any = nibabel.load(original / f"brain_{index:04d}_lesion.nii.gz")
            assert mask.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(mask.dataobj), lesion)
            assert np.array_equal(mask.affine, stored.affine)


def test_more_brains_leave_the_first_as_they_are(original: Path, made: Path) -> None:
    write_set(made, 7, 16, 3, overwrite=True)
    found, before = contents(made), contents(original)
    assert all(found[name] == data for name, data in before.items() if name != "phantom.json")
    assert {"brain_0005.nii.gz", "brain_0006.nii.gz"} <= set(found)
    write_set(made, 2, 16, 3, overwrite=True)
    assert {name for name in contents(made) if "lesion" not in name} == {
        "brain_0000.nii.gz",
        "brain_0001.nii.gz",
        "phantom.json",
    }


def test_a_whole_set_is_left_alone_and_a_stopped_one_completed(original: Path, made: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    write_set(made, **SMALL)
    assert times == {path: path.stat().st_mtime_ns for path in made.iterdir()}
    (made / "phantom.json").rename(made / "phantom.unfinished.json")
    (made / "brain_0002.nii.gz").unlink()
    next(made.glob("*_lesion.nii.gz")).unlink()
    write_set(made, **SMALL)
    assert contents(made) == contents(original)


def test_other_files_are_never_touched(made: Path, tmp_path: Path) -> None:
    (made / "mine.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="made brains of") as error:
        write_set(made, 5, 8, 3)
    assert "--overwrite" in error.value.hint
    write_set(made, 5, 8, 3, overwrite=True)
    assert (made / "mine.nii.gz").read_bytes() == b"x"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "brain_0001.nii.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"brain_0001\.nii\.gz, which was not made here"):
        write_set(foreign, **SMALL, overwrite=True)
    assert contents(foreign) == {"brain_0001.nii.gz": b"x"}
    (foreign / "brain_0001.nii.gz").rename(foreign / "patient.nii")
    with pytest.raises(DataError, match="1 volumes of no made set"):
        write_set(foreign, **SMALL)


@pytest.mark.parametrize(("count", "side"), [(0, 16), (2, 4), (2, 512), (10**6, 16)])
def test_what_cannot_be_made_is_refused(tmp_path: Path, count: int, side: int) -> None:
    with pytest.raises(DataError, match="a set has 1 to 100,000 of 8 to 256"):
        write_set(tmp_path, count, side, 0)
    assert not list(tmp_path.iterdir())
