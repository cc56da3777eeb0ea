"""Several processes as one run: the same result, one writer, no rank outlives another, resumed on another number.

What starts them here is --devices, Open MPI and torch.distributed.run for real, and SLURM by its variables alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, program, read_json, stored

from unet.runtime.distributed.process_group import Group
from unet.runtime.distributed.rendezvous import Line
from unet.runtime.distributed.watchdog import NEWS, Watchdog

LONG = ("--epochs", 5000, "--quiet", "--checkpoint-every", 20)
slow = pytest.mark.slow
open_mpi = pytest.mark.skipif(not shutil.which("mpirun"), reason="mpirun is not installed (Debian: openmpi-bin)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def words_of(phantoms: Path, name: str, *more: object) -> list[str]:
    common = ("--data", phantoms, "--cache", "c", "--device", "cpu", "--layout", "NCHW", *TINY)
    return ["train", *map(str, (*common, "--run-name", name, "--weights-file", f"{name}.pt", *more))]


def weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = stored(place / "weights" / f"{name}.safetensors")["model"]
    return state


def epochs_of(place: Path, name: str) -> list[dict[str, Any]]:
    lines = (place / "performance" / name / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == "epoch"]


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> bool:
    """Whether the trained weights agree (running statistics are another average over the batches)."""
    return all(
        torch.allclose(a[key], b[key], rtol=0, atol=tolerance) for key in a if "running" not in key and "num" not in key
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A folder with a run of two ranks, `two`, and the run of one process that it must equal, `one`."""
    place = tmp_path_factory.mktemp("two")
    same = ("--epochs", 2, "--no-augment", "--deterministic")
    both = program(*words_of(phantoms, "two", *same, "--devices", 2, "--log-all-workers"), cwd=place)
    assert both.returncode == 0, both.stderr
    (place / "two.out").write_text(both.stdout)
    (place / "two.err").write_text(both.stderr)
    one = program(*words_of(phantoms, "one", *same, "--accumulate", 2), cwd=place)
    assert one.returncode == 0, one.stderr
    return place


def test_two_ranks_make_the_steps_of_one_with_twice_the_batch(two: Path) -> None:
    """Defects of the seeds: shards that overlap, another shuffle on each rank, gradients that are not averaged."""
    assert close(weights(two, "two"), weights(two, "one"), 2e-6)  # fp32 sums in another order, 18 steps of Adam
    a, b = epochs_of(two, "two"), epochs_of(two, "one")
    assert [row["step"] for row in a] == [row["step"] for row in b]
    assert [row["loss"] for row in a] == pytest.approx([row["loss"] for row in b], abs=1e-5)


def test_rank_0_alone_writes_and_prints(two: Path) -> None:
    out, err = (two / "two.out").read_text(), (two / "two.err").read_text()
    assert out.count("Run two:") == 1
    assert err.count("Building the cache") == 1
    assert len(re.findall(r"epoch +1/2", err)) == 1
    assert "Warning" not in err
    assert {path.name for path in (two / "weights").iterdir()} >= {"two.safetensors", "two.state.safetensors"}
    log = (two / "performance" / "two" / "run.log").read_text()
    assert "2 processes by --devices 2" in log
    for rank in (0, 1):
        own = (two / "performance" / "two" / f"worker_{rank}.log").read_text()
        assert "epoch 2 ends" in own
        assert "own losses" in own
    assert read_json(two / "performance" / "two" / "summary.json")["ranks"] == 2


@pytest.mark.slow
def test_the_mean_is_the_same_on_one_and_three_ranks(two: Path, phantoms: Path) -> None:
    """Defect of the seeds: cases padded or doubled so that each rank has as many, and a mean over ranks' means."""
    scores, tables = [], []
    for ranks in (1, 3):
        name = f"scored-{ranks}"
        common = ("--split", "none", "--run-name", name, "--device", "cpu", "--layout", "NCHW", "--devices", ranks)
        done = program("evaluate", "--weights", "two.pt", "--cache", "c", *common, cwd=two)
        assert done.returncode == 0, done.stderr
        scores.append(read_json(two / "performance" / name / "summary.json")["best_score"])
        tables.append((two / "performance" / name / "cases.csv").read_text())
        assert len(tables[-1].splitlines()) == 1 + len([path for path in phantoms.iterdir() if path.is_dir()])
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)


@pytest.mark.slow
def test_masks_are_shared_out(two: Path, phantoms: Path) -> None:
    done = program(
        "predict", "--weights", "two", phantoms, "--device", "cpu", "--devices", 3, "--output", "masks", cwd=two
    )
    assert done.returncode == 0, done.stderr
    images = [path for path in phantoms.rglob("*.tif") if "_mask" not in path.name]
    assert f"{len(images)} masks written" in done.stderr
    assert {path.name for path in (two / "masks").rglob("*.tif")} == {path.name for path in images}


def test_cases_in_memory_are_counted_for_each_process(two: Path, phantoms: Path) -> None:
    """By the free memory that all of them see, before any fills it."""
    (two / "scarce.py").write_text(
        "from unet import host\nfrom unet.devices.cpu import CPU\n\nhost.memory = lambda: (2**40, 2**10)\n"
    )
    words = words_of(phantoms, "kept", "--max-steps", 1, "--devices", 2, "--data-on", "ram", "--workers", 0)
    place = words.index("--device")
    words[place : place + 2] = ["--device-module", "scarce:CPU"]
    done = program(*words, cwd=two, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{two}"})
    assert done.returncode == 1
    assert re.search(r"error: --data-on ram: \d+ cases take [\d.]+ .B in each of 2 processes, 1.0 kB", done.stderr)


def test_a_usage_error_is_told_once(two: Path) -> None:
    done = program("train", "--devices", 2, "--bach-size", 3, cwd=two)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1)
    done = program("train", "--devices", 2, "--run-name", "two", "--cache", "c", "--device", "cpu", *TINY, cwd=two)
    assert (done.returncode, done.stderr.count("error:")) == (2, 1), done.stderr
    assert "Run 'two' exists" in done.stderr


# -- who has died, and who only takes time ----------------------------------------------------------------------------


def watchdogs(count: int, timeout: float = 0.4) -> list[Watchdog]:
    """Watchdogs whose threads are not started, on a store in memory."""
    line = Line(torch.distributed.HashStore(), "a secret of the test")
    return [Watchdog(line, rank, count, timeout) for rank in range(count)]


def look(all_watchdogs: list[Watchdog], *, without: int | None = None) -> str | None:
    for watchdog in all_watchdogs:
        if watchdog.rank != without:
            watchdog.beat()
    return all_watchdogs[0].watch()[0]


def test_a_rank_without_a_beat_is_named() -> None:
    three = watchdogs(3)
    assert look(three) is None
    deadline = time.monotonic() + 5
    found = None
    while not found and time.monotonic() < deadline:
        time.sleep(0.1)
        found = look(three, without=2)
    assert found is not None
    assert re.match(r"Rank 2 \(process \d+ on .*\) gave no sign of life", found)


def test_the_rank_that_is_behind_is_blamed_not_those_that_wait_for_it() -> None:
    three = watchdogs(3)
    for watchdog in three:
        watchdog.set_phase("waiting for a batch")
    three[0].set_phase("in a step")
    three[2].set_phase("in a step")
    assert look(three) is None
    time.sleep(0.6)
    found = look(three)
    assert found is not None
    assert found.startswith("Rank 1 ")
    assert "waiting for a batch" in found


def test_compiling_scoring_and_saving_may_take_any_time() -> None:
    three = watchdogs(3)
    for watchdog in three:
        watchdog.set_phase("in a step")
    three[0].set_phase("waiting for a batch")
    three[1].may_block = True  # it compiles, scores or saves; the others wait
    look(three)
    time.sleep(0.6)
    assert look(three) is None
    three[1].set_phase("in a step")  # it has done so, and all go on
    assert look(three) is None


def test_a_rank_with_an_error_of_its_own_is_not_ahead_of_the_others() -> None:
    """It waits for news of another rank, and the others for it: nobody is blamed but by what it says."""
    three = watchdogs(3)
    for watchdog in three:
        watchdog.set_phase("in a step")
    three[2].set_phase(NEWS, may_block=True)
    look(three)
    time.sleep(0.6)
    assert look(three) is None


def test_a_rank_that_left_in_order_is_not_missed_and_one_with_an_error_is_quoted() -> None:
    three = watchdogs(3)
    look(three)
    three[2].line.write("left/2", "")
    time.sleep(0.6)
    assert look(three, without=2) is None
    three[1].line.write("left/1", "case 7 is bad.")
    assert "ended with an error: case 7 is bad." in str(look(three, without=2))


def test_one_process_needs_nobody() -> None:
    group = Group()
    assert group.run_on_main(lambda: 3) == group.main_first(lambda: 3) == 3
    assert group.gather("a") == ["a"]
    assert group.mean([1.0, 2.0]) == [1.0, 2.0]
    assert group.any_rank(True) and not group.any_rank(False)
    assert group.is_main


# -- faults, for real -------------------------------------------------------------------------------------------------

FAULTS = '''
import os, signal, time
from unet.devices.cpu import CPU
from unet.errors import DataError

class Faulty(CPU):
    """In rank 1, in the third epoch, something happens."""

    def batches(self, loader):
        for number, batch in enumerate(super().batches(loader)):
            if self.rank.rank == 1 and number == 20:  # of 9 in an epoch
                self.fault()
            yield batch

class Hangs(Faulty):
    def fault(self): time.sleep(10000)

class Fails(Faulty):
    def fault(self): raise DataError("Case 7 is bad.", "Remove it.")

class Breaks(Faulty):
    def fault(self): raise ValueError("boom")

class Dies(Faulty):
    def fault(self): os.kill(os.getpid(), signal.SIGKILL)

class Stops(Faulty):
    def fault(self): os.kill(os.getpid(), signal.SIGSTOP)
'''


def left_behind(place: Path) -> list[str]:
    """Processes that work in a folder; a moment is given to those that are just ending."""
    deadline = time.monotonic() + 8
    while True:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and (entry / "cwd").resolve() == place.resolve():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def fault(phantoms: Path, place: Path, name: str, *more: object) -> tuple[subprocess.CompletedProcess[str], Path]:
    place.mkdir(exist_ok=True)
    (place / "faults.py").write_text(FAULTS)
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}
    words = words_of(phantoms, name.lower(), *LONG, "--devices", 2, "--device-module", f"faults:{name}", *more)
    return program(*words, cwd=place, env=path, timeout=200), place


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Fails", r"Rank 1 \(process \d+ on .*\) ended with an error: Case 7 is bad\."),
        pytest.param("Breaks", r"Rank 1 .* ended with an error: ValueError: boom", marks=slow),
        pytest.param("Dies", r"Rank 1 \(process \d+ on .*\) died \(killed", marks=slow),
        pytest.param(
            "Hangs", r"Rank 1 .* did not move for 6 s \(--dist-timeout\) while waiting for a batch", marks=slow
        ),
        pytest.param("Stops", r"Rank 1 .* gave no sign of life for 6 s", marks=slow),
    ],
)
def test_a_rank_that_is_lost_ends_the_others_with_its_name(
    name: str, expected: str, phantoms: Path, tmp_path: Path
) -> None:
    done, place = fault(phantoms, tmp_path / "place", name, "--dist-timeout", 6)
    assert done.returncode == 1, done.stderr
    assert re.search(r"error: " + expected, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    status = read_json(place / "performance" / name.lower() / "status.json")
    assert status["status"] == "failed"
    assert re.search(expected, status["why"])
    assert left_behind(place) == []
    assert (place / "weights" / f"{name.lower()}.state.safetensors").exists()


@slow
def test_a_long_first_step_and_uneven_scoring_are_not_taken_for_a_hang(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "uneven.py").write_text(
        "import time\nfrom unet.devices.cpu import CPU\nclass Uneven(CPU):\n"
        "    first = True\n"
        "    def batches(self, loader):\n"
        "        for batch in super().batches(loader):\n"
        "            if self.first and self.rank.rank == 1: time.sleep(6)\n"
        "            self.first = False\n"
        "            yield batch\n"
        "    def to(self, batch):\n"
        "        if 'mask' not in batch and self.rank.rank == 0: time.sleep(6)\n"  # a forward pass of scoring
        "        return super().to(batch)\n"
    )
    words = words_of(phantoms, "uneven", "--epochs", 1, "--devices", 2, "--device-module", "uneven:Uneven")
    path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = program(*words, "--dist-timeout", 3, cwd=tmp_path, env=path, timeout=200)
    assert done.returncode == 0, done.stderr


# -- the launchers, for real ------------------------------------------------------------------------------------------

MPI = ["mpirun", "--allow-run-as-root", "--oversubscribe"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
LINES: dict[str, Callable[[], list[str]]] = {
    "seed": lambda: [*MPI, "-n", "2", "--rank-by", "core", sys.executable],
    "mapped": lambda: [*MPI, "-n", "2", "--map-by", "slot", sys.executable],
    "tagged": lambda: [*MPI, "--tag-output", "--merge-stderr-to-stdout", "-np", "3", sys.executable],
    "bound": lambda: [*MPI, "--bind-to", "core", "--map-by", "core", "-np", "2", sys.executable],
    "torchrun": lambda: [*TORCHRUN, "--nnodes=1", "--nproc_per_node=2"],
    "c10d": lambda: [
        *(*TORCHRUN, "--nnodes=1", "--nproc_per_node=3", "--rdzv_backend=c10d"),
        f"--rdzv_endpoint=127.0.0.1:{free_port()}",
    ],
}


def start(line: list[str], words: list[str], place: Path, **variables: str) -> subprocess.Popen[str]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*line, "-m", "unet", *words], cwd=place, env=own, start_new_session=True, **both)  # type: ignore[call-overload,no-any-return]


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


@slow
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=open_mpi) if "c10d" not in kind else kind for kind in LINES])
def test_a_launcher_runs_the_ranks(kind: str, two: Path, phantoms: Path) -> None:
    """The launch lines as they are typed; two ranks make the very weights that --devices 2 made."""
    more = ("--epochs", 2, "--no-augment", "--deterministic", "--distributed", "--overwrite")
    line = LINES[kind]()
    ranks = 3 if "3" in " ".join(line) and kind in ("tagged", "c10d") else 2
    code, out = result(start(line, words_of(phantoms, kind, *more, "--world-size", ranks), two))
    assert code == 0, out
    assert out.count(f"Run {kind}:") == 1
    log = (two / "performance" / kind / "run.log").read_text()
    assert f"{ranks} processes by {'torch.distributed.run' if line[0] == sys.executable else 'Open MPI'}" in log
    if ranks == 2:
        assert close(weights(two, kind), weights(two, "two"), 0)


@slow
@open_mpi
def test_a_world_size_that_the_launcher_contradicts(phantoms: Path, tmp_path: Path) -> None:
    code, out = result(start(LINES["seed"](), words_of(phantoms, "x", "--world-size", 4), tmp_path))
    assert code == 2
    assert out.count("--world-size 4, but Open MPI says 2") == 1
    assert not (tmp_path / "performance").exists()


@slow
@pytest.mark.parametrize("kind", [pytest.param("seed", marks=open_mpi), "torchrun"])
def test_a_killed_rank_under_a_launcher_leaves_nobody_behind(kind: str, phantoms: Path, tmp_path: Path) -> None:
    process = start(LINES[kind](), words_of(phantoms, "killed", *LONG), tmp_path)
    wait_for(tmp_path / "weights" / "killed.state.safetensors", process)
    os.kill(pid_of_rank(1, tmp_path), signal.SIGKILL)
    code, out = result(process)
    assert code != 0, out
    assert re.search(r"rank:? *1", out, re.IGNORECASE), out
    assert left_behind(tmp_path) == []


@slow
def test_slurm_by_its_variables(two: Path, phantoms: Path) -> None:
    """No SLURM is at hand: its variables, set by hand for two processes."""
    step = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    step |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_NODES": "1"}
    words = words_of(phantoms, "slurm", "--epochs", 2, "--no-augment", "--deterministic", "--overwrite")
    tasks = [
        start([sys.executable], words, two, **step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in (0, 1)
    ]
    codes, outs = zip(*map(result, tasks), strict=True)
    assert codes == (0, 0), outs
    assert "2 processes by SLURM" in (two / "performance" / "slurm" / "run.log").read_text()
    assert close(weights(two, "slurm"), weights(two, "two"), 0)


# -- stopped, and resumed on another number of ranks ------------------------------------------------------------------


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.1)


def pid_of_rank(rank: int, place: Path) -> int:
    """The process of a rank that works in a folder."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not entry.name.isdecimal() or (entry / "cwd").resolve() != place.resolve():
                continue
            own = (entry / "environ").read_bytes().split(b"\0")
            if any(f"{name}={rank}".encode() in own for name in ("RANK", "OMPI_COMM_WORLD_RANK")):
                return int(entry.name)
    raise AssertionError(f"no process of rank {rank}")


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_one_signal_stops_all_ranks_after_the_same_step(number: int, phantoms: Path, tmp_path: Path) -> None:
    process = start([sys.executable], words_of(phantoms, "stopped", *LONG, "--devices", 2), tmp_path)
    wait_for(tmp_path / "weights" / "stopped.state.safetensors", process)
    # to one rank, as a scheduler may do it; or to the process that was started
    os.kill(pid_of_rank(1, tmp_path) if number == signal.SIGUSR1 else process.pid, number)
    code, out = result(process)
    assert code == 130, out
    assert "go on" in out
    assert left_behind(tmp_path) == []


@slow
@pytest.mark.parametrize(("before", "after", "steps"), [(2, 1, 2), (1, 2, 2), (3, 2, 1)])
def test_a_state_of_n_ranks_goes_on_with_m(before: int, after: int, steps: int, phantoms: Path, tmp_path: Path) -> None:
    words = words_of(phantoms, "moved", "--epochs", 3, "--max-steps", steps, "--schedule", "cosine", "--log-every", 1)
    first = program(*words, "--devices", before, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    state = stored(tmp_path / "weights" / "moved.state.safetensors")
    assert (state["ranks"], state["progress"]["step"]) == (before, steps)
    again = ("train", "--resume", "--run-name", "moved", "--max-steps", 400, "--devices", after, "--device", "cpu")
    done = program(*again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "performance" / "moved" / "run.log").read_text()
    assert f"batch {steps * before // after}, step {steps};" in log
    assert f"saved by {before} processes" in log
    assert read_json(tmp_path / "performance" / "moved" / "summary.json")["ended"] == "epochs"
    # the learning rate follows the epochs, which have another number of steps now
    rows = (tmp_path / "performance" / "moved" / "metrics.jsonl").read_text().splitlines()
    rates = [row["lr"] for row in map(json.loads, rows) if row["event"] == "step" and row["step"] > steps]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.7e-4
    assert 0 < rates[-1] < 0.1e-4


# -- two nodes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[tuple[list[str], list[str]]]:
    """Two hosts in network namespaces, joined by a cable: the words before a command that runs there."""
    names = [f"unet-{os.getpid()}-{side}" for side in "ab"]
    cable = [f"u{os.getpid() % 10000}{side}" for side in "ab"]
    if not shutil.which("ip") or subprocess.run(["ip", "netns", "add", names[0]], capture_output=True).returncode:
        pytest.skip("this machine does not let this user make network namespaces (ip netns add)")
    try:
        steps = [f"ip netns add {names[1]}", f"ip link add {cable[0]} type veth peer name {cable[1]}"]
        for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
            steps += [f"ip link set {end} netns {name}", f"ip -n {name} addr add 10.77.7.{number}/24 dev {end}"]
            steps += [f"ip -n {name} link set {end} up", f"ip -n {name} link set lo up"]
        for step in steps:
            subprocess.run(step.split(), check=True)
        host = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
        yield tuple(["ip", "netns", "exec", name, *host, f'hostname {name}; exec "$@"', "sh"] for name in names)  # type: ignore[misc]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@slow
def test_two_nodes_one_is_lost_and_the_run_goes_on(
    nodes: tuple[list[str], list[str]], phantoms: Path, tmp_path: Path
) -> None:
    words = words_of(phantoms, "nodes", *LONG, "--dist-timeout", 8)
    processes = []
    for number, node in enumerate(nodes):
        line = [*node, *TORCHRUN, "--nnodes=2", "--nproc_per_node=1", f"--node_rank={number}"]
        line += ["--master_addr=10.77.7.1", "--master_port=29571"]
        processes.append(start(line, words, tmp_path))
    wait_for(tmp_path / "weights" / "nodes.state.safetensors", processes[0])
    assert (
        "2 processes by torch.distributed.run, 1 on this node" in (tmp_path / "performance/nodes/run.log").read_text()
    )
    os.kill(pid_of_rank(1, tmp_path), signal.SIGKILL)  # all of a node at once: its rank and its launcher
    os.killpg(processes[1].pid, signal.SIGKILL)
    result(processes[1])
    code, out = result(processes[0])
    assert code != 0
    assert re.search(r"error: Rank 1 \(process \d+ on unet-\d+-b\) gave no sign of life for 8 s", out), out
    assert left_behind(tmp_path) == []
    again = ("train", "--resume", "--run-name", "nodes", "--epochs", 1, "--device", "cpu")
    done = program(*again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
