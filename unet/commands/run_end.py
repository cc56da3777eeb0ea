"""The end of a run: full evaluation of the best weights, summary, closing block."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host
from unet.commands import power, scores, setup, tables
from unet.config import run_files
from unet.config.options import fields, flag
from unet.config.resolve import SYNTHETIC, Resolved, with_synthetic_cache
from unet.config.schema import Config, resolve_path, shell_path
from unet.errors import INTERRUPTED, TARGET_MISSED
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.tasks.registry import task_flag

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase
    from unet.runtime.folders.run_folder import RunFolder
    from unet.runtime.trainer import Trainer


def finish(
    context: setup.Context,
    folder: RunFolder,
    resolved: Resolved,
    run: Trainer,
    weights: Path,
    cases: list[CachedCase],
    split: dict[str, list[str]],
    reason: str,
) -> int:
    """Evaluate the best weights in full, write the summary, print the closing block. Returns the exit code."""
    from unet.runtime.checkpoints import checkpoint

    config, progress = context.config, run.progress
    reason = stopped_late(context, run, reason)
    stopped = reason.startswith("stopped")
    records, remark = list[dict[str, Any]](), ""
    if not stopped and run.evaluate and config.save.checkpoints:
        held = set(split["validation"])
        validation = [case for case in cases if case.id in held][: config.eval.eval_steps]
        if context.group.is_main and not weights.exists():  # resumed after its last epoch, without an evaluation before
            run.emit("save_best", row=progress.history[-1] if progress.history else {})
        best = context.group.run_on_main(lambda: setup.read_weights(weights)[1])
        checkpoint.fit(run.best_model, best, weights)
        records, remark = scores.full(context, setup.make_predictor(context, run.eval_model), validation, folder)
    missed = config.train.target is not None and not progress.reached and not stopped
    about = summary(context, folder, run, weights, len(records), reason)
    folder.write("summary.json", about)
    folder.status(status := "interrupted" if stopped else "done", reason)
    run.emit("on_close", status=status, summary=about)
    if context.group.is_main:
        used = power.text(about, context.task.item[:-1])
        print(closing_block(context, folder, weights, run, records, remark, reason, used, bool(split["validation"])))
    if config.run.mode == "train_and_predict" and config.save.checkpoints and not stopped:
        from unet.commands import predict

        settings = config.replace(load=None, inputs=(), weights=(str(weights.absolute()),))
        predict.run(dataclasses.replace(resolved, config=settings), "", folder.earlier)
    return INTERRUPTED if stopped else TARGET_MISSED if missed and resolved.sources["target"].startswith("flag") else 0


def stopped_late(context: setup.Context, run: Trainer, reason: str) -> str:
    """The reason with a signal that came too late to stop training, where what is left takes time, which the sender may
    not give: a resumed run does it. All ranks call this."""
    signals = [name for name in context.group.gather(run.stop.signal) if name]
    left = run.evaluate is not None or context.config.run.mode == "train_and_predict"
    resumable = context.config.save.checkpoints and reason != "diverged"  # a resumed run would train on
    late = signals and left and resumable and not reason.startswith("stopped")
    return f"stopped: {signals[0]}" if late else reason


def summary(
    context: setup.Context, folder: RunFolder, run: Trainer, weights: Path, scored: int, reason: str
) -> dict[str, Any]:
    """The content of summary.json; all ranks call it. `scored`: cases that were scored in full."""
    config, progress = context.config, run.progress
    return {
        **context.task.metric.described(),
        "item": context.task.item,
        "best_score": progress.best_score,
        "best_epoch": progress.best_epoch,
        "ended": reason,
        "epochs": len(progress.history),
        "steps": progress.step,
        "images_per_second": progress.rate(),
        "step_latency": step_latency(folder, config.run.benchmark_warmup or 0),
        "data_wait_fraction": progress.wait_fraction(),
        "peak_memory_bytes": max(context.group.gather(context.device.memory())),
        "ranks": context.group.world,
        "seconds": progress.seconds,
        "to_first_step_seconds": run.clock.to_first_step,
        "target": config.train.target,
        "target_reached": progress.reached,
        "cases": scored,
        "device": context.device.describe(),
        **power.of_run(context, progress),
        "paths": {
            "run": str(folder.path),
            "weights": str(weights),
            "state": str(CheckpointPaths(weights).state),
            **({"kept": [str(path) for path in CheckpointPaths(weights).kept()]} if config.save.keep_every else {}),
        },
    }


def step_latency(folder: RunFolder, warmup: int) -> dict[str, float]:
    """Mean and percentiles of the seconds of a training step, from the intervals between log lines (each is a mean over
    its steps; --log-every 1 gives every step). The first interval after each start and the first `warmup` steps are
    left out. Logs of earlier versions do not say where a run was resumed."""
    from unet.runtime import evaluation

    rows = run_files.read_lines(folder / "metrics.jsonl")
    schema = {"event": {"step"}, "step": int, "step_seconds": float}
    intervals = [row for row in rows if not files.schema_error(row, schema)][1:]
    kept = [row for row in intervals if row["step"] > warmup and not row.get(run_files.WARM_UP)]
    return evaluation.latency([row["step_seconds"] for row in kept])


def outcome_text(reason: str) -> str:
    """The stop reason as text."""
    words = {"epochs": "finished", "max-steps": "finished (--max-steps)", "patience": "ended (--patience)"}
    return "finished, the target is reached" if reason == "target" else words.get(reason, reason)


def outcome_lines(name: str, progress: Any, target: float | None, score: str, reason: str) -> list[str]:
    """Lines on how a run ended, and its best score."""
    done = f"{host.counted(len(progress.history), 'epoch')}, {host.counted(progress.step, 'step')}"
    lines = [f"Run {name}: {outcome_text(reason)}: {done}"]
    if progress.best_score is not None:
        met = "" if target is None else f" (target {target} {'reached' if progress.reached else 'not reached'})"
        lines.append(f"  best       {score} {progress.best_score:.4f} in epoch {progress.best_epoch}{met}")
    return lines


def closing_block(
    context: setup.Context,
    folder: RunFolder,
    weights: Path,
    run: Trainer,
    records: list[dict[str, Any]],
    remark: str,
    reason: str,
    used: str,
    held: bool,
) -> str:
    """The closing block: results, what was used, paths, and what to type next; `remark`: on all records;
    `held`: whether there are validation cases."""
    from unet.runtime import evaluation

    progress, config = run.progress, context.config
    latency = step_latency(folder, config.run.benchmark_warmup or 0)
    seconds, steps = progress.seconds, host.counted(config.train.log_every, "step")
    lines = ["", *outcome_lines(folder.name, progress, config.train.target, context.task.metric.name, reason)]
    lines += [
        f"  speed      {progress.rate():.1f} {context.task.item}/s in training, data wait"
        f" {progress.wait_fraction():.1%},"
        f" peak memory {host.format_bytes(context.device.memory())}",
        *([f"  step       {evaluation.format_latency(latency)} (means of {steps})"] if latency else []),
        f"  time       training {seconds['train']:.1f} s, evaluation {seconds['evaluate']:.1f} s, saving"
        f" {seconds['save']:.1f} s",
        *([f"  power      {used}"] if used else []),
        *(f"  device     {line}" for line in context.device.report()),
    ]
    lines = [part for line in lines for part in tables.text(line, indent=13)]
    if records:
        lines += ["", scores.table(context.task, records, config.eval.bootstrap, remark)]
    logs = ("summary.json", "metrics.jsonl", "results.csv", "run.log", f"{folder.name}.txt")
    lines += ["", f"  logs       {folder.path}/  ({', '.join(logs)})"]
    if config.save.checkpoints:
        lines.append(f"  weights    {weights}   state {CheckpointPaths(weights).state}")
        if kept := CheckpointPaths(weights).kept() if config.save.keep_every else []:
            shown = f"{kept[0]} ... {kept[-1].name}" if len(kept) > 1 else f"{kept[0]}"
            lines.append(f"  kept       {shown} ({host.counted(len(kept), 'epoch')})")
    if config.mlperf.mlperf_division:
        log = folder / "unet3d.log"
        lines.append(
            f"  mlperf     {log}   check it: python -m mlperf_logging.compliance_checker --usage training --ruleset"
            f" 4.0.0 {shlex.quote(str(log))}"
        )
    pictures = [name for name in ("progress.png", "predictions.png") if (folder / name).exists()]
    if pictures:
        lines.append(f"  pictures   {', '.join(str(folder / name) for name in pictures)}")
    lines.append("")
    if reason == "diverged":
        lines.append("  The score collapsed: start a new run with a lower --lr, more --warmup-epochs or --clip 1.")
    lines += next_commands(context, folder, weights, reason, held)
    return "\n".join(lines)


def next_commands(
    context: setup.Context, folder: RunFolder, weights: Path, reason: str, held: bool = True
) -> list[str]:
    """Lines with the commands that come next: go on with a stopped run, or score and predict; `held`: whether there are
    validation cases."""
    config, lines = context.config, list[str]()
    data, own = resolve_path(config.data.data, "data"), "".join(f" {word}" for word in task_flag(config))
    if reason.startswith("stopped"):
        out = "" if config.run.out == "performance" else f" --out {shell_path(Path(config.run.out))}"
        rank = context.device.rank
        again = f" {rank.launcher}" if rank.world > 1 and rank.launcher.startswith("--") else ""
        lines.append(
            f"  go on      python -m unet train{own} --resume --run-name {shlex.quote(folder.name)}{out}{again}"
        )
        if rank.world > 1 and not again:
            lines.append(f"             (started by {rank.launcher}, on {rank.world} processes or any other number)")
    elif config.save.checkpoints:
        shown = (
            shlex.quote(weights.name)
            if weights.absolute().parent == Path("weights").absolute()
            else shell_path(weights)
        )
        given = str(data) if data.exists() else "FILES"
        if held:
            lines.append(f"  score      python -m unet evaluate{own} --weights {shown}{data_flags(config)}")
        lines += [
            f"  predict    python -m unet predict{own} --weights {shown} {shlex.quote(given)} --overlay",
        ]
    return lines


def data_flags(config: Config) -> str:
    """The flags for the data of a run, if they differ from the task's defaults: weights do not store paths."""
    own, common = config.task, fields(Config.GROUPS["data"])
    usual = {name: own.defaults.get(name, common[name].default) for name in ("data", "cache")}
    if config.data.synth_data:
        usual |= own.synthetic_defaults
        usual["cache"] = with_synthetic_cache(config, {"cache": SYNTHETIC}).data.cache
    words = ["--synth-data"] if config.data.synth_data else []
    for name in ("data", "cache"):
        value = config.get(name)
        words += [flag(name), shlex.quote(value)] if value != usual[name] else []
    return "".join(f" {word}" for word in words)
