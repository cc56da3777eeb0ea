"""train: from raw files or a cache to weights, scores, logs and pictures."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from unet import files, host
from unet.commands import closing, compose, opening
from unet.config import Config
from unet.errors import UnetError, UsageError
from unet.files import write_json
from unet.resolve import Resolved


def run(resolved: Resolved, command: str) -> int:
    """Train as the settings say. Returns 0, 3 (a typed --target was not reached) or 130 (stopped and saved)."""
    if resolved.config.seed == -1:
        resolved = dataclasses.replace(
            resolved,
            config=resolved.config.replace(seed=secrets.randbits(32)),
            sources={**resolved.sources, "seed": "drawn"},
        )
    if len(resolved.config.weights) > 1:
        raise UsageError(
            f"train writes one file of weights, not {len(resolved.config.weights)}.", "Type one --weights FILE."
        )
    if resolved.config.dry_run:
        return dry_run(resolved)
    folder, resolved, resuming = opening.open_run(resolved, command)
    try:
        return _run(folder, resolved, command, resuming)
    except UnetError as error:
        _note(folder, "failed", error.message)
        raise
    except KeyboardInterrupt:
        _note(folder, "interrupted", "before the first state was saved, or by a second Ctrl-C")
        raise
    except Exception as error:
        _note(folder, "failed", f"{type(error).__name__}: {error}")
        raise


def _note(folder: Any, status: str, why: str) -> None:
    """Write the status if that is still possible: on a full disk the error itself matters more."""
    try:
        folder.status(status, why)
    except UnetError as error:
        host.notice(f"{error.message} (the status of the run could not be written)")


def dry_run(resolved: Resolved) -> int:
    """Everything but keeping: data, split, network, device, one step and one case scored, in a temporary folder."""
    config = resolved.config
    with tempfile.TemporaryDirectory() as scratch:
        changes: dict[str, Any] = {
            "out": scratch,
            "weights": (f"{scratch}/dry.pt",),
            "dry_run": False,
            "max_steps": 1,
            "eval_steps": 1,
            "run_name": "dry-run",
            "resume": None,
            "target": None,
            "checkpoints": False,
        }
        small = dataclasses.replace(resolved, config=config.replace(**changes))
        run(small, "dry run")
    print("Dry run: settings, data, network and device are in order; one step was made and nothing was kept.")
    return 0


def _run(folder: Any, resolved: Resolved, command: str, resuming: bool) -> int:
    config = resolved.config
    began = time.perf_counter()
    task = compose.create(config.task)
    cases = task.cases(config)
    split = (
        files.read_json(folder / "splits.json")
        if resuming and (folder / "splits.json").exists()
        else task.split(cases, config)
    )
    write_json(folder / "splits.json", split)
    parts = compose.assemble(config)
    engine_run, weights = build(parts, folder, resolved, cases, split, command)
    if resuming:
        opening.resume(engine_run, folder, opening.state_path(weights))
    else:
        start_weights(parts, engine_run, config)
    from unet.runtime import callbacks, engine

    seed_log = next(item for item in engine_run.callbacks if isinstance(item, callbacks.SeedLog))
    seed_log.init_seconds = time.perf_counter() - began
    folder.status("running")
    try:
        with engine_run.stop.listen():
            reason = engine.train(engine_run)
    except (RuntimeError, MemoryError) as error:
        advice = compose.advise_memory(error, parts)
        if advice:
            raise advice from error
        raise
    for callback in engine_run.callbacks:
        if hasattr(callback, "finish"):
            callback.finish(engine_run)
    return closing.finish(parts, folder, resolved, engine_run, weights, cases, split, reason)


def build(
    parts: compose.Parts, folder: Any, resolved: Resolved, cases: list[Any], split: dict[str, list[str]], command: str
) -> tuple[Any, Path]:
    """The loop's Run with its callbacks, and where the weights go."""
    import functools

    from unet.runtime import callbacks, engine, evaluation, optim, seeding
    from unet.runtime.run_folder import environment

    config, task, device = parts.config, parts.task, parts.device
    write_json(folder / "environment.json", environment(device.describe()))
    by_id = {case.id: case for case in cases}
    try:
        training, validation = ([by_id[name] for name in split[part]] for part in ("train", "validation"))
    except KeyError as error:
        raise UnetError(
            f"Case {error.args[0]} of the split is not in the cache.", "Restore it, or start a new run."
        ) from error
    seeding.seed_all(config.seed, device)
    model = device.place(task.model(config))
    network = device.compile(model) if config.compile else model
    shard = (parts.rank.rank, parts.rank.world)
    loader = task.batches(training, config, shard, device.loader_options(), device.put)
    stop = engine.Stop(config.max_time)
    infer = compose.infer(parts, network)
    scored = validation[: config.eval_steps]
    evaluating = bool(scored) and config.mode not in ("train", "train_and_predict")
    evaluate = functools.partial(
        evaluation.score, scored, functools.partial(task.evaluate, infer=infer), stop=stop.asked
    )
    weights = compose.weights_path(config.weights[0])
    facts = {
        "task": task.name,
        "run_name": folder.name,
        "validation": split["validation"],
        "settings": {
            name: files.jsonable(getattr(config, name))
            for name in ("image_size", "data", "cache", "synth_data", "layers", "width", "precision", "seed")
        },
    }
    log = callbacks.Log(folder, task.best[0])
    listeners: list[Any] = [
        callbacks.Bar(),
        log,
        callbacks.SeedLog(folder, command),
        callbacks.Curves(folder, task.best[0]),
    ]
    if config.checkpoints:
        listeners.append(callbacks.Checkpoints(weights, opening.state_path(weights), facts))
    run = engine.Run(
        config,
        task,
        device,
        model,
        network,
        optim.build(config, task.groups(model), device),
        device.scaler(),
        loader,
        evaluate if evaluating else None,
        stop,
        listeners,
    )
    log.say(
        f"{task.name} on {device.describe()}, {str(device.dtype).removeprefix('torch.')}; {len(training)}"
        " training cases"
        f" ({sum(case.cost for case in training)} slices), {len(validation)} validation cases;"
        f" {run.steps_per_epoch} steps an epoch"
    )
    for why in parts.passed:
        log.say(f"not used: {why}")
    if not evaluating:
        log.say(
            "nothing is evaluated: "
            + ("the split has no validation cases" if not validation else f"--mode {config.mode}")
            + "; the weights of the last epoch are kept"
        )
    return run, weights


def start_weights(parts: compose.Parts, engine_run: Any, config: Config) -> None:
    if config.load:
        from unet.runtime import checkpoint

        path = Path(config.load) if Path(config.load).exists() else compose.weights_path(config.load)
        _, own = parts.task.load(compose.read_weights(path)[1])
        checkpoint.fit(engine_run.model, own, path)
