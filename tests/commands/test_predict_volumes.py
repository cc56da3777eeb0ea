"""predict --volumes: voxels and sizes of each class, on known masks and grids; what a stopped command leaves."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
from builders import task_config
from conftest import error_of, program
from PIL import Image
from test_predict_outputs import WORDS, paint, save_network

from unet.cli import resolve
from unet.commands import predict_volumes
from unet.commands.predict_volumes import COLUMNS, TABLE
from unet.config.flags_training import PredictOptions
from unet.data.io.arrays import write_stack, write_tiff
from unet.errors import UsageError
from unet.runtime.folders.output_folder import OutputFolder
from unet.tasks.registry import create

Run = Callable[..., tuple[int, str, str]]
OBLIQUE = np.array([[0, -0.768, -1.4, 4], [0.7, 0, 0.9, -5], [0, 0.224, -4.8, 6], [0, 0, 0, 1]])


def labelled(shape: tuple[int, ...], **counts: int) -> Any:
    """uint8, with as many voxels of each value ("v2")."""
    values = np.repeat([int(name[1:]) for name in counts], list(counts.values()))
    return np.pad(values, (0, int(np.prod(shape)) - len(values))).reshape(shape).astype(np.uint8)


def table() -> list[dict[str, str]]:
    with Path("out", TABLE).open(newline="") as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return list(reader)


def rows_of(task: Any, folder: Path, images: list[Path], out: Path) -> list[tuple[Any, ...]]:
    found = predict_volumes.count(task, {folder: images}, [folder], OutputFolder(out), PredictOptions())
    return [tuple(row[name] for name in COLUMNS) for row in found]


def test_a_scan_by_its_affine(tmp_path: Path) -> None:
    """Axes that are not at right angles too: a voxel has the determinant of the affine."""
    task: Any = create(resolve("predict", ["--task", "kits19"]).config)
    image, mask = tmp_path / "case_1/imaging.nii.gz", tmp_path / "out/case_1.nii.gz"
    for path, array in ((image, np.zeros((4, 5, 6), np.int16)), (mask, labelled((4, 5, 6), v1=10, v2=3))):
        path.parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, OBLIQUE), path)
    each = abs(np.linalg.det(OBLIQUE[:3, :3])) / 1000
    assert each != pytest.approx(float(np.prod(np.linalg.norm(OBLIQUE[:3, :3], axis=0))) / 1000)
    found = rows_of(task, Path("case_1"), [image], tmp_path / "out")
    assert [row[:3] for row in found] == [("case_1", "kidney", 10), ("case_1", "tumour", 3)]
    assert [row[3] for row in found] == pytest.approx([10 * each, 3 * each], rel=1e-5)
    assert [row[4] for row in found] == [None, None]


@pytest.mark.parametrize("name", ["a.npy", "a.png", "a.tif", "a.nii.gz"])
def test_images_of_ones_own_by_what_their_format_says(name: str, tmp_path: Path) -> None:
    how = {"classes": ("background", "cell", "edge"), "label_values": (0, 7, 4)}
    task: Any = create(task_config("folder", **how, channels=("a",), patch=(1, 8, 8), spacing=(1.0, 1.0, 1.0)))
    mask, (image, place) = labelled((6, 5), v4=2, v7=9), (tmp_path / name, tmp_path / "out" / name)
    place.parent.mkdir()
    if name.endswith(".npy"):
        np.save(image, mask)
    elif name.endswith(".png"):
        Image.fromarray(mask).save(image)
    elif name.endswith(".tif"):
        tifffile.imwrite(image, mask, imagej=True, resolution=(4, 2), metadata={"unit": "mm"})
    else:
        nibabel.save(nibabel.Nifti1Image(mask[..., None], np.diag([0.5, 0.25, 8, 1])), image)
    shutil.copy(image, place)
    sizes = {"a.tif": [(None, 1.125), (None, 0.25)], "a.nii.gz": [(0.009, None), (0.002, None)]}
    cell, edge = sizes.get(name, [(None, None)] * 2)
    assert rows_of(task, Path("a"), [image], place.parent) == [("a", "cell", 9, *cell), ("a", "edge", 2, *edge)]


@pytest.mark.parametrize("axes", ["ZYX", "CYX"])  # ImageJ counts pages without a meaning as channels
def test_slices_of_a_patient_and_a_stack(axes: str, tmp_path: Path) -> None:
    """Slices in files of their own do not say how far apart they lie; the stack of a microscope does."""
    lgg: Any = create(resolve("predict", ["--task", "lgg"]).config)
    patient = paint(tmp_path / "P1", 0, count=2)
    images = sorted(patient.iterdir())
    for image, count in zip(images, (3, 4), strict=True):
        (tmp_path / "out/P1").mkdir(parents=True, exist_ok=True)
        write_tiff(tmp_path / "out/P1" / image.name, labelled((32, 32), v255=count))
    assert rows_of(lgg, patient, images, tmp_path / "out") == [("P1", "tumour", 7, None, None)]
    em: Any = create(resolve("predict", ["--task", "em"]).config)
    stack, how = tmp_path / "s.tif", {"unit": "micron", "spacing": 2.0, "axes": axes}
    tifffile.imwrite(stack, np.zeros((2, 4, 5), np.uint8), imagej=True, resolution=(4, 4), metadata=how)
    write_stack(tmp_path / "out/s-masks.tif", labelled((2, 4, 5), v255=30), ((4, 1), (4, 1)), "micron")
    each = 2 * 0.25**2 * 1e-9 / 1000
    found = rows_of(em, Path("s"), [stack], tmp_path / "out")
    assert [row[1:3] for row in found] == [("membrane", 10), ("cell", 30)]
    assert [row[3] for row in found] == pytest.approx([10 * each, 30 * each], rel=1e-5, abs=0)


def test_a_task_without_masks_is_refused() -> None:
    with pytest.raises(UsageError, match="--volumes: the task brains writes no masks"):
        predict_volumes.require(create(resolve("predict", ["--task", "brains"]).config))


@pytest.fixture
def predict(cli: Run, workplace: Path) -> Run:
    save_network(workplace / "w.pt", 0, head=1.0)  # all is tumour
    paint(workplace / "P1", 1)
    paint(workplace / "P2", 2, count=2)
    return lambda *words: cli(*WORDS, *words)


def counted(patient: str) -> int:
    return sum(np.count_nonzero(tifffile.imread(path)) for path in Path("out", patient).iterdir())


def test_the_table_goes_on_as_the_masks_do(predict: Run) -> None:
    assert predict("./P1")[0] == 0  # an earlier command wrote these without a table
    code, out, err = predict("./P1", "./P2", "--volumes", "--json")
    assert code == 0, err
    assert "2 masks written, 3 were there already" in err and "out/volumes.csv: the volumes of 2 patients" in err
    found = json.loads(out)
    expected = [{"case": each, "class": "tumour", "voxels": counted(each)} for each in ("P1", "P2")]
    assert [{key: row[key] for key in expected[0]} for row in found["volumes"]] == expected
    assert found["volumes"][0]["volume_ml"] is None and (found["written"], found["kept"]) == (2, 3)
    assert min(counted("P1"), counted("P2")) > 0
    rows = table()
    assert [(row["case"], int(row["voxels"]), row["volume_ml"], row["area_mm2"]) for row in rows] == [
        (each, counted(each), "", "") for each in ("P1", "P2")
    ]
    Path("out/P2/P2_2.tif").unlink()  # as after a stop
    Path("out", TABLE).unlink()
    assert predict("./P2", "--volumes")[0] == 0
    assert table() == rows[1:]
    assert predict("./P1", "--volumes")[0] == 0
    assert table() == rows, "rows of other cases stay"


def test_a_table_of_others_is_not_replaced(predict: Run) -> None:
    Path("out").mkdir()
    Path("out", TABLE).write_text("mine\n")
    assert "out/volumes.csv is there" in error_of(predict("./P1", "--volumes", "--overwrite"), 2)
    assert not Path("out/P1").exists() and Path("out", TABLE).read_text() == "mine\n"
    Path("out", TABLE).unlink()
    assert predict("./P1", "--volumes")[0] == 0
    Path("out", TABLE).write_text("mine\n")
    assert "was changed after this program wrote it" in error_of(predict("./P1", "--volumes"), 2)
    assert predict("./P1", "--volumes", "--overwrite")[0] == 0
    assert [row["case"] for row in table()] == ["P1"]


def test_a_case_that_is_left_out_has_no_row(predict: Run) -> None:
    Path("P2/P2_1.tif").write_bytes(b"II*\0broken")
    code, out, _ = predict("./P1", "./P2", "--volumes", "--json")
    assert code == 1
    assert [row["case"] for row in table()] == ["P1"] == [row["case"] for row in json.loads(out)["volumes"]]
    assert "P2" in json.loads(out)["left_out"][0]


@pytest.mark.slow
def test_several_processes_make_one_table(predict: Run, workplace: Path) -> None:
    assert predict("./P1", "./P2", "--volumes", "--output", "one")[0] == 0
    done = program(*WORDS, "./P1", "./P2", "--volumes", "--devices", 2, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert [row["case"] for row in table()] == ["P1", "P2"]
    assert Path("one", TABLE).read_text() == Path("out", TABLE).read_text()
