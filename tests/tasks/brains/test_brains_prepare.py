"""Cases, their arrays for the cache, and bad input: each is refused in two lines, or taken with a remark."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from unet.data.cache import cache
from unet.errors import CacheError, DataError, UnetError
from unet.tasks.brains import dataset
from unet.tasks.brains.settings import Settings

LAS = np.diag([-2.0, 2.0, 2.0, 1.0])
SHAPE = (24, 28, 20)
SMALL = Settings(resolution=8)


def brain(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """An ellipsoid of noise about 600 in a background of 0."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.6
    return np.where(inside, np.random.default_rng(seed).normal(600, 50, shape), 0).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: Any = LAS, edit: Callable[[Any], None] | None = None) -> Path:
    """Write a volume; `edit` changes the header as it goes to the disk, past nibabel's checks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name("plain.tmp.nii")
    nib.Nifti1Image(array, affine).to_filename(plain)
    content = bytearray(plain.read_bytes())
    plain.unlink()
    if edit:
        head = nib.Nifti1Header(bytes(content[:348]), check=False)
        edit(head)
        content[:348] = head.binaryblock
    path.write_bytes(gzip.compress(bytes(content), 1) if path.suffix == ".gz" else content)
    return path


def fields(**changed: Any) -> Callable[[Any], None]:
    def edit(head: Any) -> None:
        for name, value in changed.items():
            head[name] = value

    return edit


def make_set(root: Path, count: int = 3) -> Path:
    for number in range(count):
        save(root / f"sub-{number}.nii.gz", brain(number))
    return root


def prepared(path: Path, settings: Settings = SMALL) -> dict[str, Any]:
    """The arrays of a set's only case."""
    (case,) = dataset.index(path.parent, settings)
    return dataset.prepare(case, settings)


def refused(work: Callable[[], Any], error: type[UnetError] = DataError) -> str:
    with pytest.raises(error) as caught:
        work()
    message, hint = str(caught.value).splitlines()
    assert message and hint
    return f"{message}\n{hint}"


# What is taken -----------------------------------------------------------------------------------------------------


def test_a_case_becomes_a_cube_and_a_mask_of_brain(tmp_path: Path) -> None:
    made = prepared(save(tmp_path / "a.nii.gz", brain()))
    image, mask = made["image"], made["mask"]
    assert image.shape == mask.shape == (1, 8, 8, 8) and image.dtype == np.float32 and mask.dtype == np.uint8
    assert np.array_equal(mask == 1, image > -0.9) and 0.1 < mask.mean() < 0.5 and image[0, 0, 0, 0] == -1
    assert made["foreground"] == [int((mask == 1).sum()), 0] and made["remarks"] == []
    sigmoid = prepared(tmp_path / "a.nii.gz", Settings(resolution=8, output_activation="sigmoid"))
    assert np.allclose(sigmoid["image"], (image + 1) / 2, atol=1e-6) and np.array_equal(sigmoid["mask"], mask)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_types_and_byte_orders(kind: Any, tmp_path: Path) -> None:
    """The same whole numbers in each type are the same cube, to the bit."""
    array = (brain() / 4).astype(np.uint8)
    wanted = prepared(save(tmp_path / "a" / "x.nii.gz", array))["image"]
    path = tmp_path / "b" / "x.nii"
    path.parent.mkdir()
    image = nib.Nifti1Image(
        array.astype(kind), LAS, nib.Nifti1Header(endianness=np.dtype(kind).str[0].replace("|", "<"))
    )
    image.set_data_dtype(kind)
    image.to_filename(path)
    assert np.array_equal(prepared(path)["image"], wanted)


def test_a_cache_of_a_set(tmp_path: Path, here: None) -> None:
    root, folder = make_set(tmp_path / "set"), tmp_path / "cache"
    save(root / "sub-1_lesion.nii.gz", (brain(1) > 640).astype(np.uint8))
    wanted = cache.make_manifest(dataset.LAYOUT, dataset.cache_settings(SMALL))
    cases = dataset.index(root, SMALL)
    assert [case.id for case in cases] == ["sub-0", "sub-1", "sub-2"] and all(case.memory > 1e8 for case in cases)
    assert [len(case.labels) for case in cases] == [0, 1, 0]
    counts = cache.build(folder, dataset.LAYOUT, cases, functools.partial(dataset.prepare, settings=SMALL), wanted)
    assert counts == {"made": 3, "kept": 0, "removed": 0}
    for case, raw in zip(cache.open_cache(folder, dataset.LAYOUT, wanted), cases, strict=True):
        image, mask = case.arrays()
        made = dataset.prepare(raw, SMALL)
        assert np.array_equal(image, made["image"]) and np.array_equal(mask, made["mask"])
        assert list(case.foreground) == made["foreground"] and case.cost == 1
        assert dataset.Grid.of(case.facts["geometry"]) == made["geometry"]
    other = Settings(resolution=16)
    message = refused(
        lambda: cache.open_cache(
            folder, dataset.LAYOUT, cache.make_manifest(dataset.LAYOUT, dataset.cache_settings(other))
        ),
        CacheError,
    )
    assert "resolution 8 (asked: 16)" in message


def test_a_cache_of_another_program(tmp_path: Path) -> None:
    image, mask = np.zeros((1, 8, 8, 8), np.float32), np.ones((1, 8, 8, 8), np.uint8)
    for case in ("a", "a_mask", "b_volume"):  # names that the suffixes could be taken for
        for path, array in zip(dataset.LAYOUT.paths(tmp_path, case), (image, mask), strict=True):
            np.save(path, array)
    wanted = cache.make_manifest(dataset.LAYOUT, dataset.cache_settings(SMALL))
    found = cache.open_cache(tmp_path, dataset.LAYOUT, wanted)
    assert [case.id for case in found] == ["a", "a_mask", "b_volume"] and found[0].foreground == (512, 0)
    other = cache.make_manifest(dataset.LAYOUT, dataset.cache_settings(Settings(resolution=16)))
    assert "Type --resolution 8" in refused(lambda: cache.open_cache(tmp_path, dataset.LAYOUT, other), CacheError)
    np.save(tmp_path / "a_mask.npy", 3 * mask)
    assert "holds values [3]" in refused(lambda: cache.open_cache(tmp_path, dataset.LAYOUT, wanted), CacheError)


# NaN ---------------------------------------------------------------------------------------------------------------


def test_nan_outside_of_the_brain_is_background_with_one_remark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stripped brain is the same cube with NaN around it as with 0."""
    array = brain(shape=(48, 56, 40))
    wanted = prepared(save(tmp_path / "a" / "x.nii.gz", array))
    array[array == 0] = np.nan
    path = save(tmp_path / "b" / "x.nii.gz", array)
    made = prepared(path)
    assert np.array_equal(made["image"], wanted["image"]) and made["geometry"] == wanted["geometry"]
    count = int(np.isnan(array).sum())
    assert made["remarks"] == [["voxels", f"{path}: {count} voxels are NaN; they are taken as background (0)"]]
    capsys.readouterr()
    image, _ = dataset.prepare_image(path, SMALL)
    assert np.array_equal(image, wanted["image"]) and capsys.readouterr().err.count("NaN") == 1


def test_background_of_negative_values_is_below_the_brain(tmp_path: Path) -> None:
    """z-scores: 0 would be grey, and brain. One odd voxel far below does not move the background."""
    array = (brain(shape=(48, 48, 48)) - 600) / 50
    array[array < -10] = np.nan
    for odd in (None, -500.0):
        if odd is not None:
            array[20, 20, 20] = odd
        made = prepared(save(tmp_path / f"{odd}" / "x.nii.gz", array), Settings(resolution=16))
        background = float(made["remarks"][0][1].rpartition("(")[2].rstrip(")"))
        assert -4 < background < -2.5 and made["image"][0, 0, 0, 0] == -1
        assert 0.1 < made["mask"].mean() < 0.5 and made["geometry"].low == pytest.approx(background, abs=1e-4)


# Orientation ---------------------------------------------------------------------------------------------------------


def test_a_file_without_orientation_is_taken_as_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = prepared(save(tmp_path / "a" / "x.nii.gz", brain(), np.diag([2.0, 2.0, 2.0, 1.0])))
    capsys.readouterr()
    none = fields(sform_code=0, qform_code=0)
    made = prepared(save(tmp_path / "b" / "x.nii.gz", brain(), edit=none))
    assert np.array_equal(made["image"], wanted["image"]) and "names no orientation" in capsys.readouterr().err
    dataset.prepare_image(tmp_path / "b" / "x.nii.gz", SMALL)
    assert capsys.readouterr().err.count("names no orientation") == 1


# Lesions -------------------------------------------------------------------------------------------------------------


def test_lesions_are_marked_by_half_of_a_voxel(tmp_path: Path) -> None:
    lesion = np.zeros(SHAPE, np.uint8)
    lesion[6:12, 7:14, 5:10] = 255  # exactly 2 x 2 x 2 voxels of the cube
    lesion[12:13, 7:14, 5:10] = 255  # a third of the next two
    path = save(tmp_path / "a.nii.gz", brain())
    save(tmp_path / "a_lesion.nii.gz", lesion)
    made = prepared(path)
    where = np.zeros((8, 8, 8), bool)
    where[4:6, 2:4, 2:4] = True  # axis L is turned to R
    assert np.array_equal(made["mask"][0] == 2, where) and made["foreground"][1] == 8
    turned = nib.as_closest_canonical(nib.Nifti1Image((lesion > 0) * 0.7, LAS))
    save(tmp_path / "a_lesion.nii.gz", np.asarray(turned.dataobj).astype(np.float32), turned.affine)
    assert np.array_equal(prepared(path)["mask"], made["mask"])


def test_lesions_that_are_lost_none_or_elsewhere(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", brain())
    mask = np.zeros(SHAPE, np.uint8)
    save(tmp_path / "a_lesion.nii", mask)
    assert prepared(path)["remarks"] == [["lesions", f"{tmp_path / 'a_lesion.nii'}: holds no lesion"]]
    mask[10, 10, 10] = 1
    save(tmp_path / "a_lesion.nii", mask)
    assert "its lesion of 1 voxel is lost at 8 x 8 x 8" in prepared(path)["remarks"][0][1]
    save(tmp_path / "a_lesion.nii", mask[:-1])
    message = refused(lambda: prepared(path))
    assert "23 x 28 x 20" in message and "24 x 28 x 20" in message and "other sizes" in message
    save(tmp_path / "a_lesion.nii", mask, LAS + np.array([[0, 0, 0, 30], *[[0] * 4] * 3]))
    assert "corners are up to" in refused(lambda: prepared(path))
    save(tmp_path / "a_lesion.nii", mask, edit=fields(sform_code=0, qform_code=0))
    assert "names no orientation" in prepared(path)["remarks"][0][1]


# Several volumes -----------------------------------------------------------------------------------------------------


def test_a_file_of_several_volumes_needs_a_choice(tmp_path: Path) -> None:
    array = np.stack([brain(number) for number in range(3)], -1)
    path = save(tmp_path / "a" / "x.nii.gz", array)
    message = refused(lambda: dataset.index(path.parent, SMALL))
    assert "holds 3 volumes (24 x 28 x 20 x 3)" in message and "Type --volume N to take one of them, 0 to 2" in message
    for number in range(3):
        wanted = prepared(save(tmp_path / f"{number}" / "x.nii.gz", array[..., number]))
        made = prepared(path, Settings(resolution=8, volume=number))
        assert np.array_equal(made["image"], wanted["image"])
    message = refused(lambda: prepared(path, Settings(resolution=8, volume=3)))
    assert "has no volume 3: it holds 3" in message and "from 0 to 2" in message
    assert prepared(tmp_path / "0" / "x.nii.gz", Settings(resolution=8, volume=2))["image"].any()  # 3-D: as it is


@pytest.mark.real
def test_real_corner_cases(real_data: Path) -> None:
    edge, settings = real_data / "brains" / "edge", Settings(resolution=16, volume=1)
    assert "holds 2 volumes" in refused(lambda: dataset.index(edge, Settings(resolution=16)))
    for case in dataset.index(edge, settings):
        made = dataset.prepare(case, settings)
        image = nib.as_closest_canonical(nib.load(case.images[0])).get_fdata()
        image = image[..., 1] if image.ndim == 4 else image
        wanted, _, _ = dataset.cube.cube(image.astype(np.float32), 16)
        assert np.allclose(made["image"][0], wanted, atol=1e-6), case.id


# What is refused -----------------------------------------------------------------------------------------------------


def volumes_without_a_brain() -> dict[str, tuple[np.ndarray, str]]:
    dot = np.zeros((40, 40, 40), np.float32)
    dot[20, 20, 20] = 5
    flat = np.full(SHAPE, np.nan, np.float32)
    flat[5:9, 5:9, 5:9] = 7
    inner, infinite = brain(), brain()
    inner[12, 14, 10], infinite[0, 0, 0] = np.nan, np.inf
    return {
        "zeros": (np.zeros(SHAPE, np.int16), "all of its 24 x 28 x 20 voxels are 0: there is no brain"),
        "one value": (np.full(SHAPE, 41.5, np.float32), "voxels are 41.5: there is no brain"),
        "all NaN": (np.full(SHAPE, np.nan, np.float32), "all of its 24 x 28 x 20 voxels are NaN"),
        "one value in NaN": (flat, "that are not NaN (13376 are) are 7"),
        "one voxel": (dot, "99.9 % of its voxels at 32 x 32 x 32 are 0"),
        "NaN only inside": (inner, "1 voxels or more are NaN or infinite"),
        "infinite": (infinite, "1 voxels or more are NaN or infinite"),
        "two dimensions": (brain()[:, :, 0], "is 24 x 28; one volume of three dimensions"),
        "one slice": (brain()[:, :, :1], "is 24 x 28 x 1 voxels: one slice"),
        "complex": (brain().astype(np.complex64), "complex64"),
    }


@pytest.mark.parametrize("name", volumes_without_a_brain())
def test_volumes_without_a_brain(name: str, tmp_path: Path) -> None:
    array, words = volumes_without_a_brain()[name]
    path, settings = save(tmp_path / "x.nii.gz", array), Settings(resolution=32)
    message = refused(lambda: prepared(path, settings))
    assert str(path) in message and words in message, message
    assert words in refused(lambda: dataset.prepare_image(path, settings))


def damaged(path: Path) -> dict[str, tuple[Callable[[], Any], str]]:
    def cut() -> None:
        path.write_bytes(path.read_bytes()[:-300])

    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    zeros = {f"srow_{axis}": [0] * 4 for axis in "xyz"}
    return {
        "truncated gzip": (cut, "cut short or damaged"),
        "an affine of zeros": (lambda: save(path, brain(), edit=fields(**zeros)), "maps the grid to no volume"),
        "a text": (lambda: path.write_text("subject 1\n" * 50), "is no NIfTI file"),
        "an empty file": (lambda: path.write_bytes(b""), "it has 0 bytes"),
        "colours": (lambda: nib.Nifti1Image(rgb, LAS).to_filename(path), "its voxels are colours"),
    }


@pytest.mark.parametrize("name", damaged(Path()))
def test_damaged_files(name: str, tmp_path: Path) -> None:
    path = save(tmp_path / ("x.nii" if name in ("a text", "an empty file") else "x.nii.gz"), brain())
    damage, words = damaged(path)[name]
    damage()
    message = refused(lambda: prepared(path))
    assert str(path) in message and words in message, message
    assert words in refused(lambda: dataset.prepare_image(path, SMALL))


def test_many_faults_are_counted_and_the_others_named_by_check(tmp_path: Path) -> None:
    root = make_set(tmp_path / "s", 2)
    for name in "abc":
        (root / f"{name}.nii").write_text("no volume")
    message = refused(lambda: dataset.index(root, SMALL))
    assert "a.nii" in message and "(3 of 5 files have faults)" in message
    assert "python -m unet check --task brains --data" in message


def test_a_volume_larger_than_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.nii.gz", brain())
    monkeypatch.setattr(dataset.host, "memory", lambda: (10**8, 10**8))
    message = refused(lambda: prepared(path))
    assert "24 x 28 x 20 voxels take" in message and "this machine has" in message


def test_a_name_that_is_none(tmp_path: Path) -> None:
    assert "no name for a case" in refused(lambda: prepared(save(tmp_path / "a\nb.nii", brain())))
