"""`check` of KiTS19 names every fault; made cases are whole, the same twice, and fit their labels."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from unet.data import checksums
from unet.data.checks import Report
from unet.errors import DataError
from unet.files import digest_files
from unet.tasks.kits19 import boxes
from unet.tasks.kits19 import check as checks_kits19
from unet.tasks.kits19 import synthetic as phantom_ct
from unet.tasks.kits19.anatomy import paint

SMALL: dict[str, Any] = {"cases": 6, "shape": (16, 24, 24), "seed": 3}
IMAGE, LABEL = phantom_ct.IMAGE, phantom_ct.LABEL


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kits19")
    phantom_ct.write_set(folder, **SMALL)
    return folder


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A copy of a made set, to damage."""
    return Path(shutil.copytree(original, tmp_path / "raw" / "made"))


def first_validates(ids: list[str]) -> dict[str, list[str]]:
    return {"train": ids[1:], "validation": ids[:1]}


def check(path: Path, **more: Any) -> Report:
    return checks_kits19.raw(path, first_validates, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(path: Path) -> tuple[Any, Any]:
    image: Any = nibabel.load(path)
    return np.asarray(image.dataobj).copy(), image


def change(path: Path, edit: Callable[[Any], Any] = lambda array: array, dtype: Any = None, affine: Any = None) -> None:
    """Write a volume again: its voxels edited, its type or affine replaced."""
    array, image = load(path)
    array = edit(array.astype(dtype or array.dtype))
    target = image.affine if affine is None else affine
    new = nibabel.Nifti1Image(array, target)
    nibabel.save(new, path)


def patch_header(path: Path, at: int, value: bytes) -> None:
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[at : at + len(value)] = value
    path.write_bytes(gzip.compress(bytes(content)))


def put(at: tuple[int, int, int], value: float) -> Callable[[Any], Any]:
    def edit(array: Any) -> Any:
        array[at] = value
        return array

    return edit


def named(items: list[str], *words: str) -> bool:
    """Whether one of the items holds all of the words."""
    return any(all(word in item for word in words) for item in items)


def test_seed_and_index_determine_a_case() -> None:
    one, two, other = (phantom_ct.make_case(seed, 4, (20, 32, 32)) for seed in (1, 1, 2))
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1]) and one[2] == two[2]
    assert one[0].shape != other[0].shape or not np.array_equal(one[0], other[0])


def test_a_case_is_a_body_with_two_kidneys_and_a_tumour() -> None:
    for index in range(6):
        image, label, spacing = phantom_ct.make_case(7, index, (40, 48, 48))
        sides = [int(n * mm / target) for n, mm, target in zip(image.shape, spacing, (1.6, 1.2, 1.2), strict=True)]
        assert image.dtype == np.int16 and label.dtype == np.uint8 and image.shape == label.shape
        assert all(least <= side <= 1.1 * least + 1 for side, least in zip(sides, (40, 48, 48), strict=True)), sides
        assert np.median(image[:, 0]) < -950  # air in front of the body
        shares = np.bincount(label.ravel()) / label.size
        assert len(shares) == 3 and shares[1] > 0.008 and shares[2] > 0.001
        parts, count = ndimage.label(label > 0)
        sizes = np.sort(np.bincount(parts.ravel())[1:])
        assert count >= 2 and sizes[-2:].sum() > 0.98 * sizes.sum()  # left and right
        inner = [ndimage.binary_erosion(label == number) for number in (1, 2)]
        kidney, tumour = (image[where].mean() for where in inner)
        assert 110 < kidney < 150 and 50 < tumour < 90
        others = image[ndimage.binary_erosion(label == 0, iterations=2)]
        for hu in (kidney, tumour):  # no threshold finds them
            assert (np.abs(others - hu) < 15).sum() > 0.5 * (label > 0).sum()


def test_the_layout_is_that_of_kits19(original: Path) -> None:
    folders = sorted(path.name for path in original.iterdir() if path.is_dir())
    assert folders == [f"case_{index:05d}" for index in range(6)]
    for index, name in enumerate(folders):
        image, label, spacing = phantom_ct.make_case(3, index, SMALL["shape"])
        for file, array in ((IMAGE, image), (LABEL, label)):
            found, volume = load(original / name / file)
            assert np.array_equal(found, array) and volume.get_data_dtype() == array.dtype
            assert nibabel.aff2axcodes(volume.affine) == ("I", "P", "L")
            assert np.allclose(volume.header.get_zooms(), spacing)
    record = json.loads((original / "phantom.json").read_text())
    assert record["made"] is True and record["seed"] == 3 and record["cases"] == 6


def test_the_same_set_twice_is_the_same_bytes(original: Path, tmp_path: Path) -> None:
    phantom_ct.write_set(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(original)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*")}
    time.sleep(0.01)
    phantom_ct.write_set(tmp_path / "again", **SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*")} == before


def test_an_interrupted_set_is_completed(here: None, original: Path, made: Path) -> None:
    (made / "phantom.json").rename(made / "phantom.unfinished.json")  # what a killed call leaves
    (made / "case_00001" / IMAGE).unlink()
    shutil.rmtree(made / "case_00004")
    kept = (made / "case_00000" / IMAGE).stat().st_mtime_ns
    phantom_ct.write_set(made, **SMALL)
    assert contents(made) == contents(original)
    assert (made / "case_00000" / IMAGE).stat().st_mtime_ns == kept


def test_other_parameters_are_an_error_and_overwrite_replaces_made_cases_only(here: None, made: Path) -> None:
    before = contents(made)
    with pytest.raises(DataError) as caught:
        phantom_ct.write_set(made, 2, (16, 24, 24), 4)
    lines = str(caught.value).split("\n")
    assert len(lines) == 2 and "'seed': 3" in lines[0] and "'seed': 4" in lines[0] and "--overwrite" in lines[1]
    assert contents(made) == before
    note, real = made / "case_00005" / "note.txt", made / "case_00209" / IMAGE
    real.parent.mkdir()
    note.write_bytes(b"mine")
    real.write_bytes(b"mine")
    phantom_ct.write_set(made, 2, (16, 24, 24), 4, overwrite=True)
    assert note.read_bytes() == real.read_bytes() == b"mine"
    assert sorted(path.name for path in made.iterdir() if path.is_dir()) == [
        *("case_00000", "case_00001", "case_00005", "case_00209")
    ]
    with pytest.raises(DataError, match="case_00209, which was not made here"):
        phantom_ct.write_set(made, 210, (16, 24, 24), 4, overwrite=True)
    assert real.read_bytes() == b"mine"


def test_real_cases_are_never_replaced(tmp_path: Path) -> None:
    real = tmp_path / "case_00000" / IMAGE
    real.parent.mkdir()
    real.write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(DataError):
            phantom_ct.write_set(tmp_path, **SMALL, overwrite=overwrite)
    assert [path.name for path in tmp_path.rglob("*.gz")] == [IMAGE] and real.read_bytes() == b"mine"


def test_a_body_needs_room(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="16 voxels a side"):
        phantom_ct.write_set(tmp_path, 1, (64, 64, 8), 1)


def test_painting_on_labels(here: None, original: Path, tmp_path: Path) -> None:
    phantom_ct.write_set(tmp_path / "one", 1, (9, 9, 9), 5, labels=original)
    phantom_ct.write_set(tmp_path / "two", 2, (9, 9, 9), 5, labels=original)
    assert json.loads((tmp_path / "two" / "phantom.json").read_text())["made"] is True
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert all(two[name] == content for name, content in one.items() if name != "phantom.json")
    for name in ("case_00000", "case_00001"):
        assert (tmp_path / "two" / name / LABEL).read_bytes() == (original / name / LABEL).read_bytes()
        label, volume = load(original / name / LABEL)
        image, own = load(tmp_path / "two" / name / IMAGE)
        assert own.get_data_dtype() == np.float32 and np.array_equal(own.affine, volume.affine)
        assert own.header.get_zooms() == volume.header.get_zooms()
        inside = ndimage.binary_erosion(label == 1)
        assert 105 < image[inside].mean() < 150 and image.min() < -950
    with pytest.raises(DataError, match="among the real labels"):
        phantom_ct.write_set(original, 1, (9, 9, 9), 5, labels=original)
    with pytest.raises(DataError, match="holds no case_XXXXX"):
        phantom_ct.write_set(tmp_path / "three", 1, (9, 9, 9), 5, labels=tmp_path)
    with pytest.raises(DataError, match="on real labels"):
        phantom_ct.write_set(tmp_path / "two", 2, (9, 9, 9), 6, labels=original)


def test_painting_an_empty_or_one_sided_label() -> None:
    for label in (np.zeros((6, 20, 20), np.uint8), np.zeros((6, 20, 20), np.uint8)):
        label[2:4, 8:14, 3:6] = 0 if not label.any() else 1
        slabs = list(paint(1, 0, label, (5.0, 4.0, 4.0)))
        assert np.concatenate(slabs).shape == (20, 20, 6)


@pytest.mark.real
def test_painting_on_real_labels(here: None, real_data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    name = "case_00061"
    shutil.copytree(real_data / "kits19" / "labels" / name, labels / name)
    phantom_ct.write_set(tmp_path / "made", None, (1, 1, 1), 1, labels=labels)
    label, source = load(labels / name / LABEL)
    image, own = load(tmp_path / "made" / name / IMAGE)
    assert np.array_equal(own.affine, source.affine) and image.dtype == np.float32
    kidney, tumour = (image[ndimage.binary_erosion(label == number)] for number in (1, 2))
    assert abs(kidney.mean() - 130) < 15 and abs(tumour.mean() - 70) < 15
    assert 10 < kidney.std() < 40 and 8 < tumour.std() < 30
    assert (image < -900).mean() > 0.2 and (np.abs(image + 100) < 30).mean() > 0.1  # air, fat
    report = check(tmp_path / "made")
    assert not report.errors and report.facts["cases"] == 1


def test_a_good_set(original: Path) -> None:
    report = check(original)
    assert (report.errors, report.warnings) == ([], [])
    assert report.facts["cases"] == 6 and "6 cases" in report.facts["kidney"] and "phantom.json" in report.facts["made"]


def test_faults_of_files_and_headers(here: None, made: Path) -> None:
    (made / "case_00000" / LABEL).unlink()
    (made / "case_00001" / IMAGE).unlink()
    patch_header(made / "case_00002" / IMAGE, 80, bytes(4))  # pixdim[1]
    change(made / "case_00003" / LABEL, lambda array: array[1:])
    _, image = load(made / "case_00004" / IMAGE)
    nibabel.save(nibabel.as_closest_canonical(image), made / "case_00004" / IMAGE)
    cut = made / "case_00005" / IMAGE
    cut.write_bytes(cut.read_bytes()[:2000])
    (made / "case_00006").mkdir()
    shutil.copytree(made / "case_00004", made / "case_00210")
    (made / "case_00210" / LABEL).unlink()
    report = check(made)
    assert named(report.errors, "case_00000", "has no label")
    assert named(report.errors, "case_00001", "has no image")
    assert named(report.errors, "case_00002", "spacing", "0 x")
    assert named(report.errors, "case_00003", "its image")
    assert named(report.errors, "case_00005", "cut short")
    assert named(report.errors, "1 case folders hold no NIfTI", "case_00006")
    assert named(report.warnings, "case_00004", "axis codes R, A, S", "I, P, L")
    assert named(report.warnings, "case_00004", "of the label")
    assert len(report.errors) == 6 and "case_00210" in report.facts["without labels"]


def test_faults_of_values(here: None, made: Path) -> None:
    change(made / "case_00000" / IMAGE, put((3, 3, 3), np.nan), np.float32)
    change(made / "case_00001" / IMAGE, lambda array: np.clip(array, 0, 255))
    change(made / "case_00002" / LABEL, put((0, 0, 0), 7))
    change(made / "case_00003" / LABEL, put((0, 0, 0), 0.5), np.float32)
    change(made / "case_00004" / LABEL, lambda array: np.where(array == 2, 0, array), np.uint16)
    _, image = load(made / "case_00005" / LABEL)
    affine = image.affine.copy()
    affine[0, 3] += 5
    change(made / "case_00005" / LABEL, affine=affine, dtype=np.float32)
    report = check(made)
    assert named(report.errors, "case_00000", "NaN")
    assert named(report.errors, "case_00002", "7 (1 voxels)")
    assert named(report.errors, "case_00003", "0.5 (1 voxels)")
    assert named(report.errors, "case_00005", "first voxel at 5, 0, 0 mm", "up to 5 mm apart")
    assert len(report.errors) == 4
    assert named(report.warnings, "case_00001", "saturated to 8 bits")
    assert named(report.warnings, "case_00004: no tumour")
    assert named(report.warnings, "case_00005", "labels are float32")
    assert "uint16 1" in report.facts["label types"]


def test_equal_images_and_leakage(here: None, made: Path) -> None:
    for name in ("case_00003", "case_00004"):
        shutil.copy(made / "case_00002" / IMAGE, made / name / IMAGE)
        shutil.copy(made / "case_00002" / LABEL, made / name / LABEL)
    shutil.copytree(made / "case_00000", made / "case_00009")
    report = check(made)
    assert report.errors == ["leakage: case_00000 and case_00009 hold the same image; one trains, the other validates"]
    assert named(report.warnings, "duplicate: case_00002 and case_00003")
    assert named(report.warnings, "duplicate: case_00002 and case_00004")


@pytest.mark.parametrize("beside", [False, True])
def test_the_list_of_cases(here: None, made: Path, beside: bool) -> None:
    def entry(name: str, factor: float = 1.0) -> dict[str, Any]:
        z, y, x = load(made / name / IMAGE)[1].header.get_zooms()
        spacing = {"x_spacing": float(x), "y_spacing": float(y), "z_spacing": float(z) * factor}
        return {"case_id": name, "voxel_spacing": spacing, "gender": "female"}

    listed = [entry("case_00000"), entry("case_00001", 2.0), entry("case_00002")]
    listed += [{"case_id": f"case_{number:05d}", "voxel_spacing": listed[0]["voxel_spacing"]} for number in (70, 71)]
    path = (made.parent if beside else made) / "kits.json"
    path.write_text(json.dumps(listed))
    report = check(made)
    assert not report.errors
    assert named(report.warnings, "2 of the 5 cases", "missing", "case_00070, case_00071")
    assert named(report.warnings, "3 cases are not in kits.json", "case_00003")
    assert named(report.warnings, "1 cases have another spacing", "case_00001")
    assert report.facts["kits.json"] == "5 cases, 3 of them here"
    path.write_text('{"cases": 3}')
    assert named(check(made).errors, "not a list of KiTS19's cases")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_checksums_of_a_raw_set(here: None, made: Path) -> None:
    names = sorted(str(path.relative_to(made)) for path in made.rglob("*.nii.gz"))
    lines = [f"{md5(made / name)}  ./{name}" for name in names]
    listed = made.parent / "md5.txt"
    listed.write_text("\n".join(lines[:-1]) + f"\n{'0' * 32} *case_00007/{IMAGE}\n")
    report = check(made, checksums=listed)
    assert named(report.errors, "1 files of the list are missing", "case_00007")
    assert named(report.warnings, "1 files are not in the list", names[-1])
    change(made / "case_00000" / IMAGE, put((0, 0, 0), -999))
    report = check(made, checksums=listed)
    assert named(report.errors, "1 files differ", f"case_00000/{IMAGE}")
    assert report.facts["checksums"] == "10 of 12 files as listed"


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"a": "no sum"}', "abc", "\x80"])
def test_what_is_no_list_of_checksums(tmp_path: Path, content: str) -> None:
    path = tmp_path / "sums"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match="not a list of MD5 sums, nor of SHA-256 sums"):
        checksums.read_checksums(path)


def make_cache(folder: Path, cases: int = 3, digests: bool = True) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = {}
    for index in range(cases):
        image = rng.uniform(-2.34, 2.63, (1, 12, 10 + index, 10)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        label[0, 2:6, 2:5], label[0, 4, 3] = 1, 2
        np.save(folder / f"case_{index:05d}_x.npy", image)
        np.save(folder / f"case_{index:05d}_y.npy", label)
        foreground = [int((label == number).sum()) for number in (1, 2)]
        record = {"shape": list(image.shape), "foreground": foreground, "boxes": boxes.components(label[0])}
        paths = {kind: folder / f"case_{index:05d}_{end}.npy" for kind, end in (("image", "x"), ("mask", "y"))}
        arrays = {kind: {"bytes": path.stat().st_size, "digest": digest_files(path)} for kind, path in paths.items()}
        record |= {"sources": {}, "digest": "0" * 32, **({"arrays": arrays} if digests else {})}
        records[f"case_{index:05d}"] = record
    manifest = {"task": "kits19", "version": 1, "settings": {}, "fingerprint": "f", "cases": records, "expected": cases}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    array = np.load(path)
    np.save(path, change(array))


def test_a_cache(tmp_path: Path) -> None:
    folder = make_cache(tmp_path / "cache")
    listed = tmp_path / "checksum.json"
    listed.write_text(json.dumps({path.name: md5(path) for path in folder.glob("*.npy")}))
    report = checks_kits19.cached(folder, listed, (8, 8, 8))
    assert (report.errors, report.warnings) == ([], [])
    assert report.facts["cases"] == 3 and report.facts["shape"] == "12 x 11 x 10 (median)"
    assert report.facts["windows"] == "24 of 8 x 8 x 8 for all cases"  # two along each axis of each
    assert report.facts["checksums"] == "6 of 6 files as listed"


def test_faults_of_a_cache(here: None, tmp_path: Path) -> None:
    folder = make_cache(tmp_path / "cache", 8, digests=False)
    name = [folder / f"case_{index:05d}" for index in range(8)]
    edit(Path(f"{name[0]}_x.npy"), put((0, 1, 1), np.inf))
    edit(Path(f"{name[1]}_x.npy"), put((0, 1, 1), 2.9))
    edit(Path(f"{name[2]}_y.npy"), put((0, 1, 1), 3))
    edit(Path(f"{name[3]}_y.npy"), put((0, 0, 0), 1))
    edit(Path(f"{name[4]}_x.npy"), lambda array: array.astype(np.float64))
    edit(Path(f"{name[5]}_x.npy"), lambda array: array[:, 1:])
    Path(f"{name[6]}_y.npy").unlink()
    cut = Path(f"{name[7]}_x.npy")
    cut.write_bytes(cut.read_bytes()[:300])
    for end in "xy":
        shutil.copy(f"{name[1]}_{end}.npy", folder / f"case_00008_{end}.npy")
    report = checks_kits19.cached(folder)
    for index, word in ((0, "not finite"), (2, "up to 3"), (3, "manifest says"), (4, "float64"), (5, "is not (1")):
        assert named(report.errors, f"case_0000{index}", word), word
    assert named(report.errors, "case_00006_x.npy: has no case_00006_y.npy")
    assert named(report.errors, "case_00007_x.npy: cannot be read")
    assert named(report.errors, "duplicate: case_00001 and case_00008")
    assert named(report.warnings, "case_00001", "2.9000")
    assert named(report.warnings, "1 cases are not in the manifest: case_00008")
    assert named(report.warnings, "8 of 8 cases have no digests")
    assert len(report.errors) == 8


def test_an_array_that_looks_right_and_is_another(here: None, tmp_path: Path) -> None:
    folder = make_cache(tmp_path / "cache")
    edit(folder / "case_00001_x.npy", put((0, 1, 1), 0.5))
    report = checks_kits19.cached(folder)
    assert len(report.errors) == 1
    assert named(report.errors, "case_00001_x.npy has other content")


def test_checksums_of_a_cache_and_its_count(here: None, tmp_path: Path) -> None:
    folder = make_cache(tmp_path / "cache", 2)
    (folder / "manifest.json").unlink()
    sums = {f"case_{index:05d}_{end}.npy": "0" * 32 for index in range(210) for end in "xy"}
    sums["case_00000_x.npy"] = md5(folder / "case_00000_x.npy")
    listed = tmp_path / "checksum.json"
    listed.write_text(json.dumps(sums))
    edit(folder / "case_00001_y.npy", lambda array: np.zeros_like(array))
    report = checks_kits19.cached(folder, checksums=listed)
    assert named(report.errors, "416 files of the list are missing", "case_00002_x.npy")
    assert named(report.errors, "3 files differ")
    assert named(report.errors, "holds 4 files; a complete set has 420")
    assert named(report.warnings, "no manifest.json")
    assert named(report.warnings, "case_00001: no kidney and no tumour")
    assert report.facts["checksums"] == "1 of 420 files as listed"
