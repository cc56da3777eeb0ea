"""Records made of the runs of a card's check: whole by the rules of scripts/records.py, with the runs' figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "scripts"))
import card_records
import records

RATES = {"all": 80.25, "channels-first": 60.5, "plain-kernels": 51.0}
SETTINGS = {
    "general": {"task": {"value": "kits19"}},
    "train": {"batch_size": {"value": 7}},
    "device": {"precision": {"value": "bf16"}},
    "task": {"patch": {"value": [128, 128, 128]}},
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def run_of(folder: Path, words: str) -> None:
    write(folder / "config.json", {"command": f"python -m unet {words}", "settings": SETTINGS})
    versions = {"unet": "0.1.0", "packages": {"torch": "2.14.1"}}
    write(folder / "environment.json", {**versions, "device": "cuda, NVIDIA H200, CUDA 13.0"})


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    """The folder of a check with three levers and a benchmark."""
    for name, rate in RATES.items():
        run = tmp_path / "performance" / f"lever-{name}"
        run_of(run, f"train --task kits19 --run-name lever-{name}")
        write(run / "metrics.jsonl", {"event": "step", "images_per_second": rate})
        found = {"images_per_second": rate, "data_wait_fraction": 0.031, "peak_memory_bytes": 30e9}
        write(run / "summary.json", found)
    bench = tmp_path / "performance/benchmark-brains-64"
    run_of(bench, "benchmark --task brains --recipe 64")
    result = {"task": "brains", "size": "64^3", "batch_size": 8, "precision": "bfloat16", "device": "cuda, NVIDIA H200"}
    write(bench / "benchmark.json", {**result, "item": "volumes", "images_per_second": {"ours": 12.3}})
    return tmp_path


def test_they_are_whole(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # also when it is made again
        assert card_records.main(checked) == 0
    folders = sorted((checked / "records").iterdir())
    assert [folder.name.partition("_")[2] for folder in folders] == [
        "nvidia-h200_brains_benchmark-64",
        "nvidia-h200_kits19_levers",
    ]
    assert [records.wrong_with(folder) for folder in folders] == [[], []]
    about = records.about(folders[1])
    assert (about["figure"], about["value"], len(about["command"])) == ("80.25 samples/s", 80.25, 3)
    text = (folders[1] / "README.md").read_text()
    assert "bf16, batch 7, crops of 128 x 128 x 128" in text
    assert "| channels-first | 60.50 | 0.75 | 3.10% | 30.0 |" in text
    assert json.loads((folders[1] / "channels-first/metrics.jsonl").read_text())["images_per_second"] == 60.5
    out = capsys.readouterr().out
    for line in (
        "reached: >= 76 samples/s (80.2)",
        "missed: 100 samples/s (80.2)",
        "reached: channels last >= 1.15 x channels first (1.33)",
        "missed: data wait <= 2% (3.10%)",
    ):
        assert line in out


def test_nothing_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert card_records.main(tmp_path) == 0 and capsys.readouterr().out == "nothing was measured\n"


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu, AMD EPYC, 2 threads", "cpu"), ("rocm, AMD Instinct MI250, ROCm 6.4", "amd-instinct-mi250"), ("npu", "npu")],
)
def test_the_name_of_a_card(device: str, name: str) -> None:
    assert card_records.card_of({"device": device}) == name
