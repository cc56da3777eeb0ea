"""kill -9 at random moments of preprocess, predict and crossval (-m slow): the same command again goes on, and ends
with what a run that was never stopped has. Train is in test_slow.

`UNET_TEST_KILLS` is the number of kills of each command.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import program, read_json, start

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("UNET_TEST_KILLS", "3"))
SMALL = ("--image-size", 16, "--layers", 2, "--width", 4, "--batch-size", 4, "--device", "cpu", "--workers", 0)


def duration(words: Sequence[object], folder: Path, made: Path) -> float:
    """Seconds from the first file of a command in `made` to its end."""
    process = start(*words, cwd=folder)
    while process.poll() is None and not newest(made):
        time.sleep(0.01)
    began = time.monotonic()
    assert process.wait() == 0
    return time.monotonic() - began


def killed(words: Sequence[object], folder: Path, made: Path, seconds: float, dice: random.Random) -> int:
    """Start a command again and again and kill it, with all that it started left to itself, up to `seconds` after a
    first file of this start lies in `made`, and later with every kill (a machine may be busier than when `seconds` was
    measured), until it comes to its end. Returns the number of kills."""
    kills = 0
    while True:
        before = newest(made)
        process = start(*words, cwd=folder)
        while process.poll() is None and newest(made) == before:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, seconds * (1 + kills / KILLS)))
        process.send_signal(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            assert process.returncode == 0
            return kills
        kills += 1
        wait_for_children(folder)
        assert kills < 20 * KILLS, "no end"


def wait_for_children(folder: Path, seconds: float = 60) -> None:
    """What a killed command had started ends by itself, and holds the names of its run until then."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = []
        for path in Path("/proc").glob("[0-9]*/cwd"):
            with contextlib.suppress(OSError):
                left += [path] if path.readlink() == folder else []
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"{len(left)} processes outlive the command that started them")


def newest(folder: Path) -> int:
    """When the newest file in a folder was written."""
    times = [0]
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime_ns)
        except FileNotFoundError:
            continue
    return max(times)


def arrays(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npy"))}


def test_preprocess_killed_again_and_again_makes_the_same_cache(tmp_path: Path) -> None:
    made = ("synthesize", "--data", "./raw", "--patients", 160, "--slices", 12, "--side", 96)
    assert program(*made, cwd=tmp_path).returncode == 0
    words = ("preprocess", "--task", "lgg", "--data", "./raw", "--image-size", 64, "--cache")
    seconds = duration((*words, "./whole"), tmp_path, tmp_path / "whole")
    kills, dice = 0, random.Random(1)
    while kills < KILLS:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        kills += killed((*words, "./cut"), tmp_path, tmp_path / "cut", seconds, dice)
        assert arrays(tmp_path / "cut") == arrays(tmp_path / "whole")
        a, b = (read_json(tmp_path / name / "manifest.json")["cases"] for name in ("cut", "whole"))
        assert a == b
        assert not list((tmp_path / "cut").glob(".*.tmp"))


def test_predict_killed_again_and_again_writes_the_same_masks(phantoms: Path, tmp_path: Path) -> None:
    train = ("train", "--data", phantoms, "--cache", "./c", *SMALL, "--epochs", 1, "--run-name", "r")
    assert program(*train, cwd=tmp_path).returncode == 0
    words = ("predict", "--weights", "r.safetensors", phantoms, "--device", "cpu", "--overlay", "--output")
    seconds = duration((*words, "./whole"), tmp_path, tmp_path / "whole")
    kills, dice = 0, random.Random(1)
    while kills < KILLS:
        shutil.rmtree(tmp_path / "cut", ignore_errors=True)
        kills += killed((*words, "./cut"), tmp_path, tmp_path / "cut", seconds, dice)
        found, expected = (
            {p.relative_to(d): p.read_bytes() for p in d.rglob("*.*") if p.suffix in (".tif", ".png")}
            for d in (tmp_path / "cut", tmp_path / "whole")
        )
        assert found == expected
        assert not list((tmp_path / "cut").rglob(".*.tmp"))


def test_crossval_killed_again_and_again_ends_with_the_same_scores(phantoms: Path, tmp_path: Path) -> None:
    words = ("crossval", "--data", phantoms, "--cache", "./c", *SMALL, "--epochs", 4, "--folds", 2, "--seed", 3)
    words = (*words, "--deterministic", "--checkpoint-every", 1, "--run-name")
    assert program(*words, "whole", cwd=tmp_path).returncode == 0
    kills = killed((*words, "cut"), tmp_path, tmp_path / "performance", 8.0, random.Random(1))
    assert kills
    a, b = (read_json(tmp_path / f"performance/{name}/summary.json") for name in ("cut", "whole"))
    assert a["mean"] == b["mean"]
    for fold in (0, 1):
        lines = [(tmp_path / f"performance/{name}-fold{fold}/cases.csv").read_text() for name in ("cut", "whole")]
        assert lines[0] == lines[1]
        assert np.isfinite(read_json(tmp_path / f"performance/cut-fold{fold}/summary.json")["best_score"])
