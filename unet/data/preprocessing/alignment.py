"""Whether a label lies on the grid of its scan: the two headers are compared before one voxel is taken for another. No
torch."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data.io import nifti
from unet.data.io.nifti_header import times
from unet.data.preprocessing import grids
from unet.errors import DataError

Array = NDArray[Any]
HEADER, AS_STORED = "header", "as-stored"  # values of --label-geometry
FIT = 0.25  # of a voxel: headers are rounded; below half of one, the nearest voxel is still the same


def place(case: str, scan: nifti.Header, label: nifti.Header, how: grids.Geometry, geometry: str) -> grids.Geometry:
    """The label's way to the network's grid, where `how` is its scan's.

    `geometry` "header": the label's own header places it, in whatever axis order, and must describe the grid of its
    scan: the same sizes, corners that lie within a quarter of a voxel of the scan's, an orientation where the scan has
    one. "as-stored": its voxels lie as the scan's are stored. Raises DataError where they do not fit.
    """
    if geometry == AS_STORED:
        if label.shape != scan.shape:
            raise DataError(
                f"{case}: the label {label.path} is {times(label.shape)}, its scan {times(scan.shape)} as stored.",
                "Copy the case's files again, save the label on its scan's grid, or remove the case.",
            )
        return how
    order, flips = grids.turn(label, scan)
    own = dataclasses.replace(how, raw=label.shape, order=order, flips=flips)
    if own.turned != how.turned:
        raise DataError(
            f"{label.path}: the label is {_axes(label)}, its image {_axes(scan)}: they are of two grids.",
            "Copy the case's files again, save the label on its scan's grid, or remove the case.",
        )
    if words := grid_mismatch(scan, label, how, own):
        stored = label.shape == scan.shape
        first = f"If their voxels fit as they are stored, type --label-geometry {AS_STORED}; else " if stored else ""
        rest = "save the label with the header of its scan, or remove the case."
        raise DataError(
            f"{case}: the label {label.path} has {describe(label)}; its scan has {describe(scan)}: {words}.",
            first + (rest if first else rest.capitalize()),
        )
    return own


def _axes(head: nifti.Header) -> str:
    return f"{times(head.shape)} ({', '.join(head.codes) if head.codes else 'no orientation'})"


def describe(head: nifti.Header) -> str:
    """A grid in words: spacing, axes, first voxel, codes of sform and qform."""
    origin = ", ".join(f"{value:.6g}" for value in head.affine[:3, 3] + 0.0)
    axes = f"axes {', '.join(head.codes)}, first voxel at {origin} mm" if head.codes else "no orientation"
    return f"{times(head.spacing)} mm, {axes} (sform {head.forms[0]}, qform {head.forms[1]})"


def grid_mismatch(scan: nifti.Header, label: nifti.Header, how: grids.Turn, own: grids.Turn) -> str:
    """Why two headers of equally many voxels do not describe one grid, in words; "" where they do."""
    if (scan.codes is None) != (label.codes is None):
        return "only one of them names an orientation"
    apart = _corners(label, own) - _corners(scan, how)
    if float(np.abs(np.linalg.solve(scan.affine[:3, :3], apart.T)).max()) <= FIT:
        return ""
    return f"their corners are up to {float(np.linalg.norm(apart, axis=1).max()):.3g} mm apart"


def _corners(head: nifti.Header, how: grids.Turn) -> Array:
    """(8, 3) the corner voxels in mm, in the order of the network's axes."""
    points = []
    for ends in itertools.product((0, 1), repeat=3):
        index = np.ones(4)
        for end, axis, flip in zip(ends, how.order, how.flips, strict=True):
            index[axis] = (head.shape[axis] - 1) * (end != flip)
        points.append((head.affine @ index)[:3])
    return np.array(points)
