"""Changes of the grey values of a patch (C, D, H, W) float32, on the CPU or on a device; what was drawn comes from the
host. All but those of a part of the channels may write into the patch that they are given.

Nothing is read from the device, and strengths go there as tensors: a device that compiles sees the same program for
every strength. On the CPU the bits do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unet.data.transforms.augmentation import Drawn
from unet.data.transforms.intensity import gaussian, weighted

AXES = (1, 2, 3)
PIECE = 16384  # voxels: torch never shares fewer among threads
REACH = 3  # standard deviations after which a Gaussian is cut off


def changed(image: Tensor, drawn: Drawn, after: Callable[[], None] | None = None) -> Tensor:
    """A patch with all changes of its grey values. `after` is called after each: a graph boundary, on devices that need
    one."""
    steps: list[tuple[object, Callable[[Tensor], Tensor]]] = [
        (drawn.noise, lambda x: noisy(x, drawn.noise or 0.0, drawn.noise_seed)),
        (any(drawn.blur), lambda x: blurred(x, drawn.blur)),
        (drawn.brightness, lambda x: brighter(x, drawn.brightness or ())),
        (drawn.contrast, lambda x: contrasted(x, drawn.contrast or ())),
        (any(drawn.coarse), lambda x: coarser(x, drawn.coarse, drawn.still)),
        (drawn.gamma_inverted, lambda x: powered(x, drawn.gamma_inverted or (), inverted=True)),
        (drawn.gamma, lambda x: powered(x, drawn.gamma or ())),
    ]
    for wanted, step in steps:
        if wanted is not None and wanted is not False:
            image = step(image)
            if after:
                after()
    return image


def by_channel(values: Sequence[float], image: Tensor) -> Tensor:
    """(C, 1, 1, 1) on the image's device."""
    return torch.tensor(values, dtype=image.dtype).reshape(-1, 1, 1, 1).to(image.device, non_blocking=True)


def mean_of(image: Tensor) -> Tensor:
    """(C, 1, 1, 1): axis by axis, so the same on any number of threads."""
    return image.mean(-1, keepdim=True).mean(-2, keepdim=True).mean(-3, keepdim=True)


def noisy(image: Tensor, sigma: float, seed: int) -> Tensor:
    """Gaussian noise of this deviation in every voxel of every channel. The numbers are drawn on the host."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed), dtype=image.dtype)
    return image.addcmul_(noise.to(image.device, non_blocking=True), by_channel([sigma], image))


def blurred(image: Tensor, deviations: Sequence[Sequence[float] | None]) -> Tensor:
    """Gaussian filter with a deviation in voxels for each axis of each channel; None leaves a channel as it is. Beyond
    the border the border's value goes on."""
    for channel, own in enumerate(deviations):
        if own is not None:
            reach = max(1, round(REACH * max(own)))
            rows = [gaussian(deviation, reach) for deviation in own]
            image[channel : channel + 1] = weighted(image[channel : channel + 1], rows)
    return image


def brighter(image: Tensor, factors: Sequence[float]) -> Tensor:
    """Each channel times its factor."""
    return image.mul_(by_channel(factors, image))


def contrasted(image: Tensor, factors: Sequence[float]) -> Tensor:
    """Each channel stretched about its mean by its factor, and cut at the least and largest value that it had."""
    mean, factor = mean_of(image), by_channel(factors, image)
    least, most = image.amin(AXES, keepdim=True), image.amax(AXES, keepdim=True)
    return image.mul_(factor).add_(mean - mean * factor).clamp_(least, most)


def coarser(image: Tensor, shares: Sequence[float | None], still: int | None = None) -> Tensor:
    """A channel as if it had fewer voxels along each axis but `still`, by its share: the nearest voxels are kept, and
    the others lie linearly between them. None leaves a channel as it is.

    By index, in the patch's own shape: no other shape comes up, however strong it is.
    """
    for channel, share in enumerate(shares):
        if share is None:
            continue
        part = image[channel]
        for axis, side in enumerate(part.shape):
            if axis != still and side > 1 and round(side * share) < side:
                low, high, weight = between_kept(side, max(1, round(side * share)))
                shape = [side if other == axis else 1 for other in range(3)]
                indices = torch.stack((low, high)).to(part.device, non_blocking=True)
                weights = weight.reshape(shape).to(part.device, non_blocking=True)
                part = torch.lerp(part.index_select(axis, indices[0]), part.index_select(axis, indices[1]), weights)
        image[channel] = part
    return image


def between_kept(side: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of an axis of `side` voxels of which `kept` are kept: for each voxel the kept ones before and after it, and how
    far it is from the first to the second (int64, int64, float32). Voxels are squares: their centres lie at 1/2."""
    place = ((torch.arange(side, dtype=torch.float64) + 0.5) * kept / side - 0.5).clamp(0, kept - 1)
    low = place.floor()
    high = (low + 1).clamp(max=kept - 1)
    sources = ((torch.arange(kept, dtype=torch.float64) + 0.5) * side / kept).floor().long()
    return sources[low.long()], sources[high.long()], (place - low).float()


def powered(image: Tensor, exponents: Sequence[float], inverted: bool = False) -> Tensor:
    """Each channel, put to [0, 1] by its least and largest value, to the power of its exponent; then with the mean and
    the deviation that it had. `inverted`: of the channel upside down, and back. A constant channel stays."""
    least, most = image.amin(AXES, keepdim=True), image.amax(AXES, keepdim=True)
    spread = most - least
    mean = mean_of(image)
    deviation = _deviation(image, mean)
    share = (most - image if inverted else image - least).div_(torch.where(spread > 0, spread, torch.ones_like(spread)))
    for channel, exponent in enumerate(by_channel(exponents, image)):
        for piece in _pieces(share[channel]):
            piece.pow_(exponent.reshape(()))
    own = mean_of(share)
    width = _deviation(share, own)
    factor = torch.where(width > 0, deviation / torch.where(width > 0, width, torch.ones_like(width)), 0.0)
    return share.sub_(own).mul_(-factor if inverted else factor).add_(mean)


def _deviation(image: Tensor, mean: Tensor) -> Tensor:
    return mean_of((image - mean).square_()).sqrt_()


def _pieces(volume: Tensor) -> Sequence[Tensor]:
    """A contiguous volume in pieces that are computed by one thread each, on the CPU: torch rounds powers differently
    at the borders of what it gives to its threads. Elsewhere in one piece."""
    flat = volume.view(-1)
    return flat.split(PIECE) if volume.device.type == "cpu" else [flat]
