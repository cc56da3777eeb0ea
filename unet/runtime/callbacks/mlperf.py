"""The callback that writes the MLPerf log of a run (`unet3d.log`), and the warm-up before the clock starts.

Written through `mlperf_logging.mllog`, by rank 0, for ruleset 4.0.0 (the newest that knows unet3d):

    python -m mlperf_logging.compliance_checker --usage training --ruleset 4.0.0 performance/RUN/unet3d.log
    python -m mlperf_logging.rcp_checker --rcp_usage training --rcp_version 4.0.0 FOLDER   (copies: result_0.txt ...)

**Epochs are counted in samples.** Since ruleset 3.1.0 the reference convergence points are samples, and rcp_checker
compares them with the `epoch_num` of the last eval_accuracy. So every epoch number of the log is the epoch times the
samples that an epoch really trains (168 where steps fill it; without the short last batch otherwise: the points of
batch 64 are multiples of 64, not of 168). Warm-up and decay are in epochs, as their keys say.

**The clock.** init_start is when the process began (or when caches were cleared), init_stop follows the warm-up, and
run_start comes before anything of the data set is read: the loader is made after it. The cache's list of cases is read
before; the cache itself must exist, its making is not timed. run_stop comes on every way out, `success` only where the
target was reached: epochs that ended without it, a divergence, an interrupt and a failure are `aborted`. (A process
that is killed writes nothing more.) The scoring in full comes after it.

**Going on.** A run that is resumed goes on in its log: what was logged after the state that it goes on from is cut
away, run_stop included, and there is one init_start and one run_start. An event `resumed` says so, which the checkers
pass over; but the time between counts, and a resumed run is no closed submission.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unet
from unet.config.schema import Config
from unet.devices.base import Device
from unet.errors import UnetError
from unet.runtime import trainer
from unet.runtime.distributed.process_group import Group
from unet.runtime.folders.run_folder import MLPERF_LOG, RunFolder
from unet.runtime.inference.predictor import Predictor
from unet.runtime.progress import Progress
from unet.runtime.seeding import rng_state, set_rng_state
from unet.runtime.stop import Stop

REHEARSAL = "REHEARSAL"
PLACES = {"epoch_start": "epoch", "epoch_stop": "trained", "eval_start": "scoring", "eval_stop": "scored"}
CLASSES = 3


class _Lines(logging.Handler):
    """Log records as lines of a file in the run's folder. Raises UnetError where the disk is full."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(logging.INFO)
        self.folder = folder

    def emit(self, record: logging.LogRecord) -> None:
        self.folder.append(MLPERF_LOG, self.format(record))


class MLPerfLog:
    """Writes the events of one run in order. `benchmark` holds the task's MLPerf rules, `split` the names of its cases,
    `system` describes the device; `goes_on`: the run is resumed, and its progress says how many lines to keep."""

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        benchmark: Any,
        split: Mapping[str, Sequence[str]],
        system: str,
        goes_on: bool,
    ) -> None:
        from mlperf_logging.mllog.mllog import MLLogger

        self.folder, self.config, self.benchmark, self.goes_on = folder, config, benchmark, goes_on
        self.split, self.system = split, system
        self.lines, self.phase, self.running = 0, "outside", goes_on
        self.progress: Progress | None = None
        sink = logging.Logger("unet.mlperf", logging.INFO)  # its own: nothing else hears or changes it
        sink.propagate = False
        sink.addHandler(_Lines(folder))
        if config.logging.verbose:
            sink.addHandler(logging.StreamHandler(sys.stdout))
        root = re.escape(str(Path(unet.__file__).parent.parent))
        self.logger = MLLogger(sink, default_namespace="", default_stack_offset=3, root_dir=root)
        if not goes_on:
            folder.keep_lines(MLPERF_LOG, 0)

    def starts(self, world: int, began: float, cleared: float | None = None) -> None:
        """Everything up to run_start, at the moment when the clock starts. `began` and `cleared` (caches; None: they
        were not) are seconds since 1970."""
        config = self.config
        if cleared is not None:
            self.event("cache_clear", True, at=cleared)
        self.start("init_start", at=max(began, cleared or began))
        self.event("seed", config.general.seed)
        self.event("submission_benchmark", self.benchmark.name)
        rehearsal = REHEARSAL if config.mlperf.mlperf_rehearsal else None
        self.event("submission_org", rehearsal or config.mlperf.mlperf_org or socket.gethostname())
        self.event("submission_division", config.mlperf.mlperf_division)
        self.event("submission_status", config.mlperf.mlperf_status)
        self.event("submission_platform", config.mlperf.mlperf_platform or f"{world} x {self.system}")
        self.event("opt_name", config.train.optimizer)
        self.event("opt_base_learning_rate", config.train.lr)
        self.event("opt_learning_rate_warmup_epochs", config.train.warmup_epochs)
        milestones = config.train.lr_milestones if config.train.schedule == "multistep" else ()
        self.event("opt_learning_rate_decay_boundary_epochs", list(milestones))
        self.event("opt_learning_rate_decay_factor", config.train.lr_gamma if milestones else 1.0)
        self.event("opt_weight_decay", config.train.weight_decay)
        self.event("opt_momentum", config.train.momentum)
        for key, value in self.benchmark.events.items():
            self.event(key, value)
        for name in self.benchmark.initialized_layers:
            self.event("weights_initialization", tensor=name)
        self.end("init_stop")
        self.start("run_start")
        self.running = True

    def on_train_start(self, run: trainer.Trainer) -> None:
        self.progress = run.progress
        if self.goes_on:
            self.lines = run.progress.mlperf_lines
            self.phase = PLACES.get(last_key(self.folder.text(MLPERF_LOG)), "outside")
            self.event("resumed", run.progress.step, epoch_num=number(run))
            return
        self.event("train_samples", len(self.split["train"]), cases=list(self.split["train"]))
        scored = list(self.split["validation"])[: self.config.eval.eval_steps]
        self.event("eval_samples", len(scored), cases=scored)
        self.event("samples_per_epoch", run.samples_per_epoch)
        self.event("global_batch_size", self.config.train.batch_size * self.config.train.accumulate * run.group.world)
        self.event("gradient_accumulation_steps", self.config.train.accumulate)

    def on_epoch_start(self, run: trainer.Trainer) -> None:
        if self.phase == "outside":
            self.start("block_start", first_epoch_num=number(run), epoch_count=run.samples_per_epoch)
            self.start("epoch_start", epoch_num=number(run))
            self.phase = "epoch"

    def on_epoch_trained(self, run: trainer.Trainer) -> None:
        if self.phase == "epoch":
            self.end("epoch_stop", epoch_num=number(run), current_lr=float(run.optimizer.param_groups[0]["lr"]))
            self.phase = "trained"

    def on_eval_start(self, run: trainer.Trainer) -> None:
        if self.phase == "trained":
            self.start("eval_start", number(run), epoch_num=number(run))
            self.phase = "scoring"

    def on_eval_end(self, run: trainer.Trainer, score: float, **rest: Any) -> None:
        self.event("eval_accuracy", score, epoch_num=number(run))
        self.end("eval_stop", number(run), epoch_num=number(run))
        self.phase = "scored"

    def on_epoch_end(self, run: trainer.Trainer, row: Mapping[str, Any], **rest: Any) -> None:
        first = row["epoch"] * run.samples_per_epoch
        self.end("block_stop", first_epoch_num=first, epoch_count=run.samples_per_epoch)
        self.phase = "outside"

    def on_train_end(self, run: trainer.Trainer, reason: str) -> None:
        history = run.progress.history
        last = history[-1]["epoch"] if history else 0
        self.stop("success" if reason == "target" else "aborted", last * run.samples_per_epoch)

    def stop(self, status: str, epoch_num: int = 0) -> None:
        """Log run_stop once, if the clock has started. Never raises: it may be called while another error is
        handled."""
        if self.running:
            self.running = False
            with contextlib.suppress(UnetError):
                self.end("run_stop", status=status, epoch_num=epoch_num)

    def start(self, key: str, value: Any = None, at: float | None = None, **metadata: Any) -> None:
        self._write(self.logger.start, key, value, at, metadata)

    def end(self, key: str, value: Any = None, at: float | None = None, **metadata: Any) -> None:
        self._write(self.logger.end, key, value, at, metadata)

    def event(self, key: str, value: Any = None, at: float | None = None, **metadata: Any) -> None:
        self._write(self.logger.event, key, value, at, metadata)

    def _write(self, how: Callable[..., None], key: str, value: Any, at: float | None, metadata: Any) -> None:
        how(key, value, metadata or None, time_ms=None if at is None else int(1000 * at))
        self.lines += 1
        if self.progress is not None:
            self.progress.mlperf_lines = self.lines


def number(run: trainer.Trainer) -> int:
    """The epoch in hand as the log counts it: in samples."""
    return run.progress.epoch * run.samples_per_epoch


def last_key(text: str) -> str:
    """The key of the last log line that tells the phase of the run."""
    for line in reversed(text.splitlines()):
        key: str = json.loads(line.partition(":::MLLOG ")[2])["key"]
        if key in PLACES or key in ("block_stop", "run_start"):
            return key
    return ""


class SyntheticLoader:
    """A loader of random batches in the training shape: `steps` of them in an epoch, nothing read."""

    def __init__(self, shape: Sequence[int], classes: int, steps: int) -> None:
        self.shape, self.classes, self.batches = tuple(shape), classes, steps

    def __len__(self) -> int:
        return self.batches

    def epochs(self, epochs: Iterable[int], start: int = 0, stop: int | None = None) -> Iterator[dict[str, Tensor]]:
        last = self.batches if stop is None else stop
        for place, epoch in enumerate(epochs):
            generator = torch.Generator().manual_seed(epoch)
            for _ in range(0 if place else start, last):
                yield {
                    "image": torch.randn(self.shape, generator=generator),
                    "mask": torch.randint(self.classes, self.shape, generator=generator, dtype=torch.uint8),
                    "index": torch.zeros(self.shape[0], dtype=torch.int64),
                }

    def names(self, index: Tensor) -> list[str]:
        return ["synthetic data"] * len(index)


def warm_up(
    config: Config,
    task: Any,
    device: Device,
    model: nn.Module,
    network: nn.Module,
    eval_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    predictor: Predictor,
    group: Group,
) -> None:
    """--mlperf-warmup steps of the loop and one window on synthetic data, so that kernels are compiled and memory is
    allocated.
    Then weights, optimiser, loss scaler and generators are restored exactly."""
    if not config.mlperf.mlperf_warmup:
        return
    group.set_phase("warming up", may_block=True)
    weights, generators = copy.deepcopy(model.state_dict()), rng_state(device)
    before = [copy.deepcopy(part.state_dict()) for part in (optimizer, scaler)]
    modes = [(module, module.training) for part in (network, eval_model) for module in part.modules()]
    calm = config.replace(epochs=1, max_steps=None, checkpoint_every=None, nonfinite_limit=2**31, log_every=2**31)
    shape = (config.train.batch_size, *task.input_shape()[1:])
    made = SyntheticLoader(shape, CLASSES, config.mlperf.mlperf_warmup * config.train.accumulate)
    run = trainer.Trainer(
        *(calm.train, calm.save, task, device, model, network, eval_model, optimizer, scaler, made),
        evaluate=None,
        stop=Stop(),
        group=group,
    )
    trainer.train_epoch(run)
    task.warm_up(predictor)
    model.load_state_dict(weights)
    optimizer.load_state_dict(before[0])
    scaler.load_state_dict(before[1])
    for module, training in modes:
        module.training = training
    set_rng_state(generators, device)
    device.flush()
    device.synchronize()
    group.gather(None)  # the clock starts when all are warm
