"""The flags of measuring power; the others are in `flags` and `flags_training`. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option

SHORTEST = 0.05  # seconds; no tool answers faster


@dataclasses.dataclass(frozen=True)
class PowerOptions:
    """Power"""

    power: float = option(
        0.0,
        "read the power of cards, processors and memory every so many seconds, and add it up to joules",
        minimum=0,
        maximum=3600,
        metavar="SECONDS",
        default_text="off",
        common=True,
    )
