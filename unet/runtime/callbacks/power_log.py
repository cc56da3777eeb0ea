"""The callback of --power: joules of each epoch in its row of the history, and the readings in power.csv."""

from __future__ import annotations

from typing import Any

from unet.config.run_files import POWER_CSV
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.power_use import PowerUse
from unet.runtime.trainer import Trainer

ENDED_BY_ERROR = ("failed", "interrupted")


class PowerLog:
    """Counts what a run uses (`Progress.energy`), on every rank. Comes before the callback that saves the state. It
    reads nothing itself: the sampler does that in the background."""

    def __init__(self, folder: RunFolder, use: PowerUse) -> None:
        self.folder, self.use = folder, use
        self.training, self.images = False, 0

    def on_train_start(self, run: Trainer) -> None:
        if self.use.sampler and run.group.is_main:
            self.use.sampler.log_to(self.folder.place(POWER_CSV))
        self.use.forget()
        self.images = run.progress.images
        self.tell()

    def on_epoch_start(self, run: Trainer) -> None:
        self.use.count(self.training)
        self.training = True

    def on_epoch_trained(self, run: Trainer) -> None:
        self.use.count(self.training)
        self.training = False

    def on_log(self, run: Trainer, **rest: Any) -> None:
        self.tell()

    def on_epoch_close(self, run: Trainer, row: dict[str, Any]) -> None:
        """The joules of an epoch: training, evaluation, and the saving after the epoch before."""
        self.collect(run)
        energy, before = run.progress.energy, run.progress.history[:-1]
        if energy.get("readings"):
            names = {"joules": "joules", "train_joules": "train_joules"}
            names |= {} if energy.get("without_idle") else {"joules_above_idle": "above_idle"}
            for name, counted in names.items():
                row[name] = energy.get(counted, 0.0) - sum(earlier.get(name, 0.0) for earlier in before)

    def on_save(self, run: Trainer) -> None:
        if run.progress.batch:  # within an epoch; at its end it is done
            self.collect(run)
        if self.use.sampler:
            run.progress.power_lines = self.use.sampler.lines

    def on_train_end(self, run: Trainer, reason: str) -> None:
        if reason not in ENDED_BY_ERROR:  # all ranks are here
            self.collect(run)
        if self.use.sampler:
            self.use.sampler.stop()
        self.tell()

    def collect(self, run: Trainer) -> None:
        """Add what was used since the last time, and the samples that were trained in it."""
        self.use.count(self.training)
        energy, found = run.progress.energy, self.use.collect(run.group)
        for name, value in found.items():
            energy[name] = energy.get(name, 0.0) + value
        if found:
            energy["samples"] = energy.get("samples", 0.0) + run.progress.images - self.images
        self.images = run.progress.images

    def tell(self) -> None:
        for words in self.use.remarks():
            self.folder.say(words)
