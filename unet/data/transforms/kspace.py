"""Random faults of a scan, made in k-space (the Fourier transform of the volume): ghosts, motion, spikes.

Volumes are (C, D, H, W), on the CPU or on a device; everything is drawn from a CPU generator. Each fault acts along one
axis, or is one plane wave, so that no Fourier transform of all three axes is needed. None touches the centre of
k-space: the mean of the volume stays, up to rounding. `low` is the value of the background.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unet.data.transforms.geometry import AT, moved
from unet.data.transforms.intensity import Range, below, uniform


def ghosting(
    volume: Tensor,
    generator: torch.Generator,
    low: float = -1.0,
    ghosts: tuple[int, int] = (4, 10),
    strength: Range = (0.5, 1.0),
) -> Tensor:
    """Weaken every n-th plane of k-space along one axis by a share of 0.5 to 1, all but the central one: n - 1 faint
    copies of the content come up at distances of side / n, 4 to 10 ghosts.

    Mean and shape stay; an axis shorter than 2 n voxels has no such plane and stays as it is. Source: the random
    ghosting of TorchIO 0.18, whose planes are counted from the edge of k-space.
    """
    axis = 1 + below(3, generator)
    count = ghosts[0] + below(ghosts[1] - ghosts[0] + 1, generator)
    share = uniform(generator, *strength)
    side = volume.shape[axis]
    weights = torch.zeros(side // 2 + 1, dtype=volume.dtype)
    weights[count::count] = share
    return volume - filtered(volume, weights, axis)


def filtered(volume: Tensor, weights: Tensor, axis: int) -> Tensor:
    """The volume with the planes of its k-space along `axis` multiplied by the weights of frequencies 0 ... side / 2;
    those of negative frequencies get the same, so that the result is real."""
    shape = [1] * volume.ndim
    shape[axis] = len(weights)
    spectrum = torch.fft.rfft(volume, dim=axis)
    spectrum *= weights.reshape(shape).to(volume.device)
    return torch.fft.irfft(spectrum, n=volume.shape[axis], dim=axis)


def motion(
    volume: Tensor, generator: torch.Generator, low: float = -1.0, degrees: float = 10.0, voxels: float = 10.0
) -> Tensor:
    """The head moves once during the scan: the planes of k-space that are read after that come from another pose.

    The other pose: turned by up to ±10 degrees about each axis, shifted by up to ±10 voxels of 128 along each (as many
    fewer as the side is smaller). Planes are read from one end of an axis to the other; the move comes between a
    quarter and three quarters of the time, and the half with the centre is the pose of the volume, so the content stays
    in place. The real part is kept: planes read after the move count half from each pose. Source: the random motion of
    TorchIO 0.18 (Shaw et al., 2019).
    """
    axis = 1 + below(3, generator)
    turns = [math.radians(uniform(generator, -degrees, degrees)) for _ in range(3)]
    shifts = [uniform(generator, -voxels, voxels) / AT * side for side in volume.shape[1:]]
    early = abs(uniform(generator, 0.25, 0.75) - 0.5)
    side = volume.shape[axis]
    weights = (torch.arange(side // 2 + 1) > early * side).to(volume.dtype) / 2
    return volume + filtered(moved(volume, turns, shifts) - volume, weights, axis)


def spike(volume: Tensor, generator: torch.Generator, low: float = -1.0, strength: Range = (1.0, 2.0)) -> Tensor:
    """Add one spike to k-space, `strength` (1 to 2) times as high as its highest point: a plane wave of random
    direction and length over the whole volume, background too.

    Intensities count from the background, so the highest point is the centre, and the wave's amplitude `strength` times
    the mean. The centre itself is never hit: the mean stays. Source: the random spike of TorchIO 0.18.
    """
    sides = volume.shape[1:]
    place = 1 + below(math.prod(sides) - 1, generator)
    size = uniform(generator, *strength)
    mean = (volume - low).mean(-1).mean(-1).mean(-1)  # axis by axis: the same on any number of threads
    waves: list[Tensor] = []
    for side in reversed(sides):
        place, frequency = divmod(place, side)
        angles = torch.arange(side, dtype=torch.float64) * (2 * math.pi * frequency / side)
        waves.insert(0, torch.stack((angles.cos(), angles.sin())).to(volume.dtype).to(volume.device))
    (first, first_odd), (second, second_odd), (third, third_odd) = waves
    even = torch.outer(first, second) - torch.outer(first_odd, second_odd)
    odd = torch.outer(first, second_odd) + torch.outer(first_odd, second)
    wave = even[..., None] * third - odd[..., None] * third_odd
    return volume + size * mean[:, None, None, None] * wave
