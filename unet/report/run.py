"""One run as the report sees it, whatever it was read from: the folder of a run, a record, a cross-validation or an
imported log. Reading changes nothing; what cannot be read is listed in `omitted`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from unet import files
from unet.config import run_files
from unet.errors import UnetError, UsageError

STARTS = ("config.json", "metrics.jsonl", "summary.json", "benchmark.json", "status.json")  # a run folder holds one
CASES, METRICS, POWER = "cases.csv", "metrics.jsonl", "power.csv"
LOWER_IS_BETTER = ("loss", "mse", "hd95", "error", "seconds")  # ends of a metric's key, in runs that do not say so
TEXT_COLUMNS = ("case", "fold", "source")


@dataclasses.dataclass
class Run:
    """A run.

    `settings` is {name: value} and `sources` {name: where it came from}. `steps` and `epochs` are rows of
    metrics.jsonl, each epoch once. `cases` is {case: {column: value}}, with the weights that the run chose. `power` has
    rows {"seconds", "source", "watts"}. `pictures` is {title: path}. `omitted` says what could not be read, with file
    and line. Only name, path and kind are always there.
    """

    name: str
    path: Path
    kind: str  # train, evaluate, crossval, benchmark, or the name of an imported format
    task: str = ""
    status: str = ""
    why: str = ""
    command: str = ""
    metric: str = ""
    metric_title: str = ""
    goal: str = "max"
    item: str = "samples"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    sources: dict[str, str] = dataclasses.field(default_factory=dict)
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    benchmark: dict[str, Any] = dataclasses.field(default_factory=dict)
    kernels: dict[str, Any] = dataclasses.field(default_factory=dict)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    epochs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    cases: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    power: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    pictures: dict[str, Path] = dataclasses.field(default_factory=dict)
    folds: list[Run] = dataclasses.field(default_factory=list)
    omitted: list[str] = dataclasses.field(default_factory=list)

    @property
    def score_name(self) -> str:
        return self.metric_title or self.metric.replace("_", " ").upper() or "score"

    @property
    def scores(self) -> dict[str, float]:
        """{case: score}, of the cases that have one."""
        found = {case: row.get(self.metric, math.nan) for case, row in self.cases.items()}
        return {case: value for case, value in found.items() if not math.isnan(value)}

    @property
    def score(self) -> float | None:
        """The mean over the cases; without them the best score of the log."""
        if scores := self.scores:
            return math.fsum(scores.values()) / len(scores)
        best = number(self.summary.get("best_score"))
        if best is None:
            known = [row["score"] for row in self.epochs if number(row.get("score")) is not None]
            best = (max if self.goal == "max" else min)(known, default=None)
        return best

    @property
    def rate(self) -> float | None:
        """Training samples a second; those of `evaluate` and of a benchmark's own step or pass where the run is one. A
        sweep has none: its combinations have one each."""
        if self.folds:
            each = [rate for fold in self.folds if (rate := fold.rate) is not None]
            return math.fsum(each) / len(each) if each else None
        rates, passes = self.benchmark.get("images_per_second"), self.benchmark.get("predict")
        if isinstance(rates, dict):
            return number(rates.get("ours"))
        if isinstance(passes, dict) and self.predicts:
            return number(passes.get("images_per_second"))
        found = number(self.summary.get("images_per_second"))
        if found is None:
            known = [value for row in self.steps if (value := number(row.get("images_per_second"))) is not None]
            found = sorted(known)[len(known) // 2] if known else None
        return found

    @property
    def is_sweep(self) -> bool:
        """Whether it is a benchmark over combinations of settings."""
        return isinstance(self.benchmark.get("sweep"), dict)

    @property
    def predicts(self) -> bool:
        """Whether it is a benchmark of prediction alone; one of training may hold the rates of prediction too."""
        mode = str(self.benchmark.get("mode") or "")  # said where several processes were measured
        alone = "images_per_second" not in self.benchmark and bool(self.benchmark.get("predict"))
        return mode.endswith("predict") or (alone and not self.is_sweep)

    @property
    def train_seconds(self) -> float | None:
        """Seconds of training, without evaluation and saving."""
        seconds = self.summary.get("seconds")
        if isinstance(seconds, dict) and number(seconds.get("train")) is not None:
            return number(seconds["train"])
        known = [value for row in self.epochs if (value := number(row.get("train_seconds"))) is not None]
        return math.fsum(known) if known else None

    @property
    def seconds_to_target(self) -> float | None:
        """Seconds from the start until the target was reached (`time_to_train` of that epoch); None if it was not."""
        target = number(self.settings.get("target"))
        if target is None:
            target = number(self.summary.get("target"))
        if target is None:
            return None
        sign = 1 if self.goal == "max" else -1
        for row in self.epochs:
            score = number(row.get("score"))
            if score is not None and sign * score >= sign * target:
                return number(row.get("time_to_train"))
        return None

    @property
    def peak_memory(self) -> float | None:
        """Bytes: of the rank, or fold, that used most."""
        if self.folds:
            return max((used for fold in self.folds if (used := fold.peak_memory) is not None), default=None)
        found = self.benchmark.get("peak_memory_bytes", self.summary.get("peak_memory_bytes"))
        return number(found.get("ours") if isinstance(found, dict) else found)

    @property
    def joules_per_sample(self) -> float | None:
        used = number((self.summary.get("power") or {}).get("joules_per_sample"))
        per_joule = number((self.benchmark.get("power") or {}).get("items_per_joule"))
        return 1 / per_joule if used is None and per_joule else used

    @property
    def device(self) -> str:
        if self.folds:
            return self.folds[0].device
        return str(self.environment.get("device") or self.summary.get("device") or "unknown device")

    def curve(self, key: str, over: str = "step") -> list[tuple[float, float]]:
        """(place, value) of a key of the epochs, over "step", "epoch", "seconds" (wall time) or "joules"."""
        points = []
        seconds = joules = 0.0
        for row in self.epochs:
            seconds += sum(number(row.get(part)) or 0.0 for part in ("train_seconds", "evaluate_seconds"))
            joules += number(row.get("joules")) or 0.0
            place = {"seconds": seconds, "joules": joules}.get(over, number(row.get(over)))
            value = number(row.get(key))
            if place is not None and value is not None and (over != "joules" or joules):
                points.append((place, value))
        return points


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if right else None


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run. One with settings alone, as of a record, is none where runs lie below it."""
    if not path.is_dir():
        return False
    there = {name for name in STARTS if (path / name).is_file()}
    return bool(there) and (there != {"config.json"} or not any(map(is_run, path.iterdir())))


def runs_in(path: Path) -> list[Path]:
    """The folders of runs in a folder: itself, or those right below it."""
    if is_run(path):
        return [path]
    return sorted(place for place in path.iterdir() if is_run(place)) if path.is_dir() else []


def read(path: Path) -> list[Run]:
    """The runs of a folder: its own, or those of a record's sub-folders. Raises UsageError if there is none."""
    if not path.exists():
        raise UsageError(f"{path} does not exist.", "Give the folder of a run; python -m unet runs lists them.")
    inner = runs_in(path)
    if inner == [path]:
        return [read_run(path)]
    if not inner:
        raise UsageError(
            f"{path} is no run: it holds none of {', '.join(STARTS)}.",
            "Give the folder of a run (python -m unet runs lists them); for old logs: --import FOLDER.",
        )
    record = (path / "README.md").is_file()
    return [
        dataclasses.replace(run, name=f"{path.name}/{run.name}" if record else run.name) for run in map(read_run, inner)
    ]


def read_run(path: Path) -> Run:
    """A run folder, finished, running, failed or half written."""
    run = Run(path.name or path.resolve().name, path, "train")
    status = run_files.read_status(path)
    run.status, run.why = str(status.get("status", "")), str(status.get("why", ""))
    config = _object(run, "config.json")
    run.command = str(config.get("command", ""))
    _settings(run, config.get("settings"))
    run.environment, run.summary = _object(run, "environment.json"), _object(run, "summary.json")
    run.benchmark, run.kernels = _object(run, "benchmark.json"), _object(run, run_files.KERNELS_JSON)
    run.kind = str(status.get("kind") or kind_of(run))
    run.task = str(run.settings.get("task") or run.benchmark.get("task") or "")
    run.item = str(run.summary.get("item") or run.benchmark.get("item") or "samples")
    _metrics(run)
    run.cases = read_cases(run, CASES)
    run.power = _power(run)
    _metric(run, status)
    for name in ("progress.png", "terms.png", "predictions.png", "samples.png"):
        if (path / name).is_file():
            run.pictures[name.removesuffix(".png")] = path / name
    if run.kind == "crossval":
        run.folds = [read_run(fold) for fold in fold_folders(path) if is_run(fold)]
        pooled = {case: row for fold in run.folds for case, row in fold.cases.items()}
        run.cases, run.metric = pooled or run.cases, run.metric or next((fold.metric for fold in run.folds), "")
    if newer := _newer(run):
        run.omitted.append(newer)
    return run


def kind_of(run: Run) -> str:
    """The command of a run whose status.json is not there, as in a record."""
    if run.benchmark:
        return "benchmark"
    if "by_fold" in run.summary:
        return "crossval"
    return "evaluate" if " unet evaluate " in f"{run.command} " else "train"


def fold_folders(path: Path) -> list[Path]:
    """The folders of a cross-validation's folds: beside its own, or in it."""
    beside = re.compile(re.escape(path.name) + r"-fold\d+")
    near = [fold for fold in path.parent.iterdir() if beside.fullmatch(fold.name)] if path.parent.is_dir() else []
    near += path.glob("*fold*")
    return sorted((fold for fold in near if fold.is_dir()), key=lambda fold: (len(fold.name), fold.name))


def _settings(run: Run, stored: Any) -> None:
    if isinstance(stored, Mapping):
        for name, item in run_files.flat_settings(stored).items():
            if isinstance(item, Mapping) and "value" in item:
                run.settings[name], run.sources[name] = item["value"], str(item.get("source", ""))


def _metrics(run: Run) -> None:
    epochs: dict[int, dict[str, Any]] = {}
    for place, row in _lines(run, METRICS):
        if row.get("event") == "step" and number(row.get("step")) is not None:
            run.steps.append(row)
        elif row.get("event") == "epoch" and number(row.get("epoch")) is not None:
            epochs[int(row["epoch"])] = row
        elif "event" not in row:
            run.omitted.append(f"{place}: a line without an event")
    run.epochs = [epochs[epoch] for epoch in sorted(epochs)]


def _metric(run: Run, status: Mapping[str, Any]) -> None:
    """From the summary; a run without one, as one that was killed, has it in its status."""
    said = run.summary if run.summary.get("metric") else {**status, **run.summary}
    run.metric = str(said.get("metric") or next((key for row in run.cases.values() for key in row), ""))
    run.metric_title = str(said.get("metric_title", ""))
    guess = "min" if run.metric.endswith(LOWER_IS_BETTER) else "max"
    run.goal = str(said.get("metric_goal") or guess)


def _object(run: Run, name: str) -> dict[str, Any]:
    path = run.path / name
    if not path.is_file():
        return {}
    try:
        found = json.loads(files.read_text(path))
    except UnetError as error:
        run.omitted.append(f"{path}: {error.message}")
        return {}
    except ValueError as error:
        run.omitted.append(f"{path}: not whole ({error})")
        return {}
    return found if isinstance(found, dict) else {}


def _lines(run: Run, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(file and line, the object) of a JSON Lines file; a damaged or cut line goes to `omitted`."""
    path = run.path / name
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for count, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                ends = "" if line.endswith(b"\n") else " (the file ends within it)"
                run.omitted.append(f"{path}, line {count}: not a whole line{ends}")
                continue
            if isinstance(row, dict):
                yield f"{path}, line {count}", row


def _power(run: Run) -> list[dict[str, Any]]:
    """The samples of power.csv, in seconds since the first."""
    rows = [row for row in _csv(run, POWER) if isinstance(row.get("watts"), float)]
    first = min((row["time"] for row in rows if number(row.get("time")) is not None), default=0.0)
    for row in rows:
        if number(row.get("time")) is not None:
            row.setdefault("seconds", row.pop("time") - first)
    return [row for row in rows if number(row.get("seconds")) is not None]


def read_cases(run: Run, name: str) -> dict[str, dict[str, float]]:
    """{case: {column: value}} of a table of scores; an empty cell is NaN."""
    found: dict[str, dict[str, float]] = {}
    for row in _csv(run, name):
        case = row.get("case")
        values = {key: cell for key, cell in row.items() if key not in TEXT_COLUMNS and isinstance(cell, float)}
        if case and values:
            found[str(case)] = values
    return found


def _csv(run: Run, name: str, convert: Callable[[str], Any] = lambda cell: _cell(cell)) -> list[dict[str, Any]]:
    """The rows of a table with a heading; one with too few or too many cells goes to `omitted`."""
    path, rows = run.path / name, []
    if not path.is_file():
        return []
    try:
        text = files.read_text(path)
    except UnetError as error:
        run.omitted.append(f"{path}: {error.message}")
        return []
    table = csv.reader(io.StringIO(text, newline=""))
    lines: list[tuple[int, list[str]]] = []
    try:
        lines.extend((table.line_num, cells) for cells in table)
    except csv.Error as error:
        run.omitted.append(f"{path}, line {table.line_num}: {error}")
    heads = lines[0][1] if lines else []
    for line, cells in lines[1:]:
        if len(cells) != len(heads):
            run.omitted.append(f"{path}, line {line}: {len(cells)} cells instead of {len(heads)}")
            continue
        rows.append(
            {head: cell if head in TEXT_COLUMNS else convert(cell) for head, cell in zip(heads, cells, strict=True)}
        )
    return rows


def _cell(cell: str) -> Any:
    if not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return cell


def _newer(run: Run) -> str:
    """A sentence if a later version of this program wrote the run."""
    from unet import __version__

    def parts(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())

    made = str(run.environment.get("unet", ""))
    if made and parts(made) > parts(__version__):
        return (
            f"{run.path} was written by version {made} of this program, newer than {__version__}: what this version"
            " does not know is left out"
        )
    return ""
