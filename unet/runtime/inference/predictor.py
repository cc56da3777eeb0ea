"""Running a trained network over a case: fixed batches, the last one padded, no gradients.

Slices go through one after another; volumes in overlapping windows whose logits are averaged.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unet import host
from unet.devices.base import Device
from unet.errors import DataError

# every subset of the axes (D, H, W) of a batch (N, C, D, H, W)
FLIPS = tuple(axes for size in range(4) for axes in itertools.combinations((2, 3, 4), size))
FEW = 8  # passes that need no progress bar


class Timed:
    """A function of a case's batch that keeps the seconds of each call, the device's work included; a result
    that holds NaN or infinity is a notice, or with `finite` a DataError."""

    def __init__(self, run: Callable[[Any], Tensor], device: Device, finite: bool = False) -> None:
        self.run, self.device, self.finite = run, device, finite
        self.seconds: list[float] = []

    def __call__(self, batch: Any) -> Tensor:
        start = self.device.now()
        result = self.run(batch)
        self.seconds.append(self.device.now() - start)
        if not math.isfinite(result.sum().item()):  # one read; what is not finite stays so in a sum
            words = "the network's output is not finite (NaN or infinity)."
            if self.finite:
                hint = "Use weights of a run that did not diverge, or --precision fp32 where fp16 overflows."
                raise DataError(words, hint)
            host.notice_once(f"A score says nothing: {words}")
        return result


@torch.no_grad()
def slices(volume: Tensor, network: nn.Module, device: Device, batch: int) -> Tensor:
    """(S, C, H, W) on the host -> the network's output (S, K, H, W) on the host.

    Every forward pass has the same shape: the last group repeats its last slice, so that devices which compile for a
    shape do it once. `network` is put in evaluation mode and back.
    """
    was_training = network.training
    network.eval()
    parts = []
    try:
        for first in range(0, len(volume), batch):
            group = volume[first : first + batch]
            count = len(group)
            if count < batch and (device.static_shapes or len(volume) > batch):
                group = torch.cat((group, group[-1:].expand(batch - count, *group.shape[1:])))
            parts.append(_forward(group, network, device)[:count].float().cpu())
    finally:
        network.train(was_training)
    return torch.cat(parts)


@torch.no_grad()
def windows(
    volume: Tensor,
    network: nn.Module,
    device: Device,
    roi: Sequence[int],
    overlap: float = 0.5,
    batch: int = 1,
    blend: str = "gaussian",
    mirror: bool = False,
) -> Tensor:
    """(C, D, H, W) float32 on the host -> mean logits (K, D, H, W) float32 over windows of `roi` voxels.

    Windows start every int(roi (1 - overlap)) voxels; where that leaves a rest, they lie evenly, a little closer, so
    that the last one ends with the volume (as in nnU-Net) and none sees padding. No side may be shorter than the roi.
    A voxel's logits are weighted by its place in each window: blend "gaussian" or "constant". `mirror` averages over
    the eight flips of a window (eight times the work). Every forward pass has `batch` windows, the last group repeats
    its last one; the result does not depend on it. It lies on the device, and nothing is read from there on the way;
    where the device's memory is too short for volume and logits, both stay on the host, and so does the result. Raises
    DataError.

    Source: sliding_window_inference of MLPerf's U-Net3D reference, which averages logits (not probabilities) and knows
    a Gaussian whose cube root is taken. Here the weights, divided by their sum over the windows, are a product of three
    short vectors: no volume of weights, no division at the end.
    """
    grid = Grid(volume.shape[1:], roi, overlap, blend)
    was_training = network.training
    network.eval()
    try:
        try:
            return _stitch(device.put(volume), network, device, grid, batch, mirror)
        except (RuntimeError, MemoryError) as error:
            if not (device.own_memory and device.is_out_of_memory(error)):
                raise
        device.release()  # outside of the handler, which keeps the tensors of the failed attempt alive
        host.notice_once(
            "The device's memory is short of a whole case: windows are put together on the host, which is slower."
        )
        return _stitch(volume, network, device, grid, batch, mirror)
    finally:
        network.train(was_training)


class Grid:
    """Windows over a volume of `shape` (D, H, W): where they lie and what their voxels weigh."""

    def __init__(self, shape: Sequence[int], roi: Sequence[int], overlap: float, blend: str) -> None:
        self.roi = tuple(roi)
        if any(side < length for side, length in zip(shape, self.roi, strict=True)):
            fitting = tuple(map(max, zip(shape, self.roi, strict=True)))
            raise DataError(
                f"Windows of {self.roi} do not fit into a volume of {tuple(shape)}.", f"Pad the volume to {fitting}."
            )
        self.starts = [starts(side, length, overlap) for side, length in zip(shape, self.roi, strict=True)]
        self.weights = [shares(length, places, blend) for length, places in zip(self.roi, self.starts, strict=True)]

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """Numbers of each window along the axes, in C order."""
        return itertools.product(*(range(len(places)) for places in self.starts))

    def place(self, window: Sequence[int]) -> tuple[slice, ...]:
        """Slices of a window in the volume (C, D, H, W)."""
        first = [places[number] for number, places in zip(window, self.starts, strict=True)]
        return (slice(None), *(slice(start, start + length) for start, length in zip(first, self.roi, strict=True)))


def starts(side: int, length: int, overlap: float) -> list[int]:
    """Where windows of `length` start along a side: at most int(length (1 - overlap)) apart, the last at its end."""
    step = max(1, int(length * (1 - overlap) + 1e-9))
    count = -((length - side) // step)
    return [round(number * (side - length) / max(1, count)) for number in range(count + 1)]


def profile(length: int, blend: str) -> Tensor:
    """(length,) float64: a window's weight along one axis, 1 at most.

    The cube root of a Gaussian with a standard deviation of an eighth of the window; the product over three axes is
    MLPerf's importance map, but for a factor that the division by the sum removes.
    """
    if blend == "constant":
        return torch.ones(length, dtype=torch.float64)
    offset = (torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / (0.125 * length)
    return torch.exp(-(offset**2) / 6)


def shares(length: int, places: Sequence[int], blend: str) -> Tensor:
    """(windows, length) float32: what each of the windows that start at `places` along an axis contributes at each of
    its voxels; the contributions to a voxel add up to 1."""
    weight = profile(length, blend)
    total = torch.zeros(places[-1] + length, dtype=torch.float64)
    for start in places:
        total[start : start + length] += weight
    return torch.stack([weight / total[start : start + length] for start in places]).float()


def _stitch(volume: Tensor, network: nn.Module, device: Device, grid: Grid, batch: int, mirror: bool) -> Tensor:
    """Mean logits (K, D, H, W), put together where `volume` lies."""
    z, y, x = (weights.to(volume.device) for weights in grid.weights)
    places = list(grid)
    result = None
    groups = range(0, len(places), batch)
    for first in host.progress(groups, name="windows", unit="pass") if len(groups) > FEW else groups:
        group = places[first : first + batch]
        full = group
        if device.static_shapes or len(places) > batch:
            full = group + group[-1:] * (batch - len(group))
        images = torch.stack([volume[grid.place(window)] for window in full])
        logits = _mirrored(images, network, device) if mirror else _forward(images, network, device)
        logits = logits[: len(group)].to(volume.device).float()
        if result is None:
            result = logits.new_zeros((logits.shape[1], *volume.shape[1:]))
        for (i, j, k), output in zip(group, logits, strict=True):
            weight = z[i][:, None, None] * (y[j][:, None] * x[k])
            result[grid.place((i, j, k))].addcmul_(output, weight)
    assert result is not None  # a grid has at least one window
    return result


def _forward(images: Tensor, network: nn.Module, device: Device) -> Tensor:
    """The network's output on the device; a graph of its own on devices that have such."""
    device.flush()
    with device.autocast():
        output: Tensor = network(device.to({"image": images})["image"])
    device.flush()
    return output


def _mirrored(images: Tensor, network: nn.Module, device: Device) -> Tensor:
    """The mean output over the eight flips of (N, C, D, H, W), each flipped back."""
    outputs = (_forward(images.flip(axes), network, device).float().flip(axes) for axes in FLIPS)
    return functools.reduce(Tensor.add_, outputs).div_(len(FLIPS))
