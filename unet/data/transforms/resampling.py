"""A patch out of a larger region, turned and scaled in one resampling: the image linearly, the mask by its nearest
voxel.

On the CPU or on a device, with the same numbers up to the rounding of fp32: only arithmetic by element and reading by
index, which every device has in three dimensions too. No matrix product takes part, which some devices compute with
fewer digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Outside = tuple[float, int]
Matrix = Sequence[Sequence[float]]


def resampled(
    image: Tensor,
    mask: Tensor,
    matrix: Matrix,
    patch: Sequence[int],
    still: int | None = None,
    outside: Outside = (0.0, 0),
) -> tuple[Tensor, Tensor]:
    """Image (C, D, H, W) float32 and mask (1, D, H, W) uint8 of a region -> those of a `patch` (d, h, w) at its centre.

    A voxel of the patch lies at `matrix` (3, 3) times its place from the centre, in voxels of the region. `still`: the
    axis that the matrix leaves as it is, of equal length in both: then each plane is sampled alone. `outside`: the
    values of image and mask beyond the region. The image is linear between the centres of voxels; a mask gets no new
    values.
    """
    axes = [axis for axis in range(3) if axis != still]
    flat = [[matrix[row][column] for column in axes] for row in axes]
    sides, lengths = [image.shape[1 + axis] for axis in axes], [patch[axis] for axis in axes]
    if still is not None:  # its planes are images of their own, all sampled at the same places
        image, mask = image.movedim(1 + still, 1), mask.movedim(1 + still, 1)
    places = _places(flat, lengths, image.device)
    beyond = _beyond(flat, sides, lengths, places)
    index, shares = _between(places, sides)
    changed = _linear(image.reshape(-1, math.prod(sides)), index, shares, sides)
    labels = _nearest(mask.reshape(-1, math.prod(sides)), index, shares, sides)
    if beyond is not None:
        changed.masked_fill_(beyond, outside[0])
        labels.masked_fill_(beyond, outside[1])
    front = image.shape[: -len(axes)]
    changed, labels = changed.reshape(*front, *lengths), labels.reshape(1, *front[1:], *lengths)
    if still is not None:
        changed, labels = changed.movedim(1, 1 + still), labels.movedim(1, 1 + still)
    return changed.contiguous(), labels.contiguous()


def _places(matrix: Matrix, lengths: Sequence[int], device: torch.device) -> list[Tensor]:
    """For each axis of the region the places of all voxels of the patch along it (flat), from the centre."""
    lines = [
        share * (torch.arange(length, dtype=torch.float64) - (length - 1) / 2)
        for row in matrix
        for share, length in zip(row, lengths, strict=True)
    ]
    sent = torch.cat(lines).to(torch.float32).to(device, non_blocking=True).split([len(line) for line in lines])
    result = []
    for number in range(len(lengths)):
        own = sent[number * len(lengths) : (number + 1) * len(lengths)]
        total = own[0]
        for line in own[1:]:
            total = total[..., None] + line
        result.append(total.reshape(-1))
    return result


def _beyond(matrix: Matrix, sides: Sequence[int], lengths: Sequence[int], places: Sequence[Tensor]) -> Tensor | None:
    """Which voxels of the patch lie beyond the region; None where, by the matrix, none does."""
    reached = (sum(abs(share) * (length - 1) / 2 for share, length in zip(row, lengths, strict=True)) for row in matrix)
    if all(far <= side / 2 for far, side in zip(reached, sides, strict=True)):
        return None
    result: Tensor | None = None
    for place, side in zip(places, sides, strict=True):
        far = place.abs() > side / 2
        result = far if result is None else result.logical_or_(far)
    return result


def _between(places: Sequence[Tensor], sides: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """For each voxel of the patch the number of the voxel of the region before it along all axes, and how far it is
    along each from that to the next, 0 to 1. Writes to the places."""
    index: Tensor | None = None
    for place, side in zip(places, sides, strict=True):
        before = place.add_((side - 1) / 2).floor().clamp_(0, max(0, side - 2))
        place.sub_(before).clamp_(0, 1)
        index = before.to(torch.int64) if index is None else index.mul_(side).add_(before.to(torch.int32))
    assert index is not None
    return index, list(places)


def _linear(images: Tensor, index: Tensor, shares: Sequence[Tensor], sides: Sequence[int]) -> Tensor:
    """(N, region) -> (N, patch): along the last axis first. The next voxel along an axis has the same index in the
    images without their beginning."""
    places = index.expand(len(images), -1)

    def between(axis: int, start: int) -> Tensor:
        if axis == len(sides):
            return images[:, start:].gather(1, places)
        first = between(axis + 1, start)
        if sides[axis] == 1:
            return first
        return first.lerp_(between(axis + 1, start + math.prod(sides[axis + 1 :])), shares[axis])

    return between(0, 0)


def _nearest(masks: Tensor, index: Tensor, shares: Sequence[Tensor], sides: Sequence[int]) -> Tensor:
    """(N, region) -> (N, patch), exact for any type of whole numbers. May write to the index."""
    for axis, (share, side) in enumerate(zip(shares, sides, strict=True)):
        if side > 1:
            index.add_(share > 0.5, alpha=math.prod(sides[axis + 1 :]))
    return masks.gather(1, index.expand(len(masks), -1))
