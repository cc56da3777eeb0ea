"""The paths of a run's checkpoints: best weights, state, and the previous file of each. No torch."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

from unet import host
from unet.errors import UnetError
from unet.weight_files import safetensors_header


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
                path.unlink() if written_here(path) else set_aside(path, "replaced")
        if self.weights.exists() and not written_here(self.weights):
            set_aside(self.weights, "replaced")


def written_here(path: Path) -> bool:
    """Whether the metadata of a file say that this program wrote it."""
    try:
        return safetensors_header.kind(path) == "safetensors" and bool(safetensors_header.read(path).facts)
    except UnetError:
        return False


def set_aside(path: Path, why: str) -> Path:
    """Rename a file to `<its name>.<why>-<number>`, with a notice."""
    names = (path.with_name(f"{path.name}.{why}-{number}") for number in itertools.count(1))
    new = next(name for name in names if not name.exists())
    path.rename(new)
    host.notice(f"{path} was set aside as {new.name}")
    return new
