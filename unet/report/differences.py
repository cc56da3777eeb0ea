"""What two runs have in common, and whether they are the same computation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from unet.metrics import statistics
from unet.report.run import Run, number

# Relative difference of two losses that the order of sums alone can make, by number format. Of those with few bits it
# is their unit roundoff, 2^-p for p bits of the significand, the error of one rounding (Higham, Accuracy and Stability
# of Numerical Algorithms, 2002, section 2.1). lgg on one thread and on two, 30 steps: 2.7e-4 in bf16, 2.2e-4 in fp16.
ROUNDING = {"fp32": 1e-6, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}
FORMATS = {"fp32": "float32", "tf32": "TF32", "fp16": "float16", "bf16": "bfloat16"}  # in words
IMPORTED = 1e-6  # a log in text holds six digits after the point
# settings that change names, places, words and what is kept, but no number of the computation; see `without_effect`
NO_EFFECT = frozenset(
    {
        *(
            "run_name",
            "out",
            "weights",
            "output",
            "config",
            "resume",
            "overwrite",
            "dry_run",
            "json",
            "verbose",
            "quiet",
        ),
        *(
            "tensorboard",
            "wandb",
            "mlflow",
            "track",
            "track_project",
            "track_group",
            "track_wait",
            "debug_dump",
            "log_every",
            "log_all_workers",
            "max_time",
            "restarts",
            "dist_url",
            "local_rank",
        ),
        *(
            "process_per_node",
            "cuda_devices",
            "checkpoints",
            "checkpoint_every",
            "keep_every",
            "bootstrap",
            "benchmark",
        ),
        *("rebuild_cache", "recipe_cache", "recipe", "power", "mlperf_org", "mlperf_platform", "mlperf_status", "mode"),
        *(
            "save_minutes",
            "dist_timeout",
            "workers",
            "overlay",
            "probabilities",
            "volumes",
            "drop_caches",
            "nonfinite_limit",
        ),
    }
)
ROUNDING_ONLY = {"eval_batch_size": "scores", "threads": "losses and scores"}  # what sums of another order change
STOPS = frozenset({"epochs", "max_steps", "target", "patience"})  # where a run stops
WITHOUT_END = ("constant", "multistep")  # learning rates that do not depend on where it stops
PLACES = frozenset({"data", "cache"})  # the same data may lie in two places
CHOSEN = ("precision", "layout", "compile", "threads")  # left to the device; `chosen` in environment.json: what it took
LEFT_TO_DEVICE = ("auto", None)
TORCH_NAMES = {words: name for name, words in FORMATS.items()}
MACHINE = ("device", "cores", "platform")
UNKNOWN = "not known"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A value that two runs have not in common; `effect`: it can change the numbers."""

    name: str
    first: Any
    second: Any
    effect: bool = True

    @property
    def unknown(self) -> bool:
        """Whether one of the runs does not say its value, so that nobody knows whether they differ."""
        return UNKNOWN in (self.first, self.second)


@dataclasses.dataclass(frozen=True)
class Losses:
    """How far the logged losses agree: `state` is equal, rounding, part, or none where nothing can be compared."""

    state: str
    compared: int = 0
    unit: str = "step"
    first_apart: tuple[int, float, float] | None = None  # place, and the two values
    first_beyond: tuple[int, float, float] | None = None  # the same, by more than `limit`
    largest: float = 0.0  # relative difference
    precision: str = "fp32"  # the coarser number format of the two
    limit: float = ROUNDING["fp32"]  # relative difference that rounding in it can make
    late: bool = False  # losses before `first_beyond` agree, up to rounding at most


@dataclasses.dataclass(frozen=True)
class Scores:
    """The two scores, and the second minus the first with its 95 % interval, `over` this many cases."""

    first: float | None
    second: float | None
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    over: int = 0
    how: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
    settings: list[Difference]
    software: list[Difference]
    machine: list[Difference]
    losses: Losses
    scores: Scores
    same: str  # yes, rounding, no, unknown
    conclusion: str

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def compare(first: Run, second: Run, resamples: int = 10000) -> Comparison:
    """All differences of two runs, and the conclusion."""
    settings, software = settings_of(first, second), software_of(first, second)
    machine, losses = machine_of(first, second), losses_of(first, second)
    same, conclusion = conclusion_of(settings, software, machine, losses)
    return Comparison(settings, software, machine, losses, scores_of(first, second, resamples), same, conclusion)


def settings_of(first: Run, second: Run) -> list[Difference]:
    """The settings that differ, those that can change the numbers first. One that a run does not have is told only
    where both come from the same program: logs of others hold what was typed."""
    names = set(first.settings) & set(second.settings)
    if first.kind == second.kind:
        names = set(first.settings) | set(second.settings)
    silent = without_effect(first, second)
    if all(run.settings.get("schedule") in WITHOUT_END for run in (first, second)):
        silent |= STOPS
    files = [weights_read(run) for run in (first, second)]
    found = []
    for name in sorted(names):
        one, two = both_values(name, first, second)
        effect = name not in silent
        if name == "weights" and all(files):
            effect = files[0] != files[1]
            if one == two:
                one, two = (f"digest {each}" for each in files)
        if one == two:
            continue
        if name == "device" and effect:
            one, two = (UNKNOWN if value == "auto" else value for value in (one, two))
        unknown = UNKNOWN in (one, two)
        found.append(Difference(name, one, two, effect and (unknown or name not in PLACES | set(ROUNDING_ONLY))))
    return sorted(found, key=lambda item: (not item.effect, item.unknown))


def both_values(name: str, first: Run, second: Run) -> tuple[Any, Any]:
    """The values of a setting in two runs; of one that may be left to the device those that were used. Not known of a
    run that does not say what the device chose, unless both runs left it the choice."""
    one, two = (run.settings.get(name, UNKNOWN) for run in (first, second))
    a, b = (chosen(run, name) for run in (first, second))
    if name not in CHOSEN or (one == two and None in (a, b)):
        return one, two
    return typed_as_chosen(name, one) if a is None else a, typed_as_chosen(name, two) if b is None else b


def chosen(run: Run, name: str) -> Any:
    """What a run says that it used of a setting; None where it does not say it, as runs before 2026-11-28."""
    said = run.environment.get("chosen")
    found = said.get(name) if isinstance(said, Mapping) else None
    if name == "precision" and found is None and run.settings.get(name) == "auto":
        found = TORCH_NAMES.get(str(run.benchmark.get(name)))
    return found


def typed_as_chosen(name: str, value: Any) -> Any:
    """A typed value as `chosen` has it: the order of volumes has the name of that of images."""
    if value in LEFT_TO_DEVICE:
        return UNKNOWN
    return str(value).replace("D", "") if name == "layout" and value != UNKNOWN else value


def without_effect(*runs: Run) -> frozenset[str]:
    """The settings that change no number of these runs. Weights do where they are read: `evaluate` reads them, other
    commands write them. --device does not where the environment says what it chose."""
    read = all(run.kind == "evaluate" for run in runs)
    known = all(run.environment.get("device") for run in runs)
    return NO_EFFECT - ({"weights"} if read else set()) | ({"device"} if known else set())


def weights_read(run: Run) -> str:
    """The digest of the weights that were evaluated; empty where there are none, and in runs before 2026-11-28."""
    return str(run.summary.get("weights_digest", "")) if run.kind == "evaluate" else ""


def software_of(first: Run, second: Run) -> list[Difference]:
    """Versions and code that differ. Runs before 2026-11-27 do not say their code."""
    one, two = first.environment, second.environment
    keys = ("unet", "code", "python") if one and two else ()
    found = [Difference(key, one.get(key) or UNKNOWN, two.get(key) or UNKNOWN) for key in keys]
    packages = [run.environment.get("packages") for run in (first, second)]
    a, b = (each if isinstance(each, Mapping) else {} for each in packages)
    if a and b:
        found += [Difference(name, a.get(name, UNKNOWN), b.get(name, UNKNOWN)) for name in sorted({*a, *b})]
    if not (one and two):
        found.append(Difference("environment", UNKNOWN if not one else "known", UNKNOWN if not two else "known"))
    return [item for item in found if item.first != item.second or item.first == UNKNOWN]


def machine_of(first: Run, second: Run) -> list[Difference]:
    found = []
    for key in MACHINE:
        one, two = (run.environment.get(key) or UNKNOWN for run in (first, second))
        short = key == "device" and (is_log(first) or is_log(second))  # a log has its name alone, where it was typed
        same = str(one).partition(",")[0] == str(two).partition(",")[0] if short else one == two
        if not same:
            found.append(Difference(key, one, two, effect=key == "device"))
    found += kernels_of(first, second)
    variables = [run.environment.get("variables") for run in (first, second)]
    a, b = (each if isinstance(each, Mapping) else {} for each in variables)
    names = sorted(name for name in {*a, *b} if a.get(name) != b.get(name))
    return [*found, *(Difference(name, a.get(name, "-"), b.get(name, "-"), effect=False) for name in names)]


def is_log(run: Run) -> bool:
    """Whether a run was read from a log in text."""
    return run.kind.endswith(" log")


def kernels_of(first: Run, second: Run) -> list[Difference]:
    """The algorithms of convolutions, where both have met the same ones: the others say nothing of the computation."""
    one, two = (run.kernels.get("choices") for run in (first, second))
    if not (isinstance(one, Mapping) and isinstance(two, Mapping)):
        return []
    other = sorted(key for key in one if key in two and one[key] != two[key])
    name = f"kernels.json ({len(other)} of {len(set(one) & set(two))} passes)"
    return [Difference(name, one[other[0]], two[other[0]])] if other else []


def losses_of(first: Run, second: Run) -> Losses:
    """The losses of the steps that both have logged; of the epochs where there are none."""
    for unit, rows in (("step", (first.steps, second.steps)), ("epoch", (first.epochs, second.epochs))):
        a, b = ({int(row[unit]): row["loss"] for row in part if unit in row and "loss" in row} for part in rows)
        if shared := sorted(set(a) & set(b)):
            printed = IMPORTED if is_log(first) or is_log(second) else 0.0
            coarser = max((precision_of(first), precision_of(second)), key=lambda name: ROUNDING[name])
            return _losses(unit, [(place, a[place], b[place]) for place in shared], printed, coarser)
    return Losses("none")


def precision_of(run: Run) -> str:
    """The number format of a run, as --precision names it; fp32 where it is not known."""
    said = str(chosen(run, "precision") or run.settings.get("precision")).partition(",")[0]
    return said if said in ROUNDING else "fp32"


def _losses(unit: str, pairs: list[tuple[int, Any, Any]], printed: float, precision: str) -> Losses:
    """`printed`: what the digits of a text log leave open."""
    limit = ROUNDING[precision]
    apart = beyond = None
    largest = 0.0
    for place, one, two in pairs:
        if one == two:
            continue
        known = number(one) is not None and number(two) is not None
        relative = abs(one - two) / max(abs(one), abs(two)) if known else math.inf
        largest = max(largest, relative)
        apart = apart or (place, one, two)
        if relative > limit and not (known and abs(one - two) <= printed):
            beyond = beyond or (place, one, two)
    state = "part" if beyond else "rounding" if apart else "equal"
    late = beyond is not None and beyond[0] > pairs[0][0]
    return Losses(state, len(pairs), unit, apart, beyond, largest, precision, limit, late)


def scores_of(first: Run, second: Run, resamples: int = 10000) -> Scores:
    """The difference of the scores: paired over the cases that both have (of one case without an interval), or unpaired
    where they share none."""
    plain = Scores(first.score, second.score)
    if first.metric != second.metric:
        if unsaid := [run.name for run in (first, second) if not run.metric]:
            return dataclasses.replace(plain, how=f"the metric of {unsaid[0]} is not known, so they are not compared")
        names = f"{first.score_name} and {second.score_name}"
        return dataclasses.replace(plain, how=f"{names} are different metrics and are not compared")
    a, b = first.scores, second.scores
    shared = sorted(set(a) & set(b))
    if len(shared) == 1:
        one, two = a[shared[0]], b[shared[0]]
        how = f"the one case that both have, so no interval; the runs have {len(a)} and {len(b)} cases"
        return Scores(one, two, two - one, over=1, how=how)
    if shared:
        values = statistics.paired_interval([a[case] for case in shared], [b[case] for case in shared], resamples)
        more = "" if len(shared) == len(a) == len(b) else f"; the runs have {len(a)} and {len(b)} cases"
        how, over = f"paired bootstrap over the cases of both{more}", len(shared)
    elif len(a) > 1 and len(b) > 1:
        values = statistics.unpaired_interval(list(a.values()), list(b.values()), resamples)
        how, over = f"the runs have {len(a)} and {len(b)} other cases: unpaired bootstrap", len(a) + len(b)
    else:
        known = first.score is not None and second.score is not None
        gain = second.score - first.score if known else None  # type: ignore[operator]
        return dataclasses.replace(plain, gain=gain, how="no two cases with scores in both: no interval")
    gain, low, high = values
    used = (shared, shared) if shared else (a, b)
    means = [math.fsum(part[case] for case in cases) / len(cases) for part, cases in zip((a, b), used, strict=True)]
    return Scores(means[0], means[1], gain, low, high, over, how)


def conclusion_of(
    settings: list[Difference], software: list[Difference], machine: list[Difference], losses: Losses
) -> tuple[str, str]:
    """(yes, rounding, no or unknown; the sentences that say it)."""
    changed = [item.name for item in settings if item.effect and not item.unknown]
    places = [item.name for item in settings if item.name in PLACES and not item.unknown]
    around = [item for item in [*software, *machine] if item.effect]
    unknown = list(dict.fromkeys(item.name for item in [*settings, *around] if item.effect and item.unknown))
    other = [item.name for item in around if not item.unknown]
    with_other = f", with other {_some(other)}" if other else ""
    said = _losses_in_words(losses)
    stops = [item.name for item in settings if item.name in STOPS and not (item.effect or item.unknown)]
    whole = f"The same computation{' as far as both went' if stops else ''}"
    finer = "rounding" if losses.precision == "fp32" else f"the rounding of {FORMATS[losses.precision]}"
    rounded = [item.name for item in settings if item.name in ROUNDING_ONLY and not item.unknown]
    alike = f"the same settings{' as far as is known' if unknown else ''}"
    notes = ""
    if rounded:
        notes = f" {_some(rounded)} {_differ(rounded)}, which changes {ROUNDING_ONLY[rounded[-1]]} by rounding at most."
    notes += f" Not compared: what lies in the other {' and '.join(places)}." if places else ""
    notes += f" Not known of both runs: {_some(unknown)}." if unknown else ""
    if changed:
        return "no", f"Not the same computation: {_some(changed)} {_differ(changed)}, and {said}.{notes}"
    if losses.state == "none":
        return "unknown", f"Not known whether this is the same computation: {said}.{notes}"
    if losses.state == "part":
        hint = "" if other or unknown or rounded else " (a run repeats bit for bit with --deterministic)"
        if (other or rounded) and losses.late:
            notes += " Training makes the rounding of the first steps grow: an error would be seen at once."
        return "no", f"Not the same computation: {said}, with {alike}{with_other}{hint}.{notes}"
    if losses.state == "rounding":
        return "rounding", f"{whole} up to {finer}: {said}{with_other}.{notes}"
    if other:
        return "rounding", f"{whole} as far as the losses tell: {said}{with_other}.{notes}"
    if rounded:
        return "rounding", f"{whole} up to rounding: {said}.{notes}"
    if unknown:
        return "yes", f"{whole} as far as is known: {alike}, and {said}.{notes}"
    return "yes", f"{whole}: settings, code, versions and device are the same, and {said}.{notes}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _differ(names: list[str]) -> str:
    """The verb after names of settings: layers and weights are several."""
    one = len(names) == 1 and (not names[0].endswith("s") or names[0].endswith(("ss", "us")))
    return "differs" if one else "differ"


def _losses_in_words(losses: Losses) -> str:
    if losses.state == "none":
        return "the runs have logged no loss at the same step"
    count = f"the losses of all {losses.compared} {losses.unit}s that both logged"
    if losses.compared == 1:
        count = f"the loss of the one {losses.unit} that both logged"
    if losses.state == "equal":
        return f"{count} {'is' if losses.compared == 1 else 'are'} equal to the last bit"
    if losses.state == "rounding":
        return f"{count} differ by at most {losses.largest:.1e} of their value"
    place = losses.first_beyond[0] if losses.first_beyond else 0
    exactly = losses.first_apart[0] if losses.first_apart else place
    early = f", and exactly from {losses.unit} {exactly} on" if exactly != place else ""
    return f"the losses part at {losses.unit} {place} by more than {losses.limit:.2g} of their value{early}"
