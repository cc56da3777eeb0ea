"""What a run shows while it goes on: the time left, the bar at several widths, the line of an epoch, results.csv."""

from __future__ import annotations

import csv
import math
import os
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY, program

from unet import files
from unet.errors import StorageError
from unet.runtime.callbacks.progress_bar import ProgressBar, best_words, fitting
from unet.runtime.callbacks.results import ResultsTable
from unet.runtime.callbacks.time_left import TimeLeft, evaluations_left, format_seconds, gain
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.progress import Progress


def a_run(progress: Progress, **how: Any) -> Any:
    """A run of 10 steps of 4 samples an epoch."""
    options = {"accumulate": 1, "max_steps": None, "target": None, "patience": None}
    given = {"epochs": 5, "schedule": (1, 1), "deadline": math.inf, "checkpoints": True, "scored": True, **how}
    return SimpleNamespace(
        progress=progress,
        epochs=given["epochs"],
        steps_per_epoch=10,
        samples_per_step=4,
        schedule=given["schedule"],
        evaluate=(lambda: None) if given["scored"] else None,
        options=SimpleNamespace(**{name: how.get(name, value) for name, value in options.items()}),
        saving=SimpleNamespace(checkpoints=given["checkpoints"]),
        stop=SimpleNamespace(deadline=given["deadline"], reason=None),
        task=SimpleNamespace(metric=SimpleNamespace(name="DSC", sign=1)),
    )


def after(epochs: int, batch: int = 0, **how: Any) -> Progress:
    """A progress of one step a second; an evaluation took 3 s, the saving of an epoch 2 s."""
    row = {"train_seconds": 10.0, "evaluate_seconds": 3.0, "score": 0.5}
    steps = 10 * epochs + batch
    seconds = {"train": float(steps), "wait": 0.0, "evaluate": 3.0 * epochs, "save": 2.0 * epochs}
    how = {"history": [dict(row) for _ in range(epochs)], "seconds": seconds, **how}
    return Progress(epoch=epochs + 1, batch=batch, step=steps, images=4 * steps, **how)


def test_the_time_left_counts_steps_evaluations_and_saving() -> None:
    left = TimeLeft()
    assert left.of(a_run(Progress())) is None  # nothing was timed
    found = left.of(a_run(after(2, batch=4)))
    # 26 steps; 3 epochs end with a save and an evaluation, and the best weights are scored in full
    assert found == (26 + 3 * 2 + 4 * 3, False, False, False)
    assert str(found) == "44 s left"
    assert left.of(a_run(after(2), checkpoints=False)).seconds == 30 + 6 + 9
    assert left.of(a_run(after(2), scored=False)).seconds == 30 + 6
    assert left.of(a_run(after(2, batch=4), max_steps=30, epochs=3)).seconds == 6 + 2 + 2 * 3
    assert left.of(a_run(after(5))).seconds == 3  # the scoring in full


def test_what_the_time_left_is_not_sure_of() -> None:
    left = TimeLeft()
    unscored = after(0, batch=4)
    assert str(left.of(a_run(unscored))) == "over 46 s left"  # no evaluation was timed
    assert str(left.of(a_run(after(2), target=0.9))) == "at most 48 s left"
    assert str(left.of(a_run(after(2), patience=3))) == "at most 48 s left"
    assert str(left.of(a_run(after(2), deadline=time.monotonic() + 20.2, target=0.9))) == "20 s left (--max-time)"
    assert str(left.of(a_run(after(2), deadline=time.monotonic() + 900))) == "48 s left"


def test_what_else_an_epoch_takes_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    left, run = TimeLeft(), a_run(after(2))
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    left.on_epoch_start(run)
    now[0] += 10 + 3 + 7  # training, evaluation, and pictures, logs and saving
    run.progress = after(3)
    left.on_epoch_start(run)
    assert left.others == [7.0]
    assert left.of(run).seconds == 20 + 2 * 7 + 3 * 3


@pytest.mark.parametrize(
    ("epoch", "epochs", "schedule", "due"),
    [
        (1, 5, (1, 1), 6),
        (3, 5, (1, 1), 4),
        (1, 10, (4, 3), 4),  # 4, 7, 10, and in full
        (8, 10, (4, 3), 2),
        (1, 11, (4, 3), 5),  # the last one too
        (1, 10, (1, 0), 2),  # only at the end
        (1, 3, (20, 5), 2),
        (6, 5, (1, 1), 1),
    ],
)
def test_evaluations_that_are_due(epoch: int, epochs: int, schedule: tuple[int, int], due: int) -> None:
    assert evaluations_left(a_run(Progress(epoch=epoch), epochs=epochs, schedule=schedule)) == due


def test_durations_in_words() -> None:
    words = [format_seconds(seconds) for seconds in (0.4, 99.4, 99.6, 5940, 6000, 100000, 200000)]
    assert words == ["0 s", "99 s", "2 min", "99 min", "1 h 40 min", "27 h 47 min", "2 d 7 h"]


def test_the_change_of_the_best_score() -> None:
    rows = [{"score": 0.5}, {}, {"score": 0.4}]
    assert gain(rows[:1], 1) is None
    assert gain(rows, 1) == 0.0
    assert gain([*rows, {"score": 0.75}], 1) == 0.25
    assert gain(rows, -1) == pytest.approx(-0.1)
    run = a_run(Progress(best_score=0.75, history=[*rows, {"score": 0.75}]))
    assert best_words(run)[0] == "best DSC 0.7500 (+0.2500)"
    assert best_words(a_run(Progress())) == ()


def test_words_are_shortened_or_left_out_by_their_weight() -> None:
    things = [("12 min left",), ("best DSC 0.9 (+0.1)", "best 0.9"), ("loss 0.1",), (), ("1 kJ",)]
    assert fitting(things, 100) == ["12 min left", "best DSC 0.9 (+0.1)", "loss 0.1", "1 kJ"]
    assert fitting(things, 33) == ["12 min left", "best 0.9", "loss 0.1"]
    assert fitting(things, 24) == ["12 min left", "best 0.9"]
    assert fitting(things, 12) == ["best 0.9"]
    assert fitting(things, 7) == ["1 kJ"]
    assert fitting(things, 0) == []


class Terminal:
    """Standard error that is a terminal so many columns wide."""

    def __init__(self, width: int) -> None:
        self.ours, self.theirs = pty.openpty()
        ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def text(self) -> str:
        os.close(self.theirs)
        parts = []
        while True:
            try:
                piece = os.read(self.ours, 65536)
            except OSError:
                break
            if not piece:
                break
            parts.append(piece)
        os.close(self.ours)
        return b"".join(parts).decode()


BAR = """
import sys, time
sys.path.insert(0, "tests/runtime")
sys.path.insert(0, "tests")
import test_display
test_display.show_a_bar()
"""


def show_a_bar() -> None:
    """In a process whose standard error is a terminal."""
    run = a_run(after(2, history=[{"train_seconds": 10.0, "evaluate_seconds": 3.0, "score": x} for x in (0.6, 0.7)]))
    run.progress.best_score, run.progress.energy = 0.7, {"joules": 4310.0, "readings": 9}
    bar = ProgressBar(TimeLeft())
    bar.on_epoch_start(run)
    bar.on_log(run, loss=0.25, images_per_second=41.5, wait_fraction=0.234)
    for _ in range(5):
        run.progress.batch += 1
        time.sleep(0.21)
        bar.on_step_end(run)
    bar.on_epoch_end(run)


@pytest.mark.parametrize(
    ("width", "shown", "hidden"),
    [
        (60, ["48 s left", "best 0.7000"], ["41.5", "loss"]),
        (80, ["48 s left", "best DSC 0.7000 (+0.1000)"], ["41.5"]),
        (120, ["48 s left", "best DSC 0.7000 (+0.1000)", "loss 0.2500", "data wait 23%", "4.31 kJ"], []),
    ],
)
def test_the_bar_fits_the_terminal(width: int, shown: list[str], hidden: list[str]) -> None:
    terminal = Terminal(width)
    done = subprocess.Popen([sys.executable, "-c", BAR], cwd=ROOT, stderr=terminal.theirs)
    assert done.wait(60) == 0
    text = terminal.text()
    lines = [line for line in re.split(r"[\r\n]+", text) if "/10" in line]
    assert lines, text
    assert max(map(len, lines)) <= width
    last = lines[-1]
    assert "epoch 3/5" in last
    for words in shown:
        assert words in last
    for words in hidden:
        assert words not in text
    assert "\x1b[3" not in text  # no colour


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_results_csv_grows_in_lines_and_columns(tmp_path: Path) -> None:
    folder, progress = RunFolder(tmp_path / "r"), Progress()
    folder.path.mkdir()
    run, results = SimpleNamespace(progress=progress), ResultsTable(folder)
    results.on_train_start(run)  # type: ignore[arg-type]
    assert not (folder / "results.csv").exists()
    rows: list[dict[str, Any]] = [
        {"epoch": 1, "loss": 0.1 + 0.2, "note": "text"},
        {"epoch": 2, "loss": math.nan},
        {"epoch": 3, "loss": 0.2, "score": 0.5, "eval_a,b": 1},
        {"epoch": 4, "loss": None},
    ]
    for row in rows:
        progress.history.append(row)
        results.on_epoch_end(run, row)  # type: ignore[arg-type]
    assert (folder / "results.csv").read_text().splitlines()[0] == 'epoch,loss,score,"eval_a,b"'
    found = table(folder / "results.csv")
    assert [row["epoch"] for row in found] == ["1", "2", "3", "4"]
    assert float(found[0]["loss"]) == 0.1 + 0.2
    assert [found[1]["loss"], found[3]["loss"], found[0]["score"], found[2]["score"]] == ["nan", "nan", "", "0.5"]
    del progress.history[2:]  # resumed from an earlier state
    ResultsTable(folder).on_train_start(run)  # type: ignore[arg-type]
    assert [row["epoch"] for row in table(folder / "results.csv")] == ["1", "2"]
    progress.history.clear()
    ResultsTable(folder).on_train_start(run)  # type: ignore[arg-type]
    assert (folder / "results.csv").read_text() == "epoch\n"


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    files.append_line(path, "x" * 90)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StorageError):
            files.append_line(path, "y" * 90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert path.read_text() == "x" * 90 + "\n"


def test_without_a_terminal_a_line_an_epoch(tmp_path: Path, phantoms: Path) -> None:
    words = ("train", "--data", phantoms, "--cache", "c", "--device", "cpu", *TINY, "--epochs", 2)
    done = program(*words, "--run-name", "a", cwd=tmp_path, env={"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert re.search(r"after \d+ s; \d+ s so far, \d+ s left$", lines[0]), lines[0]
    assert re.search(r"after \d+ s; \d+ s so far$", lines[1]), lines[1]
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    log = (tmp_path / "performance/a/run.log").read_text()
    assert all(line in log for line in lines)
    again = program(*words, "--run-name", "b", "--quiet", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stderr == ""
    assert "s left" in (tmp_path / "performance/b/run.log").read_text()
