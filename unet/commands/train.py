"""train: trains a network and writes weights, scores, logs and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import secrets
import tempfile
import time
from typing import TYPE_CHECKING, Any

from unet import host
from unet.commands import leakage, power, run_callbacks, run_end, run_resume, run_start, setup
from unet.config import capacity, run_files
from unet.config.resolve import Resolved
from unet.config.schema import Config, resolve_path, weights_to_read
from unet.devices import launchers
from unet.errors import INTERRUPTED, UnetError, UsageError
from unet.runtime.callbacks import mlperf_rules
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.tasks.registry import create

if TYPE_CHECKING:
    from torch import nn
    from torch.optim.swa_utils import AveragedModel

    from unet.data.cache.cached_case import CachedCase
    from unet.runtime.folders.run_folder import RunFolder
    from unet.runtime.trainer import Trainer


def run(resolved: Resolved, command: str) -> int:
    """Train a network. Returns 0, 3 (a typed --target was not reached) or 130 (stopped and saved)."""
    if resolved.config.general.seed == -1:
        resolved = dataclasses.replace(
            resolved,
            config=resolved.config.replace(seed=secrets.randbits(32)),
            sources={**resolved.sources, "seed": "drawn"},
        )
    if len(resolved.config.weights.weights) > 1:
        raise UsageError(
            f"train writes one file of weights, not {len(resolved.config.weights.weights)}.", "Type one --weights FILE."
        )
    rank = launchers.find_rank(resolved.config.distributed, resolved.config.device.cuda_devices)
    mlperf_rules.require(resolved.config, rank.world, create(resolved.config))
    if resolved.config.run.dry_run:
        return dry_run(resolved)
    context = setup.assemble(resolved.config, resolved.sources)
    resolved = context.group.main_first(functools.partial(setup.settled, resolved))
    capacity.require(resolved.config, context.device.own_memory)
    folder, resolved, resuming = context.group.run_on_main(lambda: run_start.open_run(resolved, command))
    context = context.with_config(resolved.config)
    folder.writes = context.group.is_main
    with run_start.recording_failure(folder, context.group.explain), power.measured(context) as context:
        power.tell(context, folder)
        return _train(context, folder, resolved, command, resuming)


def clear_caches(context: setup.Context) -> float | None:
    """Clear the file caches of all nodes for a new run with an MLPerf log, when no process reads the data any more.
    Returns the time; None if it was not requested, or failed on any node."""
    config, group = context.config, context.group
    if config.mlperf.mlperf_division is None or config.save.resume:
        return None
    group.gather(None)  # every process has found its cases: the arrays that were not known to be whole were read
    asked = context.device.rank.local == 0  # one process of each node
    folder = resolve_path(config.data.cache, "data")
    when = mlperf_rules.clear_caches(folder, config.mlperf.drop_caches) if asked else None
    times = [when for first, when in group.gather((asked, when)) if first]
    known = [when for when in times if when is not None]
    return max(known) if known and len(known) == len(times) else None


def dry_run(resolved: Resolved) -> int:
    """Check data, split, network and device with one step and one scored case, in a temporary folder."""
    config = resolved.config
    with tempfile.TemporaryDirectory() as scratch:
        changes: dict[str, Any] = {
            "out": scratch,
            "weights": (f"{scratch}/dry.safetensors",),
            "dry_run": False,
            "max_steps": 1,
            "eval_steps": 1,
            "run_name": "dry-run",
            "resume": None,
            "target": None,
            "checkpoints": False,
            "log_all_workers": False,
            "tensorboard": False,
            "wandb": None,
            "mlflow": None,
            "debug_dump": None,
            "mlperf_division": None,
            "mlperf_rehearsal": False,
            "drop_caches": False,
            "power": 0.0,
        }
        if config.run.mode == "train_and_predict":
            changes["mode"] = None
        small = dataclasses.replace(resolved, config=config.replace(**changes))
        with contextlib.redirect_stdout(io.StringIO()):  # the closing block names files that are deleted at once
            code = run(small, "dry run")
    if code == INTERRUPTED:
        return code
    from unet.runtime.distributed import process_group as distributed

    if distributed.group().is_main:
        print("Dry run: settings, data, network and device are in order; one step was made and nothing was kept.")
    return 0


def _train(context: setup.Context, folder: RunFolder, resolved: Resolved, command: str, resuming: bool) -> int:
    from unet.data.cache.cached_case import data_digest

    config, task, group = context.config, context.task, context.group
    began = time.perf_counter()
    cases = setup.all_cases(context, functools.partial(setup.split_first, context))
    saved = folder / "splits.json"
    split = group.run_on_main(
        lambda: (
            run_files.read_split(saved, folder.name)
            if resuming and os.path.lexists(saved)
            else task.split([c.id for c in cases]) | trained_before(config)
        )
    )
    if seen := set(split["validation"]) & set(split.get("trained_before", ())):
        host.notice(
            f"{len(seen)} of the {len(split['validation'])} validation cases were used to train the weights of --load:"
            " their scores are too good"
        )
    leakage.tell(config, {case.id: case.images for case in cases}, split["train"], split["validation"])
    folder.data = data_digest(cases, split)
    cleared = clear_caches(context)
    mlperf_rules.require_cases(config, task, split)
    context = context.with_config(task.finalize_config(cases, group.world))
    folder.write("splits.json", split)
    if resuming and context.device.choices is not None:
        context.device.choices.recall(folder / run_files.KERNELS_JSON, group.rank)
    folder.write("environment.json", run_start.environment(context))
    weights = weights_to_read(config.weights.weights[0])
    goes_on = resuming and run_resume.has_state(group, folder, CheckpointPaths(weights))
    log = build_mlperf_log(context, folder, split, goes_on)
    try:
        run = build_trainer(context, folder, cases, split, command, log if not goes_on else None, cleared)
        if log:
            run.callbacks.append(log)
        reason = run_training(context, folder, run, split, goes_on, began)
    finally:
        if log:
            log.stop("aborted")  # if the loop did not log an end
    run.emit("on_finish")
    with setup.explaining_oom(context):
        return run_end.finish(context, folder, resolved, run, weights, cases, split, reason)


def run_training(
    context: setup.Context, folder: RunFolder, run: Trainer, split: dict[str, list[str]], goes_on: bool, began: float
) -> str:
    """Load the start weights or the saved state, and train. Returns the stop reason."""
    from unet.runtime import trainer
    from unet.runtime.callbacks.logs import ArgonneCsvLog

    if goes_on:
        weights = weights_to_read(context.config.weights.weights[0])
        run_resume.resume(run, folder, CheckpointPaths(weights), run_callbacks.metadata(context, folder, split))
    else:
        start_weights(context, run, context.config)
    for callback in run.callbacks:
        if isinstance(callback, ArgonneCsvLog):
            callback.init_seconds = time.perf_counter() - began
    folder.status("running", **context.task.metric.described())
    context.group.run_on_main(folder.begin)
    config = context.config
    if config.general.overwrite and config.save.checkpoints and not goes_on:  # the replaced run must not be resumed
        context.group.run_on_main(CheckpointPaths(weights_to_read(config.weights.weights[0])).clear)
    if goes_on and (why := trainer.stop_reason(run)):
        folder.say(
            f"nothing is left to train: the run is {run_end.outcome_text(why)}; a higher --epochs or --max-steps goes"
            f" on"
        )
    context.group.on_peer_lost(functools.partial(_on_peer_lost, folder, run))
    try:
        with run.stop.listen():
            return trainer.train(run)
    except (RuntimeError, MemoryError) as error:  # a context manager would keep the frames and their tensors alive
        if advice := setup.explain_oom(error, context, run):
            raise advice from error
        raise


def _on_peer_lost(folder: RunFolder, run: Trainer, why: str) -> None:
    """Called when another process is lost, just before this one ends."""
    from unet.runtime.folders import run_folder

    run_folder.note(folder, "failed", why)
    run.emit("on_train_end", reason="failed")


def build_mlperf_log(context: setup.Context, folder: RunFolder, split: dict[str, list[str]], goes_on: bool) -> Any:
    """The MLPerf log for --mlperf-division, on rank 0; None otherwise."""
    if context.config.mlperf.mlperf_division is None or not context.group.is_main:
        return None
    from unet.runtime.callbacks import mlperf

    return mlperf.MLPerfLog(folder, context.config, context.task.mlperf(), split, context.device.describe(), goes_on)


def build_trainer(
    context: setup.Context,
    folder: RunFolder,
    cases: list[CachedCase],
    split: dict[str, list[str]],
    command: str,
    log: Any = None,
    cleared: float | None = None,
) -> Trainer:
    """The trainer with its callbacks. The MLPerf clock of `log` starts when everything but the loader exists: the data
    are read after that."""
    from unet.runtime import evaluation, optim, seeding, trainer
    from unet.runtime.callbacks.figures import EvaluationFigures

    config, task, device, group = context.config, context.task, context.device, context.group
    training, validation = split_cases(cases, split)
    seeding.seed_all(config.general.seed, device)
    model = device.place(task.build_model())
    compiled = device.compile(model) if device.compiled() else model
    averaged = averaged_model(model, config.train.ema)
    scored = compiled if averaged is None else averaged.module
    if averaged is not None and device.compiled():
        scored = device.compile(scored)
    eval_model = device.capture(scored, training=False)
    network = device.parallel(device.capture(compiled))
    fused = None if config.device.deterministic else device  # torch's own: the same bits on every device
    optimizer, scaler = optim.build(config.train, task.param_groups(model), fused), device.scaler()
    predictor = setup.make_predictor(context, eval_model)
    if config.mlperf.mlperf_division:
        from unet.runtime.callbacks import mlperf

        mlperf.warm_up(config, task, device, model, network, eval_model, optimizer, scaler, predictor, group)
        if log:
            log.starts(group.world, mlperf_rules.process_began(), cleared)
    loader = build_loader(context, training)
    stop = trainer.Stop(config.train.max_time)
    loader.hurry(stop.requested)
    score = functools.partial(task.evaluate_case, predictor=predictor)
    chosen = validation[: config.eval.eval_steps]
    drawn = EvaluationFigures(folder, task.figure, [case.id for case in chosen[: task.figures_in_training]], group)
    keep = drawn.keep if drawn.ids else None
    evaluate = functools.partial(evaluation.score, chosen, score, keep=keep, stop=stop.requested, group=group)
    evaluating = bool(validation) and config.run.mode not in ("train", "train_and_predict")
    run = trainer.Trainer(
        *(config.train, config.save, task, device, model, network, eval_model, optimizer, scaler, loader),
        evaluate=evaluate if evaluating else None,
        stop=stop,
        callbacks=[*([drawn] if drawn.ids else []), *run_callbacks.build(context, folder, split, command)],
        group=group,
        averaged=averaged,
        warmup=config.run.benchmark_warmup or 0,
    )
    group.run_on_main(lambda: write_preview(context, folder, training))
    for line in opening_lines(context, run, training, validation):
        folder.say(line)
    return run


def write_preview(context: setup.Context, folder: RunFolder, training: list[CachedCase]) -> None:
    """Write what the task shows of training before it starts into the run's folder."""
    from unet.data.io import outputs

    for output in context.task.preview(training):
        outputs.write(folder.place(output.name), output)
        folder.say(f"wrote {folder / output.name}")


def averaged_model(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """The moving average of a network's weights, on its device; None without --ema."""
    if decay is None:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)


def build_loader(context: setup.Context, training: list[CachedCase]) -> Any:
    """The task's loader. Raises UnetError if the data do not fit into the memory chosen by --data-on."""
    config, device, group = context.config, context.device, context.group
    group.gather(None)  # with --data-on ram all look at the free memory before any fills it
    try:
        return context.task.train_loader(training, (group.rank, group.world), device.loader_options(), device.put)
    except (RuntimeError, MemoryError) as error:
        if config.device.data_on == "disk" or not device.is_out_of_memory(error):
            raise
        raise UnetError(
            f"--data-on {config.device.data_on}: the {len(training)} training cases do not fit into the memory of"
            f" {device.describe()}.",
            "Type --data-on ram, or leave the flag out: then the cache is memory-mapped.",
        ) from error


def opening_lines(
    context: setup.Context, run: Trainer, training: list[CachedCase], validation: list[CachedCase]
) -> list[str]:
    """The lines printed before the first step."""
    config, device, world = context.config, context.device, context.group.world
    item, size = context.task.item, config.train.batch_size * config.train.accumulate * world
    lines = [
        f"{context.task.name} on {device.describe()}, {str(device.dtype).removeprefix('torch.')};"
        f" {host.counted(len(training), 'training case')}, {host.counted(len(validation), 'validation case')};"
        f" {host.counted(run.steps_per_epoch, 'step')} of {host.counted(size, item[:-1])} per epoch",
        *(f"not used: {why}" for why in context.passed),
    ]
    if world > 1:
        rank = device.rank
        lines.append(
            f"{world} processes by {rank.launcher}, {rank.local_world} on this node, over {device.collective}; a step"
            f" is {config.train.batch_size} x {config.train.accumulate} x {world} {item}; batch statistics are each"
            " process's, running ones averaged"
        )
    if context.task.by_steps and config.train.max_steps:
        shared = f", the share of each of {world} processes" if world > 1 else ""
        lines.append(f"{host.counted(config.train.max_steps, 'step')}{shared}")
    if run.evaluate is None:
        why = f"--mode {config.run.mode}" if validation else "the split has no validation cases"
        lines.append(f"nothing is evaluated: {why}; the weights of the last epoch are kept")
    elif run.schedule != (1, 1):
        first, every = run.schedule
        also = f"epoch {first} and every {every} after it, and " if every and first <= run.epochs else ""
        lines.append(f"evaluated in {also}the last ({run.epochs})")
    return lines


def trained_before(config: Config) -> dict[str, list[str]]:
    """{"trained_before": the cases that the weights of --load were trained on}, {} where there are none."""
    facts = setup.metadata_of(weights_to_read(config.weights.load)) if config.weights.load else {}
    found = {*facts.get("training", ()), *facts.get("trained_before", ())}
    return {"trained_before": sorted(found)} if found else {}


def split_cases(cases: list[CachedCase], split: dict[str, list[str]]) -> tuple[list[Any], list[Any]]:
    """The training and validation cases of a split. Raises UnetError for a case that is not in the cache, or is in
    both."""
    if both := sorted(set(split["train"]) & set(split["validation"])):
        raise UnetError(
            f"{len(both)} cases are used for training and for validation ({', '.join(both[:3])}), so scores would be"
            f" meaningless.",
            "List each case once in the --split file (for a resumed run: in its splits.json).",
        )
    by_id = {case.id: case for case in cases}
    lost = [name for name in (*split["train"], *split["validation"]) if name not in by_id]
    if lost:
        raise UnetError(
            f"{len(lost)} cases of the split are not in the cache ({', '.join(lost[:3])}).",
            "Restore them, or start a new run.",
        )
    return [by_id[name] for name in split["train"]], [by_id[name] for name in split["validation"]]


def start_weights(context: setup.Context, run: Trainer, config: Config) -> None:
    if config.weights.load:
        from unet.runtime.checkpoints import checkpoint

        path = weights_to_read(config.weights.load)
        _, own = context.task.convert_checkpoint(context.group.run_on_main(lambda: setup.read_weights(path))[1])
        checkpoint.fit(run.model, own, path)
