"""What lies around an image for a network of valid convolutions, whose output is smaller than its input. No torch at
import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def margin(levels: int) -> int:
    """Pixels by which the output is smaller than the input: two valid 3 x 3 convolutions on every level, both ways."""
    return 12 * 2**levels - 8


def framed(image: Tensor, around: int, context: str = "zero") -> Tensor:
    """(N, C, H, W) -> the image with `around` pixels of context on each side: zeros, or its mirror image."""
    from torch.nn import functional as F

    if context == "zero":
        return F.pad(image, (around,) * 4)
    rows, columns = (mirrored(side, around).to(image.device) for side in image.shape[-2:])
    return image[..., rows, :][..., columns]


def mirrored(side: int, around: int) -> Tensor:
    """(side + 2 around): which line of an image stands at each place of it mirrored at its borders, again and again
    where it is small."""
    import torch

    period = max(1, 2 * (side - 1))
    place = torch.arange(-around, side + around).abs() % period
    return torch.minimum(place, period - place).clamp(max=side - 1)
