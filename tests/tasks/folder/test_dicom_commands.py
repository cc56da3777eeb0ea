"""DICOM through the commands: a made set is checked, trained on, predicted and scored; folders of series as users have
them; what is refused; that nothing of a header is told or kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from builders import task_config
from conftest import error_of, read_json

pydicom = pytest.importorskip("pydicom", "3", reason="the extra `dicom` is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
from dicom_series import ID, OBLIQUE, SECRET, series, values  # noqa: E402

from unet.cli import main  # noqa: E402
from unet.data.io import volumes  # noqa: E402
from unet.tasks.folder import sets  # noqa: E402
from unet.tasks.folder.task import Folder  # noqa: E402

Cli = Callable[..., tuple[int, str, str]]
QUICK = ["--size", "S", "--width", "4", "--epochs", "1", "--epoch-batches", "2", "--batch-size", "2", "--device", "cpu"]
MADE = ["synthesize", "--task", "folder", "--data", "set", "--dicom", "--patients", "3", "--slices", "8"]
MADE += ["--side", "32"]
TOLD = (SECRET, "Doe", ID, "19510203", "20190405", "101112", "Roe", "A-99")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two steps on a made set of DICOM series, and the set beside them."""
    root = tmp_path_factory.mktemp("dicom")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(MADE) == 0
        words = ["train", "--task", "folder", "--data", "set", "--cache", "c", "--run-name", "a", *QUICK]
        assert main([*words, "--workers", "0"]) == 0
    return root / "weights/a.safetensors"


def test_a_made_set_from_check_to_scores(weights: Path, cli: Cli) -> None:
    root = weights.parent.parent
    data = root / "data/set"
    assert len(list((data / "images/case_000").iterdir())) == 8
    assert (data / "masks/case_000.dcm").is_file()
    settings = read_json(root / "performance/a/config.json")["settings"]["task"]
    assert settings["channels"]["value"] == ["CT"]
    assert settings["normalize"]["value"] == ["ct"]
    assert settings["classes"]["value"] == ["background", "body", "core"]
    code, out, err = cli("check", "--task", "folder", "--data", data)
    assert code == 0, out + err
    assert "0 errors, 0 warnings" in out
    code, _, err = cli("predict", data / "images", "--weights", weights, "--format", "both", "--overlay")
    assert code == 0, err
    for case in range(3):
        found = highdicom.seg.segread(f"predictions/case_{case:03}.dcm")
        uids = [pydicom.dcmread(path).SOPInstanceUID for path in sorted((data / f"images/case_{case:03}").iterdir())]
        pixels = found.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
        nifti = nibabel.load(f"predictions/case_{case:03}.nii.gz")
        assert np.array_equal(pixels, np.asarray(nifti.dataobj).transpose(2, 1, 0))
        assert [each.SegmentLabel for each in found.SegmentSequence] == ["body", "core"]
        assert Path(f"predictions/case_{case:03}_overlay.png").is_file()
    digest = json.loads(Path("predictions/predictions.jsonl").read_text().splitlines()[0])["weights"]
    assert digest in str(found.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters)
    for ending in ("dcm", "nii.gz"):
        folder = Path(ending)
        folder.mkdir()
        for path in Path("predictions").glob(f"*.{ending}"):
            shutil.copy(path, folder)
        code, out, err = cli("evaluate", "--predictions", folder, "--labels", data / "masks", "--run-name", ending[:3])
        assert code == 0, err
    first, second = (read_json(Path(f"performance/{name}/summary.json"))["best_score"] for name in ("dcm", "nii"))
    assert first == second
    code, _, err = cli("evaluate", "--predictions", data / "masks", "--labels", data / "masks", "--run-name", "same")
    assert code == 0, err
    assert read_json(Path("performance/same/summary.json"))["best_score"] == 1.0


def test_predict_of_a_folder_needs_no_other_flag(weights: Path, cli: Cli, tmp_path: Path) -> None:
    scan = tmp_path / "export/scan"
    volume = values(9, 30, 26)
    affine = series(scan / "deep/er", volume, orientation=OBLIQUE)
    code, out, err = cli("predict", scan, "--weights", weights)
    assert code == 0, err
    head = volumes.read_head(Path("predictions/scan.dcm"), volumes.read_head(scan))
    assert head.stored == (9, 30, 26)
    assert head.affine == pytest.approx(affine, abs=1e-4)
    assert "1 mask written, 0 were there already" in err
    code, out, err = cli("predict", scan, "--weights", weights)
    assert "0 masks written, 1 were there already" in err
    code, out, err = cli("predict", scan, "--weights", weights, "--output", "one/m.nii.gz")
    assert code == 0, err
    assert nibabel.load("one/m.nii.gz").affine == pytest.approx(affine[:, [2, 1, 0, 3]], abs=1e-4)
    words = error_of(cli("predict", scan, "--weights", weights, "--output", "n.png"), 2)
    assert "written in its own format" in words
    for path in [*Path("predictions").iterdir(), *Path("one").iterdir()]:
        if path.suffix != ".dcm":
            assert not any(word.encode() in path.read_bytes() for word in TOLD), path
    assert not any(word in out + err for word in TOLD)


def test_masks_in_another_format_are_made_again_too(weights: Path, cli: Cli, tmp_path: Path) -> None:
    series(tmp_path / "scan", values(8, 16, 16))
    assert cli("predict", tmp_path / "scan", "--weights", weights, "--format", "both")[0] == 0
    before = Path("predictions/scan.nii.gz").stat().st_mtime_ns
    code, _, err = cli("predict", tmp_path / "scan", "--weights", weights, "--overwrite")
    assert code == 0, err
    assert Path("predictions/scan.nii.gz").stat().st_mtime_ns > before


def test_several_series_are_listed_and_one_is_chosen(weights: Path, cli: Cli, tmp_path: Path) -> None:
    for name, count in (("a", 8), ("b", 9)):
        series(tmp_path / "scan", values(count, 16, 16), name=name)
    words = error_of(cli("predict", tmp_path / "scan", "--weights", weights))
    assert "holds 2 series" in words
    assert "1: CT, " in words
    assert "--series 1" in words
    assert not any(word in words for word in TOLD)
    uid = pydicom.uid.generate_uid(entropy_srcs=["b"])
    for chosen in ([tmp_path / "scan", "--series", uid], [f"{tmp_path / 'scan'}#{uid}"]):
        shutil.rmtree("predictions", ignore_errors=True)
        code, _, err = cli("predict", *chosen, "--weights", weights)
        assert code == 0, err
        like = volumes.read_head(tmp_path / f"scan#{uid}")
        assert volumes.read_head(Path("predictions/scan.dcm"), like).stored == (9, 16, 16)
    assert "no series 7" in error_of(cli("predict", tmp_path / "scan", "--series", "7", "--weights", weights))
    other = sorted({1, 2} - {volumes.dicom.series.find(tmp_path / f"scan#{uid}").number})[0]
    words = error_of(cli("predict", tmp_path / "scan", "--series", other, "--weights", weights), 2)
    assert "scan.dcm was made of other images" in words


def test_two_patients_in_a_folder(weights: Path, cli: Cli, tmp_path: Path) -> None:
    for name in ("one", "two"):
        series(
            tmp_path / "scan" / name,
            values(8, 16, 16),
            name=name,
            change=lambda header, _, name=name: setattr(header, "PatientID", f"ID-{name}"),
        )
    words = error_of(cli("predict", tmp_path / "scan", "--weights", weights))
    assert "holds images of 2 patients" in words
    assert "ID-" not in words
    code, _, err = cli("predict", tmp_path / "scan/one", tmp_path / "scan/two", "--weights", weights)
    assert code == 0, err
    assert {path.name for path in Path("predictions").glob("*.dcm")} == {"one.dcm", "two.dcm"}


def test_a_folder_without_masks_is_checked(cli: Cli, tmp_path: Path) -> None:
    series(tmp_path / "scan", values(8, 16, 16), name="a")
    code, out, err = cli("check", "--task", "folder", "--data", tmp_path / "scan")
    assert code == 0, out + err
    assert "CT, 8 slices of 16 x 16, 2.5 x 0.8 x 0.7 mm" in out
    series(tmp_path / "scan", values(6, 16, 16), name="b", places=(0, 1, 2, 4, 5, 6))
    code, out, err = cli("check", "--task", "folder", "--data", tmp_path / "scan")
    assert code == 1
    assert "1 slice missing: the gap between slices 3 and 4 of 6" in out
    assert not any(word in out + err for word in TOLD)


def test_series_is_for_dicom(weights: Path, cli: Cli, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    for words in (["--series", "1"], ["--format", "both"]):
        said = error_of(cli("predict", tmp_path / "a.nii.gz", *words, "--weights", weights), 2)
        assert f"{' '.join(words)}: for DICOM input, and none of the images is DICOM" in said
    assert cli("predict", tmp_path / "a.nii.gz", "--format", "nifti", "--weights", weights)[0] == 0


def test_previews_beside_a_series_are_left_out(weights: Path, cli: Cli, tmp_path: Path) -> None:
    series(tmp_path / "scan", values(8, 16, 16))
    (tmp_path / "scan/preview.png").write_bytes(b"")
    code, _, err = cli("predict", tmp_path / "scan", "--weights", weights)
    assert code == 0, err
    assert "read as DICOM; 1 other image there left out" in err


def test_a_table_of_series_with_masks_in_other_formats(cli: Cli, tmp_path: Path) -> None:
    """Folders, one of two series by its number, masks as NIfTI and as DICOM-SEG; patients stay together."""
    rows = ["case,image,mask"]
    names = {"class_0": "background", "class_1": "thing"}
    for number in range(4):
        folder = tmp_path / f"data/p{number}"

        def change(header: Any, _: int, number: int = number) -> None:
            header.PatientID = f"ID-{number // 2}"

        volume = values(8, 24, 20, seed=number).astype(np.int32)
        mask = np.zeros(volume.shape, np.uint8)
        mask[2:5, 4:14, 5:12] = 1
        series(
            folder,
            (volume + 900 * mask.astype(int)).astype(np.uint16),
            name=f"p{number}",
            orientation=OBLIQUE,
            change=change,
        )
        suffix = ".nii.gz" if number % 2 else ".dcm"
        volumes.write_labels(tmp_path / f"data/m{number}{suffix}", mask, folder, names)
        chosen = ""
        if number == 3:
            series(folder, values(7, 24, 20), name="z", change=change)
            chosen = f"#{pydicom.uid.generate_uid(entropy_srcs=['p3'])}"
        rows.append(f"case{number},p{number}{chosen},m{number}{suffix}")
    (tmp_path / "data/set.csv").write_text("\n".join(rows))
    code, out, err = cli("check", "--task", "folder", "--data", "data/set.csv")
    assert code == 0, out + err
    assert "patients               2" in out
    task = Folder(task_config("folder", data=str(tmp_path / "data/set.csv")))
    groups = task.groups()
    assert groups["case0"] == groups["case1"] != groups["case2"] == groups["case3"]
    assert not any("ID-" in group for group in groups.values())
    words = [
        "train",
        "--task",
        "folder",
        "--data",
        "data/set.csv",
        "--cache",
        "c",
        "--run-name",
        "a",
    ]
    code, out, err = cli(*words, "--workers", "0", *QUICK)
    assert code == 0, err
    counts = [case["counts"] for case in read_json(Path("data/c/manifest.json"))["cases"].values()]
    assert len({tuple(each.items()) for each in counts}) == 1  # the same mask, whatever its format
    for path in [*Path("performance/a").rglob("*"), *Path("data/c").rglob("*.json")]:
        if path.is_file():
            assert not any(word.encode() in path.read_bytes() for word in (*TOLD, "ID-0")), path


def test_images_of_a_set_may_be_folders(tmp_path: Path) -> None:
    for number in range(2):
        series(tmp_path / f"images/c{number}", name=f"c{number}")
        (tmp_path / "masks").mkdir(exist_ok=True)
        names = {"class_0": "background", "class_1": "thing"}
        volumes.write_labels(tmp_path / f"masks/c{number}.dcm", values() % 2, tmp_path / f"images/c{number}", names)
    found = sets.find(tmp_path)
    assert {name: case.images[0].name for name, case in found.cases.items()} == {"c0": "c0", "c1": "c1"}
    assert sets.inputs([tmp_path], 1) == {"c0": (tmp_path / "images/c0",), "c1": (tmp_path / "images/c1",)}
    assert sets.inputs([tmp_path / "images"], 1) == sets.inputs([tmp_path], 1)
    assert sets.inputs([tmp_path / "images/c0"], 1) == {"c0": (tmp_path / "images/c0",)}
    shutil.copy(next((tmp_path / "images/c1").iterdir()), tmp_path / "images/loose")
    assert "loose" in sets.inputs([tmp_path], 1)
