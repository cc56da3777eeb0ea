"""CPU: threads for the cores of this process, channels last, fused optimisers, bf16 if the processor supports it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unet import files, host, locks
from unet.config.flags import DeviceOptions
from unet.devices import kernel_choices
from unet.devices.base import CHANNELS_FIRST, USUAL, Device, Workload
from unet.devices.refusals import Compiler
from unet.errors import UnetError

if TYPE_CHECKING:
    from torch import nn

    from unet.devices.launchers import Rank


class CPU(Device):
    """Torch on the host."""

    name = "cpu"
    chunk = 2**17  # three channels of float32 fit into a core's cache
    fused = ("adam", "adamw", "sgd")
    compilers = (Compiler("C++", "CXX", ("g++",)),)

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        import torch

        super().__init__(options, rank, workload)
        torch.set_flush_denormal(True)
        scarce = workload.memory * rank.local_world > host.memory()[1] / 2
        keep_memory(large=not (workload.large_tensors and scarce))
        if options.kernels != "plain" and self.channels_last() and not self.compiled():
            self.choices = kernel_choices.Choices(options.kernels, machine)

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        huge_pages = {"THP_MEM_ALLOC_ENABLE": "1"} if workload.large_tensors else {}
        return super().environment(options, rank, workload) | huge_pages

    def describe(self) -> str:
        import torch

        return f"cpu, {processor()}, {host.counted(torch.get_num_threads(), 'thread')}"

    def dtypes(self) -> tuple[str, ...]:
        return ("bf16",) if has_bf16() else ()

    def channels_last(self) -> bool:
        """Also for volumes, because the faster layers of `unet.kernels` need it: --layout NCDHW leaves those out, and
        --kernels plain takes torch's usual order."""
        if self.options.layout == "auto" and self.options.kernels == "plain":
            return False
        return self.options.layout not in CHANNELS_FIRST

    def optimize(self, module: nn.Module) -> nn.Module:
        """With faster layers, unless --kernels plain; in mixed precision, convolutions that this processor gets wrong
        stay in fp32."""
        import torch

        from unet.kernels import select, trial

        plain = self.options.kernels == "plain"
        module = select.correct(module) if plain else select.optimize(module, self.channels_last(), self.choices)
        return module if self.dtype == torch.float32 else trial.guard(module, is_right)

    def compile(self, module: nn.Module) -> nn.Module:
        import torch

        from unet.kernels import trial

        compiled = super().compile(module)
        if self.dtype != torch.float32:
            trial.try_before(compiled, module)
        return compiled

    def check(self) -> list[str]:
        """What was measured of 3D convolutions; small convolutions in the fastest precision, and what networks have met
        before, against fp32."""
        return [*kernel_choices.measured_before(machine()), *self._tried()]

    def _tried(self) -> list[str]:
        import torch

        from unet.kernels import trial

        dtype = self.dtype if self.dtype != torch.float32 else self._dtype("auto")
        if dtype == torch.float32:
            return []
        tried = [(layer, size, dtype, self.channels_last()) for layer, size in trial.probes()]
        found = {trial.key_of(*how): trial.fault(*how) for how in tried}
        wrong = [f"{key}: {what}" for key, what in found.items() if what]
        named = str(dtype).removeprefix("torch.")
        lines = [f"  {len(tried)} small convolutions in {named} against fp32: {len(wrong)} wrong"]
        place, here = noted()
        wrong += [
            f"{key[len(here) :]}: met before"
            for key, right in known(place).items()
            if key.startswith(here) and not right
        ]
        return [*lines, *(f"    {words}; computed in fp32" for words in wrong)]


def is_right(key: str, test: Callable[[], bool]) -> bool:
    """Whether a convolution in a lower precision is right (`kernels.trial`). It is tried once for a processor and a
    torch, by one process while others wait, and noted in the user's own folder; where that cannot be written it is
    tried in every run."""
    place, here = noted()
    right = known(place).get(here + key)
    if right is None and place is not None:
        with contextlib.suppress(UnetError), locks.hold(place.with_suffix(".lock")):
            right = known(place).get(here + key)
            if right is None:
                right = test()
                files.write_json(place, {**known(place), here + key: right})
    if right is None:
        right = test()
    if not right:
        host.notice_once(
            "note: some convolutions in mixed precision are wrong on this processor with this torch, by comparison with"
            " fp32: they are computed in fp32 (python -m unet doctor names them)"
        )
    return right


def noted() -> tuple[Path | None, str]:
    """(the file of what is known of convolutions, how keys of this processor and torch begin)."""
    import torch

    here = f"{processor()} ({isa()}), torch {torch.__version__}: "
    try:
        return files.make_folder(host.own_folder()) / "convolutions.json", here
    except (UnetError, RuntimeError):
        return None, here


def isa() -> str:
    """A short name of the instructions that this process may use."""
    return files.fingerprint([sorted(host.processor_flags()), os.environ.get("ONEDNN_MAX_CPU_ISA")])


def machine() -> str:
    """What decides how fast a convolution is, besides itself."""
    import torch

    from unet.kernels.measure import VERSION

    threads = host.counted(torch.get_num_threads(), "thread")
    return f"{processor()} ({isa()}), {threads}, torch {torch.__version__}, kernels {VERSION}"


def known(place: Path | None) -> dict[str, bool]:
    """The content of that file; one that is damaged is begun anew."""
    try:
        return files.read_json(place, {str: bool}) if place is not None and place.exists() else {}
    except UnetError:
        return {}


def keep_memory(large: bool = True) -> None:
    """Make the C library keep freed memory instead of returning it to the system and requesting it in every step.

    Page faults take a tenth of a step at 256 px otherwise, and a quarter at 128 x 128 x 128. `large`: also blocks of 32
    MiB and more, whose rest is then split for smaller ones: a step at 128 x 128 x 128 takes 1.8 times the memory. Does
    nothing without glibc.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # parameters of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, -1)
        library.mallopt(mmap_max, 0 if large else 65536)
        if not large:
            library.mallopt(mmap_threshold, 32 * 2**20)


def has_bf16() -> bool:
    """Whether the processor supports bfloat16 in hardware (AVX-512 BF16, AMX, or an Arm processor with BF16)."""
    return bool(host.processor_flags() & {"avx512_bf16", "amx_bf16", "bf16"})


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            return next(
                (line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")), "unknown processor"
            )
    except OSError:
        return "unknown processor"
