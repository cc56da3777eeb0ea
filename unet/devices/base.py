"""What an accelerator is to this program: one object. The defaults here are right on a CPU; a device overrides what
differs.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.schema import Config
from unet.devices import launchers
from unet.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unet.devices.launchers import Rank

# How long OpenMP's threads spin before they sleep (GNU's: rounds, Intel's: milliseconds). By their own default they
# spin through whole time slices, which a busy process beside them needs; with none, small networks take twice as long.
WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
WAITING_TYPED = (*WAITING, "OMP_WAIT_POLICY")  # where a user has set one of these, all are left alone
CHANNELS_LAST, CHANNELS_FIRST = ("NHWC", "NDHWC"), ("NCHW", "NCDHW")


class Device:
    """One accelerator. `name` is torch's device type, `collective` the process group's backend, `static_shapes`
    whether a new shape costs a compilation, `has_tf32`, `graphs` and `operator_lists` what --precision tf32, --capture
    and --precision-ops need. `vendor` is the package that brings the device to torch, `forced` the
    variables that the flags set even where they are set already, `visible` the one that lists the cards which a process
    may see, `own_memory` whether it has memory beside the
    host's."""

    name = "cpu"
    collective = "gloo"
    vendor = "torch"
    static_shapes = False
    own_memory = False
    visible = ""
    has_tf32 = graphs = operator_lists = False
    fused: tuple[str, ...] = ()
    forced: frozenset[str] = frozenset({"OMP_NUM_THREADS"})

    def __init__(self, config: Config, rank: Rank) -> None:
        import torch

        self.config, self.rank = config, rank
        torch.set_num_threads(launchers.threads(rank))
        self.device = torch.device(self.name)
        self.require(config)
        self.dtype = self._dtype(config.device.precision)
        self.static_shapes = self.static_shapes or config.device.compile

    @classmethod
    def environment(cls, config: Config, rank: Rank) -> dict[str, str]:
        """Variables to set before torch is imported."""
        own = {} if any(name in os.environ for name in WAITING_TYPED) else WAITING
        return {"OMP_NUM_THREADS": str(launchers.threads(rank)), **own}

    @classmethod
    def installed(cls) -> bool:
        """Whether the package that brings this device is there; it is not imported."""
        return cls.vendor == "torch" or importlib.util.find_spec(cls.vendor) is not None

    @classmethod
    def missing(cls, config: Config) -> str | None:
        """None, or one sentence: why it cannot be used and what to do."""
        return None

    @classmethod
    def cards(cls) -> int | None:
        """How many of it this node has; None where any number of processes may share it."""
        return None

    @classmethod
    def card(cls, number: int) -> dict[str, str]:
        """The variables of a process that shall see only one of the cards that this one sees."""
        if not cls.visible:
            return {}
        seen = [name.strip() for name in os.environ.get(cls.visible, "").split(",") if name.strip()]
        return {cls.visible: seen[number] if seen else str(number)}

    def require(self, config: Config) -> None:
        """Raise DeviceError for settings that this device cannot follow."""
        if config.device.precision == "tf32" and not self.has_tf32:
            raise DeviceError(f"--precision tf32: {self.name} has no TF32.", "Type --precision fp32, or auto.")
        if config.device.precision_ops and not self.operator_lists:
            raise DeviceError(
                f"--precision-ops: the operator lists of {self.name} are torch's own and fixed.",
                "Leave it out, or run on an HPU.",
            )
        if config.device.capture == "on" and not self.graphs:
            raise DeviceError(f"--capture: {self.name} has no graphs to record.", "Leave it out.")

    def describe(self) -> str:
        """The device in words, for logs."""
        return self.name

    def dtypes(self) -> tuple[str, ...]:
        """Precisions that are faster than fp32 here, the best first."""
        return ()

    def _dtype(self, precision: str) -> torch.dtype:
        import torch

        chosen = (self.dtypes() or ("fp32",))[0] if precision == "auto" else precision
        return {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[chosen]

    def seed(self, number: int) -> None:
        """Seed the device's default generator (and the CPU's)."""
        import torch

        torch.manual_seed(number)

    def rng_state(self) -> Tensor | None:
        """The state of the device's own generator; None where the CPU's is the only one."""
        return None

    def set_rng_state(self, state: Tensor) -> None:
        """Restore what `rng_state` gave."""

    def deterministic(self, on: bool) -> None:
        """Bit-identical repetition on this device, or the fastest kernels."""
        import torch

        torch.use_deterministic_algorithms(on)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The arithmetic of forward and loss."""
        import torch

        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.name, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler: active for fp16, a pass-through otherwise."""
        import torch

        return torch.amp.GradScaler(self.name, enabled=self.dtype == torch.float16)

    def channels_last(self) -> bool:
        """Whether images lie with the channel last in memory."""
        return self.config.device.layout in CHANNELS_LAST

    def memory_format(self, dims: int = 2) -> torch.memory_format:
        """The order of images, or of volumes where `dims` is 3."""
        import torch

        if not self.channels_last():
            return torch.contiguous_format
        return torch.channels_last if dims == 2 else torch.channels_last_3d

    def place(self, module: nn.Module) -> nn.Module:
        """A network on the device, in its memory order, with the faster forms of its layers (`optimize`)."""
        module = module.to(self.device)
        dims = max((parameter.ndim - 2 for parameter in module.parameters()), default=0)
        if dims in (2, 3):
            module = module.to(memory_format=self.memory_format(dims))  # type: ignore[call-overload]
        return self.optimize(module)

    def optimize(self, module: nn.Module) -> nn.Module:
        """The network with layers swapped, in place, for forms that are faster on this device: weights and state dict
        stay the same. Here: as it is."""
        return module

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, as it is."""
        return tensor.to(self.device, non_blocking=True)

    def to(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device; images in the device's memory order; "index" stays on the host."""
        return {key: value if key == "index" else self._image(value) for key, value in batch.items()}

    def _image(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        if tensor.ndim == 4 or (tensor.ndim == 5 and tensor.is_floating_point()):
            return tensor.contiguous(memory_format=self.memory_format(tensor.ndim - 2))
        return tensor

    def compile(self, module: nn.Module) -> nn.Module:
        """The network compiled for the device."""
        import torch

        compiled: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        return compiled

    def capture(self, module: nn.Module, training: bool = True) -> nn.Module:
        """The network recorded as a graph that is replayed, for training or for inference, where --capture asks for
        it and the device has such; else itself.
        """
        return module

    def parallel(self, module: nn.Module) -> nn.Module:
        """The network wrapped so that gradients are averaged over the processes; itself for one process.

        Running statistics of batch normalisation stay each rank's own while training, and are averaged before every
        evaluation and save (`runtime.distributed`).
        """
        if self.rank.world == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers; 2.4 knows no other name
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(module, broadcast_buffers=False, **self.parallel_options())

    def parallel_options(self) -> dict[str, Any]:
        """What the vendor wants of DistributedDataParallel."""
        return {"gradient_as_bucket_view": True}

    def join(self, store: Any, timeout: datetime.timedelta) -> None:
        """Enter the process group of the run, with this device's collective."""
        from torch import distributed

        distributed.init_process_group(
            self.collective, store=store, rank=self.rank.rank, world_size=self.rank.world, timeout=timeout
        )

    def optimizer(self, name: str, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer | None:
        """The fused optimiser of the device, or None: the stock one is right."""
        import torch

        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        return kinds[name](groups, fused=True, **how) if name in self.fused else None

    def loader_options(self) -> dict[str, Any]:
        """For the loader: "workers", how many processes suit this device; "multiprocessing_context", how they start;
        "pin_memory", whether batches go to memory that the device reads by itself."""
        return {"workers": 0}

    def own_workers(self) -> dict[str, Any]:
        """Loader options of an accelerator: processes that are not forked, which is unsafe beside a card."""
        workers = max(0, min(8, launchers.cores(self.rank) - 1))
        return {"workers": workers, "multiprocessing_context": "forkserver"}

    def batches(self, loader: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The loader's batches, on the device."""
        for batch in loader:
            yield self.to(batch)

    def flush(self) -> None:
        """A graph boundary, where the device has such."""

    def synchronize(self) -> None:
        """Wait until the device has done its work."""

    def now(self) -> float:
        """Seconds of a steady clock, after the device has done its work."""
        self.synchronize()
        return time.perf_counter()

    def memory(self) -> int:
        """Peak bytes in use: of the device, or of this process where it is the host."""
        return host.peak_memory()

    def peak_flops(self) -> float | None:
        """What the device could do at most in a second, in the precision of this run; None where that is not known."""
        return None

    def report(self) -> list[str]:
        """What a user of this device wants to read at the end of a run, in words."""
        return []

    def release(self) -> None:
        """Give cached memory back, after an error, so that a smaller step can be tried."""
        import gc

        gc.collect()

    def power(self) -> float | None:
        """Watts drawn now; None where the device does not say."""
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error means that memory ran out: the device's or the host's."""
        words = ("can't allocate memory", "not enough memory", "out of memory")
        known = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
        return known or isinstance(error, MemoryError)


def first_line(error: BaseException) -> str:
    """Kind and first line of an error, for a sentence."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
