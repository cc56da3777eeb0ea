"""train: from raw files or a cache to weights, scores, logs and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host
from unet.commands import run_end, run_resume, run_start, setup
from unet.config import capacity, run_files
from unet.config.resolve import Resolved
from unet.config.schema import Config, resolve_path
from unet.devices import launchers
from unet.errors import INTERRUPTED, UnetError, UsageError
from unet.runtime.callbacks import mlperf_rules
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.tasks.registry import create

if TYPE_CHECKING:
    from unet.runtime.trainer import Trainer


def run(resolved: Resolved, command: str) -> int:
    """Train as the settings say. Returns 0, 3 (a typed --target was not reached) or 130 (stopped and saved)."""
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
    rank = launchers.find_rank(resolved.config)
    mlperf_rules.require(resolved.config, rank.world, create(resolved.config))
    if resolved.config.run.dry_run:
        return dry_run(resolved)
    cleared = cleared_here(resolved.config, rank.local)
    context = setup.assemble(resolved.config)
    capacity.require(resolved.config, context.device.own_memory)
    folder, resolved, resuming = context.group.run_on_main(lambda: run_start.open_run(resolved, command))
    context = context.with_config(resolved.config)
    folder.writes = context.group.is_main
    with run_start.noting(folder, context.group.explain):
        return _run(context, folder, resolved, command, resuming, clearing(context, rank.local == 0, cleared))


def cleared_here(config: Config, local_rank: int) -> float | None:
    """Clear the file caches of this node for a new run with an MLPerf log. Returns when; None where that is not asked
    for, another process does it, or it could not be done."""
    if config.mlperf.mlperf_division is None or config.save.resume or local_rank:
        return None
    return mlperf_rules.clear_caches(resolve_path(config.data.cache, "data"), config.mlperf.drop_caches)


def clearing(context: setup.Context, asked: bool, cleared: float | None) -> float | None:
    """When the caches of all nodes were cleared; None where those of any were not."""
    times = [when for first, when in context.group.gather((asked, cleared)) if first]
    known = [when for when in times if when is not None]
    return max(known) if known and len(known) == len(times) else None


def dry_run(resolved: Resolved) -> int:
    """Everything but keeping: data, split, network, device, one step and one case scored, in a temporary folder."""
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
            "debug_dump": None,
            "mlperf_division": None,
            "mlperf_rehearsal": False,
            "drop_caches": False,
        }
        if config.run.mode == "train_and_predict":
            changes["mode"] = None
        small = dataclasses.replace(resolved, config=config.replace(**changes))
        with contextlib.redirect_stdout(io.StringIO()):  # its closing block speaks of what is deleted at once
            code = run(small, "dry run")
    if code == INTERRUPTED:
        return code
    from unet.runtime.distributed import process_group as distributed

    if distributed.group().is_main:
        print("Dry run: settings, data, network and device are in order; one step was made and nothing was kept.")
    return 0


def _run(
    context: setup.Context, folder: Any, resolved: Resolved, command: str, resuming: bool, cleared: float | None
) -> int:
    from unet.runtime.folders import run_folder

    config, task, group = context.config, context.task, context.group
    began = time.perf_counter()
    cases = setup.all_cases(context)
    if cleared is None:  # the cache has only now been made
        cleared = clearing(context, context.device.rank.local == 0, cleared_here(config, context.device.rank.local))
    saved = folder / "splits.json"
    split = group.run_on_main(
        lambda: (
            run_files.read_split(saved, folder.name)
            if resuming and os.path.lexists(saved)
            else task.split([c.id for c in cases])
        )
    )
    mlperf_rules.require_cases(config, task, split)
    context = context.with_config(task.finalize_config(cases, group.world))
    folder.write("splits.json", split)
    folder.write("environment.json", run_folder.environment(context.device.describe()))
    weights = setup.weights_path(config.weights.weights[0])
    goes_on = resuming and run_resume.has_state(group, folder, CheckpointPaths(weights))
    log = mlperf_log(context, folder, split, goes_on)
    try:
        run = build(context, folder, cases, split, command, log if not goes_on else None, cleared)
        if log:
            run.callbacks.append(log)
        reason = trained(context, folder, run, split, goes_on, began)
    finally:
        if log:
            log.stop("aborted")  # where the loop has not said how it ended
    run.emit("on_finish")
    with setup.explaining_oom(context):
        return run_end.finish(context, folder, resolved, run, weights, cases, split, reason)


def trained(
    context: setup.Context, folder: Any, run: Trainer, split: dict[str, list[str]], goes_on: bool, began: float
) -> str:
    """Put the run where it begins, and train it. Returns why it ended."""
    from unet.runtime import trainer
    from unet.runtime.callbacks.logs import ArgonneCsvLog

    if goes_on:
        weights = setup.weights_path(context.config.weights.weights[0])
        run_resume.resume(run, folder, CheckpointPaths(weights), facts_of(context, folder, split))
    else:
        start_weights(context, run, context.config)
    for callback in run.callbacks:
        if isinstance(callback, ArgonneCsvLog):
            callback.init_seconds = time.perf_counter() - began
    folder.status("running")
    context.group.run_on_main(folder.begin)
    if (
        context.config.general.overwrite and context.config.save.checkpoints and not goes_on
    ):  # nothing goes on from the replaced run
        context.group.run_on_main(CheckpointPaths(setup.weights_path(context.config.weights.weights[0])).clear)
    if goes_on and (why := trainer.stop_reason(run)):
        folder.say(
            f"nothing is left to train: the run is {run_end.outcome_text(why)}; a higher --epochs or --max-steps goes"
            f" on"
        )
    context.group.on_peer_lost(functools.partial(_lost, folder, run))
    try:
        with run.stop.listen():
            return trainer.train(run)
    except (RuntimeError, MemoryError) as error:  # no context manager: that would keep the frames, and their tensors
        advice = setup.explain_oom(error, context, run)
        if advice:
            raise advice from error
        raise


def _lost(folder: Any, run: Trainer, why: str) -> None:
    """Another process is lost, and this one is about to be ended."""
    from unet.runtime.folders import run_folder

    run_folder.note(folder, "failed", why)
    run.emit("on_train_end", reason="failed")


def mlperf_log(context: setup.Context, folder: Any, split: dict[str, list[str]], goes_on: bool) -> Any:
    """The MLPerf log of --mlperf-division, in rank 0; None otherwise."""
    if context.config.mlperf.mlperf_division is None or not context.group.is_main:
        return None
    from unet.runtime.callbacks import mlperf

    return mlperf.MLPerfLog(folder, context.config, context.task.mlperf(), split, context.device.describe(), goes_on)


def build(
    context: setup.Context,
    folder: Any,
    cases: list[Any],
    split: dict[str, list[str]],
    command: str,
    log: Any = None,
    cleared: float | None = None,
) -> Trainer:
    """The trainer with its callbacks. The MLPerf clock of `log` starts when everything but the loader exists: the data
    are read after that."""
    from unet.runtime import evaluation, optim, seeding, trainer

    config, task, device, group = context.config, context.task, context.device, context.group
    training, validation = chosen(cases, split)
    seeding.seed_all(config.general.seed, device)
    model = device.place(task.build_model())
    compiled = device.compile(model) if config.device.compile else model
    eval_model = device.capture(compiled, training=False)
    network = device.parallel(device.capture(compiled))
    optimizer, scaler = optim.build(config, task.param_groups(model), device), device.scaler()
    predictor = setup.make_predictor(context, eval_model)
    if config.mlperf.mlperf_division:
        from unet.runtime.callbacks import mlperf

        mlperf.warm_up(config, task, device, model, network, eval_model, optimizer, scaler, predictor, group)
        if log:
            log.starts(group.world, mlperf_rules.process_began(), cleared)
    loader = batches(context, training)
    stop = trainer.Stop(config.train.max_time)
    loader.hurry(stop.requested)
    score = functools.partial(task.evaluate_case, predictor=predictor)
    evaluate = functools.partial(
        evaluation.score, validation[: config.eval.eval_steps], score, stop=stop.requested, group=group
    )
    evaluating = bool(validation) and config.run.mode not in ("train", "train_and_predict")
    run = trainer.Trainer(
        *(config, task, device, model, network, eval_model, optimizer, scaler, loader),
        evaluate=evaluate if evaluating else None,
        stop=stop,
        callbacks=build_callbacks(context, folder, split, command),
        group=group,
    )
    for line in opening_lines(context, run, training, validation):
        folder.say(line)
    return run


def batches(context: setup.Context, training: list[Any]) -> Any:
    """The task's loader. Raises UnetError where --data-on asks for more than the memory holds."""
    config, device, group = context.config, context.device, context.group
    try:
        return context.task.train_loader(training, (group.rank, group.world), device.loader_options(), device.put)
    except (RuntimeError, MemoryError) as error:
        if config.device.data_on == "disk" or not device.is_out_of_memory(error):
            raise
        raise UnetError(
            f"--data-on {config.device.data_on}: the {len(training)} training cases do not fit into the memory of"
            f" {device.describe()}.",
            "Type --data-on ram, or leave it out: then the cache is memory-mapped.",
        ) from error


def opening_lines(context: setup.Context, run: Trainer, training: list[Any], validation: list[Any]) -> list[str]:
    """What a user reads before the first step."""
    config, device, world = context.config, context.device, context.group.world
    item, size = context.task.item, config.train.batch_size * config.train.accumulate * world
    lines = [
        f"{context.task.name} on {device.describe()}, {str(device.dtype).removeprefix('torch.')};"
        f" {host.counted(len(training), 'training case')}, {host.counted(len(validation), 'validation case')};"
        f" {host.counted(run.steps_per_epoch, 'step')} of {host.counted(size, item[:-1])} an epoch",
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


def chosen(cases: list[Any], split: dict[str, list[str]]) -> tuple[list[Any], list[Any]]:
    """The training and validation cases of a split. Raises UnetError for a name that the cache lacks, or that is
    trained on and validated on."""
    both = sorted(set(split["train"]) & set(split["validation"]))
    if both:
        raise UnetError(
            f"{len(both)} cases are in training and in validation ({', '.join(both[:3])}): scores would say nothing.",
            "Name each case once in the --split file (of a stopped run: in its splits.json).",
        )
    by_id = {case.id: case for case in cases}
    lost = [name for name in (*split["train"], *split["validation"]) if name not in by_id]
    if lost:
        raise UnetError(
            f"{len(lost)} cases of the split are not in the cache ({', '.join(lost[:3])}).",
            "Restore them, or start a new run.",
        )
    return [by_id[name] for name in split["train"]], [by_id[name] for name in split["validation"]]


def build_callbacks(context: setup.Context, folder: Any, split: dict[str, list[str]], command: str) -> list[Any]:
    """The callbacks: bar, logs, picture of the curves, checkpoints."""
    from unet.runtime.callbacks import logs
    from unet.runtime.callbacks.checkpoint import Checkpoints

    config, score, group = context.config, context.task.metric.key, context.group
    workers: list[Any] = [logs.WorkerLog(folder, group.rank)] if config.distributed.log_all_workers else []
    if not group.is_main:
        return workers
    folder.own(*(logs.worker_log(rank) for rank in range(group.world) if config.distributed.log_all_workers))
    result: list[Any] = [
        *workers,
        logs.ProgressBar(),
        logs.MetricsLog(folder, score),
        logs.ArgonneCsvLog(folder, command),
        logs.Curves(folder, score),
    ]
    if config.run.tensorboard:
        from unet.runtime.callbacks.tensorboard import TensorBoard

        result.append(TensorBoard(folder))
    if config.run.debug_dump:
        from unet.runtime.callbacks.debug_dump import DebugDump

        result.append(DebugDump(Path(config.run.debug_dump)))
    if config.save.checkpoints:
        weights = setup.weights_path(config.weights.weights[0])
        result.append(Checkpoints(CheckpointPaths(weights), facts_of(context, folder, split)))
    return result


def facts_of(context: setup.Context, folder: Any, split: dict[str, list[str]]) -> dict[str, Any]:
    """What weights and states say of their run: who it is, its cases, the settings of its network."""
    kept = (*context.task.Settings.inference_settings, "layers", "width", "precision", "seed")
    return {
        "task": context.task.name,
        "run_name": folder.name,
        "run_id": folder.run_id,
        "training": split["train"],
        "validation": split["validation"],
        "settings": {name: files.jsonable(context.config.get(name)) for name in kept},
    }


def start_weights(context: setup.Context, run: Trainer, config: Config) -> None:
    if config.weights.load:
        from unet.runtime.checkpoints import checkpoint

        path = setup.weights_path(config.weights.load)
        _, own = context.task.convert_checkpoint(context.group.run_on_main(lambda: setup.read_weights(path))[1])
        checkpoint.fit(run.model, own, path)
