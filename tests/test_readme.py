"""Long tests (-m slow): kills at random moments, the commands of README.md and docs/, the rehearsal."""

from __future__ import annotations

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pages
import pytest
import torch
from conftest import program, read_json, start, stored

pytestmark = pytest.mark.slow
KILLS = 30
LEAST = {"lgg": 0.85, "em": 0.5, "brains": 0.0, "kits19": 0.3}  # the score of each subject's first run


def state_time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_for(condition, process: subprocess.Popen[bytes], seconds: float = 120.0) -> bool:
    """Wait until `condition()`; False where the process ended first."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        if process.poll() is not None:
            return False
    raise AssertionError("nothing happened in time")


def test_a_run_killed_thirty_times_ends_with_the_same_bits(phantoms: Path, tmp_path: Path) -> None:
    """kill -9 at random moments, a third of them while a file of weights/ is being written; then --resume."""
    settings = (
        "--data",
        phantoms,
        "--cache",
        "c",
        "--device",
        "cpu",
        "--image-size",
        16,
        "--layers",
        2,
        "--width",
        32,
        "--batch-size",
        4,
        "--epochs",
        60,
        "--evaluate-every",
        20,
        "--deterministic",
        "--checkpoint-every",
        1,
        "--log-every",
        5,
    )
    whole = program("train", *settings, "--run-name", "whole", "--weights", "whole.pt", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    dice = random.Random(7)
    state, weights = tmp_path / "weights/cut.state.safetensors", tmp_path / "weights"
    kills = in_save = 0
    words: tuple[object, ...] = ("train", *settings, "--run-name", "cut", "--weights", "cut.pt")
    while kills < KILLS:
        before = state_time(state)
        process = start(*words, cwd=tmp_path)
        assert wait_for(lambda before=before: state_time(state) > before, process), f"the run ended after {kills} kills"
        if kills % 2:  # inside a save: the temporary file stands there
            assert wait_for(lambda process=process: list(weights.glob(f".*-{process.pid}.tmp")), process)
            time.sleep(dice.uniform(0, 0.002))
        else:
            time.sleep(dice.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
        kills += 1
        in_save += bool(list(weights.glob(f".*-{process.pid}.tmp")))
        stored(state)
        words = ("train", "--resume", "--run-name", "cut")
    assert in_save >= KILLS // 3, f"only {in_save} of {kills} kills fell inside a save"
    done = program(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("", ".state"):
        a, b = (stored(weights / f"{run}{name}.safetensors") for run in ("whole", "cut"))
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        if name:
            for x, y in zip(a["optimizer"]["state"].values(), b["optimizer"]["state"].values(), strict=True):
                assert all(torch.equal(x[key], y[key]) for key in x)
            assert torch.equal(a["rng"]["torch"], b["rng"]["torch"])
    lines = [
        [json.loads(line) for line in (tmp_path / f"performance/{run}/metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "cut")
    ]
    epochs = [[(line["epoch"], line["loss"]) for line in run if line["event"] == "epoch"] for run in lines]
    assert [epoch for epoch, _ in epochs[1]] == [epoch for epoch, _ in epochs[0]]
    assert [loss for _, loss in epochs[1]] == pytest.approx([loss for _, loss in epochs[0]], rel=1e-9)
    assert not list(weights.glob(".*.tmp"))


@pytest.mark.real
@pytest.mark.parametrize("subject", pages.IN_ORDER)
def test_every_command_of_the_pages_runs(subject: str, real_lgg: Path, tmp_path: Path) -> None:
    """README.md and docs/ in the order of `pages.IN_ORDER`, with the real patients as data/kaggle_3m; commands marked
    `# hours` as a dry run."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kaggle_3m").symlink_to(real_lgg)
    lines = [line for page in pages.IN_ORDER[subject] for line in pages.commands(pages.text_of(page))]
    assert len(lines) >= 2
    for line in lines:
        command, _, comment = line.partition("#")
        words = shlex.split(command.split("&&")[-1])
        assert words[:3] == ["python", "-m", "unet"], line
        dry = ["--dry-run"] if "hours" in comment else []
        done = program(*words[3:], *dry, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    if subject not in LEAST:
        return  # its pages begin with a set of their own
    name = shlex.split(lines[0])[-1]
    assert "--synth-data --run-name" in lines[0]
    summary = read_json(tmp_path / f"performance/{name}/summary.json")
    assert summary["best_score"] > LEAST[subject]
    for path in (
        f"performance/{name}/predictions.png",
        f"performance/{name}/progress.png",
        f"weights/{name}.safetensors",
    ):
        assert (tmp_path / path).stat().st_size > 1000


def test_the_rehearsal_of_the_pages_passes_the_checker(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_logging")
    lines = pages.commands(pages.text_of("docs/mlperf.md"))
    assert len(lines) == 2  # synthesize, train
    for line in lines:
        done = program(*shlex.split(line)[3:], cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    words = ["-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "4.0.0"]
    checked = subprocess.run(
        [sys.executable, *words, "performance/rehearsal/unet3d.log"], cwd=tmp_path, capture_output=True, text=True
    )
    said = checked.stdout + checked.stderr
    assert checked.returncode == 0, said
    assert "SUCCESS" in said, said
