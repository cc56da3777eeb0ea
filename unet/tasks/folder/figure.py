"""Pictures of any classes: a case for predictions.png, an overlay of a prediction. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from unet.data import drawing
from unet.tasks.folder.labels import IGNORED

COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def colours_of(classes: int) -> tuple[tuple[int, int, int], ...]:
    """A colour for each class but the background; beyond seven they come again."""
    return tuple(COLOURS[number % len(COLOURS)] for number in range(classes - 1))


def grey_of(image: Any) -> Any:
    """A slice of the network's input (C, H, W) -> (H, W, 3) uint8: its first channel from the 1 % to the 99.5 % value,
    or three channels as colours."""
    shown = stretched(image)
    return shown.transpose(1, 2, 0) if len(shown) == 3 else np.repeat(shown[0][..., None], 3, -1)


def stretched(image: Any) -> Any:
    """(C, ...) -> its first channel, or its three colours, as uint8: from the 1 % to the 99.5 % value."""
    shown = np.asarray(image[:3] if len(image) == 3 else image[:1], np.float32)
    low, high = np.percentile(shown, (1, 99.5))
    return (255 * np.clip((shown - low) / max(float(high - low), 1e-6), 0, 1)).round().astype(np.uint8)


def slices(image: Any, target: Any, prediction: Any) -> dict[str, Any]:
    """Image (C, D, H, W) as (D, H, W) or (D, H, W, 3), the classes of truth and prediction (D, H, W); what is ignored
    is nothing in both: it is no error."""
    shown = stretched(image)
    whole = shown.transpose(1, 2, 3, 0) if len(shown) == 3 else shown[0]
    truth, found = (np.where(target == IGNORED, 0, each) for each in (target, prediction))
    return {"image": whole, "truth": truth, "prediction": found}


def fullest(target: Any, prediction: Any) -> int:
    """The slice with most classes, of these the one with most labelled voxels; by the prediction where nothing is
    labelled."""
    labels = target if ((target > 0) & (target < 255)).any() else prediction
    held = [(len(np.unique(plane)), int((plane > 0).sum())) for plane in labels]
    return max(range(len(held)), key=lambda number: held[number])


def panel(image: Any, target: Any, prediction: Any, classes: int) -> dict[str, Any]:
    """Image (C, D, H, W), truth and prediction (D, H, W) of the slice with most classes."""
    number = fullest(target, prediction)
    grey, colours = grey_of(image[:, number]), colours_of(classes)
    return {
        "image": grey,
        "truth": drawing.labelled(grey, target[number], colours),
        "prediction": drawing.labelled(grey, prediction[number], colours),
    }


def overlay(image: Any, prediction: Any, classes: int) -> Any:
    """(H, W, 3) uint8: the slice with most predicted classes."""
    number = fullest(prediction, prediction)
    return drawing.enlarged(drawing.labelled(grey_of(image[:, number]), prediction[number], colours_of(classes)))
