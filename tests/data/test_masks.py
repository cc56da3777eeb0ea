"""Masks of two values, of nearly two, and of others: alike in check, preprocess and train, for slices and stacks."""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import TINY, error_of
from PIL import Image

from unet.data.preprocessing import masks
from unet.errors import DataError
from unet.tasks.em import dataset as em
from unet.tasks.em.synthetic import write_set
from unet.tasks.lgg import dataset as lgg

Array = np.ndarray[Any, Any]
Change = Callable[[Array], Array]


def through_jpeg(mask: Array, quality: int = 85) -> Array:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def noisy(mask: Array) -> Array:
    """0 to 4 and 250 to 255."""
    noise = np.random.default_rng(0).integers(0, 5, mask.shape)
    return np.where(mask > 0, 255 - noise, noise).astype(np.uint8)


def smooth(mask: Array) -> Array:
    """Borders in grey, as after resampling."""
    wide = np.pad(mask.astype(np.float32), 1, "edge")
    return ((wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]) / 4).astype(np.uint8)


@pytest.mark.parametrize(
    ("found", "cut"),
    [
        ([], 0.5),
        ([0], 0.5),
        ([0, 1], 0.5),
        ([0, 255], 127.5),
        ([0, 65535], 32767.5),
        ([0, 7], 3.5),
        ([255], 127.5),
        ([False, True], 0.5),
        ([0.0, 1.0], 0.5),
        ([0, 1, 2, 3, 4, 250, 251, 252, 253, 254, 255], 127.5),
        ([1, 2, 3, 252, 254, 255], 127.5),
        ([0, 1, 254, 255], 127.5),
        ([7], None),  # which of the two is it?
        ([1, 2], None),
        ([0, 1, 2], None),
        ([0, 1, 2, 3, 4], None),
        ([0, 1, 255], None),  # a class, and what shall be ignored
        ([0, 50, 255], None),
        ([0, 50, 200, 255], None),  # three classes
        ([0, 128, 255], None),
        ([*range(0, 256, 5)], None),
        ([-1, 0], None),
        ([-1, 1], None),
        ([0, np.nan], None),
        ([0, np.inf], None),
    ],
)
def test_what_two_values_are(found: list[float], cut: float | None) -> None:
    levels = masks.levels(np.unique(np.asarray(found)))
    assert (levels.cut if levels else None) == cut
    assert bool(levels and levels.noise) == (len(found) > 2 and cut is not None)


@pytest.mark.parametrize("quality", [75, 85, 95, 100])
def test_one_jpeg_changes_no_pixel(quality: int) -> None:
    rows, columns = np.mgrid[:96, :96]
    mask = (np.hypot(rows - 40, columns - 50) < 21).astype(np.uint8) * np.uint8(255)
    (found,), levels = masks.binary([through_jpeg(mask, quality)], [Path("mask.tif")])
    np.testing.assert_array_equal(found, mask > 0)
    assert levels.noise.startswith("0 to ")


@pytest.fixture
def raw(phantoms: Path, workplace: Path) -> Path:
    shutil.copytree(phantoms, "raw")
    return Path("raw")


def change_masks(root: Path, change: Change, **how: Any) -> None:
    for path in sorted(root.glob("*/*_mask.tif")):
        tifffile.imwrite(path, change(tifffile.imread(path)), **{"photometric": "minisblack", **how})


def prepared() -> list[dict[str, Any]]:
    return [lgg.prepare(case, 32) for case in lgg.index(Path("raw"))]


SAME: dict[str, tuple[Change, dict[str, Any], str]] = {
    "0 and 1": (lambda mask: mask // 255, {}, ""),
    "16 bits": (lambda mask: mask.astype(np.uint16) * 257, {}, ""),
    "1 bit": (lambda mask: mask > 0, {}, ""),
    "float": (lambda mask: mask.astype(np.float32) / 255, {}, ""),
    "equal channels": (lambda mask: np.dstack([mask] * 3), {"photometric": "rgb"}, ""),
    "white is zero": (lambda mask: 255 - mask, {"photometric": "miniswhite"}, ""),
    "noise": (noisy, {}, "masks hold 0 to 4 and 251 to 255"),
}


@pytest.mark.parametrize("name", SAME)
def test_masks_of_other_writers_are_the_same_cache(cli, raw: Path, name: str) -> None:
    change, how, words = SAME[name]
    clean = prepared()
    change_masks(raw, change, **how)
    for one, other in zip(clean, prepared(), strict=True):
        assert one["mask"].tobytes() == other["mask"].tobytes()
        assert ("remarks" in other) == bool(words)
        assert "remarks" not in one
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 0
    assert words in out
    assert ("masks hold" in out) == bool(words)


def test_a_set_without_a_foreground_is_told_and_not_learned(cli, raw: Path) -> None:
    change_masks(raw, lambda mask: mask * 0)
    code, _, told = cli("preprocess", "--data", "./raw", "--cache", "c", "--image-size", 16)
    assert code == 0
    assert "warning: no mask of the 6 cases holds tumour" in told
    words = error_of(cli("train", "--data", "./raw", "--cache", "c", "--device", "cpu", *TINY))
    assert "training cases holds tumour" in words


@pytest.mark.slow
def test_the_inverted_set_is_told(cli, raw: Path) -> None:
    """The same bytes, tag WhiteIsZero; and with noise."""
    change_masks(raw, noisy, photometric="miniswhite")
    code, _, told = cli("preprocess", "--data", "./raw", "--cache", "c", "--image-size", 16)
    assert code == 0
    assert "warning: tumour fills" in told
    assert "more than half" in told
    assert "masks hold 0 to 4 and 251 to 255" in told
    assert "6 cases are like that" in told
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 0
    assert "more than half" in out
    words = ("train", "--data", "./raw", "--cache", "c", "--device", "cpu", *TINY, "--dry-run")
    told = cli(*words)[2]
    assert "more than half" in told


ODD: dict[str, tuple[Change, str]] = {
    "grey borders": (smooth, "mask values [0, 63, "),
    "a label map": (lambda mask: np.where(np.arange(64) < 32, mask // 255, mask // 127).astype(np.uint8), "[0, 1, 2]"),
    "seven": (lambda mask: np.full_like(mask, 7), "mask values [7]"),
}


@pytest.mark.parametrize("name", ODD)
def test_masks_of_other_values_are_refused(cli, raw: Path, name: str) -> None:
    change, words = ODD[name]
    change_masks(raw, change)
    with pytest.raises(DataError) as caught:
        prepared()
    assert words in caught.value.message
    assert "_mask.tif" in caught.value.message
    if name == "a label map":
        assert words in error_of(cli("train", "--data", "./raw", "--cache", "c", "--device", "cpu", *TINY))
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 1
    assert words in out


def set_of(root: Path, change: Change, **how: Any) -> Path:
    write_set(root, 6, 64, 1)
    path = root / "train-labels.tif"
    tifffile.imwrite(path, change(tifffile.imread(path)), **{"photometric": "minisblack", **how})
    return root


@pytest.mark.parametrize("name", SAME)
def test_labels_of_stacks_alike(name: str, tmp_path: Path) -> None:
    change, how, words = SAME[name]
    if name == "equal channels":
        change = lambda mask: np.stack([mask] * 3, -1)  # noqa: E731
    clean, other = (em.index(set_of(tmp_path / str(n), each, **kind)) for n, each, kind in
                    ((0, lambda mask: mask, {}), (1, change, how)))  # fmt: skip
    for a, b in zip(clean, other, strict=True):
        one, two = em.prepare(a, 36), em.prepare(b, 36)
        assert np.array_equal(one["mask"], two["mask"])
        assert ("remarks" in two) == bool(words)


def test_a_folder_of_labels_is_read_by_one_rule(tmp_path: Path) -> None:
    """A slice of little noise has the values 0 and 1; it is dark, as its set says."""
    root = set_of(tmp_path / "em", noisy)
    labels = tifffile.imread(root / "train-labels.tif")
    labels[2] = np.arange(64) % 2
    (root / "train-labels.tif").unlink()
    (root / "train-labels").mkdir()
    for number, label in enumerate(labels):
        Image.fromarray(label).save(root / "train-labels" / f"s{number}.png")
    cases = em.index(root)
    assert [em.cells_of(case.labels[0], case.id)[0].any() for case in cases] == [True, True, False, True, True, True]


def test_stacks_that_are_told_or_refused(cli, tmp_path: Path) -> None:
    set_of(tmp_path / "white", lambda mask: mask, photometric="miniswhite")
    size = ("--task", "em", "--layers", 2, "--image-size", 76)
    code, _, told = cli("preprocess", *size, "--data", tmp_path / "white", "--cache", "./c")
    assert code == 0
    assert "warning: membrane fills" in told
    assert "more than half" in cli("check", "--task", "em", "--data", tmp_path / "white")[1]
    with pytest.raises(DataError, match="labels hold"):
        em.index(set_of(tmp_path / "smooth", lambda mask: np.stack([smooth(page) for page in mask])))


def test_paths_that_are_no_files(cli, raw: Path) -> None:
    """A pipe, a link in a circle, a folder with the name of a slice: named at once, also as the mask."""
    first, second, third = sorted(path for path in raw.iterdir() if path.is_dir())[:3]
    loop, pipe, folder = next(first.glob("*_2.tif")), next(second.glob("*_3_mask.tif")), next(third.glob("*_4.tif"))
    for path, make in ((loop, lambda: loop.symlink_to(loop)), (pipe, lambda: os.mkfifo(pipe)), (folder, folder.mkdir)):
        path.unlink()
        make()
    began = time.monotonic()
    error = error_of(cli("preprocess", "--data", "./raw", "--cache", "c"))
    assert loop.name in error
    assert pipe.name in error
    assert "(and 1 more)" in error
    code, out, _ = cli("check", "--data", "./raw")
    assert code == 1
    assert all(path.name in out for path in (loop, pipe, folder))
    assert time.monotonic() - began < 20


def test_masks_without_any_image(cli, raw: Path) -> None:
    folder = sorted(path for path in raw.iterdir() if path.is_dir())[0]
    for path in folder.glob("*_[0-9].tif"):
        path.unlink()
    error = error_of(cli("preprocess", "--data", "./raw", "--cache", "c"))
    assert "is a mask without an image" in error
