"""The answer of a page in one sentence: who scores higher, with the interval, and in how much of the time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from unet.metrics.statistics import Difference, bootstrap_interval, paired_difference
from unet.report.page.groups import Group, by_task, is_running
from unet.report.page.markup import counted, duration, figure
from unet.report.run import Run, number

RESAMPLES = 10_000
BUSY = 0.25  # cores that others may have used during a benchmark before it is told (as in `devices.load`)
LITTLE = 6  # cases: with fewer an interval says little


@dataclasses.dataclass
class Conclusion:
    """A sentence, what is added to it in smaller letters, and its numbers for machines."""

    words: str
    more: list[str] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def conclusions(groups: Sequence[Group]) -> list[Conclusion]:
    """One conclusion for each task, in the order of the page; where there are several, first the words that they are
    not compared."""
    tasks = by_task(groups)
    found = [of_task(task, each) for task, each in tasks.items()]
    if len(tasks) > 1:
        names = ", ".join(task or "unknown task" for task in tasks)
        words = f"Runs of {len(tasks)} tasks ({names}): scores of different tasks are not compared."
        for task, conclusion in zip(tasks, found, strict=True):
            conclusion.words = f"{task or 'unknown task'}: {conclusion.words}"
        return [Conclusion(words), *found]
    return found


def of_task(task: str, groups: Sequence[Group]) -> Conclusion:
    if len(groups) == 1 and len(groups[0].runs) == 2:  # two seeds are two runs that somebody wants to see apart
        a, b = (Group(run.name, [run]) for run in groups[0].runs)
        conclusion = pair(a, b)
        alike = "They differ only in their seed." if groups[0].are_seeds else "They have the same settings and seed."
        conclusion.more.append(alike)
        return conclusion
    if len(groups) == 1:
        return single(groups[0])
    if len(groups) == 2:
        return pair(*groups)
    known = [group for group in groups if group.score is not None]
    scored = [group for group in known if group.first.metric == known[0].first.metric]
    if not scored:
        rated = [group for group in groups if group.mean(lambda run: run.rate) is not None]
        kinds = [[group for group in rated if group.first.predicts == kind] for kind in (False, True)]
        found = [
            faster(each[0], max(each, key=lambda group: group.mean(lambda run: run.rate) or 0))
            for each in kinds
            if len(each) > 1 or (each and len(rated) > 1)
        ]
        if found:
            return found[0] if len(found) == 1 else joined(found)
        return Conclusion(f"{counted(len(groups), 'run')} without a score.")
    if len(scored) == 1:
        conclusion = single(scored[0])
        conclusion.more.append(f"The other {len(groups) - 1} have no {scored[0].first.score_name} to compare it with.")
        return conclusion
    if len(scored) == 2:
        return pair(*scored)
    best = max(scored, key=lambda group: group.sign * (group.score or 0.0))
    if best is scored[0]:
        second = max(scored[1:], key=lambda group: group.sign * (group.score or 0.0))
        conclusion = pair(second, best)
        conclusion.words = f"The first of {len(scored)} is the best: {conclusion.words}"
    else:
        conclusion = pair(scored[0], best)
        conclusion.words = f"The best of {len(scored)} against the first: {conclusion.words}"
    return conclusion


def single(group: Group) -> Conclusion:
    """The score of one run, or of several seeds, with its interval over the cases."""
    run, name = group.first, group.name
    if run.kind == "benchmark":
        return benchmark(run)
    state = state_of(run)
    if group.score is None:
        return Conclusion(f"{name} {state or 'has no score'}.", [last_words(run)] if last_words(run) else [])
    scores = group.scores
    data = {"score": group.score, "metric": run.metric, "cases": len(scores)}
    over = ""
    if len(scores) > 1:
        low, high = bootstrap_interval(list(scores.values()), RESAMPLES)
        over = f" (95 % interval {figure(low)} to {figure(high)}, {counted(len(scores), 'case')}, bootstrap)"
        data |= {"low": low, "high": high}
    elif not scores:
        over = f" at best, on validation{' so far' if is_running(run) else ''}"
    spread = ""
    if len(group.runs) > 1:
        each = [score for one in group.runs if (score := one.score) is not None]
        spread = f", {figure(min(each))} to {figure(max(each))} by {group.each}"
    pooled = " in the mean over all cases of its folds" if run.folds and scores else ""
    words = (
        f"{name} {state + ': it ' if state else ''}scores {figure(group.score)} {run.score_name}{pooled}{over}{spread}."
    )
    return Conclusion(words, [*mean_of_folds(group), *timing_of(group), *few(len(scores))], data)


def mean_of_folds(group: Group) -> list[str]:
    """The mean of the folds of a cross-validation, which its own table and summary.json have; folds may be unequal."""
    means = [run.summary.get("mean") if run.folds else None for run in group.runs]
    found = [number(each.get(group.first.metric)) if isinstance(each, dict) else None for each in means]
    known = [value for value in found if value is not None]
    if not known or len(known) < len(group.runs):
        return []
    return [f"The mean of its folds is {figure(math.fsum(known) / len(known))} {group.first.score_name}."]


def pair(a: Group, b: Group) -> Conclusion:
    """`b` against `a`."""
    if a.first.kind == b.first.kind == "benchmark":
        return faster(a, b)
    unfinished = [f"{group.name} {state}." for group in (a, b) if (state := state_of(group.first))]
    time, seconds = time_words(a, b)
    if a.first.metric != b.first.metric or a.score is None or b.score is None:
        missing = [group.name for group in (a, b) if group.score is None]
        unsaid = [group.name for group in (a, b) if not group.first.metric]
        why = f"they are scored by {a.first.score_name} and {b.first.score_name}"
        if missing:
            why = f"{' and '.join(missing)} {'have' if len(missing) > 1 else 'has'} no score"
        elif unsaid:
            why = f"the metric of {unsaid[0]} is not known"
        words = f"{b.name} and {a.name} cannot be compared by score: {why}"
        return Conclusion(f"{words}{f'; {b.name}{time}' if time else ''}.", unfinished)
    found = paired_difference(a.scores, b.scores, RESAMPLES)
    data = {"a": a.name, "b": b.name, "metric": a.first.metric, **seconds}
    if not found.cases:
        return without_cases(a, b, time, unfinished, data)
    name = a.first.score_name
    data |= found._asdict()
    over = interval_words(found)
    more = [f"{figure(b.score)} against {figure(a.score)} {name} in the mean over all cases of each.", *unfinished]
    if figure(abs(found.mean)) == figure(0.0):
        in_mean = " in the mean" if found.low < found.high else ""
        words = f"{b.name} and {a.name} score the same {name}{in_mean}{over}"
        time = f"; {b.name}{time}" if time else ""
        return Conclusion(f"{words}{time}.", [*more, *seeds_of(a, b)[1], *few(found.cases)], data)
    if math.isfinite(found.low) and found.low <= 0 <= found.high and found.cases > 1:
        sign = "higher" if found.mean > 0 else "lower"
        words = f"No clear difference: {b.name} scores {figure(abs(found.mean))} {name} {sign} than {a.name}{over}"
        more.append("The interval holds 0: with these cases the sign of the difference is not known.")
    else:
        sign = "higher" if found.mean > 0 else "lower"
        better = "" if a.sign > 0 else ", which is better," if found.mean < 0 else ", which is worse,"
        words = f"{b.name} scores {figure(abs(found.mean))} {name} {sign} than {a.name}{over}{better}"
    overlap, by_seed = seeds_of(a, b)
    joined = (
        f", though single {a.each if a.each == b.each else 'run'}s overlap{', and' if time else ''}"
        if overlap
        else " and"
        if time
        else ""
    )
    return Conclusion(f"{words}{joined}{time}.", [*more, *by_seed, *few(found.cases)], data)


def seeds_of(a: Group, b: Group) -> tuple[bool, list[str]]:
    """(whether a seed of the one scores what a seed of the other does, the range of each in words)."""
    if len(a.runs) == len(b.runs) == 1:
        return False, []
    ends = [
        (min(each), max(each)) for group in (a, b) if (each := [r.score for r in group.runs if r.score is not None])
    ]
    if len(ends) < 2:
        return False, []
    (low, high), (least, most) = ends
    one = "seed" if a.each == b.each == "seed" else "run"
    words = f"By {one}: {b.name} {figure(least)} to {figure(most)}, {a.name} {figure(low)} to {figure(high)}."
    return low <= most and least <= high, [f"{words} The interval is over cases, of the means of the {one}s."]


def interval_words(found: Difference) -> str:
    if found.cases < 2:
        return f" ({counted(found.cases, 'shared case')}, so without an interval)"
    low, high = figure(found.low, signed=True), figure(found.high, signed=True)
    return f" (95 % interval {low} to {high}, {counted(found.cases, 'case')}, paired bootstrap)"


def without_cases(a: Group, b: Group, time: str, more: list[str], data: dict[str, Any]) -> Conclusion:
    """Runs that share no case: the scores side by side, without a difference."""
    both = f"{figure(b.score)} and {figure(a.score)} {a.first.score_name}"
    if a.scores and b.scores:
        count = f"over {len(b.scores)} and {len(a.scores)} other cases"
        words = f"{b.name} and {a.name} share no case, so they are not compared: {both}, {count}"
    else:
        words = f"{b.name} and {a.name} score {both}; without scores by case of both there is no interval"
    return Conclusion(f"{words}{f'; {b.name}{time}' if time else ''}.", more, data)


def time_words(a: Group, b: Group) -> tuple[str, dict[str, float]]:
    """(" takes 0.8 of the time", the numbers): to the target where both have reached one, else of training."""
    for name, value in (("to the target", lambda run: run.seconds_to_target), ("", None)):
        one, two = (group.mean(value) if value else group.train_seconds for group in (a, b))
        if one and two:
            share = two / one
            words = f"{share:.2f} of the time" if share < 0.995 else f"{figure(share)} times as long"
            words = "as long" if 0.995 <= share < 1.005 else words
            return f" takes {words}{f' {name}' if name else ''}", {
                "time_ratio": share,
                "seconds_a": one,
                "seconds_b": two,
            }
    return "", {}


def faster(a: Group, b: Group) -> Conclusion:
    """Two runs by their samples a second."""
    one, two = (group.mean(lambda run: run.rate) for group in (a, b))
    if a is b:
        return single(a)
    if not one or not two or a.first.predicts != b.first.predicts:
        return joined([single(a), single(b)])
    ends, others = rate_range(b.first), rate_range(a.first)
    rates = f"{figure(two)}{within(ends, ', ')} against {figure(one)}{within(others, ', ')}"
    words = f"{b.name} {does(b.first)} {figure(two / one)} times as many {a.first.item} a second as {a.name} ({rates})."
    alike = {"rates": overlap(ends, others)}
    data: dict[str, Any] = {"rate_ratio": two / one}
    (own, *ends), (other, *others) = over_plain(b.first), over_plain(a.first)
    if own is not None and other is not None:
        plain = f"the plain {'network' if b.first.predicts else 'loop'} on its own machine"
        ratios = f"{b.name} is {figure(own)} times{within(ends)} as fast as {plain}, {a.name} {figure(other)} times"
        words = f"{ratios}{within(others)}. {words}"
        data["over_plain_ratio"] = own / other
        alike = {"ratios to the plain one": overlap(ends, others), **alike}
    data["overlap"] = [name for name, same in alike.items() if same]
    more = [f"The ranges of the {name} overlap: these measurements do not tell them apart." for name in data["overlap"]]
    if next(iter(alike.values())):  # of what the first sentence is about
        words = f"No clear difference: {words}"
    return Conclusion(words, [*more, *beside(a.first, b.first)], data)


def rate_range(run: Run) -> list[float | None]:
    """(lowest, highest) rate of the rounds of a benchmark."""
    rates, passes = run.benchmark.get("images_per_second_range"), run.benchmark.get("predict")
    found = rates.get("ours") if isinstance(rates, dict) else None
    if run.predicts and found is None and isinstance(passes, dict):
        found = passes.get("images_per_second_range")
    return [number(value) for value in found] if isinstance(found, list) and len(found) == 2 else [None, None]


def within(ends: Sequence[float | None], before: str = "") -> str:
    """A range in words: in brackets, or after `before`; empty where it is not known."""
    low, high = ends
    if low is None or high is None:
        return ""
    words = f"{figure(low)} to {figure(high)}"
    return f"{before}{words}" if before else f" ({words})"


def overlap(one: Sequence[float | None], two: Sequence[float | None]) -> bool:
    """Whether two ranges that are known have something in common."""
    (low, high), (least, most) = one, two
    if low is None or high is None or least is None or most is None:
        return False
    return low <= most and least <= high


def over_plain(run: Run) -> tuple[float | None, float | None, float | None]:
    """(median, lowest, highest) of a benchmark's rate over that of the plain loop, or network, beside it."""
    passes = run.benchmark.get("predict")
    ratio = run.benchmark.get("ours_over_plain")
    if run.predicts:
        ratio = passes.get("ours_over") if isinstance(passes, dict) else None
    if not isinstance(ratio, dict):
        return None, None, None
    return number(ratio.get("median")), number(ratio.get("min")), number(ratio.get("max"))


def does(run: Run) -> str:
    return "predicts" if run.predicts else "trains"


def joined(found: Sequence[Conclusion]) -> Conclusion:
    """Conclusions that are not compared, one after another."""
    return Conclusion(" ".join(each.words for each in found), [line for each in found for line in each.more])


def benchmark(run: Run) -> Conclusion:
    if run.is_sweep:
        return sweep(run)
    if run.rate is None:
        return Conclusion(f"{run.name} has no rate.")
    words = f"{run.name} {does(run)} {figure(run.rate)} {run.item} a second"
    median, low, high = over_plain(run)
    if median is not None:
        words += f", {figure(median)} times the plain {'network' if run.predicts else 'loop'}"
        words += f" ({figure(low)} to {figure(high)})"
    return Conclusion(f"{words}.", beside(run), {"rate": run.rate})


def beside(*runs: Run) -> list[str]:
    """What makes benchmarks worth less: they were stopped, or other processes used the machine."""
    found = [last_words(run) for run in runs if last_words(run)]
    for run in runs:
        others = number(run.benchmark.get("cores_of_others"))
        if others is not None and others > BUSY:
            found.append(f"{run.name}: other processes used {figure(others)} cores meanwhile.")
    return found


def sweep(run: Run) -> Conclusion:
    """How many combinations were measured, and the fastest one."""
    rows = [row for row in run.benchmark.get("rows") or () if isinstance(row, dict)]
    settings = ", ".join(map(str, run.benchmark["sweep"]))
    measured = [
        (own.rate, own, row.get("settings"))
        for row in rows
        if isinstance(result := row.get("result"), dict)
        and (own := dataclasses.replace(run, item=str(result.get("item") or run.item), benchmark=result)).rate
    ]
    words = f"{run.name} has measured {len(measured)} of {counted(len(rows), 'combination')} of {settings}"
    if not measured:
        return Conclusion(f"{words}.")
    rate, best, values = max(measured, key=lambda each: each[0] or 0.0)
    named = " ".join(f"{name}={value}" for name, value in values.items()) if isinstance(values, dict) else "the fastest"
    words += f": {named} {does(best)} most, {figure(rate)} {best.item} a second"
    return Conclusion(f"{words}.", data={"rate": rate, "settings": values})


def state_of(run: Run) -> str:
    """What keeps a run from being a finished one, in words."""
    if is_running(run):
        done = run.epochs[-1].get("epoch") if run.epochs else 0
        of = run.settings.get("epochs")
        return f"is running, {f'epoch {done} of {of} done' if of else f'{done} epochs done'}"
    if run.status == "running":
        return "was killed: its status still says that it runs"
    if run.status in ("failed", "interrupted"):
        return run.status if run.status == "interrupted" else "has failed"
    return ""


def last_words(run: Run) -> str:
    return f"{run.name}: {run.why}" if run.why and run.status != "done" else ""


def timing_of(group: Group) -> list[str]:
    seconds, rate = group.train_seconds, group.mean(lambda run: run.rate)
    words = [f"{duration(seconds)} of training"] if seconds else []
    words += [f"{figure(rate)} {group.first.item} a second"] if rate else []
    return [f"{', '.join(words)}, on {group.first.device}."] if words else []


def few(cases: int) -> list[str]:
    if 1 < cases < LITTLE:
        return [f"Only {cases} cases: an interval of so few says little."]
    return []
