"""--tensorboard: TensorBoard's event files in the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet.errors import UsageError
from unet.runtime.folders.run_contents import BOARD
from unet.runtime.folders.run_folder import RunFolder


class TensorBoard:
    """Writes the events of a run as TensorBoard reads them. Raises UsageError without the package."""

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

    def start(self, about: Mapping[str, Any]) -> None:
        place = self.folder / BOARD
        before = set(place.glob("*"))
        self.writer = self.make(str(place))
        self.folder.own(*(f"{BOARD}/{path.name}" for path in set(place.glob("*")) - before))
        rows = [
            f"| {name} | {json.dumps(item['value'])} | {item['source']} |" for name, item in about["settings"].items()
        ]
        self.writer.add_text("settings", "\n".join(["| setting | value | source |", "|---|---|---|", *rows]))

    def scalars(self, step: int, when: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step, walltime=when)

    def picture(self, step: int, name: str, path: str) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def file(self, path: str) -> None:
        """TensorBoard keeps no files: their names."""
        self.writer.add_text("files", Path(path).name)

    def end(self, status: str, summary: Mapping[str, Any]) -> None:
        self.writer.add_text("status", status)
        self.writer.close()
