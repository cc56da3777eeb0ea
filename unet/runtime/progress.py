"""The progress of a run: saved in its state, so that it can be resumed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

STORED = {"evals_since_best": "stale"}  # names in a state file that differ from the field's


@dataclasses.dataclass
class Progress:
    """The progress of a run. All of it is saved, so a resumed run continues as if it had not been stopped.

    `loss_sum` and `parts` are sums over the batches of the epoch so far: of the loss, and of its terms by name.
    `lines`, `mlperf_lines` and `power_lines` count the lines of its logs, which are truncated to these on resume.
    `energy`: what --power has counted (`PowerUse`), with the samples that were trained meanwhile. In a state file
    `evals_since_best` is called "stale", as in earlier versions.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    best_score: float | None = None
    best_epoch: int = 0
    evals_since_best: int = 0
    lines: int = 0
    mlperf_lines: int = 0
    power_lines: int = 0
    reached: bool = False
    images: int = 0
    first_images: int = 0
    first_seconds: float = 0.0
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"train": 0.0, "wait": 0.0, "evaluate": 0.0, "save": 0.0}
    )
    energy: dict[str, float] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def to_state(self) -> dict[str, Any]:
        """The values under the names of a state file. No deep copy: a long history would make saving slow."""
        return {STORED.get(name, name): value for name, value in vars(self).items()}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Take over what `to_state` gave; names that this version does not know are passed over."""
        for name in vars(self):
            if (stored := STORED.get(name, name)) in saved:
                setattr(self, name, saved[stored])
        if self.best_score is not None and not math.isfinite(self.best_score):
            self.best_score, self.best_epoch = None, 0

    def add(
        self,
        losses: Sequence[float],
        parts: Mapping[str, Sequence[float]],
        norms: Sequence[Mapping[str, float]],
        batches: int,
    ) -> None:
        """Add the losses of some batches and their parts, and the norms of the gradients of some steps of `batches`
        each, to the sums of the epoch; what is not finite is left out."""
        finite = [value for value in losses if math.isfinite(value)]
        self.loss_sum += math.fsum(finite)
        self.loss_count += len(finite)
        for name, terms in parts.items():
            known = [term for term, value in zip(terms, losses, strict=True) if math.isfinite(value)]
            self.parts[name] = self.parts.get(name, 0.0) + math.fsum(known)
        for name, norm in ((name, norm) for row in norms for name, norm in row.items() if math.isfinite(norm)):
            self.parts[name] = self.parts.get(name, 0.0) + norm * batches

    def rate(self) -> float:
        """Samples/s of training, without warm-up (unless there is nothing else)."""
        images, seconds = self.images - self.first_images, self.seconds["train"] - self.first_seconds
        if images <= 0:
            images, seconds = self.images, self.seconds["train"]
        return images / seconds if seconds else 0.0

    def wait_fraction(self) -> float:
        """Share of the training time spent waiting for batches."""
        return self.seconds["wait"] / self.seconds["train"] if self.seconds["train"] else 0.0


def is_kept(every: int | None, row: Mapping[str, Any]) -> bool:
    """Whether --keep-every keeps the weights of the epoch of this row."""
    return every is not None and row["epoch"] % every == 0


def advice(change: str, has_state: bool = False) -> str:
    """What to type after training failed: again from the saved state where there is one, with a change of settings."""
    if has_state:
        return f"The last good state is saved: type the command again with --resume and {change}."
    return f"No state is saved: start a new run (--run-name NEW) with {change}."


def wrong_progress(saved: dict[str, Any]) -> str:
    """What is wrong with a saved Progress, as a phrase; empty if it is valid."""
    for name, usual in Progress(best_score=0.0).to_state().items():
        value = saved.get(name, usual)
        kinds = (int, float) if isinstance(usual, float) else (type(usual),)
        none = name == "best_score" and value is None
        if not (none or isinstance(value, kinds)) or (isinstance(value, bool) and not isinstance(usual, bool)):
            expected = "a number" if float in kinds else kinds[0].__name__
            return f"progress.{name} is {str(value)[:40]!r}, expected {expected}"
        if isinstance(value, int) and value < (name == "epoch"):
            return f"progress.{name} is {value}"
    lacking = [name for name in ("epoch", "batch", "step", "best_score", "best_epoch", "history") if name not in saved]
    if lacking:
        return f"progress lacks {lacking[0]!r}"
    rows, seconds = saved["history"], {**Progress().seconds, **saved.get("seconds", {})}
    if not all(isinstance(row, dict) and {"epoch", "step", "train_seconds", "loss"} <= set(row) for row in rows):
        return "progress.history is not a list of epochs"
    sums = (*seconds.values(), *saved.get("parts", {}).values(), *saved.get("energy", {}).values())
    if not all(isinstance(value, int | float) for value in sums):
        return "progress.seconds, progress.parts or progress.energy hold values that are not numbers"
    return ""
