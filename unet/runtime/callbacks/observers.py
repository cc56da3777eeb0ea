"""Callbacks for those who look closer: TensorBoard, and a dump of what a run works on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet import files, host
from unet.config.run_files import DUMP_LIST, DUMPED
from unet.errors import UsageError
from unet.runtime.folders.run_contents import BOARD
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.trainer import Run

TRACED = 3  # steps of the profiler's trace, after one that warms up


class TensorBoard:
    """Losses, rates and scores as TensorBoard's event files in a run's folder. Raises UsageError without the
    package."""

    def __init__(self, folder: RunFolder) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                f"--tensorboard: the package is not installed ({error}).",
                "Type: pip install tensorboard",
            ) from error
        self.folder, self.make = folder, SummaryWriter
        self.writer: Any = None

    def begins(self, run: Run) -> None:
        place = self.folder / BOARD
        before = set(place.glob("*"))
        self.writer = self.make(str(place))
        self.folder.own(*(f"{BOARD}/{path.name}" for path in set(place.glob("*")) - before))

    def write(self, run: Run, kind: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.writer.add_scalar(f"{kind}/{name}", value, run.progress.step)

    def logged(self, run: Run, parts: Mapping[str, float], **values: float) -> None:
        self.write(run, "train", {**values, **parts})

    def epoch_ends(self, run: Run, row: Mapping[str, Any], **rest: Any) -> None:
        scores = {name: value for name, value in row.items() if name == "score" or name.startswith("eval_")}
        self.write(run, "validation", scores)

    def ends(self, run: Run, reason: str) -> None:
        if self.writer:
            self.writer.close()


class Dump:
    """What --debug-dump writes: settings.json, batch.npz (the first batch), layers.txt (shapes and parameters of each
    layer), trace.json (three steps by torch's profiler; open it at chrome://tracing or in Perfetto); dump.json lists
    them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder, 0
        self.profiler: Any = None
        files.make_folder(folder)

    def begins(self, run: Run) -> None:
        files.write_json(self.folder / DUMP_LIST, {"files": [DUMP_LIST, *DUMPED]})
        settings = {name: files.jsonable(value) for name, value in sorted(run.config.items())}
        files.write_text(self.folder / "settings.json", json.dumps(settings, indent=1) + "\n")
        batch = next(run.loader.epoch(run.progress.epoch, run.progress.batch))
        with files.atomic(self.folder / "batch.npz") as stream:
            arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in batch.items()}
            np.savez(stream, **arrays)
        files.write_text(self.folder / "layers.txt", "\n".join(layers(run, batch)) + "\n")
        self.profiler = torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=TRACED), on_trace_ready=self.trace
        )
        self.profiler.start()

    def trace(self, profiler: Any) -> None:
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        host.notice(f"{self.folder}/: settings, first batch, layers and a trace of {TRACED} steps are written")

    def stepped(self, run: Run) -> None:
        if self.profiler is None:
            return
        self.steps += 1
        run.device.synchronize()
        self.profiler.step()
        if self.steps > TRACED:
            self.stop()

    def ends(self, run: Run, reason: str) -> None:
        self.stop()

    def stop(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None


def layers(run: Run, batch: Mapping[str, Any]) -> list[str]:
    """A line for each layer: name, kind, shape of what it gives, parameters; by one forward pass without gradients, in
    evaluation mode, so nothing of the run changes."""
    lines: list[str] = []
    hooks = []

    def watch(name: str, layer: torch.nn.Module) -> None:
        def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            shape = " x ".join(map(str, output.shape)) if isinstance(output, torch.Tensor) else "-"
            count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
            lines.append(f"{name:<24} {type(module).__name__:<20} {shape:<28} {count:>10}")

        hooks.append(layer.register_forward_hook(note))

    for name, layer in run.model.named_modules():
        if not any(layer.children()):
            watch(name, layer)
    was_training = run.model.training
    run.model.eval()
    try:
        with torch.no_grad(), run.device.autocast():
            run.model(run.device.to({"image": batch["image"]})["image"])
    finally:
        run.model.train(was_training)
        for hook in hooks:
            hook.remove()
    return lines
