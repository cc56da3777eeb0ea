"""Training logs of nnU-Net, `training_log_<time>.txt`, versions 1 and 2. A run that was started again has one file more
in the same folder, and goes on where a checkpoint was: the later file's epochs count."""

from __future__ import annotations

import ast
import datetime
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.report.logs.lines import Line, lines_of
from unet.report.run import Run

KIND = "nnU-Net log"
NAME = re.compile(r"training_log_.*\.txt$")
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?): ?(.*)$")
EPOCH = re.compile(r"(?:Epoch (\d+)|epoch:\s+(\d+))\s*$")
NUMBER = r"(-?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"
VALUES = {  # of version 2, and of version 1
    "loss": re.compile(rf"(?:train_loss|train loss :) {NUMBER}\s*$"),
    "eval_loss": re.compile(rf"(?:val_loss|validation loss:) {NUMBER}\s*$"),
    "lr": re.compile(rf"(?:Current learning rate:|lr(?: is now|:)?) {NUMBER}\b"),
    "train_seconds": re.compile(rf"(?:Epoch time:|This epoch took) {NUMBER} s"),
    "ema_score": re.compile(rf"(?:Yayy! New best EMA pseudo Dice:|.*saving best epoch checkpoint.* is) {NUMBER}\b"),
}
DICE = re.compile(r"(?:Pseudo dice|Average global foreground Dice:)\s*\[(.*)\]\s*$")
FINAL = re.compile(rf"Mean Validation Dice:\s+{NUMBER}")
FOLD = re.compile(r"Desired fold for training: (\S+)")
SPLIT = re.compile(r"This (?:random 80:20 )?split has (\d+) training and (\d+) validation cases")
KEPT = {  # of the configuration and the plans that the log prints
    "batch_size": "batch_size",
    "patch_size": "patch",
    "spacing": "spacing",
    "normalization_schemes": "normalization",
    "batch_dice": "batch_dice",
    "dataset_name": "dataset",
    "plans_name": "plans",
    "UNet_base_num_features": "width",
}


def looks_like(head: str) -> bool:
    words = ("nnU-Net", "Pseudo dice", "Current learning rate", "train_loss", "Average global foreground Dice")
    return any(word in head for word in words) and any(STAMP.match(line) for line in head.splitlines())


def read(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """(the run of a folder's logs, or none; sentences on what could not be read)."""
    paths = sorted(paths)
    run = Run(_name(paths[0]), paths[0].parent if len(paths) > 1 else paths[0], KIND, metric="dsc")
    epochs: dict[int, dict[str, Any]] = {}
    omitted: list[str] = []
    done = False
    for path in paths:
        later, done = _read_one(path, run, omitted)
        epochs |= later
    run.epochs = [{"event": "epoch", **epochs[epoch]} for epoch in sorted(epochs) if len(epochs[epoch]) > 1]
    if not run.epochs and "final_score" not in run.summary:
        return [], [*omitted, f"{paths[0]}: an nnU-Net log without a whole epoch"]
    run.status = "done" if done else "interrupted"
    run.why = "" if done else "the log does not say that training is done: it was killed, or still runs"
    if len(paths) > 1:
        run.settings["starts"], run.sources["starts"] = len(paths), "the files of the folder"
    _sum_up(run)
    return [run], omitted


def _name(path: Path) -> str:
    """Dataset, configuration and fold where nnU-Net's folders say them."""
    parts = path.parent.parts
    return "/".join(parts[-3:]) if parts and parts[-1].startswith("fold_") else path.stem


def _read_one(path: Path, run: Run, omitted: list[str]) -> tuple[dict[int, dict[str, Any]], bool]:
    """({epoch from 1: values}, whether training was done) of one file."""
    epochs: dict[int, dict[str, Any]] = {}
    row: dict[str, Any] = {}
    done, stamp = False, None
    for line in lines_of(path):
        text = line.text.rstrip()
        if found := STAMP.match(text):
            stamp, text = _seconds(found[1]), found[2].strip()
            if stamp is not None:
                run.summary.setdefault("started", stamp)
                run.summary["ended"] = stamp
        if not line.whole and text:
            omitted.append(f"{path}, line {line.number}: the file ends within this line")
            continue
        if found := EPOCH.match(text):
            row = epochs.setdefault(int(found[1] or found[2]) + 1, {})  # nnU-Net counts from 0
            row["epoch"] = int(found[1] or found[2]) + 1
        elif found := DICE.match(text):
            _dice(row, found[1], line, path, omitted)
        elif text.startswith(("Training done", "Validation complete")) or FINAL.match(text):
            done = True
            if found := FINAL.match(text):
                run.summary["final_score"] = float(found[1])
        elif "{'" in text:
            _plans(run, text)
        else:
            _value(run, row, text)
    return epochs, done


def _value(run: Run, row: dict[str, Any], text: str) -> None:
    for key, pattern in VALUES.items():
        if (found := pattern.match(text)) and row and math.isfinite(float(found[1])):
            row[key] = float(found[1])
    if found := FOLD.match(text):
        run.settings["fold"], run.sources["fold"] = found[1], "the log"
    elif found := SPLIT.match(text):
        for name, value in zip(("train_cases", "validation_cases"), found.groups(), strict=True):
            run.settings[name], run.sources[name] = int(value), "the log"
    elif text.startswith("Configuration name: "):
        run.settings["configuration"], run.sources["configuration"] = text.split(": ", 1)[1].strip(), "the log"
    elif text.startswith("Using device: "):
        run.environment["device"] = text.split(": ", 1)[1].strip()


def _dice(row: dict[str, Any], text: str, line: Line, path: Path, omitted: list[str]) -> None:
    """The score of an epoch: the mean over the labels that have one, as nnU-Net forms it."""
    numbers = [found[1] for found in re.finditer(rf"(?:np\.float\d+\()?{NUMBER}\)?", text)]
    known = [float(each) for each in numbers if math.isfinite(float(each))]
    row["score_by_label"] = [float(each) if math.isfinite(float(each)) else None for each in numbers]
    if known:
        row["score"] = math.fsum(known) / len(known)
    else:
        omitted.append(f"{path}, line {line.number}: no label has a Dice ({text.strip() or 'empty'})")


def _plans(run: Run, text: str) -> None:
    """Settings of the configuration or the plans, which the log prints as Python's dict."""
    try:
        found = ast.literal_eval(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return
    if not isinstance(found, Mapping):
        return
    for key, name in KEPT.items():
        if key in found:
            run.settings[name], run.sources[name] = found[key], "the plans in the log"


def _sum_up(run: Run) -> None:
    scored = [(row["score"], row["epoch"]) for row in run.epochs if "score" in row]
    best, epoch = max(scored, default=(None, None))
    final = run.summary.get("final_score")
    run.metric_title = "pseudo Dice" if final is None else "mean validation Dice"
    passed = 0.0
    for row in run.epochs:
        passed += row.get("train_seconds", 0.0)
        row["time_to_train"] = passed
    run.summary |= {
        "best_score": best if final is None else final,
        "best_pseudo_dice": best,
        "best_epoch": epoch,
        "epochs": len(run.epochs),
        "seconds": {"train": passed},  # with the validation of each epoch, which nnU-Net does not time by itself
        "clock": "local",
    }
    dataset = str(run.settings.get("dataset") or "")
    run.task = dataset or next((part for part in run.path.parts if part.startswith(("Dataset", "Task"))), "")


def _seconds(text: str) -> float | None:
    """A stamp as seconds, as if it were in UTC: the log does not say its zone."""
    try:
        return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.timezone.utc).timestamp()
    except ValueError:
        return None
