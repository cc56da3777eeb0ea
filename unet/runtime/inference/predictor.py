"""Running trained networks over a case: slices one after another, images in tiles, volumes in overlapping windows.

Batches of one shape, the last one padded; no gradients; several networks are averaged; the time of each pass is kept.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unet import host
from unet.devices.base import Device
from unet.errors import DataError
from unet.runtime.inference import tiles
from unet.runtime.inference.blending import window_weights
from unet.windows import Plan

# every subset of the axes (D, H, W) of a batch (N, C, D, H, W)
FLIPS = tuple(axes for size in range(4) for axes in itertools.combinations((2, 3, 4), size))
FEW = 8  # passes that need no progress bar
LARGE = 2**31  # bytes of a slab's sums above which half precision holds them
PLANES = 2**20  # voxels of a slab, as whole planes

Transform = Callable[[Tensor], Any]


class Predictor:
    """Networks on a device, ready to be run over cases.

    `batch`: slices or windows in a forward pass. Every forward pass has the same shape: the last group repeats its last
    item, so that devices which compile for a shape do it once; the result does not depend on it. A network is put in
    evaluation mode and back. An output that holds NaN or infinity is a notice, or with `finite` a DataError.

    Each method returns the mean over the networks of their outputs, or of `transform(output)`, a tensor or an array.
    `seconds`: of each pass over an input, through all networks, the device's work included.
    """

    def __init__(self, networks: Sequence[nn.Module], device: Device, batch: int, finite: bool = False) -> None:
        self.networks, self.device, self.batch, self.finite = tuple(networks), device, batch, finite
        self.seconds: list[float] = []
        self._pass = 0  # its place in `seconds`

    def slices(
        self,
        images: Tensor,
        transform: Transform | None = None,
        mirror: bool = False,
        average: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """(N, C, H, W) on the host -> the network's output (N, K, H', W') float32 on the host; with `mirror` the mean
        with that of the images mirrored left-right, mirrored back. `average`: how the mean of what `transform` gave is
        taken."""
        return self._mean(lambda network: self._timed(network, self._slices, images, mirror), transform, average)

    def tiles(
        self,
        images: Tensor,
        side: int,
        output: int,
        period: int,
        transform: Transform | None = None,
        average: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """Images of any size with their context, (N, C, H + side - output, W + side - output) on the host -> (N, K, H,
        W) float32 on the host, through a network of valid convolutions that maps `side` to `output` pixels and whose
        pooling grid has `period` pixels. `average`: how the mean of what `transform` gave is taken."""

        def run(network: nn.Module) -> Tensor:
            return tiles.stitch(images, side, output, period, lambda row: self._timed(network, self._slices, row))

        return self._mean(run, transform, average)

    def windows(
        self,
        volume: Any,
        plan: Plan,
        blend: str = "gaussian",
        mirror: bool = False,
        pad_value: float = 0.0,
    ) -> Any:
        """(C, D, H, W) float32 array or tensor on the host -> mean logits (K, d, h, w) float32 of the part that the
        plan looks at (`plan.crop`), padded with `pad_value`.

        A voxel's logits are weighted by its place in each window: blend "gaussian" or "constant". `mirror` averages
        over the eight flips of a window (eight times the work). The result lies on the device, and nothing is read from
        there on the way; where the device's memory is too short for volume and logits, or it compiles slices, both stay
        on the host, and so does the result.

        Source: sliding_window_inference of MLPerf's U-Net3D reference, which averages logits (not probabilities) and
        knows a Gaussian whose cube root is taken. Here the weights, divided by their sum over the windows, are a
        product of three short vectors: no volume of weights, no division at the end.
        """
        padded = padded_part(volume, plan, pad_value)
        weights = [
            window_weights(length, starts, blend) for length, starts in zip(plan.window, plan.starts, strict=True)
        ]

        def run(network: nn.Module) -> Tensor:
            logits = self._timed(network, self._windows, padded, plan, weights, mirror)
            return logits[(slice(None),) + plan.inner]

        return self._mean(run)

    def slabs(
        self,
        volume: Any,
        plan: Plan,
        blend: str = "gaussian",
        mirror: bool = False,
        pad_value: float = 0.0,
    ) -> Iterator[Tensor]:
        """As `windows`, but the logits come in slabs (K, d, h, w), one after another along D, of a plan that looks at
        the whole volume: no more than the depth of a window is ever held. A slab is of about `PLANES` voxels of each
        class, and is written over once the next one is asked for. Of many classes the sums are held in half precision
        where they would take more than `LARGE` bytes."""
        padded = padded_part(volume, plan, pad_value)
        weights = [
            window_weights(length, starts, blend) for length, starts in zip(plan.window, plan.starts, strict=True)
        ]
        taken, start = 0.0, self.device.now()
        with contextlib.ExitStack() as stack:
            for network in self.networks:
                stack.enter_context(evaluating(network))
            for slab in self._slabs(padded, plan, weights, mirror):
                self._require_finite(slab)
                taken += self.device.now() - start
                yield slab
                start = self.device.now()  # what the caller did with the slab is no pass of the network
        self.seconds.append(taken + self.device.now() - start)

    def each(self, work: Callable[[nn.Module, Callable[[Tensor], Tensor]], Sequence[Tensor]]) -> list[list[Tensor]]:
        """`work(network, put)` of each network: tensors on the device, given back as float32 on the host. `put` moves
        a tensor to the device; the device's number format holds inside of `work`."""

        results: list[list[Tensor]] = []

        def run(network: nn.Module) -> Tensor:
            self.device.flush()
            with self.device.autocast():
                found = work(network, self.put)
            self.device.flush()
            results.append([tensor.float().cpu() for tensor in found])
            return torch.stack([tensor.sum() for tensor in results[-1]])

        with torch.no_grad():
            for network in self._one_by_one():
                self._timed(network, run)
        return results

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, a volume in the device's memory order."""
        return self.device.to({"image": tensor})["image"]

    @torch.no_grad()
    def _mean(
        self,
        run: Callable[[nn.Module], Tensor],
        transform: Transform | None = None,
        average: Callable[[list[Any]], Any] | None = None,
    ) -> Any:
        """The mean over the networks; without `average` in the memory of two outputs."""
        outputs = (run(network) if transform is None else transform(run(network)) for network in self._one_by_one())
        if average:
            return average(list(outputs))
        total = functools.reduce(operator.iadd, outputs)
        return total / len(self.networks) if len(self.networks) > 1 else total

    def _one_by_one(self) -> Iterator[nn.Module]:
        """The networks; the times of their passes over one input are added."""
        first = len(self.seconds)
        for network in self.networks:
            self._pass = first
            yield network

    def _timed(self, network: nn.Module, run: Callable[..., Tensor], *given: Any) -> Tensor:
        """`run` of a network in evaluation mode; its time is kept and its output checked."""
        start = self.device.now()
        with evaluating(network):
            output = run(network, *given)
        if self._pass == len(self.seconds):
            self.seconds.append(0.0)
        self.seconds[self._pass] += self.device.now() - start
        self._pass += 1
        self._require_finite(output)
        return output

    def _require_finite(self, output: Tensor) -> None:
        if not math.isfinite(output.sum(dtype=torch.float32).item()):  # one read; what is not finite stays so in a sum
            words = "the network's output is not finite (NaN or infinity)."
            if self.finite:
                hint = "Use weights of a run that did not diverge, or --precision fp32 where fp16 overflows."
                raise DataError(words, hint)
            host.notice_once(f"A score says nothing: {words}")

    def _slices(self, network: nn.Module, images: Tensor, mirror: bool = False) -> Tensor:
        if mirror:
            return (self._slices(network, images) + self._slices(network, images.flip(-1)).flip(-1)) / 2
        parts = []
        for first in range(0, len(images), self.batch):
            group = images[first : first + self.batch]
            count = len(group)
            if count < self.batch and (self.device.static_shapes or len(images) > self.batch):
                group = torch.cat((group, group[-1:].expand(self.batch - count, *group.shape[1:])))
            parts.append(self._forward(network, group).float().cpu()[:count])  # read whole: a slice may be compiled
        return torch.cat(parts)

    def _windows(self, network: nn.Module, volume: Tensor, plan: Plan, weights: list[Tensor], mirror: bool) -> Tensor:
        """Mean logits of a padded volume, on the device, or on the host where the device's memory is too short, or each
        slice is compiled."""
        if self.device.compiles_slices:
            return self._stitch(network, volume, plan, weights, mirror)
        try:
            return self._stitch(network, self.device.put(volume), plan, weights, mirror)
        except (RuntimeError, MemoryError) as error:
            if not (self.device.own_memory and self.device.is_out_of_memory(error)):
                raise
        self.device.release()  # leave the except block first: its traceback holds the tensors of the failed attempt
        host.notice_once(
            "The device's memory is short of a whole case: windows are put together on the host, which is slower."
        )
        return self._stitch(network, volume, plan, weights, mirror)

    def _stitch(self, network: nn.Module, volume: Tensor, plan: Plan, weights: list[Tensor], mirror: bool) -> Tensor:
        """Mean logits (K, D, H, W), put together where `volume` lies."""
        z, y, x = (each.to(volume.device) for each in weights)
        forward = self._mirrored if mirror else self._forward
        windows = list(plan.indices())
        result = None
        groups = range(0, len(windows), self.batch)
        for first in host.progress(groups, name="windows", unit="pass") if len(groups) > FEW else groups:
            group = windows[first : first + self.batch]
            full = group
            if self.device.static_shapes or len(windows) > self.batch:
                full = group + group[-1:] * (self.batch - len(group))
            logits = forward(network, torch.stack([volume[(slice(None),) + plan.place(index)] for index in full]))
            logits = logits.to(volume.device)[: len(group)].float()
            if result is None:
                result = logits.new_zeros((logits.shape[1], *volume.shape[1:]))
            for (i, j, k), output in zip(group, logits, strict=True):
                weight = z[i][:, None, None] * (y[j][:, None] * x[k])
                result[(slice(None),) + plan.place((i, j, k))].addcmul_(output, weight)
        assert result is not None  # a plan has at least one window
        return result

    @torch.no_grad()
    def _slabs(self, volume: Tensor, plan: Plan, weights: list[Tensor], mirror: bool) -> Iterator[Tensor]:
        """The slabs of a padded volume, as `slabs`."""
        starts, (deep, rows, columns), sums = plan.starts[0], plan.inner, None
        step = max(1, PLANES // math.prod(plan.padded[1:]))
        last_of_row = tuple(count - 1 for count in plan.grid[1:])
        for group, logits in self._passes(volume, plan, mirror):
            if sums is None:
                sums = self._sums(logits, plan)
                z, y, x = (each.to(sums.device) for each in weights)
            for (i, j, k), output in zip(group, logits[: len(group)].to(sums.device), strict=True):
                weight = z[i][:, None, None] * (y[j][:, None] * x[k]) / len(self.networks)
                part = (slice(None), slice(None), *plan.place((i, j, k))[1:])
                sums[part].add_(output.mul_(weight).to(sums.dtype))
                if (j, k) != last_of_row:
                    continue
                low = starts[i]
                done = (starts[i + 1] if i + 1 < len(starts) else plan.padded[0]) - low
                last = min(done, deep.stop - low)
                for place in range(max(0, deep.start - low), last, step):
                    yield sums[:, place : min(place + step, last), rows, columns]
                kept = plan.window[0] - done
                for place in range(0, kept, done):  # planes of the next row, in steps that do not overlap
                    length = min(done, kept - place)
                    sums[:, place : place + length] = sums[:, place + done : place + done + length]
                sums[:, kept:] = 0

    def _passes(self, volume: Tensor, plan: Plan, mirror: bool) -> Iterator[tuple[list[tuple[int, ...]], Tensor]]:
        """(windows, the sum of the networks' logits) of each pass, in order; the logits may hold repetitions after
        those of the windows. A pass goes on in the next row where a window is a slice. Those of volumes end with their
        row: their logits take much memory, and none of them waits while the caller works on a row."""
        forward = self._mirrored if mirror else self._forward
        windows = list(plan.indices())
        row = len(windows) if plan.window[0] == 1 else math.prod(plan.grid[1:])
        groups = [
            windows[place : min(place + self.batch, first + row)]
            for first in range(0, len(windows), row)
            for place in range(first, first + row, self.batch)
        ]
        for group in host.progress(groups, name="windows", unit="pass") if len(groups) > FEW else groups:
            full = group
            if self.device.static_shapes or plan.count > self.batch:
                full = group + group[-1:] * (self.batch - len(group))
            images = torch.stack([volume[(slice(None),) + plan.place(index)] for index in full])
            yield group, functools.reduce(Tensor.add_, (forward(network, images).float() for network in self.networks))

    def _sums(self, logits: Tensor, plan: Plan) -> Tensor:
        """Zeros for the sums of a row of windows (K, d, H, W), on the device where its memory allows."""
        shape = (logits.shape[1], plan.window[0], *plan.padded[1:])
        kind = torch.float16 if 4 * math.prod(shape) > LARGE else torch.float32
        if self.device.own_memory and not self.device.compiles_slices:
            try:
                return torch.zeros(shape, dtype=kind, device=logits.device)
            except (RuntimeError, MemoryError) as error:
                if not self.device.is_out_of_memory(error):
                    raise
            self.device.release()
            host.notice_once("The device's memory is short of a row of windows: they are put together on the host.")
        return torch.zeros(shape, dtype=kind)

    def _forward(self, network: nn.Module, images: Tensor) -> Tensor:
        """The network's output on the device; a graph of its own on devices that have such."""
        device = self.device
        device.flush()
        with device.autocast():
            output: Tensor = network(device.to({"image": images})["image"])
        device.flush()
        return output

    def _mirrored(self, network: nn.Module, images: Tensor) -> Tensor:
        """The mean output over the flips of (N, C, D, H, W), each flipped back: eight, or four of slices (D = 1)."""
        flips = [axes for axes in FLIPS if all(images.shape[axis] > 1 for axis in axes)]
        outputs = (self._forward(network, images.flip(axes)).float().flip(axes) for axes in flips)
        return functools.reduce(Tensor.add_, outputs).div_(len(flips))


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, and back."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def padded_part(volume: Any, plan: Plan, value: float) -> Tensor:
    """The part of an array or tensor (..., D, H, W) that a plan looks at, padded; a view of a tensor where nothing is
    added, a copy of an array, which may be a read-only memory map or have negative strides."""
    part = volume[(...,) + plan.crop]
    tensor = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
    if not any(map(any, plan.pad)):
        return tensor
    result = tensor.new_full((*tensor.shape[: -len(plan.pad)], *plan.padded), value)
    result[(...,) + plan.inner] = tensor
    return result
