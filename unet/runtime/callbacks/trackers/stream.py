"""The events of a run as trackers take them: numbers by step, settings with their sources, and, where they are asked
for, pictures and weights. A tracker that fails is told of once; training goes on, and ends as without it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from unet import files, host
from unet.config.run_files import read_settings
from unet.errors import UnetError
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.trainer import Trainer

ENDED_BY_ERROR = ("failed", "interrupted")
PICTURES, WEIGHTS = "pictures", "weights"
LAST_PICTURES = ("predictions.png", "progress.png")
FOLDERS = re.compile(r"(?<![\w.:/])[~/](?:[^\s/,;]*/)+")  # of absolute paths


class Sink(Protocol):
    """Where events go."""

    def start(self, about: Mapping[str, Any]) -> None:
        """`about`: run, id, group, task, device, settings {name: {"value", "source"}}, resumed."""

    def scalars(self, step: int, when: float, values: Mapping[str, float]) -> None:
        """Numbers by their names, such as train/loss, of a step; `when`: seconds since 1970."""

    def picture(self, step: int, name: str, path: str) -> None:
        """A PNG file."""

    def file(self, path: str) -> None:
        """A file to keep with the run."""

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        """`status`: done, interrupted or failed."""


class Tracker:
    """The callback of one tracker, on rank 0. `flag`: as it is typed; `group`: the name that the folds of a
    cross-validation share; `extra`: which of pictures and weights are sent too; `weights`: the file of the best."""

    def __init__(
        self, flag: str, sink: Sink, folder: RunFolder, about: Mapping[str, Any], extra: tuple[str, ...], weights: Path
    ) -> None:
        self.flag, self.sink, self.folder = flag, sink, folder
        self.about, self.extra, self.weights = dict(about), extra, weights
        self.begun = self.failed = self.closed = False

    def send(self, event: str, *values: Any) -> None:
        """Give the sink an event. What it raises is told once; then it gets nothing more."""
        if self.failed:
            return
        try:
            getattr(self.sink, event)(*values)
        except Exception as error:
            self.failed = True
            words = error.message if isinstance(error, UnetError) else f"{type(error).__name__}: {str(error)[:200]}"
            host.notice(f"{self.flag}: {' '.join(words.split())} The run goes on without it.")

    def on_train_start(self, run: Trainer) -> None:
        settings = read_settings(self.folder / "config.json")
        about = {**self.about, "id": self.folder.run_id, "resumed": bool(run.progress.step)}
        self.begun = True
        self.send("start", {**about, "settings": files.jsonable(without_folders(settings))})

    def numbers(self, run: Trainer, kind: str, values: Mapping[str, Any]) -> None:
        known = {
            f"{kind}/{name}": float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        if known:
            self.send("scalars", run.progress.step, time.time(), known)

    def on_log(self, run: Trainer, parts: Mapping[str, float], **values: float) -> None:
        self.numbers(run, "train", {**values, **parts})

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], **rest: Any) -> None:
        scores = {name: value for name, value in row.items() if name == "score" or name.startswith("eval_")}
        self.numbers(run, "validation", scores)
        self.numbers(run, "epoch", {name: value for name, value in row.items() if name not in scores})
        drawn = self.folder / f"reconstructions/epoch_{row['epoch']:04d}.png"
        if PICTURES in self.extra and drawn.exists():
            self.send("picture", run.progress.step, "validation/cases", str(drawn.absolute()))

    def on_train_end(self, run: Trainer, reason: str) -> None:
        if reason in ENDED_BY_ERROR:
            self.close("failed", {})

    def on_close(self, run: Trainer, status: str, summary: Mapping[str, Any]) -> None:
        """The end of a run, when its summary and its pictures are written."""
        for name in LAST_PICTURES if PICTURES in self.extra else ():
            if (self.folder / name).exists():
                self.send("picture", run.progress.step, name.removesuffix(".png"), str((self.folder / name).absolute()))
        if WEIGHTS in self.extra and self.weights.exists():
            self.send("file", str(self.weights.absolute()))
        kept = {name: value for name, value in summary.items() if name not in ("paths", "cases")}
        self.close(status, without_folders(files.jsonable(kept)))

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        if self.begun and not self.closed:
            self.closed = True
            self.send("end", status, summary)


def without_folders(value: Any) -> Any:
    """A value with absolute paths cut to their last part: names of users and of their folders are nobody's business."""
    if isinstance(value, Mapping):
        return {name: without_folders(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return FOLDERS.sub("", value) if isinstance(value, str) else value
