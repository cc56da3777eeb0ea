"""Seeds, and the states of all random generators."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unet.devices.base import Device

if TYPE_CHECKING:
    from unet.runtime.trainer import Trainer


def seed_all(number: int, device: Device) -> None:
    """Seed python, numpy, torch and the device."""
    random.seed(number)
    np.random.seed(number % 2**32)
    device.seed(number)


class RankSeeds:
    """The callback that gives a rank random numbers of its own (dropout): torch's generators are seeded anew for every
    step by (seed, rank, step), so a resumed run draws the same without a saved state. Not for rank 0, which draws on as
    a run of one process does."""

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank

    def on_epoch_start(self, run: Trainer) -> None:
        """Before the first step, also after an evaluation."""
        own = np.random.SeedSequence((self.seed, self.rank, run.progress.step)).generate_state(1)
        run.device.seed(int(own[0]))

    on_step_end = on_epoch_start


def rng_state(device: Device) -> dict[str, Any]:
    """The state of all generators, in types that load with weights_only."""
    version, inner, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(inner), gauss],
        "torch": torch.get_rng_state(),
        "device": device.rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
    }


def set_rng_state(state: dict[str, Any], device: Device) -> None:
    """Restore what `rng_state` gave."""
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["device"] is not None:
        device.set_rng_state(state["device"])
