"""The callback that saves the best weights and the resumable state, and `restore`, which puts a run back where a state
was saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet.errors import CheckpointError, UnetError
from unet.runtime.checkpoints import checkpoint
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.runtime.seeding import rng_state, set_rng_state
from unet.runtime.trainer import Trainer, target_reached


class Checkpoints:
    """Best weights and the resumable state, each written whole, and of both the ones before. A state with a non-finite
    loss never replaces a good one.

    The state is written before the best weights that belong to it: those can be made from it, if the run ends between.
    """

    def __init__(self, paths: CheckpointPaths, facts: Mapping[str, Any]) -> None:
        self.paths, self.facts = paths, dict(facts)
        self.due: Mapping[str, Any] | None = None

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], records: Any, better: bool) -> None:
        self.due = row if better and not run.losses.bad else None

    def save_best(self, run: Trainer, row: Mapping[str, Any]) -> None:
        """Write the weights as they are now."""
        about = {name: row.get(name) for name in ("epoch", "step", "score")}
        before = self.paths.weights_before
        checkpoint.save_weights(self.paths.weights, {**self.facts, **about}, run.model.state_dict(), before)

    def on_save(self, run: Trainer) -> None:
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
            "progress": run.progress.to_state(),
        }
        checkpoint.save_state(
            self.paths.state, {**self.facts, "ranks": run.group.world}, content, self.paths.state_before
        )
        if self.due is not None:
            self.save_best(run, self.due)
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


def restore(run: Trainer, content: Mapping[str, Any], state: Path) -> None:
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
    run.progress.load_state(content["progress"])
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
