"""The callbacks of a training run, and what is stored with its weights and states."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files
from unet.commands import setup
from unet.config.schema import weights_to_read
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths

if TYPE_CHECKING:
    from unet.runtime.folders.run_folder import RunFolder


def build(context: setup.Context, folder: RunFolder, split: dict[str, list[str]], command: str) -> list[Any]:
    """The callbacks: progress bar, logs, curves, checkpoints. On other ranks than the first only what each of them
    does."""
    from unet.runtime.callbacks import logs, power_log, progress_bar, results, time_left
    from unet.runtime.callbacks.checkpoint import Checkpoints

    config, group = context.config, context.group
    everywhere: list[Any] = [logs.WorkerLog(folder, group.rank)] if config.distributed.log_all_workers else []
    if context.power is not None and (group.is_main or context.power.machines > 1):
        everywhere.append(power_log.PowerLog(folder, context.power))
    if not group.is_main:
        return everywhere
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
    if config.run.tensorboard:
        from unet.runtime.callbacks.tensorboard import TensorBoard

        result.append(TensorBoard(folder))
    if config.run.debug_dump:
        from unet.runtime.callbacks.debug_dump import DebugDump

        result.append(DebugDump(Path(config.run.debug_dump), config))
    if config.save.checkpoints:
        weights = weights_to_read(config.weights.weights[0])
        result.append(Checkpoints(CheckpointPaths(weights), metadata(context, folder, split)))
    return result


def metadata(context: setup.Context, folder: RunFolder, split: dict[str, list[str]]) -> dict[str, Any]:
    """What is stored with weights and states: the run, its cases, the settings of its network."""
    kept = (*context.task.Settings.inference_settings, "layers", "width", "precision", "seed")
    return {
        "task": context.task.name,
        "run_name": folder.name,
        "run_id": folder.run_id,
        "training": split["train"],
        "validation": split["validation"],
        "settings": {name: files.jsonable(context.config.get(name)) for name in kept},
    }
