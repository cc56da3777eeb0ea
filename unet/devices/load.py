"""What other processes take of the processor cores while something is measured. A time that was taken beside them says
less of the program than of the machine.

Of the cores that this process may use the kernel counts all that ran (/proc/stat, the host's in a container too); what
this process and those that it has started and seen end have used is subtracted. Time that a hypervisor gave to other
machines ("steal") is counted. Source: proc_stat(5).
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

STAT = Path("/proc/stat")
NOTED = 0.25  # cores in the mean that others may use before it is told: an idle machine's services take less


class Span(NamedTuple):
    """What a process has seen since its `Watch` began: the machine, seconds of the clock, seconds of processor time of
    its own, and of all processes on each core that it may use."""

    machine: str
    seconds: float
    own: float
    cores: dict[int, float]


class Watch:
    """Begin to count. `span` must be asked for after processes that were started since have ended."""

    def __init__(self) -> None:
        self.began, self.own, self.cores = time.perf_counter(), own_seconds(), seconds_of_cores()

    def span(self) -> Span:
        now = seconds_of_cores()
        cores = {core: now[core] - before for core, before in self.cores.items() if core in now}
        return Span(socket.gethostname(), time.perf_counter() - self.began, own_seconds() - self.own, cores)


def others(spans: Sequence[Span]) -> float | None:
    """Cores that other processes than these used in the mean, on the machine of the first; None where the system does
    not tell."""
    here = [span for span in spans if span.machine == spans[0].machine]
    cores: dict[int, float] = {}
    for span in here:
        cores |= span.cores
    busy, own = sum(cores.values()), sum(span.own for span in here)
    seconds = max(span.seconds for span in here)
    if not cores or not seconds or busy < own / 2:  # a sandbox that counts nothing
        return None
    return max(0.0, (busy - own) / seconds)


def words(found: float | None, cores: int) -> str:
    """One sentence where others used more than `NOTED` cores, else nothing."""
    if found is None or found <= NOTED:
        return ""
    return f"note: other processes used {found:.1f} of the {cores} cores meanwhile; measure again on an idle machine."


def own_seconds() -> float:
    """Seconds of processor time of this process, and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def seconds_of_cores() -> dict[int, float]:
    """Seconds that each core that this process may use has run processes, or another machine; empty where the system
    does not tell."""
    found: dict[int, float] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):
        allowed, tick = os.sched_getaffinity(0), os.sysconf("SC_CLK_TCK")
        for line in STAT.read_text().splitlines():
            name, _, rest = line.partition(" ")
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in allowed:
                ticks = [int(word) for word in rest.split()]
                steal = ticks[7] if len(ticks) > 7 else 0
                found[int(name[3:])] = (sum(ticks[:3]) + steal) / tick  # user, nice, system
    return found
