"""The progress bar of a run, on a terminal: a bar an epoch, with the time left for the whole run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from unet import host
from unet.runtime.callbacks.time_left import WAITS, TimeLeft, gain
from unet.runtime.power_use import format_joules
from unet.runtime.trainer import Trainer

SHORTEST, USUAL = 10, 80  # columns of the bar itself; of a terminal that does not tell
Words = tuple[str, ...]  # one thing to say, in forms that get shorter


class ProgressBar:
    """A bar of the steps of an epoch. What it says is ordered by weight, and shortened or left out where the
    terminal is narrow: time left, best score and its change, loss, waiting for data, joules, samples a second."""

    def __init__(self, left: TimeLeft) -> None:
        self.bar: Any = None
        self.left = left
        self.loss: Words = ()  # this and the next two are of the last log
        self.waits: Words = ()
        self.speed: Words = ()

    def on_epoch_start(self, run: Trainer) -> None:
        name = f"epoch {run.progress.epoch}/{run.epochs}"
        done = run.progress.batch // run.options.accumulate  # of a resumed epoch
        self.bar = host.progress(total=run.steps_per_epoch, name=name, unit="step", initial=done, form=host.BRIEF)
        self.show(run)

    def on_step_end(self, run: Trainer) -> None:
        self.bar.update(1)

    def on_log(self, run: Trainer, loss: float, images_per_second: float, wait_fraction: float, **rest: Any) -> None:
        self.loss = (f"loss {loss:.4f}",)
        self.waits = (f"data wait {wait_fraction:.0%}", f"wait {wait_fraction:.0%}") if wait_fraction > WAITS else ()
        self.speed = (f"{images_per_second:.3g} samples/s",)
        self.show(run)

    def on_save(self, run: Trainer) -> None:
        if run.stop.reason or run.progress.batch == 0:
            self.bar.close()

    def on_epoch_end(self, run: Trainer, **rest: Any) -> None:
        self.bar.close()

    def on_train_end(self, run: Trainer, reason: str) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, run: Trainer) -> None:
        """Put what fits behind the bar; it is drawn with the next step."""
        if self.bar.disable:
            return
        left = self.left.of(run)
        timed: Words = (str(left),) if left else ()
        words = [timed, best_words(run), self.loss, self.waits, joules_words(run), self.speed]
        total = str(run.steps_per_epoch)
        room = columns() - len(f"{self.bar.desc}: 100%|| {total}/{total}") - SHORTEST - 1
        self.bar.set_postfix_str(", ".join(fitting(words, room)), refresh=False)


def fitting(things: Sequence[Words], room: int) -> list[str]:
    """What fits of these into so many columns, with a comma and a blank before each: the first form that does."""
    shown: list[str] = []
    for forms in things:
        word = next((form for form in forms if len(form) + 2 <= room), None)
        if word is not None:
            shown.append(word)
            room -= len(word) + 2
    return shown


def best_words(run: Trainer) -> Words:
    """The best score and how the last evaluation changed it."""
    metric, best = run.task.metric, run.progress.best_score
    if best is None:
        return ()
    change = gain(run.progress.history, metric.sign)
    forms = (f"best {metric.name} {best:.4f}", f"best {best:.4f}")
    return forms if change is None else (f"{forms[0]} ({change:+.4f})", f"{forms[1]} ({change:+.4f})", *forms)


def joules_words(run: Trainer) -> Words:
    """What the run has used, where it is measured."""
    energy = run.progress.energy
    return (format_joules(energy["joules"]),) if energy.get("readings") else ()


def columns() -> int:
    """The width of the terminal, now: a user may change it."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or USUAL
    return USUAL
