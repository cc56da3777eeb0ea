"""How a run begins: its folder and names, taken or free; a stopped run put back where it was."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from unet import files, host
from unet.commands import compose
from unet.config import spelt
from unet.errors import CheckpointError, UsageError
from unet.files import make_folder, write_text
from unet.flags import DataOptions, DeviceOptions, MLPerfOptions, SplitOptions
from unet.flags_learning import NetworkOptions, TrainOptions
from unet.options import fields
from unet.resolve import Resolved, dumps

# What a resumed run may be told otherwise; every other setting of these groups decides its course and stays.
COURSE = (DataOptions, SplitOptions, NetworkOptions, TrainOptions, MLPerfOptions)
FREE = {
    *("epochs", "max_steps", "max_time", "target", "patience", "evaluate_every", "start_eval_at", "nonfinite_limit"),
    *("lr", "schedule", "lr_milestones", "lr_gamma", "clip", "weight_decay", "momentum"),
    *("workers", "log_every", "rebuild_cache", "mlperf_warmup", "drop_caches"),
}


def state_path(weights: Path) -> Path:
    return weights.with_name(weights.stem + ".state.pt")


def open_run(resolved: Resolved, command: str) -> tuple[Any, Resolved, bool]:
    """The run's folder, new or resumed, with its config.json. Raises UsageError for a name that is taken."""
    from unet.runtime.run_folder import RunFolder, read_status

    config = resolved.config
    folder = RunFolder(compose.run_path(config, config.task))
    if config.resume:
        folder.require_stopped()
        kept = _require_unchanged(folder.path, resolved)
        status = read_status(folder.path)
        if "weights" not in status:
            raise UsageError(
                f"Run {folder.name!r} was made with --no-checkpoints: nothing was saved.", "Start a new run."
            )
        resolved = dataclasses.replace(resolved, config=config.replace(weights=(status["weights"],)))
        files.remove_leftovers(folder.path)
        write_text(folder / "config.json", dumps(resolved, command, kept))
        return folder, resolved, True
    weights, resolved = free_weights(resolved, folder)
    if config.checkpoints:
        make_folder(weights.parent)
    make_folder(Path(config.out))
    folder.create("train", config.overwrite)
    state = state_path(weights)
    if config.overwrite:
        state.unlink(missing_ok=True)
    write_text(folder / "config.json", dumps(resolved, command))
    folder.status(
        "running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        kind="train",
        **({"weights": str(weights.absolute()), "state": str(state.absolute())} if config.checkpoints else {}),
    )
    return folder, resolved, False


def _require_unchanged(folder: Path, resolved: Resolved) -> dict[str, Any]:
    """A resumed run keeps what decides its course. Returns the entries of config.json that stay as they are.

    Raises UsageError for a setting that may not change; what may, and does, is said.
    """
    entries: dict[str, Any] = files.read_json(folder / "config.json")["settings"]
    now = resolved.table()
    changed = {name for name in entries if name in now and entries[name]["value"] != now[name]["value"]}
    course = {name for group in COURSE for name in fields(group)} - FREE | {"task", "seed", "deterministic"}
    words = {name: f"{name} {entries[name]['value']} -> {now[name]['value']}" for name in sorted(changed)}
    if changed & course:
        raise UsageError(
            f"--resume goes on exactly, but these settings were typed otherwise:"
            f" {', '.join(words[name] for name in words if name in course)}.",
            f"Leave them out; to start a new run from these weights: --load {spelt(Path(resolved.config.weights[0]))}"
            " --run-name NEW.",
        )
    said = [words[name] for name in words if name in FREE - {"max_time"} | set(fields(DeviceOptions))]
    if said:
        host.notice(f"Changed on resuming: {', '.join(said)}.")
    return {name: entry for name, entry in entries.items() if name not in changed}


def free_weights(resolved: Resolved, folder: Any) -> tuple[Path, Resolved]:
    """Where the best weights go. The default name, if another run has written it, gives way to the run's own name; a
    typed name that is taken is an error. With --overwrite a typed name is replaced, and a run of the same name keeps
    the name that it had; other runs' weights stay."""
    from unet.runtime.run_folder import read_status

    config = resolved.config
    path = compose.weights_path(config.weights[0])
    own = read_status(folder.path).get("weights") if config.overwrite else None
    typed = resolved.sources["weights"].startswith("flag")
    if not config.checkpoints or not _taken(path) or (typed and config.overwrite) or own == str(path.absolute()):
        return path, resolved
    name = f"{folder.name}.pt"
    other = compose.weights_path(name)
    if typed or (_taken(other) and own != str(other.absolute())):
        raise UsageError(
            f"{(path if typed else other).absolute()} exists.",
            "Give another --weights-file, replace it with --weights-file and --overwrite, or go on with --resume.",
        )
    host.notice(f"{path} belongs to an earlier run and is kept; this run writes {other}.")
    sources = {**resolved.sources, "weights": "run name"}
    return other, dataclasses.replace(resolved, config=config.replace(weights=(name,)), sources=sources)


def _taken(weights: Path) -> bool:
    return weights.exists() or state_path(weights).exists()


def has_state(group: Any, folder: Any, state: Path) -> bool:
    """Whether a resumed run has a state to go on from; where it was killed before its first one it starts over. Raises
    CheckpointError where a state was saved and is gone."""

    def there() -> bool:
        files.remove_leftovers(state.parent)
        return state.exists()

    if group.first(there):
        return True
    if '"event": "epoch"' in folder.text("metrics.jsonl"):
        raise CheckpointError(
            f"{state}: the state of run {folder.name!r} is gone.",
            f"Restore the file, or start anew: --overwrite --run-name {folder.name}",
        )
    folder.keep_lines("metrics.jsonl", 0)
    folder.say("resumed: no state was saved yet, so the run starts over")
    return False


def resume(engine_run: Any, folder: Any, state: Path) -> None:
    """Put the run where its state says, and cut its logs back to there."""
    from unet.runtime import callbacks
    from unet.runtime.run_folder import MLPERF_LOG

    callbacks.restore(engine_run, state)
    progress = engine_run.progress
    folder.keep_lines("metrics.jsonl", progress.lines)
    folder.keep_lines(MLPERF_LOG, progress.mlperf_lines)
    score = progress.best_score
    name = engine_run.task.score
    best = "" if score is None else f"; best {name} {score:.4f} (epoch {progress.best_epoch})"
    folder.say(
        f"resumed from {state}: epoch {progress.epoch}, batch {progress.batch}, step {progress.step}{best};"
        " network, optimiser, scaler and generators restored"
        + (
            f"; saved by {engine_run.ranks_before} processes"
            if engine_run.ranks_before != engine_run.group.world
            else ""
        )
    )
