"""The slices of a series as one grid of voxels: sorted by their places along the normal, evenly spaced, or refused with
what is wrong and where.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io.dicom.planes import TOLD, Plane
from unet.errors import DataError

Array = NDArray[Any]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURNED = 1e-3  # how far the direction cosines of two slices may lie apart
SAME = 0.01  # share of a pixel below which two slices lie at one place
UNEVEN = 0.1  # share of the spacing by which a gap may differ from it
DRIFT = 0.5  # pixels that the last slice may be shifted sideways against the first: rounded headers
STRAIGHTEN = "Straighten it first (dcm2niix writes such a NIfTI file), and give that file."
EXPORT = "Export the series again with all of its slices."


@dataclasses.dataclass(frozen=True)
class Grid:
    """Planes in order, with the affine from (slice, row, column) to mm (RAS), None where headers do not say where they
    lie; `spacing` along these, None where there is none."""

    planes: tuple[Plane, ...]
    affine: Array | None
    spacing: tuple[float, float, float] | None
    notes: tuple[str, ...] = ()


class Doubled(DataError):
    """Several slices lie at one place; `planes` are those of each place."""

    def __init__(self, message: str, hint: str, places: Sequence[Sequence[Plane]]) -> None:
        super().__init__(message, hint)
        self.places = places


def build(name: str, planes: Sequence[Plane]) -> Grid:
    """The grid of a series; `name`: what it is called in errors. Raises DataError where its slices make no grid, and
    Doubled where several lie at one place."""
    first = planes[0]
    require_alike(name, planes)
    if not all(plane.placed for plane in planes):
        if len(planes) > 1:
            raise DataError(
                f"{name}: its {len(planes)} images do not say where they lie (position, orientation and spacing).",
                "Give one image, or a series with its geometry.",
            )
        return Grid((first,), None, (1.0, *first.spacing) if first.spacing else None)  # type: ignore[arg-type]
    along, down = np.array(first.orientation).reshape(2, 3)
    normal = np.cross(along, down)
    if abs(np.linalg.norm(normal) - 1) > 0.01 or abs(np.linalg.norm(along) - 1) > 0.01 or abs(along @ down) > 0.01:
        raise DataError(f"{name}: the directions of its rows and columns are not at right angles.", EXPORT)
    ordered = sorted(planes, key=lambda plane: float(np.array(plane.position) @ normal))
    places = np.array([plane.position for plane in ordered])
    require_single(name, ordered, places @ normal)
    step = _step(name, ordered, places, normal)
    affine = np.eye(4)
    row, column = ordered[0].spacing or (1.0, 1.0)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = step, down * row, along * column, places[0]
    length = float(np.linalg.norm(step))
    return Grid(tuple(ordered), LPS_TO_RAS @ affine, (length, float(row), float(column)))


def require_alike(name: str, planes: Sequence[Plane]) -> None:
    """Raise DataError for slices of different sizes, spacings, directions, kinds of values or frames of reference."""
    looks: list[tuple[str, Callable[[Plane], Any], Callable[[Any], str], float]] = [
        ("sizes", lambda plane: plane.size, lambda size: f"{size[0]} x {size[1]}", 0),
        ("numbers of values a pixel", lambda plane: plane.samples, str, 0),
        ("pixel spacings", lambda plane: plane.spacing, _mm, TURNED),
        ("orientations", lambda plane: plane.orientation, _directions, TURNED),
        ("frames of reference", lambda plane: plane.reference, lambda _: "", 0),
    ]
    for words, of, shown, slack in looks:
        first = of(planes[0])
        others = [plane for plane in planes if not _close(of(plane), first, slack)]
        if others:
            values = ", ".join(text for text in (shown(first), shown(of(others[0]))) if text)
            raise DataError(
                f"{name}: its slices have different {words}: {host.counted(len(others), 'slice')} of {len(planes)}"
                f" differ from the first{f' ({values})' if values else ''}.",
                "Export slices of one size and direction as a series, or take the others out of the folder.",
            )


def _close(one: Any, other: Any, slack: float) -> bool:
    if one is None or other is None or not slack:
        return bool(one == other)
    return bool(np.abs(np.array(one) - np.array(other)).max() <= slack * max(1.0, float(np.abs(one).max())))


def _mm(spacing: tuple[float, ...] | None) -> str:
    return "none" if spacing is None else " x ".join(f"{mm:.4g}" for mm in spacing) + " mm"


def _directions(orientation: tuple[float, ...] | None) -> str:
    return "none" if orientation is None else " ".join(f"{value:.3g}" for value in orientation)


def require_single(name: str, ordered: Sequence[Plane], along: Array) -> None:
    """Raise Doubled where several slices lie at one place. `along`: their places along the normal."""
    limit = SAME * min(ordered[0].spacing or (1.0,))
    groups: list[list[Plane]] = []
    last = -np.inf
    for plane, place in zip(ordered, along, strict=True):
        if place - last <= limit:
            groups[-1].append(plane)
        else:
            groups.append([plane])
            last = float(place)
    doubled = [group for group in groups if len(group) > 1]
    if doubled:
        most = max(map(len, doubled))
        raise Doubled(
            f"{name}: {most} images lie at one place ({len(doubled)} of {len(groups)} places), and"
            f" {_difference(doubled)}.",
            "Export each of them as a series of its own, in a folder of its own.",
            groups,
        )


def _difference(doubled: Sequence[Sequence[Plane]]) -> str:
    """What images at one place differ in, by the names of the header."""
    names = collections.Counter(
        name
        for group in doubled
        for name in {name for plane in group for name in dict(plane.marks)}
        if len({dict(plane.marks).get(name) for plane in group}) > 1
    )
    return f"differ in {', '.join(name for name, _ in names.most_common(3))}" if names else "their voxels differ"


def parts(places: Sequence[Sequence[Plane]]) -> dict[str, list[Plane]]:
    """Images that lie at the same places, told apart by the one value of their headers that does so evenly: {what it
    is, in words: its slices}; empty where none does."""
    planes = [plane for group in places for plane in group]
    most = max(map(len, places))
    for name in dict(planes[0].marks):
        found: dict[str, list[Plane]] = {}
        for plane in planes:
            found.setdefault(dict(plane.marks).get(name, ""), []).append(plane)
        single = [len({dict(plane.marks).get(name, "") for plane in group}) == len(group) for group in places]
        if all(single) and len(found) == most and all(len(own) == len(places) for own in found.values()):
            keys = sorted(found, key=_sortable)
            return {
                f"{name} {key if name in TOLD else f'{number} of {most}'}": found[key]
                for number, key in enumerate(keys, 1)
            }
    return {}


def _sortable(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _step(name: str, ordered: Sequence[Plane], places: Array, normal: Array) -> Array:
    """From a slice to the next, in mm. Raises DataError for slices that are missing, uneven, or shifted sideways."""
    count = len(ordered)
    if count == 1:
        return np.asarray(normal * (ordered[0].thickness or 1.0))
    along = places @ normal
    gaps = np.diff(along)
    usual = float(np.sort(gaps)[(count - 2) // 2])
    require_even(name, gaps, usual)
    step = (places[-1] - places[0]) / (count - 1)
    pixel = min(ordered[0].spacing or (1.0,))
    sideways = step - (step @ normal) * normal
    if np.linalg.norm(sideways) * (count - 1) > DRIFT * pixel:
        angle = float(np.degrees(np.arctan2(np.linalg.norm(sideways), step @ normal)))
        raise DataError(
            f"{name}: its slices are shifted sideways, by {np.linalg.norm(sideways):.3g} mm each: a gantry tilt of"
            f" {angle:.1f} degrees. Such a grid is not made straight here.",
            STRAIGHTEN,
        )
    off = places - (places[0] + np.arange(count)[:, None] * step)
    worst = int(np.argmax(np.linalg.norm(off, axis=1)))
    slack = max(UNEVEN * usual, DRIFT * pixel)
    if np.linalg.norm(off[worst]) > slack:
        raise DataError(
            f"{name}: slice {worst + 1} of {count} lies {np.linalg.norm(off[worst]):.3g} mm off an even grid.", EXPORT
        )
    return np.asarray(step)


def require_even(name: str, gaps: Array, usual: float) -> None:
    """Raise DataError where slices do not lie evenly, with the place: a whole multiple is a slice that is missing."""
    odd = [number for number, gap in enumerate(gaps) if abs(gap - usual) > UNEVEN * usual]
    if not odd:
        return
    at, gap = odd[0], float(gaps[odd[0]])
    between = f"between slices {at + 1} and {at + 2} of {len(gaps) + 1}, counted along their normal"
    lost = [round(float(gaps[number]) / usual) - 1 for number in odd]
    whole = all(
        more >= 1 and abs(gaps[number] - (more + 1) * usual) <= UNEVEN * usual * (more + 1)
        for number, more in zip(odd, lost, strict=True)
    )
    if whole:
        raise DataError(
            f"{name}: {host.counted(sum(lost), 'slice')} missing: the gap {between}, is {gap:.4g} mm, the others"
            f" {usual:.4g} mm{f' (and {len(odd) - 1} more gaps)' if len(odd) > 1 else ''}.",
            EXPORT,
        )
    raise DataError(
        f"{name}: its slices are not evenly spaced: {gap:.4g} mm {between}, and {usual:.4g} mm elsewhere.",
        "Resample it to even slices, or export them as series of their own.",
    )
