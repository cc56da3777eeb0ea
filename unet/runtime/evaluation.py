"""Scores by case: cases dealt to ranks by their cost, results gathered by id, so the mean is the same on any number
of ranks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from unet import host

Record = dict[str, Any]


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of cases for each rank: the dearest first, to the rank that has least (longest-processing-time rule)."""
    loads = [0] * ranks
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda item: -costs[item]):
        rank = loads.index(min(loads))
        loads[rank] += costs[index]
        shares[rank].append(index)
    return shares


def score(
    cases: Sequence[Any],
    evaluate: Callable[[Any], tuple[dict[str, float], dict[str, Any]]],
    name: str = "evaluate",
    keep: Callable[[Any, dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> list[Record] | None:
    """One record {"case", numbers ...} for each case of this rank's share, by id; None when `stop` asked to stop.

    `keep` is given each case's arrays; `shard` is (rank, ranks).
    """
    records = []
    share = deal([case.cost for case in cases], shard[1])[shard[0]]
    for case in host.progress([cases[index] for index in sorted(share)], name=name, unit="case"):
        if stop and stop():
            return None
        numbers, arrays = evaluate(case)
        records.append({"case": case.id, **numbers})
        if keep:
            keep(case, arrays)
    return sorted(records, key=lambda record: str(record["case"]))


def mean(records: Iterable[Record], key: str) -> float:
    """Mean over cases; cases whose value is undefined (NaN) are left out; NaN where none is defined."""
    values = [record[key] for record in records if not math.isnan(record[key])]
    return statistics.fmean(values) if values else math.nan


def median(records: Iterable[Record], key: str) -> float:
    values = [record[key] for record in records if not math.isnan(record[key])]
    return statistics.median(values) if values else math.nan
