"""The joules of several machines as one."""

from __future__ import annotations

from typing import Any

import pytest

from unet.commands.power import machine_name
from unet.runtime.distributed.process_group import Group
from unet.runtime.power_use import PowerUse, format_joules, used


class Two(Group):
    """Rank 0 of a group whose other rank has this to say."""

    world = 2

    def __init__(self, other: Any) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


class Still:
    """A sampler of which the counts are set."""

    def __init__(self, **counts: float) -> None:
        self.counts, self.failed, self.added = counts, {}, list[str]()

    def energy(self) -> dict[str, float]:
        return {"joules": 0.0, "above_idle": 0.0, "without_idle": 0.0, "seconds": 0.0, "readings": 0.0, **self.counts}

    def by_channel(self) -> dict[str, tuple[float | None, float, float]]:
        return {"card 0": (20.0, self.counts["joules"], self.counts["seconds"])}

    def add_rows(self, rows: list[str]) -> None:
        self.added += rows


def test_counts_of_all_machines_are_added_up() -> None:
    sampler = Still(joules=100.0, seconds=1.0)
    use = PowerUse(sampler, 1.0, machines=2, name="node0 ")
    sampler.counts = {"joules": 400.0, "seconds": 4.0, "above_idle": 240.0, "readings": 3.0}
    use.count(training=True)
    sampler.counts["joules"] = 450.0
    use.count(training=False)
    other = {"joules": 50.0, "train_joules": 40.0, "seconds": 3.5, "above_idle": 10.0, "readings": 2.0}
    found = use.collect(Two((other, ["1.0,node1 card 0,12.00"])))
    assert (found["joules"], found["train_joules"]) == (400.0, 340.0)
    assert (found["seconds"], found["readings"]) == (3.5, 5.0)  # together, not one after the other
    assert sampler.added == ["1.0,node1 card 0,12.00"]
    assert use.collect(Two(({}, []))) == {}
    about = use.about(Two(("node1 ", {"card 0": {"idle_watts": 5.0}}, {"RAPL": "forbidden"})))
    assert about["sources"] == ["node0 card 0", "node1 card 0"]
    assert about["idle_watts"] == 25.0
    assert about["by_source"]["node0 card 0"] == {"idle_watts": 20.0, "mean_watts": 350 / 3, "joules": 350.0}
    assert about["failed"] == {"node1 RAPL": "forbidden"}


def test_what_is_not_known_is_not_told() -> None:
    counts = {"joules": 100.0, "seconds": 4.0, "readings": 8.0, "above_idle": 60.0, "train_joules": 50.0}
    result = used(counts, samples=25.0, joules="train_joules")
    assert (result["mean_watts"], result["joules_above_idle"], result["joules_per_sample"]) == (25.0, 60.0, 2.0)
    assert used({**counts, "without_idle": 1.0}, 25.0)["joules_above_idle"] is None
    assert used(counts, 0.0)["joules_per_sample"] is None
    assert used({**counts, "readings": 0.0}, 25.0)["joules"] is None
    assert used({}, 25.0)["mean_watts"] is None


def test_machines_of_the_same_name_are_told_apart() -> None:
    assert machine_name({"a": "node0", "b": "node1"}, "b") == "node1"
    assert [machine_name({"a": "box", "b": "box"}, where) for where in ("a", "b")] == ["box 0", "box 1"]


@pytest.mark.parametrize(("joules", "words"), [(3.4, "3.4 J"), (999.0, "999 J"), (4310.0, "4.31 kJ"), (2.5e7, "25 MJ")])
def test_joules_in_words(joules: float, words: str) -> None:
    assert format_joules(joules) == words
