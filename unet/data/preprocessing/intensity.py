"""Hounsfield units to the network's input, and whether a volume holds Hounsfield units at all. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.errors import DataError

Array = NDArray[Any]
LOW, HIGH, MEAN, DEVIATION = -79.0, 304.0, 101.0, 76.9  # Hounsfield units (MLPerf's reference)
AIR = -1000.0
REACHED = -200.0  # every CT of an abdomen reaches below
CUT = 0.99  # share of voxels outside of the window, without padding; 0.6 to 0.9 in CT, most of it air
BRIGHT, BRIGHT_WITHOUT_AIR = 0.9, 0.5  # share at the window's upper end of what is no background; bone is 0.05
SHIFTED, LEVEL = 0.1, 800.0  # this share at the upper end, in the mean above this, and nothing below the lower end
FLAT = 3.0  # deviation in Hounsfield units below which a volume has no contrast; 100 in CT


def normalise(volume: Array) -> None:
    """Clip Hounsfield units and scale them to zero mean and unit deviation, in place."""
    np.clip(volume, LOW, HIGH, out=volume)
    volume -= np.float32(MEAN)
    volume /= np.float32(DEVIATION)


class CtWindow:
    """`normalise` that remembers what it saw: the lowest and highest value, how many voxels have the lowest, how many
    the window cuts, and the deviation of what is left."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.voxels = self.below = self.above = self.background = 0
        self.total = self.squares = self.before = 0.0

    def __call__(self, planes: Array) -> None:
        """Normalise planes (float32) in place."""
        low, self.high = float(planes.min()), max(self.high, float(planes.max()))
        if low < self.low:
            self.low, self.background = low, 0
        self.voxels += planes.size
        self.below += int(np.count_nonzero(planes <= LOW))
        self.above += int(np.count_nonzero(planes >= HIGH))
        self.before += float(planes.sum(dtype=np.float64))
        if low == self.low:  # a background of 0, or what lies outside of the field of view
            self.background += int(np.count_nonzero(planes == low))
        normalise(planes)
        flat = planes.ravel()
        self.total += float(flat.sum(dtype=np.float64))
        self.squares += float(np.vdot(flat, flat))

    def fault(self) -> str | None:
        """Why the volume is no CT in Hounsfield units, in words; None where it may be one."""
        if not self.voxels:
            return None
        padding = self.background if self.low <= LOW else 0
        cut = (self.below + self.above - padding) / max(1, self.voxels - padding)
        mean = self.total / self.voxels
        deviation = max(0.0, self.squares / self.voxels - mean**2) ** 0.5 * DEVIATION
        rest = self.voxels - (self.below or self.background)
        cold = self.below > self.voxels / 1000
        bright = self.above / max(1, rest)
        values = f"values from {self.low:g} to {self.high:g}"
        if cut >= CUT:
            return f"{cut:.1%} of its voxels lie outside of the CT window, {LOW:g} to {HIGH:g} HU ({values})"
        if bright > (BRIGHT if cold else BRIGHT_WITHOUT_AIR):
            return f"{bright:.1%} of what is no background lies at {HIGH:g} HU or above ({values})"
        level = HIGH + (self.before - self.voxels * MEAN - self.total * DEVIATION) / max(1, self.above)
        if not cold and self.above > SHIFTED * self.voxels and level > LEVEL:
            return (
                f"{self.above / self.voxels:.1%} of its voxels lie at {HIGH:g} HU or above, at {level:.0f} in the mean,"
                f" and next to none below {LOW:g} ({values})"
            )
        if deviation < FLAT:
            return f"{values} deviate by {deviation:.2g} HU: no contrast is left"
        return None

    def require(self, path: Path) -> None:
        """Raise DataError where the volume that was seen is no CT in Hounsfield units."""
        if words := self.fault():
            raise DataError(
                f"{path}: is no CT in Hounsfield units: {words}; every voxel would become nearly the same grey value.",
                "Give CT (air -1000, water 0); values that were stored otherwise (MRI, an offset of 1024, a scale of 0"
                " to 1) must be converted first, or the case removed.",
            )

    def remark(self, path: Path) -> str | None:
        """What is odd about the values that were seen, in words."""
        if self.low == self.high:
            return f"{path}: every voxel is {self.low:g}"
        if self.low <= REACHED:
            return None
        grey = self.low >= 0 and self.high <= 255
        kind = "grey values saturated to 8 bits" if grey else "no CT in Hounsfield units"
        return f"{path}: values from {self.low:g} to {self.high:g}: {kind} (air is -1000)"
