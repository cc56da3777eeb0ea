"""Networks of valid convolutions: what lies around an image, and tiles for images of any size (overlap-tile).

Such a network needs `margin` pixels of context in all; its pooling grid has a period of 2^levels pixels, and its 3-wide
up-convolutions reach one pixel up and left at each level. So tiles start at multiples of the period, and the first
`period` rows and columns of a tile's output are left to the tile before, except at the image's own border: then tiles
and the whole image at once agree to rounding. Source: Ronneberger et al. 2015 (overlap-tile strategy).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def margin(levels: int) -> int:
    """Pixels by which the output is smaller than the input: two valid 3 x 3 convolutions on every level, both ways."""
    return 12 * 2**levels - 8


def framed(image: Tensor, around: int, context: str = "zero") -> Tensor:
    """(N, C, H, W) -> the image with `around` pixels of context on each side: zeros, or its mirror image."""
    if context == "zero":
        return F.pad(image, (around,) * 4)
    rows, columns = (mirrored(side, around).to(image.device) for side in image.shape[-2:])
    return image[..., rows, :][..., columns]


def mirrored(side: int, around: int) -> Tensor:
    """(side + 2 around): which line of an image stands at each place of it mirrored at its borders, again and again
    where it is small."""
    period = max(1, 2 * (side - 1))
    place = torch.arange(-around, side + around).abs() % period
    return torch.minimum(place, period - place).clamp(max=side - 1)


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


def apply(images: Tensor, output: int, levels: int, context: str, infer: Callable[[Tensor], Tensor]) -> Tensor:
    """The network over images (N, C, H, W) of any size -> (N, K, H, W): `infer` maps inputs (M, C, output + margin, ..)
    to outputs (M, K, output, output)."""
    around, side, count = margin(levels) // 2, output + margin(levels), len(images)
    height, width = images.shape[-2:]
    whole = framed(images, around, context)
    right, bottom = ((-(-length // output) + 1) * output for length in (width, height))
    whole = F.pad(whole, (0, right, 0, bottom))  # beyond the context of the last tiles: never in what counts
    result = None
    for row in tiles((height, width), output, 2**levels):
        batch = torch.cat([whole[..., y : y + side, x : x + side] for y, x in (tile.start for tile in row)])
        for tile, made in zip(row, infer(batch).split(count), strict=True):
            if result is None:
                result = made.new_empty((count, made.shape[1], height, width))
            rows, columns = tile.place()
            result[..., rows, columns] = made[..., tile.used[0], tile.used[1]]
    assert result is not None  # an image has at least one tile
    return result
