"""How long a run will still take, from what its epochs took so far; and what its scores do."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unet.runtime.trainer import Trainer

WAITS = 0.1  # share of waiting for data that is worth a word
RECENT = 5  # epochs and evaluations of which the mean is taken


class Left(NamedTuple):
    """Seconds to the end of a run. `most`: it may end earlier (a target, --patience); `least`: it takes longer, as no
    evaluation has been timed yet; `limited`: --max-time ends it."""

    seconds: float
    most: bool = False
    least: bool = False
    limited: bool = False

    def __str__(self) -> str:
        sign = "over " if self.least else "at most " if self.most and not self.limited else ""
        return f"{sign}{format_seconds(self.seconds)} left" + (" (--max-time)" if self.limited else "")


class TimeLeft:
    """The time that a run still takes: steps at the measured rate, evaluations that are due, and what else an epoch
    took (saving, pictures, logs)."""

    def __init__(self) -> None:
        self.epoch_began: float | None = None
        self.whole = False  # the epoch was trained from its start
        self.others: list[float] = []  # seconds of an epoch besides training and evaluation

    def on_epoch_start(self, run: Trainer) -> None:
        now, history = time.monotonic(), run.progress.history
        if self.epoch_began is not None and self.whole and history:
            row = history[-1]
            known = row["train_seconds"] + row.get("evaluate_seconds", 0.0)
            self.others = [*self.others[1 - RECENT :], max(0.0, now - self.epoch_began - known)]
        self.epoch_began, self.whole = now, run.progress.batch == 0

    def of(self, run: Trainer) -> Left | None:
        """The time left from the present step on; None before anything was timed."""
        progress, history = run.progress, run.progress.history
        rate = progress.rate()
        if not rate:
            return None
        epochs = max(0, run.epochs - progress.epoch + 1)
        steps = max(0, epochs * run.steps_per_epoch - progress.batch // run.options.accumulate)
        if run.options.max_steps is not None:
            steps = min(steps, max(0, run.options.max_steps - progress.step))
        others = self.others or [progress.seconds["save"] / len(history)] if history else []
        seconds = steps * run.samples_per_step / rate + epochs * mean(others)
        scored = [row["evaluate_seconds"] for row in history if "evaluate_seconds" in row][-RECENT:]
        due = evaluations_left(run)
        seconds += due * mean(scored)
        limit = run.stop.deadline - time.monotonic()
        if limit < seconds:
            return Left(max(0.0, limit), limited=True)
        early = due > 0 and (run.options.target is not None or run.options.patience is not None)
        return Left(seconds, most=early, least=bool(due and not scored))


def evaluations_left(run: Trainer) -> int:
    """Evaluations that are still due, with that of all metrics after the last epoch."""
    if run.evaluate is None:
        return 0
    first, every = run.schedule
    now, last = run.progress.epoch, run.epochs
    if now > last:
        return int(run.saving.checkpoints)

    def until(epoch: int) -> int:
        return 0 if not every or epoch < first else (epoch - first) // every + 1

    regular = until(last) - until(now - 1)
    on_schedule = bool(every) and last >= first and (last - first) % every == 0
    return regular + (not on_schedule) + int(run.saving.checkpoints)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def gain(history: Sequence[Mapping[str, Any]], sign: int) -> float | None:
    """How much the best score so far changed with the last evaluation; None with fewer than two."""
    scores = [row["score"] for row in history if row.get("score") is not None]
    if len(scores) < 2:
        return None
    best = max if sign > 0 else min
    change: float = best(scores) - best(scores[:-1])
    return change


def format_seconds(seconds: float) -> str:
    """A duration as text: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
