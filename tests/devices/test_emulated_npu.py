"""A device of few lines, on the emulated NPU: from the command line to weights that are the CPU's bit for bit, with
nothing of torch's newer parts (streams, events, pinned memory, float64).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import TINY, program, read_json, stored
from emulated_runs import run, same_bits
from test_emulated import FUSED, STEPS, read_history, training
from torch import equal

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder with the run of the CPU that the device must repeat."""
    folder = tmp_path_factory.mktemp("npu")
    done = program(*training(phantoms, "cpu"), "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


def test_a_run_that_is_stopped_and_goes_on_gives_the_cpu_s_weights(place: Path, phantoms: Path) -> None:
    env = {"EMULATED_FP64": "0"}
    for words in (training(phantoms, "npu", "--max-steps", 5), ("train", "--resume", "--run-name", "npu")):
        more = () if words[0] == "train" and "--resume" not in words else ("--max-steps", STEPS)
        done = run(place, "npu", *words, *more, env=env)
        assert done.code == 0, done.err
        assert done.log["violations"] == []
    assert "EMULATED ASCEND, card 0 of 2" in done.err
    assert done.log["tf32"] == {"conv": False, "matmul": False}  # fp32 that is fp32
    assert same_bits(place, "npu", "cpu")
    states = [stored(place / "weights" / f"{name}.state.safetensors")["model"] for name in ("cpu", "npu")]
    assert all(equal(states[0][key], states[1][key]) for key in states[0])
    last = [row for row in read_history(place, "npu") if row["event"] == "epoch"][-1]
    assert last["loss"] == [row for row in read_history(place, "cpu") if row["event"] == "epoch"][-1]["loss"]


def test_two_ranks_give_the_weights_of_two_cpu_ranks(place: Path, phantoms: Path) -> None:
    more = ("--devices", 2, "--accumulate", 2, "--precision", "fp32")
    here = program(*training(phantoms, "cpu-2", *more), "--device", "cpu", cwd=place, env={"OMP_NUM_THREADS": "1"})
    assert here.returncode == 0, here.stderr
    done = run(place, "npu", *training(phantoms, "npu-2", *more), env={"ASCEND_RT_VISIBLE_DEVICES": "2,0"}, cards=3)
    assert done.code == 0, done.err
    assert same_bits(place, "npu-2", "cpu-2")
    assert [log["ddp"]["device_ids"] for log in done.logs] == [[0], [1]]
    assert "allreduce" in done.log["collectives"]
    assert all(log["violations"] == [] for log in done.logs)


@pytest.mark.parametrize(
    "more",
    [
        ("--precision", "fp16", "--data-on", "device"),  # with torch's loss scaler
        ("--precision", "auto", "--optimizer", "adamw", FUSED, "--workers", 2),
    ],
)
def test_settings_run(more: tuple[object, ...], place: Path, phantoms: Path) -> None:
    done = run(place, "npu", *training(phantoms, "settings", "--overwrite", *more))
    assert done.code == 0, done.err
    assert ("float16" if "fp16" in more else "bfloat16") in done.err
    assert done.log["violations"] == []


def test_benchmark_asks_the_card_for_its_power(place: Path, phantoms: Path) -> None:
    tool = place / "npu-smi"
    tool.write_text('#!/bin/sh\necho "$@" > npu-smi.asked\necho "NPU Real-time Power(W)         : 50.0"\n')
    tool.chmod(0o755)
    env = {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "ASCEND_RT_VISIBLE_DEVICES": "1"}
    words = ("benchmark", "--data", phantoms, "--cache", "c", *TINY, "--rounds", 1, "--steps", 2)
    done = run(place, "npu", *words, "--run-name", "timed", env=env)
    assert done.code == 0, done.err
    result = read_json(place / "performance" / "timed" / "benchmark.json")
    assert result["power"]["watts"] == 50
    # measured in other rounds, and a busy machine is not steady; a wrong unit would be off by 50
    assert 0.1 < result["power"]["items_per_joule"] / (result["images_per_second"]["ours"] / 50) < 10
    assert result["joules_per_item"] == pytest.approx(1 / result["power"]["items_per_joule"])
    assert all(count > 0 for count in result["peak_memory_bytes"].values())
    assert "50.00 W on average" in done.out
    assert (place / "npu-smi.asked").read_text().split() == ["info", "-t", "power", "-i", "1"]


def test_a_run_counts_the_joules_of_all_its_cards(place: Path, phantoms: Path) -> None:
    tool = place / "npu-smi"
    tool.write_text('#!/bin/sh\necho "$@" >> npu-smi.all\necho "NPU Real-time Power(W)         : 50.0"\n')
    tool.chmod(0o755)
    env = {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "ASCEND_RT_VISIBLE_DEVICES": "2,0"}
    words = ("--devices", 2, "--epochs", 2, "--power", 0.2)
    done = run(place, "npu", *training(phantoms, "joules", *words), env=env, cards=3)
    assert done.code == 0, done.err
    power = read_json(place / "performance" / "joules" / "summary.json")["power"]
    assert set(power["sources"]) >= {"npu 2", "npu 0"}
    cards = [power["by_source"][name] for name in ("npu 2", "npu 0")]
    assert [(card["idle_watts"], round(card["mean_watts"], 3)) for card in cards] == [(50, 50)] * 2
    asked = (place / "npu-smi.all").read_text().splitlines()
    assert set(asked) == {"info -t power -i 2", "info -t power -i 0"}  # by the first process, for both
    assert len(asked) >= power["readings"]  # those of the idle level too
    assert "npu 0,50.00" in (place / "performance" / "joules" / "power.csv").read_text()


def test_what_it_cannot_do_is_said(place: Path, phantoms: Path) -> None:
    doctor = run(place, "npu", "doctor", cards=3)
    assert "npu    usable, 3 cards" in doctor.out
    assert "Would be used: npu, EMULATED ASCEND, card 0 of 3" in doctor.out
    for more, env, said in (
        (("--compile",), {}, "--compile: torch_npu has no compiler backend"),
        (("--precision", "bf16"), {"EMULATED_BF16": "0"}, "this npu runs fp32 and fp16, not bf16"),
        (("--precision", "tf32"), {}, "npu has no TF32"),
        ((), {"EMULATED_IMPORT_ERROR": "1"}, "torch_npu does not load (ImportError"),
        (("--devices", 3), {}, "3 processes on this node, but it has 2 npu cards"),
    ):
        done = run(place, "npu", *training(phantoms, "refused", *more), env=env)
        assert done.code in (1, 2)
        assert said in done.err
        assert done.err.count("error:") == 1
        assert "Traceback" not in done.err
