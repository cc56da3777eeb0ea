"""Stand-in for the collective backend. Importing it reads the launcher's variables and sets what is missing."""

import os as _os

from emulator import collective as _collective
from emulator.device import strict as _strict
from emulator.record import RECORD as _RECORD


def initialize_distributed_hpu() -> tuple[int, int, int]:
    """(world size, rank, local rank), from MPI's variables where torch's are not set."""
    found = []
    for theirs, ours in (("SIZE", "WORLD_SIZE"), ("RANK", "RANK"), ("LOCAL_RANK", "LOCAL_RANK")):
        value = _os.environ.get(f"OMPI_COMM_WORLD_{theirs}")
        if value is not None:
            _os.environ.setdefault(ours, value)
        found.append(int(_os.environ.get(ours, "1" if ours == "WORLD_SIZE" else "0")))
    for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "12345")):
        if name not in _os.environ:
            _os.environ[name] = value
            _RECORD.note(f"{name} was not set: {value}", "master_default")
    return found[0], found[1], found[2]


_collective.register("hccl")
initialize_distributed_hpu()
_RECORD.note("hccl loaded")
__getattr__ = _strict(__name__, "Gaudi")
