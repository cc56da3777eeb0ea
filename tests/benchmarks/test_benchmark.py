"""`benchmark` as a user types it: what it prints and writes, alone, over settings, and on two processes."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, error_of, program, read_json

from unet.benchmarks import results, table
from unet.cli import resolve
from unet.config.schema import unmeasured
from unet.devices import load

SHORT = ("--device", "cpu", *TINY, "--rounds", 2, "--steps", 1, "--threads", 1)
EARLIER = {  # what benchmark.json has had before
    *("task", "size", "item", "precision", "device", "predict", "batch_size", "images_per_second", "step_latency"),
    *("ours_over_plain", "loader_over_step", "ours_over_plain_memory", "peak_memory_bytes", "flops_per_item"),
    *("model_flops_per_second", "mfu", "seconds_a_step", "power"),
}


def test_a_result_is_kept_with_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve("benchmark", ["--source", "none", "--device", "cpu", "--run-name", "kept"])
    folder = results.folder_of(resolved.config)
    assert folder is not None
    result = {"device": "cpu, here", "precision": "float32", "unfinished": {"rounds": 1, "of": 2}}
    results.keep(folder, resolved, "benchmark", result)
    assert read_json(folder.path / "benchmark.json") == result
    assert read_json(folder.path / "environment.json")["device"] == "cpu, here"
    assert read_json(folder.path / "status.json")["status"] == "interrupted"


@pytest.mark.slow
def test_the_device_alone(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is there, and none is made; --json prints the result and nothing else."""
    code, out, err = cli("benchmark", "--source", "none", *SHORT, "--run-name", "alone", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result == read_json(Path("performance/alone/benchmark.json"))
    assert not Path("data").exists()
    assert set(result) >= EARLIER | {"source", "breakdown", "ceiling", "convolutions", "share_of_matrix_product"}
    assert set(result["images_per_second"]) == {"plain", "ours"} == set(result["peak_memory_bytes"])
    low, high = result["images_per_second_range"]["ours"]
    assert low <= result["images_per_second"]["ours"] <= high
    assert len(result["seconds_a_step"]["ours"]) == 2
    assert [line.partition(":")[0] for line in err.splitlines() if "round" in line] == [
        f"{what}, round {number} of 2" for what in ("step", "pass") for number in (1, 2)
    ]
    assert ("note: other processes used" in err) is ((result["cores_of_others"] or 0) > load.NOTED)
    assert sum(part["share"] for part in result["breakdown"].values()) == pytest.approx(1)
    assert result["convolutions"]["count"] == 13
    done, top = result["model_flops_per_second"], result["ceiling"]["matrix_flops_per_second"]
    assert done == pytest.approx(result["flops_per_item"] * result["images_per_second"]["ours"])
    assert result["share_of_matrix_product"] == pytest.approx(done / top)
    assert len(result["predict"]["seconds_a_pass"]) == 2
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = table.text(result).splitlines()
        assert max(map(len, lines)) <= columns
    assert "Where a step goes, each part waited for:" in lines
    assert any(line.startswith("  plain fp32 step") and "slices/s" in line for line in lines)
    assert any("times the plain one" in line for line in lines)


@pytest.mark.slow
def test_prediction_alone_with_a_trace(cli: Any) -> None:
    words = ("benchmark", "--mode", "predict", *SHORT, "--profile", "--run-name", "p")
    code, out, err = cli(*words)
    assert code == 0, err
    result = read_json(Path("performance/p/benchmark.json"))
    assert result["source"] == "none" and "images_per_second" not in result
    assert result["batch_size"] == result["predict"]["batch_size"]
    assert 0 < result["predict"]["ours_over"]["min"] <= result["predict"]["ours_over"]["max"]
    assert result["predict"]["plain_images_per_second"] > 0 and "times the plain one" in out
    assert {row["words"] for row in result["profile"]} >= {"convolution", "batch norm"}
    assert "Operators of three steps" in out and "aten::" in out
    events = read_json(Path("performance/p/trace.json"))["traceEvents"]
    assert any(event.get("name") == "aten::convolution" for event in events)
    assert sorted(path.name for path in Path("performance").iterdir() if "trace" in path.name) == []
    assert set(read_json(Path("performance/p/files.json"))["files"]) >= {"trace.json", "benchmark.json"}


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 * 10**9,) * 2)


@pytest.mark.slow
def test_a_sweep_goes_on_where_the_memory_ends(workplace: Path) -> None:
    """4 and 25 GB of images, where a process may have 12 GB of addresses."""
    words = ("benchmark", "--mode", "predict", *SHORT, "--run-name", "s", "--amp", "fp32")
    swept = ("--sweep", "eval_batch_size=32768,1", "image-size=256")
    done = program(*words, *swept, cwd=workplace, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    with open("performance/s/sweep.csv") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["outcome"] for row in rows] == ["out of memory", "measured"]
    assert [row["eval_batch_size"] for row in rows] == ["32768", "1"] and rows[0]["image_size"] == "256"
    result = read_json(Path("performance/s/benchmark.json"))
    assert result["rows"][1]["result"]["predict"]["batch_size"] == 1
    assert float(rows[1]["predict_images_per_second"]) == pytest.approx(
        result["rows"][1]["result"]["predict"]["images_per_second"]
    )
    assert "ran out of memory" in result["rows"][0]["error"]
    assert "out of memory" in done.stdout and str(Path("performance/s/sweep.csv")) in done.stdout


@pytest.mark.slow
def test_a_sweep_that_is_stopped_keeps_its_rows(workplace: Path) -> None:
    words = ["benchmark", "--mode", "predict", *SHORT, "--run-name", "s", "--sweep", "eval_batch_size=1,2,3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "unet", *map(str, words)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    place = workplace / "performance" / "s"
    deadline = time.monotonic() + 200
    while not (place / "sweep.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert 1 <= len(read_json(place / "benchmark.json")["rows"]) < 3
    status = read_json(place / "status.json")
    assert status["status"] == "interrupted" and "of 3 combinations are measured" in status["why"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train", "predict"])
def test_a_benchmark_that_is_stopped_keeps_its_whole_rounds(workplace: Path, mode: str) -> None:
    more = ("--mode", "predict", "--against", "plain") if mode == "predict" else ()
    words = ["benchmark", "--source", "none", *SHORT, "--rounds", 10**6, *more, "--run-name", "s"]
    process = subprocess.Popen(
        [sys.executable, "-m", "unet", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    late = threading.Timer(100, process.terminate)
    late.start()
    for line in process.stderr or ():
        if ", round 2 of 1000000: " in line:
            break
    late.cancel()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.endswith("Interrupted.\n")
    place = workplace / "performance" / "s"
    result, status = read_json(place / "benchmark.json"), read_json(place / "status.json")
    count = result["unfinished"]["rounds"]
    assert 2 <= count < 10**6 and result["unfinished"]["of"] == 10**6 and result["rounds"] == count
    why = f"{count} of 1000000 rounds are measured"
    assert (status["status"], status["why"]) == ("interrupted", why)
    assert f"Unfinished: {why}." in out
    if mode == "train":
        assert {len(each) for each in result["seconds_a_step"].values()} == {count}
        assert result["images_per_second"]["ours"] > 0 and result["convolutions"] is None
    else:
        assert len(result["predict"]["seconds_a_pass"]) == count and result["predict"]["ours_over"]["median"] > 0
    done = program("report", "s", cwd=workplace)
    assert done.returncode == 0 and why in done.stdout


@pytest.mark.slow
def test_two_processes(workplace: Path) -> None:
    done = program(
        "benchmark",
        "--source",
        "none",
        *SHORT,
        "--devices",
        2,
        "--run-name",
        "two",
        cwd=workplace,
        env={"COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    result = read_json(workplace / "performance" / "two" / "benchmark.json")
    one, two = result["scaling"]
    assert result["cores_of_others"] is None or 0 <= result["cores_of_others"] < os.cpu_count()
    assert (one["processes"], two["processes"]) == (1, 2)
    assert (one["network"], two["network"]) == ("UNet", "DistributedDataParallel")
    assert one["efficiency"] == 1
    assert two["efficiency"] == pytest.approx(two["images_per_second"] / (2 * one["images_per_second"]))
    assert result["images_per_second"]["ours"] == two["images_per_second"]
    assert "efficiency" in done.stdout and done.stdout.count("\n") == 6


@pytest.mark.slow
def test_passes_on_two_processes_are_of_the_batch_that_is_told(workplace: Path) -> None:
    sizes = ("--batch-size", 64, "--eval-batch-size", 3)
    words = ("benchmark", "--mode", "predict", "--source", "none", *SHORT, *sizes, "--devices", 2, "--run-name", "two")
    done = program(*words, cwd=workplace, env={"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    result = read_json(workplace / "performance" / "two" / "benchmark.json")
    seconds = sorted(result["scaling"][0]["seconds_a_step"])
    assert result["batch_size"] == 3 and result["scaling"][0]["min"] == pytest.approx(3 / seconds[-1])
    assert "batch 3 on each process" in done.stdout


def test_opponents_of_the_training_step_are_not_for_the_pass(cli: Any) -> None:
    for more in ((), ("--sweep", "eval_batch_size=1,2")):
        words = ("benchmark", "--mode", "predict", "--source", "none", *SHORT, "--against", "plain", "monai", *more)
        assert "--against monai compares the training step, and --mode predict" in error_of(cli(*words), 2)


def test_what_benchmark_does_not_read_is_told_and_not_swept(cli: Any) -> None:
    words = ("benchmark", "--mode", "predict", "--source", "none", *SHORT, "--against", "monai", "--max-steps", 1)
    assert "note: without effect in benchmark: --max-steps 1" in cli(*words)[2]
    for mode, several, told in (("predict", False, True), ("train", True, True), ("train", False, False)):
        typed = ["--source", "none", *(["--mode", mode] if mode == "predict" else []), "--power", "0.5"]
        asked = resolve("benchmark", typed)
        said = " ".join(unmeasured(asked.config, asked.sources, mode == "predict", several))
        assert ("--power 0.5 (joules are those of the training step of one process)" in said) is told
    words = ("benchmark", "--source", "none", *SHORT, "--sweep", "epochs=1,2")
    assert "epochs cannot be swept" in error_of(cli(*words), 2)


FULL = """
from unet.devices.cpu import CPU

class Full(CPU):
    def micro_batch(self, number):
        if self.rank.rank == 1:
            raise RuntimeError("out of memory: tried to allocate")
"""


@pytest.mark.slow
def test_memory_that_runs_out_on_one_of_two_processes(workplace: Path) -> None:
    """It was an internal error."""
    (workplace / "full.py").write_text(FULL)
    words = ("benchmark", "--source", "none", *SHORT, "--devices", 2, "--device-module", "full:Full")
    done = program(*words, cwd=workplace, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{workplace}"})
    assert done.returncode == 1 and "Internal error" not in done.stderr
    assert "error: The timed loop ran out of memory on rank 1: RuntimeError: out of memory" in done.stderr
    assert "Type a smaller --batch-size." in done.stderr
