"""An abdomen in Hounsfield units, painted on a volume of kidney and tumour labels: tissue by tissue, from ellipsoids
and smooth random fields.

Liver, spleen, vessels and bowel contrast are as bright as the kidneys, muscle and bowel as grey as the tumour: no
threshold finds them. Volumes are made plane by plane along their last axis, which is the order of a NIfTI file: a whole
one is never held. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
KIDNEY, TUMOUR = 1, 2
SLAB = 2**18  # voxels that are painted at a time: what a core's cache holds
DEPTH = 0.74  # half depth of a body whose half width is 1
THICK = 2.5  # times the finest spacing: slices that are not smoothed into one another
HALO = 0.05  # cells, in half widths, in which the fat around the kidneys is drawn
# Hounsfield units, before a case's own contrast.
TISSUES = {
    "air": -1000.0,
    "table": -450.0,
    "fat": -100.0,
    "skin": 10.0,
    "muscle": 52.0,
    "bone": 230.0,
    "cortex": 520.0,
    "disc": 85.0,
    "canal": 20.0,
    "liver": 106.0,
    "spleen": 122.0,
    "vessel": 165.0,
    "vein": 140.0,
    "soft": 34.0,
    "gas": -880.0,
    "contrast": 190.0,
}


class _Field:
    """A smooth random field over a grid, evaluated plane by plane: a cubic B-spline over noise of unit variance."""

    def __init__(self, coefficients: Array, shape: Sequence[int], spacing: Sequence[float], cell: Sequence[float]):
        taps = [_taps(*item) for item in zip(shape, spacing, cell, strict=True)]
        (at, weights), middle = taps[0], coefficients.transpose(2, 1, 0)  # to (x, y, z), the order of the file
        rows = sum(middle[:, :, at + k] * weights[k] for k in range(4))
        at, weights = taps[1]
        self.knots: Array = sum(rows[:, at + k] * weights[k][:, None] for k in range(4))
        self.at, self.weights = taps[2]

    def planes(self, first: int, last: int) -> Array:
        """(last - first, H, D) float32."""
        result = np.empty((last - first, *self.knots.shape[1:]), np.float32)
        term = np.empty_like(self.knots[0])
        for plane, number in zip(result, range(first, last), strict=True):
            at, weights = self.at[number], self.weights[:, number]
            np.multiply(self.knots[at], weights[0], out=plane)
            for k in (1, 2, 3):
                plane += np.multiply(self.knots[at + k], weights[k], out=term)
        return result


def _taps(count: int, spacing: float, cell: float) -> tuple[Array, Array]:
    """First knot and four weights (4, count) of each voxel of an axis."""
    at = (np.arange(count) + 0.5) * spacing / cell
    first, t = at.astype(int), at % 1
    weights = np.array(((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)) / 6
    return first, weights.astype(np.float32)


class Body:
    """A grid (D, H, W) and a body in it; x (to the left), y (to the back) and z (down) are in units of the body's half
    width `half` (mm) from its `centre` (mm, in the order of the axes).
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: Sequence[int],
        spacing: Sequence[float],
        centre: Sequence[float],
        half: float,
    ) -> None:
        self.rng, self.shape, self.spacing, self.half = rng, tuple(shape), tuple(map(float, spacing)), half
        z, y, x = (
            (((np.arange(n) + 0.5) * s - c) / half).astype(np.float32)
            for n, s, c in zip(shape, self.spacing, centre, strict=True)
        )
        self.x, self.y, self.z = x[:, None, None], y[None, :, None], z[None, None, :]
        self.reach = float(min(-z[0], z[-1]))  # of the grid, up and down
        self.bend = (self.field(0.9), self.field(0.9))
        self.value = {
            tissue: hu if tissue in ("air", "gas") else hu + 0.05 * abs(hu) * float(rng.normal())
            for tissue, hu in TISSUES.items()
        }
        self.wall = float(rng.uniform(0.84, 0.92))
        self.noise = float(rng.uniform(6, 10))

    def field(self, cell: float, coefficients: Array | None = None) -> _Field:
        """A random field with knots `cell` half widths apart (a voxel at least), or the spline of `coefficients`."""
        cells = [max(cell * self.half, spacing) for spacing in self.spacing]
        if coefficients is None:
            counts = [int(n * s / c) + 4 for n, s, c in zip(self.shape, self.spacing, cells, strict=True)]
            # (151 / 315)^3 is the mean square of the spline's weights.
            coefficients = self.rng.standard_normal(counts, dtype=np.float32) * np.float32((315 / 151) ** 1.5)
        return _Field(coefficients, self.shape, self.spacing, cells)

    def place(self, first: int, last: int) -> tuple[Array, Array]:
        """x and y of some planes, bent a little: two arrays (planes, H, D)."""
        first_field, second = self.bend
        bent = first_field.planes(first, last), second.planes(first, last)
        for item in bent:
            item *= np.float32(0.035)
        bent[0][:] += self.x[first:last]
        bent[1][:] += self.y
        return bent


def _inside(place: Sequence[Array], centre: Sequence[float], radii: Sequence[float]) -> Array:
    """Where the ellipsoid (cylinder, with two radii) around `centre` is: bool."""
    level: Any = 0
    for at, c, radius in zip(place, centre, radii, strict=False):
        level = level + ((at - np.float32(c)) * np.float32(1 / radius)) ** 2
    return np.asarray(level < 1)


class Painter:
    """Paints HU on a label volume (W, H, D), planes at a time."""

    def __init__(self, body: Body, label: Array) -> None:
        self.body, self.label, rng = body, label, body.rng
        self.low, self.loops, self.filled = body.field(0.5), body.field(0.16), body.field(0.3)
        self.texture = body.field(0.08)
        self.halo = body.field(HALO, _presence(body, label))
        self.kidney, self.tumour = 130 + float(rng.uniform(-10, 10)), 70 + float(rng.uniform(-6, 6))
        self.beat = float(rng.uniform(0, 6.28))

    def slabs(self) -> Iterator[Array]:
        """HU float32 (planes, H, D), whole numbers, some planes after the others."""
        body, width = self.body, self.body.shape[2]
        step = max(1, SLAB // (body.shape[0] * body.shape[1]))
        before: list[Array] = []
        for first in range(0, width, step):
            last = min(width, first + step)
            hu = self._kidneys(self._organs(first, last), first, last)
            block = np.concatenate([*(before or [hu[:1]]), hu, *([hu[-1:]] if last == width else [])])
            before = [block[-2:]]
            if len(block) > 2:
                hu = _smooth(np.pad(block, ((0, 0), (1, 1), (1, 1)), "edge"), body.spacing[::-1])
                hu += np.float32(body.noise) * body.rng.standard_normal(hu.shape, dtype=np.float32)
                yield np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)

    def _organs(self, first: int, last: int) -> Array:
        body, value = self.body, self.body.value
        x, y = body.place(first, last)
        z, low = body.z, self.low.planes(first, last)
        radius = np.sqrt(x * x + (y * np.float32(1 / DEPTH)) ** 2)
        hu = np.full(radius.shape, value["air"], np.float32)
        board = body.y - np.float32(DEPTH + 0.02) + np.float32(0.08) * body.x[first:last] ** 2
        np.copyto(hu, value["table"], where=(board > 0) & (board < 0.05))

        def paint(tissue: str, where: Array) -> None:
            np.copyto(hu, value[tissue], where=where)

        radius += np.float32(0.02) * low
        paint("skin", radius < 1)
        paint("fat", radius < 0.975)
        paint("muscle", radius < body.wall)
        cavity = radius < body.wall - 0.09
        paint("fat", cavity)
        for side in (-1, 1):
            paint("muscle", _inside((x, y), (side * 0.19, 0.54), (0.18, 0.13)))
        self._bowel(paint, cavity & (y < 0.3 - 0.1 * low), y, first, last)
        paint("liver", _inside((x, y, z), (-0.42, -0.12, -0.6), (0.5, 0.52, 0.8)) & cavity)
        paint("spleen", _inside((x, y, z), (0.62, 0.1, -0.55), (0.2, 0.3, 0.5)) & cavity)
        for side in (-1, 1):
            paint("muscle", _inside((x, y, z), (side * 0.22, 0.3, 0.5), (0.1, 0.12, 1.1)))
        paint("vessel", _inside((x, y), (0.04, 0.15), (0.06, 0.06)))
        paint("vein", _inside((x, y), (-0.11, 0.14), (0.075, 0.055)))
        paint("fat", (self.halo.planes(first, last) > 0.16 + 0.07 * low) & (radius < 0.975))
        self._bones(paint, x, y, radius)
        return hu

    def _bowel(self, paint: Callable[[str, Array], None], where: Array, y: Array, first: int, last: int) -> None:
        loops, filled = self.loops.planes(first, last), self.filled.planes(first, last)
        paint("soft", where & (loops > -0.35))
        inner = where & (loops > 0.45)
        paint("gas", inner & (filled > 0.9 + 1.5 * (y + 0.1)))
        paint("contrast", inner & (filled < -1.3))

    def _bones(self, paint: Callable[[str, Array], None], x: Array, y: Array, radius: Array) -> None:
        z, wall = self.body.z, self.body.wall
        body = _inside((x, y), (0, 0.33), (0.16, 0.13))
        paint("cortex", body)
        inner = _inside((x, y), (0, 0.33), (0.135, 0.105))
        disc = np.sin(np.float32(16) * z + np.float32(self.beat)) > 0.8
        paint("bone", inner & ~disc)
        paint("disc", body & disc)
        paint("cortex", (np.abs(x) < 0.1 - 0.28 * (y - 0.42)) & (y > 0.42) & (y < 0.66) & ~disc)
        paint("canal", _inside((x, y), (0, 0.47), (0.055, 0.045)))
        ring = (radius < wall - 0.02) & (radius > wall - 0.075)
        turn = np.arctan2(y[ring], x[ring]) * 9 + 6 * np.broadcast_to(z, ring.shape)[ring]
        ring[ring] = (np.sin(turn + self.beat) > 0.55) & (y[ring] > -0.5)
        paint("cortex", ring)

    def _kidneys(self, hu: Array, first: int, last: int) -> Array:
        label = self.label[first:last]
        if label.any():
            texture = np.clip(self.texture.planes(first, last), -2, 2)
            np.copyto(hu, self.kidney + 15 * texture, where=label == KIDNEY)
            np.copyto(hu, self.tumour + 11 * texture, where=label == TUMOUR)
        return hu


def _presence(body: Body, label: Array) -> Array:
    """Coefficients, in cells of HALO, of whether there is kidney or tumour: (a, b, c) float32 of 0 and 1."""
    found = label
    for axis, (count, spacing) in enumerate(zip(body.shape[::-1], body.spacing[::-1], strict=True)):
        cell = max(HALO * body.half, spacing)
        number = ((np.arange(count) + 0.5) * spacing / cell + 0.5).astype(int)
        found = np.maximum.reduceat(found, np.searchsorted(number, np.arange(number[-1] + 1)), axis=axis)
        before = [(1, 3) if item == axis else (0, 0) for item in range(3)]
        found = np.pad(found, before)
    return (found > 0).astype(np.float32).transpose(2, 1, 0)


def _smooth(hu: Array, spacing: Sequence[float]) -> Array:
    """(1 2 1) / 4 along each axis but that of thick slices; takes one voxel off every side."""
    for axis, mm in enumerate(spacing):
        low, middle, high = (hu[(slice(None),) * axis + (slice(k, hu.shape[axis] - 2 + k),)] for k in range(3))
        if mm > THICK * min(spacing):
            hu = middle.copy()
            continue
        hu = middle + middle
        hu += low
        hu += high
        hu *= np.float32(0.25)
    return hu


def draw_kidneys(body: Body) -> NDArray[np.uint8]:
    """Labels (W, H, D) of two kidneys, one with a tumour at its surface, inside the body's wall."""
    rng, label = body.rng, np.zeros(body.shape[::-1], np.uint8)
    x, y = body.place(0, len(label))
    z, wobble = body.z, body.field(0.22).planes(0, len(label))
    outside = x * x + (y * np.float32(1 / DEPTH)) ** 2 > (body.wall - 0.02) ** 2
    sick, tumour = int(rng.choice((-1, 1))), outside
    for side in (-1, 1):
        cx, cy, cz = rng.uniform(0.45, 0.5), rng.uniform(0.12, 0.18), rng.uniform(-0.12, 0.12) * body.reach
        a, b, c = rng.uniform(0.22, 0.26), rng.uniform(0.2, 0.24), min(rng.uniform(0.5, 0.62), 0.6 * body.reach)
        u, v, w = (side * x - cx - rng.uniform(0, 0.12) * z) / a, (y - cy) / b, (z - cz) / c
        notch = ((u + 1) / 0.6) ** 2 + (v / 0.4) ** 2 + (w / 0.35) ** 2
        label[(u * u + v * v + w * w + 0.12 * wobble < 1) & (notch > 1)] = KIDNEY
        for _ in range(50 if side == sick else 0):
            turn, height = rng.uniform(-1.9, 1.9), rng.uniform(-0.8, 0.8)  # from the front over the flank to the back
            out, away, size = np.sqrt(1 - height**2), rng.uniform(0.6, 1.0), rng.uniform(0.23, 0.3)
            at = (u - away * out * np.cos(turn), v - away * out * np.sin(turn), w - away * height)
            tall = min(size * rng.uniform(0.9, 1.2), 0.5 * body.reach)
            level = (at[0] * (a / size)) ** 2 + (at[1] * (b / size)) ** 2 + (at[2] * (c / tall)) ** 2
            tumour = level + 0.15 * wobble < 1
            if (tumour & outside).sum() < 0.03 * tumour.sum():  # not drawn through the wall
                break
    label[tumour] = TUMOUR
    label[outside] = 0
    return label


def paint(seed: int, index: int, label: Array, spacing: Sequence[float]) -> Iterator[Array]:
    """HU for a real label (D, H, W), spacing in mm: slabs (planes, H, D) float32 along its last axis, in order.

    Kidneys 130 ± 40, tumours 70 ± 30, noise apart. The body is laid around the kidneys: they come to lie beside the
    spine and inside the wall. The same arguments give the same arrays.
    """
    rng = np.random.default_rng((seed, index))
    planes = label.transpose(2, 1, 0)
    sides = [n * float(s) for n, s in zip(label.shape, spacing, strict=True)]
    found = planes.any(axis=2)  # (W, H)
    centre, half = [side / 2 for side in sides], 0.44 * sides[2]
    if found.any():
        x, y = (((at + 0.5) * float(s)) for at, s in zip(np.nonzero(found), (spacing[2], spacing[1]), strict=True))
        depth = np.flatnonzero(planes.any(axis=(0, 1)))
        centre[0] = (depth[0] + depth[-1] + 1) / 2 * float(spacing[0])
        if np.ptp(x) > 0.25 * sides[2]:  # both kidneys
            centre[2] = (x.min() + x.max()) / 2
        while True:
            centre[1] = (y.min() + y.max()) / 2 - 0.2 * half
            radius = np.hypot(x - centre[2], (y - centre[1]) / DEPTH).max() / half
            if radius < 0.8:
                break
            half *= 1.05
    return Painter(Body(rng, label.shape, spacing, centre, half), planes).slabs()
