"""The interface to an accelerator. The defaults are right for a CPU; a device overrides what differs."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices import launchers, refusals
from unet.devices.power import sources

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unet.devices.launchers import Rank

# How long OpenMP's threads spin before they sleep (GNU's: rounds, Intel's: milliseconds). By their own default they
# spin through whole time slices, which a busy process beside them needs; with none, small networks take twice as long.
WAITING = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
WAITING_TYPED = (*WAITING, "OMP_WAIT_POLICY")  # if the user has set one of these, all are left alone
CHANNELS_LAST, CHANNELS_FIRST = ("NHWC", "NDHWC"), ("NCHW", "NCDHW")
HOST = ("index", "noise_key")  # entries of a batch that are read on the host


class Workload(NamedTuple):
    """What a device must know of the run: batches per optimiser step, whether tensors are tens of megabytes, and bytes
    that a step takes about."""

    accumulate: int = 1
    large_tensors: bool = False
    memory: int = 0


USUAL = Workload()


class Device:
    """One accelerator.

    `name`: what --device calls it; `torch_name`: torch's device type, where that is another word; `collective`: the
    backend of the process group, empty where only one process can run; `static_shapes`: every new shape is compiled;
    `compiles_slices`: so is every new place where a slice begins: windows are cut and put together on the host;
    `has_tf32`, `graphs`, `operator_lists`, `numbered`, `recipes`, `compiles`, `orders`: support for --precision tf32,
    --capture, --precision-ops, --cuda-devices, --recipe-cache, --compile, --layout of channels last; `compilers`: those
    of the host that --compile needs; `vendor`: the package that adds the device to torch; `forced`: environment
    variables that flags override; `visible`: the variable that lists the cards of a process, `visible_too`: others that
    come before it, `outside`: those that a container or a lower layer reads; `own_memory`: it has memory besides the
    host's; `chunk`: voxels that loss and scores work on at a time.
    """

    name = "cpu"
    torch_name = ""
    collective = "gloo"
    vendor = "torch"
    static_shapes = compiles_slices = own_memory = False
    chunk = 2**24
    visible = onnx_provider = ""
    onnx_options: Mapping[str, str] = {}
    visible_too: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    has_tf32 = graphs = operator_lists = numbered = recipes = False
    compiles = orders = True
    compilers: tuple[refusals.Compiler, ...] = ()
    fused: tuple[str, ...] = ()
    choices: Any = None  # a `kernel_choices.Choices`, where this device chooses algorithms
    forced: frozenset[str] = frozenset({"OMP_NUM_THREADS"})

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        import torch

        self.options, self.rank, self.workload = options, rank, workload
        torch.set_num_threads(options.threads or launchers.threads(rank))
        self.device = torch.device(self.torch_type())
        self.require(options)
        self.dtype = self._dtype(options.precision)
        self.static_shapes = self.static_shapes or self.compiled()

    @classmethod
    def torch_type(cls) -> str:
        """torch's device type."""
        return cls.torch_name or cls.name

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        """Variables to set before torch is imported."""
        own = {} if any(name in os.environ for name in WAITING_TYPED) else WAITING
        return {"OMP_NUM_THREADS": str(options.threads or launchers.threads(rank)), **own}

    @classmethod
    def installed(cls) -> bool:
        """Whether the package of this device is installed; it is not imported."""
        return cls.vendor == "torch" or importlib.util.find_spec(cls.vendor) is not None

    @classmethod
    def missing(cls, options: DeviceOptions) -> str | None:
        """None, or a sentence on why the device cannot be used and what to do."""
        return None

    @classmethod
    def cards(cls) -> int | None:
        """Number of cards of this node; None if any number of processes may share the device."""
        return None

    @classmethod
    def visible_by(cls) -> tuple[str, ...]:
        """The variables that list the cards of a process."""
        return tuple(filter(None, (cls.visible, *cls.visible_too, *cls.outside)))

    @classmethod
    def listing(cls) -> str:
        """The variable that lists the cards of this process: the first that is set."""
        return next((name for name in cls.visible_too if os.environ.get(name)), cls.visible)

    @classmethod
    def card(cls, number: int) -> dict[str, str]:
        """The environment variables of a process that uses only one of the visible cards."""
        if not cls.visible:
            return {}
        seen = listed(cls.listing())
        return {cls.listing(): seen[number] if seen else str(number)}

    def require(self, options: DeviceOptions) -> None:
        """Raise DeviceError or UsageError for settings that this device does not support."""
        refusals.require(self, options)

    def describe(self) -> str:
        """A description of the device for logs."""
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

    @classmethod
    def exact(cls, on: bool) -> None:
        """Whether products of fp32 are exact in this process, or faster (TF32, HF32) where the device has both."""

    def generator(self, seed: int) -> torch.Generator:
        """A random generator with this seed, where the device draws: here on the host, the same on every device."""
        import torch

        return torch.Generator().manual_seed(seed)

    def deterministic(self, on: bool) -> None:
        """Use deterministic kernels, or the fastest ones."""
        import torch

        if torch.are_deterministic_algorithms_enabled() != on:  # setting it imports torch's compiler
            torch.use_deterministic_algorithms(on)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of mixed precision for forward pass and loss."""
        import torch

        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_type(), dtype=self.dtype)

    def full_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Within `autocast`, the context of arithmetic in the tensors' own types, for the loss."""
        import torch

        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_type(), enabled=False)

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler: active for fp16, a pass-through otherwise."""
        import torch

        return torch.amp.GradScaler(self.torch_type(), enabled=self.dtype == torch.float16)

    def channels_last(self) -> bool:
        """Whether images are stored channels last."""
        return self.options.layout in CHANNELS_LAST

    def memory_format(self, dims: int = 2) -> torch.memory_format:
        """The memory format of images, or of volumes if `dims` is 3."""
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
        """Move a tensor to the device, unchanged."""
        return tensor.to(self.device, non_blocking=True)

    def to(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the device, images in its memory format; what is in HOST stays on the host."""
        return {key: value if key in HOST else self._image(value) for key, value in batch.items()}

    def _image(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        if tensor.ndim == 4 or (tensor.ndim == 5 and tensor.is_floating_point()):
            return tensor.contiguous(memory_format=self.memory_format(tensor.ndim - 2))
        return tensor

    def compiled(self) -> bool:
        """Whether this run compiles its networks."""
        return self.options.compile == "on"

    def compile(self, module: nn.Module) -> nn.Module:
        """The network compiled for the device. Only for runs that compile (`compiled`)."""
        import torch

        compiled: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        return compiled

    def capture(self, module: nn.Module, training: bool = True) -> nn.Module:
        """The network recorded as a graph, for training or inference, if --capture asks for it and the device has
        graphs; else the network itself."""
        return module

    def parallel(self, module: nn.Module, group: Any = None) -> nn.Module:
        """Wrap the network so that gradients are averaged over the processes (those of a torch `group` of them);
        unchanged for one process.

        Running statistics of batch normalisation stay each rank's own while training, and are averaged before every
        evaluation and save (`runtime.distributed`).
        """
        if self.rank.world == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # of kernels of one pixel, where the strides mean nothing; autograd tells it in each process
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers; 2.4 knows no other name
            warnings.simplefilter("ignore", FutureWarning)
            how = {"process_group": group, "broadcast_buffers": False} | self.parallel_options()
            return DistributedDataParallel(module, **how)

    def parallel_options(self) -> dict[str, Any]:
        """Options for DistributedDataParallel on this device."""
        return {"gradient_as_bucket_view": True}

    def join(self, store: Any, timeout: datetime.timedelta) -> None:
        """Join the process group of the run, with this device's collective."""
        from torch import distributed

        distributed.init_process_group(
            self.collective, store=store, rank=self.rank.rank, world_size=self.rank.world, timeout=timeout
        )

    def optimizer(self, name: str, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer | None:
        """The fused optimiser of the device; None: use torch's."""
        import torch

        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        return kinds[name](groups, fused=True, **how) if name in self.fused else None

    def step_if(self, taken: Tensor, optimizer: torch.optim.Optimizer, step: Callable[[], object]) -> None:
        """Take an optimiser step where `taken`, a scalar on the device, is true. Nothing is read from a device with
        memory of its own: the step is made, and undone where it must not be taken."""
        import torch

        if not self.own_memory:
            if bool(taken):
                step()
            return
        weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        before = {id(tensor): tensor.detach().clone() for tensor in (*weights, *state_tensors(optimizer))}
        step()
        with torch.no_grad():
            for tensor in (*weights, *state_tensors(optimizer)):
                if tensor.device == taken.device:  # counters of steps may lie on the host: they go on
                    old = before.get(id(tensor))
                    tensor.copy_(torch.where(taken, tensor, torch.zeros_like(tensor) if old is None else old))

    def loader_options(self) -> dict[str, Any]:
        """Options for the loader: "workers", the number of processes; "multiprocessing_context", how they start;
        "pin_memory", whether batches are put into pinned memory, or the device type whose memory it is."""
        return {"workers": 0}

    def batches(self, loader: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The loader's batches, on the device."""
        for batch in loader:
            yield self.to(batch)

    def micro_batch(self, number: int) -> None:
        """Before the forward pass of a training batch: its number in the optimiser step, from 0. For recorded graphs,
        whose gradients are written in the first batch and added up in the others."""

    def flush(self) -> None:
        """Mark a graph boundary, on devices that need it."""

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""

    def now(self) -> float:
        """Seconds of a monotonic clock, after the device has finished its work."""
        self.synchronize()
        return time.perf_counter()

    @classmethod
    def peak_memory(cls) -> int:
        """Peak memory in bytes: of the device, or of this process on a CPU."""
        return host.peak_memory()

    def memory(self) -> int:
        """Peak memory of this run in bytes."""
        return self.peak_memory()

    def peak_flops(self) -> float | None:
        """Peak FLOP/s of the device in the precision of this run; None if unknown."""
        return None

    def check(self) -> list[str]:
        """Lines for `doctor` about what this device was found to compute wrongly, or rightly."""
        return []

    def report(self) -> list[str]:
        """Lines about this device for the end of a run."""
        return []

    def release(self) -> None:
        """Free cached memory after an error, so that a smaller step can be tried."""
        import gc

        gc.collect()

    def card_name(self) -> str:
        """The name of this process's card in the vendor's tools; empty on a CPU."""
        return ""

    def identity(self) -> str:
        """What tells this process's card from the node's others; empty if it is unknown, or processes may share it."""
        return ""

    def power(self, interval: float = 0.2) -> float | None:
        """Power in watts, after this many seconds (their mean, where the device counts energy); None if unknown."""
        return sources.read(self.name, self.card_name(), interval)

    def power_sources(self, cards: list[str]) -> list[Any]:
        """What tells the power of these cards of this machine, and of its processors and memory."""
        return sources.of(self.name, cards, None if type(self).power is Device.power else self.power)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error means out of memory, on the device or the host."""
        words = ("can't allocate memory", "not enough memory", "out of memory")
        known = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
        return known or isinstance(error, MemoryError)


def listed(variable: str) -> list[str]:
    """The cards that a variable lists."""
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors of an optimiser's state."""
    from torch import Tensor

    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def first_line(error: BaseException) -> str:
    """Type and first line of an error, for a message."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__
