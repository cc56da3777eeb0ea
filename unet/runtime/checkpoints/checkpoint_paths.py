"""The paths of a run's checkpoints: best weights, state, and the previous file of each. No torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet import files, host
from unet.errors import UnetError
from unet.weight_files import safetensors_header

KEPT = "kept_epoch"  # in the metadata of weights that --keep-every wrote


@dataclasses.dataclass(frozen=True)
class CheckpointPaths:
    """The paths that belong to the weights file `<name>.safetensors`."""

    weights: Path

    @property
    def weights_before(self) -> Path:
        return self._beside("best-before.safetensors")

    @property
    def state(self) -> Path:
        return self._beside("state.safetensors")

    @property
    def state_before(self) -> Path:
        return self._beside("state-before.safetensors")

    @property
    def earlier_state(self) -> Path:
        """The state file of earlier versions."""
        return self._beside("state.pt")

    @property
    def earlier_weights(self) -> Path:
        return self._beside("pt")

    def of_epoch(self, epoch: int) -> Path:
        """Where --keep-every keeps the weights of an epoch."""
        return self._beside(f"epoch-{epoch:04d}.safetensors")

    def kept(self) -> list[Path]:
        """The weights of single epochs that this program kept beside these weights."""
        pattern = re.compile(re.escape(self.weights.stem) + r"\.epoch-\d{4,}\.safetensors")
        folder = self.weights.parent
        found = sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name)) if folder.is_dir() else []
        return [path for path in found if KEPT in metadata_of(path)]

    def _beside(self, ending: str) -> Path:
        return self.weights.with_name(f"{self.weights.stem}.{ending}")

    def states(self) -> list[Path]:
        """The existing state files, the latest first."""
        return [path for path in (self.state, self.state_before, self.earlier_state) if path.exists()]

    def taken(self) -> bool:
        """Whether weights or a state of this name exist."""
        return self.weights.exists() or bool(self.states())

    def clear(self, also_weights: bool = False) -> None:
        """Remove the checkpoints of an earlier run; a file that this program did not write is renamed instead."""
        weights = (self.weights,) if also_weights else ()
        for path in (self.state, self.state_before, self.earlier_state, self.weights_before, *weights):
            if path.exists():
                path.unlink() if metadata_of(path) else set_aside(path, "replaced")
        if self.weights.exists() and not metadata_of(self.weights):
            set_aside(self.weights, "replaced")
        for path in self.kept():
            path.unlink()


def metadata_of(path: Path) -> Mapping[str, Any]:
    """The metadata that this program wrote with weights; empty for any other file."""
    try:
        return safetensors_header.read(path).facts if safetensors_header.kind(path) == "safetensors" else {}
    except UnetError:
        return {}


def set_aside(path: Path, why: str) -> Path:
    """Rename a file to `<its name>.<why>-<number>`, with a notice."""
    new = files.set_aside(path, f"{why}-")
    host.notice(f"{path} was set aside as {new.name}")
    return new
