"""Folds and runs that were trained on other data than there is now."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
from conftest import TINY, error_of

from unet.cli import resolve
from unet.commands.crossval import Fold
from unet.errors import UsageError
from unet.tasks.lgg.task import LGG

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


def test_what_names_one_split_changes_nothing_with_every_fold(cli: Cli, phantoms: Path) -> None:
    words = ["--data", phantoms, "--device", "cpu", *TINY, "--folds", "2", "--dry-run"]
    code, _, err = cli("crossval", *words, "--split", "last", "--held-out", 1)
    assert code == 0, err
    assert "--split last changes nothing with crossval" in err
    assert "--held-out 1 changes nothing with crossval" in err
    assert "changes nothing" not in cli("crossval", *words)[2]
