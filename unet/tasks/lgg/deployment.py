"""What another program must know to run an exported network on the slices of a patient. No torch."""

from __future__ import annotations

from typing import Any

from unet.tasks.lgg.settings import Settings


def described(settings: Settings, level: float) -> dict[str, Any]:
    side, reach = settings.image_size, settings.neighbours
    beside = [
        f"channels of the {reach} slices below, of the slice itself, then of the {reach} above; at the ends the last"
        " slice stands for those that are missing",
    ]
    return {
        "channels": ["pre-contrast", "FLAIR", "post-contrast"],
        "neighbours": reach,
        "classes": ["background", "tumour"],
        "label_values": [0, 255],
        "spacing": None,
        "window": [side, side],
        "overlap": 0.0,
        "blend": "constant",
        "mirror": settings.mirror,
        "pad_value": 0.0,
        "activation": "sigmoid",
        "threshold": level,
        "normalization": {"percentiles": [10, 99], "then": "zero mean and unit deviation of each channel"},
        "preprocessing": [
            "all slices of a patient as (slices, rows, columns, channels), in the order of their numbers; box and"
            " intensities follow from all but the first and the last",
            "voxels below a tenth of the volume's largest value are 0; cut to the box of what is left",
            "zeros make rows and columns a square",
            f"bi-quadratic interpolation of each slice to {side} x {side} (order 2, zeros outside)",
            "rescale percentiles 10 and 99 of the whole volume to 0 and 1, then subtract mean and divide by deviation"
            " of each channel",
            *(beside if reach else []),
        ],
        "postprocessing": [
            *(["mean of the logits of the slice and of its mirror image (left-right)"] if settings.mirror else []),
            "sigmoid",
            "linear interpolation back to the square of each slice, which is put where it was cut; 0 outside",
            f"tumour where the probability is above {level:g}",
            "of the whole volume the largest component is kept, connected by faces",
        ],
    }
