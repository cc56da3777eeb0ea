"""Pictures of volumes: slices through the cube, reconstructions beside their input, and the training transforms. No
torch at import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data import drawing

Array = NDArray[Any]
Image = NDArray[np.uint8]
RESIDUAL = 4.0  # standard deviations at the ends of the colour scale
TALL = 96  # pixels of a slice at least


def grey(volume: Array, low: float) -> Image:
    """Values from `low` to 1 as grey: one scale for the whole volume."""
    return drawing.grey((volume - low) / (1 - low))


def signed(volume: Array, most: float = RESIDUAL) -> Image:
    """Blue below 0, white at 0, red above (ends at -most and most)."""
    share = np.clip(volume / most, -1, 1)[..., None]
    red, blue = np.array(drawing.VERMILION), np.array((0, 114, 178))
    colour = np.where(share > 0, red, blue)
    result: Image = (255 + np.abs(share) * (colour - 255)).round().astype(np.uint8)
    return result


def cut(volume: Image) -> list[Image]:
    """The middle slices of a cube of colours (D, H, W, 3), axes to the right, to the front, up: from the side, from the
    front, from above, each with up, or front, at the top."""
    x, y, z = (side // 2 for side in volume.shape[:3])
    return [np.rot90(each) for each in (volume[x], volume[:, y], volume[:, :, z])]


def strip(images: Sequence[Image]) -> Image:
    """Images of one size beside each other, enlarged to be seen."""
    row = np.hstack(images)
    times = max(1, -(-TALL // row.shape[0]))
    return np.repeat(np.repeat(row, times, 0), times, 1)


def panel(image: Array, mean: Array, std: Array, residual: Array, low: float) -> dict[str, Image]:
    """Input, reconstruction, standard deviation and residual of a case: three slices of each."""
    shown = {"input": grey(image, low), "reconstruction": grey(mean, low)}
    shown |= {"standard deviation (white: 0.3)": drawing.grey(std / 0.3)}
    shown |= {f"residual (blue -{RESIDUAL:g}, red {RESIDUAL:g} std)": signed(residual)}
    return {name: strip(cut(volume)) for name, volume in shown.items()}


def slices(image: Array, mean: Array, residual: Array, low: float) -> dict[str, Image]:
    """Input, reconstruction and residual, slice by slice from below to above."""
    shown = {"image": grey(image, low)[..., 0], "reconstruction": grey(mean, low)[..., 0]}
    shown[f"residual, blue -{RESIDUAL:g} to red {RESIDUAL:g} std"] = signed(residual)
    return {name: np.rot90(np.moveaxis(volume, 2, 0), axes=(1, 2)) for name, volume in shown.items()}


def page(arrays: Mapping[str, Array], residual: Array, by_level: Mapping[int, Array], low: float) -> Image:
    """A volume's page: input, the reconstructions by level from coarse to fine, its standard deviation, its residual;
    each a row of three slices under its words."""
    rows = [("input", strip(cut(grey(arrays["image"], low))))]
    rows += [(f"latents of up to {side}^3 voxels", strip(cut(grey(mean, low)))) for side, mean in by_level.items()]
    rows += [("standard deviation (white: 0.3)", strip(cut(drawing.grey(arrays["std"] / 0.3))))]
    rows += [(f"residual (blue -{RESIDUAL:g}, red {RESIDUAL:g} std)", strip(cut(signed(residual))))]
    return drawing.stacked(rows)


def samples(volumes: Sequence[Array], low: float) -> Image:
    """Drawn volumes: a row of three slices each."""
    rows = [(f"sample {number}", strip(cut(grey(volume, low)))) for number, volume in enumerate(volumes)]
    return drawing.stacked(rows)


def pipeline(volume: Array, after: Mapping[str, Array], low: float) -> Image:
    """A volume, and what each training transform alone makes of it: the middle slices."""
    rows = {"as it is cached": volume, **after}
    return drawing.stacked([(name, strip(cut(grey(each, low)))) for name, each in rows.items()], 3)
