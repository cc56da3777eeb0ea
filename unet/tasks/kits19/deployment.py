"""What another program must know to run an exported network on a CT scan. No torch."""

from __future__ import annotations

from typing import Any

from unet.data.preprocessing import intensity
from unet.tasks.kits19.settings import Settings


def described(settings: Settings, pad_value: float) -> dict[str, Any]:
    spacing, window = list(settings.spacing), list(settings.eval_patch)
    return {
        "channels": ["CT"],
        "classes": ["background", "kidney", "tumour"],
        "label_values": [0, 1, 2],
        "spacing": spacing,
        "window": window,
        "overlap": settings.overlap,
        "blend": settings.blend,
        "mirror": settings.mirror,
        "pad_value": pad_value,
        "pad_to": list(settings.pad_to),
        "activation": "softmax",
        "normalization": {
            "clip": [intensity.LOW, intensity.HIGH],
            "subtract": intensity.MEAN,
            "divide": intensity.DEVIATION,
        },
        "preprocessing": [
            "voxels in Hounsfield units as (slices, rows, columns), slices from head to foot, rows to the back,"
            " columns to the left",
            f"linear interpolation to voxels of {' x '.join(f'{mm:g}' for mm in spacing)} mm",
            f"clip to {intensity.LOW:g} to {intensity.HIGH:g}, subtract {intensity.MEAN:g}, divide by"
            f" {intensity.DEVIATION:g}",
            f"pad evenly to {' x '.join(map(str, settings.pad_to))} at least",
        ],
        "postprocessing": [
            "logits of overlapping windows are averaged with their weights (see blend)",
            "linear interpolation of the logits back to the scan's own grid",
            "the class with the largest logit",
        ],
    }
