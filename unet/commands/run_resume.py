"""Resuming a run: finds its weights and states, loads the latest intact state, and restores the matching best
weights."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host
from unet.config.run_files import POWER_CSV, RESULTS_CSV
from unet.config.schema import Config, shell_path, weights_to_read, weights_to_write
from unet.errors import CheckpointError, DamagedError, UsageError
from unet.runtime.checkpoints.checkpoint_paths import KEPT, CheckpointPaths, metadata_of, set_aside
from unet.runtime.progress import is_kept
from unet.tasks.registry import create

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase
    from unet.runtime.distributed.process_group import Group
    from unet.runtime.folders.run_folder import RunFolder
    from unet.runtime.trainer import Trainer

PLACES = ("data", "cache", "synth_data", "precision")  # settings that may differ from those of the saved state


def weights_of_run(folder: RunFolder, entries: Mapping[str, Any], typed: Sequence[str]) -> Path:
    """The path of a stopped run's weights: from its status; if the folder was moved or copied, relative to the folder;
    else from its settings (`entries` of config.json). Raises UsageError if it saved none, or other weights were
    typed."""
    from unet.runtime.folders.run_folder import read_status

    if not entries.get("checkpoints", {"value": True})["value"]:
        raise UsageError(f"Run {folder.name!r} was made with --no-checkpoints: nothing was saved.", "Start a new run.")
    status, here = read_status(folder.path), folder.path.absolute()
    known, place = status.get("weights"), status.get("folder")
    candidates = []
    if isinstance(known, str) and isinstance(place, str) and Path(place) == here:
        candidates.append(Path(known))
    elif isinstance(known, str) and isinstance(place, str):
        candidates.append(Path(os.path.normpath(here / os.path.relpath(known, place))))
    named = entries.get("weights", {"value": None})["value"]
    name = str(named[0]) if isinstance(named, list) and named else f"{folder.name}.safetensors"
    candidates += [here.parent.parent / "weights" / weights_to_write(name).name, weights_to_write(name)]
    if isinstance(known, str):
        candidates.append(Path(known))
    paths = [weights_to_write(str(path.absolute())) for path in candidates]
    found = next((path for path in paths if CheckpointPaths(path).taken()), paths[0])
    if typed and weights_to_write(typed[0]).absolute() != found:
        raise UsageError(
            f"Run {folder.name!r} writes its weights to {found}, not to {weights_to_write(typed[0])}.",
            "Leave --weights out; to start a new run from these weights: --load FILE --run-name NEW.",
        )
    return found


def has_state(group: Group, folder: RunFolder, paths: CheckpointPaths) -> bool:
    """Whether a resumed run has a saved state; a run that was killed before its first state starts over. Raises
    CheckpointError if a state was saved and has disappeared."""

    def there() -> bool:
        files.remove_leftovers(paths.weights.parent)
        return bool(paths.states())

    if group.run_on_main(there):
        return True
    if '"event": "epoch"' in folder.text("metrics.jsonl"):
        raise CheckpointError(
            f"{paths.state}: the state of run {folder.name!r} is gone.",
            f"Restore the file, or start again: --overwrite --run-name {shlex.quote(folder.name)}",
        )
    for name in ("metrics.jsonl", RESULTS_CSV, POWER_CSV):
        folder.keep_lines(name, 0)
    folder.say("resumed: no state was saved yet, so the run starts over")
    return False


def resume(run: Trainer, folder: RunFolder, paths: CheckpointPaths, facts: Mapping[str, Any]) -> None:
    """Restore the latest intact state, and truncate the logs to it. `facts` is the metadata that a state of this run
    must have. Raises CheckpointError if there is no state, or it belongs to another run."""
    from unet.runtime.callbacks import checkpoint
    from unet.runtime.folders.run_folder import MLPERF_LOG

    group = run.group
    state, content = group.run_on_main(lambda: find_state(folder, paths, facts))
    checkpoint.restore(run, content, state)
    group.run_on_main(lambda: match_best(paths, facts, content))
    group.run_on_main(lambda: match_kept(run, paths, content))
    progress = run.progress
    progress.lines = folder.keep_lines("metrics.jsonl", progress.lines)
    progress.mlperf_lines = folder.keep_lines(MLPERF_LOG, progress.mlperf_lines)
    progress.power_lines = folder.keep_lines(POWER_CSV, progress.power_lines)
    score = progress.best_score
    name = run.task.metric.name
    best = "" if score is None else f"; best {name} {score:.4f} (epoch {progress.best_epoch})"
    folder.say(
        f"resumed from {state}: epoch {progress.epoch}, batch {progress.batch}, step {progress.step}{best};"
        " network, optimiser, scaler and generators restored"
        + (f"; saved by {run.ranks_before} processes" if run.ranks_before != group.world else "")
    )


def find_state(folder: RunFolder, paths: CheckpointPaths, facts: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
    """(path, content) of the latest intact state. Damaged ones are reported and renamed. Raises CheckpointError if none
    is intact, or it is not a state of this run."""
    from unet.runtime.checkpoints import checkpoint

    damaged: list[tuple[Path, DamagedError]] = []
    missing = not paths.state.exists()
    for path in paths.states():
        try:
            content = checkpoint.read(path)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        checkpoint.require_state(content, path)
        require_same_run(content, facts, path)
        break
    else:
        words = damaged[0][1].message if damaged else f"{paths.state}: no such file."
        raise CheckpointError(
            f"{words} There is no earlier intact state.",
            f"Restore the file, or start again: --overwrite --run-name {shlex.quote(folder.name)}",
        )
    for bad, fault in damaged:
        folder.say(f"{fault.message} It is set aside; the run is resumed from an earlier state, {path.name}.")
        set_aside(bad, "damaged")
    if missing and path == paths.state_before:
        folder.say(f"{paths.state.name} is missing; the run is resumed from the state before it, {path.name}.")
    return path, content


def require_same_run(content: Mapping[str, Any], facts: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if a state does not belong to the resumed run: another run, split, seed or network."""
    other, own = (_called(about) for about in (content, facts))
    both = content.get("run_id") and facts.get("run_id")
    names = "run_id" if both else "run_name"
    if facts and content.get(names) != facts.get(names):
        raise _foreign(path, f"a state of {other}, and the run that goes on is {own}")
    for name in ("training", "validation"):
        if facts and sorted(content.get(name, [])) != sorted(facts[name]):
            counts = f"{len(content.get(name, []))} there, {len(facts[name])} here"
            differ = sorted(set(content.get(name, [])) ^ set(facts[name]))[:1]
            raise _foreign(path, f"saved with other {name} cases ({counts}; for example {differ})")
    if facts and facts.get("data") and content.get("data") not in (None, facts["data"]):
        raise CheckpointError(
            f"{path.absolute()}: saved while the images or masks of these cases were others: they changed since.",
            f"Restore them and make the cache again; or start a new run from these weights: --load {shell_path(path)}"
            " --run-name NEW.",
        )
    there, here = content.get("settings", {}), facts.get("settings", {})
    wrong = [key for key in here if key in there and key not in PLACES and there[key] != here[key]]
    if content.get("task") != facts.get("task", content.get("task")):
        raise _foreign(path, f"of task {content.get('task')}, and the run is of {facts['task']}")
    if wrong:
        words = ", ".join(f"{key} {there[key]} there, {here[key]} here" for key in wrong[:3])
        raise _foreign(path, f"saved with other settings ({words})")


def other_data(about: Mapping[str, Any], config: Config, fold: int, cases: Sequence[CachedCase]) -> str:
    """How the data of a fold differ from those that `about`, the metadata of its weights, tells of, in words: cases
    changed, came or went since, or are in another fold. Empty where they do not, or it is not known."""
    from unet.data.cache.cached_case import data_digest

    if not about.get("data"):
        return ""
    seed = about.get("settings", {}).get("seed", config.general.seed)
    now = data_digest(cases, create(config.replace(fold=fold, seed=seed)).split([case.id for case in cases]))
    if now in (None, about["data"]):
        return ""
    ids = {*about.get("training", ()), *about.get("validation", ())} ^ {case.id for case in cases}
    return f"the set has other cases now, for example {min(ids)}" if ids else "cases changed since, or their fold"


def _called(about: Mapping[str, Any]) -> str:
    number = about.get("run_id")
    return f"{about.get('run_name')!r}" + (f" ({number})" if number else "")


def _foreign(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path.absolute()}: {why}.",
        f"Put this run's own state back; or start a new run from these weights: --load {shell_path(path)}"
        " --run-name NEW.",
    )


def best_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weights of a state that are scored and kept: the moving average where there is one."""
    weights: Mapping[str, Any] = (content.get("ema") or content)["model"]
    return weights


def match_kept(run: Trainer, paths: CheckpointPaths, content: Mapping[str, Any]) -> None:
    """Keep the weights of the state's last epoch if --keep-every asks for them and they are missing: the run may have
    been killed between the two writes."""
    rows = content["progress"]["history"]
    if not rows or rows[-1]["step"] != content["progress"]["step"] or not is_kept(run.saving.keep_every, rows[-1]):
        return
    path = paths.of_epoch(rows[-1]["epoch"])
    if run.saving.checkpoints and KEPT not in metadata_of(path):
        run.emit("keep", row=rows[-1])
        host.notice(f"{path}: the weights of epoch {rows[-1]['epoch']}, to be kept, are restored")


def match_best(paths: CheckpointPaths, facts: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Make the file of the best weights match the state's best epoch: the run may have been killed between the two
    writes, or an earlier state is used. A replaced file is renamed."""
    from unet.runtime.checkpoints import checkpoint

    progress = content["progress"]
    if progress["best_score"] is None or not math.isfinite(progress["best_score"]):
        return

    def is_best(path: Path) -> bool:
        about = metadata_of(path)
        mine = about.get("run_id") == facts.get("run_id") and about.get("run_name") == facts.get("run_name")
        return mine and about.get("epoch") == progress["best_epoch"] and about.get("score") == progress["best_score"]

    if is_best(paths.weights):
        return
    if paths.weights.exists() and not paths.weights.stat().st_size:
        set_aside(paths.weights, "damaged")
    if is_best(paths.weights_before):
        if paths.weights.exists():
            set_aside(paths.weights, "later")
        paths.weights_before.replace(paths.weights)
        host.notice(f"{paths.weights}: the weights of epoch {progress['best_epoch']}, the best so far, are restored")
        return
    row = progress["history"][-1] if progress["history"] else {}
    about = {name: row.get(name) for name in ("epoch", "step", "score")}
    if row.get("epoch") == progress["best_epoch"] and row.get("step") == progress["step"]:
        checkpoint.save_weights(paths.weights, {**facts, **about}, best_of(content), paths.weights_before)
    elif paths.earlier_weights.exists() and not paths.weights.exists():
        earlier = checkpoint.read(weights_to_read(str(paths.earlier_weights.absolute())))
        about = {name: earlier.get(name) for name in about}
        checkpoint.save_weights(paths.weights, {**facts, **about}, checkpoint.weights_of(earlier))
    elif paths.weights.exists():
        host.notice(f"{paths.weights} does not hold the best epoch of the resumed state ({progress['best_epoch']})")
