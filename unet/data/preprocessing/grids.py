"""From a scan's own grid to the network's and back: axis order by the affine, resampling, padding. No torch.

A volume of the network is (D, H, W): slices from head to foot, rows to the back, columns to the left (axis codes I, P,
L), as KiTS19 stores its scans. Copies of one scan with axes flipped or swapped become the same numbers, to the bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unet.data.io import nifti
from unet.data.io.nifti_header import times
from unet.data.preprocessing import resample
from unet.errors import DataError

Array = NDArray[Any]
Triple = tuple[int, int, int]
Triplet = tuple[str, str, str]
WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
AXIAL = ("I", "P", "L")
TURNED = {0: ("R", "A", "S"), 1: ("P", "I", "L")}  # by the world axis (R-L, A-P) that the thick slices follow
THICKER = 1.25
THIN = 8.0
LONGEST = 5000.0  # mm; nobody is as long
FINEST, COARSEST = 0.3, 10.0  # mm; KiTS19: 0.4 to 5
PLANES = 32


class Turn(Protocol):
    """How axes as stored lie in the order of the network: the stored axis of each, and which of them run backwards."""

    @property
    def order(self) -> Triple: ...

    @property
    def flips(self) -> tuple[bool, bool, bool]: ...


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a scan came to the network's grid: enough to undo it.

    `raw`: voxels as stored. `order`: the stored axis of each of (D, H, W); `flips`: which of those run backwards.
    `spacing`: mm of (D, H, W) before resampling. `resampled`: voxels after it, `before`: padding in front, `size`:
    voxels in all.
    """

    raw: Triple
    order: Triple
    flips: tuple[bool, bool, bool]
    spacing: tuple[float, float, float]
    resampled: Triple
    before: Triple
    size: Triple

    @property
    def turned(self) -> Triple:
        """Voxels of (D, H, W) before resampling."""
        return self.raw[self.order[0]], self.raw[self.order[1]], self.raw[self.order[2]]

    @property
    def inner(self) -> tuple[slice, slice, slice]:
        """Where the scan lies in the padded volume."""
        a, b, c = (slice(first, first + count) for first, count in zip(self.before, self.resampled, strict=True))
        return a, b, c


def geometry(head: nifti.Header, spacing: Iterable[float], pad_to: Iterable[int]) -> Geometry:
    """The way of a scan to voxels of `spacing` mm, padded to `pad_to` at least. Raises DataError for an axis order that
    contradicts the sizes, and for a grid that would be too large.

    Sizes are cut to whole voxels as MLPerf's reference cuts them, from the header's single-precision spacing.
    """
    order, flips = turn(head)
    mm = tuple(head.spacing[axis] for axis in order)
    whole = [int(own / target * head.shape[axis]) for own, target, axis in zip(mm, spacing, order, strict=True)]
    counts = [max(1, count) for count in whole]
    if any(head.shape[axis] > 1 and count < 1 for axis, count in zip(order, whole, strict=True)):
        raise DataError(
            f"{head.path}: {times(head.shape)} voxels of {times(head.spacing)} mm are less than one voxel of"
            f" {times(spacing)} mm along an axis.",
            "Correct the spacing in its header, type a finer --spacing, or remove the case.",
        )
    padding = [max(0, least - count) for least, count in zip(pad_to, counts, strict=True)]
    size = [count + pad for count, pad in zip(counts, padding, strict=True)]
    longest = max(count * mm for count, mm in zip(head.shape, head.spacing, strict=True))
    if math.prod(size) > nifti.LARGEST or longest > LONGEST:
        raise DataError(
            f"{head.path}: its {times(head.shape)} voxels of {times(head.spacing)} mm, {longest / 1000:.3g} m long,"
            f" would become {times(size)}.",
            "Correct the spacing in its header, or remove the case.",
        )
    before = tuple(pad // 2 for pad in padding)
    return Geometry(head.shape, order, flips, mm, tuple(counts), before, tuple(size))  # type: ignore[arg-type]


def turn(head: nifti.Header, like: nifti.Header | None = None) -> tuple[Triple, tuple[bool, bool, bool]]:
    """(the stored axis of each of D, H, W; whether it runs backwards), from the affine.

    CT has axial slices. Where thick slices lie across another axis than head-foot by the affine, its names are not
    believed: the thick axis is D (see `remarks`). A file without orientation is taken as stored, or as (x, y, z) where
    its slices come last. A label is turned as its image, `like`, and as that one is stored where either has no
    orientation. Raises DataError where sizes and spacing contradict each other.
    """
    _require_plausible(head)
    if like is not None and (head.codes is None or like.codes is None):
        return turn(like)
    codes = _codes(head)
    if codes is None:
        return (0, 1, 2), (False, False, False)
    return axes_to(_target(like or head), codes)


def axes_to(target: Triplet, codes: Triplet) -> tuple[Triple, tuple[bool, bool, bool]]:
    """(the stored axis of each axis of `target`, whether it runs backwards), where the stored ones run to `codes`."""
    world = [WORLD[code][0] for code in codes]
    order = tuple(world.index(WORLD[code][0]) for code in target)
    flips = tuple(codes[axis] != code for axis, code in zip(order, target, strict=True))
    return order, flips  # type: ignore[return-value]


def _codes(head: nifti.Header) -> tuple[str, str, str] | None:
    return ("R", "A", "S") if head.codes is None and _slices_last(head) else head.codes


def _target(head: nifti.Header) -> tuple[str, str, str]:
    """The codes that (D, H, W) of a scan shall have."""
    thick = max(range(3), key=lambda axis: head.spacing[axis])
    others = [mm for axis, mm in enumerate(head.spacing) if axis != thick]
    codes = _codes(head) or AXIAL
    return TURNED.get(WORLD[codes[thick]][0], AXIAL) if head.spacing[thick] > THICKER * max(others) else AXIAL


def remarks(head: nifti.Header) -> list[tuple[str, str]]:
    """What is unusual about a scan's header and how it was taken: (kind, words), [] for axial slices with an
    orientation and a usual spacing."""
    words = remark(head)
    found = [("axes", words)] if words else []
    if not all(FINEST <= mm <= COARSEST for mm in head.spacing):
        found.append(("spacing", f"{head.path}: a spacing of {times(head.spacing)} mm is strange"))
    return found + [("header", note) for note in head.notes]


def remark(head: nifti.Header) -> str | None:
    """What is unusual about a scan's axes, in words; None for axial slices with an orientation."""
    order, _ = turn(head)
    if head.codes is None:
        taken = "(x, y, z)" if order[0] else "(slices, rows, columns)"
        return f"{head.path}: names no orientation; its axes are taken as {taken}"
    code = head.codes[order[0]]
    if WORLD[code][0] != 2:
        return (
            f"{head.path}: its slices of {head.spacing[order[0]]:.3g} mm follow the axis {code} by its affine; CT"
            " slices are axial: they are taken as such"
        )
    return None


def _slices_last(head: nifti.Header) -> bool:
    a, b, c = head.shape
    x, y, z = head.spacing
    return a == b != c and math.isclose(x, y, rel_tol=0.01) and not math.isclose(x, z, rel_tol=0.01)


def _require_plausible(head: nifti.Header) -> None:
    """Raise DataError where square slices and square pixels lie on different axes of a slab that no body fills: the
    array's axes were swapped without the header's."""
    extents = [count * mm for count, mm in zip(head.shape, head.spacing, strict=True)]
    pairs = ((0, 1), (0, 2), (1, 2))
    square = [pair for pair in pairs if head.shape[pair[0]] == head.shape[pair[1]]]
    even = [pair for pair in pairs if math.isclose(head.spacing[pair[0]], head.spacing[pair[1]], rel_tol=0.01)]
    if len(square) == len(even) == 1 and square != even and max(extents) > THIN * min(extents):
        raise DataError(
            f"{head.path}: wrong axis order: {times(head.shape)} voxels of {times(head.spacing)} mm would be"
            f" {times(round(item) for item in extents)} mm.",
            "Bring its spacing and affine into the order of its axes, or remove the case.",
        )


def planes(blocks: Iterator[Array], how: Geometry) -> Iterator[Array]:
    """The scan's planes along W in order, as arrays (planes, H, D): what `resample` takes. `blocks` are nifti.values or
    nifti.labels of its file.

    A file in the usual order streams; one in another order is read as a whole, in its own type.
    """
    if how.order == (0, 1, 2) and not any(how.flips):
        yield from blocks
        return
    first = 0
    whole: Array | None = None
    for block in blocks:
        whole = np.empty(how.turned[::-1], block.dtype) if whole is None else whole
        stored(whole.transpose(2, 1, 0), how)[:, :, first : first + len(block)] = block.transpose(2, 1, 0)
        first += len(block)
    if whole is not None:
        for first in range(0, len(whole), PLANES):
            yield whole[first : first + PLANES]


def _backwards(how: Turn) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in how.flips)


def image(
    head: nifti.Header, how: Geometry, finish: Callable[[Array], Any] | None = None, background: float = 0.0
) -> Array:
    """The scan on the network's grid, (D, H, W) float32: linear, `finish` applied in place, padded with its edge.
    `background`: what NaN outside of the body becomes (see `nifti.values`)."""
    result = np.empty(how.size, np.float32)
    resample.linear(planes(nifti.values(head, background), how), how.turned, result[how.inner], finish)
    return _pad(result, how)


def label(head: nifti.Header, how: Geometry) -> Array:
    """The labels on the network's grid, (D, H, W) uint8: nearest, padded with their edge. `how` is the image's, with
    the label's own `raw`, `order` and `flips`."""
    result = np.empty(how.size, np.uint8)
    resample.nearest(planes(nifti.labels(head), how), how.turned, result[how.inner])
    return _pad(result, how)


def _pad(volume: Array, how: Geometry) -> Array:
    """Fill what surrounds the scan with its outermost voxels, in place (numpy's mode "edge")."""
    for axis, (first, count) in enumerate(zip(how.before, how.resampled, strict=True)):
        filled, inner = [slice(None)] * axis, list(how.inner[axis + 1 :])  # earlier axes are whole by now
        for edge, outside in ((first, slice(0, first)), (first + count - 1, slice(first + count, None))):
            target, source = (*filled, outside, *inner), (*filled, slice(edge, edge + 1), *inner)
            volume[target] = volume[source]
    return volume


def restore(array: Array, how: Geometry) -> Array:
    """Scores (C, D, H, W) of the classes, float, or labels (D, H, W), integer, on the network's grid -> labels uint8 on
    the scan's own grid, axes as stored.

    Scores are interpolated linearly before the largest is taken (the first of equal ones); only one plane of them is
    held at a time. Labels take the nearest voxel, by the grid of `label`.
    """
    if array.dtype.kind in "iub":
        part = array[how.inner]
        for axis, (size, target) in enumerate(zip(part.shape, how.turned, strict=True)):
            part = part.take(((np.arange(target) + 0.5) * size / target).astype(np.intp), axis)
        return stored(part.astype(np.uint8, copy=False), how)
    result = np.empty(how.turned, np.uint8)
    d, h, w = how.inner
    for number, plane in enumerate(resample.back(array[:, d, h, w], how.turned)):
        best = plane[0].copy()
        target = result[number]
        target[:] = 0
        for index in range(1, len(plane)):
            larger = plane[index] > best
            target[larger] = index
            np.maximum(best, plane[index], out=best)
    return stored(result, how)


def restore_scores(volume: Array, how: Geometry) -> Array:
    """One class's scores (D, H, W) on the network's grid -> float32 on the scan's own grid, axes as stored."""
    result = np.empty(how.turned, np.float32)
    for number, plane in enumerate(resample.back(volume[how.inner][None], how.turned)):
        result[number] = plane[0]
    return stored(result, how)


def stored(volume: Array, how: Turn) -> Array:
    """A volume whose axes are in the order of the network, on the scan's grid -> the axes as stored (a view)."""
    return volume[_backwards(how)].transpose(np.argsort(how.order))


def turned(volume: Array, how: Turn) -> Array:
    """A volume with axes as stored -> in the order of the network (a view): the inverse of `stored`."""
    return volume.transpose(how.order)[_backwards(how)]
