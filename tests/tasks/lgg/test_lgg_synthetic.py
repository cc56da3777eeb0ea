"""Made patients: the layout on disk, completion after a kill, and that a network is needed to find the tumour."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import ROOT
from scipy import ndimage

from unet.errors import DataError
from unet.tasks.lgg.synthetic import make_patient, write_set

SMALL = {"patients": 3, "slices": 6, "side": 64, "seed": 5}


@pytest.fixture(scope="module")
def heads():
    return [make_patient(1, index, 20, 128) for index in range(8)]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    write_set(folder, **SMALL)
    return folder


@pytest.fixture
def made(original, tmp_path):
    """A copy of a made set, to damage."""
    return Path(shutil.copytree(original, tmp_path / "made"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_seed_and_index_determine_a_patient():
    images, masks = make_patient(3, 1, 8, 64)
    again, masks_again = make_patient(3, 1, 8, 64)
    assert np.array_equal(images, again) and np.array_equal(masks, masks_again)
    for other in (make_patient(4, 1, 8, 64), make_patient(3, 2, 8, 64)):
        assert other[0].shape != images.shape or not np.array_equal(other[0], images)
    counts = {len(make_patient(0, index, 8, 64)[0]) for index in range(12)}
    assert counts == {8, 9, 10}


def check_set(folder, patients, slices, side, seed):
    """The folder holds exactly the files of these patients, and in them what `make_patient` makes."""
    found = {path.name: tifffile.imread(path) for path in folder.glob("TCGA_PH_*/*.tif")}
    for index in range(patients):
        images, masks = make_patient(seed, index, slices, side)
        for n, (image, mask) in enumerate(zip(images, masks, strict=True), 1):
            stem = f"TCGA_PH_{index + 1:04d}_20000101_{n}"
            assert np.array_equal(found.pop(f"{stem}.tif"), image)
            assert np.array_equal(found.pop(f"{stem}_mask.tif"), mask)
    assert not found


def test_layout_is_that_of_kaggle_3m(original):
    check_set(original, **SMALL)
    folders = sorted(path for path in original.iterdir() if path.is_dir())
    assert [path.name for path in folders] == [f"TCGA_PH_000{n}_20000101" for n in (1, 2, 3)]
    for folder in folders:
        masks = {path.name for path in folder.glob("*_mask.tif")}
        images = {path.name for path in folder.iterdir()} - masks
        assert len(images) >= 6 and masks == {name.replace(".tif", "_mask.tif") for name in images}
        assert images == {f"{folder.name}_{n}.tif" for n in range(1, len(images) + 1)}
        values = set()
        for name in images:
            with tifffile.TiffFile(folder / name) as file:
                page = file.pages[0]
                assert page.photometric == tifffile.PHOTOMETRIC.RGB and page.compression == tifffile.COMPRESSION.NONE
                assert page.shape == (64, 64, 3) and page.dtype == np.uint8
            mask = tifffile.imread(folder / name.replace(".tif", "_mask.tif"))
            assert mask.shape == (64, 64) and mask.dtype == np.uint8
            values |= set(np.unique(mask))
        assert values == {0, 255}


def test_second_call_touches_nothing(made):
    before = times(made)
    write_set(made, **SMALL)
    assert times(made) == before


def test_interrupted_set_is_completed(original, made):
    first, second = (made / f"TCGA_PH_000{n}_20000101" for n in (1, 2))
    (made / "phantom.json").rename(made / "phantom.unfinished.json")  # what a killed call leaves
    for path in list(second.glob("*_mask.tif"))[:3]:
        path.unlink()
    kept = times(first)
    write_set(made, **SMALL)
    assert contents(made) == contents(original)
    assert times(first) == kept


def test_set_without_a_record_is_nobodys_to_replace(made):
    folder = made / "TCGA_PH_0002_20000101"
    (made / "phantom.json").unlink()
    (folder / f"{folder.name}_1.tif").write_bytes(b"cut")
    (folder / f"{folder.name}_2.tif").unlink()
    (folder / f"{folder.name}_99.tif").write_bytes(b"of another set")
    before = contents(made)
    with pytest.raises(DataError, match="not made here"):
        write_set(made, **SMALL)
    assert contents(made) == before


def test_killed_call_leaves_no_process_and_is_completed(tmp_path):
    made = tmp_path / "made"
    code = f"import pathlib, unet.tasks.lgg.synthetic as s; s.write_set(pathlib.Path({str(made)!r}), 12, 6, 64, 2)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while process.poll() is None and not list(made.glob("*/*_2.tif")):
        time.sleep(0.005)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (made / "phantom.unfinished.json").exists()
    deadline = time.monotonic() + 20
    while alive := [pid for pid in workers if running(int(pid))]:
        assert time.monotonic() < deadline, f"workers {alive} outlive their parent"
        time.sleep(0.05)
    assert len(list(made.glob("*/*_1_mask.tif"))) < 12
    write_set(made, 12, 6, 64, 2)
    check_set(made, 12, 6, 64, 2)
    assert (made / "phantom.json").exists() and not (made / "phantom.unfinished.json").exists()


def running(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize("record", ["phantom.json", "phantom.unfinished.json"])
def test_other_parameters_are_an_error_of_two_lines(made, record):
    (made / "phantom.json").rename(made / record)
    before = contents(made)
    with pytest.raises(DataError) as caught:
        write_set(made, **{**SMALL, "seed": 6, "side": 80})
    lines = str(caught.value).split("\n")
    assert len(lines) == 2
    for part in ("'seed': 5", "'side': 64", "'seed': 6", "'side': 80", str(made)):
        assert part in lines[0]
    assert "--overwrite" in lines[1] and "--data" in lines[1]
    assert contents(made) == before


def test_overwrite_replaces_made_patients_only(made):
    real = made / "TCGA_CS_4941_19960909" / "TCGA_CS_4941_19960909_1.tif"
    note = made / "TCGA_PH_0003_20000101" / "note.txt"
    real.parent.mkdir()
    for path in (real, note):
        path.write_bytes(b"mine")
    other = {"patients": 2, "slices": 7, "side": 80, "seed": 6}
    write_set(made, **other, overwrite=True)
    check_set(made, **other)
    assert real.read_bytes() == note.read_bytes() == b"mine"
    assert sorted(path.name for path in note.parent.iterdir()) == ["note.txt"]
    write_set(made, **other)


def test_real_patients_are_not_mixed_with_made_ones(tmp_path):
    real = tmp_path / "TCGA_CS_4941_19960909"
    real.mkdir()
    with pytest.raises(DataError, match=real.name) as caught:
        write_set(tmp_path, **SMALL)
    assert str(caught.value).count("\n") == 1 and "--data" in caught.value.hint
    assert list(tmp_path.iterdir()) == [real]


def test_head_and_tumour_have_the_proportions_of_real_ones(heads):
    shares = []
    for images, masks in heads:
        tumour = masks > 0
        area = tumour.mean((1, 2))
        shares.append(tumour.mean())
        head = (images >= 0.1 * images.max()).any(3).mean((1, 2))
        assert head[[0, -1]].max() < 0.05 and 0.35 < head[len(head) // 2] < 0.65
        assert not area[[0, -1]].any()  # dropping the first and last slice costs no tumour
        assert 0.25 <= (area > 0).mean() <= 0.55 and 0.015 < area[area > 0].mean() < 0.06
        assert ndimage.label(tumour)[1] == 1  # face connectivity, as the score counts
        around = ndimage.binary_dilation(tumour, iterations=6) & ~ndimage.binary_dilation(tumour, iterations=2)
        pre, flair, _ = (np.median(images[around, channel]) for channel in range(3))
        assert np.median(images[tumour, 1]) > 1.3 * flair and np.median(images[tumour, 0]) < 0.95 * pre
    assert 0.01 < np.mean(shares) < 0.02 and min(shares) > 0.007 and max(shares) < 0.022


def normalised(images):
    """Percentiles 10 and 99 to [0, 1], z-score each channel, as the pipeline does; then to 256 levels."""
    low, high = np.percentile(images, (10, 99))
    volume = (np.clip(images.astype(np.float32), low, high) - low) / (high - low)
    volume = (volume - volume.mean((0, 1, 2))) / volume.std((0, 1, 2))
    return np.clip(np.round((volume + 2) * 255 / 10), 0, 255).astype(np.uint8)  # -2 to 8 deviations


@pytest.mark.parametrize("prepare", [lambda images: images, normalised], ids=["raw", "normalised"])
@pytest.mark.parametrize("channel", range(3))
def test_no_threshold_finds_the_tumour(heads, prepare, channel):
    """The best of 256 thresholds, either way, pooled over voxels and as mean over patients: DSC below 0.5."""
    above, hit, size = [], [], []
    for images, masks in heads:
        levels = prepare(images)[..., channel]
        above.append(np.bincount(levels.ravel(), minlength=256))
        hit.append(np.bincount(levels[masks > 0], minlength=256))
        size.append(np.count_nonzero(masks))
    for order in (slice(None), slice(None, None, -1)):  # voxels <= and >= the threshold
        chosen, right = (np.array(rows)[:, order].cumsum(1) for rows in (above, hit))
        per_patient = 2 * right / (chosen + np.array(size)[:, None])
        pooled = 2 * right.sum(0) / (chosen.sum(0) + sum(size))
        assert per_patient.mean(0).max() < 0.5
        assert pooled.max() < 0.5


def test_patients_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    from unet.tasks.lgg import synthetic

    own = tmp_path / "TCGA_PH_0002_20000101" / "TCGA_PH_0002_20000101_1.tif"
    own.parent.mkdir()
    own.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="TCGA_PH_0002_20000101, which was not made here"):
            synthetic.write_set(tmp_path, 2, 6, 32, 0, overwrite)
    assert own.read_text() == "mine"
