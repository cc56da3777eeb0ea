"""Processes of the loader and of preprocess that are killed, stopped or told to end: nobody waits without limit."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, read_json

from unet import files, host, locks
from unet.commands import launch
from unet.data.loading import workers
from unet.data.loading.loader import Loader
from unet.errors import DataError, UnetError

ALL = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Numbers:
    """Batches of 4 images, channels last in memory; number 7 has an error, number 8 has no room."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        epoch, number = key
        if number == 7:
            raise DataError("the file is cut.", "Copy it again.")
        if number == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        image = torch.arange(4 * 8 * 8 * 3.0).reshape(4, 8, 8, 3).permute(0, 3, 1, 2) + 100 * epoch + number
        return {"image": image, "mask": image[:, :1].to(torch.uint8), "index": torch.arange(4), "none": torch.ones(0)}

    def name(self, index: int) -> str:
        return str(index)


def pids(loader: Loader) -> list[int]:
    assert loader.pool
    return [worker.process.pid for worker in loader.pool.workers]


def gone(pid: int, seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_batches_come_as_they_are_and_in_order() -> None:
    loader, data = Loader(Numbers(), 2), Numbers()
    for epoch, start, stop in ((1, 0, 7), (2, 3, 7), (3, 6, 7)):
        for number, batch in enumerate(loader.epoch(epoch, start, stop), start):
            for name, wanted in data[epoch, number].items():
                assert torch.equal(batch[name], wanted), (epoch, number, name)
                assert batch[name].dtype == wanted.dtype
            assert batch["image"].is_contiguous(memory_format=torch.channels_last)
            batch["image"] += 1  # its memory is its own
    first = loader.epoch(4, 0, 6)
    next(first)
    assert next(loader.epoch(5))["image"].flatten()[0] == 500  # another epoch in between
    assert [int(batch["image"].flatten()[0]) for batch in first] == [401, 402, 403, 404, 405]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_one_stream(workers: int) -> None:
    """From the middle of the first; each batch is the one of its own epoch."""
    stream = Loader(Numbers(), workers).epochs(range(2, 5), 4, 6)
    wanted = [204, 205, *range(300, 306), *range(400, 406)]
    assert [int(batch["image"].flatten()[0]) for batch in stream] == wanted


def test_the_next_epoch_is_prepared_before_it_begins() -> None:
    loader = Loader(Numbers(), 2)
    stream = loader.epochs(itertools.count(1), 0, 6)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(6):
        next(stream)
    assert loader.pool
    due = [key for worker in loader.pool.workers for _, key in worker.due]
    assert sorted(due) == [(2, number) for number in range(workers.AHEAD * 2)]
    poll = select.poll()
    for worker in loader.pool.workers:
        poll.register(worker.channel, select.POLLIN)
    deadline = time.monotonic() + 5
    while len(poll.poll(100)) < 2:  # nobody asks, and they are there
        assert time.monotonic() < deadline
    found = pids(loader)
    del loader, stream, worker, poll  # an early end
    assert all(gone(pid) for pid in found)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_an_error_in_a_process_arrives_as_it_is() -> None:
    with pytest.raises(DataError, match="the file is cut"):
        list(Loader(Numbers(), 2).epoch(1, 6, 8))
    with pytest.raises(DataError, match="no room in the memory that processes share"):
        list(Loader(Numbers(), 1).epoch(1, 8, 9))


def test_signals_to_a_process_change_nothing() -> None:
    loader = Loader(Numbers(), 2)
    batches = loader.epoch(1, 0, 7)
    next(batches)
    for pid in pids(loader):
        for number in ALL:
            os.kill(pid, number)
    assert len(list(batches)) == 6


@pytest.mark.parametrize("method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_killed_process_is_seen_at_once(method: str) -> None:
    loader = Loader(Numbers(), 2, {"multiprocessing_context": method})
    batches = loader.epoch(1, 0, 7)
    next(batches)
    os.kill(pids(loader)[1], signal.SIGSTOP)  # so that it dies with a batch in hand
    os.kill(pids(loader)[1], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(UnetError, match=r"A loader process died: process \d+ (was killed|ended)"):
        for _ in range(3):
            list(batches)
            batches = loader.epoch(2, 0, 7)
    assert time.monotonic() - began < 2


def test_a_stopped_process_holds_up_neither_a_stop_nor_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is stopped while it hands over: half of what it sends would be lost, were it not one message."""
    loader = Loader(Numbers(), 2)
    batches = loader.epoch(1, 0, 7)
    next(batches)
    next(loader.epoch(1, 0, 1))
    found = pids(loader)
    os.kill(found[1], signal.SIGSTOP)
    monkeypatch.setattr(workers, "SILENT", 1)
    with pytest.raises(UnetError, match="stopped by a signal"):
        list(loader.epoch(2, 0, 7))
    monkeypatch.setattr(workers, "HURRIED", 1)
    loader.hurry(lambda: True)
    values = [int(batch["image"].flatten()[0]) for batch in loader.epoch(3, 0, 4)]
    assert values == [300, 301, 302, 303]
    began = time.monotonic()
    del loader, batches
    assert all(gone(pid) for pid in found)
    assert time.monotonic() - began < 3


def test_all_processes_together_need_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "memory", lambda: (10_000, 10_000))
    with pytest.raises(DataError, match="2 loader processes hold 4 batches"):
        list(Loader(Numbers(), 2).epoch(1, 0, 4))


def running(phantoms: Path, place: Path, *more: object) -> subprocess.Popen[str]:
    """A training run with two loader processes that has saved at least once."""
    words = ("train", "--data", phantoms, "--cache", "c", "--device", "cpu", *TINY, "--epochs", 100000)
    words = (*words, "--workers", 2, "--run-name", "a", "--weights-file", "./a.pt", *more)
    process = subprocess.Popen(
        [sys.executable, "-m", "unet", *map(str, words)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    while not list(place.glob("a.state*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    return process


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_stop_while_a_loader_process_is_stopped(phantoms: Path, tmp_path: Path) -> None:
    process = running(phantoms, tmp_path, "--evaluate-every", 0)
    loaders = children(process.pid)[-2:]
    os.kill(loaders[0], signal.SIGSTOP)
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert read_json(tmp_path / "performance/a/status.json")["why"] == "stopped: SIGTERM"
    assert all(gone(pid) for pid in loaders)


@pytest.mark.slow
def test_signals_at_any_moment_end_the_run_and_its_processes(phantoms: Path, tmp_path: Path) -> None:
    """From the first fork on: a process that has just been started has no handlers of its own yet."""
    for delay in (0.0, 0.05, 0.4):
        place = tmp_path / str(delay)
        place.mkdir()
        process = running(phantoms, place, "--evaluate-every", 0)
        loaders = children(process.pid)[-2:]
        time.sleep(delay)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert err.count("finishing the current step") == 2, err
        assert all(gone(pid) for pid in loaders)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_run_leaves_no_process(stopped: bool, phantoms: Path, tmp_path: Path) -> None:
    process = running(phantoms, tmp_path)
    loaders = children(process.pid)[-2:]
    if stopped:
        os.kill(loaders[0], signal.SIGSTOP)
    process.kill()
    process.wait(5)
    assert all(gone(pid) for pid in loaders)


# -- processes of preprocess, check, synthesize ------------------------------------------------------------------------


def square(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5:
        raise DataError("five is cut.", "Copy it again.")
    return number * number


def forever(number: int) -> int:
    if number:
        time.sleep(1000)
    return number


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in commands that have not loaded torch: processes are forked."""
    monkeypatch.delitem(sys.modules, "torch")


def test_one_lost_process_costs_its_item_alone(forked: None) -> None:
    others = set(children(os.getpid()))
    for signals in ((), ALL):
        results: dict[int, Any] = {}
        for item, future in host.process_map(square, range(8), "squares", "number", 2):
            results[item] = future.exception() or future.result()
            for child in set(children(os.getpid())) - others:
                for number in signals:
                    os.kill(child, number)
        lost, cut = results.pop(3), results.pop(5)
        assert results == {number: number * number for number in (0, 1, 2, 4, 6, 7)}
        assert isinstance(lost, host.ProcessLost) and "3: process" in lost.message and "SIGKILL" in lost.message
        assert isinstance(cut, DataError) and "in square" in str(cut.__cause__)


def test_items_that_no_process_is_left_for(forked: None) -> None:
    found = {item: future.exception() for item, future in host.process_map(square, [3, 3, 4], "squares", "number", 1)}
    assert all(isinstance(error, host.ProcessLost) for error in found.values()) and set(found) == {3, 4}


def test_leaving_the_loop_ends_stopped_processes(forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PARTING", 0.5)
    began, others = time.monotonic(), set(children(os.getpid()))
    for _ in host.process_map(forever, [0, 1, 2], "sleeps", "number", 3):
        left = sorted(set(children(os.getpid())) - others)
        os.kill(left[-1], signal.SIGSTOP)
        break
    assert all(gone(pid) for pid in left)
    assert time.monotonic() - began < 4


def test_a_killed_process_of_preprocess(cli: Callable[..., tuple[int, str, str]], phantoms: Path) -> None:
    """In a run of its own, so that processes are forked and the killed one is in the midst of a case."""
    words = ["preprocess", "--data", str(phantoms), "--cache", "./c", "--image-size", "64"]
    code = (
        "import os, signal, sys, unet.tasks.lgg.dataset as lgg\n"
        "before = lgg.prepare\n"
        "def prepare(case, size):\n"
        "    if sys.argv[-1] in case.id:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return before(case, size)\n"
        "lgg.prepare = prepare\n"
        "from unet.cli import main\n"
        f"sys.exit(main({words}))\n"
    )
    victim = sorted(path.name for path in phantoms.iterdir() if path.is_dir())[2]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, victim], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and victim in done.stderr and "SIGKILL" in done.stderr, done.stderr
    assert "Type the command again" in done.stderr and "Internal error" not in done.stderr
    assert cli(*words)[0] == 0


# -- locks and processes that do not end -------------------------------------------------------------------------------


def test_a_lock_whose_owner_is_stopped_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 2.0)
    code = (
        "import sys, time, pathlib; from unet import files, locks; files.LOCK_TIMEOUT = 2.0\n"
        "with locks.hold(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(1000)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "lock")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    owner = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout and owner.stdout.readline() == "held\n"
        os.kill(owner.pid, signal.SIGSTOP)
        silent = pytest.raises(UnetError, match=rf"process {owner.pid} on .* without a sign of life for 2 s")
        with silent, locks.hold(tmp_path / "lock"):
            pass
        os.kill(owner.pid, signal.SIGCONT)
        threading.Timer(3.5, owner.kill).start()  # it works for longer than that: waited for
        with locks.hold(tmp_path / "lock"):
            assert owner.wait(1) == -signal.SIGKILL
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout
        owner.stdout.close()


WITHOUT_LOCKS = (
    "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOSYS, 'Function not implemented')\nfcntl.flock = flock\n"
)


def test_on_a_file_system_without_locks_one_process_waits_for_another(tmp_path: Path) -> None:
    """Lustre mounted without `flock` answers ENOSYS. Both add to a file, slowly; nothing is lost."""
    code = WITHOUT_LOCKS + (
        "import sys, time, pathlib; from unet import locks\n"
        "number = pathlib.Path(sys.argv[1])\n"
        "for _ in range(3):\n"
        "    with locks.hold(number.with_suffix('.lock')):\n"
        "        read = int(number.read_text()); time.sleep(0.1); number.write_text(str(read + 1))\n"
    )
    number = tmp_path / "number.txt"
    number.write_text("0")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code, str(number)], env=environment) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert number.read_text() == "6"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["number.lock", "number.txt"]


def test_the_lock_of_a_process_that_died_is_free_without_locks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = WITHOUT_LOCKS + (
        "import os, sys, pathlib; from unet import locks\n"
        "with locks.hold(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    lock, stand_in = tmp_path / "a.lock", tmp_path / "a.lock.held"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code, str(lock)], env=environment).returncode == -signal.SIGKILL
    died = stand_in.read_text()

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with locks.hold(lock):
        assert stand_in.read_text() != died
    assert not stand_in.exists()
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.5)
    stand_in.write_text(died.replace(f'"host": "{socket.gethostname()}"', '"host": "another"'))  # it may live there
    with pytest.raises(UnetError, match="holds it, without a sign of life") as raised, locks.hold(lock):
        pass
    assert f"delete {stand_in} if it has ended" in raised.value.hint


def test_two_that_wait_for_a_lock_of_the_dead_do_not_both_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes it between our look at its owner and our removing it."""
    lock, stand_in = tmp_path / "a.lock", tmp_path / "a.lock.held"
    stand_in.write_text(json.dumps({"host": socket.gethostname(), "pid": 4194304, "since": 0.0}))
    others = json.dumps({"host": socket.gethostname(), "pid": os.getppid(), "since": 1.0})

    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    def is_dead(owner: dict[str, object], looks: list[int] = []) -> bool:  # noqa: B006 (counts)
        looks.append(1)
        if len(looks) == 1:
            stand_in.write_text(others)
            return True
        return owner["pid"] == 4194304

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    monkeypatch.setattr(locks, "_is_dead", is_dead)
    assert locks._take(0, lock, stand_in) is None
    assert stand_in.read_text() == others
    assert [path.name for path in tmp_path.iterdir()] == [stand_in.name]


def test_everything_works_on_a_file_system_without_locks(tiny, cli, phantoms: Path, monkeypatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert tiny("--run-name", "a")[0] == 0
    patient = next(path for path in sorted(phantoms.iterdir()) if path.is_dir())
    for words in (("predict", "--weights", "a.safetensors", patient), ("report", "a")):
        code, _, err = cli(*words)
        assert code == 0, err
    assert not list(Path().rglob("*.held"))


def test_a_third_ctrl_c_kills_processes_that_do_not_end() -> None:
    code = "import signal, time; signal.signal(2, signal.SIG_IGN); print('on', flush=True); time.sleep(1000)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout and process.stdout.readline() == b"on\n"
    with launch.passing_on([process]) as came:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        assert process.wait(5) == -signal.SIGKILL
    assert came == [signal.SIGINT] * 3
    process.stdout.close()


def test_a_closed_terminal_reaches_the_processes() -> None:
    process = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    with launch.passing_on([process]):
        os.kill(os.getpid(), signal.SIGHUP)
        assert process.wait(5) == -signal.SIGTERM
