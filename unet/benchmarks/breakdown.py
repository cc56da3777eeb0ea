"""Where the time of a training step goes. Each part is waited for, so the parts do not overlap as they do in training:
the rate is measured in other rounds."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.benchmarks.steps import OurLoop

PARTS = {  # name in the result -> in words
    "data_wait": "wait for the loader",
    "copy": "copy to the device",
    "forward": "forward pass and loss",
    "backward": "backward pass",
    "optimizer": "optimiser",
    "other": "other",
}


def measured(loop: OurLoop, loader: Any, rounds: int, steps: int) -> dict[str, list[float]]:
    """Mean seconds a step of each part, for each round; a first step is left out. The loader (None: there is one batch)
    prepares batches while steps run, as in training."""
    stream: Iterator[Mapping[str, Any]] = itertools.repeat(loop.tensors)
    if loader is not None:
        stream = loader.epochs(itertools.count(1))
    one_step(loop, stream)
    found: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(rounds):
        each = [one_step(loop, stream) for _ in range(steps)]
        for name, values in found.items():
            values.append(statistics.fmean(step[name] for step in each))
    return found


def one_step(loop: OurLoop, stream: Iterator[Mapping[str, Any]]) -> dict[str, float]:
    """The seconds of each part of a step."""
    device = loop.device
    marks = [device.now()]

    def mark() -> None:
        device.flush()
        marks.append(device.now())

    batch = next(stream)
    marks.append(time.perf_counter())
    moved = device.to(batch)
    mark()
    loss = loop.forward(moved)
    mark()
    loop.backward(loss)
    mark()
    loop.update()
    mark()
    loss.item()
    del moved, loss
    marks.append(device.now())
    return dict(zip(PARTS, (after - before for before, after in itertools.pairwise(marks)), strict=True))


def summary(parts: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """part -> median seconds a step over the rounds, their least and most, and its share of all (the shares add up to
    1)."""
    whole = sum(map(sum, parts.values()))
    return {
        name: {
            "seconds": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "share": sum(values) / whole,
        }
        for name, values in parts.items()
    }
