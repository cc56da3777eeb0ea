"""Meters of the training loop: losses read from the device, throughput, waiting time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from unet import host
from unet.devices.base import Device
from unet.errors import UnetError
from unet.runtime.distributed.process_group import Group
from unet.runtime.progress import Progress, advice


class Losses:
    """Losses that stay on the device until they are read. Detects N consecutive non-finite losses and reports the
    first.

    A loss is the mean over the ranks; `own` are the values of this rank at the last read, `parts` the terms of the loss
    by name. `advice` gives the hint of an error, with a change of settings.
    """

    def __init__(
        self,
        limit: int,
        names: Callable[[Tensor], list[str]],
        group: Group,
        advice: Callable[[str], str] = advice,
    ) -> None:
        self.limit, self.names, self.group, self.advice = limit, names, group, advice
        self.pending: list[tuple[int, Mapping[str, Tensor], Tensor]] = []
        self.parts: dict[str, list[float]] = {}
        self.bad: list[tuple[int, list[str]]] = []
        self.own: list[float] = []

    def add(self, step: int, losses: Mapping[str, Tensor], index: Tensor) -> None:
        self.pending.append((step, {name: value.detach() for name, value in losses.items()}, index))

    def read(self, also: Sequence[Tensor] = ()) -> tuple[list[float], list[list[float]]]:
        """The losses since the last call, and the values of the vectors `also`, in one read from the device. Raises
        UnetError after `limit` non-finite losses in a row."""
        if not self.pending:
            return [], []
        names = list(self.pending[0][1])
        terms = torch.stack([losses[name] for _, losses, _ in self.pending for name in names]).float()
        every = torch.cat((terms, *also)).tolist()
        read, rest = every[: len(terms)], iter(every[len(terms) :])
        vectors = [[next(rest) for _ in range(len(vector))] for vector in also]
        means = self.group.mean(read)
        place, count = names.index("loss"), len(names)
        self.own, values = read[place::count], means[place::count]
        self.parts = {name: means[number::count] for number, name in enumerate(names) if name != "loss"}
        for (step, _, index), own, value in zip(self.pending, self.own, values, strict=True):
            culprits = [] if math.isfinite(own) else self.names(index)
            self.bad = [] if math.isfinite(value) else [*self.bad, (step, culprits)]
            if len(self.bad) == self.limit:
                first, culprits = self.bad[0]
                names = [name for names in self.group.gather(culprits) for name in names]
                raise UnetError(
                    f"The loss is not finite from step {first + 1} on, {self.limit} batches in a row; the first batch:"
                    f" {', '.join(names[:8])}.",
                    self.advice("a lower --lr, --clip 1 or --precision fp32"),
                )
        self.pending.clear()
        return values, vectors


class Clock:
    """Measures training time between two log lines, the time spent waiting for batches, and the samples of all ranks.
    The first interval after each start and the first `warmup` steps of a run count as warm-up, apart from the rest.
    `to_first_step`: seconds from the start of the process to the end of its first step."""

    to_first_step: float | None = None

    def __init__(self, progress: Progress, device: Device, group: Group, warmup: int = 0) -> None:
        self.progress, self.device, self.group, self.first, self.warmup = progress, device, group, True, warmup

    def start(self) -> None:
        self.since, self.waited, self.images, self.batches = self.device.now(), 0.0, 0, 0

    def waits(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches; the wait for each one is timed."""
        while True:
            if self.batches == 1:
                self.first_step()
            self.group.set_phase("waiting for a batch", may_block=self.first)
            before = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - before
            self.group.set_phase("in a step", may_block=self.first)  # a first step compiles
            if batch is None:
                return
            self.images += len(batch["image"]) * self.group.world
            self.batches += 1
            yield batch

    def first_step(self) -> None:
        """Note the time of the first step (with --accumulate: of its first batch), once."""
        if self.to_first_step is None:
            self.to_first_step = self.device.now() - host.STARTED

    def update_throughput(self) -> dict[str, float]:
        """End the interval and start the next. Returns its samples/s and the share of time spent waiting for
        batches."""
        self.first_step()
        interval = time.perf_counter() - self.since
        self.group.set_step_time(
            interval / max(1, min(self.batches, 10))
        )  # the host may run ahead, and wait for many steps in one
        seconds, images, waited = max(self.device.now() - self.since, 1e-9), self.images, self.waited
        self.progress.seconds["train"] += seconds
        self.progress.seconds["wait"] += waited
        self.progress.images += images
        if self.first or self.progress.step <= self.warmup:
            self.progress.first_images += images
            self.progress.first_seconds += seconds
            self.first = False
        self.start()
        return {"images_per_second": images / seconds, "wait_fraction": waited / seconds}
