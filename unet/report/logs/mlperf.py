"""Logs of MLPerf training: lines `:::MLLOG {json}` anywhere in a line, in `unet3d.log`, `result_0.txt` or the output of
a job. Epochs are counted in epochs up to round 3.0 and in samples from 3.1 on; here in epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unet.report.logs.lines import lines_of, passed_over
from unet.report.run import Run, number

KIND = "MLPerf log"
MARK = ":::MLLOG"
TARGETS = {"unet3d": 0.908}  # of the rules, rounds 1.0 to 4.0
SETTINGS = {
    "seed": "seed",
    "opt_name": "optimizer",
    "opt_base_learning_rate": "lr",
    "opt_momentum": "momentum",
    "opt_weight_decay": "weight_decay",
    "opt_learning_rate_warmup_epochs": "warmup_epochs",
    "opt_learning_rate_decay_boundary_epochs": "lr_milestones",
    "opt_learning_rate_decay_factor": "lr_gamma",
    "gradient_accumulation_steps": "accumulate",
    "training_input_shape": "patch",
    "validation_input_shape": "eval_patch",
    "oversampling": "oversampling",
    "validation_overlap": "overlap",
    "global_batch_size": "global_batch_size",
    "train_samples": "train_samples",
    "eval_samples": "eval_samples",
    "samples_per_epoch": "samples_per_epoch",
    "submission_benchmark": "benchmark",
    "submission_division": "mlperf_division",
    "submission_org": "mlperf_org",
    "submission_platform": "mlperf_platform",
    "submission_status": "mlperf_status",
}
OPENS = ("cache_clear", "init_start", "run_start")  # what can be the first event of a run
RATES = ("throughput", "samples_per_sec", "samples_per_second")
Event = dict[str, Any]


def looks_like(head: str) -> bool:
    return MARK in head


def read(path: Path) -> tuple[list[Run], list[str]]:
    """(runs, sentences on what could not be read): a run for each clock that was started."""
    events, omitted = events_of(path)
    runs = [run_of(path, part) for part in parts_of(events)]
    for number_, run in enumerate(runs, 1):
        run.name = path.stem if len(runs) == 1 else f"{path.stem} #{number_}"
    if not runs and events:
        omitted.append(f"{path}: {len(events)} events of MLPerf, and none of them starts the clock (run_start)")
    return runs, omitted


def events_of(path: Path) -> tuple[list[Event], list[str]]:
    """The events in their order, each once: several processes may have written the same."""
    events: list[Event] = []
    seen: set[str] = set()
    omitted, strange = [], []
    for line in lines_of(path):
        _, mark, rest = line.text.partition(MARK)
        if not mark:
            if line.text.strip():
                strange.append(line.number)
            continue
        try:
            event = json.loads(rest)
            if not isinstance(event, dict) or not isinstance(event.get("key"), str):
                raise ValueError("no event with a key")
        except (ValueError, RecursionError) as error:
            ends = "" if line.whole else " (the file ends within it)"
            omitted.append(f"{path}, line {line.number}: no whole event{ends or f' ({error})'}")
            continue
        about = event.get("metadata")
        event["metadata"] = about if isinstance(about, dict) else {}
        place = {key: value for key, value in event["metadata"].items() if key not in ("file", "lineno", "rank")}
        same = json.dumps([event["key"], event.get("value"), event.get("time_ms"), place], sort_keys=True)
        if same not in seen:
            seen.add(same)
            events.append(event)
    return events, [*omitted, *passed_over(path, strange, "not of MLPerf, passed over")]


def parts_of(events: Iterable[Event]) -> list[list[Event]]:
    """The events of each run: one more begins where an event that opens a run comes after a run_stop, or after another
    run_start."""
    parts: list[list[Event]] = [[]]
    for event in events:
        key, keys = event["key"], {each["key"] for each in parts[-1]}
        if (key in OPENS and "run_stop" in keys) or (key == "run_start" and "run_start" in keys):
            parts.append([])
        parts[-1].append(event)
    return [part for part in parts if any(event["key"] == "run_start" for event in part)]


def run_of(path: Path, events: list[Event]) -> Run:
    run = Run(path.stem, path, KIND, metric="mean_dice", metric_title="mean Dice")
    for event in events:
        if (name := SETTINGS.get(event["key"])) and name not in run.settings:
            run.settings[name], run.sources[name] = event.get("value"), f"event {event['key']}"
    run.task = str(run.settings.get("benchmark", ""))
    if run.task in TARGETS:
        run.settings["target"], run.sources["target"] = TARGETS[run.task], "MLPerf's rules"
    run.environment = {"device": str(run.settings.get("mlperf_platform", ""))}
    run.epochs = epochs_of(events, run.settings)
    stop = next((event for event in reversed(events) if event["key"] == "run_stop"), None)
    if stop is None:
        run.status, run.why = "interrupted", "the log has no run_stop: the run was killed, or still runs"
    else:
        run.status = "done"
        run.why = f"run_stop says {stop['metadata'].get('status', 'nothing of the result')}"
    run.summary = summary_of(events, run, stop)
    return run


def epochs_of(events: list[Event], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each evaluation: the seconds of training since the one before, and those of the evaluation."""
    began = _seconds(events, "run_start") or 0.0
    rows: dict[float, dict[str, Any]] = {}
    trained, scoring = 0.0, 0.0
    since: float | None = None  # when the training went on
    for event in events:
        key, at = event["key"], _time(event)
        if key == "block_start" or (key == "epoch_start" and since is None):
            since = at
        elif key in ("block_stop", "eval_start"):
            trained, since = trained + (at - since if since is not None else 0.0), None
            scoring = at if key == "eval_start" else scoring
        elif key == "eval_accuracy" and (place := _epoch(event)) is not None:
            rows[place] = {"event": "epoch", "score": number(event.get("value")), "time_to_train": at - began}
            rows[place] |= {"train_seconds": trained} if trained else {}
            trained = 0.0
        elif key == "eval_stop" and scoring:
            if rows:
                rows[max(rows)]["evaluate_seconds"] = at - scoring
            since, scoring = at, 0.0
    size = samples_per_epoch(events, settings)
    found = []
    for place in sorted(rows):
        epoch = place / size if size else place
        samples = place if size else place * float(number(settings.get("train_samples")) or 0)
        row = {**rows[place], "epoch": round(epoch), **({"samples": round(samples)} if samples else {})}
        found.append({key: value for key, value in row.items() if value is not None})
    return found


def samples_per_epoch(events: list[Event], settings: Mapping[str, Any]) -> float | None:
    """Samples of an epoch where the log counts in samples; None where it counts in epochs. A block that is at least as
    long as the training set has cases is counted in samples."""
    cases = number(settings.get("train_samples"))
    counts = [number(event["metadata"].get("epoch_count")) for event in events if event["key"] == "block_start"]
    places = [place for event in events if event["key"] == "eval_accuracy" and (place := _epoch(event)) is not None]
    own = number(settings.get("samples_per_epoch"))
    if not cases:
        return None
    steps = [count for count in counts if count] or [b - a for a, b in zip([0.0, *places], places, strict=False)]
    near = own or cases
    return near if steps and min(steps) >= near * 0.99 and max(places, default=0) >= near * 0.99 else None


def summary_of(events: list[Event], run: Run, stop: Event | None) -> dict[str, Any]:
    scored = [(row["score"], row["epoch"]) for row in run.epochs if number(row.get("score")) is not None]
    best, epoch = max(scored, key=lambda item: item[0]) if scored else (None, None)
    seconds = {key: math.fsum(row.get(f"{key}_seconds", 0.0) for row in run.epochs) for key in ("train", "evaluate")}
    began, ended = _seconds(events, "run_start"), _time(stop) if stop else None
    found: dict[str, Any] = {
        "best_score": best,
        "best_epoch": epoch,
        "epochs": run.epochs[-1]["epoch"] if run.epochs else 0,
        "seconds": seconds,
        "started": began,
        "ended": ended if ended is not None else max(map(_time, events)),
        "clock": "UTC",
        "status": stop["metadata"].get("status", "") if stop else "",
    }
    if began is not None and ended is not None:
        found["seconds"] = {**seconds, "run": ended - began}
    samples = run.epochs[-1].get("samples") if run.epochs else None
    if samples:
        found["samples"] = samples
    rate = rate_of(events) or (samples / seconds["train"] if samples and seconds["train"] else None)
    return {**found, **({"images_per_second": rate} if rate else {})}


def rate_of(events: list[Event]) -> float | None:
    """The median of the samples a second of training that the log states; None where it does not."""
    found = []
    for event in events:
        value = event.get("value")
        stated = value if event["key"] in RATES else None
        if event["key"] == "tracked_stats" and isinstance(value, dict):
            stated = next((value[key] for key in RATES if key in value), None)
        if (rate := number(stated)) is not None:
            found.append(rate)
    return sorted(found)[len(found) // 2] if found else None


def _epoch(event: Event) -> float | None:
    return number(event["metadata"].get("epoch_num"))


def _time(event: Event) -> float:
    """Seconds since 1970."""
    return (number(event.get("time_ms")) or 0.0) / 1000


def _seconds(events: list[Event], key: str) -> float | None:
    return next((_time(event) for event in events if event["key"] == key), None)
