"""How a run begins: its folder and names, taken or free; a stopped run put back where it was."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from unet import files, host
from unet.commands import compose
from unet.errors import UsageError
from unet.files import make_folder, write_text
from unet.resolve import Resolved, dumps

FIXED = (
    "task",
    "layers",
    "width",
    "image_size",
    "batch_size",
    "accumulate",
    "optimizer",
    "seed",
    "split",
    "held_out",
    "fold",
    "folds",
    "max_cases",
    "augment",
    "data",
    "cache",
    "synth_data",
)


def state_path(weights: Path) -> Path:
    return weights.with_name(weights.stem + ".state.pt")


def open_run(resolved: Resolved, command: str) -> tuple[Any, Resolved, bool]:
    """The run's folder, new or resumed, with its config.json. Raises UsageError for a name that is taken."""
    from unet.runtime.run_folder import RunFolder, is_running, read_status

    config = resolved.config
    folder = RunFolder(compose.run_path(config, config.task))
    if config.resume:
        status = read_status(folder.path)
        if is_running(status):
            raise UsageError(
                f"Run {folder.name!r} is running (process {status['pid']} on {status['host']}).",
                "Wait for it, or stop it.",
            )
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
    write_text(folder / "config.json", dumps(resolved, command))
    folder.status(
        "running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **({"weights": str(weights), "state": str(state)} if config.checkpoints else {}),
    )
    return folder, resolved, False


def _require_unchanged(folder: Path, resolved: Resolved) -> None:
    """A resumed run keeps what decides its course; other settings may be typed anew. Raises UsageError."""
    before = {name: item["value"] for name, item in files.read_json(folder / "config.json")["settings"].items()}
    now = resolved.table()
    changed = [
        f"{name} {before[name]} -> {now[name]['value']}"
        for name in FIXED
        if name in before and before[name] != now[name]["value"]
    ]
    if changed:
        raise UsageError(
            f"--resume goes on exactly, but these settings were typed otherwise: {', '.join(changed)}.",
            f"Leave them out; to start a new run from these weights: --load {resolved.config.weights[0]}"
            " --run-name NEW.",
        )
    other = [
        f"{name} {before[name]} -> {now[name]['value']}"
        for name in ("lr", "epochs", "precision", "schedule", "clip", "target")
        if name in before and before[name] != now[name]["value"]
    ]
    if other:
        host.notice(f"Changed on resuming: {', '.join(other)}.")


def free_weights(resolved: Resolved, run_name: str) -> tuple[Path, Resolved]:
    """Where the best weights go. The default name, if another run has written it, gives way to the run's own name; a
    typed name that is taken is an error (unless --overwrite)."""
    config = resolved.config
    path = compose.weights_path(config.weights[0])
    if not config.checkpoints or config.overwrite or not (path.exists() or state_path(path).exists()):
        return path, resolved
    if resolved.sources["weights"].startswith("flag"):
        raise UsageError(
            f"{path.absolute()} exists.",
            "Give another --weights-file, replace it with --overwrite, or go on with --resume.",
        )
    name = f"{run_name}.pt"
    host.notice(f"{path} belongs to an earlier run and is kept; this run writes {compose.weights_path(name)}.")
    renamed = dataclasses.replace(
        resolved, config=config.replace(weights=(name,)), sources={**resolved.sources, "weights": "run name"}
    )
    if compose.weights_path(name).exists():
        raise UsageError(
            f"{compose.weights_path(name).absolute()} exists.",
            "Give another --weights-file, or replace it with --overwrite.",
        )
    return compose.weights_path(name), renamed


def resume(engine_run: Any, folder: Any, state: Path) -> None:
    """Put the run where its state says, and cut its logs back to there; without a state (killed early) it starts
    over.
    """
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
    best = (
        f"; best {engine_run.task.best[0].upper()} {progress.best_score:.4f} (epoch {progress.best_epoch})"
        if progress.best_score is not None
        else ""
    )
    log.say(
        f"resumed from {state}: epoch {progress.epoch}, batch {progress.batch}, step {progress.step}{best};"
        " network, optimiser, scaler and generators restored"
    )
