"""The loop: one for every task and every device.

A run is epochs of batches; every `accumulate` batches make an optimiser step. The device is read when a log line is
due and at no other time. A request to stop is honoured after the step in hand. Whoever wants to know what happens
(logs, checkpoints, pictures) is a callback: an object with methods named like the events.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unet import host
from unet.config import Config
from unet.devices.base import Device
from unet.errors import UnetError
from unet.runtime import optim
from unet.runtime.distributed import Group
from unet.runtime.evaluation import mean


class Loader(Protocol):
    """What the loop needs of a loader."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0, stop: int | None = None) -> Iterator[Mapping[str, Tensor]]: ...
    def names(self, index: Tensor) -> list[str]: ...


class Learner(Protocol):
    """What the loop needs of a task."""

    best: tuple[str, str]

    def loss(self, model: nn.Module, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclasses.dataclass
class Progress:
    """Where the run is. All of it is saved, so a run that is stopped goes on as if it had not been."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    best_score: float | None = None
    best_epoch: int = 0
    stale: int = 0
    lines: int = 0
    reached: bool = False
    images: int = 0
    first_images: int = 0
    first_seconds: float = 0.0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.0, "wait": 0.0, "evaluate": 0.0, "save": 0.0}
    )
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def rate(self) -> float:
        """Images a second of training; the stretch before the first log line of each start, which warms up, is left
        out.
        """
        images, seconds = self.images - self.first_images, self.seconds["train"] - self.first_seconds
        if images <= 0:
            images, seconds = self.images, self.seconds["train"]
        return images / seconds if seconds else 0.0

    def wait_fraction(self) -> float:
        """Share of the training time in which the loop waited for a batch."""
        return self.seconds["wait"] / self.seconds["train"] if self.seconds["train"] else 0.0


class Stop:
    """Requests to stop: SIGINT, SIGTERM, SIGUSR1 and the time limit. A second SIGINT stops at once.

    The time limit counts once something has been done (`worked`: a step, an evaluation), so that a run which is stopped
    and resumed again and again still comes to its end.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.reason: str | None = None
        self.worked = False
        self.deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._note) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        host.notice(f"{self.reason}: the step in hand is finished, then the run is saved.")

    def asked(self) -> bool:
        if not self.reason and self.worked and time.monotonic() > self.deadline:
            self.reason = "--max-time"
        return self.reason is not None


class Losses:
    """Losses that stay on the device until somebody asks; finds the first of a row that are not finite. A loss is the
    mean over the ranks; `own` are this rank's of the last read."""

    def __init__(self, limit: int, names: Callable[[Tensor], list[str]], group: Group) -> None:
        self.limit, self.names, self.group = limit, names, group
        self.pending: list[tuple[int, Tensor, Tensor]] = []
        self.bad: list[tuple[int, list[str]]] = []
        self.own: list[float] = []

    def add(self, step: int, loss: Tensor, index: Tensor) -> None:
        self.pending.append((step, loss.detach(), index))

    def read(self) -> list[float]:
        """The losses since the last call: the one read from the device. Raises UnetError after `limit` bad ones in a
        row.
        """
        if not self.pending:
            return []
        self.own = torch.stack([loss for _, loss, _ in self.pending]).float().tolist()
        values = self.group.mean(self.own)
        for (step, _, index), own, value in zip(self.pending, self.own, values, strict=True):
            culprits = [] if math.isfinite(own) else self.names(index)
            self.bad = [] if math.isfinite(value) else [*self.bad, (step, culprits)]
            if len(self.bad) == self.limit:
                first, culprits = self.bad[0]
                names = [name for names in self.group.gather(culprits) for name in names]
                raise UnetError(
                    f"The loss is not finite since step {first + 1}, {self.limit} batches in a row; the first batch:"
                    f" {', '.join(names[:8])}.",
                    "The last good state is kept: type the command again with --resume and a lower --lr, with --clip 1,"
                    " or --precision fp32.",
                )
        self.pending.clear()
        return values


@dataclasses.dataclass
class Run:
    """All that the loop works on. `network` is what is trained (compiled, captured, wrapped), `applied` what scores,
    `model` what is saved: the same weights; `evaluate` gives one record for each validation case, or None when it was
    stopped."""

    config: Config
    task: Learner
    device: Device
    model: nn.Module
    network: nn.Module
    applied: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    evaluate: Callable[[], list[dict[str, Any]] | None] | None
    stop: Stop
    callbacks: list[Any] = dataclasses.field(default_factory=list)
    progress: Progress = dataclasses.field(default_factory=Progress)
    group: Group = dataclasses.field(default_factory=Group)

    def __post_init__(self) -> None:
        self.training, self.ranks_before = True, self.group.world
        self.losses = Losses(self.config.nonfinite_limit, self.loader.names, self.group)
        self.clock = Clock(self.progress, self.device, self.group)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.loader) // self.config.accumulate

    @property
    def position(self) -> int:
        """Steps before the one in hand, as this run counts them: after a resume on another number of ranks an epoch has
        another number of steps, and the learning rate follows the epochs."""
        progress = self.progress
        return (progress.epoch - 1) * self.steps_per_epoch + (progress.batch - 1) // self.config.accumulate

    @property
    def out_of_steps(self) -> bool:
        return self.config.max_steps is not None and self.progress.step >= self.config.max_steps

    def emit(self, event: str, **values: Any) -> None:
        for callback in self.callbacks:
            handler = getattr(callback, event, None)
            if handler:
                handler(self, **values)


class Clock:
    """Times of a stretch of training (between two log lines), and of it waiting for batches; images of all ranks."""

    def __init__(self, progress: Progress, device: Device, group: Group) -> None:
        self.progress, self.device, self.group, self.first = progress, device, group, True

    def start(self) -> None:
        self.since, self.waited, self.images, self.batches = self.device.now(), 0.0, 0, 0

    def waits(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches, the wait for each one timed."""
        while True:
            self.group.mark("waiting for a batch", patient=self.first)
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            self.group.mark("in a step", patient=self.first)  # a first step compiles
            if batch is None:
                return
            self.images += len(batch["image"]) * self.group.world
            self.batches += 1
            yield batch

    def lap(self) -> dict[str, float]:
        """Close the stretch and start the next: its rate and share of waiting."""
        lap = time.perf_counter() - self.since
        self.group.pace(lap / max(1, min(self.batches, 10)))  # the host may run ahead, and wait for many steps in one
        seconds, images, waited = max(self.device.now() - self.since, 1e-9), self.images, self.waited
        self.progress.seconds["train"] += seconds
        self.progress.seconds["wait"] += waited
        self.progress.images += images
        if self.first:
            self.progress.first_images += images
            self.progress.first_seconds += seconds
            self.first = False
        self.start()
        return {"images_per_second": images / seconds, "wait_fraction": waited / seconds}


def train(run: Run) -> str:
    """Train until the epochs or steps are done, the target is reached, patience ends or a stop is asked for.

    Returns why it ended: "epochs", "max-steps", "target", "patience", or "stopped: ..." (then the state has been
    saved). Raises UnetError where the loss stays non-finite.
    """
    progress, config = run.progress, run.config
    if not run.steps_per_epoch:
        raise UnetError(
            f"--accumulate {config.accumulate} is more than the {len(run.loader)} batches of an epoch.",
            f"Type --accumulate {max(1, len(run.loader))} or less, or a smaller --batch-size.",
        )
    while progress.epoch <= config.epochs and not run.out_of_steps and not progress.reached:
        run.emit("epoch_begins")
        scores = evaluate_epoch(run) if train_epoch(run) else None
        if scores is None:
            save(run)
            return f"stopped: {run.stop.reason or 'another process was asked to'}"
        run.group.mark("closing the epoch", patient=True)
        close_epoch(run, scores)
        save(run)
        if config.patience and progress.stale >= config.patience:
            return "patience"
    return "target" if progress.reached else "max-steps" if run.out_of_steps else "epochs"


def train_epoch(run: Run) -> bool:
    """The rest of the current epoch. Returns False when a stop was asked for before its end."""
    config, device, progress = run.config, run.device, run.progress
    last = run.steps_per_epoch * config.accumulate
    run.training = True
    run.network.train()
    run.clock.start()
    for batch in run.clock.waits(device.batches(run.loader.epoch(progress.epoch, progress.batch, last))):
        steps = (progress.batch + 1) % config.accumulate == 0
        with run.group.syncing(run.network, needed=steps):
            with device.autocast():
                losses = run.task.loss(run.model, run.network(batch["image"]), batch)
            run.scaler.scale(losses["loss"] / config.accumulate).backward()
        device.flush()
        run.losses.add(progress.step, losses["loss"], batch["index"])
        progress.batch += 1
        if not steps:
            continue
        optimizer_step(run)
        device.flush()
        progress.step += 1
        run.stop.worked = True
        run.emit("stepped")
        due = config.checkpoint_every and progress.step % config.checkpoint_every == 0
        ending = progress.batch == last or run.out_of_steps
        stopping = run.group.agree(run.stop.asked()) and not ending
        if ending or stopping or due or progress.step % config.log_every == 0:
            log(run)
        if ending or stopping:
            return not stopping
        if due:
            save(run)
            run.clock.start()
    return True


def save(run: Run) -> None:
    """Save the state, the running statistics being those of all ranks."""
    run.group.mark("saving", patient=True)
    run.group.average_statistics(run.model)
    run.emit("save")


def optimizer_step(run: Run) -> None:
    """Clip, step, clear: nothing in it reads from the device (the loss scaler of fp16 excepted)."""
    progress = run.progress
    rate = optim.learning_rate(run.config, progress.epoch, progress.step, run.steps_per_epoch, run.position)
    optim.set_rate(run.optimizer, rate)
    if run.config.clip is not None:
        run.scaler.unscale_(run.optimizer)
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), run.config.clip)
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad(set_to_none=True)


def log(run: Run) -> None:
    """The one place where training reads from the device: the losses since the last log line."""
    values = run.losses.read()
    finite = [value for value in values if math.isfinite(value)]
    run.progress.loss_sum += math.fsum(finite)
    run.progress.loss_count += len(finite)
    run.emit("logged", loss=values[-1], lr=run.optimizer.param_groups[0]["lr"], **run.clock.lap())


def evaluate_epoch(run: Run) -> dict[str, Any] | None:
    """Scores of the validation cases after this epoch: {} where none are due, None when it was stopped."""
    config, epoch = run.config, run.progress.epoch
    first = max(config.start_eval_at, config.evaluate_every)
    due = config.evaluate_every and epoch >= first and (epoch - first) % config.evaluate_every == 0
    if run.evaluate is None or not (due or epoch == config.epochs or run.out_of_steps):
        return {}
    start = time.perf_counter()
    run.training = False
    run.group.mark("scoring", patient=True)
    run.group.average_statistics(run.model)
    records = run.evaluate()
    seconds = time.perf_counter() - start
    run.progress.seconds["evaluate"] += seconds
    if records is None:
        return None
    run.stop.worked = True
    return {
        "evaluate_seconds": seconds,
        "score": mean(records, run.task.best[0]),
        "eval_loss": mean(records, "loss"),
        "records": records,
    }


def target_reached(run: Run) -> bool:
    """Whether the best score so far meets the target."""
    target, best = run.config.target, run.progress.best_score
    sign = 1 if run.task.best[1] == "max" else -1
    return target is not None and best is not None and sign * best >= sign * target


def close_epoch(run: Run, scores: dict[str, Any]) -> None:
    """Note the epoch, compare its score with the best and with the target, and go to the next epoch if this one is
    complete.
    """
    progress, config = run.progress, run.config
    records = scores.pop("records", [])
    before = sum(row["train_seconds"] for row in progress.history)
    row = {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_seconds": progress.seconds["train"] - before,
        "loss": progress.loss_sum / progress.loss_count if progress.loss_count else math.nan,
        **scores,
    }
    progress.history.append(row)
    better = False
    if "score" in scores:
        sign = 1 if run.task.best[1] == "max" else -1
        better = progress.best_score is None or sign * scores["score"] > sign * progress.best_score
        progress.stale = 0 if better else progress.stale + 1
        if better:
            progress.best_score, progress.best_epoch = scores["score"], progress.epoch
        progress.reached = target_reached(run)
    epoch_is_complete = progress.batch == run.steps_per_epoch * config.accumulate
    if epoch_is_complete:
        progress.epoch, progress.batch, progress.loss_sum, progress.loss_count = progress.epoch + 1, 0, 0.0, 0
    run.emit("epoch_ends", row=row, records=records, better=better or run.evaluate is None)
