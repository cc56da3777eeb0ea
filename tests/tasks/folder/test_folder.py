"""The task as a user has it: from a set in any format to masks, without a setting typed; what is refused."""

from __future__ import annotations

import csv
import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from builders import task_config
from conftest import error_of, read_json
from PIL import Image
from tasks.folder import sets as made

from unet import host
from unet.cli import explain_flags
from unet.errors import DataError
from unet.tasks.folder import plan, scoring, sets
from unet.tasks.folder.fingerprint import look
from unet.tasks.folder.labels import from_values
from unet.tasks.folder.task import Folder
from unet.tasks.folder.topology import fitted, topology

Cli = Callable[..., tuple[int, str, str]]
QUICK = ["--size", "S", "--width", "4", "--epochs", "1", "--epoch-batches", "2", "--batch-size", "2", "--device", "cpu"]


def decided(root: Path, size: str = "M", **typed: Any) -> dict[str, Any]:
    found = sets.find(root)
    seen = look(found)
    labels = from_values(list(seen.values()), found.names.classes, found.names.ignore, root)
    channels = found.names.channels or tuple(f"channel {n}" for n in range(seen.channels))
    return plan.as_settings(plan.decide(seen, labels, channels, size, typed))


@pytest.mark.usefixtures("here")
def test_training_scoring_and_prediction_without_a_setting(cli: Cli, tmp_path: Path) -> None:
    made.nnunet(tmp_path / "data/set", channels=2, classes=3)
    host.notice_once.cache_clear()  # another test may have caused the notice
    code, out, err = cli("train", "--task", "folder", "--data", "set", "--cache", "c", "--run-name", "a", *QUICK)
    assert code == 0, err
    assert "No split was given: fold 0 of 4" in err or "fold 0 of 5" in err
    assert "organ 1" in out
    assert "surf. organ 2" in out
    settings = read_json(Path("performance/a/config.json"))["settings"]
    assert settings["task"]["classes"] == {"value": ["background", "organ 1", "organ 2"], "source": "data"}
    assert settings["task"]["channels"]["value"] == ["T1", "T2"]
    code, out, err = cli("predict", "--weights", "a.safetensors", "data/set/imagesTr/case_1_0000.nii.gz", "--overlay")
    assert code == 0, err
    mask, image = (nibabel.load(path) for path in ("predictions/case_1.nii.gz", "data/set/imagesTr/case_1_0000.nii.gz"))
    assert (mask.affine == image.affine).all()
    assert mask.shape == image.shape
    assert "class_2: organ 2" in str(mask.header.extensions[0].get_content())
    assert Path("predictions/case_1_overlay.png").is_file()
    first = read_json(Path("performance/a/summary.json"))["best_score"]
    code, out, err = cli("evaluate", "--weights", "a.safetensors", "--data", "set", "--cache", "c", "--run-name", "e")
    assert code == 0, err
    assert read_json(Path("performance/e/summary.json"))["item"] == "windows", "what its rate counts"
    rows = list(csv.DictReader(io.StringIO(Path("performance/e/cases.csv").read_text())))
    assert {"case", "mean_dice", "dice_1", "dice_2", "surface_1", "hd95_2", "volume_1"} <= set(rows[0])
    assert first is not None
    for run in "ae":  # the report's pictures name the classes
        pictured = read_json(Path(f"performance/{run}/cases/index.json"))["cases"][0]
        assert [name for name, _ in pictured["key"]["labels"]] == ["organ 1", "organ 2"]


@pytest.mark.usefixtures("here")
def test_the_command_for_a_changed_set_runs_as_it_is_printed(cli: Cli, tmp_path: Path) -> None:
    made.pairs(tmp_path / "data/set", ".nii.gz", cases=3)  # two words in a channel's name, no intensities
    build = ["preprocess", "--task", "folder", "--data", "set", "--cache", "c", "--channels", "channel 0"]
    build += ["--resample-masks", "--crop-background"]
    assert cli(*build)[0] == 0
    made.write(tmp_path / "data/set/images/case_1.nii.gz", made.volume(9)[0])
    words = error_of(cli("train", *build[1:], *QUICK), 1)
    assert "1 cases changed" in words
    again = shlex.split(words.partition("Type: ")[2])
    assert again[:4] == ["python", "-m", "unet", "preprocess"]
    code, _, err = cli(*again[3:])
    assert (code, "1 cases made, 2 kept" in err) == (0, True), err


@pytest.mark.usefixtures("here")
def test_flat_pictures_with_values_of_0_and_255(cli: Cli, tmp_path: Path) -> None:
    made.pairs(tmp_path / "data/set", ".png", cases=5, values=lambda mask: mask * np.uint8(255))
    code, _, err = cli("train", "--task", "folder", "--data", "set", "--cache", "c", "--run-name", "a", *QUICK)
    assert code == 0, err
    assert "masks hold 0 (background), 255 (foreground)" in err
    code, _, err = cli("predict", "--weights", "a.safetensors", "data/set/images")
    assert code == 0, err
    masks = [np.asarray(Image.open(path)) for path in sorted(Path("predictions").glob("*.png"))]
    assert len(masks) == 5
    assert set(np.unique(np.stack(masks))) <= {0, 255}


@pytest.mark.usefixtures("here")
def test_a_set_that_numbers_classes_or_channels_in_another_order_is_refused(cli: Cli, tmp_path: Path) -> None:
    """The network's class 1 would be scored against another organ, its first channel be another sequence."""
    made.nnunet(tmp_path / "data/set", channels=2, classes=3)
    code, _, err = cli("train", "--task", "folder", "--data", "set", "--cache", "c", "--run-name", "a", *QUICK)
    assert code == 0, err

    def other(name: str, **content: Any) -> tuple[str, ...]:
        root = Path(shutil.copytree("data/set", f"data/{name}"))
        (root / "dataset.json").write_text(json.dumps({**read_json(root / "dataset.json"), **content}))
        return (
            "evaluate",
            "--data",
            name,
            "--cache",
            f"c-{name}",
            "--weights",
            "a",
            "--device",
            "cpu",
            "--split",
            "none",
        )

    classes = other("classes", labels={"background": 0, "Organ 1": 2, "organ 2": 1})
    error = error_of(cli(*classes))
    assert (
        "dataset.json: gives classes other values than the network's settings: organ 1 2 (the network: 1), organ 2 1"
        in error
    )
    assert "--label-values 0 2 1" in error
    code, _, err = cli(*classes, "--label-values", 0, 2, 1)
    assert code == 0, err
    train = ("train", "--config", "performance/a/config.json", "--data", "classes", "--run-name", "b")
    assert "gives classes other values" in error_of(cli(*train, "--cache", "d"))
    swapped = "dataset.json: the channels are T2, T1; the network takes T1, T2"
    assert swapped in error_of(cli(*other("channels", channel_names={"0": "T2", "1": "T1"})))
    for place in ("data/channels", "data/channels/imagesTr", "data/channels/imagesTr/case_0_0000.nii.gz"):
        assert swapped in error_of(cli("predict", place, "--weights", "a", "--device", "cpu", "--output", "p"))
    renamed = other("renamed", labels={"background": 0, "left": 1, "right": 2}, channel_names={"0": "PD", "1": "T1w"})
    code, _, err = cli(*renamed)
    assert code == 0, err


@pytest.mark.usefixtures("here")
def test_a_plan_is_what_training_takes(cli: Cli, tmp_path: Path) -> None:
    made.nnunet(tmp_path / "data/set")
    code, out, err = cli("plan", "--data", "set", "--cache", "c", "--size", "S", "--width", "4", "--device", "cpu")
    assert code == 0, err
    assert "trying --size S on cpu" in err  # it may take minutes: what is waited for is told
    assert "trying a step of" in err
    lines = out.splitlines()
    assert any(line.startswith("--patch 12 24 20 · the shape of the median case") for line in lines)
    assert any("typed" in line for line in lines if line.startswith("--width 4"))
    written = read_json(Path("plan.json"))
    code, out, err = cli(
        "plan", "--data", "set", "--cache", "c", "--width", "4", "--device", "cpu", "--overwrite", "--json"
    )
    assert code == 0, err
    assert {item["name"]: item["value"] for item in json.loads(out)["settings"]}["patch"] == written["patch"]
    Path("plan.json").write_text(json.dumps(written))
    assert written["width"] == 4
    assert written["task"] == "folder"
    kept = ["--encoder", "residual", "--resample-masks", "--epoch-batches", "9", "--plan-file", "own.json"]
    assert cli("plan", "--data", "set", "--cache", "c", "--width", "4", "--device", "cpu", *kept)[0] == 0
    own = read_json(Path("own.json"))
    assert (own["encoder"], own["resample_masks"], own["epoch_batches"]) == ("residual", True, 9)
    assert "device" not in own
    code, _, err = cli("train", "--config", "plan.json", "--run-name", "a", *QUICK[4:])
    assert code == 0, err
    kept = read_json(Path("performance/a/config.json"))["settings"]
    assert kept["task"]["patch"]["source"] == "file plan.json"
    assert "plan.json exists" in error_of(cli("plan", "--data", "set"), 2)
    shutil.copytree("data/set", "data/other")
    for path in Path("data/other/labelsTr").iterdir():
        made.write(path, made.volume(1, classes=4)[1])
    words = error_of(cli("train", "--config", "plan.json", "--data", "other", "--cache", "o", "--run-name", "b"), 1)
    assert "holds the value" in words
    Path("plan.json").write_text(json.dumps({**written, "patch": [7, "x", 3], "normalize": ["magic"]}))
    words = error_of(cli("train", "--config", "plan.json", "--run-name", "c"), 2)
    assert "patch" in words
    assert "magic" in words


@pytest.mark.usefixtures("here")
@pytest.mark.slow
def test_hours_choose_size_batch_and_epochs(cli: Cli, tmp_path: Path) -> None:
    made.nnunet(tmp_path / "data/set")
    typed = ["--data", "set", "--cache", "c", "--device", "cpu", "--width", "2", "--overwrite", "--json"]
    code, out, err = cli("plan", *typed, "--hours", "1e-4")
    assert code == 0, err
    assert "steps fit into the time" in err
    short = json.loads(out)
    chosen = {each["name"]: each["value"] for each in short["settings"]}
    assert read_json(Path("plan.json"))["size"] == "S"  # not even the smallest network has the steps that it wants
    assert chosen["batch_size"] == short["tried"]["batch"] == 2  # halved as far as it goes
    assert chosen["epochs"] == 10
    assert 1 <= chosen["epoch_batches"] < 250
    code, out, err = cli("plan", *typed, "--hours", "100", "--epoch-batches", "50")
    assert code == 0, err
    found = json.loads(out)
    chosen = {each["name"]: each["value"] for each in found["settings"]}
    assert read_json(Path("plan.json"))["size"] == "L"
    steps = 100 * 3600 / found["tried"]["seconds"]
    assert chosen["epochs"] * 50 == pytest.approx(steps, rel=0.01)
    assert chosen["evaluate_every"] == chosen["epochs"] // 5
    assert read_json(Path("plan.json"))["epochs"] == chosen["epochs"]


def test_help_of_plan_is_that_of_a_set_of_ones_own() -> None:
    assert "Flags and defaults of --task folder" in " ".join(explain_flags("plan", ["--help"]).split())


def test_plan_is_for_tasks_that_follow_from_data(cli: Cli) -> None:
    words = error_of(cli("plan", "--task", "lgg"), 2)
    assert "The settings of task lgg do not follow from the data" in words
    assert "--task folder" in words


def test_cases_of_a_patient_stay_together(tmp_path: Path) -> None:
    made.pairs(tmp_path / "files", ".npy", cases=9)
    rows = [f"files/images/case_{n}.npy,files/masks/case_{n}.npy,P{n // 3}" for n in range(9)]
    (tmp_path / "set.csv").write_text("image,mask,patient\n" + "\n".join(rows))
    for fold in range(3):
        task = Folder(task_config("folder", data=str(tmp_path / "set.csv"), fold=fold, folds=3))
        split = task.split([f"case_{n}" for n in range(9)])
        patients = {case: int(case[5:]) // 3 for part in split.values() for case in part}
        assert len({patients[case] for case in split["validation"]}) == 1
        assert not {patients[case] for case in split["train"]} & {patients[case] for case in split["validation"]}
    (tmp_path / "names.txt").write_text("case_0\n")
    task = Folder(task_config("folder", data=str(tmp_path / "set.csv"), split=str(tmp_path / "names.txt")))
    with pytest.raises(DataError, match="'P0' is in both parts of the split: case_2 trains, case_0 validates"):
        task.split([f"case_{n}" for n in range(9)])


@pytest.mark.usefixtures("here")
def test_the_plan_of_a_flat_set_and_of_a_deep_one(tmp_path: Path) -> None:
    flat = decided(made.pairs(tmp_path / "flat", ".png"))
    assert flat["patch"][0] == 1
    assert flat["orientation"] == "as-stored"
    deep = decided(made.nnunet(tmp_path / "deep"))
    assert deep["patch"] == (12, 24, 20)
    assert deep["spacing"] == (2.0, 1.0, 1.0)
    assert deep["normalize"] == ("zscore",)
    typed = decided(tmp_path / "deep", patch=(8, 8, 8), normalize=("none",))
    assert typed["patch"] == (8, 8, 8)
    assert typed["normalize"] == ("none",)


def test_thick_slices_are_neither_halved_nor_looked_across_at_first() -> None:
    found = topology((16, 128, 128), (5.0, 1.0, 1.0), 5)
    assert found.kernels[:3] == ((1, 3, 3), (1, 3, 3), (3, 3, 3))
    assert found.strides[:4] == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert fitted((17, 120, 121), (5.0, 1.0, 1.0), 5) == (16, 128, 128)
    flat = topology((1, 256, 256), (1.0, 1.0, 1.0), 6)
    assert {kernel[0] for kernel in flat.kernels} == {1}
    assert flat.multiples == (1, 64, 64)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: made.write(root / "masks/case_1.png", np.zeros((9, 24, 4))), "image and mask differ: size"),
        (lambda root: made.write(root / "images/case_1.png", np.zeros((9, 24, 4))), "size 1 x 24 x 9 and 1 x 24 x 20"),
        (
            lambda root: Image.new("RGB", (20, 24), (9, 8, 7)).save(root / "masks/case_1.png"),
            "a mask in colours",
        ),
        (
            lambda root: Image.new("RGB", (20, 24)).save(root / "images/case_1.png"),
            "case_1 has 3 channels, 3 of 4 cases",
        ),
        (
            lambda root: [made.write(path, np.zeros((20, 24, 4))) for path in root.glob("masks/*")],
            "every mask is empty",
        ),
        (lambda root: (root / "images/case_1.png").write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_named_with_its_case(change: Any, words: str, cli: Cli, tmp_path: Path) -> None:
    change(made.pairs(tmp_path / "data/set", ".png"))
    found = error_of(cli("train", "--task", "folder", "--data", "set", "--cache", "c", "--run-name", "a", *QUICK))
    assert words in found


@pytest.mark.usefixtures("here")
def test_pictures_of_a_prediction_are_no_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("masks", "ours"):
        (tmp_path / folder).mkdir()
        made.write(tmp_path / folder / "c.nii.gz", made.volume(0)[1])
    for name in ("c_overlay.png", "other_overlay.png"):
        (tmp_path / "ours" / name).write_bytes(b"")
    assert [pair.name for pair in scoring.pairs(tmp_path / "ours", tmp_path / "masks")] == ["c"]
    assert "1 prediction without a mask are left out (other_overlay)" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_check_lists_every_fault_of_a_set(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_text("image,mask\n" + "".join(f"i{n}.png,m{n}.png\n" for n in range(3)))
    assert cli("check", "--task", "folder", "--data", tmp_path / "set.csv")[0] == 1
    out = cli("check", "--task", "folder", "--data", tmp_path / "set.csv")[1]
    assert all(f"line {n + 2}: {tmp_path / kind}{n}.png is not there" in out for n in range(3) for kind in "im")
    assert "6 errors" in out and "all faults" not in out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("table", [False, True])
def test_check_reads_the_cases_that_are_whole_where_others_lack_a_mask(table: bool, cli: Cli, tmp_path: Path) -> None:
    root = made.pairs(tmp_path / "data/set", ".png", cases=6)
    rows = ["image,mask", *(f"images/case_{n}.png,masks/case_{n}.png" for n in range(6))]
    (root / "set.csv").write_text("\n".join(rows))
    (root / "masks/case_5.png").unlink()
    Image.fromarray(np.ones((5, 7), np.uint8)).save(root / "masks/case_4.png")
    (root / "images/case_3.png").write_bytes((root / "images/case_3.png").read_bytes()[:60])
    shutil.copy(root / "images/case_0.png", root / "images/case_1.png")
    code, out, _ = cli("check", "--task", "folder", "--data", root / "set.csv" if table else root)
    assert code == 1
    lacks = f"{root / 'masks/case_5.png'} is not there" if table else "images/case_5.png: no mask of the name case_5"
    for words in (lacks, "case_4: image and mask differ", "images/case_3.png: ", "case_0 and case_1 hold the same"):
        assert words in out
    assert "3 errors, 1 warning" in out


@pytest.mark.usefixtures("here")
def test_check_finds_leaks_and_rare_classes(cli: Cli, tmp_path: Path) -> None:
    root = made.pairs(tmp_path / "data/set", ".nii.gz", cases=5)
    split = Folder(task_config("folder", data=str(root))).split([f"case_{n}" for n in range(5)])
    held, kept = split["validation"][0], split["train"][0]
    shutil.copy(root / f"images/{held}.nii.gz", root / f"images/{kept}.nii.gz")
    mask = made.volume(3)[1]
    mask[0, 0, 0] = 9
    made.write(root / f"masks/{kept}.nii.gz", mask)
    code, out, _ = cli("check", "--task", "folder", "--data", "set")
    assert code == 1
    assert "leakage:" in out
    assert "value 9 of the masks is in one case only" in out


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("patients", [False, True])
def test_train_tells_of_leaks_as_check_does(patients: bool, cli: Cli, tmp_path: Path) -> None:
    root = made.pairs(tmp_path / "set", ".png", cases=6)
    shutil.copy(root / "images/case_1.png", root / "images/case_4.png")
    groups = ["a", "p", "c", "d", "p", "f"] if patients else list("abcdef")
    rows = [f"images/case_{n}.png,masks/case_{n}.png,{group}" for n, group in enumerate(groups)]
    (root / "set.csv").write_text("image,mask,patient\n" + "\n".join(rows))
    (tmp_path / "split.json").write_text(json.dumps({"validation": ["case_1"] + ["case_4"] * patients}))
    words = ("--task", "folder", "--data", root / "set.csv", "--split", "split.json")
    code, out, _ = cli("check", *words)
    pair = "case_1 and case_4 hold the same image" if patients else "case_4 and case_1 hold the same image"
    assert (code, "leakage: " in out, "duplicate: " in out) == ((0, False, True) if patients else (1, True, False))
    for _ in range(2):  # where the cache is made, and where it is there
        code, _, err = cli("train", *words, "--cache", "c", "--dry-run", *QUICK)
        assert code == 0, err
        assert (f"leakage: {pair}; one trains" in err) is not patients
        command = f"python -m unet check --task folder --data {root / 'set.csv'} --cache c"
        assert (command in err) is not patients


@pytest.mark.usefixtures("here")
def test_scores_of_predictions_say_which_cases_their_weights_were_trained_on(cli: Cli, tmp_path: Path) -> None:
    made.nnunet(tmp_path / "set", cases=5)
    (tmp_path / "split.json").write_text(json.dumps({"validation": ["case_1", "case_3"]}))
    words = ("--task", "folder", "--data", tmp_path / "set", "--cache", "c", "--split", "split.json", "--run-name", "a")
    code, _, err = cli("train", *words, *QUICK)
    assert code == 0, err
    assert cli("predict", "--weights", "a.safetensors", "set/imagesTr", "--device", "cpu")[0] == 0
    score = ("evaluate", "--predictions", "predictions", "--labels", "set/labelsTr", "--overwrite", "--run-name", "s")
    code, out, err = cli(*score)
    assert code == 0, err
    scores = read_json(Path("performance/s/summary.json"))
    assert scores["trained_on"] == ["case_0", "case_2", "case_4"]
    rows = {row["case"]: row for row in csv.DictReader(io.StringIO(Path("performance/s/cases.csv").read_text()))}
    mean = np.mean([float(rows[case]["mean_dice"]) for case in ("case_1", "case_3")])
    said = " ".join(out.split())
    assert "3 of the 5 cases were used to train the weights that predicted them: their scores are too good" in said
    assert f"; the mean Dice of the 2 others is {mean:.4f}." in said
    shutil.copy("predictions/case_1.nii.gz", "predictions/case_0.nii.gz")  # no longer what was predicted
    assert "2 of the 5 cases were used" in " ".join(cli(*score)[1].split())
    Path("predictions/predictions.jsonl").unlink()
    assert "were used" not in cli(*score)[1]


@pytest.mark.usefixtures("here")
def test_label_maps_of_any_program_are_scored(cli: Cli, tmp_path: Path) -> None:
    made.nnunet(tmp_path / "set", classes=3)
    for number in range(4):
        mask = made.volume(number, classes=3)[1]
        if number == 1:
            mask[mask == 2] = 0
        if number == 2:
            mask = np.roll(mask, 1, 0)
        made.write(tmp_path / f"found/case_{number}.nii.gz", mask)
    code, out, err = cli("evaluate", "--predictions", "found", "--labels", "set/labelsTr", "--run-name", "s")
    assert code == 0, err
    rows = {row["case"]: row for row in csv.DictReader(io.StringIO(Path("performance/s/cases.csv").read_text()))}
    assert float(rows["case_0"]["mean_dice"]) == 1
    assert (float(rows["case_1"]["dice_2"]), rows["case_1"]["hd95_2"]) == (0, "nan")
    assert float(rows["case_1"]["volume_2"]) == -1
    assert 0.5 < float(rows["case_2"]["dice_1"]) < 1
    assert float(rows["case_2"]["hd95_1"]) == pytest.approx(1, abs=1e-6)
    assert float(rows["case_2"]["surface_1"]) == 1  # within 1 mm
    lines = [line.split()[0] for line in out.splitlines() if line.strip().startswith("case_")]
    assert lines[0] == "case_1", "the worst comes first"
    assert "organ 2" in out
    (tmp_path / "found/case_3.nii.gz").unlink()
    words = error_of(cli("evaluate", "--predictions", "found", "--labels", "set/labelsTr", "--run-name", "t"))
    assert "labelsTr/case_3: no prediction of this name in found" in words
    made.write(tmp_path / "found/case_3.nii.gz", mask[:-1])
    words = error_of(cli("evaluate", "--predictions", "found", "--labels", "set/labelsTr", "--run-name", "t"))
    assert "case_3: mask and prediction differ: size 20 x 24 x 12 and 19 x 24 x 12" in words
    assert "--labels DIR" in error_of(cli("evaluate", "--predictions", "found"), 2)
    assert "not scored by task lgg" in error_of(
        cli("evaluate", "--predictions", "found", "--labels", "set/labelsTr", "--task", "lgg"), 2
    )


@pytest.mark.usefixtures("here")
def test_a_class_that_these_masks_lack_is_scored(cli: Cli, tmp_path: Path) -> None:
    """A rare class in a small set of tests, without a dataset.json."""
    for number in range(2):
        mask = made.volume(number, classes=2)[1]
        made.write(tmp_path / f"masks/case_{number}.nii.gz", mask)
        mask[:3] = 2
        made.write(tmp_path / f"found/case_{number}.nii.gz", mask)
    code, _, err = cli("evaluate", "--predictions", "found", "--labels", "masks", "--run-name", "s")
    assert code == 0, err
    assert "No mask holds the value 2" in err
    rows = list(csv.DictReader(io.StringIO(Path("performance/s/cases.csv").read_text())))
    assert all(float(row["dice_2"]) == 0 for row in rows)
    typed = ("--label-values", "0", "1", "--classes", "none", "organ")
    words = error_of(cli("evaluate", "--predictions", "found", "--labels", "masks", "--run-name", "t", *typed))
    assert "holds the value 2" in words
    assert "Correct or remove these cases" not in words, "the fault's own advice is lost"


@pytest.mark.usefixtures("here")
def test_a_table_and_its_weights(cli: Cli, tmp_path: Path) -> None:
    """Channels whose names say nothing of the case, as in BIDS: trained and predicted from tables."""
    lines = []
    for number in range(4):
        image, mask = made.volume(number, (16, 16, 8))
        for kind, factor in (("flair", 1), ("t1", 2)):
            made.write(tmp_path / f"raw/sub-{number}_{kind}.nii.gz", image * factor)
        made.write(tmp_path / f"raw/sub-{number}_seg.nii.gz", mask)
        lines.append(f"sub-{number},sub-{number}_flair.nii.gz,sub-{number}_t1.nii.gz,sub-{number}_seg.nii.gz\n")
    (tmp_path / "raw/set.csv").write_text("case,image_1,image_2,mask\n" + "".join(lines))
    train = ("train", "--task", "folder", "--data", "raw/set.csv", "--patch", "8", "8", "8", "--width", "4")
    code, _, err = cli(*train, "--max-steps", "1", "--eval-steps", "1", "--run-name", "tab")
    assert code == 0, err
    code, _, err = cli("predict", "--weights", "tab.safetensors", "raw/set.csv", "--output", "masks")
    assert code == 0, err
    assert sorted(path.name for path in Path("masks").glob("*.nii.gz")) == [f"sub-{n}.nii.gz" for n in range(4)]


@pytest.mark.usefixtures("here")
def test_one_image_into_one_file(cli: Cli, tmp_path: Path) -> None:
    made.pairs(tmp_path / "data/set", ".tif", cases=4)
    code, _, err = cli("train", "--task", "folder", "--data", "set", "--cache", "c", "--run-name", "a", *QUICK)
    assert code == 0, err
    one = ["predict", "--weights", "a.safetensors", "data/set/images/case_1.tif", "--output"]
    assert cli(*one, "out/mine.tif")[0] == 0
    assert Path("out/mine.tif").is_file()
    code, _, err = cli(*one, "out/mine.tif")
    assert code == 0
    assert "1 were there already" in err
    assert "is written in its own format, as mine.tif" in error_of(cli(*one, "out/mine.png"), 2)
    several = error_of(cli("predict", "--weights", "a.safetensors", "data/set", "--output", "out/mine.tif"), 2)
    assert "names one file, and 4 images are to be predicted" in several
