"""Rank, launcher and rendezvous address of this process, from the launcher's variables, before torch is imported."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import re
import socket
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from unet import host
from unet.config.flags import DistributedOptions
from unet.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Launcher:
    """The variables of one launcher; of `local` and `local_world` the first that is set is used. `job`: variables that
    identify the run, the same in all of its processes."""

    name: str
    rank: str
    world: str
    local: tuple[str, ...]
    local_world: tuple[str, ...]
    job: tuple[str, ...] = ()


BY_HAND = "the environment"
# in order of precedence: torch.distributed.run may itself be started by mpirun or srun, mpirun by srun
LAUNCHERS = (
    Launcher("torch.distributed.run", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE",)),
    Launcher(
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        ("PMIX_NAMESPACE",),
    ),
    Launcher(
        "MPICH",
        "PMI_RANK",
        "PMI_SIZE",
        ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID"),
        ("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
        ("PALS_APID",),
    ),
    Launcher("SLURM", "SLURM_PROCID", "SLURM_NTASKS", ("SLURM_LOCALID",), (), ("SLURM_JOB_ID", "SLURM_STEP_ID")),
)
PLACES = {"MASTER_ADDR", "MASTER_PORT"}.union(  # the variables that say where this process is in the run
    *({each.rank, each.world, *each.local, *each.local_world} for each in LAUNCHERS)
)
STARTER = "UNET_STARTER"  # set by --devices and --restarts
START = "UNET_START"  # set by the same: a number of the start, by which its run is found
ELASTIC = "TORCHELASTIC_RUN_ID"  # set by torch.distributed.run alone
OWN_CARD = ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND")  # set where SLURM gives each process cards of its own


@dataclasses.dataclass(frozen=True)
class Rank:
    """This process among the `world` processes of the run and the `local_world` of its node (`guessed`: that number is
    not known for sure)."""

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    launcher: str = "none"
    guessed: bool = False

    @property
    def one_node(self) -> bool:
        """Whether all processes are known to be on this node."""
        return self.local_world == self.world and not self.guessed


def find_rank(asked: DistributedOptions, cards: Sequence[int] = (), variables: Mapping[str, str] = os.environ) -> Rank:
    """The rank from the launcher's variables, or from flags. Raises UsageError if something is missing or
    contradictory."""
    rank = launched(variables)
    if not rank:
        return _from_flags(asked, cards, variables)
    if rank.guessed and (asked.process_per_node or 0) > rank.local:
        rank = dataclasses.replace(rank, local_world=asked.process_per_node or 1, guessed=False)
    _require(asked, cards, rank)
    return rank


def launched(variables: Mapping[str, str]) -> Rank | None:
    """The rank given by a launcher; None without a launcher. Raises UsageError if its variables contradict each
    other."""
    found = [rank for rank in (_from(launcher, variables) for launcher in LAUNCHERS) if rank]
    if not found:
        return None
    rank = found[0]
    if rank.launcher == "MPICH" and (rank.rank, rank.world) == (found[-1].rank, found[-1].world):
        return found[-1]  # srun --mpi=pmi2 sets both
    if rank.launcher == BY_HAND and len(found) > 1 and (rank.rank, rank.world) != (found[1].rank, found[1].world):
        raise UsageError(
            f"RANK={rank.rank} and WORLD_SIZE={rank.world} are set, but {found[1].launcher} says rank {found[1].rank}"
            f" of {found[1].world}.",
            f"Type: unset RANK WORLD_SIZE LOCAL_RANK, or start without {found[1].launcher}.",
        )
    return rank


def _from(launcher: Launcher, variables: Mapping[str, str]) -> Rank | None:
    """The rank from one launcher's variables; None if it did not start this process."""
    step = variables.get("SLURM_STEP_ID", "")
    if launcher.name == "SLURM" and (not step.isdecimal() or int(step) >= 0xFFFFFFF0):
        return None  # a batch script or salloc's shell, not a task of srun
    there = [name for name in (launcher.rank, launcher.world) if name in variables]
    if not there:
        return None
    name = launcher.name
    if launcher.rank == "RANK" and ELASTIC not in variables:
        name = variables.get(STARTER, BY_HAND)
    hint = f"Start all processes with one launcher, or type: unset {' '.join(there)}"
    if len(there) == 1:
        lost = launcher.world if there[0] == launcher.rank else launcher.rank
        raise UsageError(f"{there[0]}={variables[there[0]]} is set, but {lost} is not.", hint)
    rank, world = (_number(variables, key, hint) for key in (launcher.rank, launcher.world))
    local_key = next((key for key in launcher.local if key in variables), None)
    if local_key is None and world > 1:
        raise UsageError(
            f"{launcher.rank}={rank} and {launcher.world}={world} are set, but {launcher.local[0]} is not, so the card"
            f" of this process is"
            " unknown.",
            f"Set {launcher.local[0]} to the rank of the process on its node.",
        )
    local = _number(variables, local_key, hint) if local_key else 0
    size_key = next((key for key in launcher.local_world if key in variables), None)
    here = _number(variables, size_key, hint) if size_key else tasks_here(variables)
    size = here or (world if _is_loopback(variables.get("MASTER_ADDR", "localhost")) else local + 1)
    if not (0 <= rank < world and 0 <= local < size <= world):
        raise UsageError(
            f"{name} says rank {rank} of {world}, local rank {local} of {size} on this node, which is impossible.", hint
        )
    return Rank(rank, world, local, size, name, guessed=here is None and world > 1)


def _is_loopback(address: str) -> bool:
    return address == "localhost" or address.startswith("127.") or address == "::1"


def _number(variables: Mapping[str, str], name: str, hint: str) -> int:
    if not re.fullmatch(r"\d+", variables[name]):
        raise UsageError(f"{name}={variables[name]!r} is not a number.", hint)
    return int(variables[name])


def tasks_here(variables: Mapping[str, str]) -> int | None:
    """Processes of SLURM's step on this node: "2(x3),1" and node 3 give 1."""
    text = variables.get("SLURM_STEP_TASKS_PER_NODE", "")
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    node = variables.get("SLURM_NODEID", "0")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def _from_flags(asked: DistributedOptions, cards: Sequence[int], variables: Mapping[str, str]) -> Rank:
    """Without a launcher: one process, or one of several whose rank was typed."""
    world = asked.world_size or 1
    if world == 1 and asked.distributed:
        raise UsageError(
            "--distributed was typed, but no known launcher started this process.",
            "Type --devices N instead (it starts N processes), or start with mpirun, srun or torch.distributed.run; for"
            " one process leave the flag out.",
        )
    if world == 1:
        if asked.rank:
            raise UsageError(f"--rank {asked.rank}, but there is only one process.", "Type --world-size as well.")
        _require(asked, cards, Rank())
        return Rank()
    if asked.rank is None:
        raise UsageError(
            f"--world-size {world}, but no launcher runs {world} processes.",
            f"Type --devices {world} instead (it starts them), or start with: mpirun -n {world} python -m unet ...",
        )
    if asked.dist_url == "env://" and "MASTER_ADDR" not in variables:
        raise UsageError(
            f"--rank {asked.rank} of {world} was typed, but no address of rank 0.",
            "Type --dist-url tcp://HOST:PORT, HOST being the machine of rank 0.",
        )
    size = asked.process_per_node or world
    local = asked.local_rank if asked.local_rank is not None else asked.rank % size
    if local >= size:
        raise UsageError(
            f"--local-rank {local}, but {size} processes on each node.",
            f"Type --process-per-node {local + 1} or more.",
        )
    found = Rank(asked.rank, world, local, size, "flags", guessed=asked.process_per_node is None)
    _require(asked, cards, found)
    return found


def _require(asked: DistributedOptions, cards: Sequence[int], found: Rank) -> None:
    """Raise UsageError that lists every flag that contradicts the launcher."""
    alone = found.launcher == "none"
    words = [
        f"{flag} {typed}, but {'there is only one process' if alone else f'{found.launcher} says {is_}'}"
        for flag, typed, is_ in (
            ("--world-size", asked.world_size, found.world),
            ("--rank", asked.rank, found.rank),
            ("--local-rank", asked.local_rank, found.local),
            ("--process-per-node", asked.process_per_node, found.local_world),
        )
        if typed is not None and typed != is_
    ]
    if asked.devices is not None and asked.devices != found.world:
        runs = "this command runs in one process" if alone else f"{found.launcher} runs {found.world} processes"
        words.append(f"--devices {asked.devices}, but {runs}")
    if words:
        error = UsageError(
            "; ".join(words) + ".",
            "Leave these flags out."
            if alone
            else "Leave these flags out: the launcher gives the numbers; or change its count.",
        )
        if asked.rank is not None or asked.local_rank is not None:
            error.shared = False  # right for one process, wrong for this one
        raise error
    count = len(cards)
    if count and count != found.local_world and not found.guessed:
        one = found.local_world == 1
        raise UsageError(
            f"--cuda-devices (CUDA_devices) names {count} card{'s' if count > 1 else ''}, but {found.local_world}"
            f" process{' runs' if one else 'es run'} on this node.",
            f"Type --devices {count} as well, or name one card."
            if one
            else f"Name {found.local_world} cards, or start {count} process{'es' if count > 1 else ''} on each node.",
        )


def master_address(asked: DistributedOptions, rank: Rank, variables: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """(address, port) of rank 0, the same in every process: from variables or flags, else derived from the job.

    Raises UsageError for an invalid --dist-url, or if the first node is unknown.
    """
    if asked.dist_url != "env://":
        match = re.fullmatch(r"tcp://(\[[^\]]+\]|[^:/]+):(\d+)/?", asked.dist_url)
        if not match or int(match[2]) > 65535:
            raise UsageError(f"--dist-url {asked.dist_url!r} is not valid.", "Type env:// or tcp://HOST:PORT.")
        if ELASTIC in variables:
            raise UsageError(
                f"--dist-url {asked.dist_url}, but torch.distributed.run sets the address of rank 0.",
                "Leave --dist-url out, or give torch.distributed.run --master_addr and --master_port.",
            )
        return match[1].strip("[]"), int(match[2])
    address = variables.get("MASTER_ADDR") or ("127.0.0.1" if rank.one_node else first_node(rank, variables))
    if not address and not rank.guessed:
        raise UsageError(
            f"{rank.launcher} runs {rank.world} processes, {rank.local_world} on this node, but MASTER_ADDR is not"
            " set: the address of rank 0 is unknown.",
            "Type --dist-url tcp://FIRST_NODE:29500 (or set MASTER_ADDR and MASTER_PORT in every process: mpirun"
            " -x MASTER_ADDR -x MASTER_PORT).",
        )
    address = address or "127.0.0.1"
    if "MASTER_PORT" in variables:
        return address, _number(variables, "MASTER_PORT", "Set MASTER_PORT to a free port, for example 29500.")
    name = job(rank, variables)
    if name is None:
        raise UsageError(
            f"{rank.launcher} may run processes on several nodes, but MASTER_PORT is not set and no job id was found.",
            "Set MASTER_PORT to a free port, the same in every process, for example 29500.",
        )
    return address, 20000 + zlib.crc32(name.encode()) % 10000


def job(rank: Rank, variables: Mapping[str, str]) -> str | None:
    """A text that identifies the run in all of its processes; None if there is none."""
    names = [name for launcher in LAUNCHERS if launcher.name == rank.launcher for name in launcher.job]
    if names and all(name in variables for name in names):
        return " ".join(f"{name}={variables[name]}" for name in names)
    return f"process {_launcher_process(rank)}" if rank.one_node else None


def first_node(rank: Rank, variables: Mapping[str, str]) -> str | None:
    """The first host of the job, from SLURM's list or a file of hosts (PBS, Cobalt); None if unknown."""
    nodes = variables.get("SLURM_JOB_NODELIST")
    if rank.launcher == "SLURM":  # mpirun's own step lacks its node
        nodes = variables.get("SLURM_STEP_NODELIST") or nodes
    if nodes:
        match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?(,|$)", nodes)
        return match[1] + (match[2] or "") if match else None
    for name in ("PBS_NODEFILE", "COBALT_NODEFILE"):
        path = Path(variables.get(name, ""))
        if variables.get(name) and path.is_file():
            lines = path.read_text().split()
            return lines[0] if lines else None
    return None


def cores(rank: Rank, variables: Mapping[str, str] = os.environ) -> int:
    """Number of cores of this process: those it is bound to, at most its share of the launcher's cores (a launcher may
    bind several processes to one socket, or bind none)."""
    share = max(1, host.cores(_launcher_process(rank)) // rank.local_world)
    found = min(host.cores(), share)
    tasks = variables.get("SLURM_CPUS_PER_TASK", "")
    return min(found, int(tasks)) if rank.launcher == "SLURM" and tasks.isdecimal() and int(tasks) else found


def threads(rank: Rank, variables: Mapping[str, str] = os.environ) -> int:
    """Number of threads of this process: OMP_NUM_THREADS if the user has set it, else the number of its cores.

    OMP_NUM_THREADS=1 from torch.distributed.run itself is ignored: the user did not ask for it.
    """
    typed = variables.get("OMP_NUM_THREADS", "")
    own = rank.launcher != LAUNCHERS[0].name or "OMP_NUM_THREADS" in _variables_of(_launcher_process(rank))
    return int(typed) if typed.isdecimal() and int(typed) and own else cores(rank, variables)


def has_own_card(rank: Rank, names: Sequence[str], variables: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was given cards of its own: by SLURM, or by a list of cards in one of the variables `names`
    that the launcher itself does not have, so that a script between the two has set it."""
    if rank.world == 1 or slurm_deals_cards(variables):
        return True
    outside = _variables_of(_launcher_process(rank))
    return any(variables.get(name) and variables[name] != outside.get(name) for name in names)


def slurm_deals_cards(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM gives each process cards of its own, which it counts from 0; --gpu-bind=none gives all to each."""
    bound = variables.get("SLURM_GPU_BIND")
    return any(name in variables for name in OWN_CARD) if bound is None else bound.rpartition(",")[2] != "none"


def _launcher_process(rank: Rank) -> int:
    """The nearest process above this one that does not have a rank: the launcher, or its agent on this node."""
    name = next((launcher.rank for launcher in LAUNCHERS if launcher.name == rank.launcher), "RANK")
    pid = os.getppid()
    while rank.world > 1 and pid > 1 and name in _variables_of(pid):
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return pid


def _variables_of(pid: int) -> dict[str, str]:
    """The variables that a process was started with; none where they cannot be read."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def route(address: str) -> tuple[str | None, str | None]:
    """(network interface by which this node reaches `address`, or else the world; its address). Never the loopback: a
    node's own name often resolves to 127.0.1.1."""
    for target in (address, "192.0.2.1"):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))  # sends nothing
                own = probe.getsockname()[0]
                names = [name for _, name in socket.if_nameindex() if _address_of(name, probe) == own]
        except OSError:
            continue
        if names and not own.startswith("127."):
            return names[0], own
    return None, None


def _address_of(name: str, probe: socket.socket) -> str | None:
    try:
        answer = fcntl.ioctl(probe, 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
    except OSError:
        return None
    return socket.inet_ntoa(answer[20:24])
