"""What another program must know to run an exported network on slices of a stack. No torch."""

from __future__ import annotations

from typing import Any

from unet.tasks.em.settings import Settings


def described(settings: Settings, output: int, period: int, level: float) -> dict[str, Any]:
    """`output`: side of the network's output; `period`: pixels of its pooling grid."""
    side, margin = settings.image_size, settings.image_size - output
    around = "zeros" if settings.context == "zero" else "the mirror image"
    return {
        "channels": ["grey"],
        "classes": ["membrane", "cell"],
        "label_values": [0, 255],
        "spacing": None,
        "raw_side": settings.raw_side,
        "window": [side, side],
        "output": [output, output],
        "context": settings.context,
        "tiles": {"starts": "multiples of the period", "period": period, "dropped": period},
        "overlap": 0.0,
        "blend": "constant",
        "mirror": False,
        "pad_value": 0.0,
        "activation": "softmax",
        "threshold": level,
        "normalization": {"divide": 127.5, "subtract": 1.0},
        "preprocessing": [
            "8-bit grey values / 127.5 - 1",
            f"bilinear interpolation (pixel centres, no smoothing) so that {settings.raw_side or 'a raw side'} pixels"
            f" become {output}",
            f"{margin // 2} pixels of {around} on each side; larger images in tiles that start at multiples of"
            f" {period}: the first {period} rows and columns of a tile's output count at the image's border only",
        ],
        "postprocessing": [
            "softmax; class 1 is cell",
            "bilinear interpolation back to the size of the slice",
            f"255 (cell) where the probability is above {level:g}, else 0 (membrane)",
        ],
    }
