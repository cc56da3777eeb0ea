"""What goes wrong while a scanner fills its k-space: ghosts, motion, spikes. Source: TorchIO (Perez-Garcia, Sparks and
Ourselin, 2021).

Whole planes of k-space are changed, so a transform along one axis is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CENTRE = 0.02  # share of the planes, about that of frequency 0, that ghosting leaves


def ghosts(volume: Tensor, axis: int, count: int, strength: float) -> Tensor:
    """Ghosts along an axis: every `count`-th plane of k-space is weaker by `strength` (0 to 1), but for those about
    frequency 0."""
    side = volume.shape[axis]
    spectrum = torch.fft.fft(volume, dim=axis)
    frequency = torch.fft.fftfreq(side, 1 / side).round().long()
    weak = (torch.fft.fftshift(frequency) % count == 0) & (torch.fft.fftshift(frequency).abs() > CENTRE * side / 2)
    factor = torch.where(torch.fft.ifftshift(weak), 1 - strength, 1.0)
    shape = [-1 if each == axis else 1 for each in range(volume.ndim)]
    return torch.fft.ifft(spectrum * factor.reshape(shape).to(volume.device), dim=axis).real


def joined(before: Tensor, after: Tensor, axis: int, when: float) -> Tensor:
    """What a scanner sees where the head moves after the share `when` of the planes along an axis was read, from the
    lowest frequency to the highest."""
    side = before.shape[axis]
    read = torch.arange(side) < round(when * side)
    first = torch.fft.ifftshift(read).reshape([-1 if each == axis else 1 for each in range(before.ndim)])
    spectra = [torch.fft.fft(volume, dim=axis) for volume in (before, after)]
    return torch.fft.ifft(torch.where(first.to(before.device), *spectra), dim=axis).abs()


def spike(volume: Tensor, place: Sequence[int], strength: float) -> Tensor:
    """One point of k-space raised by `strength` times the largest one, that of the mean (of a volume of positive
    values): a wave over the whole volume."""
    phase = torch.zeros((), dtype=volume.dtype)
    for axis, (side, frequency) in enumerate(zip(volume.shape, place, strict=True)):
        along = 2 * math.pi * frequency / side * torch.arange(side, dtype=volume.dtype)
        phase = phase + along.reshape([-1 if each == axis else 1 for each in range(volume.ndim)])
    return volume + strength * volume.mean() * torch.cos(phase).to(volume.device)
