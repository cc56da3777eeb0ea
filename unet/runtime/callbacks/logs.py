"""What listens to the loop: progress bar, logs, checkpoints, the picture of the curves. Methods are named like the
loop's events.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet import files, host
from unet.errors import CheckpointError, UnetError
from unet.runtime.callbacks import pictures
from unet.runtime.checkpoints import checkpoint
from unet.runtime.checkpoints.kept import Kept
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.progress import Progress
from unet.runtime.seeding import rng_state, set_rng_state
from unet.runtime.trainer import Run, target_reached


class Bar:
    """A bar of the epoch's steps at a terminal."""

    def __init__(self) -> None:
        self.bar: Any = None

    def epoch_begins(self, run: Run) -> None:
        name = f"epoch {run.progress.epoch}/{run.epochs}"
        done = run.progress.batch // run.config.train.accumulate  # of an epoch that goes on
        self.bar = host.progress(total=run.steps_per_epoch, name=name, unit="step", initial=done)

    def stepped(self, run: Run) -> None:
        self.bar.update(1)

    def logged(self, run: Run, loss: float, images_per_second: float, wait_fraction: float, **rest: Any) -> None:
        self.bar.set_postfix_str(
            f"loss {loss:.4f}, {images_per_second:.0f} img/s, data wait {wait_fraction:.1%}", refresh=False
        )

    def save(self, run: Run) -> None:
        if run.stop.reason or run.progress.batch == 0:
            self.bar.close()

    def epoch_ends(self, run: Run, **rest: Any) -> None:
        self.bar.close()


class Log:
    """metrics.jsonl (a JSON object a line) and run.log (words); the line of each epoch is also shown."""

    def __init__(self, folder: RunFolder, score: str) -> None:
        self.folder, self.score = folder, score

    def write(self, run: Run, event: str, **values: Any) -> None:
        line = {
            "event": event,
            "epoch": run.progress.epoch,
            "step": run.progress.step,
            "time": round(time.time(), 3),
            **values,
        }
        self.folder.append("metrics.jsonl", json.dumps(files.jsonable(line), allow_nan=False))
        run.progress.lines += 1

    def logged(self, run: Run, parts: Mapping[str, float], **values: float) -> None:
        self.write(run, "step", **values, **parts)

    def epoch_ends(self, run: Run, row: Mapping[str, Any], records: list[dict[str, Any]], better: bool) -> None:
        self.write(
            run,
            "epoch",
            **{**row, "cases": {record["case"]: record[self.score] for record in records if self.score in record}},
        )
        terms = "".join(f"  {name.replace('_', ' ')} {row[name]:.4f}" for name in run.losses.parts if name in row)
        words = f"epoch {row['epoch']:>3}/{run.epochs}  loss {row['loss']:.4f}{terms}  {row['train_seconds']:.1f} s"
        if "score" in row:
            loss = f"loss {row['eval_loss']:.4f}  " if "eval_loss" in row else ""
            name = self.score.replace("_", " ").upper()
            words += f"  |  validation {loss}{name} {row['score']:.4f}" + (" (best)" if better else "")
            words += f" after {row['time_to_train']:.0f} s"
        self.folder.say(words)


def worker_log(rank: int) -> str:
    """The name of one rank's log."""
    return f"worker_{rank}.log"


class WorkerLog:
    """`worker_N.log`: what one rank did, its own numbers (--log-all-workers)."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self.path = folder / worker_log(rank)  # rank 0 has listed it as the run's

    def write(self, words: str) -> None:
        files.append_line(self.path, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}")

    def epoch_begins(self, run: Run) -> None:
        self.write(f"epoch {run.progress.epoch} begins at batch {run.progress.batch} on {run.device.describe()}")

    def logged(self, run: Run, images_per_second: float, wait_fraction: float, **rest: Any) -> None:
        own = ", ".join(f"{value:.4f}" for value in run.losses.own)
        self.write(
            f"step {run.progress.step}: own losses {own}; {images_per_second / run.group.world:.1f} images/s, data wait"
            f" {wait_fraction:.1%}, peak memory {host.size(run.device.memory())}"
        )

    def epoch_ends(self, run: Run, row: Mapping[str, Any], **rest: Any) -> None:
        self.write(f"epoch {row['epoch']} ends after {row['train_seconds']:.2f} s of training; step {row['step']}")

    def finish(self, run: Run) -> None:
        for line in run.device.report():
            self.write(line)


class SeedLog:
    """`<run-name>.txt`: the CSV log of the Argonne benchmark, whose analysis scripts read it.

    Written whole from the history at the beginning and at the end, so a run that was resumed has one log; in between it
    grows by an epoch's lines. The loss of an evaluation is empty where none was computed.
    """

    def __init__(self, folder: RunFolder, command: str) -> None:
        self.folder, self.name, self.command = folder, f"{folder.name}.txt", command
        self.init_seconds = 0.0

    def begins(self, run: Run) -> None:
        self.folder.write(self.name, "\n".join(self.lines(run.progress.history)) + "\n")

    def epoch_ends(self, run: Run, row: Mapping[str, Any], **rest: Any) -> None:
        self.folder.append(self.name, "\n".join(self.of_epoch(row)))

    def finish(self, run: Run) -> None:
        text = [*self.lines(run.progress.history), *self.totals(run.progress)]
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

    def totals(self, progress: Progress) -> list[str]:
        epochs = len(progress.history)
        trained = sum(row["train_seconds"] for row in progress.history)
        evaluated = sum(row.get("evaluate_seconds", 0.0) for row in progress.history)
        best = [] if progress.best_score is None else [f"Best validation mean DSC: {progress.best_score:.6f}"]
        lines = [f"total_train_time,{epochs},{trained:.6f},,", f"total_eval_time,{epochs},{evaluated:.6f},,"]
        return [*lines, *best, "End CSV"]


class Checkpoints:
    """Best weights and the resumable state, each written whole, and of both the ones before. A state with a non-finite
    loss never replaces a good one.

    The state is written before the best weights that belong to it: those can be made from it, if the run ends between.
    """

    def __init__(self, kept: Kept, facts: Mapping[str, Any]) -> None:
        self.kept, self.facts = kept, dict(facts)
        self.due: Mapping[str, Any] | None = None

    def epoch_ends(self, run: Run, row: Mapping[str, Any], records: Any, better: bool) -> None:
        self.due = row if better and not run.losses.bad else None

    def keep(self, run: Run, row: Mapping[str, Any]) -> None:
        """Write the weights as they are now."""
        about = {name: row.get(name) for name in ("epoch", "step", "score")}
        before = self.kept.weights_before
        checkpoint.save_weights(self.kept.weights, {**self.facts, **about}, run.model.state_dict(), before)

    def save(self, run: Run) -> None:
        if run.losses.bad:
            return
        start = time.perf_counter()
        state = run.model.state_dict()
        require_finite(state, run.progress.step)
        content = {
            "model": state,
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "rng": rng_state(run.device),
            "progress": dict(vars(run.progress)),  # no copy: a long history would make saving slow
        }
        checkpoint.save_state(
            self.kept.state, {**self.facts, "ranks": run.group.world}, content, self.kept.state_before
        )
        if self.due is not None:
            self.keep(run, self.due)
            self.due = None
        run.progress.seconds["save"] += time.perf_counter() - start


def require_finite(state: Mapping[str, Tensor], step: int) -> None:
    """Raise UnetError where a weight is not finite: gradients can be so while the loss still is not. One read."""
    sums = torch.stack([value.float().sum() for value in state.values() if value.is_floating_point()])
    if not bool(torch.isfinite(sums).all()):
        raise UnetError(
            f"Weights are not finite after step {step}; they were not saved.",
            "The last good state is kept: type the command again with --resume and a lower --lr, or with --clip 1.",
        )


def restore(run: Run, content: Mapping[str, Any], state: Path) -> None:
    """Put a run where a saved state was (its `content`, read from `state`). Raises CheckpointError where it does not
    fit."""
    checkpoint.fit(run.model, content["model"], state)
    try:
        run.optimizer.load_state_dict(content["optimizer"])
        follow_layout(run.optimizer)
        if content["scaler"]:
            run.scaler.load_state_dict(content["scaler"])
        set_rng_state(content["rng"], run.device)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = str(error).splitlines()[0][:100] if str(error) else ""
        raise CheckpointError(
            f"{state.absolute()}: its optimiser or generators do not fit this run ({type(error).__name__}: {said}).",
            "Restore the file that the run saved, or start a new run from its weights: --load FILE --run-name NEW.",
        ) from error
    known = {field.name for field in dataclasses.fields(run.progress)}
    for name, value in content["progress"].items():
        if name in known:
            setattr(run.progress, name, value)
    run.ranks_before = ranks = content.get("ranks", 1)
    if ranks != run.group.world:  # the same images, counted in batches of as many ranks as there are now
        group = run.config.train.accumulate
        done = run.progress.batch * ranks // run.group.world // group * group
        run.progress.batch = min(done, run.steps_per_epoch * group)
        count = max(1, round(run.progress.loss_count * ranks / run.group.world))
        run.progress.loss_sum *= count / max(1, run.progress.loss_count)
        run.progress.parts = {
            name: value * count / max(1, run.progress.loss_count) for name, value in run.progress.parts.items()
        }
        run.progress.loss_count = count if run.progress.loss_count else 0
    if run.task.by_steps:  # its epochs may have another length now
        if ranks != run.group.world:
            run.progress.step = run.progress.step * ranks // run.group.world
        done, run.progress.batch = divmod(run.progress.step * run.config.train.accumulate, len(run.loader))
        run.progress.epoch = done + 1
    run.progress.reached = target_reached(run)  # the target may have been typed anew


def follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser's tensors the memory order of their weights, which a file does not keep."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                values[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)


class Curves:
    """progress.png, drawn at most every `every` seconds, and at the end."""

    def __init__(self, folder: RunFolder, score: str, every: float = 60.0) -> None:
        self.folder, self.score, self.every, self.drawn = folder, score, every, time.monotonic()

    def epoch_ends(self, run: Run, **rest: Any) -> None:
        if time.monotonic() - self.drawn > self.every:
            self.finish(run)

    def finish(self, run: Run) -> None:
        self.drawn = time.monotonic()
        if run.progress.history:
            pictures.progress(run.progress.history, self.score, self.folder.name, self.folder.place("progress.png"))
