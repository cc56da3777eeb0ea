"""The callback of --debug-dump: settings, first batch, layers and a profiler's trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet import files, host
from unet.config.run_files import DUMP_LIST, DUMPED
from unet.config.schema import Config
from unet.runtime.trainer import Trainer

TRACED = 3  # steps of the profiler's trace, after one that warms up


class DebugDump:
    """What --debug-dump writes: settings.json, batch.npz (the first batch), layers.txt (shapes and parameters of each
    layer), trace.json (three steps by torch's profiler; open it at chrome://tracing or in Perfetto); dump.json lists
    them."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.steps = folder, config, 0
        self.profiler: Any = None
        files.make_folder(folder)

    def on_train_start(self, run: Trainer) -> None:
        files.write_json(self.folder / DUMP_LIST, {"files": [DUMP_LIST, *DUMPED]})
        settings = {name: files.jsonable(value) for name, value in sorted(self.config.items())}
        files.write_text(self.folder / "settings.json", json.dumps(settings, indent=1) + "\n")
        number = run.progress.batch if run.progress.batch < run.batches_per_epoch else 0  # stopped in scoring
        batch = next(run.loader.epochs([run.progress.epoch], number))
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

    def on_step_end(self, run: Trainer) -> None:
        if self.profiler is None:
            return
        self.steps += 1
        run.device.synchronize()
        self.profiler.step()
        if self.steps > TRACED:
            self.stop()

    def on_train_end(self, run: Trainer, reason: str) -> None:
        self.stop()

    def stop(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.profiler = None


def layers(run: Trainer, batch: Mapping[str, Any]) -> list[str]:
    """A line for each layer: name, type, output shape, parameters. From one forward pass in evaluation mode without
    gradients, so the run is not changed."""
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
