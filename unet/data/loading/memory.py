"""Whether the cases that --data-on ram keeps fit into this machine's memory, and into what processes share of it. Each
process of a run keeps all of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from typing import Any

from unet import host
from unet.errors import DataError


def require_memory(cases: int, needed: int, shared: bool) -> None:
    """Raise DataError where `needed` bytes of cases do not fit into this machine's memory, or, `shared` by loader
    processes, into the part of it that they may share, as often as there are processes of the run here. They ask
    at one time (`train` waits for all of them before): memory that one has filled is free no longer for the others."""
    (_, available), times = host.memory(), host.processes_here
    words = f"--data-on ram: {host.counted(cases, 'case')} take{'s' if cases == 1 else ''} {host.format_bytes(needed)}"
    words += f" in each of {times} processes" if times > 1 else ""
    if available and times * needed > 0.9 * available:
        raise DataError(
            f"{words}, {host.format_bytes(available)} of memory are free.",
            "Leave it out: memory-mapped files are cached by the system as far as memory goes.",
        )
    if shared and times * needed > host.disk(host.SHARED):
        raise DataError(
            f"{words}, {host.SHARED} has {host.format_bytes(host.disk(host.SHARED))} for what processes share.",
            "Type --workers 0, give the container more (docker run --shm-size=16g), or leave --data-on out.",
        )


def shared_by(workers: int, options: Mapping[str, Any]) -> bool:
    """Whether loader processes get the tensors of a data set through shared memory: those that are forked have them."""
    method = options.get("multiprocessing_context")
    return workers > 0 and multiprocessing.get_context(method).get_start_method() != "fork"
