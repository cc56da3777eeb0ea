"""Pictures of training patches: as they are cut, after each change alone, and after all of them, as training sees them.
One scale of grey for a page; labels as outlines, voxels to be ignored hatched."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.data import drawing
from unet.data.loading.patches import EpochPatches
from unet.data.transforms.augmentation import NAMES, Augmentation, Drawn

COLOURS = (drawing.SKY, drawing.VERMILION, drawing.YELLOW, (0, 158, 115), drawing.ORANGE, (0, 114, 178))
IGNORED, IGNORE_COLOUR = 255, (204, 121, 167)
HATCH = 6  # pixels between the lines over voxels to be ignored
WORDS = {
    "mirror": "mirrored",
    "rotate": "turned",
    "noise": "noise",
    "blur": "blur",
    "brightness": "brightness",
    "contrast": "contrast",
    "coarse": "coarser",
    "gamma_inverted": "gamma upside down",
    "gamma": "gamma",
}
COLUMNS = 3  # of a page
SIDE = 160  # pixels of a slice at least
WIDE = 330  # pixels of a cell at least, for its words


def pages(patches: EpochPatches, count: int, channel: int = 0, epoch: int = 1) -> Iterator[tuple[str, drawing.Image]]:
    """(name, page) of the first `count` patches of an epoch: of a channel the middle slices along D, H and W, three
    slices of a thin patch, the slice of a 2D patch. Black to white: the 0.5th to the 99.5th percentile of the patch as
    it is cut."""
    last = "all, as often as in training"
    shown = {"as it is cut": Augmentation.off(), **{name: patches.change.alone(name) for name in NAMES}}
    changed = {words: with_change(patches, change) for words, change in {**shown, last: patches.change}.items()}
    still = patches.change.still_axis(patches.patch)
    for number in range(-(-count // patches.batch_size)):
        batches = {words: data[epoch, number] for words, data in changed.items()}
        index = batches[last]["index"].tolist()
        for place in range(min(len(index), count - number * patches.batch_size)):
            ends = limits(batches["as it is cut"]["image"][place, channel].numpy())
            rows = []
            for words, batch in batches.items():
                image, mask = (batch[part][place].cpu().numpy() for part in ("image", "mask"))
                drawn = changed[words].changes(epoch, number, place, index[place])
                told = strength(words, drawn, channel, patches.patch) if words in NAMES else words
                rows.append((told, cell(image[channel], mask[0], ends, still)))
            name = f"{patches.name(index[place])}_{number * patches.batch_size + place}"
            yield name, drawing.stacked(rows, COLUMNS)


def with_change(patches: EpochPatches, change: Augmentation) -> EpochPatches:
    """The same patches with another change, made here."""
    other = copy.copy(patches)
    other.change, other.region, other.late = change, change.region(patches.patch), False
    return other


def limits(image: NDArray[Any]) -> tuple[float, float]:
    """The values that are black and white."""
    low, high = np.percentile(image, (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1


def strength(name: str, drawn: Drawn, channel: int, patch: Sequence[int]) -> str:
    """A change in words, with what was drawn."""
    if name == "mirror":
        turned = (axis for axis, flip, side in zip("DHW", drawn.flips, patch, strict=True) if flip and side > 1)
        return f"mirrored: {' '.join(turned)}"
    if name in ("rotate", "scale") and drawn.matrix:
        axes = [axis for axis in range(3) if axis != drawn.still]
        factor = abs(np.linalg.det(np.array(drawn.matrix)[np.ix_(axes, axes)])) ** (1 / len(axes))
        return WORDS[name] if name == "rotate" else f"objects {1 / factor:.2f} times as large"
    value = getattr(drawn, name)
    own = value[channel] if isinstance(value, tuple) else value
    told = " ".join(f"{each:.2f}" for each in (own if isinstance(own, tuple) else (own,)) if each)
    return f"{WORDS[name]}: {told}"


def cell(image: NDArray[Any], mask: NDArray[Any], ends: tuple[float, float], still: int | None = None) -> drawing.Image:
    """Slices of a patch (d, h, w) with its labels, beside each other and enlarged: the middle ones along each axis, or
    up to three along the axis `still`."""
    middles = [(axis, side // 2) for axis, side in enumerate(image.shape)]
    if still is not None:
        middles = [(still, number) for number in sorted({image.shape[still] * part // 4 for part in (1, 2, 3)})]
    slices = [outlined(image.take(number, axis), mask.take(number, axis), ends) for axis, number in middles]
    height = max(piece.shape[0] for piece in slices)
    padded = [np.pad(piece, ((0, height - piece.shape[0]), (0, 2), (0, 0))) for piece in slices]
    row = np.hstack(padded)
    times = max(1, -(-SIDE // row.shape[0]), -(-WIDE // row.shape[1]))
    return np.repeat(np.repeat(row, times, 0), times, 1)


def outlined(image: NDArray[Any], mask: NDArray[Any], ends: tuple[float, float]) -> drawing.Image:
    """A slice in grey, each class outlined in its colour, voxels to be ignored with lines over them."""
    result = drawing.grey((image - ends[0]) / (ends[1] - ends[0]))
    rows, columns = np.indices(mask.shape)
    result[(mask == IGNORED) & ((rows + columns) % HATCH == 0)] = IGNORE_COLOUR
    for label in np.unique(mask).tolist():
        if label not in (0, IGNORED):
            result[drawing.outline(mask == label)] = COLOURS[(label - 1) % len(COLOURS)]
    return result
