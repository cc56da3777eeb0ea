"""Folds and runs that were trained on other data than there is now."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
from conftest import TINY, error_of

from unet.cli import resolve
from unet.commands import fold_scores
from unet.commands.crossval import Fold
from unet.errors import UsageError
from unet.tasks.lgg.task import LGG
from unet.tasks.registry import create

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.usefixtures("here")
def test_a_fold_and_a_run_do_not_go_on_with_other_data(cli: Cli, phantoms: Path) -> None:
    shutil.copytree(phantoms, "raw")
    place = ["--data", "./raw", "--cache", "./c"]
    words = [*place, "--device", "cpu", *TINY, "--folds", "2"]
    assert cli("train", *words, "--fold", 0, "--epochs", 1, "--run-name", "cv-fold0")[0] == 0
    config = resolve("crossval", words).config
    fold = Fold(0, "cv-fold0", Path("performance/cv-fold0"), Path("weights/cv-fold0.safetensors"))
    cases = LGG(config).cached_cases()
    fold.require_data(config, cases)  # what it was trained on
    with pytest.raises(UsageError, match="the set has other cases now"):
        fold.require_data(config, cases[1:])
    image = next(path for path in sorted(Path("raw").glob("*/*.tif")) if "mask" not in path.name)
    tifffile.imwrite(image, 255 - tifffile.imread(image))
    assert cli("preprocess", *place, "--image-size", 16)[0] == 0
    with pytest.raises(UsageError, match="was trained on other data: cases changed since"):
        fold.require_data(config, LGG(config).cached_cases())
    assert "they changed since" in error_of(cli("train", "--resume", "--run-name", "cv-fold0", "--epochs", 2))


def test_the_mean_of_folds_and_that_of_cases_are_told_apart(tmp_path: Path, cli: Cli) -> None:
    """Folds of one and of three cases; the time is that of the folds, whenever the command is typed."""
    found = []
    for number, scores in enumerate(((0.2,), (0.6, 0.6, 0.6))):
        folder = tmp_path / f"cv-fold{number}"
        folder.mkdir()
        seconds = {"train": 10.0 + number, "wait": 5.0, "evaluate": 2.0, "save": 1.0}
        about = {"best_epoch": 1, "steps": 2, "seconds": seconds, "images_per_second": 3.0, "metric": "dsc"}
        (folder / "summary.json").write_text(json.dumps(about))
        lines = "".join(f"f{number}-{place},{score}\n" for place, score in enumerate(scores))
        (folder / "cases.csv").write_text(f"case,dsc\n{lines}")
        (folder / "status.json").write_text('{"status": "done", "kind": "train"}')
        found.append(Fold(number, folder.name, folder, tmp_path / "w"))
    task = LGG(resolve("crossval", []).config)
    rows = fold_scores.results(found, task)
    about = fold_scores.summary(rows, fold_scores.all_cases(found, task), task, 2)
    assert (about["mean"]["dsc"], about["mean_of_cases"]["dsc"]) == (pytest.approx(0.4), pytest.approx(0.5))
    assert (about["seconds"], [row["seconds"] for row in about["by_fold"]]) == (27.0, [13.0, 14.0])
    lines = fold_scores.table(about, task).splitlines()
    assert any(line.split() == ["mean", "of", "the", "folds", "0.4000"] for line in lines), lines
    assert any(line.split() == ["mean", "of", "all", "cases", "0.5000"] for line in lines), lines
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv/summary.json").write_text(json.dumps(about))
    (tmp_path / "cv/status.json").write_text('{"status": "done", "kind": "crossval"}')
    shown = cli("runs", "--out", tmp_path)[1]
    assert "0.5000" in shown and "the mean over the cases of all its folds" in " ".join(shown.split())


def test_what_names_one_split_changes_nothing_with_every_fold(cli: Cli, phantoms: Path) -> None:
    words = ["--data", phantoms, "--device", "cpu", *TINY, "--folds", "2", "--dry-run"]
    code, _, err = cli("crossval", *words, "--split", "last", "--held-out", 1)
    assert code == 0, err
    assert "--split last changes nothing with crossval" in err
    assert "--held-out 1 changes nothing with crossval" in err
    assert "changes nothing" not in cli("crossval", *words)[2]


@pytest.mark.parametrize("task", ["lgg", "brains", "em", "kits19", "folder"])
def test_folds_are_the_same_for_every_seed(task: str) -> None:
    """Else folds with a seed of their own each (--seed -1) share cases, and networks of several seeds have no common
    validation cases."""
    ids = [f"case_{number:03}" for number in range(30)]
    splits = []
    for seed in ("0", "7", "-1"):
        config = resolve("train", ["--task", task, "--seed", seed, "--folds", "3"]).config
        splits.append([create(config.replace(fold=fold)).split(ids)["validation"] for fold in range(3)])
    assert splits[0] == splits[1] == splits[2]
    assert sorted(case for fold in splits[0] for case in fold) == ids


def test_a_seed_that_decides_the_folds_is_not_drawn_for_each(cli: Cli) -> None:
    words = ["--task", "em", "--synth-data", "--fold-scheme", "seed", "--seed", -1]
    error = error_of(cli("crossval", *words), 2)
    assert "the seed decides which cases a fold holds out" in error
    assert "--seed 0" in error


def test_one_file_names_the_weights_of_all_folds(cli: Cli, phantoms: Path) -> None:
    error = error_of(cli("crossval", "--data", phantoms, *TINY, "--weights", "a", "--weights", "b"), 2)
    assert "after one file, not 2" in error


def test_a_typed_target_that_a_fold_misses_ends_with_3(cli: Cli, phantoms: Path) -> None:
    words = ["--data", phantoms, "--device", "cpu", *TINY, "--folds", 2, "--epochs", 1, "--run-name", "cv"]
    code, _, err = cli("crossval", *words, "--target", 0.999)
    assert code == 3, err
    assert "--target 0.999 was not reached by cv-fold0, cv-fold1" in err
    status = json.loads(Path("performance/cv/status.json").read_text())
    assert (status["metric"], status["metric_title"], status["metric_goal"]) == ("dsc", "DSC", "max"), (
        "from its start on"
    )
    assert cli("crossval", *words, "--target", 0.999)[0] == 3  # all folds are done


def test_one_fold_has_no_standard_deviation() -> None:
    assert math.isnan(fold_scores.deviation([{"dsc": 0.5}], "dsc"))
    assert math.isnan(fold_scores.deviation([{"dsc": 0.5}, {"dsc": math.nan}], "dsc"))
    assert fold_scores.deviation([{"dsc": 0.5}, {"dsc": 0.7}], "dsc") == pytest.approx(0.02**0.5)
