"""Tiles of an image for a network of valid convolutions (overlap-tile), whose output is smaller than its input.

These are not the windows of `unet.windows`: the outputs of tiles are put side by side, not averaged, and where a tile
may start is given by the network. Its pooling grid has a period of 2^levels pixels, and its 3-wide up-convolutions
reach one pixel up and left at each level. So tiles start at multiples of the period, and the first `period` rows and
columns of a tile's output are left to the tile before, except at the image's own border: then tiles and the whole image
at once agree to rounding. Source: Ronneberger et al. 2015.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Tile:
    """A tile of a network's output: where it starts in the image, what of it counts (from, to), along y and x."""

    start: tuple[int, int]
    used: tuple[slice, slice]

    def place(self) -> tuple[slice, slice]:
        """Where what counts lies in the image."""
        (y, x), (rows, columns) = self.start, self.used
        return slice(y + rows.start, y + rows.stop), slice(x + columns.start, x + columns.stop)


def spans(length: int, output: int, period: int) -> list[tuple[int, slice]]:
    """(start, part that counts) of the tiles along a side of an image."""
    step = (output - period) // period * period
    starts = [0] if length <= output or step <= 0 else list(range(0, length - period, step))
    ends = [min(start + output, length) for start in starts]
    first = [0, *ends[:-1]]
    return [
        (start, slice(before - start, end - start))
        for start, before, end in zip(starts, first, ends, strict=True)
        if before < end
    ]


def tiles(shape: tuple[int, int], output: int, period: int) -> Iterator[list[Tile]]:
    """The tiles of an image, a row of them at a time."""
    for y, rows in spans(shape[0], output, period):
        yield [Tile((y, x), (rows, columns)) for x, columns in spans(shape[1], output, period)]


def stitch(images: Tensor, side: int, output: int, period: int, infer: Callable[[Tensor], Tensor]) -> Tensor:
    """Images of any size with their context, (N, C, H + side - output, W + side - output) -> (N, K, H, W).

    `infer` maps inputs (M, C, side, side) to outputs (M, K, output, output), a row of tiles at a time.
    """
    count, margin = len(images), side - output
    height, width = (length - margin for length in images.shape[-2:])
    right, bottom = ((-(-length // output) + 1) * output for length in (width, height))
    whole = F.pad(images, (0, right, 0, bottom))  # beyond the context of the last tiles: never in what counts
    result = None
    for row in tiles((height, width), output, period):
        batch = torch.cat([whole[..., y : y + side, x : x + side] for y, x in (tile.start for tile in row)])
        for tile, made in zip(row, infer(batch).split(count), strict=True):
            if result is None:
                result = made.new_empty((count, made.shape[1], height, width))
            rows, columns = tile.place()
            result[..., rows, columns] = made[..., tile.used[0], tile.used[1]]
    assert result is not None  # an image has at least one tile
    return result
