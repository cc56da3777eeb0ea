"""How a run begins: its folder and names, taken or free; a stopped run put back where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unet import files, host, run_files
from unet.commands import compose, outputs
from unet.config import Config, spelt
from unet.errors import CheckpointError, UnetError, UsageError
from unet.files import make_folder
from unet.flags import DataOptions, DeviceOptions, MLPerfOptions, SplitOptions
from unet.flags_learning import NetworkOptions, TrainOptions
from unet.options import fields
from unet.resolve import Resolved, dumps
from unet.tasks.base import create

DUMPED = ("settings.json", "batch.npz", "layers.txt", "trace.json")  # by --debug-dump
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
    """The run's folder, new or resumed, and the names that it writes, held against other runs. A new folder is written
    by its `begin`. Raises UsageError for a name that is taken."""
    from unet.runtime.run_folder import RunFolder, new_folder

    config = resolved.config
    require_places(config)
    if config.resume:
        return resume_run(RunFolder(Path(config.out) / str(config.run_name)), resolved, command)
    folder = new_folder(Path(config.out), config.run_name, config.task, "train", config.overwrite)
    weights, resolved = free_weights(resolved, folder)
    state = state_path(weights)
    folder.write("config.json", dumps(resolved, command))
    folder.status(
        "running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        kind="train",
        **({"weights": str(weights.absolute()), "state": str(state.absolute())} if config.checkpoints else {}),
    )
    return folder, resolved, False


def require_places(config: Config) -> None:
    """What a run reads and writes besides its folder and weights, looked at before anything expensive is done. Raises
    UnetError."""
    if config.load and not config.resume:
        compose.read_weights(compose.weights_path(config.load))
    if config.mode == "train_and_predict" and config.checkpoints:
        output = outputs.absolute(Path(config.output))
        nearest = next(path for path in (output, *output.parents) if path.exists())
        if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
            make_folder(output)
        outputs.require_free(create(config.task), config.replace(inputs=()))
    if config.debug_dump and not config.resume and not config.overwrite:
        taken = [name for name in DUMPED if (Path(config.debug_dump) / name).exists()]
        if taken:
            raise UsageError(
                f"--debug-dump: {(Path(config.debug_dump) / taken[0]).absolute()} exists.",
                "Name another folder, or replace what is there with --overwrite.",
            )


def resume_run(folder: Any, resolved: Resolved, command: str) -> tuple[Any, Resolved, bool]:
    """The folder of a run that goes on. Its weights are those that its status names or, where that is damaged, its
    settings. Raises UsageError where it is running, or kept no weights."""
    folder.take()
    kept = _require_unchanged(folder.path, resolved)
    config = resolved.config
    status = run_files.read_status(folder.path)
    if not config.checkpoints or (status and "weights" not in status):
        raise UsageError(f"Run {folder.name!r} was made with --no-checkpoints: nothing was saved.", "Start a new run.")
    if not status:
        host.notice(f"{folder / 'status.json'} is missing or damaged; the run goes on from its state.")
    weights = Path(status.get("weights") or compose.weights_path(config.weights[0]).absolute())
    hold_weights(weights, folder)
    resolved = dataclasses.replace(resolved, config=config.replace(weights=(str(weights),)))
    files.remove_leftovers(folder.path)
    folder.write("config.json", dumps(resolved, command, kept))
    state = status.get("state", str(state_path(weights)))
    folder.status("running", kind="train", weights=str(weights), state=state)
    return folder, resolved, True


def hold_weights(weights: Path, folder: Any) -> None:
    """Hold a weights file and its state for a run. Raises UsageError while another run does."""
    from unet.runtime import claims

    if weights.is_dir():
        raise UsageError(f"{weights.absolute()}: is a folder.", "Name a file with --weights.")
    make_folder(weights.parent)
    state = state_path(weights)
    owner = claims.claim(state.with_name(f".{state.name}.unet.lock"), folder.path)
    if owner:
        raise UsageError(
            f"{weights.absolute()} is being written by another run ({owner}).",
            "Give another --weights FILE or --run-name, or wait for that run.",
        )


@contextlib.contextmanager
def noting(folder: Any, explain: Callable[[BaseException], BaseException] | None = None) -> Iterator[None]:
    """Write into status.json how a run ends that is interrupted or fails. One that fails before it has begun leaves no
    folder; one that is interrupted then can still be resumed. `explain` gives the error behind an error."""
    from unet.runtime.run_folder import note

    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(UnetError):
            folder.begin()
        note(folder, "interrupted", "outside the training loop, or by a second Ctrl-C")
        raise
    except Exception as error:
        found = explain(error) if explain else error
        words = found.message if isinstance(found, UnetError) else f"{type(found).__name__}: {found}"
        note(folder, "failed", words)
        if found is error:
            raise
        raise found from error


def _require_unchanged(folder: Path, resolved: Resolved) -> dict[str, Any]:
    """A resumed run keeps what decides its course. Returns the entries of config.json that stay as they are.

    Raises UsageError for a setting that may not change; what may, and does, is said.
    """
    entries = run_files.read_settings(folder / "config.json")
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
    """Where the best weights go, held for this run. The default name, if another run has it or has written it, gives
    way to the run's own name; a typed name that is taken is an error. With --overwrite a typed name is replaced, and a
    run of the same name keeps the name that it had; other runs' weights stay."""
    config = resolved.config
    path = compose.weights_path(config.weights[0])
    own = run_files.read_status(folder.path).get("weights") if config.overwrite else None
    typed = resolved.sources["weights"].startswith("flag")
    if not config.checkpoints:
        return path, resolved
    try:
        hold_weights(path, folder)
        free = not _taken(path) or (typed and config.overwrite) or own == str(path.absolute())
    except UsageError:
        if typed:
            raise
        free = False
    if free:
        return path, resolved
    name = f"{folder.name}.pt"
    other = compose.weights_path(name)
    if typed or (_taken(other) and own != str(other.absolute())):
        raise UsageError(
            f"{(path if typed else other).absolute()} exists.",
            "Give another --weights-file, replace it with --weights-file and --overwrite, or go on with --resume.",
        )
    hold_weights(other, folder)
    host.notice(f"{path} belongs to another run and is kept; this run writes {other}.")
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
