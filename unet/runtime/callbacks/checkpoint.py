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
from unet.runtime.checkpoints import checkpoint, history
from unet.runtime.checkpoints.checkpoint_paths import KEPT, CheckpointPaths, metadata_of, set_aside
from unet.runtime.progress import is_kept
from unet.runtime.seeding import rng_state, set_rng_state
from unet.runtime.trainer import Trainer, target_reached

SET_ANEW = ("weight_decay", "momentum", "nesterov")  # of a group of weights: settings that a resumed run may change


class Checkpoints:
    """Saves the best weights and the resumable state atomically, and keeps the previous file of each. Weights that
    are not finite never replace good ones: they are an error.

    The state is written before the best weights of the same epoch: if the run is killed in between, they can be
    restored from it. With --keep-every the weights of every N-th epoch stay beside them.
    """

    def __init__(self, paths: CheckpointPaths, facts: Mapping[str, Any]) -> None:
        self.paths, self.facts = paths, dict(facts)
        self.due: Mapping[str, Any] | None = None
        self.kept: Mapping[str, Any] | None = None
        self.packer = history.Packer()

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], records: Any, better: bool) -> None:
        self.due = row if better else None
        self.kept = row if is_kept(run.saving.keep_every, row) else None

    def save_best(self, run: Trainer, row: Mapping[str, Any]) -> None:
        """Save the current weights as the best."""
        before = self.paths.weights_before
        checkpoint.save_weights(self.paths.weights, self.facts | about(row), run.best_model.state_dict(), before)

    def keep(self, run: Trainer, row: Mapping[str, Any]) -> None:
        """Save the current weights as those of their epoch. Another program's file of that name is set aside."""
        path = self.paths.of_epoch(row["epoch"])
        if path.exists() and KEPT not in metadata_of(path):
            set_aside(path, "replaced")
        facts = {**self.facts, **about(row), KEPT: row["epoch"]}
        checkpoint.save_weights(path, facts, run.best_model.state_dict())

    def on_save(self, run: Trainer) -> None:
        start = time.perf_counter()
        state = run.model.state_dict()
        require_finite(run)
        content = {
            "model": state,
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict(),
            "rng": rng_state(run.device),
            "progress": {**run.progress.to_state(), "history": self.packer.pack(run.progress.history)},
        }
        if run.averaged is not None:
            content["ema"] = {"model": run.averaged.module.state_dict(), "count": run.averaged.n_averaged}
        checkpoint.save_state(
            self.paths.state, {**self.facts, "ranks": run.group.world}, content, self.paths.state_before
        )
        if self.due is not None:
            self.save_best(run, self.due)
            self.due = None
        if self.kept is not None:
            self.keep(run, self.kept)
            self.kept = None
        run.progress.seconds["save"] += time.perf_counter() - start


def about(row: Mapping[str, Any]) -> dict[str, Any]:
    """What weights say of the epoch that they are of."""
    return {name: row.get(name) for name in ("epoch", "step", "score")}


def require_finite(run: Trainer) -> None:
    """Raise UnetError if a weight, or one of the moving average, is not finite. One read. Weights can be NaN while the
    last loss was finite, and finite where a step with a loss of NaN was skipped."""
    models = [run.model] if run.averaged is None else [run.model, run.averaged.module]
    weights = [value for model in models for value in model.state_dict().values() if value.is_floating_point()]
    sums = torch.stack([value.float().sum() for value in weights])
    if not bool(torch.isfinite(sums).all()):
        first = [name for _, names in run.losses.bad[:1] for name in names[:8]]
        raise UnetError(
            f"Weights are not finite after step {run.progress.step}; they were not saved."
            + (f" The first batch without a finite loss: {', '.join(first)}." if first else ""),
            run.advice("a lower --lr or --clip 1"),
        )


def restore(run: Trainer, content: Mapping[str, Any], state: Path) -> None:
    """Restore a run from a saved state (its `content`, read from file `state`). Raises CheckpointError if it does not
    fit."""
    checkpoint.fit(run.model, content["model"], state)
    try:
        if run.averaged is not None:
            run.averaged.module.load_state_dict(content["ema"]["model"])
            run.averaged.n_averaged.copy_(content["ema"]["count"])
        load_optimizer(run.optimizer, content["optimizer"])
        follow_layout(run.optimizer)
        if content["scaler"]:
            run.scaler.load_state_dict(content["scaler"])
        set_rng_state(content["rng"], run.device)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        said = str(error).splitlines()[0][:100] if str(error) else ""
        raise CheckpointError(
            f"{state.absolute()}: its optimiser state or random generators do not fit this run"
            f" ({type(error).__name__}: {said}).",
            "Restore the file that the run saved, or start a new run from its weights: --load FILE --run-name NEW.",
        ) from error
    run.progress.load_state(content["progress"])
    run.resumed = True
    run.ranks_before = ranks = content.get("ranks", 1)
    if ranks != run.group.world:  # the same samples, counted in batches of the current number of ranks
        group = run.options.accumulate
        done = run.progress.batch * ranks // run.group.world // group * group
        run.progress.batch = min(done, run.steps_per_epoch * group)
        count = max(1, round(run.progress.loss_count * ranks / run.group.world))
        run.progress.loss_sum *= count / max(1, run.progress.loss_count)
        run.progress.parts = {
            name: value * count / max(1, run.progress.loss_count) for name, value in run.progress.parts.items()
        }
        run.progress.loss_count = count if run.progress.loss_count else 0
    if run.task.by_steps:  # epochs may have another length now
        rows, step = run.progress.history, run.progress.step
        if ranks != run.group.world:
            run.progress.step = step * ranks // run.group.world
        done, run.progress.batch = divmod(run.progress.step * run.options.accumulate, len(run.loader))
        if done and not run.progress.batch and not (rows and rows[-1]["step"] == step):  # it was not closed
            done, run.progress.batch = done - 1, len(run.loader)
        run.progress.epoch = done + 1
    run.progress.reached = target_reached(run)  # --target may have changed


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's state; what --weight-decay and --momentum set, which may have changed, stays as it is."""
    own = [{name: group[name] for name in SET_ANEW if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimiser's tensors the memory layout of their weights, which is not stored in a file."""
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                values[name] = torch.empty_like(weight, dtype=value.dtype, device=value.device).copy_(value)
