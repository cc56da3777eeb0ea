"""--power from the command line: joules in the logs, the summary and the closing block, and what goes on after a stop.
The processors' counters are stand-ins that count 100 W, and 10 W for the memory."""

from __future__ import annotations

import csv
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, error_of, program, read_json

from unet.devices.power import counters, sampler
from unet.runtime.callbacks.power_log import PowerLog
from unet.runtime.trainer import Trainer

MINE = """
from unet.devices.cpu import CPU

class Mine(CPU):
    name, torch_name = "mine", "cpu"

    def power(self, interval=0.2):
        return 50.0
"""

COUNTED = {"intel-rapl:0": ("package-0", 100), "intel-rapl:0:0": ("dram", 10)}  # zone -> its name, its watts


def path(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}


@pytest.fixture
def watts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "powercap"
    for zone, (name, _) in COUNTED.items():
        (folder / zone).mkdir(parents=True)
        (folder / zone / "name").write_text(name)
        (folder / zone / "max_energy_range_uj").write_text(str(2**48))
    read = counters._text

    def text(path: Path) -> str:
        """A counter has counted up to the moment at which it is read, however busy the machine is."""
        if path.name != "energy_uj":
            return read(path)
        return str(int(time.monotonic() * COUNTED[path.parent.name][1] * 1e6))

    monkeypatch.setattr(counters, "_text", text)
    monkeypatch.setattr(counters, "POWERCAP", folder)
    monkeypatch.setattr(sampler, "REST", (0.5, 0.5))
    epoch_trained = PowerLog.on_epoch_trained

    def after_a_reading(self: PowerLog, run: Trainer) -> None:
        """An epoch takes as long as a reading, however busy the machine is."""
        end, before = time.monotonic() + 10, self.use.before.get("readings", 0.0)
        while self.use.sampler and self.use.now().get("readings", 0.0) == before and time.monotonic() < end:
            time.sleep(0.01)
        epoch_trained(self, run)

    monkeypatch.setattr(PowerLog, "on_epoch_trained", after_a_reading)


def epochs(name: str) -> list[dict[str, Any]]:
    lines = Path(f"performance/{name}/metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == "epoch"]


def table(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def power_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(Path(f"performance/{name}/summary.json"))["power"]
    return found


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "power"]


def test_a_run_counts_its_joules(tiny, watts: None) -> None:
    code, out, err = tiny("--run-name", "a", "--epochs", 2, "--power", 0.05, "--target", 0)
    assert code == 0, err
    assert threads() == []
    summary = read_json(Path("performance/a/summary.json"))
    found = summary["power"]
    assert found["sources"] == ["package-0", "dram-0"]
    assert found["failed"] == {}
    assert found["mean_watts"] == pytest.approx(110, rel=0.2)
    assert found["idle_watts"] == pytest.approx(110, rel=0.2)
    assert found["by_source"]["package-0"]["mean_watts"] > 5 * found["by_source"]["dram-0"]["mean_watts"]
    assert found["joules"] == pytest.approx(found["mean_watts"] * found["seconds"])
    assert found["seconds"] >= summary["seconds"]["train"] + summary["seconds"]["evaluate"]
    assert abs(found["joules_above_idle"]) < found["joules"]
    rows = epochs("a")
    assert len(rows) == 1  # the target is reached by the first score
    assert 0 < rows[0]["train_joules"] < rows[0]["joules"] <= found["joules"]
    assert found["joules_to_target"] == summary["joules_to_target"] == rows[0]["joules"]
    assert found["joules_per_sample"] == summary["joules_per_sample"]
    assert found["joules_per_sample"] == pytest.approx(found["train_joules"] / (rows[0]["step"] * 4))
    assert float(table("performance/a/results.csv")[0]["joules"]) == rows[0]["joules"]
    readings = table("performance/a/power.csv")
    assert {row["source"] for row in readings} == {"package-0", "dram-0"}
    assert len(readings) >= 4
    words = " ".join(out.split())  # the line is broken where the terminal is narrow
    assert re.search(r" power [\d.]+ k?J, [\d.]+ W in the mean \([\d.]+ W idle before\), [\d.]+ k?J a slice, ", words)
    assert "J to the target " in words
    assert " J  |  validation" in err.replace("kJ", "J")


def test_a_run_that_goes_on_counts_no_joule_twice(tiny, cli, watts: None) -> None:
    assert tiny("--run-name", "a", "--epochs", 2, "--power", 0.05)[0] == 0
    log, results = Path("performance/a/power.csv"), Path("performance/a/results.csv")
    before, first, kept = power_of("a"), epochs("a"), results.read_text()
    lines = log.read_text().splitlines()
    with open(log, "a") as stream:  # what was read after the state that the run goes on from, and half a line
        stream.write("99999999999.0,package-0,1.00\n99999999999.5,pack")
    with open(results, "a") as stream:
        stream.write("3,21,0.5,0.1\n4,2")
    code, _, err = cli("train", "--resume", "--run-name", "a", "--epochs", 3, "--power", 0.05)
    assert code == 0, err
    after = log.read_text().splitlines()
    assert "99999999999" not in log.read_text()
    assert after.count("time,source,watts") == 1
    same = sum(a == b for a, b in zip(lines, after, strict=False))
    assert same > len(lines) // 2  # all but the readings that came after the last state
    times = [float(row["time"]) for row in table(str(log))]
    assert times == sorted(times)
    assert results.read_text().startswith(kept)
    assert [row["epoch"] for row in table(str(results))] == ["1", "2", "3"]
    rows, found = epochs("a"), power_of("a")
    assert rows[:2] == first
    assert sum(row["joules"] for row in rows) <= found["joules"] < before["joules"] + 3 * rows[2]["joules"] + 100
    assert rows[2]["joules"] > 0
    assert cli("train", "--resume", "--run-name", "a", "--epochs", 4, "--power", 0)[0] == 0  # it is a run's setting
    assert "joules" not in epochs("a")[3]
    assert power_of("a")["joules"] == pytest.approx(sum(row["joules"] for row in rows))  # up to the state
    assert table(str(results))[3]["joules"] == ""


def test_nothing_that_fails_stops_a_run(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "POWERCAP", tmp_path / "nowhere")
    began = time.monotonic()
    code, out, err = tiny("--run-name", "a", "--max-steps", 2, "--power", 0.2)
    assert code == 0, err
    assert err.count("power: RAPL cannot be read: there are no energy counters in") == 1
    assert "cannot be read" in Path("performance/a/run.log").read_text()
    assert "  power " not in out
    found = power_of("a")
    assert "no energy counters" in found["failed"]["RAPL"]
    assert (found["joules"], found["mean_watts"], found["joules_per_sample"], found["readings"]) == (None,) * 3 + (0,)
    assert "joules" not in epochs("a")[0]
    assert time.monotonic() - began < 60
    assert "0.05 s or more" in error_of(tiny("--run-name", "b", "--power", 0.01), 2)


def test_scoring_and_prediction_count_cases(tiny, cli, phantoms: Path, watts: None) -> None:
    assert tiny("--run-name", "a", "--max-steps", 2, "--no-augment")[0] == 0
    assert "power" not in read_json(Path("performance/a/summary.json"))
    data = ("--data", phantoms, "--cache", "cache_16", "--device", "cpu", "--weights", "a.safetensors")
    code, out, err = cli("evaluate", *data, "--run-name", "e", "--power", 0.05)
    assert code == 0, err
    summary = read_json(Path("performance/e/summary.json"))
    joules = summary["power"]["joules"]
    assert joules == pytest.approx(summary["power"]["mean_watts"] * summary["power"]["seconds"])
    assert summary["joules_per_sample"] == pytest.approx(joules / summary["cases"])
    assert "J a case" in out
    assert table("performance/e/power.csv")
    code, _, err = cli("predict", *data, phantoms, "--power", 0.05)
    assert code == 0, err
    assert "power: " in err
    assert "J a patient" in err
    assert threads() == []
    code, _, err = cli("predict", *data, phantoms, "--power", 0.05)  # nothing is left to do, so nothing is measured
    assert code == 0, err
    assert "power: " not in err


@pytest.mark.slow
def test_a_benchmark_has_the_idle_level_beside(cli, phantoms: Path, watts: None) -> None:
    data = ("--data", phantoms, "--cache", "c", "--device", "cpu", *TINY, "--power", 0.05)
    code, out, err = cli("benchmark", *data, "--rounds", 1, "--steps", 2, "--run-name", "b")
    assert code == 0, err
    found = read_json(Path("performance/b/benchmark.json"))["power"]
    assert found["watts"] == pytest.approx(110, rel=0.3)
    assert found["idle_watts"] == pytest.approx(110, rel=0.3)
    assert found["items_per_joule"] == pytest.approx(1 / found["joules_per_sample"])
    assert "slices per joule" in out


@pytest.mark.slow
def test_the_folds_of_a_cross_validation_have_joules(tmp_path: Path, phantoms: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    words = ("--data", phantoms, "--cache", "c", "--device-module", "mine:Mine", *TINY, "--power", 0.1)
    done = program(
        "crossval", *words, "--folds", 2, "--epochs", 1, "--run-name", "cv", cwd=tmp_path, env=path(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        used = read_json(tmp_path / f"performance/cv-fold{number}/summary.json")["power"]
        assert used["mean_watts"] == pytest.approx(50, rel=0.01)
        assert "no energy counters" in used["failed"].get("RAPL", "no energy counters")
        row = read_json(tmp_path / "performance/cv/summary.json")["by_fold"][number]
        assert row["joules"] == used["joules"]


@pytest.mark.slow
def test_the_first_of_two_processes_reads(tmp_path: Path, phantoms: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    words = ("--data", phantoms, "--cache", "c", "--device-module", "mine:Mine", *TINY, "--power", 0.1)
    done = program(
        "train", *words, "--devices", 2, "--epochs", 1, "--run-name", "two", cwd=tmp_path, env=path(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    used = read_json(tmp_path / "performance/two/summary.json")["power"]
    assert used["mean_watts"] == pytest.approx(50, rel=0.01)  # not 100: both have the same machine
    assert used["idle_watts"] == 50
    assert used["joules_above_idle"] == pytest.approx(0, abs=0.01)
    assert "mine" in used["sources"]
