"""Pictures of the first validation cases after each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from unet.runtime.callbacks import pictures
from unet.runtime.distributed.process_group import Group
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.trainer import Trainer


class EvaluationFigures:
    """`reconstructions/epoch_0003.png`: a row for each of the cases `ids`, whichever rank scores it. It must be a
    callback on every rank, since they gather."""

    def __init__(self, folder: RunFolder, figure: Callable[[Any, Any], Any], ids: Sequence[str], group: Group) -> None:
        self.folder, self.figure, self.ids, self.group = folder, figure, tuple(ids), group
        self.kept: dict[str, Any] = {}

    def keep(self, case: Any, record: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Draw a case that was scored, if it is one of those."""
        if case.id in self.ids:
            self.kept[case.id] = self.figure(case, arrays)

    def on_eval_end(self, run: Trainer, **rest: Any) -> None:
        found = {name: figure for share in self.group.gather(self.kept) for name, figure in share.items()}
        self.kept = {}
        if self.group.is_main and found:
            epoch = run.progress.epoch
            rows = [(name, found[name]) for name in self.ids if name in found]
            path = self.folder.place(f"reconstructions/epoch_{epoch:04d}.png")
            path.parent.mkdir(exist_ok=True)
            pictures.panels(rows, f"{self.folder.name}: validation cases after epoch {epoch}", path)
