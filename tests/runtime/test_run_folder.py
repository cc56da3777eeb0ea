"""A run's folder and names: only what the program wrote is removed, and two runs never share a name."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY, error_of, read_json

from unet import files, locks
from unet.commands import run_start
from unet.errors import UsageError
from unet.runtime import terminal
from unet.runtime.folders.run_folder import RunFolder, new_folder

HOLD = """
import sys, time, pathlib
from unet import locks
print(locks.acquire(pathlib.Path(sys.argv[1]), pathlib.Path("runs/other")), flush=True)
time.sleep(60)
"""
FORK = """
import os, time, pathlib
from unet import locks
assert not locks.acquire(pathlib.Path("x.lock"), pathlib.Path("a"))
if os.fork():
    print("ready", flush=True)
time.sleep(20)
"""


@pytest.fixture(autouse=True)
def let_go():
    yield
    locks.release_all()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "status.json",
        "summary.json",
        "splits.json",
        "run.log",
        "mine.txt",
        "cases.csv",
        "progress.png",
        "unet3d.log",
        "metrics.jsonl",
        "tensorboard/notes.txt",
        "tensorboard/events.out.tfevents.mine",
        "files.json",
        "notes.txt",
        "sub/config.json",
    ],
)
def test_a_users_own_files_are_never_deleted(workplace: Path, name: str, more: tuple[str, ...]) -> None:
    path = Path("performance/mine") / name
    path.parent.mkdir(parents=True)
    path.write_text('{"my": 1}\n')
    before = contents(Path("performance"))
    with pytest.raises(UsageError, match=r"holds more than a run|exists in"):
        RunFolder(Path("performance/mine")).create("train", bool(more))
    assert {key: value for key, value in contents(Path("performance")).items() if "lock" not in key} == before


def made(kind: str = "train") -> RunFolder:
    folder = RunFolder(Path("performance/a"))
    folder.create(kind, False)
    folder.status("done", kind=kind)
    folder.write("config.json", {"command": "", "settings": {"lr": {"value": 1, "source": "default"}}})
    folder.append("metrics.jsonl", '{"event": "step"}')
    folder.say("words")
    folder.begin()
    return folder


def test_only_listed_files_are_replaced(workplace: Path) -> None:
    folder = made()
    assert set(read_json(folder / "files.json")["files"]) == {path.name for path in folder.path.iterdir()}
    with pytest.raises(UsageError, match="--overwrite"):
        RunFolder(folder.path).create("train", False)
    (folder / "predictions.png").write_bytes(b"a picture of the user's")
    with pytest.raises(UsageError, match=r"holds more than a run \(predictions.png\)"):
        RunFolder(folder.path).create("train", True)
    (folder / "predictions.png").unlink()
    again = RunFolder(folder.path)
    again.create("train", True)
    assert (folder / "metrics.jsonl").exists(), "removed before the new run has begun"
    again.begin()
    assert not list(folder.path.iterdir())


def test_a_list_that_leads_out_of_the_folder_removes_nothing(workplace: Path) -> None:
    folder = made()
    victim = workplace / "performance" / "victim.txt"
    victim.write_text("mine")
    (folder / "files.json").write_text(
        json.dumps({"files": ["../victim.txt", str(victim), "tensorboard/../../victim.txt"]})
    )
    with pytest.raises(UsageError, match="holds more than a run"):
        RunFolder(folder.path).create("train", True)
    assert victim.read_text() == "mine"


def test_a_folder_of_a_version_without_a_list_is_replaced_if_its_files_are_the_programs(workplace: Path) -> None:
    folder = made()
    (folder / "files.json").unlink()
    with pytest.raises(UsageError, match="exists in"):
        RunFolder(folder.path).create("train", False)
    log = (folder / "run.log").read_text()
    (folder / "run.log").write_text("notes of the user")
    with pytest.raises(UsageError, match=r"holds more than a run \(run.log\)"):
        RunFolder(folder.path).create("train", True)
    (folder / "run.log").write_text(log)
    again = RunFolder(folder.path)
    again.create("train", True)
    again.begin()
    assert not list(folder.path.iterdir())


def test_a_run_of_a_version_without_a_list_goes_on_and_gets_one(workplace: Path) -> None:
    folder = made()
    (folder / "files.json").unlink()
    (folder / "cases.csv").write_text("the user's own table")
    RunFolder(folder.path).append("run.log", "2026-01-01 00:00:00 resumed")
    assert "cases.csv" not in read_json(folder / "files.json")["files"]
    with pytest.raises(UsageError, match=r"holds more than a run \(cases.csv\)"):
        RunFolder(folder.path).create("train", True)


def test_a_start_that_fails_leaves_no_folder_and_takes_nothing(tiny) -> None:
    assert "is larger than the training set" in error_of(tiny("--run-name", "a", "--batch-size", 9999))
    assert list(Path("performance").iterdir()) == []
    assert not Path("weights").exists() or list(Path("weights").iterdir()) == []
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    before = contents(Path())
    error_of(tiny("--run-name", "a", "--batch-size", 9999, "--overwrite"))
    assert contents(Path()) == before


def held(path: Path) -> subprocess.Popen[str]:
    """A process that holds a lock file."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout
    assert process.stdout.readline() == "\n"
    return process


def test_a_name_that_another_process_holds_is_refused_until_it_dies(workplace: Path) -> None:
    Path("performance").mkdir()
    folder = RunFolder(Path("performance/a"))
    other = held(folder.lock)
    try:
        for work in (lambda: folder.create("train", True), folder.take, folder.require_stopped):
            with pytest.raises(UsageError, match=f"Run 'a' is running .process {other.pid} on") as error:
                work()
            assert "--run-name" in error.value.hint
            assert "runs/other" in error.value.message
        assert not folder.path.exists()
    finally:
        other.kill()
        other.wait()
    folder.create("train", False)


def test_a_claim_does_not_outlive_its_process_in_a_forked_one(workplace: Path) -> None:
    path = Path("x.lock")
    code = FORK
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert process.stdout
    process.stdout.readline()
    assert locks.holder(path)
    process.kill()
    process.wait()
    assert locks.acquire(path, Path("b")) == ""
    os.killpg(process.pid, signal.SIGKILL)


def test_runs_without_a_name_that_start_in_one_second_get_folders_of_their_own(workplace: Path) -> None:
    names = [new_folder(Path("p"), None, "lgg", "train", False).name for _ in range(2)]
    assert names[0] != names[1] or not Path("p", names[0]).exists()
    first = new_folder(Path("p"), None, "lgg", "train", False)
    first.begin()
    second = new_folder(Path("p"), None, "lgg", "train", False)
    assert first.name != second.name


@pytest.mark.parametrize("typed", [True, False])
def test_weights_that_a_running_run_holds(tiny, typed: bool) -> None:
    """Typed they are an error; the usual name is the run's own, which no other run has."""
    Path("weights").mkdir()
    other = held(Path("weights/.x.state.safetensors.unet.lock"))
    try:
        result = tiny("--run-name", "b", "--epochs", 1, *(("--weights", "x.pt") if typed else ()))
        if typed:
            error = error_of(result, 2)
            assert "is being written by another run" in error
            assert f"process {other.pid}" in error
            assert not Path("performance/b").exists()
        else:
            assert result[0] == 0
            assert Path("weights/b.safetensors").exists()
            assert not Path("weights/x.safetensors").exists()
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_saves_and_nohup_goes_on(tiny, ignored: bool) -> None:
    """SIGHUP; under nohup, where it is ignored from the start, it stays ignored."""
    from unet.runtime import trainer

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    original = trainer.optimizer_step

    def step(run: trainer.Trainer) -> None:
        original(run)
        if run.progress.step == 3:
            os.kill(os.getpid(), signal.SIGHUP)

    trainer.optimizer_step = step
    try:
        code, out, _ = tiny("--run-name", "a", "--epochs", 2, "--workers", 0)
    finally:
        trainer.optimizer_step = original
        signal.signal(signal.SIGHUP, before)
    status = read_json(Path("performance/a/status.json"))
    if ignored:
        assert (code, status["status"]) == (0, "done")
    else:
        assert (code, status["status"], status["why"]) == (130, "interrupted", "stopped: SIGHUP")
        assert "--resume --run-name a" in out


def test_a_signal_outside_the_loop_interrupts(tiny, cli, phantoms: Path, monkeypatch) -> None:
    """While a command looks for its cases; all commands, by one run's weights."""
    from unet.tasks.lgg.task import LGG

    def ring(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)

    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    for owner, name in ((LGG, "find_inputs"), (LGG, "cached_cases"), (LGG, "find_cases")):
        assert hasattr(owner, name), owner
        monkeypatch.setattr(owner, name, ring)
    weights = read_json(Path("performance/a/status.json"))["weights"]
    lines = {
        "predict": ("--weights", weights, phantoms),
        "evaluate": ("--weights", weights),
        "preprocess": ("--data", phantoms, "--cache", "other"),
        "crossval": ("--data", phantoms, "--cache", "other", *TINY),
        "train": ("--data", phantoms, "--cache", "other", *TINY, "--run-name", "b"),
    }
    for command, words in lines.items():
        code, _, err = cli(command, *words)
        assert code == 130, (command, err)
        assert "Interrupted" in err
    statuses = {path.parent.name: read_json(path)["status"] for path in Path("performance").glob("*/status.json")}
    assert statuses["b"] == statuses["lgg-crossval"] == "interrupted"


def test_a_pipe_whose_reader_is_gone() -> None:
    """`tee` dies of the same Ctrl-C as the run."""
    ours, theirs = os.pipe()
    with open(theirs, "w", buffering=1) as stream:
        assert terminal.is_read_by_another(stream)
        guarded = terminal.Terminal(stream)
        os.close(ours)
        for _ in range(3):
            assert guarded.write("words\n") == 6
            guarded.flush()


def wait_for_state(process: subprocess.Popen[bytes], weights: Path) -> None:
    """Until a run has saved its first state."""
    deadline = time.monotonic() + 180
    while not list(weights.glob("a.state.*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_ctrl_c_that_ends_the_reader_of_a_pipe_too(phantoms: Path, tmp_path: Path) -> None:
    words = ["train", "--data", phantoms, "--cache", "c", "--device", "cpu", *TINY, "--epochs", 100000]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "unet",
            *map(str, words),
            "--evaluate-every",
            "0",
            "--run-name",
            "a",
            "--save-minutes",
            "0",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        wait_for_state(process, tmp_path / "weights")
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
    status = read_json(tmp_path / "performance/a/status.json")
    assert (status["status"], status["why"]) == ("interrupted", "stopped: SIGINT")


@pytest.mark.slow
def test_a_terminal_that_is_closed(phantoms: Path, tmp_path: Path) -> None:
    """A real terminal: what the run still writes to it fails, and the state is saved all the same."""
    main, side = pty.openpty()
    words = [
        "train",
        "--data",
        phantoms,
        "--cache",
        "c",
        "--device",
        "cpu",
        *TINY,
        "--epochs",
        100000,
        "--run-name",
        "a",
    ]
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "unet", *map(str, words), "--evaluate-every", "0"],
        cwd=tmp_path,
        stdin=side,
        stdout=side,
        stderr=side,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(side)
    reader = threading.Thread(target=drain, args=(main,), daemon=True)
    reader.start()
    try:
        wait_for_state(process, tmp_path / "weights")
        os.close(main)
        assert process.wait(60) == 130
    finally:
        process.kill()
    status = read_json(tmp_path / "performance/a/status.json")
    assert (status["status"], status["why"]) == ("interrupted", "stopped: SIGHUP")


def drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:
        pass


def test_damaged_files_of_a_run_hide_no_state_and_end_in_two_lines(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    folder = Path("performance/a")
    with open(folder / "metrics.jsonl", "ab") as stream:
        stream.write(b"\xff\xfe not text\n")
    for damage in (b"", b"[]", b'{"status": "running", "pid": "abc"}'):
        (folder / "status.json").write_bytes(damage)
        code, _, err = tiny("--resume", "--run-name", "a", "--epochs", 1)
        assert code == 0, err
        assert "missing or damaged" in err
        assert "resumed from" in err
        status = read_json(folder / "status.json")
        assert status["status"] == "done"
        assert Path(status["weights"]).exists()
    split = (folder / "splits.json").read_text()
    for wrong in ("[]", '{"train": ["a"], "validation": ["a"]}', '{"train": [], "validation": []}', "\xff"):
        (folder / "splits.json").write_text(wrong, encoding="latin-1")
        assert "splits.json" in error_of(tiny("--resume", "--run-name", "a", "--epochs", 1))
    (folder / "splits.json").write_text(split)
    result = tiny("--resume", "--batch-size", 3)
    assert "--resume takes run a, the last that is not done" in result[2]
    error = error_of(result, 2)
    assert "continues run 'a' exactly, but these settings differ: batch_size 4 -> 3" in error
    assert "for another run type --run-name NAME" in error
    (folder / "config.json").write_text('{"settings": {"lr": 5}}')
    assert "lr" in error_of(tiny("--resume", "--run-name", "a"), 2)


def test_a_run_that_replaced_another_and_was_killed_at_once_does_not_go_on_from_the_old_state(tiny) -> None:
    from unet.runtime import trainer

    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    assert list(Path("weights").glob("a.state.*"))
    original = trainer.optimizer_step

    def step(run: trainer.Trainer) -> None:
        raise KeyboardInterrupt

    trainer.optimizer_step = step
    try:
        assert tiny("--run-name", "a", "--epochs", 1, "--overwrite")[0] == 130
    finally:
        trainer.optimizer_step = original
    assert not list(Path("weights").glob("a.state.*"))
    code, _, err = tiny("--resume", "--run-name", "a")
    assert code == 0, err
    assert "no state was saved yet, so the run starts over" in err


@pytest.mark.parametrize("name", ["state", "state-before", "best-before"])
def test_files_of_others_beside_the_weights_are_kept(tiny, name: str) -> None:
    own = Path("weights") / f"n.{name}.safetensors"
    own.parent.mkdir()
    own.write_text("mine")
    assert f"{own.name} exists" in error_of(tiny("--run-name", "n", "--epochs", 2), 2)
    assert own.read_text() == "mine"
    if name == "best-before":
        Path("weights/n.safetensors").write_text("mine as well")
        words = ("--weights", "n.safetensors", "--overwrite")
        assert tiny("--run-name", "n", "--epochs", 2, *words)[0] == 0
        assert own.with_name(f"{own.name}.replaced-1").read_text() == "mine"
        assert Path("weights/n.safetensors.replaced-1").read_text() == "mine as well"


def test_a_dump_replaces_its_own_files_alone(tiny) -> None:
    words = ("--epochs", 1, "--debug-dump", "dump")
    assert tiny("--run-name", "a", *words)[0] == 0
    assert "exists" in error_of(tiny("--run-name", "b", *words), 2)
    assert tiny("--run-name", "b", *words, "--overwrite")[0] == 0
    Path("dump/dump.json").unlink()  # now it could be anybody's
    before = Path("dump/settings.json").read_bytes()
    for more in (("--run-name", "c", "--overwrite"), ("--run-name", "a", "--resume", "--epochs", 2)):
        assert "does not list it" in error_of(tiny(*words[2:], *more), 2)
    assert Path("dump/settings.json").read_bytes() == before
    assert not Path("performance/c").exists()


def test_a_dump_of_a_run_that_was_stopped_in_scoring(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """All batches of its epoch are trained."""
    from unet.runtime import trainer

    with monkeypatch.context() as stopped:
        stopped.setattr(trainer, "evaluate_epoch", lambda run: None)
        assert tiny("--run-name", "a", "--epochs", 1)[0] == 130
    code, _, err = tiny("--run-name", "a", "--resume", "--debug-dump", "dump")
    assert code == 0 and Path("dump/batch.npz").exists(), err


def test_a_failure_is_on_record_before_its_cause_is_known(workplace: Path) -> None:
    """A launcher ends the other processes while they ask which of them was lost."""
    folder = RunFolder(Path("performance/a"))
    folder.create("train", overwrite=False)
    folder.begin()

    def explain(error: BaseException) -> BaseException:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), run_start.recording_failure(folder, explain):
        raise RuntimeError("connection closed by peer")
    status = read_json(folder / "status.json")
    assert (status["status"], status["why"]) == ("failed", "RuntimeError: connection closed by peer")


def test_a_log_that_a_power_failure_cut_off(tmp_path: Path) -> None:
    """Half a line is never the beginning of the next one, and a resumed run does not keep it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n"')
    files.append_line(path, '{"n": 4}')
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n"\n{"n": 4}\n'
    path.write_text('{"n": 1}\n{"n": 2}\n{"n"')
    folder = RunFolder(tmp_path)
    folder.begin()
    assert folder.keep_lines("a.jsonl", 3) == 2
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n'
    assert folder.keep_lines("a.jsonl", 1) == 1
    assert path.read_text() == '{"n": 1}\n'
