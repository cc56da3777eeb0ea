"""What a file says of its image before its voxels are read: sizes, spacing, directions; how its axes are turned; what
differs between two grids. No torch.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io.nifti_header import times

Array = NDArray[Any]
Triple = tuple[int, int, int]
NIFTI, TIFF, PNG, JPEG, NPY, ITK, DICOM = "nifti", "tiff", "png", "jpeg", "npy", "itk", "dicom"
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclasses.dataclass(frozen=True)
class Head:
    """What a file says of its image before its voxels are read.

    `stored`: voxels along three axes as stored: (x, y, z) in NIfTI and ITK's formats, (slices, rows, columns) in the
    others. `dtype` of the values, which a header may scale. `spacing` (mm) along these, None where the file gives none.
    `codes`: the world direction that each axis runs to (R, L, A, P, S, I), and `affine` from voxels to mm (RAS); None
    where the file names no orientation. `notes`: what was odd and how it was taken, in words; reading the voxels adds
    to it. `segments`: the file of a DICOM-SEG. `modality` of a DICOM image.
    """

    path: Path
    format: str
    stored: Triple
    channels: int
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None = None
    codes: tuple[str, str, str] | None = None
    affine: Array | None = dataclasses.field(default=None, compare=False)
    notes: list[str] = dataclasses.field(default_factory=list, compare=False)
    segments: Path | None = None
    modality: str = ""

    @property
    def flat(self) -> bool:
        """Whether it is one slice without a place in space: a photograph, a microscope's image."""
        return self.codes is None and self.stored[0] == 1 and self.format not in (NIFTI, ITK)

    def turn(self, orientation: str) -> Turn:
        """How the stored axes become (D, H, W): to the `orientation`, three codes such as IPL; where that is empty or
        the file names none, by the format: (z, y, x) of NIfTI and ITK's formats, the others as stored."""
        if not orientation or self.codes is None:
            return Turn((2, 1, 0) if self.format in (NIFTI, ITK) else (0, 1, 2), (False, False, False))
        world = [WORLD[code][0] for code in self.codes]
        order = tuple(world.index(WORLD[code][0]) for code in orientation)
        flips = tuple(self.codes[axis] != code for axis, code in zip(order, orientation, strict=True))
        return Turn(order, flips)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Turn:
    """How axes as stored lie in the order of the network: the stored axis of each of D, H, W, and which run
    backwards."""

    order: Triple
    flips: tuple[bool, bool, bool]

    @property
    def _backwards(self) -> tuple[Any, ...]:
        return (Ellipsis, *(slice(None, None, -1 if flip else 1) for flip in self.flips))

    def sizes(self, stored: Any) -> Any:
        """What is given for each stored axis, for each of D, H, W."""
        return tuple(stored[axis] for axis in self.order)

    def apply(self, volume: Array) -> Array:
        """(..., a, b, c) as stored -> (..., D, H, W): a view."""
        lead = volume.ndim - 3
        axes = (*range(lead), *(lead + axis for axis in self.order))
        return volume.transpose(axes)[self._backwards]

    def undo(self, volume: Array) -> Array:
        """(..., D, H, W) -> (..., a, b, c) as stored: a view."""
        lead = volume.ndim - 3
        return volume[self._backwards].transpose((*range(lead), *(lead + int(axis) for axis in np.argsort(self.order))))


def mismatch(image: Head, mask: Head, fit: float = 0.1) -> list[str]:
    """What differs between the grids of an image and of another file of the case, in words with both values: size,
    spacing, origin, direction. `fit`: share of a voxel that the corners may lie apart, for rounded headers. Only the
    sizes are compared where one of them has no place in space."""
    if image.affine is None or mask.affine is None:
        own, other = image.turn("").sizes(image.stored), mask.turn("").sizes(mask.stored)
        return [] if own == other else [f"size {times(own)} and {times(other)}"]
    if image.stored == mask.stored and apart(image.affine, mask.affine, image.stored) <= fit:
        return []
    turned = mask.turn("".join(image.codes)) if image.codes and mask.codes else mask.turn("")
    found = []
    if (sizes := turned.sizes(mask.stored)) != image.stored:
        found.append(f"size {times(image.stored)} and {times(sizes)}")
    elif apart(image.affine, turned_affine(mask, turned), image.stored) <= fit:
        return []  # the same grid, with its axes stored in another order
    spaced = turned.sizes(mask.spacing or (1.0, 1.0, 1.0))
    if image.spacing and not np.allclose(image.spacing, spaced, rtol=1e-3):
        found.append(f"spacing {times(image.spacing)} and {times(spaced)} mm")
    ours, theirs = image.affine, turned_affine(mask, turned)
    if not np.allclose(ours[:3, 3], theirs[:3, 3], atol=fit * min(image.spacing or (1.0,))):
        found.append(f"origin {numbers(ours[:3, 3])} and {numbers(theirs[:3, 3])} mm")
    one, two = (each[:3, :3] / np.linalg.norm(each[:3, :3], axis=0) for each in (ours, theirs))
    if not np.allclose(one, two, atol=1e-3):
        found.append(f"direction {numbers(one.ravel())} and {numbers(two.ravel())}")
    return found or ["the place of their voxels"]


def turned_affine(head: Head, turn: Turn) -> Array:
    """The affine of a file whose axes were turned."""
    assert head.affine is not None
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, (old, flip) in enumerate(zip(turn.order, turn.flips, strict=True)):
        change[old, new] = -1 if flip else 1
        change[old, 3] = head.stored[old] - 1 if flip else 0
    return head.affine @ change


def apart(one: Array, other: Array, shape: Triple) -> float:
    """How far the corners of two grids lie apart at most, in the smallest side of a voxel."""
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, side - 1) for side in shape))], float).T
    distance = np.linalg.norm(((one - other) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(one[:3, :3], axis=0).min())


def numbers(values: Any) -> str:
    return " ".join(f"{0.0 if math.isclose(value, 0, abs_tol=5e-4) else value:.4g}" for value in values)
