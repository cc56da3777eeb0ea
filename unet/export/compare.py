"""An exported network beside torch's on the same inputs: how far apart the outputs are, and how long each takes."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unet.errors import UnetError

# Of fp32: a logit sums some 100,000 products of 24 bits in an order of each library's own, layer after layer; 1e-5 of
# the largest logit is usual, ten times that was seen. A label differs where the two best logits are as near as that.
# Of weights in 16 bits: each is off by up to 2^-11 of itself.
TOLERANCE = {False: (1e-3, 1e-4), True: (5e-2, 1e-2)}  # half -> share of the largest logit, share of the labels
TIMED = 7  # pairs of passes that are timed at least; the first of each size of batch is not


class Enough(Exception):
    """As many passes as were asked for have been compared."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """`difference`: the largest of two logits; `largest`: of torch's logits; `differing`: share of voxels whose label
    differs; `ratio`: time of the exported network over torch's, the median of pairs one after the other, `spread` the
    quartiles."""

    passes: int
    voxels: int
    difference: float
    largest: float
    differing: float
    ratio: float
    spread: tuple[float, float]

    def fault(self, half: bool) -> str:
        """What is beyond the tolerance, in words; empty if nothing."""
        share, labels = TOLERANCE[half]
        if not math.isfinite(self.difference):
            return "its output is not finite"
        if self.difference > share * self.largest:
            return (
                f"logits differ by up to {self.difference:.3g}, more than {share:g} of the largest ({self.largest:.3g})"
            )
        if self.differing > labels:
            return f"{self.differing:.3%} of the labels differ, more than {labels:.3%}"
        return ""

    def line(self) -> str:
        low, high = self.spread
        return (
            f"largest difference {self.difference:.2g} of logits up to {self.largest:.3g}; {self.differing:.4%} of"
            f" {self.voxels:,} labels differ; time {self.ratio:.2f} times torch's ({low:.2f} to {high:.2f})"
        )

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Both(nn.Module):
    """In the place of a network: runs both on each input and gives torch's output; raises Enough after `limit` passes.

    `now`: seconds, after the device has finished its work.
    """

    def __init__(self, ours: nn.Module, other: nn.Module, now: Callable[[], float]) -> None:
        super().__init__()
        self.ours, self.other, self.now = ours, other, now
        self.limit = self.passes = self.voxels = self.mismatch = 0
        self.difference = self.largest = 0.0
        self.ratios: list[float] = []
        self.sizes: set[int] = set()
        self.last: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        if self.passes >= self.limit:
            raise Enough
        ours, other = self.timed(images)
        self.last, self.passes = images, self.passes + 1
        there = other.to(ours.device)
        found = (ours.float() - there).abs().max().item()
        self.difference = max(self.difference, found) if math.isfinite(found) else math.inf
        self.largest = max(self.largest, ours.abs().max().item())
        labels = [each.argmax(1) if each.shape[1] > 1 else each > 0 for each in (ours, there)]
        self.voxels += labels[0].numel()
        self.mismatch += int((labels[0] != labels[1]).sum())
        return ours

    def timed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of both, each first in turn."""
        pair = {"ours": self.ours, "other": self.other}
        outputs, seconds = dict[str, Tensor](), dict[str, float]()
        for name in sorted(pair, reverse=len(self.ratios) % 2 > 0):
            start = self.now()
            outputs[name] = pair[name](images)
            seconds[name] = self.now() - start
        if len(images) in self.sizes:
            self.ratios.append(seconds["other"] / max(seconds["ours"], 1e-9))
        self.sizes.add(len(images))
        return outputs["ours"], outputs["other"]

    @torch.no_grad()
    def result(self) -> Comparison:
        """What was found; a short comparison goes on until enough passes are timed. Raises UnetError for no pass."""
        if self.last is None:
            raise UnetError("The cases gave the network nothing to do.", "Name other cases to compare on.")
        self.ours.eval()
        while len(self.ratios) < TIMED:
            self.timed(self.last)
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        share = self.mismatch / self.voxels
        return Comparison(self.passes, self.voxels, self.difference, self.largest, share, middle, (low, high))
