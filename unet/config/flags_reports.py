"""The flags of measuring and reporting; the others are in `flags`. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option

SOURCES = ("none", "synthetic", "real")
OPPONENTS = ("plain", "monai", "nnunet")


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Output for other programs"""

    json: bool = option(False, "print the result as JSON, and nothing else, on standard output", common=True)


@dataclasses.dataclass(frozen=True)
class MeasureOptions:
    """Measuring"""

    source: str | None = option(
        None,
        "where batches come from: none (the device alone: one batch made in memory, no data set), synthetic, real",
        choices=SOURCES,
        metavar="none|synthetic|real",
        default_text="real; synthetic with --synth-data",
        common=True,
    )
    sweep: tuple[str, ...] = option(
        (),
        "measure every combination, each in a process of its own, for example: batch_size=1,2,4 precision=fp32,bf16",
        metavar="NAME=A,B,...",
        common=True,
    )
    against: tuple[str, ...] = option(
        ("plain",),
        "what to compare with, in turn: plain (a textbook loop in fp32), monai, nnunet (their own training step)",
        choices=OPPONENTS,
        metavar="NAME",
        common=True,
    )
    profile: bool = option(
        False, "also trace three steps: trace.json in the run's folder, and a table of the operators", common=True
    )
