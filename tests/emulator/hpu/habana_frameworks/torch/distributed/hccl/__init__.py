"""Stand-in for the collective backend. Importing the bridge imports it: it reads the launcher's variables and sets what
is missing."""

import os as _os

from emulator import collective as _collective
from emulator.device import strict as _strict
from emulator.record import RECORD as _RECORD


def initialize_distributed_hpu() -> tuple[int, int, int]:
    """(world size, rank, local rank). What the bridge does when it is loaded, also in a run of one process: it leaves
    variables behind."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    if not all(name in _os.environ for name in names):
        theirs = [_os.environ.get(f"OMPI_COMM_WORLD_{name.removeprefix('WORLD_')}") for name in names]
        if None not in theirs:
            _os.environ.update(zip(names, theirs, strict=True))  # type: ignore[arg-type]
        for name, value in (("MASTER_ADDR", "localhost"), ("MASTER_PORT", "12345")):
            if name not in _os.environ:
                _os.environ[name] = value
                _RECORD.note(f"{name} was not set: {value}", "master_default")
    world, rank, local = (int(_os.environ.get(name, default)) for name, default in zip(names, ("1", "-1", "-1")))  # noqa: B905
    if world > 1 and local >= 0 and "HLS_MODULE_ID" not in _os.environ:
        modules = _os.environ.get("HABANA_VISIBLE_MODULES", "").split(",")
        assert modules == [""] or local < len(modules), "There is not enough devices available for training."
        _os.environ["HLS_MODULE_ID"] = str(local) if modules == [""] else modules[local]
    if rank >= 0:
        _os.environ["ID"] = str(rank)
    _os.environ["WORLD_SIZE"] = str(world)
    return world, rank, local


_collective.register("hccl")
initialize_distributed_hpu()
_RECORD.note("hccl loaded")
__getattr__ = _strict(__name__, "Gaudi")
