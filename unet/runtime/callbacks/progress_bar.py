"""The progress bar of a run, on a terminal: a bar an epoch, with the time left for the whole run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from unet import host
from unet.runtime.callbacks.time_left import WAITS, TimeLeft, gain
from unet.runtime.power_use import format_joules
from unet.runtime.trainer import Trainer

SHORTEST = 10  # columns of the bar itself


class ProgressBar:
    """A bar of the steps of an epoch. What it says is ordered by weight, and the last is left out where the terminal is
    narrow: time left, loss, best score and its change, waiting for data, joules, samples a second."""

    def __init__(self, left: TimeLeft) -> None:
        self.bar: Any = None
        self.left = left

    def on_epoch_start(self, run: Trainer) -> None:
        name = f"epoch {run.progress.epoch}/{run.epochs}"
        done = run.progress.batch // run.options.accumulate  # of a resumed epoch
        self.bar = host.progress(total=run.steps_per_epoch, name=name, unit="step", initial=done, form=host.BRIEF)
        self.show(run, [])

    def on_step_end(self, run: Trainer) -> None:
        self.bar.update(1)

    def on_log(self, run: Trainer, loss: float, images_per_second: float, wait_fraction: float, **rest: Any) -> None:
        waits = [f"data wait {wait_fraction:.0%}"] if wait_fraction > WAITS else []
        self.show(run, [f"loss {loss:.4f}"], waits, [f"{images_per_second:.3g} samples/s"])

    def on_save(self, run: Trainer) -> None:
        if run.stop.reason or run.progress.batch == 0:
            self.bar.close()

    def on_epoch_end(self, run: Trainer, **rest: Any) -> None:
        self.bar.close()

    def on_train_end(self, run: Trainer, reason: str) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, run: Trainer, loss: list[str], waits: Sequence[str] = (), speed: Sequence[str] = ()) -> None:
        """Put what fits behind the bar; it is drawn with the next step."""
        if self.bar.disable:
            return
        left = self.left.of(run)
        words = [*([str(left)] if left else []), *loss, *best_words(run), *waits, *joules_words(run), *speed]
        total = str(run.steps_per_epoch)
        room = columns(self.bar) - len(f"{self.bar.desc}: 100%|| {total}/{total}") - SHORTEST - 1
        self.bar.set_postfix_str(", ".join(fitting(words, room)), refresh=False)


def fitting(words: Sequence[str], room: int) -> list[str]:
    """The first words that fit into so many columns, with a comma and a blank before each."""
    shown: list[str] = []
    for word in words:
        room -= len(word) + 2
        if room < 0:
            break
        shown.append(word)
    return shown


def best_words(run: Trainer) -> list[str]:
    """The best score and how the last evaluation changed it."""
    metric, best = run.task.metric, run.progress.best_score
    if best is None:
        return []
    change = gain(run.progress.history, metric.sign)
    return [f"best {metric.name} {best:.4f}" + ("" if change is None else f" ({change:+.4f})")]


def joules_words(run: Trainer) -> list[str]:
    """What the run has used, where it is measured."""
    energy = run.progress.energy
    return [format_joules(energy["joules"])] if energy.get("readings") else []


def columns(bar: Any) -> int:
    """The width of the terminal."""
    width = bar.dynamic_ncols(sys.stderr) if bar.dynamic_ncols else bar.ncols
    return int(width or 80)
