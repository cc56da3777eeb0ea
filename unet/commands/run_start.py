"""The start of a run: its folder, its names, locks against other runs; resuming a stopped run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host, locks
from unet.commands import number_format, predict, predict_outputs, run_resume, setup
from unet.config import run_files
from unet.config.options import flag
from unet.config.resolve import Resolved, dumps
from unet.config.run_files import DUMP_LIST, DUMPED
from unet.config.schema import Config, declared_of, resolve_path, weights_to_read, weights_to_write
from unet.devices import launchers
from unet.errors import CheckpointError, UnetError, UsageError
from unet.files import make_folder
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths, metadata_of
from unet.tasks.base import Task, as_typed
from unet.tasks.registry import create

if TYPE_CHECKING:
    from unet.runtime.folders.run_folder import RunFolder

# Settings of a resumed run that may change; the other settings of these groups must stay.
COURSE = ("data", "split", "network", "train", "mlperf", "eval")
FREE = {
    *("epochs", "max_steps", "max_time", "target", "patience", "evaluate_every", "start_eval_at", "nonfinite_limit"),
    *("lr", "schedule", "lr_milestones", "lr_gamma", "clip", "weight_decay", "momentum"),
    *("workers", "log_every", "rebuild_cache", "mlperf_warmup", "drop_caches"),
    *("eval_batch_size", "bootstrap", "eval_loss", "subjects_to_plot"),  # of the evaluation, what leaves its scores
}
BEGUN = {"task", "seed", "deterministic", "recipe", "load"}  # of other groups, what a run has begun with
UNSCORED = ("train", "train_and_predict")  # modes without evaluation


def open_run(resolved: Resolved, command: str) -> tuple[RunFolder, Resolved, bool]:
    """(folder, settings, whether it is resumed) of a run; the names that it writes are locked against other runs. A new
    folder is written only by its `begin`. Raises UsageError for a name that is taken."""
    from unet.runtime.folders.run_folder import RunFolder, new_folder

    config = resolved.config
    require_places(config)
    if config.save.resume:
        return resume_run(RunFolder(Path(config.run.out) / str(config.run.run_name)), resolved, command)
    folder = new_folder(Path(config.run.out), config.run.run_name, config.task.name, "train", config.general.overwrite)
    weights, resolved = free_weights(resolved, folder)
    hold_output(config, folder)
    folder.run_id = secrets.token_hex(8)
    folder.write("config.json", dumps(resolved, command, run_id=folder.run_id))
    folder.status(
        "running",
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        kind="train",
        start=os.environ.get(launchers.START),
        **(_places(folder, weights) if config.save.checkpoints else {}),
    )
    return folder, resolved, False


def environment(context: setup.Context, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """What environment.json holds; `paths`: the weights that are applied."""
    from unet.runtime.folders import run_folder

    return run_folder.environment(context.device.describe(), number_format.chosen(context.device, paths))


def _places(folder: RunFolder, weights: Path) -> dict[str, str]:
    """The paths of a run, by which a moved folder is recognised later."""
    paths = {"folder": folder.path, "weights": weights, "state": CheckpointPaths(weights).state}
    return {name: str(path.absolute()) for name, path in paths.items()}


def require_places(config: Config) -> None:
    """Check early what a run reads and writes besides its folder and weights. Raises UnetError."""
    if config.weights.load and not config.save.resume:
        require_loadable(config, weights_to_read(config.weights.load))
    if config.run.debug_dump:
        require_dump(Path(config.run.debug_dump), config.general.overwrite or bool(config.save.resume))


def require_loadable(config: Config, path: Path) -> None:
    """Read the weights of --load. Raises CheckpointError with both networks in words where they do not fit: before data
    are prepared. Weights of another task are taken where their shapes fit."""
    facts, state = setup.read_weights(path)
    stored, task = facts.get("settings", {}), create(config)
    known = [name for name in setup.shaping(task.Settings) if name in stored]
    differing = [name for name in known if stored[name] != files.jsonable(config.get(name))]
    foreign = facts.get("task") not in (None, task.name)
    if not (foreign or differing) or _fits(task, state):
        return
    shown = list(dict.fromkeys([name for name in ("layers", "width") if name in known] + differing))

    def words(name: str, values: Mapping[str, Any]) -> str:
        return ", ".join([name, *(f"{each} {as_typed(values[each])}" for each in shown)])

    there, here = (str(facts.get("task", task.name)), stored), (task.name, {each: config.get(each) for each in shown})
    flags = " ".join(f"{flag(name)} {as_typed(stored[name])}" for name in shown)
    again = f"--task {there[0]} {flags}".strip() if foreign else flags
    raise CheckpointError(
        f"{path.absolute()}: task {words(*there)}; here {words(*here)}.",
        f"Give weights of such a network of task {task.name} with --load, or type {again}.",
    )


def _fits(task: Task, state: Mapping[str, Any]) -> bool:
    """Whether weights have the names and shapes of a task's network."""

    def shapes(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {key: tuple(each.shape) for key, each in tensors.items() if not key.endswith("num_batches_tracked")}

    try:
        return shapes(task.convert_checkpoint(state)[1]) == shapes(task.build_model().state_dict())
    except CheckpointError:
        return False


def require_dump(folder: Path, replaced: bool) -> None:
    """Raise UsageError if --debug-dump would overwrite files of other programs, or a dump without --overwrite."""
    taken = [name for name in (*DUMPED, DUMP_LIST) if os.path.lexists(folder / name)]
    try:
        listed = files.read_json(folder / DUMP_LIST, run_files.MANIFEST)["files"] if taken else []
    except UnetError:
        listed = []
    foreign = [name for name in taken if name not in listed]
    if foreign:
        raise UsageError(
            f"--debug-dump: {(folder / foreign[0]).absolute()} exists, and {DUMP_LIST} does not list it as written by"
            " this program.",
            "Name another folder.",
        )
    if taken and not replaced:
        raise UsageError(
            f"--debug-dump: {(folder / taken[0]).absolute()} exists.",
            "Name another folder, or replace what is there with --overwrite.",
        )


def hold_output(config: Config, folder: RunFolder) -> None:
    """Check that the masks of --mode train_and_predict can be written, and lock their folder now, so that it is still
    free after training. Raises UnetError."""
    if config.run.mode != "train_and_predict" or not config.save.checkpoints:
        return
    output = predict_outputs.absolute(Path(config.predict.output))
    nearest = next(path for path in (output, *output.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        make_folder(output)
    predict_outputs.require_free(create(config), config.replace(inputs=()), folder.earlier)
    make_folder(output.parent)
    if owner := locks.acquire(output.with_name(f".{output.name}.unet.lock"), folder.path):
        raise UsageError(
            f"--output: another run will write its masks into {output} ({owner}).",
            "Name another --output, or wait for that run.",
        )


def resume_run(folder: RunFolder, resolved: Resolved, command: str) -> tuple[RunFolder, Resolved, bool]:
    """The folder of a resumed run. Its weights are named by its status or, if that is damaged, by its settings. Raises
    UsageError if it is running, or saved no weights."""
    folder.take()
    entries = run_files.read_settings(folder / "config.json")
    kept = _require_unchanged(entries, resolved)
    config = resolved.config
    if not run_files.read_status(folder.path):
        host.notice(f"{folder / 'status.json'} is missing or damaged; the run is resumed from its state.")
    weights = run_resume.weights_of_run(folder, entries, config.weights.weights)
    hold_weights(weights, folder)
    kept_files = [path for path in (weights, CheckpointPaths(weights).weights_before) if path.is_file()]
    folder.earlier = frozenset(predict.weights_digest([path]) for path in kept_files)
    hold_output(config, folder)
    resolved = dataclasses.replace(resolved, config=config.replace(weights=(str(weights),)))
    kept |= {"weights": entries["weights"]} if "weights" in entries else {}
    files.remove_leftovers(folder.path)
    number = files.read_json(folder / "config.json").get("run_id")
    folder.run_id = number if isinstance(number, str) else None
    folder.write("config.json", dumps(resolved, command, kept, folder.run_id))
    folder.status("running", kind="train", start=os.environ.get(launchers.START), **_places(folder, weights))
    return folder, resolved, True


def hold_weights(weights: Path, folder: RunFolder) -> None:
    """Lock a weights file and its state for a run. Raises UsageError while another run holds the lock."""
    if weights.is_dir():
        raise UsageError(f"{weights.absolute()}: is a folder.", "Name a file with --weights.")
    make_folder(weights.parent)
    state = CheckpointPaths(weights).state
    if owner := locks.acquire(state.with_name(f".{state.name}.unet.lock"), folder.path):
        raise UsageError(
            f"{weights.absolute()} is being written by another run ({owner}).",
            "Give another --weights FILE or --run-name, or wait for that run.",
        )


@contextlib.contextmanager
def recording_failure(
    folder: RunFolder, explain: Callable[[BaseException], BaseException] | None = None
) -> Iterator[None]:
    """Record in status.json that a run was interrupted or failed. A run that fails before it has begun leaves no
    folder; one that is interrupted then can still be resumed. `explain` maps an error to its cause."""
    from unet.runtime.folders.run_folder import note

    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(UnetError):
            folder.begin()
        note(folder, "interrupted", "outside the training loop, or by a second Ctrl-C")
        raise
    except Exception as error:
        note(folder, "failed", _words(error))  # first: the launcher may end this process while it looks for the cause
        found = explain(error) if explain else error
        if found is error:
            raise
        note(folder, "failed", _words(found))
        raise found from error


def _words(error: BaseException) -> str:
    return error.message if isinstance(error, UnetError) else f"{type(error).__name__}: {error}"


def _require_unchanged(entries: dict[str, Any], resolved: Resolved) -> dict[str, Any]:
    """Compare the settings of a resumed run with its config.json. Returns the `entries` that are unchanged.

    Raises UsageError for a setting that must not change; other changes give a notice.
    """
    now = resolved.entries()
    changed = {name for name in entries if name in now and entries[name]["value"] != now[name]["value"]}
    loaded = [each["load"]["value"] for each in (entries, now) if each.get("load", {}).get("value")]
    if len(loaded) == 2 and len({weights_to_read(name).resolve() for name in loaded}) == 1:
        changed.discard("load")  # one file, spelled in two ways
    course = set(declared_of(type(resolved.config.task), COURSE)) - FREE | BEGUN
    if resolved.config.run.mode in UNSCORED and entries.get("mode", {}).get("value") not in UNSCORED:
        course.add("mode")  # weights without a score would replace the best ones
    by_epoch = resolved.config.train.warmup_epochs or resolved.config.train.lr_milestones
    if by_epoch and create(resolved.config).by_steps:
        course.add("evaluate_every")  # an epoch is so many steps, and the learning rate follows the epochs
    words = {name: f"{name} {entries[name]['value']} -> {now[name]['value']}" for name in sorted(changed)}
    if changed & course:
        raise UsageError(
            f"--resume continues run {resolved.config.run.run_name!r} exactly, but these settings differ:"
            f" {', '.join(words[name] for name in words if name in course)}.",
            "Leave them out; for another run type --run-name NAME; to start a new run from these weights: --load FILE"
            " --run-name NEW.",
        )
    told = FREE - {"max_time"} | set(declared_of(type(resolved.config.task), ("device",)))
    said = [words[name] for name in words if name in told]
    if said:
        host.notice(f"Changed on resuming: {', '.join(said)}.")
    return {name: entry for name, entry in entries.items() if name not in changed}


def free_weights(resolved: Resolved, folder: RunFolder) -> tuple[Path, Resolved]:
    """The path of the best weights, locked for this run: the typed name, else the run's. An existing file is an error;
    with --overwrite a typed name is replaced, and a run of the same name keeps its file name; weights of other runs are
    never replaced."""
    config, sources = resolved.config, dict(resolved.sources)
    typed = sources["weights"].startswith("flag")
    named = config.weights.weights[0] if config.weights.weights else f"{folder.name}.safetensors"
    path = weights_to_write(named)
    before = run_files.read_status(folder.path).get("weights")
    earlier = weights_to_write(str(before)) if before else None

    def taken(path: Path, name: str) -> Path | None:
        """An existing file that must not be replaced, if there is one."""
        written = metadata_of(path).get("run_name") == folder.name
        mine = config.general.overwrite and (typed or earlier == path.absolute() or written)
        other = resolve_path(name, "weights")  # reading that name would find this one
        if other != path and other.exists():
            return other
        paths = CheckpointPaths(path)
        there = [item for item in (path, *paths.states(), paths.weights_before, *paths.kept()) if item.exists()]
        return there[0] if there and not mine else None

    own = path.with_name(f"{folder.name}.safetensors")
    if config.save.checkpoints:
        there = taken(path, named)
        if there and not typed and path != own:
            host.notice(f"{there} belongs to another run and is kept; this run writes {own}.")
            path, named = own, str(own.absolute())
            there = taken(path, named)
        if there:
            raise UsageError(
                f"{there.absolute()} exists.",
                "Give another --weights-file, or replace it with --weights-file and --overwrite.",
            )
        hold_weights(path, folder)
        if path.name != Path(named).name:
            host.notice(f"Weights are written as safetensors: {path}")
    if not config.weights.weights or path == own != weights_to_write(config.weights.weights[0]):
        sources["weights"] = "run name"
    short = path == resolve_path(path.name, "weights")
    kept = path.name if short else str(path) if len(path.parts) > 1 else f"./{path}"
    return path, dataclasses.replace(resolved, config=config.replace(weights=(kept,)), sources=sources)
