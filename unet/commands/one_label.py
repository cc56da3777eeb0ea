"""Whether a network gives nearly all voxels of every case one label: it has learnt nothing, or collapsed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

MOST = 0.95  # of a case's voxels in one class is nearly everything,
MORE = 0.1  # where the truth has so much less of it
LEAST = 0.05  # of the voxels that the truth marks is nearly nothing


class Counts(NamedTuple):
    """Of some cases: the label that nearly all voxels were given, the voxels, and those of the label (of nothing: those
    of any class) in the predictions and in the truth."""

    label: int
    voxels: int
    predicted: int
    true: int


class OneLabel:
    """Looks at label maps until a case is found that is not of one label; `counts`: of all cases so far, None where
    none says anything."""

    def __init__(self) -> None:
        self.counts: Counts | None = None
        self.ruled_out = False

    def add(self, slices: Callable[[], Mapping[str, Any]]) -> None:
        """A case, by what `Task.slices` gives; one where nothing is marked and nothing is there says nothing."""
        if self.ruled_out:
            return
        panels = slices()
        if "truth" not in panels or "prediction" not in panels:
            self.ruled_out = True
            return
        own, true = (np.asarray(panels[name]) for name in ("prediction", "truth"))
        if own.any() or true.any():
            self.take(counts_of(own, true))

    def take(self, found: Counts | None) -> None:
        """Add the counts of one case, or of those of another process; None rules one label out."""
        if found is None or (self.counts is not None and self.counts.label != found.label):
            self.ruled_out = True
        elif self.counts is None:
            self.counts = found
        else:
            sums = (a + b for a, b in zip(self.counts[1:], found[1:], strict=True))
            self.counts = Counts(found.label, *sums)


def gathered(each: Sequence[tuple[bool, Counts | None]]) -> Counts | None:
    """The counts of the cases of all processes, given as (ruled out, counts); None where one rules it out."""
    every = OneLabel()
    for ruled_out, counts in each:
        if ruled_out or counts is not None:
            every.take(None if ruled_out else counts)
    return None if every.ruled_out else every.counts


def counts_of(own: Any, true: Any) -> Counts | None:
    """Of one case's label maps (S, H, W), 0 for nothing; None where the prediction is not of one label."""
    marked, there = int(np.count_nonzero(own)), int(np.count_nonzero(true))
    if marked <= LEAST * there:
        return Counts(0, own.size, marked, there)
    if marked < MOST * own.size:
        return None
    label = int(np.bincount(own[own != 0].astype(np.uint8)).argmax())
    predicted, wanted = (int(np.count_nonzero(each == label)) for each in (own, true))
    flat = predicted >= MOST * own.size and predicted - wanted >= MORE * own.size
    return Counts(label, own.size, predicted, wanted) if flat else None


def words(counts: Counts | None, classes: Sequence[str]) -> str:
    """What the counts say to the user, in one line; empty where they say nothing."""
    if counts is None:
        return ""
    named = f"as {classes[counts.label - 1]}" if 0 < counts.label <= len(classes) else f"as class {counts.label}"
    own, true = (f"{100 * count / counts.voxels:.3g} %" for count in (counts.predicted, counts.true))
    return (
        f"The network marks {own} of all voxels{f' {named}' if counts.label else ''}, the masks {true}: it has learnt"
        " nothing yet, or nothing of such cases. Train longer (--epochs or --max-steps) or with another --lr;"
        " predictions.png shows the cases."
    )
