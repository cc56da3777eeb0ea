"""Run logs of the Argonne benchmark, `<run-name>.txt`: those of its own programs and ours.

A file holds one block for each start under its name: `Command:`, `Begin CSV`, a heading, rows, `End CSV`. Several
processes write into one file, each its own `Command`, `Begin` and heading, with a column `card`; the first of them
alone writes the totals and the end, and others may still write rows after it. The best score stands before or after the
end.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from pathlib import Path
from typing import Any

from unet.config.resolve import default_task
from unet.report.logs.command import settings_of, words_of
from unet.report.logs.lines import Line, lines_of, number_of, passed_over
from unet.report.run import LOWER_IS_BETTER, Run

KIND = "Argonne log"
HEADING = re.compile(r"type,(card,)?epoch,time,loss,dsc\s*$")
BEST = re.compile(r"Best validation mean (.+?):\s*(\S+)\s*$")
ONCE = ("loaders_init", "total_train_time", "total_eval_time")
ROWS = ("train", "eval", *ONCE)
MARKS = ("Begin CSV", "End CSV")


@dataclasses.dataclass
class Row:
    """A row of one process; `card` is empty in a log without that column."""

    kind: str
    card: str
    epoch: int | None
    seconds: float
    loss: float | None
    score: float | None


@dataclasses.dataclass
class Block:
    """What one start wrote, with all of its processes."""

    line: int
    words: list[str]
    begins: int = 0
    headings: int = 0
    ended: bool = False
    best: tuple[str, float] | None = None
    rows: list[Row] = dataclasses.field(default_factory=list)

    def has(self, *kinds: str) -> bool:
        return any(row.kind in kinds for row in self.rows)

    def joined_by(self, words: list[str]) -> bool:
        """Whether another `Begin CSV` is that of one more process of this start. The processes meet before they read
        the data, so none of them begins after a row of an epoch."""
        if self.ended or "--distributed" not in words or words != self.words or self.has("train", "eval"):
            return False
        world, _ = settings_of(words)
        return self.begins < int(world.get("world_size") or 1) or not self.rows


def looks_like(head: str) -> bool:
    return "Begin CSV" in head or any(HEADING.match(line) for line in head.splitlines())


def read(path: Path) -> tuple[list[Run], list[str]]:
    """(runs, sentences on what could not be read): a run for each block with an epoch."""
    blocks, omitted = blocks_of(path)
    runs = []
    for block in blocks:
        if block.has("train", "eval"):
            runs.append(run_of(path, block))
        else:
            omitted.append(f"{path}, line {block.line}: a start that ended before its first epoch")
    for number, run in enumerate(runs, 1):
        run.name = path.stem if len(runs) == 1 else f"{path.stem} #{number}"
    return runs, omitted


def blocks_of(path: Path) -> tuple[list[Block], list[str]]:
    blocks: list[Block] = []
    waiting: list[list[str]] = []  # commands whose Begin has not come
    omitted: list[str] = []
    strange: list[int] = []
    for line in lines_of(path):
        text = line.text.strip()
        block = blocks[-1] if blocks else None
        if text.startswith("Command:"):
            waiting.append(words_of(text.removeprefix("Command:").strip()))
        elif text == "Begin CSV":
            words = waiting.pop(0) if waiting else []
            if block is None or not block.joined_by(words):
                block = Block(line.number, words)
                blocks.append(block)
            block.begins += 1
        elif HEADING.match(text):
            if block is None or (block.rows and block.headings >= block.begins):  # a table cut out of a log
                block = Block(line.number, [])
                blocks.append(block)
            block.headings += 1
        elif text == "End CSV" and block:
            block.ended = True
        elif (found := BEST.match(text)) and block and line.whole:
            block.best = found[1], float(found[2]) if _is_number(found[2]) else math.nan
        elif text.partition(",")[0] in ROWS:
            if block is None:
                block = Block(line.number, [])
                blocks.append(block)
            try:
                block.rows.append(row_of(line))
            except ValueError as error:
                omitted.append(f"{path}, line {line.number}: {error}")
        elif text:
            strange.append(line.number)
    return blocks, [*omitted, *passed_over(path, strange, "not of this log, passed over")]


def row_of(line: Line) -> Row:
    """A row, with or without the column `card`. Raises ValueError in words."""
    kind, *cells = [cell.strip() for cell in line.text.split(",")]
    if not line.whole:
        raise ValueError("the file ends within this row")
    try:
        if kind in ONCE:  # of its cells the last that is filled is the time
            filled = [float(cell) for cell in cells if cell]
            if not 1 <= len(filled) <= 3 or len(cells) > 6 or not math.isfinite(filled[-1]):
                raise ValueError(f"{len(filled)} values in {len(cells) + 1} cells")
            return Row(kind, "", None, filled[-1], None, None)
        if kind == "train":  # has no score, and a comma or two in its place
            cells = [*",".join(cells).rstrip(",").split(","), ""]
        if len(cells) not in (4, 5):
            raise ValueError(f"{len(cells) + 1} cells instead of 5, or 6 with a card")
        card = cells[0] if len(cells) == 5 else ""
        epoch, seconds, loss, score = map(number_of, cells[-4:])
    except ValueError as error:
        raise ValueError(f"no row of a log ({error})") from error
    if epoch is None or epoch % 1 or seconds is None or not math.isfinite(seconds):
        raise ValueError("a row without its epoch or its seconds")
    return Row(kind, card, int(epoch), seconds, loss, score)


def run_of(path: Path, block: Block) -> Run:
    title = block.best[0] if block.best else "DSC"
    run = Run(path.stem, path, KIND, metric=title.lower().replace(" ", "_"), metric_title=title)
    run.goal = "min" if run.metric.endswith(LOWER_IS_BETTER) else "max"
    run.settings, run.sources = settings_of(block.words)
    run.command = shlex.join(block.words)
    run.task = str(run.settings.get("task") or default_task())
    device = run.settings.get("device", "auto")
    run.environment = {"device": device} if device != "auto" else {}
    run.status = "done" if block.ended else "interrupted"
    run.why = "" if block.ended else "the log has no End CSV: the run was killed, or still runs"
    cards = len({row.card for row in block.rows if row.kind == "train"}) or 1
    twice = max(sum(row.kind == "train" and row.epoch == epoch for row in block.rows) for epoch in _epochs(block))
    run.epochs = [epoch_of(block, epoch) for epoch in _epochs(block)]
    passed = 0.0
    for row in run.epochs:
        passed += row.get("train_seconds", 0.0) + row.get("evaluate_seconds", 0.0)
        row["time_to_train"] = passed
    unknown = sum("score" not in row and "evaluate_seconds" in row for row in run.epochs)
    if unknown:
        run.omitted.append(f"{path}: {unknown} of {len(run.epochs)} evaluations have no score (nan)")
    if twice > cards:
        run.omitted.append(f"{path}: {twice} processes wrote the same epochs, and the log does not tell them apart")
    run.summary = summary_of(block, run, max(cards, twice))
    return run


def _epochs(block: Block) -> list[int]:
    return sorted({row.epoch for row in block.rows if row.kind in ("train", "eval") and row.epoch is not None})


def epoch_of(block: Block, epoch: int) -> dict[str, Any]:
    """An epoch of all processes: the slowest one's seconds, the means of their losses and of the scores that are
    known."""
    found: dict[str, Any] = {"event": "epoch", "epoch": epoch}
    train = [row for row in block.rows if row.kind == "train" and row.epoch == epoch]
    score = [row for row in block.rows if row.kind == "eval" and row.epoch == epoch]
    if train:
        found["train_seconds"] = max(row.seconds for row in train)
    if score:
        found["evaluate_seconds"] = max(row.seconds for row in score)
    parts = {"loss": [row.loss for row in train], "eval_loss": [row.loss for row in score]}
    for key, values in {**parts, "score": [row.score for row in score]}.items():
        known = [value for value in values if value is not None and math.isfinite(value)]
        if known:
            found[key] = math.fsum(known) / len(known)
    if len(train) > 1:
        found["train_seconds_by_card"] = {row.card or str(place): row.seconds for place, row in enumerate(train)}
    return found


def summary_of(block: Block, run: Run, ranks: int) -> dict[str, Any]:
    once = {row.kind: row.seconds for row in block.rows if row.kind in ONCE}
    better = max if run.goal == "max" else min
    scored = [(row["score"], row["epoch"]) for row in run.epochs if "score" in row]
    best, epoch = better(scored, key=lambda item: item[0]) if scored else (None, None)
    if best is None and block.best and block.best[1] > 0:  # the program begins at 0, and keeps it where all are nan
        best = block.best[1]
    sums = {key: math.fsum(row.get(f"{key}_seconds", 0.0) for row in run.epochs) for key in ("train", "evaluate")}
    return {
        "best_score": best,
        "best_epoch": epoch,
        "epochs": len(run.epochs),
        "ranks": ranks,
        "seconds": {
            "train": once.get("total_train_time", sums["train"]),
            "evaluate": once.get("total_eval_time", sums["evaluate"]),
            **({"loaders": once["loaders_init"]} if "loaders_init" in once else {}),
        },
    }


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
