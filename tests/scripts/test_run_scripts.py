"""Cambricon's one-key scripts: what they start, refuse, print, and go on with. `python` is a stand-in that notes its
arguments and leaves what a run leaves; the slow tests are real, on the CPU.
"""

from __future__ import annotations

import csv
import getpass
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, program, read_json

from unet.cli import main

SCRIPTS = ROOT / "run_scripts"
TRAIN = {  # script -> epochs, cards
    "Unet3d_FP32_4000E_4MLUs_Train.sh": (4000, 4),
    "Unet3d_FP32_4000E_8MLUs_Train.sh": (4000, 8),
    "Unet3d_FP32_1000E_4MLUs_Train.sh": (1000, 4),
    "Unet3d_FP32_1000E_8MLUs_Train.sh": (1000, 8),
    "Unt3d_FP32_1000E_8MLUs_Train.sh": (1000, 8),
}
FOUR, INFER = "Unet3d_FP32_4000E_4MLUs_Train.sh", "Unet3d_Infer.sh"
START = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [AP]M"
RESULT = re.compile(rf"RESULT,image_segmentation,(-?\d+),(\d+),([^,]+),({START})")
# Notes its arguments; a run's folder, as far as the scripts read it; SLEEP seconds of work that USR1 stops with 130.
PYTHON = r"""#!/bin/bash
[[ $1 != *print_scores.py ]] || exec echo "scores of $2"
[[ $1 == -m ]] || exec "$REAL" "$@"
printf '%s\n' "${@:2}" >"$NOTES/$(ls "$NOTES" | wc -l)"
command=$3 seed=77 state=running
for ((i = 1; i < $#; i++)); do
    next=$((i + 1))
    case ${!i} in
        --out) out=${!next} ;;
        --run-name) name=${!next} ;;
        --weights) weights=${!next} ;;
        --seed) ((${!next} < 0)) || seed=${!next} ;;
    esac
done
[[ " $* " != *" --dry-run "* ]] || exit "${CODE:-0}"
mkdir -p "$out/$name"
if [[ $command == train ]]; then
    [[ $* == *--resume* ]] || echo "{\"settings\": {\"seed\": {\"value\": $seed}}}" >"$out/$name/config.json"
    echo >"$weights"
    trap 'exit 130' USR1
    echo >"$NOTES.works"
    for ((i = 0; i < ${SLEEP:-0}; i++)); do sleep 0.1; done
    echo '{"status": "done"}' >"$out/$name/status.json"
fi
exit "${CODE:-0}"
"""
slow = pytest.mark.slow


class Desk:
    """A data set and a folder of checkpoints, both with a space in their names, and the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.kept, self.notes = folder / "pre data", folder / "check points", folder / "notes"
        for path in (self.cache, self.kept, self.notes):
            path.mkdir()
        python = folder / "python"
        python.write_text(PYTHON)
        python.chmod(0o755)
        mine = ("PYTORCH_TRAIN", "SEED", "DRY_RUN", "RUN_NAME", "USER")
        self.folder = folder
        self.variables = {
            **{key: value for key, value in os.environ.items() if not key.startswith(mine)},
            "PYTHON": str(python),
            "REAL": sys.executable,
            "NOTES": str(self.notes),
            "PYTORCH_TRAIN_DATASET": str(self.cache),
            "PYTORCH_TRAIN_CHECKPOINT": str(self.kept),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, script: str, *words: object, **variables: str | None) -> subprocess.Popen[str]:
        merged = {**self.variables, **variables}
        return subprocess.Popen(
            ["bash", str(SCRIPTS / script), *map(str, words)],
            cwd=self.folder,
            env={key: value for key, value in merged.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *words: object, **variables: str | None) -> tuple[int, str, str]:
        return ended(self.start(script, *words, **variables))

    @property
    def started(self) -> list[list[str]]:
        """The arguments after `python -m` of every start."""
        return [path.read_text().splitlines() for path in sorted(self.notes.iterdir(), key=lambda path: int(path.name))]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def result(out: str) -> tuple[str, ...]:
    """(seed, seconds, user, start) of the last line."""
    match = RESULT.fullmatch(out.splitlines()[-1])
    assert match, out
    return match.groups()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def real(desk: Desk) -> Desk:
    """The desk with the real program."""
    desk.variables["PYTHON"] = sys.executable
    return desk


def test_the_scripts_of_the_seed_are_there() -> None:
    for name in (*TRAIN, INFER, "common.sh"):
        path = SCRIPTS / name
        assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
        assert bool(path.stat().st_mode & stat.S_IXUSR) == (name != "common.sh")


@pytest.mark.parametrize("script", TRAIN)
def test_what_training_starts(script: str, desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    epochs, cards = TRAIN[script]
    code, out, err = desk.run(script, USER="somebody")
    assert code == 0, err
    (words,) = desk.started
    name = f"unet3d_{epochs}E_{cards}MLUs"
    assert words == [
        *("unet", "train", "--task", "kits19", "--recipe", f"cambricon-{cards}", "--mlu", "--devices", str(cards)),
        *("--precision", "fp32", "--epochs", str(epochs), "--cache", str(desk.cache), "--seed", "0"),
        *("--out", str(desk.kept), "--run-name", name, "--weights", str(desk.kept / f"{name}.safetensors")),
    ]
    seed, seconds, user, start = result(out)
    assert (seed, user) == ("0", "somebody")
    assert int(seconds) < 30
    assert re.search(rf"^STARTING TIMING RUN AT {start}$", out, re.M)
    assert re.search(rf"^ENDING TIMING RUN AT {START}$", out, re.M)

    assert main(["config", *words[2:]]) == 0  # the program knows these words, and means Cambricon's settings by them
    table = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    for flag, value in {
        "--device": "mlu",
        "--devices": str(cards),
        "--batch-size": "2",
        "--lr": "3.2",
        "--warmup-epochs": "200",
        "--epochs": str(epochs),
        "--target": "0.908" if cards == 4 else "0.903",
        "--start-eval-at": "1000" if cards == 4 else "1400",
        "--precision": "fp32",
    }.items():
        assert table[flag][0] == value, flag


def test_without_its_places_nothing_starts(desk: Desk) -> None:
    folder = desk.folder
    (folder / "a file").write_text("")
    cases: list[tuple[dict[str, str | None], list[str]]] = [
        ({"PYTORCH_TRAIN_DATASET": None}, ["PYTORCH_TRAIN_DATASET is not set."]),
        ({"PYTORCH_TRAIN_DATASET": ""}, ["PYTORCH_TRAIN_DATASET is not set."]),
        ({"PYTORCH_TRAIN_DATASET": "/no where"}, ["PYTORCH_TRAIN_DATASET=/no where does not exist."]),
        ({"PYTORCH_TRAIN_DATASET": "a file"}, ["PYTORCH_TRAIN_DATASET=a file is not a folder."]),
        ({"PYTORCH_TRAIN_CHECKPOINT": None}, ["PYTORCH_TRAIN_CHECKPOINT is not set."]),
        ({"PYTORCH_TRAIN_CHECKPOINT": "/no where"}, ["PYTORCH_TRAIN_CHECKPOINT=/no where does not exist."]),
        (
            {"PYTORCH_TRAIN_DATASET": None, "PYTORCH_TRAIN_CHECKPOINT": "/no"},
            ["PYTORCH_TRAIN_DATASET is not set; PYTORCH_TRAIN_CHECKPOINT=/no does not exist."],
        ),
    ]
    for variables, words in cases:
        for script in (FOUR, INFER):
            code, out, err = desk.run(script, DRY_RUN="1" if script == FOUR else None, **variables)
            lines = err.splitlines()
            assert (code, out, lines[:1]) == (2, "", [f"error: {words[0]}"]), (script, variables, err)
            assert len(lines) == 2
            assert lines[1].startswith("  Type: export PYTORCH_TRAIN_")
            assert all(name in lines[1] for name in variables)
    code, _, err = desk.run(FOUR, PYTORCH_TRAIN_CHECKPOINT="a file")
    assert code == 2
    assert "error: PYTORCH_TRAIN_CHECKPOINT=a file is not a folder." in err
    assert desk.started == []


def test_typed_flags_replace_the_script_s(desk: Desk) -> None:
    more = ["--device", "cpu", "--devices", 1, "--amp", "bf16", "--epochs=3", "--results_dir", "a cache", "--seed", 5]
    code, _, err = desk.run(FOUR, *more, "--run-name", "r", "--log_dir", "else where", "--max-steps", 1)
    assert code == 0, err
    (words,) = desk.started
    for gone in ("--mlu", "--precision", "--cache", "--out"):
        assert gone not in words
    assert [words.count(flag) for flag in ("--devices", "--seed", "--run-name")] == [1, 1, 1]
    assert not {"4", "4000"} & set(words)
    assert words[words.index("--weights") + 1] == str(desk.kept / "unet3d_r.safetensors")
    assert words[-len(more) - 6 :] == [
        *map(str, more),
        "--run-name",
        "r",
        "--log_dir",
        "else where",
        "--max-steps",
        "1",
    ]
    desk.run(FOUR, "--synth-data", "--out", "b")
    assert "--cache" not in desk.started[-1]  # synthetic data are not written into real data


def test_the_seed(desk: Desk) -> None:
    """First argument or variable; -1 is drawn by the program, and RESULT has what it drew."""
    for words, variables, typed, shown in (
        ([3], {}, "3", "3"),
        ([], {"SEED": "4"}, "4", "4"),
        ([3], {"SEED": "4"}, "3", "3"),
        ([3, "--seed", 6], {}, "6", "6"),
        ([-1], {}, "-1", "77"),
    ):
        code, out, err = desk.run(FOUR, *words, "--overwrite", **variables)
        assert code == 0, err
        started = desk.started[-1]
        assert started[started.index("--seed") + 1] == typed
        assert started.count("--seed") == 1
        assert result(out)[0] == shown


def test_the_root_of_the_data_sets(desk: Desk) -> None:
    """Cambricon's PYTORCH_TRAIN_DATASET has KiTS19/pre_data_dir in it; a folder with cases is taken as it is."""
    inner = desk.cache / "KiTS19" / "pre_data_dir"
    inner.mkdir(parents=True)
    desk.run(FOUR, "--overwrite", PYTORCH_TRAIN_DATASET="pre data/")
    (desk.cache / "case_00000_x.npy").write_bytes(b"")
    desk.run(FOUR, "--overwrite", PYTORCH_TRAIN_DATASET="pre data/")
    assert [words[words.index("--cache") + 1] for words in desk.started] == [str(inner), str(desk.cache)]


def test_no_result_without_success(desk: Desk) -> None:
    for code, words in ((1, "was aborted (exit code 1)"), (3, "did not reach the typed --target (exit code 3)")):
        for script in (FOUR, INFER):
            found, out, err = desk.run(script, "--overwrite", CODE=str(code))
            assert found == code
            assert words in err.splitlines()[-1]
            assert "RESULT" not in out
            assert "ENDING" not in out
            (desk.kept / "unet3d_a.pth").write_bytes(b"")


def test_inference_finds_what_training_wrote(desk: Desk) -> None:
    """Cambricon's inference looked into another folder than training wrote to."""
    assert desk.run(FOUR)[0] == 0
    code, out, err = desk.run(INFER, 9)
    assert code == 0, err
    words = desk.started[-1]
    assert words[:8] == ["unet", "evaluate", "--task", "kits19", "--mlu", "--precision", "fp32", "--cache"]
    assert words[8] == str(desk.cache)
    assert words[words.index("--weights") + 1] == desk.started[0][desk.started[0].index("--weights") + 1]
    assert words[words.index("--out") + 1] == str(desk.kept)
    run = desk.kept / words[words.index("--run-name") + 1]
    assert re.fullmatch(r"unet3d_infer-\d{8}-\d{6}", run.name)
    assert out.splitlines()[-2] == f"scores of {run}"
    assert result(out)[0] == "9"


def test_the_five_lines_of_inference(tmp_path: Path) -> None:
    table = "case,mean_dice,kidney,tumour{}\na,0.9,0.95,0.85{}\nb,0.8,0.93333,0.66667{}\n"
    spec = importlib.util.spec_from_file_location("print_scores", SCRIPTS / "print_scores.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weights = tmp_path / "w.pth"
    (tmp_path / "summary.json").write_text(json.dumps({"paths": {"weights": str(weights)}}))
    for content, columns, epoch, loss in (
        ({"epoch": 1999}, (",loss", ",0.12", ",0.2"), 1999, 0.16),  # weights, Cambricon's and MLPerf's too
        ({"progress": {"epoch": 12}}, ("", "", ""), 12, "-"),  # a state; --no-eval-loss
        ({}, ("", "", ""), "-", "-"),
    ):
        torch.save({"model": {}, **content}, weights)
        (tmp_path / "cases.csv").write_text(table.format(*columns))
        assert module.lines(tmp_path) == [
            *(f"epoch {epoch}", "L1 dice 0.9417", "L2 dice 0.7583", "mean_dice 0.85", f"eval_loss {loss}"),
        ]


def test_which_weights_inference_takes(desk: Desk) -> None:
    def taken(*words: object, **variables: str) -> str:
        code, _, err = desk.run(INFER, *words, "--run-name", "i", CODE="1", **variables)
        assert code == 1, err
        started = desk.started[-1]
        assert started.count("--weights") == 1
        return started[started.index("--weights") + 1]

    code, _, err = desk.run(INFER)
    assert code == 2
    assert err.startswith(
        f"error: PYTORCH_TRAIN_CHECKPOINT={desk.kept} holds no unet3d_*.safetensors.\n  Train first: bash "
    )
    (desk.kept / "unet3d_4000E_4MLUs.state.safetensors").write_bytes(b"")
    assert taken() == str(desk.kept / "unet3d_4000E_4MLUs.state.safetensors")
    for age, name in (
        (50, "unet3d_4000.pth"),
        (10, "unet3d_b.pth"),
        (30, "unet3d_c.safetensors"),
        (1, "other.pth"),
        (2, "unet3d_c.epoch-2000.safetensors"),
    ):
        (desk.kept / name).write_bytes(b"")
        os.utime(desk.kept / name, (time.time() - age,) * 2)
    assert taken() == str(desk.kept / "unet3d_b.pth")
    assert taken("--weights", "w.pth") == "w.pth"
    assert taken(PYTORCH_TRAIN_CHECKPOINT="check points/unet3d_4000.pth") == str(desk.kept / "unet3d_4000.pth")
    words = desk.started[-1]
    assert words[words.index("--out") + 1] == str(desk.kept)


def test_a_dry_run(desk: Desk) -> None:
    """One step on one process of any device; the line; nothing kept, no RESULT."""
    code, out, err = desk.run(FOUR, "--max-steps", 2, "--max-time", 9, DRY_RUN="1")
    assert code == 0, err
    (words,) = desk.started
    assert words[-3:] == ["--device", "auto", "--dry-run"]
    for gone in ("--mlu", "--devices", "--run-name", "--max-time"):
        assert gone not in words
    (line,) = out.splitlines()
    assert line.startswith(f"launch line: {desk.folder}/python -m unet train --task kits19 --recipe cambricon-4 --mlu ")
    told = shlex.split(line.removeprefix("launch line: "))
    assert told[told.index("--cache") + 1] == str(desk.cache)
    assert told[-4:] == ["--max-steps", "2", "--max-time", "9"]
    assert not list(desk.kept.iterdir())
    code, out, _ = desk.run(FOUR, "--device", "cpu", DRY_RUN="1", CODE="2")
    assert code == 2
    assert desk.started[-1][-3:] == ["--device", "cpu", "--dry-run"]
    assert "--device cpu" in out
    (desk.kept / "unet3d_a.pth").write_bytes(b"")
    code, out, _ = desk.run(INFER, DRY_RUN="1")
    assert (code, desk.started[-1][1], desk.started[-1][-3:]) == (0, "evaluate", ["--device", "auto", "--dry-run"])
    assert "RESULT" not in out


def test_a_stopped_run_goes_on(desk: Desk) -> None:
    """Cambricon's checkpoint was written when training had ended. Here TERM saves, and the same command goes on, with
    its own seed, until it is done; RESULT has the seconds of all starts and the first start."""
    process = desk.start(FOUR, -1, SLEEP="600")
    works = Path(f"{desk.notes}.works")
    end = time.monotonic() + 30
    while not works.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert code == 130, err
    assert "RESULT" not in out
    assert "was stopped and saved (exit code 130); the same command goes on with it" in err.splitlines()[-1]

    times = desk.kept / "unet3d_4000E_4MLUs.times"
    assert [line.split()[0] for line in times.read_text().splitlines()] == ["begin", "end"]
    times.write_text("begin 1000000\nend 1000100\nbegin 1000200\n")  # the second was killed: no end, no log line
    code, out, err = desk.run(FOUR, -1)
    assert code == 0, err
    words = desk.started[-1]
    assert words[-1] == "--resume"
    assert "--seed" not in words
    seed, seconds, user, start = result(out)
    assert (seed, user) == ("77", getpass.getuser())
    assert 100 <= int(seconds) < 130
    assert start.startswith("1970-01-12 ")

    code, again, err = desk.run(FOUR)
    assert code == 0, err
    assert "is done" in err
    assert result(again) == (seed, seconds, user, start)
    assert len(desk.started) == 2
    assert desk.run(FOUR, "--epochs", 5000)[0] == 0
    assert desk.started[-1][-3:] == ["--epochs", "5000", "--resume"]
    code, out, err = desk.run(FOUR, "--overwrite")
    assert desk.started[-1][-1] == "--overwrite"
    assert int(result(out)[1]) < 30


# ---- real

SMALL = ["--device", "cpu", "--devices", 1, "--workers", 0, "--pad-to", 64, "--patch", 32, "--eval-patch", 64]
SMALL += ["--layers", 2, "--width", 4, "--eval-steps", 2]


@pytest.fixture
def made(real: Desk) -> Desk:
    """The preprocessed cases of a made set in PYTORCH_TRAIN_DATASET, without the raw ones."""
    words = ["preprocess", "--task", "kits19", "--synth-data", "--data", "made", "--cache", real.cache, "--workers", 0]
    done = program(*words, cwd=real.folder)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(real.folder / "data")
    return real


@slow
def test_a_real_dry_run_with_a_very_small_network(made: Desk) -> None:
    code, out, err = made.run(FOUR, *SMALL, DRY_RUN="1")
    assert code == 0, err
    assert "one step was made and nothing was kept" in out
    assert "launch line: " in out
    assert not list(made.kept.iterdir())


@slow
def test_real_training_goes_on_and_is_scored_by_inference(made: Desk) -> None:
    code, out, err = made.run(FOUR, 11, *SMALL, "--max-steps", 1)
    assert code == 0, err
    assert result(out)[0] == "11"
    folder = made.kept / "unet3d_4000E_4MLUs"
    assert read_json(folder / "status.json")["status"] == "done"
    code, out, err = made.run(FOUR, *SMALL, "--max-steps", 2)
    assert code == 0, err
    assert result(out)[0] == "11"
    assert "resumed from" in (folder / "run.log").read_text()
    code, out, err = made.run(INFER, "--device", "cpu", "--workers", 0, "--eval-steps", 2, "--run-name", "i")
    assert code == 0, err
    epoch, kidney, tumour, mean, loss, _ = out.splitlines()[-6:]
    assert epoch == "epoch 1"
    with open(made.kept / "i" / "cases.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for line, name, column in ((kidney, "L1 dice", "kidney"), (tumour, "L2 dice", "tumour"), (mean, "mean_dice", "")):
        value = sum(float(row[column or name]) for row in rows) / len(rows)
        assert line == f"{name} {round(value, 4)}"
    assert re.fullmatch(r"eval_loss \d+\.\d+", loss)
    assert abs(read_json(made.kept / "i" / "summary.json")["best_score"] - float(mean.split()[1])) < 1e-4
