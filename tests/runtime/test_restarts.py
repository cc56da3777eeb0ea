"""--restarts: a run whose process dies starts again, goes on from its last state, and ends as if it had run through."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import error_of, program, read_json
from test_distributed import epochs_of, left_behind, pid_of_rank, result, start, wait_for, weights, words_of

from unet import cli as unet_cli
from unet import host
from unet.commands import launch, run_end
from unet.config import run_files
from unet.config.schema import Config
from unet.devices.launchers import Rank
from unet.errors import CheckpointError, DataError, DeviceError, UnetError


def config_of(*words: object) -> Config:
    return unet_cli.resolve("train", [str(word) for word in words]).config


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> Callable[..., list[list[str]]]:
    """A function which lets the starter start shell scripts in place of this program; it gives the command lines of
    all starts."""

    def use(*scripts: str, before: Callable[..., object] = lambda number, started: None) -> list[list[str]]:
        found: list[list[str]] = []

        def start_all(count: int, words: Sequence[str], number: str) -> list[subprocess.Popen[bytes]]:
            found.append(list(words))
            started = [subprocess.Popen(["sh", "-c", script]) for script in scripts]
            before(number, started)
            return started

        monkeypatch.setattr(launch, "start_all", start_all)
        return found

    return use


@pytest.mark.parametrize(
    ("scripts", "expected", "count"),
    [
        (("kill -9 $$", "exit 1"), 1, 3),
        (("exit 1", "exit 1"), 1, 3),
        (("exit 1",), 1, 3),
        (("exit 0", "kill -9 $$"), 1, 3),
        (("exit 0", "exit 0"), 0, 1),
        (("exit 2", "sleep 60"), 2, 1),
        (("exit 3", "exit 3"), 3, 1),
        (("exit 130", "exit 130"), 130, 1),
        (("exit 130", "kill -9 $$"), 1, 1),
        (("exit 5", "exit 5"), 5, 1),
        ((f"exit {launch.LASTING}",), 1, 1),
        (("exit 1", f"exit {launch.LASTING}"), 1, 1),
    ],
)
def test_what_is_started_again(
    scripts: tuple[str, ...],
    expected: int,
    count: int,
    starts: Callable[..., list[list[str]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = starts(*scripts)
    assert launch.start(config_of(), len(scripts), ["train"], restarts=2) == expected
    assert found == [["train"]] * count
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Restart ")]
    assert len(said) == count - 1
    if scripts == ("exit 1",):
        assert said == ["Restart 1 of 2: process 0 ended with exit code 1.", said[1]]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--accumulate", 999), "--accumulate 999 is more than"),
        (("--data", "./cut", "--devices", 2), "holds no image"),
    ],
)
def test_an_error_of_data_or_settings_is_told_once(
    words: tuple[object, ...], expected: str, phantoms: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantoms, tmp_path / "cut")
    next((tmp_path / "cut").glob("*/*_mask.tif")).write_bytes(b"II*\0" + bytes(60))
    ended = program(*words_of(phantoms, "a", "--restarts", 3, *words), cwd=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("error: ") == 1 and expected in ended.stderr
    assert "Restart " not in ended.stderr
    assert "Not started again: the same error would come again." in ended.stderr


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (MemoryError(), False),
        (NotImplementedError(), False),
        (OSError(errno.EIO, "Input/output error", "/mnt/a"), True),
        (OSError(errno.ESTALE, "Stale file handle", "/mnt/a"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/mnt/a"), False),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/mnt/a"), False),
        (PermissionError(errno.EACCES, "Permission denied", "/mnt/a"), False),
        (host.ProcessLost("case: was killed by SIGKILL", ""), True),
        (DataError("", ""), False),
        (CheckpointError("", ""), False),
        (DeviceError("", ""), False),
    ],
)
def test_which_errors_may_pass(
    error: Exception,
    passing: bool,
    monkeypatch: pytest.MonkeyPatch,
    workplace: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit code tells it to the process that started this one, and to nobody else."""

    def fail(words: object) -> int:
        raise error

    monkeypatch.setattr(unet_cli, "dispatch", fail)
    assert unet_cli.main(["train"]) == 1
    monkeypatch.setenv("UNET_STARTER", "--devices 1")
    assert unet_cli.main(["train"]) == (1 if passing else launch.LASTING)


def test_nothing_is_started_again_after_a_signal_to_stop(starts: Callable[..., list[list[str]]]) -> None:
    found = starts("trap '' TERM; sleep 0.4; kill -TERM $PPID; sleep 0.4; exit 1")
    assert launch.start(config_of(), 1, ["train"], restarts=2) == 1
    assert len(found) == 1


def test_a_signal_while_processes_are_started_ends_them(starts: Callable[..., list[list[str]]]) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def stop(number: str, processes: list[subprocess.Popen[bytes]]) -> None:
        started.extend(processes)
        os.kill(os.getpid(), signal.SIGTERM)

    found = starts("exec sleep 60", "exec sleep 60", before=stop)
    with pytest.raises(KeyboardInterrupt):
        launch.start(config_of(), 2, ["train"], restarts=2)
    assert len(found) == 1
    assert [process.wait(30) for process in started] == [-signal.SIGKILL] * 2


def test_a_run_that_has_begun_goes_on_with_what_its_settings_do_not_hold(
    starts: Callable[..., list[list[str]]], workplace: Path
) -> None:
    """The first start dies before there is a folder, and is repeated; the second has one, beside an older run."""
    typed = ("--overwrite", "--seed", -1, "--out", "runs", "--max-time", 5, "--device-module", "a.b:C", "--quiet")
    numbers: list[str] = []

    def begin(number: str, started: object) -> None:
        numbers.append(number)
        if len(numbers) == 2:
            for name, its in (("old", "other"), ("new", number)):
                (workplace / "runs" / name).mkdir(parents=True)
                (workplace / "runs" / name / "status.json").write_text(f'{{"status": "running", "start": "{its}"}}')

    found = starts("exit 1", "exit 1", before=begin)
    words = ["--restarts", "2", *map(str, typed), "--devices", "2"]
    assert launch.start(config_of(*words), 2, words, restarts=2) == 1
    assert found[:2] == [words, words]
    assert len(set(numbers)) == 1
    again = config_of(*[word for word in found[2][1:] if word != "--resume"])
    assert found[2][:4] == ["train", "--resume", "--run-name", "new"]
    assert (again.run.run_name, again.run.out, again.distributed.devices) == ("new", "runs", 2)
    assert (again.device.device_module, again.logging.quiet, again.general.overwrite) == ("a.b:C", True, False)
    assert again.train.max_time is not None and 4 < again.train.max_time < 5
    assert "--restarts" not in found[2] and "--seed" not in found[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("crossval --restarts 2", "--restarts 2 is for train, not for crossval"),
        ("train --mode evaluate --weights ./x --restarts 2", "--restarts 2 is for train, not for evaluate"),
        ("train --restarts 2 --no-checkpoints", "--restarts and --no-checkpoints contradict"),
        ("train --restarts 2 --world-size 2 --rank 1", "not for --rank 1"),
        ("train --restarts -1", "--restarts"),
        ("evaluate --restarts 2", "unknown option --restarts"),
    ],
)
def test_restarts_are_for_a_run_that_saves_and_that_this_program_starts(
    words: str, expected: str, cli: Callable[..., tuple[int, str, str]], starts: Callable[..., list[list[str]]]
) -> None:
    found = starts("exit 0")
    Path("x").touch()
    assert expected in error_of(cli(*words.split(), "--synth-data"), 2)
    assert not found


def test_another_launcher_restarts_by_itself(
    cli: Callable[..., tuple[int, str, str]],
    starts: Callable[..., list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = starts("exit 0")
    words = ("train", "--synth-data", "--restarts", 3, "--device", "cpu")
    ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with monkeypatch.context() as variables:
        for name, value in ranks.items():
            variables.setenv(name, value)
        error = error_of(cli(*words), 2)
    assert "--restarts 3, but torch.distributed.run runs 2 processes" in error
    assert "--max-restarts 3" in error and "--devices 2" in error
    assert not found
    assert cli(*words)[0] == 0 and len(found) == 1  # and without a launcher


@pytest.mark.parametrize(("count", "expected"), [(1, "--run-name r"), (2, "--run-name r --devices 2")])
def test_the_command_to_go_on_names_devices_for_several_processes_alone(count: int, expected: str) -> None:
    rank = Rank(0, count, 0, count, f"--devices {count}")
    context: Any = SimpleNamespace(config=config_of(), device=SimpleNamespace(rank=rank))
    folder: Any = SimpleNamespace(name="r")
    (line,) = run_end.next_commands(context, folder, Path("weights/r.safetensors"), "stopped: SIGINT")
    assert line.endswith(f"--resume {expected}")


def test_commands_name_runs_and_weights_as_a_shell_reads_them(tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text("{}")
    context: Any = SimpleNamespace(config=config_of())
    folder: Any = SimpleNamespace(name="my run")
    lines = run_end.next_commands(context, folder, Path("weights/my run.safetensors"), "done")
    assert all("my run.safetensors" in shlex.split(line) for line in lines)
    with pytest.raises(UnetError) as caught:
        run_files.read_split(tmp_path / "splits.json", "my run")
    assert "my run" in shlex.split(caught.value.hint)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(1, 0, 1), (0,)])
def test_a_run_whose_processes_are_killed_ends_with_the_weights_of_one_that_ran_through(
    ranks: tuple[int, ...], phantoms: Path, tmp_path: Path
) -> None:
    """One process is killed: before the first state, if this is quick enough, and then after a later state each."""
    both = ("--devices", 2 if len(ranks) > 1 else 1, "--epochs", 15, "--checkpoint-every", 4, "--deterministic")
    whole = program(*words_of(phantoms, "whole", *both), cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    words = words_of(phantoms, "cut", *both, "--overwrite", "--restarts", len(ranks), "--quiet")
    process = start([sys.executable], words, tmp_path)
    log, state = (tmp_path / name for name in ("performance/cut/run.log", "weights/cut.state.safetensors"))
    wait_for(tmp_path / "performance" / "cut" / "metrics.jsonl", process)
    for number, rank in enumerate(ranks):
        if number:
            wait_until(lambda number=number: log.read_text().count(" resumed") == number, process)
            before = state.stat().st_mtime_ns if state.exists() else 0
            wait_until(lambda before=before: state.exists() and state.stat().st_mtime_ns != before, process)
        os.kill(pid_of_rank(rank, tmp_path), signal.SIGKILL)
    code, out = result(process)
    assert code == 0, out
    assert log.read_text().count(" resumed") == len(ranks)
    a, b = weights(tmp_path, "whole"), weights(tmp_path, "cut")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [
        [(row["epoch"], row["step"], row["loss"]) for row in epochs_of(tmp_path, name)] for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]
    assert read_json(tmp_path / "performance" / "cut" / "status.json")["status"] == "done"
    assert left_behind(tmp_path) == []


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
