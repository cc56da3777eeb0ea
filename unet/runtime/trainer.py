"""The training loop, the same for every task and device.

A run is a number of epochs; every `accumulate` batches make one optimiser step. Losses are read from the device only
for a log line. A stop request takes effect after the current step. Logs, checkpoints and pictures are callbacks:
objects with methods named after the events, which come in this order:

    on_train_start
      on_epoch_start  on_step_end ... on_log ...  on_epoch_trained  [on_eval_start  on_eval_end]  on_epoch_close
      on_epoch_end  [on_save]
    on_train_end     always once, also when the run is interrupted or fails
    on_finish        after on_train_end, if the run was not interrupted by an error

A run that is resumed in the middle of an epoch emits `on_epoch_start` for that epoch again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from unet.config.flags import SaveOptions
from unet.config.flags_training import TrainOptions
from unet.devices.base import Device
from unet.errors import UnetError
from unet.runtime import optim
from unet.runtime.distributed.process_group import Group
from unet.runtime.evaluation import mean
from unet.runtime.gradients import Gradients
from unet.runtime.meters import Clock, Losses
from unet.runtime.progress import Progress, advice, is_kept
from unet.runtime.stop import Stop


class Loader(Protocol):
    """The loader, as the trainer uses it."""

    def __len__(self) -> int: ...
    def epochs(
        self, epochs: Iterable[int], start: int = 0, stop: int | None = None
    ) -> Iterator[Mapping[str, Tensor]]: ...
    def names(self, index: Tensor) -> list[str]: ...


class Metric(Protocol):
    """The main metric of a task: its key in the scores, its name, and its sign (1 if higher is better, else -1)."""

    @property
    def key(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def sign(self) -> int: ...


class TrainTask(Protocol):
    """The task, as the trainer uses it."""

    @property
    def metric(self) -> Metric: ...
    @property
    def by_steps(self) -> bool: ...
    @property
    def terms(self) -> tuple[str, ...]: ...
    @property
    def curves(self) -> Mapping[str, tuple[str, ...]]: ...

    def eval_schedule(self, samples: int, step: int) -> tuple[int, int]: ...
    def requested_eval_schedule(self) -> tuple[int | None, int | None]: ...
    def is_diverged(self, score: float) -> bool: ...
    def training_step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclasses.dataclass
class Trainer:
    """Everything that the training loop uses. Three forms share the same weights: `network` is trained (compiled,
    captured, wrapped), `eval_model` is used for evaluation, `model` is saved. With --ema `averaged` holds the moving
    average of the weights, which is evaluated and saved as the best. `evaluate` returns a record for each validation
    case, or None if it was stopped. `warmup`: batches that throughput leaves out."""

    options: TrainOptions
    saving: SaveOptions
    task: TrainTask
    device: Device
    model: nn.Module
    network: nn.Module
    eval_model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    evaluate: Callable[[], list[dict[str, Any]] | None] | None
    stop: Stop
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    progress: Progress = dataclasses.field(default_factory=Progress)
    group: Group = dataclasses.field(default_factory=Group)
    averaged: AveragedModel | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        self.training, self.ranks_before, self.saved_at, self.resumed = True, self.group.world, -math.inf, False
        self.losses = Losses(self.options.nonfinite_limit, self.loader.names, self.group, self.advice)
        self.gradients = Gradients(self.options, self.optimizer, self.device, self.advice)
        self.clock = Clock(self.progress, self.device, self.group, self.warmup)

    @property
    def best_model(self) -> nn.Module:
        """The network whose weights are scored and kept."""
        return self.model if self.averaged is None else self.averaged.module

    @property
    def steps_per_epoch(self) -> int:
        return len(self.loader) // self.options.accumulate

    @property
    def batches_per_epoch(self) -> int:
        """Batches of each rank, without the rest that does not fill a step."""
        return self.steps_per_epoch * self.options.accumulate

    @functools.cached_property
    def batches(self) -> Iterator[dict[str, Tensor]]:
        """From the first that is trained to the last of --epochs, in one stream for the run: the first batches of an
        epoch are prepared while the one before is evaluated and saved."""
        epochs = range(self.progress.epoch, self.options.epochs + 1)
        stream = self.loader.epochs(epochs, self.progress.batch, self.batches_per_epoch)
        return self.clock.waits(self.device.batches(stream))

    @property
    def samples_per_epoch(self) -> int:
        """Samples per epoch over all ranks, without the rest that does not fill a batch or a step."""
        return self.steps_per_epoch * self.samples_per_step

    @property
    def samples_per_step(self) -> int:
        return self.options.accumulate * self.options.batch_size * self.group.world

    @property
    def schedule(self) -> tuple[int, int]:
        """(first evaluated epoch, epochs between evaluations; 0 = only at the end), from the user's flags or the
        task."""
        first, every = self.task.requested_eval_schedule()
        own_first, own_every = self.task.eval_schedule(self.samples_per_epoch, self.samples_per_step)
        every = own_every if every is None else every
        return max(own_first, every) if first is None else first, every

    @property
    def position(self) -> int:
        """Steps before the current one, counted in epochs of this run: after a resume with another number of ranks an
        epoch has another number of steps, and the learning rate follows the epochs."""
        progress = self.progress
        return (progress.epoch - 1) * self.steps_per_epoch + (progress.batch - 1) // self.options.accumulate

    @property
    def epochs(self) -> int:
        """Number of the last epoch: from --epochs, or the one in which --max-steps is reached."""
        most = self.options.max_steps
        return min(self.options.epochs, -(-most // self.steps_per_epoch)) if most else self.options.epochs

    @property
    def out_of_steps(self) -> bool:
        return self.options.max_steps is not None and self.progress.step >= self.options.max_steps

    def advice(self, change: str) -> str:
        """What to type after training failed, with a change of settings."""
        return advice(change, self.resumed or (self.saving.checkpoints and math.isfinite(self.saved_at)))

    def emit(self, event: str, **values: Any) -> None:
        for callback in self.callbacks:
            if handler := getattr(callback, event, None):
                handler(self, **values)


def train(run: Trainer) -> str:
    """Train until the last epoch or step, the target, the end of --patience, a divergence or a stop request.

    Returns the reason: "epochs", "max-steps", "target", "patience", "diverged", or "stopped: ..." (the state is then
    saved). Raises UnetError if the loss stays non-finite.
    """
    if not run.steps_per_epoch:
        raise UnetError(
            f"--accumulate {run.options.accumulate} is more than the {len(run.loader)} batches per epoch.",
            f"Type --accumulate {max(1, len(run.loader))} or less, or a smaller --batch-size.",
        )
    try:
        run.emit("on_train_start")
        reason = train_epochs(run)
    except BaseException as error:
        with contextlib.suppress(UnetError):  # such as a full disk: the first error matters more
            run.emit("on_train_end", reason="interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    run.emit("on_train_end", reason=reason)
    return reason


def train_epochs(run: Trainer) -> str:
    """Train epoch by epoch; returns the stop reason."""
    reason, rows = stop_reason(run), run.progress.history
    if reason == "max-steps" and not (rows and rows[-1]["step"] == run.progress.step):
        reason = ""  # the run was stopped in its last evaluation
    while not reason:
        run.emit("on_epoch_start")
        scores = evaluate_epoch(run) if train_epoch(run) else None
        if scores is None:
            save(run)
            return f"stopped: {run.stop.reason or 'another process was asked to'}"
        run.group.set_phase("closing the epoch", may_block=True)
        records = scores.pop("records", [])
        row, better = close_epoch(run, scores)
        run.emit("on_epoch_close", row=row)  # the last that may add to it
        reason = stop_reason(run, scores.get("score"))
        saving = bool(reason) or better or is_kept(run.saving.keep_every, row) or save_is_due(run)
        run.emit("on_epoch_end", row=row, records=records, better=better or (saving and run.evaluate is None))
        if saving:
            save(run)
    return reason


def stop_reason(run: Trainer, score: float | None = None) -> str:
    """Why training ends after an epoch with this score; empty if it continues."""
    progress, options = run.progress, run.options
    if progress.reached:
        return "target"
    if score is not None and diverged(run, score):
        return "diverged"
    if options.patience and progress.evals_since_best >= options.patience:
        return "patience"
    if run.out_of_steps:
        return "max-steps"
    return "epochs" if progress.epoch > options.epochs else ""


def diverged(run: Trainer, score: float) -> bool:
    """Whether the task counts this score as diverged. Only after a better score, or from the task's own first
    evaluation on: a network that is scored earlier may simply not have learned anything yet."""
    progress, task = run.progress, run.task
    if not task.is_diverged(score):
        return False
    first, _ = task.eval_schedule(run.samples_per_epoch, run.samples_per_step)
    had_better = progress.best_score is not None and not task.is_diverged(progress.best_score)
    return had_better or progress.history[-1]["epoch"] >= first


def save_is_due(run: Trainer) -> bool:
    """Whether the last save is at least --save-minutes ago, by the clock of rank 0."""
    limit = 60 * run.saving.save_minutes
    return not limit or run.group.run_on_main(lambda: time.monotonic() - run.saved_at >= limit)


def train_epoch(run: Trainer) -> bool:
    """Train the rest of the current epoch. Returns False if a stop was requested before its end."""
    options, device, progress = run.options, run.device, run.progress
    last = run.batches_per_epoch
    if run.out_of_steps:
        return True
    run.training = True
    run.network.train()
    run.clock.start()
    for batch in itertools.islice(run.batches, last - progress.batch):
        device.micro_batch(progress.batch % options.accumulate)
        steps = (progress.batch + 1) % options.accumulate == 0
        with run.group.grad_sync(run.network, needed=steps):
            with device.autocast():
                losses = run.task.training_step(run.network, batch)
            run.scaler.scale(run.gradients.prepare(losses["loss"] / options.accumulate)).backward()
        device.flush()
        run.losses.add(progress.step, losses, batch["index"])
        progress.batch += 1
        if not steps:
            continue
        optimizer_step(run)
        device.flush()
        progress.step += 1
        run.stop.made_progress = True
        run.emit("on_step_end")
        due = run.saving.checkpoint_every and progress.step % run.saving.checkpoint_every == 0
        ending = progress.batch == last or run.out_of_steps
        stopping = run.group.any_rank(run.stop.requested()) and not ending
        if ending or stopping or due or progress.step % options.log_every == 0:
            log(run)
        if ending or stopping:
            return not stopping
        if due:
            save(run)
            run.clock.start()
    return True


def save(run: Trainer) -> None:
    """Save the state, with running statistics averaged over the ranks."""
    run.group.set_phase("saving", may_block=True)
    average_statistics(run)
    run.emit("on_save")
    run.saved_at = time.monotonic()


def average_statistics(run: Trainer) -> None:
    """Average the running statistics over the ranks, in the network that is trained and in the one that is scored."""
    run.group.average_statistics(run.model)
    if run.averaged is not None:
        for scored, trained in zip(run.averaged.module.buffers(), run.model.buffers(), strict=True):
            scored.copy_(trained)


def optimizer_step(run: Trainer) -> None:
    """Set the rate, clip, step or skip, zero gradients, average weights; reads nothing from the device (except the loss
    scaler of fp16)."""
    progress = run.progress
    rate = optim.learning_rate(run.options, progress.epoch, progress.step, run.steps_per_epoch, run.position)
    optim.set_rate(run.optimizer, rate)
    run.gradients.step(run.scaler, progress.step)
    if run.averaged is not None:
        run.averaged.update_parameters(run.model)


def log(run: Trainer) -> None:
    """Read the losses since the last log line: the only place where training reads from the device."""
    values, norms = run.losses.read(run.gradients.pending)
    gradients = run.gradients.read(norms, run.progress.step)
    run.progress.add(values, run.losses.parts, gradients, run.options.accumulate)
    speed, rate = run.clock.update_throughput(), run.optimizer.param_groups[0]["lr"]
    step_seconds = run.samples_per_step / speed["images_per_second"]
    parts = {name: terms[-1] for name, terms in run.losses.parts.items()}
    parts |= gradients[-1] if gradients else {}
    parts |= {"skipped_steps": run.gradients.skipped} if run.gradients.skipped else {}
    run.emit("on_log", loss=values[-1], lr=rate, step_seconds=step_seconds, parts=parts, **speed)


def evaluate_epoch(run: Trainer) -> dict[str, Any] | None:
    """Evaluate the validation cases: {} if no evaluation is due, None if it was stopped. Holds the mean of every score
    ("eval_loss" if the task computes one) and the seconds of training and evaluation so far."""
    epoch = run.progress.epoch
    run.emit("on_epoch_trained")
    first, every = run.schedule
    due = every and epoch >= first and (epoch - first) % every == 0
    if run.evaluate is None or not (due or epoch == run.epochs or run.out_of_steps):
        return {}
    run.emit("on_eval_start")
    start = time.perf_counter()
    run.training = False
    run.group.set_phase("scoring", may_block=True)
    average_statistics(run)
    records = run.evaluate()
    seconds = time.perf_counter() - start
    run.progress.seconds["evaluate"] += seconds
    if records is None:
        return None
    run.stop.made_progress = True
    scores: dict[str, Any] = {"evaluate_seconds": seconds, "score": mean(records, run.task.metric.key)}
    others = sorted({key for record in records for key in record} - {"case", run.task.metric.key})
    scores |= {f"eval_{key}": mean(records, key) for key in others}
    scores["time_to_train"] = run.progress.seconds["train"] + run.progress.seconds["evaluate"]
    run.emit("on_eval_end", seconds=seconds, score=scores["score"], records=records)
    return {**scores, "records": records}


def target_reached(run: Trainer) -> bool:
    """Whether the best score so far reaches the target."""
    target, best = run.options.target, run.progress.best_score
    sign = run.task.metric.sign
    return target is not None and best is not None and sign * best >= sign * target


def close_epoch(run: Trainer, scores: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Add the epoch to the history, compare its score with the best and the target, and advance to the next epoch if it
    is complete. Returns (its row of the history, whether its score is the best so far).
    """
    progress = run.progress
    before = sum(row["train_seconds"] for row in progress.history)
    row = {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_seconds": progress.seconds["train"] - before,
        "loss": progress.loss_sum / progress.loss_count if progress.loss_count else math.nan,
        **{name: value / max(1, progress.loss_count) for name, value in progress.parts.items()},
        **scores,
    }
    progress.history.append(row)
    better = False
    if "score" in scores:
        sign = run.task.metric.sign
        best = -math.inf if progress.best_score is None else sign * progress.best_score
        better = math.isfinite(scores["score"]) and sign * scores["score"] > best
        progress.evals_since_best = 0 if better else progress.evals_since_best + 1
        if better:
            progress.best_score, progress.best_epoch = scores["score"], progress.epoch
        progress.reached = target_reached(run)
    if progress.batch >= run.batches_per_epoch:  # the epoch is complete
        progress.epoch, progress.batch, progress.loss_sum, progress.loss_count = progress.epoch + 1, 0, 0.0, 0
        progress.parts = {}
    return row, better
