"""The callback of --tensorboard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unet.errors import UsageError
from unet.runtime.folders.run_contents import BOARD
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.trainer import Trainer


class TensorBoard:
    """Writes losses, learning rates and scores as TensorBoard event files. Raises UsageError without the package."""

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

    def on_train_start(self, run: Trainer) -> None:
        place = self.folder / BOARD
        before = set(place.glob("*"))
        self.writer = self.make(str(place))
        self.folder.own(*(f"{BOARD}/{path.name}" for path in set(place.glob("*")) - before))

    def write(self, run: Trainer, kind: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self.writer.add_scalar(f"{kind}/{name}", value, run.progress.step)

    def on_log(self, run: Trainer, parts: Mapping[str, float], **values: float) -> None:
        self.write(run, "train", {**values, **parts})

    def on_epoch_end(self, run: Trainer, row: Mapping[str, Any], **rest: Any) -> None:
        scores = {name: value for name, value in row.items() if name == "score" or name.startswith("eval_")}
        self.write(run, "validation", scores)

    def on_train_end(self, run: Trainer, reason: str) -> None:
        if self.writer:
            self.writer.close()
