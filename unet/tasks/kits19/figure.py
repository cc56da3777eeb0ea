"""Pictures of kidneys and tumours: a case for predictions.png, an overlay of a prediction. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from unet.data import drawing
from unet.data.preprocessing import intensity

COLOURS = (drawing.ORANGE, drawing.SKY)
NAMES = ("kidney", "tumour")


def panel(arrays: dict[str, Any]) -> dict[str, Any]:
    """CT, truth and prediction of the slice with most of each class (true, or predicted where it has none)."""
    shown: dict[str, Any] = {}
    for label, name in enumerate(NAMES, 1):
        true = (arrays["target"] == label).any()
        number = fullest(arrays["target" if true else "prediction"], label)
        grey = grey_of(arrays["image"][number])
        shown |= {
            f"CT, most {name}": grey,
            f"truth, most {name}": drawing.labelled(grey, arrays["target"][number], COLOURS),
            f"prediction, most {name}": drawing.labelled(grey, arrays["prediction"][number], COLOURS),
        }
    return shown


def slices(arrays: dict[str, Any]) -> dict[str, Any]:
    """CT (D, H, W), and the labels."""
    grey = np.stack([grey_of(each)[..., 0] for each in arrays["image"]])
    return {"image": grey, "truth": arrays["target"], "prediction": arrays["prediction"]}


def overlay(volume: Any, labels: Any) -> Any:
    """(H, W, 3) uint8: the slices of a scan (D, H, W) with most predicted kidney and most tumour, side by side."""
    images = []
    for label, (name, words) in enumerate(zip(NAMES, ("orange", "blue"), strict=True), 1):
        found = bool((labels == label).any())
        number = fullest(labels, label) if found else len(labels) // 2
        grey = grey_of(volume[number])
        drawn = drawing.enlarged(drawing.labelled(grey, labels[number], COLOURS))
        images.append((f"most {name} ({words})" if found else f"no {name} predicted", drawn))
    return drawing.side_by_side(images)


def grey_of(image: Any) -> Any:
    """A normalised slice (H, W) -> (H, W, 3) uint8, the whole range of the network's input."""
    low, high = intensity.LOW, intensity.HIGH
    hounsfield = np.asarray(image) * intensity.DEVIATION + intensity.MEAN
    grey = np.clip((hounsfield - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def fullest(labels: Any, label: int) -> int:
    """The slice (D, H, W) with most voxels of a class; the first where it has none."""
    return int((labels == label).sum((1, 2)).argmax())
