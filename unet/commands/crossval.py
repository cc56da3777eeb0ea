"""crossval: trains and scores every fold, one after another or on several cards at once, and reports the mean.

Each fold is its own run, `<run-name>-fold0` and so on. Finished folds are kept and stopped ones resumed, so the same
command line continues an interrupted cross-validation.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host, locks
from unet.commands import fold_scores, launch, output, run_resume, run_start, setup, tables
from unet.config import run_files
from unet.config.options import flag
from unet.config.resolve import NOT_REPLAYED, Resolved, dumps
from unet.config.schema import Config, shell_path, weights_to_write
from unet.devices import launchers, select
from unet.errors import INTERRUPTED, TARGET_MISSED, UnetError, UsageError
from unet.tasks.registry import create

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase
    from unet.runtime.folders.run_folder import RunFolder

SETTINGS = "settings.json"
KEPT = {*NOT_REPLAYED, "out", "weights", "fold", "mode", "dry_run", "debug_dump"}  # each fold's own, or this command's
KEPT |= {"device_module"}  # typed, never from a file
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
ENDED_BY_SIGNAL = (INTERRUPTED, *(-number for number in STOPPING))


@dataclasses.dataclass
class Fold:
    """One fold: its number, the name of its run, that run's folder, its weights."""

    number: int
    name: str
    folder: Path
    weights: Path
    code: int | None = None

    def status(self) -> dict[str, Any]:
        return run_files.read_status(self.folder)

    def done(self) -> bool:
        return self.status().get("status") == "done" and (self.folder / "summary.json").exists()

    def goes_on(self) -> bool:
        return bool(self.status().get("state")) and (self.folder / "config.json").exists()

    def command(self, settings: Path, config: Config, minutes: float | None) -> list[str]:
        """The arguments of `python -m unet` that start or resume this fold, with a time limit in minutes."""
        words = ["--run-name", self.name, "--out", str(self.folder.parent)]
        alone = (config.distributed.devices or 1) == 1
        words += launch.typed_again(config if alone else config.replace(cuda_devices=()), minutes)
        if config.run.debug_dump:
            words += ["--debug-dump", str(Path(config.run.debug_dump) / f"fold{self.number}")]
        if self.goes_on():
            return ["train", "--resume", *words]
        named = (("--wandb", config.track.wandb), ("--mlflow", config.track.mlflow))
        trackers = [word for flag, value in named if value for word in (flag, value)]
        if trackers:
            words += [*trackers, "--track-group", config.track.track_group or self.name.rpartition("-fold")[0]]
        fold = ["--fold", str(self.number), "--weights", str(self.weights.absolute())]
        fold += ["--seed", "-1"] if config.general.seed == -1 else []
        return ["train", "--config", str(settings), *fold, *words]

    def require(self, settings: dict[str, Any]) -> None:
        """Raise UsageError if a run of this name is running, or was trained with other settings."""
        from unet.runtime.folders.run_folder import RunFolder

        RunFolder(self.folder).require_stopped()
        path = self.folder / "config.json"
        if not path.exists():
            return
        hint = f"Restore it, or remove the run {shell_path(self.folder)}: it is then trained again."
        made = {key: item["value"] for key, item in run_files.read_settings(path, hint).items()}
        wanted = {key: files.jsonable(value) for key, value in settings.items()} | {"fold": self.number}
        changed = sorted(key for key in wanted if key in made and made[key] != wanted[key])
        if changed:
            words = ", ".join(f"{key} {made[key]} -> {wanted[key]}" for key in changed[:4])
            raise UsageError(
                f"Run {self.name!r} in {self.folder.absolute()} was trained with other settings ({words}).",
                "Give another --run-name, or train all folds again with --overwrite.",
            )

    def require_data(self, config: Config, cases: Sequence[CachedCase]) -> None:
        """Raise UsageError where the fold was trained on other data than it would be now."""
        from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths, metadata_of

        about = metadata_of(self.weights) or metadata_of(CheckpointPaths(self.weights).state)
        if about.get("run_name") == self.name and (differ := run_resume.other_data(about, config, self.number, cases)):
            raise UsageError(
                f"Run {self.name!r} in {self.folder.absolute()} was trained on other data: {differ}.",
                "Restore the data; or give another --run-name, or train all folds again with --overwrite.",
            )

    def require_weights(self, replaced: bool) -> None:
        """Raise UsageError if the fold's weights belong to another run, unless they may be replaced."""
        from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths

        state = CheckpointPaths(self.weights).state
        own = self.status().get("weights") == str(self.weights.absolute())
        if not own and not replaced and (self.weights.exists() or state.exists()):
            raise UsageError(
                f"{self.weights.absolute()} exists, and does not belong to run {self.name!r} in"
                f" {self.folder.absolute()}.",
                "Give another --weights or --run-name.",
            )


def run(resolved: Resolved, command: str) -> int:
    """Train the remaining folds, then print and write the table. Returns 0, 3 (a fold did not reach a typed --target),
    or 130 if it was stopped (the same command continues); raises UnetError if a fold failed."""
    require(resolved)
    resolved = setup.settled(resolved)
    config = resolved.config
    typed, folds = config.split.folds, create(config).settings_from_data(["folds"]).get("folds")
    if folds not in (None, typed):
        raise UsageError(f"--folds {typed}: the set has {folds} folds of its own.", f"Type --folds {folds}.")
    began = time.perf_counter()
    name = config.run.run_name or f"{config.task.name}-crossval"
    cards = own_cards(config, min(config.distributed.devices or 1, config.split.folds))
    folder, found = open_folder(resolved, command, name)
    if config.run.dry_run:
        print(f"Dry run: folds {', '.join(fold.name for fold in found)} would be trained; nothing was kept.")
        return 0
    with run_start.recording_failure(folder):
        code = train_and_sum_up(folder, found, config, cards, began)
    return TARGET_MISSED if not code and missed(resolved, found) else code


def missed(resolved: Resolved, found: Sequence[Fold]) -> bool:
    """Whether a fold did not reach a typed --target, which is told."""
    if resolved.config.train.target is None or not resolved.sources["target"].startswith("flag"):
        return False
    below = [fold.name for fold in found if not fold_scores.summary_of(fold).get("target_reached")]
    if below:
        host.notice(f"--target {resolved.config.train.target:g} was not reached by {', '.join(below)}")
    return bool(below)


def split_first(config: Config, found: Sequence[Fold], ids: list[str]) -> None:
    """Make the folds before the cases are prepared, all of them (None), so that what is wrong is told first."""
    for fold in found:
        create(config.replace(fold=fold.number)).split(ids)


def train_and_sum_up(
    folder: RunFolder, found: list[Fold], config: Config, cards: Sequence[dict[str, str]], began: float
) -> int:
    """Train the remaining folds, and write the results."""
    task = create(config)
    cases = task.cached_cases(functools.partial(split_first, config, found))  # one process makes the cache
    for fold in found:
        fold.require_data(config, cases)
    left = [fold for fold in found if not fold.done()]
    kept = len(found) - len(left)
    host.notice(f"{folder.name}: {len(left)} of {len(found)} folds to train" + (f", {kept} are done" if kept else ""))
    stopped = train(left, folder / SETTINGS, config, cards, began)
    finished = [fold for fold in found if fold.done()]
    if rows := fold_scores.results(finished, task):
        result = fold_scores.summary(rows, fold_scores.all_cases(finished, task), task, len(found))
        folder.write("summary.json", result)
        files.write_text(folder / "cases.csv", tables.csv_text(rows, list(rows[0])))
        logs = f"\n\n  logs       {folder.path}/  (summary.json, cases.csv)"
        output.show(config, result, fold_scores.table(result, task) + logs)
    folder.status("done" if len(finished) == len(found) else "interrupted" if stopped else "failed")
    again = "type the same command again" + (", without --overwrite" if config.general.overwrite else "")
    if stopped:
        print(f"\n  go on      {again} ({len(finished)} of {len(found)} folds are done)")
        return INTERRUPTED
    failed = [fold for fold in found if not fold.done()]
    if failed:
        raise UnetError(
            f"{len(failed)} of {len(found)} folds failed: {', '.join(fold.name for fold in failed)}.",
            f"Read {shell_path(failed[0].folder / 'run.log')}; then {again}: the others are kept.",
        )
    return 0


def require(resolved: Resolved) -> None:
    """Raise UsageError for flags that crossval does not support."""
    config = resolved.config
    found = launchers.launched(os.environ)
    if found is not None and found.world > 1:
        raise UsageError(
            f"crossval starts its own processes, and {found.launcher} runs {found.world}.",
            "Start one process; --devices N trains N folds at a time.",
        )
    if config.split.fold is not None and resolved.sources["fold"].startswith("flag"):
        raise UsageError(
            f"crossval trains every fold, and --fold {config.split.fold} names one.",
            "Leave it out, or type train --fold.",
        )
    for name in ("split", "held_out"):
        if resolved.sources[name].startswith("flag") and "fold" not in config.task.splits:
            host.notice(f"note: {flag(name)} {config.get(name)} changes nothing with crossval, which trains every fold")
    if len(config.weights.weights) > 1:
        raise UsageError(
            f"crossval names the weights of all folds after one file, not {len(config.weights.weights)}.",
            "Type one --weights FILE.",
        )
    if config.general.seed == -1 and config.task.folds_by_seed:
        raise UsageError(
            "--seed -1 draws a seed for each fold, and here the seed decides which cases a fold holds out.",
            "Type a seed for all folds: --seed 0",
        )
    if config.save.resume:
        raise UsageError("--resume is for one run.", "Type the same crossval command again: it goes on by itself.")
    if config.mlperf.mlperf_division or config.run.benchmark:
        word = "--benchmark" if config.run.benchmark else "--mlperf-division"
        raise UsageError(f"{word} is not for the folds of a cross-validation.", "Leave it out.")
    if not config.save.checkpoints:
        raise UsageError("crossval keeps the weights of every fold.", "Leave out --no-checkpoints.")


def open_folder(resolved: Resolved, command: str, name: str) -> tuple[Any, list[Fold]]:
    """(folder of the cross-validation, its folds), new or continued. Raises UsageError if it was started with other
    settings."""
    from unet.runtime.folders.run_folder import RunFolder

    config = resolved.config
    out = Path(config.run.out)
    folder = RunFolder(out / name)
    files.make_folder(out)
    folder.take()
    stem = weights_to_write(config.weights.weights[0] if config.weights.weights else name).with_suffix("")
    found = []
    for number in range(config.split.folds):
        weights = stem.with_name(f"{stem.name}-fold{number}.safetensors")
        found.append(Fold(number, f"{name}-fold{number}", out / f"{name}-fold{number}", weights))
    drawn = {"seed"} if config.general.seed == -1 else set()  # each fold draws one and keeps it
    settings = {key: item["value"] for key, item in resolved.entries().items() if key not in KEPT | drawn}
    for fold in found:
        fold.require({} if config.general.overwrite else settings)
        fold.require_weights(replaced=config.general.overwrite and bool(config.weights.weights))
    hold_weights(stem, folder)
    path, going = folder / SETTINGS, run_files.read_status(folder.path).get("kind") == "crossval"
    if going and path.exists() and not config.general.overwrite:
        before = files.read_json(path, dict, "Restore the file, or start again with --overwrite.")
        changed = sorted(key for key in before.keys() & settings.keys() if before[key] != files.jsonable(settings[key]))
        if changed:
            words = ", ".join(f"{key} {before.get(key)} -> {settings.get(key)}" for key in changed[:4])
            raise UsageError(
                f"{folder.path.absolute()}: was started with other settings ({words}).",
                "Type the settings it was started with, give another --run-name, or start again with --overwrite.",
            )
    elif not config.run.dry_run:
        folder.create("crossval", config.general.overwrite)
        if config.general.overwrite:
            for fold in found:
                clear(fold)
        folder.begin()
        folder.write(SETTINGS, settings)
        folder.write("config.json", dumps(resolved, command))
    if not config.run.dry_run:
        folder.status("running", kind="crossval", **create(config).metric.described())
    return folder, found


def hold_weights(stem: Path, folder: RunFolder) -> None:
    """Lock the weights of all folds for this cross-validation. Raises UsageError while another one holds them."""
    files.make_folder(stem.parent)
    if owner := locks.acquire(stem.with_name(f".{stem.name}-folds.unet.lock"), folder.path):
        raise UsageError(
            f"The folds of {stem.absolute()} are being trained by another cross-validation ({owner}).",
            "Give another --run-name or --weights, or wait for it.",
        )


def clear(fold: Fold) -> None:
    """Remove a fold's run and weights, before it is trained again."""
    from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
    from unet.runtime.folders.run_folder import RunFolder

    RunFolder(fold.folder).remove("train")
    CheckpointPaths(fold.weights).clear(also_weights=True)


def train(left: Sequence[Fold], settings: Path, config: Config, cards: Sequence[dict[str, str]], began: float) -> bool:
    """Train folds, one at a time on each of the `cards` (with a share of the cores); a failed fold does not stop the
    others. Returns whether it was stopped, by a signal (passed on to the folds) or by --max-time since `began`."""
    quiet = len(cards) > 1 or config.output.json
    waiting, running = list(left), dict[int, tuple[Fold, subprocess.Popen[bytes]]]()
    processes: list[subprocess.Popen[bytes]] = []
    stopped = False
    with launch.passing_on(processes) as came:
        while running or (waiting and not stopped):
            for place, variables in enumerate(cards):
                minutes_used = (time.perf_counter() - began) / 60
                minutes = None if config.train.max_time is None else config.train.max_time - minutes_used
                stopped = stopped or bool(came) or (minutes is not None and minutes <= 0)
                if waiting and place not in running and not stopped:
                    fold = waiting.pop(0)
                    words = fold.command(settings, config, minutes)
                    running[place] = fold, start(fold, words, variables, place, len(cards), quiet)
                    processes.append(running[place][1])
            time.sleep(0.1)
            for place, (fold, process) in list(running.items()):
                fold.code = process.poll()
                if fold.code is None:
                    continue
                del running[place]
                stopped = stopped or bool(came) or fold.code in ENDED_BY_SIGNAL
                if fold.code not in (0, 3) and not stopped:
                    host.notice(f"{fold.name} ended with exit code {fold.code}; see {fold.folder / 'run.log'}")
    return stopped


def own_cards(config: Config, places: int) -> list[dict[str, str]]:
    """The environment variables that give each process its card. Raises UsageError for more processes than cards."""
    if places == 1:
        return [{}]
    alone = config.replace(devices=None)
    kind, _ = select.choose(alone.device, launchers.find_rank(alone.distributed, alone.device.cuda_devices))
    cards = kind.cards()
    if cards is not None and places > cards:
        raise UsageError(
            f"--devices {places}, but there are {cards} {kind.name} cards.", f"Type --devices {max(1, cards)}."
        )
    return [kind.card(place) for place in range(places)]


def start(
    fold: Fold, words: Sequence[str], variables: dict[str, str], place: int, places: int, quiet: bool
) -> subprocess.Popen[bytes]:
    """The process of a fold; `quiet`: what it prints is not shown."""
    cores = sorted(os.sched_getaffinity(0))
    own = cores[place * len(cores) // places : (place + 1) * len(cores) // places] or cores

    def prepare() -> None:
        launch.end_with_parent()
        os.sched_setaffinity(0, own)

    host.notice(f"{fold.name}: {'goes on' if fold.goes_on() else 'begins'}")
    return subprocess.Popen(
        [sys.executable, "-m", "unet", *words],
        env={**os.environ, **variables},
        start_new_session=True,  # Ctrl-C comes from this process alone, once
        preexec_fn=prepare,
        stdout=subprocess.DEVNULL if quiet else None,
    )
