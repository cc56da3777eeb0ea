"""The callbacks of a training run, and what is stored with its weights and states."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files
from unet.commands import setup
from unet.config.schema import weights_to_read
from unet.errors import UsageError
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths

if TYPE_CHECKING:
    from unet.runtime.folders.run_folder import RunFolder

LOCAL_WAIT = 60.0  # seconds for a tracker that writes to this machine's disk: it comes to its end


def build(context: setup.Context, folder: RunFolder, split: dict[str, list[str]], command: str) -> list[Any]:
    """The callbacks: progress bar, logs, curves, checkpoints. On other ranks than the first only what each of them
    does."""
    from unet.runtime.callbacks import logs, power_log, progress_bar, results, time_left
    from unet.runtime.callbacks.checkpoint import Checkpoints
    from unet.runtime.seeding import RankSeeds

    config, group = context.config, context.group
    everywhere: list[Any] = [logs.WorkerLog(folder, group.rank)] if config.distributed.log_all_workers else []
    if context.power is not None and (group.is_main or context.power.machines > 1):
        everywhere.append(power_log.PowerLog(folder, context.power))
    if not group.is_main:
        return [*everywhere, logs.KernelsLog(folder), RankSeeds(config.general.seed, group.rank)]
    folder.own(*(logs.worker_log(rank) for rank in range(group.world) if config.distributed.log_all_workers))
    left = time_left.TimeLeft()
    result: list[Any] = [
        left,
        *everywhere,
        progress_bar.ProgressBar(left),
        logs.MetricsLog(folder, left),
        logs.KernelsLog(folder),
        results.ResultsTable(folder),
        logs.ArgonneCsvLog(folder, command),
        logs.Curves(folder),
    ]
    result += trackers(context, folder)
    if config.run.debug_dump:
        from unet.runtime.callbacks.debug_dump import DebugDump

        result.append(DebugDump(Path(config.run.debug_dump), config))
    if config.save.checkpoints:
        weights = weights_to_read(config.weights.weights[0])
        result.append(Checkpoints(CheckpointPaths(weights), metadata(context, folder, split)))
    return result


def trackers(context: setup.Context, folder: RunFolder) -> list[Any]:
    """The callbacks of --tensorboard, --wandb and --mlflow. Raises UsageError where a package is not installed."""
    from unet.runtime.callbacks.trackers import process, stream, tensorboard

    config, out = context.config, Path(context.config.run.out).absolute()
    chosen: list[tuple[str, Any]] = []
    if config.run.tensorboard:
        chosen.append(("--tensorboard", tensorboard.TensorBoard(folder)))
    kinds: dict[str, tuple[str | None, str, dict[str, Any]]] = {
        "wandb": (config.track.wandb, "wandb", {"mode": config.track.wandb, "folder": str(out)}),
        "mlflow": (config.track.mlflow, "mlflow", {"uri": store(config.track.mlflow, out)}),
    }
    for kind, (value, package, options) in kinds.items():
        if value is None:
            continue
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--{kind} {value}: the package {package} is not installed.",
                f"Type: pip install 'unet-accelerators[{kind}]'",
            )
        options["project"] = config.track.track_project
        remote = value == "online" or value.startswith(("http://", "https://"))
        wait = config.track.track_wait if remote else max(LOCAL_WAIT, config.track.track_wait)
        chosen.append((f"--{kind}", process.ProcessSink(kind, options, wait)))
    weights = weights_to_read(config.weights.weights[0])
    about = {"run": folder.name, "group": config.track.track_group, "task": context.task.name}
    about["device"] = context.device.describe() if chosen else ""
    return [stream.Tracker(flag, sink, folder, about, config.track.track, weights) for flag, sink in chosen]


def store(typed: str | None, out: Path) -> str:
    """The address of an MLflow store: as typed, a folder as an address, and a database under --out by default."""
    if typed is None or typed == "local":
        return f"sqlite:///{out / 'mlflow.db'}"
    return typed if "://" in typed else Path(typed).expanduser().absolute().as_uri()


def metadata(context: setup.Context, folder: RunFolder, split: dict[str, list[str]]) -> dict[str, Any]:
    """What is stored with weights and states: the run, its cases, the settings of its network."""
    declared = context.task.Settings
    kept = (*declared.inference_settings, *declared.scoring_settings, *setup.shaping(declared), "precision", "seed")
    return {
        "task": context.task.name,
        "run_name": folder.name,
        "run_id": folder.run_id,
        "data": folder.data,
        "training": split["train"],
        "validation": split["validation"],
        **({"trained_before": split["trained_before"]} if "trained_before" in split else {}),
        "settings": {name: files.jsonable(context.config.get(name)) for name in kept},
    }
