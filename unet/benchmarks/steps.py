"""The loops that are timed: a training step with these settings, a pass of prediction, and the plain step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unet.commands import setup
from unet.config.schema import Config
from unet.devices import launchers, select


class Loop:
    """A step that is repeated: `step` gives a number on the device, unread; `memory` the peak in bytes."""

    step: Callable[[], Any]
    memory: Callable[[], int]

    def run(self, steps: int) -> tuple[list[float], int]:
        """(seconds of each step, peak memory). Steps overlap, so only the sum is exact; -N waits for each."""
        seconds, start = [], time.perf_counter()
        for number in range(abs(steps)):
            read = self.step()
            if steps < 0 or number == steps - 1:
                read.item()  # the device has done its work
            now = time.perf_counter()
            seconds.append(now - start)
            start = now
        return seconds, self.memory()


class OurLoop(Loop):
    """A training step with these settings on one batch. `cases`: of the loader that the breakdown takes batches from;
    None: it takes the one batch. `context`, `group`: of a process of a run of several, and torch's group of those that
    take part."""

    def __init__(
        self,
        config: Config,
        batch: Mapping[str, Any],
        cases: Sequence[Any] | None = None,
        context: setup.Context | None = None,
        group: Any = None,
    ) -> None:
        import torch

        from unet.commands.train import averaged_model
        from unet.runtime import optim
        from unet.runtime.gradients import Gradients

        self.context, self.cases = context or setup.assemble(config), cases
        self.device, self.task = self.context.device, self.context.task
        self.tensors = {key: torch.from_numpy(value) for key, value in batch.items()}
        self.model = model = self.device.place(self.task.build_model())
        self.averaged = averaged_model(model, config.train.ema)  # before capture, as in training
        network = self.device.capture(self.device.compile(model) if self.device.compiled() else model)
        alone = self.device.rank.world == 1 or (group is not None and torch.distributed.get_world_size(group) == 1)
        self.network = network if alone else self.device.parallel(network, group)
        fused = None if config.device.deterministic else self.device  # torch's own: the same bits on every device
        self.optimizer = optim.build(config.train, self.task.param_groups(model), fused)
        self.gradients, self.number = Gradients(config.train, self.optimizer, self.device), 0
        self.scaler = self.device.scaler()
        self.memory, self.is_out_of_memory = self.device.memory, self.device.is_out_of_memory
        self.passing: OurPass | None = None

    def step(self) -> Any:
        loss = self.forward(self.device.to(self.tensors))
        self.backward(loss)
        self.update()
        return loss.detach()

    def forward(self, moved: Mapping[str, Any]) -> Any:
        """The loss of a batch on the device."""
        self.device.micro_batch(0)
        with self.device.autocast():
            return self.task.training_step(self.network, moved)["loss"]

    def backward(self, loss: Any) -> None:
        self.scaler.scale(self.gradients.prepare(loss)).backward()
        self.device.flush()

    def update(self) -> None:
        """Clip, step or skip, zero gradients, average weights, as training does."""
        self.gradients.step(self.scaler, self.number)
        self.gradients.pending.clear()
        self.number += 1
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.device.flush()

    def breakdown(self, rounds: int, steps: int) -> dict[str, list[float]]:
        """Seconds a step of each part, round by round (`breakdown.measured`)."""
        from unet.benchmarks import breakdown

        loader = None if self.cases is None else loader_of(self.context, self.cases)
        return breakdown.measured(self, loader, rounds, steps)

    def ceiling(self) -> dict[str, Any]:
        """What this device reaches in a matrix product and a copy, in this process (`ceiling.measured`)."""
        from unet.benchmarks import ceiling

        return ceiling.measured(self.device)

    def convolutions(self) -> dict[str, Any]:
        """Seconds of the network's convolutions, each alone (`limit.convolutions`)."""
        from unet.benchmarks import limit

        return limit.convolutions(self.context)

    def flops(self) -> int:
        """Floating-point operations of a step for one item (`limit.flops`)."""
        from unet.benchmarks import limit

        return limit.flops(self.task.build_model, self.task.input_shape())[0]

    def passes(self, steps: int) -> list[float]:
        """Seconds of passes of prediction; the training step is given up for them."""
        if self.passing is None:
            del self.network, self.model, self.averaged, self.gradients, self.optimizer
            self.device.release()
            self.passing = OurPass(self.context.config, self.context)
        return self.passing.run(steps)[0]

    def profile(self, path: str) -> list[dict[str, Any]]:
        """The operators of three steps; the trace is written to `path` (`profiling.traced`)."""
        from unet.benchmarks import profiling

        return profiling.traced(self.step, self.device, path)


class OurPass(Loop):
    """A forward pass of --eval-batch-size items as scoring and prediction make it."""

    def __init__(self, config: Config, context: setup.Context | None = None) -> None:
        import torch

        context = context or setup.assemble(config)
        self.device, task = context.device, context.task
        network = self.device.place(task.build_model()).eval()
        network = self.device.compile(network) if self.device.compiled() else network
        self.network = self.device.capture(network, training=False)
        self.images = torch.rand(config.eval.eval_batch_size, *task.eval_input_shape()[1:])
        self.memory, self.is_out_of_memory = self.device.memory, self.device.is_out_of_memory

    def step(self) -> Any:
        import torch

        with torch.no_grad():
            moved = self.device.to({"image": self.images})["image"]
            self.device.flush()
            with self.device.autocast():
                output = self.network(moved)
            self.device.flush()
            return total(output)

    def passes(self, steps: int) -> list[float]:
        """Seconds of passes."""
        return self.run(steps)[0]

    def profile(self, path: str) -> list[dict[str, Any]]:
        """The operators of three passes; the trace is written to `path`."""
        from unet.benchmarks import profiling

        return profiling.traced(self.step, self.device, path)


class PlainPass(Loop):
    """A forward pass of the same items through the task's plain network, fp32, channels first, eager."""

    def __init__(self, config: Config) -> None:
        config = config.replace(use_lazy_mode=False, precision="fp32")
        kind = chosen(config)
        import torch

        kind.exact(True)
        task = setup.create(config)
        self.model = task.reference_step()[0].to(kind.torch_type()).eval()
        images = torch.rand(config.eval.eval_batch_size, *task.eval_input_shape()[1:])
        self.images, self.memory = images.to(kind.torch_type()), kind.peak_memory

    def step(self) -> Any:
        import torch

        with torch.no_grad():
            return total(self.model(self.images))

    def passes(self, steps: int) -> list[float]:
        """Seconds of passes."""
        return self.run(steps)[0]


class PlainLoop(Loop):
    """The task's plain network and loss, fp32, channels first, eager (also beside lazy mode), torch's own optimiser and
    clipping: what a first script does. Without the process settings of this program, and without --ema."""

    def __init__(self, config: Config, batch: Mapping[str, Any]) -> None:
        config = config.replace(use_lazy_mode=False, precision="fp32", deterministic=True)
        kind = chosen(config)
        import torch

        from unet.runtime import optim

        kind.exact(True)
        model, self.reference = setup.create(config).reference_step()
        self.model = model.to(kind.torch_type())
        self.optimizer = optim.build(config.train, [{"params": list(self.model.parameters())}], None)
        self.tensors = {
            key: torch.from_numpy(value).contiguous().to(kind.torch_type())
            for key, value in batch.items()
            if key != "index"
        }
        self.memory, self.clip = kind.peak_memory, config.train.clip

    def step(self) -> Any:
        import torch

        self.optimizer.zero_grad()
        loss = self.reference(self.model, self.tensors)
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        return loss.detach()


def chosen(config: Config) -> Any:
    """The device's class for a loop that is not this program's: nothing of it but the place is used."""
    rank = launchers.find_rank(config.distributed, config.device.cuda_devices)
    kind, _ = select.choose(config.device, rank, setup.workload_of(config))
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)  # this program's choice on a processor
    return kind


def loader_of(context: setup.Context, cases: Sequence[Any]) -> Any:
    """The training loader of this process's share of the cases."""
    device = context.device
    return context.task.train_loader(cases, (device.rank.rank, device.rank.world), device.loader_options(), device.put)


def batch_of(loader: Any, task: Any) -> dict[str, Any]:
    """The first batch of a loader, or where there is none a random one, as arrays."""
    found = next(loader.epoch(1)) if loader else task.random_batch()
    return {key: value.cpu().numpy() for key, value in found.items()}


def total(output: Any) -> Any:
    """The sum of all that a network gave: a tensor, or several of them."""
    parts = output if isinstance(output, tuple) else (output,)
    return sum(part.float().sum() for part in parts)
