"""What is kept of a mask of kidneys and tumours: voxels of each class, and boxes around its largest components, from
which crops are drawn. No torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CLASSES = (1, 2)
KEPT = 2


def facts(mask: Array) -> dict[str, Any]:
    """foreground (voxels of kidney and of tumour) and boxes (see `components`) of a mask (..., D, H, W)."""
    volume = np.asarray(mask).reshape(mask.shape[-3:])
    counts = [int(np.count_nonzero(volume == number)) for number in CLASSES]
    return {"foreground": counts, "boxes": components(volume)}


def components(mask: Array) -> dict[str, list[list[int]]]:
    """{"1": boxes, "2": boxes} of a mask (D, H, W): half-open [d0, d1, h0, h1, w0, w1] of the components of each class
    (face connectivity) whose boxes are largest, two at most, the largest first (MLPerf's reference)."""
    from scipy import ndimage

    result = {}
    for number in CLASSES:
        where = mask == number
        region = _bounds(where)
        found = ndimage.find_objects(ndimage.label(where[region])[0]) if region else []
        boxes = [
            [own.start + end for own, side in zip(region, box, strict=True) for end in (side.start, side.stop)]
            for box in found
        ]
        boxes.sort(key=lambda box: -math.prod(box[axis + 1] - box[axis] for axis in (0, 2, 4)))
        result[str(number)] = boxes[:KEPT]
    return result


def _bounds(where: Array) -> tuple[slice, ...]:
    """The smallest box around what is true, () where nothing is."""
    planes = where.any((1, 2))
    if not planes.any():
        return ()
    first, last = np.flatnonzero(planes)[[0, -1]]
    inner = where[first : last + 1]
    rows, columns = (np.flatnonzero(inner.any(axes))[[0, -1]] for axes in ((0, 2), (0, 1)))
    return tuple(slice(int(low), int(high) + 1) for low, high in ((first, last), rows, columns))
