"""What an accelerator is to this program: one object. The defaults here are right on a CPU; a device overrides what
differs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config import Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from unet.devices.environment import Rank


class Device:
    """One accelerator. `name` is torch's device type, `collective` the process group's backend, `static_shapes`
    whether a new shape costs a compilation."""

    name = "cpu"
    collective = "gloo"
    static_shapes = False
    fused: tuple[str, ...] = ()

    def __init__(self, config: Config, rank: Rank) -> None:
        import torch

        self.config, self.rank = config, rank
        self.device = torch.device(self.name)
        self.dtype = self._dtype(config.precision)
        self.static_shapes = self.static_shapes or config.compile

    @classmethod
    def environment(cls, config: Config, rank: Rank) -> dict[str, str]:
        """Variables to set before torch is imported."""
        return {}

    @classmethod
    def missing(cls, config: Config) -> str | None:
        """None, or one sentence: why it cannot be used and what to do."""
        return None

    def describe(self) -> str:
        """The device in words, for logs."""
        return self.name

    def dtypes(self) -> tuple[str, ...]:
        """Precisions that are faster than fp32 here, the best first."""
        return ()

    def _dtype(self, precision: str) -> torch.dtype:
        import torch

        chosen = (self.dtypes() or ("fp32",))[0] if precision == "auto" else precision
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[chosen]

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
        return self.config.layout == "NHWC"

    def memory_format(self, dims: int = 2) -> torch.memory_format:
        import torch

        if not self.channels_last():
            return torch.contiguous_format
        return torch.channels_last if dims == 2 else torch.channels_last_3d

    def place(self, module: nn.Module) -> nn.Module:
        """A network on the device, in its memory order."""
        return module.to(self.device).to(memory_format=self.memory_format())  # type: ignore[call-overload]

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device, as it is."""
        return tensor.to(self.device, non_blocking=True)

    def to(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device; images in the device's memory order; "index" stays on the host."""
        return {key: value if key == "index" else self._image(value) for key, value in batch.items()}

    def _image(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device, non_blocking=True)
        return tensor.contiguous(memory_format=self.memory_format()) if tensor.ndim == 4 else tensor

    def compile(self, module: nn.Module) -> nn.Module:
        """The network compiled for the device."""
        import torch

        compiled: nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
        return compiled

    def capture(self, module: nn.Module) -> nn.Module:
        """The network with its step recorded as one graph, where the device has such."""
        return module

    def parallel(self, module: nn.Module) -> nn.Module:
        """The network wrapped for several processes; itself for one."""
        if self.rank.world == 1:
            return module
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module)

    def join(self) -> None:
        """Enter the process group of the run, with this device's collective."""
        if self.rank.world > 1:
            from torch import distributed

            distributed.init_process_group(self.collective, rank=self.rank.rank, world_size=self.rank.world)

    def optimizer(self, name: str, groups: list[dict[str, Any]], **how: Any) -> torch.optim.Optimizer | None:
        """The fused optimiser of the device, or None: the stock one is right."""
        import torch

        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
        return kinds[name](groups, fused=True, **how) if name in self.fused else None

    def loader_options(self) -> dict[str, Any]:
        """Keyword arguments for DataLoader, and "workers": how many processes suit this device."""
        return {"workers": 0}

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

    def power(self) -> float | None:
        """Watts drawn now; None where the device does not say."""
        return None

    def is_out_of_memory(self, error: BaseException) -> bool:
        return (
            isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "not enough memory" in str(error)
        )
