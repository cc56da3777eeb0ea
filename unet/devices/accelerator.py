"""What accelerators share: cards with memory of their own, behind the module of torch that has the device's name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unet.devices import launchers
from unet.devices.base import Device

if TYPE_CHECKING:
    from torch import Tensor


class Accelerator(Device):
    """A device whose `torch.<name>` counts cards, synchronises, and has random state and memory statistics."""

    own_memory = True

    @classmethod
    def cards(cls) -> int | None:
        import torch

        return int(getattr(torch, cls.name).device_count())

    @property
    def _api(self) -> Any:
        import torch

        return getattr(torch, self.name)

    def rng_state(self) -> Tensor | None:
        state: Tensor = self._api.get_rng_state()
        return state

    def set_rng_state(self, state: Tensor) -> None:
        self._api.set_rng_state(state)

    def loader_options(self) -> dict[str, Any]:
        """Workers start by forkserver, since forking is unsafe with a card in use."""
        workers = max(0, min(8, launchers.cores(self.rank) - 1))
        return {"workers": workers, "multiprocessing_context": "forkserver"}

    def synchronize(self) -> None:
        self._api.synchronize()

    def memory(self) -> int:
        return int(self._api.max_memory_allocated())
