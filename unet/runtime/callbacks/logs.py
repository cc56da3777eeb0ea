"""Callbacks that report a run: logs, the picture of the curves."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from unet import files, host
from unet.config.run_files import KERNELS_JSON, WARM_UP
from unet.runtime.callbacks import pictures
from unet.runtime.callbacks.time_left import WAITS, TimeLeft, format_seconds, gain
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.power_use import format_joules
from unet.runtime.progress import Progress
from unet.runtime.trainer import Trainer, stop_reason


class KernelsLog:
    """kernels.json: the algorithms that the device has chosen for convolutions, as soon as it has; and a line in words
    after the first step. Comes before the callback that saves the state: with a state are also those that other ranks
    have chosen, each for itself."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder, self.written, self.told = folder, 0, 0

    def on_step_end(self, run: Trainer, **rest: Any) -> None:
        self.write(run)

    def on_eval_end(self, run: Trainer, **rest: Any) -> None:
        self.write(run)

    def on_save(self, run: Trainer) -> None:
        """On all ranks."""
        choices = run.device.choices
        if choices is None or run.group.world == 1:
            return
        every = run.group.gather(choices.own() if len(choices.used) != self.told else None)
        self.told = len(choices.used)
        found = {str(rank): each for rank, each in enumerate(every) if rank and each}
        if run.group.is_main and found:
            choices.others |= found
            self.folder.write(KERNELS_JSON, choices.described())

    def write(self, run: Trainer) -> None:
        choices = run.device.choices
        if choices is None or not run.group.is_main or len(choices.used) == self.written:
            return
        if not self.written:
            self.folder.say(choices.summary())
        self.folder.write(KERNELS_JSON, choices.described())
        self.written = len(choices.used)


class MetricsLog:
    """metrics.jsonl (one JSON object per line) and run.log (text); the line of each epoch is also printed. The first
    interval after each start, also of a resumed run, is marked: its steps compile and fill caches."""

    def __init__(self, folder: RunFolder, left: TimeLeft | None = None) -> None:
        self.folder, self.left = folder, left or TimeLeft()
        self.before = {"train": 0.0, "wait": 0.0}
        self.started = False

    def on_epoch_start(self, run: Trainer) -> None:
        self.before = dict(run.progress.seconds)

    def write(self, run: Trainer, event: str, **values: Any) -> None:
        line = {
            "event": event,
            "epoch": run.progress.epoch,
            "step": run.progress.step,
            "time": round(time.time(), 3),
            **values,
        }
        self.folder.append("metrics.jsonl", json.dumps(files.jsonable(line), allow_nan=False))
        run.progress.lines += 1

    def on_log(self, run: Trainer, parts: Mapping[str, float], **values: float) -> None:
        warm_up = {} if self.started else {WARM_UP: True}
        self.started = True
        self.write(run, "step", **values, **parts, **warm_up)

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], records: list[dict[str, Any]], better: bool) -> None:
        metric = run.task.metric
        cases = {record["case"]: record[metric.key] for record in records if metric.key in record}
        self.write(run, "epoch", **{**row, "cases": cases})
        shown = run.task.terms or run.losses.parts
        names = {name: metric.name if name == metric.key else name.replace("_", " ") for name in shown}
        terms = "".join(f"  {names[name]} {row[name]:.4f}" for name in shown if name in row)
        words = f"epoch {row['epoch']:>3}/{run.epochs}  loss {row['loss']:.4f}{terms}  {row['train_seconds']:.1f} s"
        words += self.costs(run, row)
        if "score" in row:
            loss = f"loss {row['eval_loss']:.4f}  " if "eval_loss" in row else ""
            change = gain(run.progress.history, metric.sign) if better else None
            best = "" if not better else " (best)" if change is None else f" (best) {change:+.4f}"
            words += f"  |  validation {loss}{metric.name} {row['score']:.4f}{best}"
            words += f" after {row['time_to_train']:.0f} s"
        self.folder.say(words + self.times(run, row))

    def costs(self, run: Trainer, row: Mapping[str, Any]) -> str:
        """What an epoch waited for data, where that is much, and its joules, where they are measured."""
        train, wait = (run.progress.seconds[name] - self.before[name] for name in ("train", "wait"))
        waits = f", data wait {wait / train:.0%}" if train and wait / train > WAITS else ""
        return waits + (f", {format_joules(row['joules'])}" if "joules" in row else "")

    def times(self, run: Trainer, row: Mapping[str, Any]) -> str:
        """How long the run has taken, and will still take."""
        seconds = run.progress.seconds
        gone = format_seconds(seconds["train"] + seconds["evaluate"] + seconds["save"])
        left = None if stop_reason(run, row.get("score")) else self.left.of(run)
        return f"; {gone} so far" + (f", {left}" if left else "")


def worker_log(rank: int) -> str:
    """File name of the log of one rank."""
    return f"worker_{rank}.log"


class WorkerLog:
    """`worker_N.log`: progress and losses of one rank (--log-all-workers)."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self.path = folder / worker_log(rank)  # rank 0 has added it to the run's list of files

    def write(self, words: str) -> None:
        files.append_line(self.path, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}")

    def on_epoch_start(self, run: Trainer) -> None:
        self.write(f"epoch {run.progress.epoch} begins at batch {run.progress.batch} on {run.device.describe()}")

    def on_log(self, run: Trainer, images_per_second: float, wait_fraction: float, **rest: Any) -> None:
        own = ", ".join(f"{value:.4f}" for value in run.losses.own)
        self.write(
            f"step {run.progress.step}: own losses {own}; {images_per_second / run.group.world:.1f} samples/s, data"
            f" wait"
            f" {wait_fraction:.1%}, peak memory {host.format_bytes(run.device.memory())}"
        )

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], **rest: Any) -> None:
        self.write(f"epoch {row['epoch']} ends after {row['train_seconds']:.2f} s of training; step {row['step']}")

    def on_finish(self, run: Trainer) -> None:
        for line in run.device.report():
            self.write(line)


class ArgonneCsvLog:
    """`<run-name>.txt`: the CSV log of the Argonne benchmark, whose analysis scripts read it.

    Rewritten from the history at the start and at the end, so a resumed run has one complete log; in between each epoch
    appends its lines. The loss of an evaluation is empty if none was computed.
    """

    def __init__(self, folder: RunFolder, command: str) -> None:
        self.folder, self.name, self.command = folder, f"{folder.name}.txt", command
        self.init_seconds = 0.0

    def on_train_start(self, run: Trainer) -> None:
        self.folder.write(self.name, "\n".join(self.lines(run.progress.history)) + "\n")

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], **rest: Any) -> None:
        self.folder.append(self.name, "\n".join(self.of_epoch(row)))

    def on_finish(self, run: Trainer) -> None:
        text = [*self.lines(run.progress.history), *self.totals(run.progress, run.task.metric.name)]
        self.folder.write(self.name, "\n".join(text) + "\n")

    def lines(self, history: list[dict[str, Any]]) -> list[str]:
        head = [
            f"Command: {self.command}",
            "Begin CSV",
            "type,epoch,time,loss,dsc",
            f"loaders_init,,{self.init_seconds:.6f},,",
        ]
        return [*head, *(line for row in history for line in self.of_epoch(row))]

    def of_epoch(self, row: Mapping[str, Any]) -> list[str]:
        lines = [f"train,{row['epoch']},{row['train_seconds']:.6f},{row['loss']:.6f},"]
        if "score" in row:
            loss = f"{row['eval_loss']:.6f}" if "eval_loss" in row else ""
            lines.append(f"eval,{row['epoch']},{row['evaluate_seconds']:.6f},{loss}, {row['score']:.6f}")
        return lines

    def totals(self, progress: Progress, score: str) -> list[str]:
        epochs = len(progress.history)
        trained = sum(row["train_seconds"] for row in progress.history)
        evaluated = sum(row.get("evaluate_seconds", 0.0) for row in progress.history)
        best = [] if progress.best_score is None else [f"Best validation mean {score}: {progress.best_score:.6f}"]
        lines = [f"total_train_time,{epochs},{trained:.6f},,", f"total_eval_time,{epochs},{evaluated:.6f},,"]
        return [*lines, *best, "End CSV"]


class Curves:
    """progress.png, drawn at most every `every` seconds, and at the end."""

    def __init__(self, folder: RunFolder, every: float = 60.0) -> None:
        self.folder, self.every, self.drawn = folder, every, time.monotonic()

    def on_epoch_end(self, run: Trainer, **rest: Any) -> None:
        if time.monotonic() - self.drawn > self.every:
            self.on_finish(run)

    def on_finish(self, run: Trainer) -> None:
        self.drawn = time.monotonic()
        history, metric = run.progress.history, run.task.metric
        if history:
            pictures.progress(
                history, run.progress.best_epoch, metric.name, self.folder.name, self.folder.place("progress.png")
            )
        if history and run.task.curves:
            path = self.folder.place("terms.png")
            pictures.terms(history, run.task.curves, metric.key, self.folder.name, path)
