"""What the loop reads while it trains: losses from the device, and the time that its stretches take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from unet.devices.base import Device
from unet.errors import UnetError
from unet.runtime.distributed.process_group import Group
from unet.runtime.progress import Progress


class Losses:
    """Losses that stay on the device until somebody asks; finds the first of a row that are not finite. A loss is the
    mean over the ranks; `own` are this rank's of the last read, `parts` the terms that they are made of, by name."""

    def __init__(self, limit: int, names: Callable[[Tensor], list[str]], group: Group) -> None:
        self.limit, self.names, self.group = limit, names, group
        self.pending: list[tuple[int, Mapping[str, Tensor], Tensor]] = []
        self.parts: dict[str, list[float]] = {}
        self.bad: list[tuple[int, list[str]]] = []
        self.own: list[float] = []

    def add(self, step: int, losses: Mapping[str, Tensor], index: Tensor) -> None:
        self.pending.append((step, {name: value.detach() for name, value in losses.items()}, index))

    def read(self) -> list[float]:
        """The losses since the last call: the one read from the device. Raises UnetError after `limit` bad ones in a
        row.
        """
        if not self.pending:
            return []
        names = list(self.pending[0][1])
        read = torch.stack([losses[name] for _, losses, _ in self.pending for name in names]).float().tolist()
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
                    f"The loss is not finite since step {first + 1}, {self.limit} batches in a row; the first batch:"
                    f" {', '.join(names[:8])}.",
                    "The last good state is kept: type the command again with --resume and a lower --lr, with --clip 1,"
                    " or --precision fp32.",
                )
        self.pending.clear()
        return values


class Clock:
    """Times of a stretch of training (between two log lines), and of it waiting for batches; images of all ranks.
    The first stretch of each start and the first `warmup` steps of a run are kept apart: they warm up."""

    def __init__(self, progress: Progress, device: Device, group: Group, warmup: int = 0) -> None:
        self.progress, self.device, self.group, self.first, self.warmup = progress, device, group, True, warmup

    def start(self) -> None:
        self.since, self.waited, self.images, self.batches = self.device.now(), 0.0, 0, 0

    def waits(self, batches: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The batches, the wait for each one timed."""
        while True:
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

    def update_throughput(self) -> dict[str, float]:
        """Close the stretch and start the next: its rate and share of waiting."""
        lap = time.perf_counter() - self.since
        self.group.set_step_time(
            lap / max(1, min(self.batches, 10))
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
