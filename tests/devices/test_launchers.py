"""Ranks from the variables of each launcher, what contradicts, where the processes meet, how many threads each has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from unet import host
from unet.commands import launch
from unet.config.flags import DistributedOptions
from unet.devices import launchers
from unet.devices.launchers import Rank, find_rank, master_address
from unet.errors import DeviceError, UsageError

ELASTIC = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
PALS = {"PMI_RANK": "5", "PMI_SIZE": "8", "PALS_LOCAL_RANKID": "1", "PALS_LOCAL_SIZE": "4"}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "6",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Rank()),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Rank(launcher="the environment")),
        (
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"},
            Rank(3, 4, 1, 2, "the environment", guessed=True),
        ),
        (ELASTIC, Rank(3, 4, 1, 2, "torch.distributed.run")),
        (OPEN_MPI, Rank(1, 2, 1, 2, "Open MPI")),
        (MPICH, Rank(5, 8, 1, 4, "MPICH")),
        (PALS, Rank(5, 8, 1, 4, "MPICH")),
        (SLURM, Rank(6, 7, 0, 1, "SLURM")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, Rank()),  # a batch script, not srun
        ({**OPEN_MPI, **ELASTIC}, Rank(3, 4, 1, 2, "torch.distributed.run")),  # one torchrun on each node by mpirun
        ({**SLURM, **OPEN_MPI}, Rank(1, 2, 1, 2, "Open MPI")),  # mpirun in an allocation
        ({**SLURM, "SLURM_STEP_ID": "4294967290"}, Rank()),  # salloc's own shell
        ({**SLURM, "PMI_RANK": "6", "PMI_SIZE": "7"}, Rank(6, 7, 0, 1, "SLURM")),  # srun --mpi=pmi2
    ],
)
def test_the_rank_comes_from_the_launcher(variables: dict[str, str], expected: Rank) -> None:
    assert find_rank(DistributedOptions(), (), variables) == expected


@pytest.mark.parametrize("whole", [ELASTIC, OPEN_MPI, MPICH, SLURM], ids=["torchrun", "ompi", "mpich", "slurm"])
def test_a_partial_environment_is_an_error(whole: dict[str, str]) -> None:
    launcher = next(item for item in launchers.LAUNCHERS if item.world in whole)
    for lost in (launcher.rank, launcher.world, launcher.local[0]):
        with pytest.raises(UsageError, match=lost):
            find_rank(DistributedOptions(), (), {name: value for name, value in whole.items() if name != lost})
    with pytest.raises(UsageError, match=r"'x' is not a number"):
        find_rank(DistributedOptions(), (), {**whole, launcher.world: "x"})
    with pytest.raises(UsageError, match="which is impossible"):
        find_rank(DistributedOptions(), (), {**whole, launcher.rank: "99"})


@pytest.mark.parametrize("whole", [ELASTIC, OPEN_MPI, MPICH, SLURM], ids=["torchrun", "ompi", "mpich", "slurm"])
@pytest.mark.parametrize("typed", ["world_size", "rank", "local_rank", "process_per_node", "devices"])
def test_a_typed_number_that_contradicts_is_an_error(whole: dict[str, str], typed: str) -> None:
    found = find_rank(DistributedOptions(), (), whole)
    flag = "--" + typed.replace("_", "-")
    with pytest.raises(UsageError, match=f"{flag} 9, but {found.launcher}"):
        find_rank(DistributedOptions(**{typed: 9}), (), whole)
    right = {"rank": found.rank, "local_rank": found.local, "process_per_node": found.local_world}.get(
        typed, found.world
    )
    assert find_rank(DistributedOptions(**{typed: right}), (), whole) == found


def test_contradictions_between_launchers_and_about_cards() -> None:
    by_hand = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}
    with pytest.raises(UsageError, match=r"RANK=0 and WORLD_SIZE=4 are set, but Open MPI says rank 1 of 2"):
        find_rank(DistributedOptions(), (), {**OPEN_MPI, **by_hand})
    agreeing = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert find_rank(DistributedOptions(), (), {**OPEN_MPI, **agreeing}).rank == 1
    with pytest.raises(UsageError, match=r"names 3 cards, but 2 processes run on this node"):
        find_rank(DistributedOptions(), (0, 1, 2), OPEN_MPI)
    with pytest.raises(UsageError, match=r"names 2 cards, but 1 process runs on this node") as caught:
        find_rank(DistributedOptions(), (0, 1), {})
    assert "--devices 2" in caught.value.hint
    with pytest.raises(UsageError, match=r"CUDA_devices\) names 1 card, but 2 processes run on this node") as caught:
        find_rank(DistributedOptions(), (0,), OPEN_MPI)
    assert caught.value.hint == "Name 2 cards, or start 1 process on each node."


def test_a_guess_gives_way_to_a_flag() -> None:
    by_hand = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
    assert find_rank(DistributedOptions(), (), by_hand).guessed
    assert find_rank(DistributedOptions(process_per_node=4), (), by_hand) == Rank(3, 8, 1, 4, "the environment")
    assert find_rank(DistributedOptions(), (0, 1, 2, 3), by_hand).guessed


def test_a_rank_that_is_typed_for_all_is_told_by_those_for_whom_it_is_wrong() -> None:
    with pytest.raises(UsageError) as caught:
        find_rank(DistributedOptions(rank=0), (), OPEN_MPI)
    assert caught.value.shared is False


def test_a_rank_whose_error_the_first_one_tells_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.distributed.run ends all processes as soon as one exits."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    by_hand = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in by_hand.items():
        monkeypatch.setenv(name, value)
    assert launch.silent(UsageError("a", "b")) and waits == [launch.TURN]
    assert not launch.silent(DeviceError("a", "b"))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not launch.silent(UsageError("a", "b"))
    assert waits == [launch.TURN]


def test_ranks_that_are_typed() -> None:
    typed = DistributedOptions(world_size=4, rank=3, process_per_node=2, dist_url="tcp://10.0.0.1:29500")
    assert find_rank(typed, (), {}) == Rank(3, 4, 1, 2, "flags")
    assert master_address(typed, find_rank(typed, (), {}), {}) == ("10.0.0.1", 29500)
    with pytest.raises(UsageError, match=r"--world-size 2, but no launcher runs 2 processes"):
        find_rank(DistributedOptions(world_size=2), (), {})
    with pytest.raises(UsageError, match=r"--rank 1, but there is only one process"):
        find_rank(DistributedOptions(rank=1), (), {})
    with pytest.raises(UsageError, match="no address of rank 0"):
        find_rank(DistributedOptions(world_size=2, rank=1), (), {})
    with pytest.raises(UsageError, match="--dist-url 'nowhere'"):
        master_address(DistributedOptions(dist_url="nowhere"), Rank(), {})


def test_where_the_processes_meet(tmp_path: Path) -> None:
    two_nodes, one_node = Rank(1, 4, 1, 2, "Open MPI"), Rank(1, 2, 1, 2, "Open MPI")
    assert master_address(DistributedOptions(), two_nodes, {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}) == ("a", 1234)
    address, port = master_address(DistributedOptions(), one_node, {"PMIX_NAMESPACE": "77"})
    assert address == "127.0.0.1"
    assert 20000 <= port < 30000
    assert master_address(DistributedOptions(), one_node, {"PMIX_NAMESPACE": "77"})[1] == port
    assert master_address(DistributedOptions(), one_node, {"PMIX_NAMESPACE": "78"})[1] != port
    assert master_address(DistributedOptions(), Rank(6, 7, 0, 1, "SLURM"), SLURM)[0] == "gpu07"
    inside = {"PMIX_NAMESPACE": "7", "SLURM_JOB_NODELIST": "n[01-04]", "SLURM_STEP_NODELIST": "n[02-04]"}
    assert (
        master_address(DistributedOptions(), two_nodes, inside)[0] == "n01"
    )  # mpirun in an allocation: its own step lacks its node
    hosts = tmp_path / "hosts"
    hosts.write_text("node-3\nnode-3\nnode-4\n")
    for name in ("PBS_NODEFILE", "COBALT_NODEFILE"):
        assert master_address(DistributedOptions(), two_nodes, {name: str(hosts), "PMIX_NAMESPACE": "7"})[0] == "node-3"
        assert (
            master_address(DistributedOptions(), one_node, {name: str(hosts), "PMIX_NAMESPACE": "7"})[0] == "127.0.0.1"
        )
    with pytest.raises(UsageError, match="MASTER_PORT is not set"):
        master_address(DistributedOptions(), two_nodes, {"MASTER_ADDR": "a"})
    with pytest.raises(UsageError, match=r"torch\.distributed\.run sets the address"):
        master_address(DistributedOptions(dist_url="tcp://a:1"), two_nodes, ELASTIC)
    other = Rank(1, 2, 1, 2, "Open MPI")  # variables of other launchers, which only some nodes have, change nothing
    both = {"PMIX_NAMESPACE": "77", "SLURM_JOB_ID": "5", "COBALT_JOBID": "6"}
    assert master_address(DistributedOptions(), other, both)[1] == port
    with pytest.raises(UsageError, match="MASTER_ADDR is not set") as caught:
        master_address(DistributedOptions(), two_nodes, OPEN_MPI)
    assert "mpirun -x MASTER_ADDR" in caught.value.hint
    with pytest.raises(UsageError, match="MASTER_PORT='x'"):
        master_address(DistributedOptions(), one_node, {"MASTER_PORT": "x"})


def test_threads_are_shared_out_unless_the_launcher_has_done_it() -> None:
    assert launchers.threads(Rank(), {}) == host.cores()
    assert launchers.threads(Rank(0, 2, 0, 2, "--devices 2"), {}) == max(1, host.cores() // 2)
    assert launchers.threads(Rank(0, 64, 0, 64, "Open MPI"), {}) == 1
    assert launchers.threads(Rank(0, 2, 0, 2, "Open MPI"), {"OMP_NUM_THREADS": "7"}) == 7
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from unet.devices import launchers; print(launchers.threads(launchers.Rank(0, 2, 0, 2, 'Open MPI'), {}))"
    )
    bound = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert bound.stdout.strip() == "1"  # the cores of the process, not a half of them


def test_torchrun_s_own_thread_count_is_nobody_s_wish() -> None:
    """torch.distributed.run sets OMP_NUM_THREADS=1 where nobody has set it; a value that a user has set stays."""
    code = (
        "import os, subprocess, sys; os.environ.update(OMP_NUM_THREADS='1', RANK='0', WORLD_SIZE='2', LOCAL_RANK='0',"
        " LOCAL_WORLD_SIZE='1', TORCHELASTIC_RUN_ID='x');"
        "subprocess.run([sys.executable, '-c', 'from unet.config.flags import DistributedOptions;"
        " from unet.devices import launchers; rank = launchers.find_rank(DistributedOptions());"
        " print(launchers.threads(rank))'], check=True)"
    )
    for typed, expected in ((None, host.cores()), ("1", 1)):
        own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        own |= {"OMP_NUM_THREADS": typed} if typed else {}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=own, check=True
        )
        assert done.stdout.strip() == str(expected)


def test_the_interface_by_which_a_node_is_reached() -> None:
    """Never the loopback: a node's own name often stands for 127.0.1.1."""
    assert launchers.route("127.0.1.1")[0] != "lo"
    assert launchers.route("no such host")[0] != "lo"


def test_a_flag_for_several_processes_without_a_launcher() -> None:
    """A launcher that is not known would start N runs that fight for one folder."""
    with pytest.raises(UsageError, match="--distributed was typed, but no known launcher"):
        find_rank(DistributedOptions(distributed=True), (), {})
    assert find_rank(DistributedOptions(distributed=True), (), OPEN_MPI).world == 2


def test_cores_that_a_launcher_gives_to_several_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open MPI binds more than two processes to sockets: each of four on a socket of 32 may use all of it."""
    monkeypatch.setattr(host, "cores", lambda process=0: 64 if process else 32)
    assert launchers.cores(Rank(0, 8, 0, 8, "Open MPI"), {}) == 8
    monkeypatch.setattr(host, "cores", lambda process=0: 48 if process else 6)
    assert launchers.cores(Rank(0, 8, 0, 8, "Open MPI"), {}) == 6
    assert launchers.cores(Rank(0, 8, 0, 8, "SLURM"), {"SLURM_CPUS_PER_TASK": "4"}) == 4
