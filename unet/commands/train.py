"""train: from raw files or a cache to weights, scores, logs and pictures."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from unet import files, host
from unet.commands import compose, scores
from unet.config import Config, Resolved, dumps
from unet.errors import INTERRUPTED, TARGET_MISSED, UnetError, UsageError
from unet.files import make_folder, write_json, write_text

FIXED = ("task", "layers", "width", "image_size", "batch_size", "accumulate", "optimizer", "seed", "split", "held_out", "fold", "folds",
         "max_cases", "augment", "data", "cache", "synth_data")


def run(resolved: Resolved, command: str) -> int:
    """Train as the settings say. Returns 0, 3 (a typed --target was not reached) or 130 (stopped and saved)."""
    if resolved.config.seed == -1:
        resolved = dataclasses.replace(resolved, config=resolved.config.replace(seed=secrets.randbits(32)),
                                       sources={**resolved.sources, "seed": "drawn"})
    if len(resolved.config.weights) > 1:
        raise UsageError(f"train writes one file of weights, not {len(resolved.config.weights)}.", "Type one --weights FILE.")
    if resolved.config.dry_run:
        return dry_run(resolved)
    folder, resolved, resuming = open_run(resolved, command)
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
        changes: dict[str, Any] = {"out": scratch, "weights": (f"{scratch}/dry.pt",), "dry_run": False, "max_steps": 1, "eval_steps": 1,
                                   "run_name": "dry-run", "resume": None, "target": None, "checkpoints": False}
        small = dataclasses.replace(resolved, config=config.replace(**changes))
        run(small, "dry run")
    print("Dry run: settings, data, network and device are in order; one step was made and nothing was kept.")
    return 0


def open_run(resolved: Resolved, command: str) -> tuple[Any, Resolved, bool]:
    """The run's folder, new or resumed, with its config.json. Raises UsageError for a name that is taken."""
    from unet.runtime.run_folder import RunFolder, is_running, read_status

    config = resolved.config
    folder = RunFolder(Path(config.out) / (config.run_name or f"{config.task}-{time.strftime('%Y%m%d-%H%M%S')}"))
    if config.resume:
        status = read_status(folder.path)
        if is_running(status):
            raise UsageError(f"Run {folder.name!r} is running (process {status['pid']} on {status['host']}).", "Wait for it, or stop it.")
        _require_unchanged(folder.path, resolved)
        files.remove_leftovers(folder.path)
        return folder, resolved, True
    weights, resolved = free_weights(resolved, folder.name)
    if config.checkpoints:
        make_folder(weights.parent)
    make_folder(Path(config.out))
    folder.create(config.overwrite)
    state = state_path(weights)
    if config.overwrite:
        state.unlink(missing_ok=True)
    folder.status("running", started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                  **({"weights": str(weights), "state": str(state)} if config.checkpoints else {}))
    write_text(folder / "config.json", dumps(resolved, command))
    return folder, resolved, False


def _require_unchanged(folder: Path, resolved: Resolved) -> None:
    """A resumed run keeps what decides its course; other settings may be typed anew. Raises UsageError."""
    before = {name: item["value"] for name, item in files.read_json(folder / "config.json")["settings"].items()}
    now = resolved.table()
    changed = [f"{name} {before[name]} -> {now[name]['value']}" for name in FIXED
               if name in before and before[name] != now[name]["value"]]
    if changed:
        raise UsageError(f"--resume goes on exactly, but these settings were typed otherwise: {', '.join(changed)}.",
                         f"Leave them out; to start a new run from these weights: --load {resolved.config.weights[0]} --run-name NEW.")
    other = [f"{name} {before[name]} -> {now[name]['value']}" for name in ("lr", "epochs", "precision", "schedule", "clip", "target")
             if name in before and before[name] != now[name]["value"]]
    if other:
        host.notice(f"Changed on resuming: {', '.join(other)}.")


def state_path(weights: Path) -> Path:
    return weights.with_name(weights.stem + ".state.pt")


def free_weights(resolved: Resolved, run_name: str) -> tuple[Path, Resolved]:
    """Where the best weights go. The default name, if another run has written it, gives way to the run's own name; a typed
    name that is taken is an error (unless --overwrite)."""
    config = resolved.config
    path = compose.weights_path(config.weights[0])
    if not config.checkpoints or config.overwrite or not (path.exists() or state_path(path).exists()):
        return path, resolved
    if resolved.sources["weights"] != "default":
        raise UsageError(f"{path.absolute()} exists.", "Give another --weights-file, replace it with --overwrite, or go on with --resume.")
    name = f"{run_name}.pt"
    host.notice(f"{path} belongs to an earlier run and is kept; this run writes {compose.weights_path(name)}.")
    renamed = dataclasses.replace(resolved, config=config.replace(weights=(name,)), sources={**resolved.sources, "weights": "run name"})
    if compose.weights_path(name).exists():
        raise UsageError(f"{compose.weights_path(name).absolute()} exists.", "Give another --weights-file, or replace it with --overwrite.")
    return compose.weights_path(name), renamed


def _run(folder: Any, resolved: Resolved, command: str, resuming: bool) -> int:
    config = resolved.config
    began = time.perf_counter()
    task = compose.create(config.task)
    cases = task.cases(config)
    split = files.read_json(folder / "splits.json") if resuming and (folder / "splits.json").exists() else task.split(cases, config)
    write_json(folder / "splits.json", split)
    parts = compose.assemble(config)
    engine_run, weights = build(parts, folder, resolved, cases, split, command)
    if resuming:
        resume(engine_run, folder, state_path(weights))
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
    return finish(parts, folder, resolved, engine_run, weights, cases, split, reason)


def build(parts: compose.Parts, folder: Any, resolved: Resolved, cases: list[Any], split: dict[str, list[str]],
          command: str) -> tuple[Any, Path]:
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
        raise UnetError(f"Case {error.args[0]} of the split is not in the cache.", "Restore it, or start a new run.") from error
    seeding.seed_all(config.seed, device)
    model = device.place(task.model(config))
    network = device.compile(model) if config.compile else model
    shard = (parts.rank.rank, parts.rank.world)
    loader = task.batches(training, config, shard, device.loader_options(), device.put)
    stop = engine.Stop(config.max_time)
    infer = compose.infer(parts, network)
    scored = validation[:config.eval_steps]
    evaluating = bool(scored) and config.mode not in ("train", "train_and_predict")
    evaluate = functools.partial(evaluation.score, scored, functools.partial(task.evaluate, infer=infer), stop=stop.asked)
    weights = compose.weights_path(config.weights[0])
    facts = {"task": task.name, "run_name": folder.name, "validation": split["validation"],
             "settings": {name: files.jsonable(getattr(config, name)) for name in
                          ("image_size", "data", "cache", "synth_data", "layers", "width", "precision", "seed")}}
    log = callbacks.Log(folder, task.best[0])
    listeners: list[Any] = [callbacks.Bar(), log, callbacks.SeedLog(folder, command), callbacks.Curves(folder, task.best[0])]
    if config.checkpoints:
        listeners.append(callbacks.Checkpoints(weights, state_path(weights), facts))
    run = engine.Run(config, task, device, model, network, optim.build(config, task.groups(model), device), device.scaler(), loader,
                     evaluate if evaluating else None, stop, listeners)
    log.say(f"{task.name} on {device.describe()}, {str(device.dtype).removeprefix('torch.')}; {len(training)} training cases"
            f" ({sum(case.cost for case in training)} slices), {len(validation)} validation cases; {run.steps_per_epoch} steps an epoch")
    for why in parts.passed:
        log.say(f"not used: {why}")
    if not evaluating:
        log.say("nothing is evaluated: " + ("the split has no validation cases" if not validation else f"--mode {config.mode}")
                + "; the weights of the last epoch are kept")
    return run, weights


def start_weights(parts: compose.Parts, engine_run: Any, config: Config) -> None:
    if config.load:
        from unet.runtime import checkpoint

        path = Path(config.load) if Path(config.load).exists() else compose.weights_path(config.load)
        _, own = parts.task.load(compose.read_weights(path)[1])
        checkpoint.fit(engine_run.model, own, path)


def resume(engine_run: Any, folder: Any, state: Path) -> None:
    """Put the run where its state says, and cut its logs back to there; without a state (killed early) it starts over."""
    from unet.runtime import callbacks

    log = next(item for item in engine_run.callbacks if isinstance(item, callbacks.Log))
    files.remove_leftovers(state.parent)
    if not state.exists():
        folder.keep_lines("metrics.jsonl", 0)
        log.say("resumed: no state was saved yet, so the run starts over")
        return
    callbacks.restore(engine_run, state)
    progress = engine_run.progress
    folder.keep_lines("metrics.jsonl", progress.lines)
    best = f"; best {engine_run.task.best[0].upper()} {progress.best_score:.4f} (epoch {progress.best_epoch})" if progress.best_score is not None else ""
    log.say(f"resumed from {state}: epoch {progress.epoch}, batch {progress.batch}, step {progress.step}{best};"
            " network, optimiser, scaler and generators restored")


def finish(parts: compose.Parts, folder: Any, resolved: Resolved, engine_run: Any, weights: Path, cases: list[Any],
           split: dict[str, list[str]], reason: str) -> int:
    """Score the best weights in full, write the summary, show the closing block. Returns the exit code."""
    config, progress = parts.config, engine_run.progress
    stopped = reason.startswith("stopped")
    records = []
    if not stopped and engine_run.evaluate and config.checkpoints:
        validation = [case for case in cases if case.id in set(split["validation"])][:config.eval_steps]
        engine_run.model.load_state_dict(compose.read_weights(weights)[1])
        records = scores.full(parts, compose.infer(parts, engine_run.network), validation, folder)
    missed = config.target is not None and not progress.reached and not stopped
    summary = {"metric": parts.task.best[0], "best_score": progress.best_score, "best_epoch": progress.best_epoch, "ended": reason,
               "epochs": len(progress.history), "steps": progress.step, "images_per_second": progress.rate(),
               "data_wait_fraction": progress.wait_fraction(), "peak_memory_bytes": parts.device.memory(), "seconds": progress.seconds,
               "target": config.target, "target_reached": progress.reached, "cases": len(records), "device": parts.device.describe(),
               "paths": {"run": str(folder.path), "weights": str(weights), "state": str(state_path(weights))}}
    write_json(folder / "summary.json", summary)
    folder.status("interrupted" if stopped else "done", reason)
    print(closing(parts, folder, weights, engine_run, records, reason, missed))
    if config.mode == "train_and_predict" and not stopped:
        from unet.commands import predict

        predict.run(dataclasses.replace(resolved, config=config.replace(inputs=(), weights=(str(weights.absolute()),))), "")
    return INTERRUPTED if stopped else TARGET_MISSED if missed and resolved.sources["target"].startswith("flag") else 0


def closing(parts: compose.Parts, folder: Any, weights: Path, engine_run: Any, records: list[Any], reason: str, missed: bool) -> str:
    """The block at the end: what came out, where everything is, what to type next."""
    progress, config = engine_run.progress, parts.config
    seconds = progress.seconds
    lines = ["", f"Run {folder.name}: {reason} after {len(progress.history)} epochs, {progress.step} steps"]
    if progress.best_score is not None:
        lines.append(f"  best       {parts.task.best[0].upper()} {progress.best_score:.4f} in epoch {progress.best_epoch}"
                     + (f" (target {config.target} {'reached' if progress.reached else 'not reached'})" if config.target is not None else ""))
    lines += [f"  speed      {progress.rate():.1f} images/s in training, data wait {progress.wait_fraction():.1%},"
              f" peak memory {host.size(parts.device.memory())}",
              f"  time       training {seconds['train']:.1f} s, evaluation {seconds['evaluate']:.1f} s, saving {seconds['save']:.1f} s"]
    if records:
        lines += ["", scores.table(records, config.bootstrap)]
    lines += ["", f"  logs       {folder.path}/  (summary.json, metrics.jsonl, run.log, {folder.name}.txt)"]
    if config.checkpoints:
        lines.append(f"  weights    {weights}   state {state_path(weights)}")
    pictures = [name for name in ("progress.png", "predictions.png") if (folder / name).exists()]
    if pictures:
        lines.append(f"  pictures   {', '.join(str(folder / name) for name in pictures)}")
    lines.append("")
    data = compose.where(config.data, "data")
    if reason.startswith("stopped"):
        lines.append(f"  go on      python -m unet train --resume --run-name {folder.name}")
    elif config.checkpoints:
        shown = weights.name if weights.parent == Path("weights") else weights
        lines += [f"  score      python -m unet evaluate --weights {shown}", f"  predict    python -m unet predict --weights {shown} {data} --overlay"]
    return "\n".join(lines)
