"""Paths of a command line: looked at before torch is imported, each with what to type instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, error_of

READS = {  # every flag that names something to read -> a command line of it
    "--data": "train --data {}",
    "--data (beside a cache)": "train --cache ./c --data {}",
    "--data (evaluate)": "evaluate --weights ./w.pt --data {}",
    "--data (predict)": "predict --weights ./w.pt --data {}",
    "--data (check)": "check --data {}",
    "--data (preprocess)": "preprocess --data {}",
    "--data (crossval)": "crossval --data {}",
    "--data (benchmark)": "benchmark --data {}",
    "--cache (check)": "check --cache {}",
    "--load": "train --data ./raw --load {}",
    "--load (evaluate)": "evaluate --load {}",
    "--weights (evaluate)": "evaluate --weights {}",
    "--weights (predict)": "predict --weights ./w.pt --weights {}",
    "inputs": "predict --weights ./w.pt {}",
    "--split": "train --data ./raw --split {}",
    "--split (evaluate)": "evaluate --weights ./w.pt --split {}",
    "--precision-ops": "train --data ./raw --precision-ops {}",
    "--checksums": "check --data ./raw --checksums {}",
    "--labels": "synthesize --task kits19 --data ./made --labels {}",
}
WRITES = {
    "--out": "train --data ./raw --out {}",
    "--debug-dump": "train --data ./raw --debug-dump {}",
    "--output": "predict --weights ./w.pt ./raw --output {}",
    "--output (after training)": "train --data ./raw --mode train_and_predict --output {}",
    "--cache": "train --data ./raw --cache {}",
    "--data (synthesize)": "synthesize --data {}",
}


@pytest.fixture
def place(workplace: Path) -> Path:
    """A raw set, a cache and weights by name only: nothing here is read."""
    for name in ("raw", "c", "data/kaggle_3m", "kagle"):
        Path(name).mkdir(parents=True)
    Path("w.pt").write_bytes(b"")
    Path("weights").mkdir()
    Path("weights/ct.safetensors").write_bytes(b"")
    Path("weights/ct.state.safetensors").write_bytes(b"")
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    Path("nowhere").symlink_to("gone")
    return workplace


@pytest.mark.parametrize("line", READS.values(), ids=READS.keys())
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./nope", "does not exist"),
        ("./pipe", "is a pipe"),
        ("/dev/zero", "is a device"),
        ("./circle", "in a circle"),
        ("./nowhere", "leads nowhere"),
        ("./w.pt/x", "does not exist"),
    ],
)
def test_what_is_read_is_there(cli: Any, place: Path, line: str, name: str, words: str) -> None:
    assert words in error_of(cli(*line.format(name).split()), 2)


@pytest.mark.parametrize("line", WRITES.values(), ids=WRITES.keys())
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./w.pt", "is a file, not a folder"),
        ("./w.pt/sub/folder", "is a file, not a folder"),
        ("./pipe", "is a pipe, not a folder"),
        ("/dev/null", "is a device, not a folder"),
        ("./circle", "in a circle"),
        ("./nowhere", "leads nowhere"),
    ],
)
def test_what_is_written_can_be(cli: Any, place: Path, line: str, name: str, words: str) -> None:
    assert words in error_of(cli(*line.format(name).split()), 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --data kagle", "did you mean ./kagle?"),
        ("train --data kaggle_3n", "did you mean kaggle_3m?"),
        ("train --data ./rawe", "did you mean raw?"),
        ("train --data kaggle_3m/", "did you mean data/kaggle_3m?"),
        ("train --data aggle_3m/", "did you mean data/kaggle_3m?"),
        ("check --cache aggle_3m/", "did you mean data/kaggle_3m?"),
        ("evaluate --weights nosuch", "in weights/: ct.safetensors."),
        ("predict --weights ct.onnx", "did you mean ct.safetensors?"),
        ("predict --weights ct.onnx", "in weights/: ct.safetensors."),
        ("train --data ./raw --load ct.pth/", "did you mean weights/ct.safetensors?"),
        ("evaluate --weights w.pt", "did you mean ./w.pt?"),
        ("train --data ./raw --load w.pt", "did you mean ./w.pt?"),
        ("predict --weights ./w.pt kaggle_3m", "did you mean data/kaggle_3m?"),
        ("check --cache c", "did you mean ./c?"),
        ("train --data ./raw --split publishd", "Type --split published"),
        ("train --data ./raw --out . --run-name w.pt", "Type another --run-name"),
        ("train --data ./raw --weights ./raw", "is a folder, not a file"),
        ("train --data ./raw --weights ./pipe", "is a pipe, not a file"),
        ("train --data zzz --load zzz --split zzz", "--load zzz"),
        ("train --data zzz --load zzz --split zzz", "--split zzz"),
        ("train --task em --rebuild-cache --cache ./c", "--rebuild-cache reads the raw set"),
        ("train --task em", "Neither"),
        ("train --data ./raw --cache c", "Type --cache ./c (or --cache data/c for a new one)"),
        ("preprocess --data ./raw --cache c", "Type --cache ./c"),
        ("evaluate", "evaluate needs weights"),
        ("plan", "Type --data DIR"),
        ("preprocess --data ./raw --cache ./raw/", "--data and --cache are one folder"),
        ("train --data ./raw --cache raw/../raw", "--data and --cache are one folder"),
    ],
)
def test_what_was_meant(cli: Any, place: Path, line: str, words: str) -> None:
    assert words in error_of(cli(*line.split()), 2)


def test_the_best_weights_are_offered(cli: Any, workplace: Path) -> None:
    Path("weights").mkdir()
    for name in ("a", "a.state", "a.state-before", "a.best-before", "a.epoch-0010"):
        Path(f"weights/{name}.safetensors").touch()
    assert "in weights/: a.safetensors." in error_of(cli("evaluate"), 2)


def test_the_folder_is_gone(tmp_path: Path) -> None:
    code = "import os, sys; os.rmdir(os.getcwd()); from unet.cli import main; sys.exit(main(['train', '--data', 'x']))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "gone", capture_output=True, text=True, env=environment
    )
    assert "The current folder no longer exists" in error_of((done.returncode, done.stdout, done.stderr))


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    words = [sys.executable, "-m", "unet", "config", "--run-name", "é", "--data", "./ü"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "\\xe9" in done.stdout


def test_no_torch_is_imported_for_a_typo(place: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None\n"
        "from unet.cli import main\n"
        "for line in sys.argv[1:]: assert main(line.split()) == 2, line"
    )
    lines = [line.format("./nope") for line in READS.values()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
