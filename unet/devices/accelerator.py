"""What accelerators share: cards with memory of their own, behind the module of torch that has the device's name.

What that module lacks has a default here. A device that needs no more is a few lines: Intel's GPUs (XPU), Ascend's NPUs
and Apple's GPUs (MPS) at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices import launchers
from unet.devices.base import USUAL, Device, Workload, first_line, listed
from unet.devices.refusals import C, Compiler
from unet.errors import DeviceError

if TYPE_CHECKING:
    import datetime

    from torch import Tensor

    from unet.devices.launchers import Rank


class Accelerator(Device):
    """A device whose `torch.<name>` counts cards, synchronises, and has random state.

    `single`: a process has one card, without a number; `numbers`: torch may tell the number of the hardware (UUID);
    `pins`: batches come from pinned memory, on a stream of their own; `converts`: precisions that the hardware lacks
    work, slowly; `library`: the part of torch without which the device is not there; `absent`, `unloadable`, `silent`:
    why it cannot be used, and what to do, where its package is not installed, does not load, or finds no card.
    """

    own_memory = True
    single = converts = pins = numbers = False
    library = ""
    absent = unloadable = silent = ""

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        import torch

        index = None if self.single else rank.local % int(self._api.device_count())
        if index is not None:
            self._api.set_device(index)
        super().__init__(options, rank, workload)
        self.device = torch.device(self.torch_type(), index) if index is not None else self.device
        self._ask("reset_peak_memory_stats")

    @classmethod
    def installed(cls) -> bool:
        return super().installed() and (not cls.library or torch_has(cls.library))

    @classmethod
    def missing(cls, options: DeviceOptions) -> str | None:
        if not cls.installed():
            return cls.absent
        try:
            importlib.import_module("torch")
            importlib.import_module(cls.vendor)
        except (ImportError, OSError) as error:
            return f"{cls.vendor} does not load ({first_line(error)}); {cls.unloadable}"
        return None if cls.answers() else cls.silent

    @classmethod
    def answers(cls) -> bool:
        """Whether there is a card that can be used."""
        return bool(cls._module().is_available())

    @classmethod
    def cards(cls) -> int | None:
        return int(cls._module().device_count())

    @classmethod
    def _module(cls) -> Any:
        import torch

        return torch.get_device_module(cls.torch_type())

    @property
    def _api(self) -> Any:
        return self._module()

    def _ask(self, name: str) -> Any:
        """What a function of the device's module gives; None where the module does not have it."""
        function = getattr(self._api, name, None)
        return None if function is None else function()

    def require(self, options: DeviceOptions) -> None:
        super().require(options)
        known = self.dtypes()
        if options.precision in ("bf16", "fp16") and options.precision not in known and not self.converts:
            instead = known[0] if known else "fp32"
            raise DeviceError(
                f"--precision {options.precision}: this {self.name} runs {' and '.join(('fp32', *known))}, not"
                f" {options.precision}.",
                f"Type --precision {instead}, or auto.",
            )

    def describe(self) -> str:
        named = self._ask("get_device_name")
        number = "" if self.device.index is None else f", card {self.device.index} of {self._api.device_count()}"
        return self.name + (f", {named}" if named else "") + number

    def has_float64(self) -> bool:
        """Whether the device computes in float64, which torch's loss scaler of fp16 does."""
        return True

    def dtypes(self) -> tuple[str, ...]:
        found = {"bf16": self._ask("is_bf16_supported") is not False, "fp16": self.has_float64()}
        return tuple(name for name, there in found.items() if there)

    def rng_state(self) -> Tensor | None:
        state: Tensor = self._api.get_rng_state()
        return state

    def set_rng_state(self, state: Tensor) -> None:
        self._api.set_rng_state(state)

    def parallel_options(self) -> dict[str, Any]:
        index = self.device.index
        return super().parallel_options() | ({} if index is None else {"device_ids": [index]})

    def loader_options(self) -> dict[str, Any]:
        """Workers start by forkserver, since forking is unsafe with a card in use."""
        workers = max(0, min(8, launchers.cores(self.rank) - 1))
        pinned = {"pin_memory": self.torch_type()} if self.pins else {}
        return {"workers": workers, "multiprocessing_context": "forkserver", **pinned}

    def batches(self, loader: Iterable[Mapping[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """Where batches are pinned, the next one is copied on a side stream while the current one is processed. That
        stream waits for the steps before, which may still read the memory that the copy is given."""
        if not self.pins:
            yield from super().batches(loader)
            return
        side = self._api.Stream()
        ahead: dict[str, Tensor] | None = None
        for batch in loader:
            if batch["image"].device.type != "cpu":  # --data-on device: made on the main stream, nothing to copy
                yield self.to(batch)
                continue
            side.wait_stream(self._api.current_stream())
            with self._api.stream(side):
                coming = self.to(batch)
            try:
                if ahead is not None:
                    yield ahead
            finally:  # also where nobody takes the rest
                self._api.current_stream().wait_stream(side)
            ahead = coming
        if ahead is not None:
            yield ahead

    def synchronize(self) -> None:
        self._api.synchronize()

    @classmethod
    def peak_memory(cls) -> int:
        """Of the device's own count; where it has none, what the driver has given (the cache of torch keeps it), then
        torch's count for any device, then this process's memory on the host."""
        import torch

        places = (cls._module(), "max_memory_allocated"), (cls._module(), "driver_allocated_memory")
        for module, name in (*places, (getattr(torch, "accelerator", None), "max_memory_allocated")):
            if count := getattr(module, name, None):
                return int(count())
        return host.peak_memory()

    def release(self) -> None:
        super().release()
        self._ask("empty_cache")

    def card_name(self) -> str:
        """By the variable that lists the visible cards, else by its index."""
        seen, index = listed(self.listing()), self.device.index or 0
        return seen[index] if index < len(seen) else str(index)

    def identity(self) -> str:
        """The hardware's own number where torch tells it, else what the lists of visible cards have. SLURM counts the
        cards that it gives to a process from 0, so there they tell nothing."""
        if self.numbers and (own := getattr(self._ask("get_device_properties"), "uuid", None)):
            return str(own)
        if launchers.slurm_deals_cards():
            return ""
        return "/".join([self.card_name() or "0", *filter(None, map(os.environ.get, self.outside))])


class XPU(Accelerator):
    """One Intel GPU."""

    name = "xpu"
    collective = "xccl"
    visible = "ZE_AFFINITY_MASK"
    numbers = True
    library = "xpu"
    compilers = (C, Compiler("C++", "CXX", ("icpx", "clang++", "g++")))
    absent = "this torch is built without XPU; type: pip install torch --index-url https://download.pytorch.org/whl/xpu"
    unloadable = "the oneAPI libraries of that build must be there."
    silent = "no Intel GPU answers; compare xpu-smi discovery, and start the container with /dev/dri."

    def has_float64(self) -> bool:
        """Arc cards have none."""
        return bool(getattr(self._api.get_device_properties(), "has_fp64", True))

    def join(self, store: Any, timeout: datetime.timedelta) -> None:
        """Over xccl, which torch has from 2.8 on; before, over oneCCL's own package."""
        from torch import distributed

        if not getattr(distributed, "is_xccl_available", bool)():
            try:
                importlib.import_module("oneccl_bindings_for_pytorch")  # registers the backend
            except (ImportError, OSError) as error:
                raise DeviceError(
                    f"Several XPUs need xccl, which this torch does not have, or ccl: {first_line(error)}.",
                    "Install torch 2.8 or later for XPU, or type --devices 1.",
                ) from error
            self.collective = "ccl"
        super().join(store, timeout)


class NPU(Accelerator):
    """One Ascend card through torch_npu."""

    name = "npu"
    collective = "hccl"
    visible, outside = "ASCEND_RT_VISIBLE_DEVICES", ("ASCEND_VISIBLE_DEVICES",)
    vendor = "torch_npu"
    compiles = False
    absent = "torch_npu is not installed; start Ascend's PyTorch container, or install the version of your torch."
    unloadable = "the CANN toolkit must be installed, and its set_env.sh sourced."
    silent = "no Ascend card answers; compare npu-smi info, and start the container with /dev/davinci*."

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        super().__init__(options, rank, workload)
        self.exact(True)  # convolutions are HF32 by default

    @classmethod
    def exact(cls, on: bool) -> None:
        for products in (cls._module().conv, cls._module().matmul):
            products.allow_hf32 = not on


class MPS(Accelerator):
    """The GPU of an Apple computer: one process, and memory that it shares with the host."""

    name = "mps"
    collective = ""
    single = True
    absent = "this is not an Apple computer."
    unloadable = "install torch for macOS."
    silent = "Metal does not answer; it needs macOS 12.3 or later, an Apple GPU, and torch's own build."

    @classmethod
    def installed(cls) -> bool:
        return sys.platform == "darwin"

    @classmethod
    def answers(cls) -> bool:
        import torch

        return torch.backends.mps.is_available()

    def dtypes(self) -> tuple[str, ...]:
        """bf16 from macOS 14 on; torch's loss scaler of fp16 does without float64 here."""
        import torch

        return ("bf16", "fp16") if torch.backends.mps.is_macos_or_newer(14, 0) else ("fp16",)


def torch_has(part: str) -> bool:
    """Whether the installed torch has a library of this name (xpu, hip); torch is not imported."""
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("torch")
        folders = spec.submodule_search_locations or () if spec else ()
        return any(next(Path(folder, "lib").glob(f"*torch_{part}.*"), None) for folder in folders)
    return False
