"""What a run uses: joules of all its machines, from the samplers that their first processes have (--power).

Within an epoch each machine counts for itself; the counts are exchanged at its end and where the state is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unet.runtime.distributed.process_group import Group

COUNTS = ("joules", "train_joules", "above_idle", "without_idle", "gap_seconds", "readings")  # summed over machines


class PowerUse:
    """The energy of a run, as each rank sees it. `sampler`: of this machine, None on ranks that have none; `machines`:
    how many the run has; `name`: this machine's, where there are several."""

    def __init__(self, sampler: Any, interval: float, machines: int = 1, name: str = "") -> None:
        self.sampler, self.interval, self.machines, self.name = sampler, interval, machines, name
        self.forget()

    def now(self) -> dict[str, float]:
        """The sampler's counts until now; nothing where there is none."""
        found: dict[str, float] = self.sampler.energy() if self.sampler else {}
        return found

    def forget(self) -> None:
        """What was used so far does not count."""
        self.before = self.now()
        self.counted: dict[str, float] = {}
        self.first: dict[str, tuple[float | None, float, float]] = self.sampler.by_channel() if self.sampler else {}

    def count(self, training: bool) -> None:
        """Count what this machine used since the last call; it was used for training, or for something else."""
        now, before = self.now(), self.before
        self.before = now
        for name, value in now.items():
            self.counted[name] = self.counted.get(name, 0.0) + value - before.get(name, 0.0)
        if training and now:
            used = now["joules"] - before.get("joules", 0.0)
            self.counted["train_joules"] = self.counted.get("train_joules", 0.0) + used

    def collect(self, group: Group) -> dict[str, float]:
        """What all machines have counted since the last call, in every rank; with several machines all ranks call it.
        Readings of other machines join the log of the first."""
        own, self.counted = self.counted, {}
        if self.machines == 1:
            return own
        rows = self.sampler.rows() if self.sampler and not group.is_main else []
        every = group.gather((own, rows))
        if self.sampler and group.is_main:
            self.sampler.add_rows([row for _, found in every for row in found])
        return together([counts for counts, _ in every if counts])

    def by_source(self) -> dict[str, dict[str, float | None]]:
        """{channel: idle level, mean watts and joules} of this machine since `forget`, up to the last reading."""
        found = {}
        for name, (idle, joules, seconds) in self.sampler.by_channel().items():
            _, joules_before, seconds_before = self.first.get(name, (None, 0.0, 0.0))
            used, passed = joules - joules_before, seconds - seconds_before
            found[name] = {"idle_watts": idle, "mean_watts": used / passed if passed else None, "joules": used}
        return found

    def remarks(self) -> list[str]:
        found: list[str] = self.sampler.remarks() if self.sampler else []
        return found

    def about(self, group: Group) -> dict[str, Any]:
        """Interval, sources, idle level and what failed, of all machines; with several machines all ranks call it."""
        own = (self.name, self.by_source(), self.sampler.failed) if self.sampler else None
        found = group.gather(own) if self.machines > 1 else [own]
        channels: dict[str, Any] = {}
        failed: dict[str, str] = {}
        for name, seen, lost in filter(None, found):
            channels |= {f"{name}{channel}": values for channel, values in seen.items()}
            failed |= {f"{name}{source}": why for source, why in lost.items()}
        idle = [values["idle_watts"] for values in channels.values()]
        known = bool(idle) and None not in idle
        return {
            "interval": self.interval,
            "sources": list(channels),
            "idle_watts": sum(idle) if known else None,
            "by_source": channels,
            "failed": failed,
        }


def together(every: Sequence[dict[str, float]]) -> dict[str, float]:
    """The counts of several machines as one; the seconds are those of the one that was measured longest."""
    summed = {name: sum(counts.get(name, 0.0) for counts in every) for name in COUNTS}
    return summed | {"seconds": max((counts.get("seconds", 0.0) for counts in every), default=0.0)} if every else {}


def used(counts: dict[str, float], samples: float, joules: str = "joules") -> dict[str, Any]:
    """Mean watts, joules, those above the idle level (None where it is not known), and joules a sample, from the counts
    of a run; all None where nothing could be read."""
    total, seconds = counts.get("joules"), counts.get("seconds", 0.0)
    if not counts.get("readings"):
        total = None
    rest = counts.get("above_idle") if not counts.get("without_idle") and total is not None else None
    share = counts.get(joules)
    return {
        "mean_watts": total / seconds if total is not None and seconds else None,
        "joules": total,
        "joules_above_idle": rest,
        "joules_per_sample": share / samples if total is not None and share is not None and samples else None,
        "seconds": seconds,
        "gap_seconds": counts.get("gap_seconds", 0.0),
        "readings": int(counts.get("readings", 0)),
    }


def format_joules(joules: float) -> str:
    """Joules as text: 312 J, 4.31 kJ."""
    for unit in ("J", "kJ", "MJ"):
        if abs(joules) < 1000:
            return f"{joules:.3g} {unit}"
        joules /= 1000
    return f"{joules:.3g} GJ"
