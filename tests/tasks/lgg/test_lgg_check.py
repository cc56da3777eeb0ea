"""`check`: what it finds in raw sets and caches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile

from unet.tasks.lgg import check


@pytest.fixture
def raw(phantoms: Path, workplace: Path) -> Path:
    shutil.copytree(phantoms, "raw")
    return Path("raw")


def patients(raw: Path) -> list[Path]:
    return sorted(path for path in raw.iterdir() if path.is_dir())


def test_a_good_set(cli, raw: Path) -> None:
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 0
    assert "patients               6" in out
    assert "0 errors" in out


def test_a_part_of_the_public_set_is_told_as_such(cli, raw: Path) -> None:
    """A set of one's own of the same layout is none: its patients have other names."""
    assert "of the 110 patients" not in cli("check", "--data", "./raw")[1]
    for folder in patients(raw)[:4]:
        for path in [*folder.iterdir(), folder]:
            path.rename(path.with_name(path.name.replace("_PH_", "_CS_")))
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 0
    assert "warning: 4 of the 110 patients of the public set are there; the others, if a download broke off:" in out
    assert "type python -m unet download lgg --data ./raw\n" in out


def test_the_whole_public_set_is_no_part(tmp_path: Path) -> None:
    names = [f"TCGA_HT_{number:04d}_20000101" for number in range(110)]
    assert check.in_part(tmp_path, names) == []
    assert len(check.in_part(tmp_path, names[1:])) == 1


def test_missing_masks_orphans_and_truncation(cli, raw: Path) -> None:
    first, second, third = patients(raw)[:3]
    next(first.glob("*_2_mask.tif")).unlink()
    next(second.glob("*_3.tif")).unlink()
    damaged = next(third.glob("*_4.tif"))
    damaged.write_bytes(damaged.read_bytes()[:300])
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 1
    assert "has no mask" in out
    assert "is a mask without an image" in out
    assert damaged.name in out
    assert "3 errors" in out


def test_shapes_and_values(cli, raw: Path) -> None:
    first, second = patients(raw)[:2]
    name = next(first.glob("*_3.tif"))
    tifffile.imwrite(name, np.zeros((32, 64, 3), np.uint8), photometric="rgb")
    mask = next(second.glob("*_5_mask.tif"))
    tifffile.imwrite(mask, np.full((64, 64), 7, np.uint8))
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 1
    assert "slices of different sizes: 32x64, 64x64" in out
    assert "mask values [7]" in out


def test_duplicates_and_leakage(cli, raw: Path) -> None:
    first, second = patients(raw)[:2]
    for source in first.glob("*_5*.tif"):
        shutil.copy(source, second / source.name.replace(first.name, second.name))
    (raw.parent / "val.txt").write_text(first.name)
    code, out, _ = cli("check", "--data", "./raw", "--split", "val.txt")
    assert code == 1
    assert "leakage" in out
    (raw.parent / "val.txt").write_text(patients(raw)[4].name)
    code, out, _ = cli("check", "--data", "./raw", "--split", "val.txt")
    assert code == 0
    assert "duplicate" in out


def test_train_and_evaluate_tell_of_equal_slices_as_check_does(cli, raw: Path) -> None:
    first, second = patients(raw)[:2]
    for source in first.glob("*_5*.tif"):
        shutil.copy(source, second / source.name.replace(first.name, second.name))
    data = ("--data", "./raw", "--cache", "c", "--image-size", 32)
    for held, leaks in ((first, True), (patients(raw)[4], False)):
        (raw.parent / "val.txt").write_text(held.name)
        weights = f"{held.name}.safetensors"
        words = ("--width", 2, "--batch-size", 4, "--max-steps", 1, "--split", "val.txt", "--weights", weights)
        for command in (("train", *words), ("evaluate", "--weights", weights)):
            code, _, err = cli(*command, *data)
            assert code == 0, err
            assert (f"leakage: {second.name} and {first.name} share 1 equal slice; one trains" in err) is leaks


def test_preprocess_says_why_it_has_fewer_slices_than_check(cli, raw: Path) -> None:
    for source in patients(raw)[0].glob("*_2.tif"):  # beside the first slice, which is left out: at the end
        tifffile.imwrite(source, np.zeros_like(tifffile.imread(source)), photometric="rgb")
    slices = len([path for path in raw.glob("*/*.tif") if not path.stem.endswith("_mask")])
    left = 2 * len(patients(raw)) + 1
    assert f"slices                 {slices}\n" in cli("check", "--data", "./raw")[1]
    err = cli("preprocess", "--data", "./raw", "--cache", "c", "--image-size", 32)[2]
    assert f"; {slices - left} slices from raw ({left} left out: the first and the last of each patient, and" in err


def test_the_nested_second_copy(cli, raw: Path, phantoms: Path) -> None:
    shutil.copytree(phantoms, raw / "lgg-mri-segmentation" / "kaggle_3m")
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 0
    assert "second copy" in out
    assert "patients               6" in out


def test_a_cache(cli, raw: Path) -> None:
    cli("preprocess", "--data", "./raw", "--cache", "c", "--image-size", 32)
    assert cli("check", "--cache", "c")[0] == 0
    name = sorted(path for path in Path("data/c").glob("*.npy") if "mask" not in path.name)[0]
    image = np.load(name)
    image[0, 0, 0, 0] = np.nan
    np.save(name, image)
    code, out, _ = cli("check", "--cache", "c")
    assert code == 1
    assert "not finite" in out
    name.write_bytes(name.read_bytes()[:200])
    code, out, _ = cli("check", "--cache", "c")
    assert code == 1
    assert name.name in out


@pytest.mark.real
def test_the_real_patients(cli, real_lgg: Path) -> None:
    code, out, _ = cli("check", "--data", real_lgg)
    assert code == 0
    assert "patients               24" in out
    assert "slices                 671" in out
    assert "equal FLAIR" in out
