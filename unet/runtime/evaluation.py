"""Evaluation by case: cases are distributed over the ranks by cost and results gathered by id, so the mean does not
depend on the number of ranks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from unet import host
from unet.runtime.distributed.process_group import Group

Record = dict[str, Any]


def balance_by_cost(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of cases for each rank: the most expensive first, to the least loaded rank (longest-processing-time
    rule)."""
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
    keep: Callable[[Any, Record, dict[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    group: Group | None = None,
) -> list[Record] | None:
    """One record {"case", scores ...} for each case, sorted by id, the same on every rank; None if `stop` returned True
    on any rank.

    Each rank scores its share; `keep` is called with the record and arrays of each of those cases.
    """
    group = group or Group()
    records = []
    stopped = False
    share = balance_by_cost([case.cost for case in cases], group.world)[group.rank]
    for case in host.progress([cases[index] for index in sorted(share)], name=name, unit="case"):
        if stopped := bool(stop and stop()):
            break
        numbers, arrays = evaluate(case)
        records.append({"case": case.id, **numbers})
        if keep:
            keep(case, records[-1], arrays)
    shares = group.gather(None if stopped else records)
    if any(items is None for items in shares):
        return None
    return sorted((record for items in shares for record in items or ()), key=lambda record: str(record["case"]))


def mean(records: Iterable[Record], key: str) -> float:
    """Mean over the cases whose value is not NaN; NaN if there are none."""
    values = [record[key] for record in records if not math.isnan(record[key])]
    return statistics.fmean(values) if values else math.nan


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles 90, 95 and 99 of durations in seconds; {} without durations. A percentile needs enough
    values: 90 % from 10 on, 95 % from 20, 99 % from 100."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    shares = [share for share in (90, 95, 99) if len(ordered) * (100 - share) >= 100]
    places = {f"p{share}": ordered[len(ordered) * share // 100] for share in shares}
    return {"mean": statistics.fmean(ordered), **places}


def format_latency(latency: dict[str, float]) -> str:
    """`latency` as text, in milliseconds."""
    if not latency:
        return ""
    rest = ", ".join(f"{name[1:]} % {1000 * value:.1f}" for name, value in latency.items() if name != "mean")
    return f"{1000 * latency['mean']:.1f} ms" + (f" in the mean, {rest}" if rest else "")


def median(records: Iterable[Record], key: str) -> float:
    values = [record[key] for record in records if not math.isnan(record[key])]
    return statistics.median(values) if values else math.nan
