"""The runs of a page: names that differ, and groups of runs that differ only in their seed."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from unet.config import run_files
from unet.report import differences
from unet.report.run import Run

# Settings without effect on the numbers that a page tells all the same: they change how fast, or are a good name.
TOLD = {"recipe", "workers", "benchmark", "mode", "power", "debug_dump", "process_per_node"}
# Told apart by the colour-blind (Okabe and Ito, 2008), those that stand out on white and on black first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#9A8700")
DASHES = ("solid", "dashdot", "dotted")  # of the second and third eight; plain dashes are for validation


@dataclasses.dataclass
class Group:
    """Runs that differ in nothing but their seed; most often one run."""

    name: str
    runs: list[Run]
    number: int = 0  # on the page
    place: int = 0  # among those of its task

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def task(self) -> str:
        return self.first.task

    @property
    def sign(self) -> int:
        """1 where a higher score is better, else -1."""
        return 1 if self.first.goal == "max" else -1

    @property
    def colour(self) -> str:
        return COLOURS[self.place % len(COLOURS)]

    @property
    def dash(self) -> str:
        return DASHES[self.place // len(COLOURS) % len(DASHES)]

    @property
    def scores(self) -> dict[str, float]:
        """{case: score}: of several runs the mean of those that have the case."""
        found: dict[str, list[float]] = collections.defaultdict(list)
        for run in self.runs:
            for case, value in run.scores.items():
                found[case].append(value)
        return {case: math.fsum(values) / len(values) for case, values in found.items()}

    @property
    def are_seeds(self) -> bool:
        """Whether each run has a seed of its own; else some are repeats."""
        return len({value_text(run.settings.get("seed")) for run in self.runs}) == len(self.runs)

    @property
    def each(self) -> str:
        """What one of several runs is, in a word."""
        return "seed" if self.are_seeds else "run"

    def mean(self, value: Callable[[Run], float | None]) -> float | None:
        """The mean of the runs that have the number."""
        known = [found for run in self.runs if (found := value(run)) is not None and math.isfinite(found)]
        return math.fsum(known) / len(known) if known else None

    @property
    def score(self) -> float | None:
        return self.mean(lambda run: run.score)

    @property
    def train_seconds(self) -> float | None:
        return self.mean(train_seconds)


def train_seconds(run: Run) -> float | None:
    """Seconds of training; of a cross-validation those of all folds."""
    if run.train_seconds is not None or not run.folds:
        return run.train_seconds
    known = [seconds for fold in run.folds if (seconds := fold.train_seconds) is not None]
    return math.fsum(known) if len(known) == len(run.folds) else None


def is_running(run: Run) -> bool:
    """Whether a run goes on: its status says so, and its process is there if it was started on this machine."""
    if run.status != "running":
        return False
    status = run_files.read_status(run.path)
    elsewhere = not isinstance(status.get("pid"), int) or status.get("host") != socket.gethostname()
    return elsewhere or status["pid"] == os.getpid() or run_files.is_running(status)


def distinct(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """(the runs, each once and under a name of its own; what was done about it, in words)."""
    kept: dict[str, Run] = {}
    said = []
    for run in runs:
        place = os.path.realpath(run.path) + ("" if run.path.is_dir() else f"#{run.name}")
        if place in kept:
            said.append(f"{run.path} was given more than once and is shown once.")
        else:
            kept[place] = run
    result = list(kept.values())
    for change in (lambda run: f"{run.path.resolve().parent.name}/{run.name}", lambda run: str(run.path.absolute())):
        names = collections.Counter(run.name for run in result)
        for index, run in enumerate(result):
            if names[run.name] > 1:
                result[index] = dataclasses.replace(run, name=change(run))
    return result, said


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The groups in the order of their first runs."""
    found: dict[str, list[Run]] = {}
    tell = all_tell(runs)
    for run in runs:
        found.setdefault(_key(run, tell), []).append(run)
    groups = [Group(each[0].name, each, number) for number, each in enumerate(found.values())]
    for each_task in by_task(groups).values():
        for place, group in enumerate(each_task):
            group.place = place
    for group in groups:
        if len(group.runs) > 1:
            group.name = f"{common_start(run.name for run in group.runs)} ({len(group.runs)} {group.each}s)"
    return groups


def common_start(names: Iterable[str]) -> str:
    """What names begin with, for a name of all of them; the first name where that is little."""
    given = sorted(names)
    low, high = given[0], given[-1]
    start = next((low[:place] for place, letter in enumerate(low) if high[place : place + 1] != letter), low)
    return start.rstrip("-_. ") if len(start) > 2 else low


def all_tell(runs: Iterable[Run]) -> bool:
    """Whether all of these runs say what the device chose: those of before 2026-11-28 do not, and are compared with
    others by what was typed."""
    return all(differences.chosen(run, "precision") is not None for run in runs)


def _key(run: Run, tell: bool) -> str:
    """What runs of a group share; runs without seed have nothing to be repeated with. `tell`: `all_tell`."""
    if run.kind == "benchmark" or "seed" not in run.settings:
        return f"alone {id(run)}"
    kept = {name: counted(run, name, tell) for name in run.settings.keys() - places(run) - {"seed"}}
    about = [run.task, run.kind, run.device, run.metric, str(run.environment.get("unet"))]
    return json.dumps([about, sorted(kept.items(), key=lambda item: item[0])], default=str)


def places(run: Run) -> frozenset[str]:
    """The settings that say where things are and what is kept, and not what is computed or how fast."""
    return differences.without_effect(run) - TOLD | {"cache"}


def counted(run: Run, name: str, tell: bool) -> Any:
    """The value of a setting that counts, where it is known: of weights that were evaluated the digest, of what was
    left to the device its choice, where all tell it."""
    digest = differences.weights_read(run) if name == "weights" else ""
    used = differences.chosen(run, name) if tell and name != "threads" else None  # threads change rounding only
    return digest or used or run.settings[name]


def differing(groups: Sequence[Group]) -> list[str]:
    """The settings in which groups differ, by name, those that say where things are left out. A command that lacks a
    setting does not differ in it."""
    names = dict.fromkeys(name for group in groups for name in group.first.settings)
    found, tell = [], all_tell(group.first for group in groups)
    for name in names:
        having = [group.first for group in groups if name in group.first.settings]
        having = [run for run in having if name == "device" or name not in places(run)]
        if name != "seed" and len({value_text(counted(run, name, tell)) for run in having}) > 1:
            found.append(name)
    return found


def shown(group: Group, name: str) -> str:
    """The value of a setting, in words."""
    if name not in group.first.settings:
        return ""
    value, digest = group.first.settings[name], differences.weights_read(group.first) if name == "weights" else ""
    took = differences.chosen(group.first, name) if value in differences.LEFT_TO_DEVICE else None
    remark = f"digest {digest[:8]}" if digest else took
    return value_text(value) + (f" ({remark})" if remark else "")


def value_text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(value_text, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


def by_task(groups: Sequence[Group]) -> dict[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.task, []).append(group)
    return found
