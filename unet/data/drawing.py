"""Masks drawn over images, in colours that the colour-blind can tell apart (Okabe and Ito, Color Universal Design,
2008). NumPy, scikit-image and Pillow inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]  # (H, W, 3)
Colour = tuple[int, int, int]
ORANGE, SKY, YELLOW, VERMILION = (230, 159, 0), (86, 180, 233), (240, 228, 66), (213, 94, 0)
PREDICTED, TRUE, BOTH = VERMILION, SKY, YELLOW
KEY = (("truth", TRUE), ("prediction", PREDICTED), ("both", BOTH))
SIDE, LONGEST = 512, 4096  # pixels: an overlay's shorter side at least, unless the longer one would pass this
TEXT, STRIP = 18, 28  # pixels: height of letters and of the strip that they stand in


def grey(image: Any) -> Image:
    """(..., H, W) in [0, 1] -> (..., H, W, 3)."""
    return np.repeat((255 * np.clip(image, 0, 1)).round().astype(np.uint8)[..., None], 3, -1)


def stretched(image: Any) -> Any:
    """Values with their percentiles 1 and 99.5 at 0 and 1."""
    low, high = np.percentile(image, (1, 99.5))
    return (image - low) / max(high - low, 1e-6)


def outline(inside: Any) -> NDArray[np.bool_]:
    """(H, W) of an area -> its pixels beside others or at the image's border, so that one of every pixel shows."""
    from skimage.segmentation import find_boundaries

    return np.asarray(find_boundaries(np.pad(np.asarray(inside, bool), 1), mode="inner")[1:-1, 1:-1])


def outlined(image: Image, prediction: Any, target: Any | None = None) -> Image:
    """The outline of the prediction in vermilion, of the target (where given) in blue, where they meet in yellow."""
    found = outline(prediction)
    true = np.zeros_like(found) if target is None else outline(target)
    return _painted(image, ((true, TRUE), (found, PREDICTED), (true & found, BOTH)))


def filled(image: Image, prediction: Any, target: Any | None = None) -> Image:
    """Prediction and target as half transparent areas, in the colours of `outlined`."""
    found = np.asarray(prediction, bool)
    true = np.zeros_like(found) if target is None else np.asarray(target, bool)
    return _painted(image, ((true, TRUE), (found, PREDICTED), (true & found, BOTH)), 0.5)


def labelled(image: Image, labels: Any, colours: Sequence[Colour]) -> Image:
    """Classes 1, 2 ... in these colours: areas that let the image through, with their outlines."""
    each = [(labels == number, colour) for number, colour in enumerate(colours, 1)]
    result = _painted(image, each, 0.4)
    return _painted(result, [(outline(inside), colour) for inside, colour in each])


def _painted(image: Image, areas: Sequence[tuple[Any, Colour]], share: float = 1.0) -> Image:
    result = image.copy()
    for inside, colour in areas:
        result[inside] = ((1 - share) * image[inside] + share * np.array(colour)).astype(np.uint8)
    return result


def factor(shape: Sequence[int]) -> int:
    """How many times an image (H, W) is enlarged to be seen."""
    return max(1, min(-(-SIDE // min(shape)), LONGEST // max(shape)))


def enlarged(image: Any) -> Any:
    """An image or mask (H, W, ...) with each pixel repeated until it is large enough to be seen."""
    times = factor(image.shape[:2])
    return np.repeat(np.repeat(image, times, 0), times, 1)


def side_by_side(images: Sequence[tuple[str, Image]]) -> Image:
    """Images of one height beside each other, each under its words."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    height, width, _ = images[0][1].shape
    sheet = Pillow.new("RGB", (len(images) * width, height + STRIP))
    try:
        font: Any = ImageFont.load_default(TEXT)
    except TypeError:  # Pillow before 10.1
        font = ImageFont.load_default()
    for number, (words, image) in enumerate(images):
        sheet.paste(Pillow.fromarray(image), (number * width, STRIP))
        ImageDraw.Draw(sheet).text((number * width + 6, 4), words, fill=(255, 255, 255), font=font)
    return np.asarray(sheet)


def stacked(rows: Sequence[tuple[str, Image]], columns: int = 2) -> Image:
    """Images of one size under their words, in columns."""
    rows = list(rows)
    while len(rows) % columns:
        rows.append(("", np.zeros_like(rows[0][1])))
    lines = [side_by_side(rows[first : first + columns]) for first in range(0, len(rows), columns)]
    return np.vstack(lines)
