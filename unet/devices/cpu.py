"""CPU: threads for the cores of this process, channels last, fused optimisers, bf16 if the processor supports it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from typing import TYPE_CHECKING

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices.base import CHANNELS_FIRST, USUAL, Device, Workload
from unet.errors import DeviceError

if TYPE_CHECKING:
    from torch import nn

    from unet.devices.launchers import Rank


class CPU(Device):
    """Torch on the host."""

    name = "cpu"
    chunk = 2**17  # three channels of float32 fit into a core's cache
    fused = ("adam", "adamw", "sgd")

    def __init__(self, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> None:
        import torch

        super().__init__(options, rank, workload)
        torch.set_flush_denormal(True)
        keep_memory(volumes=workload.large_tensors)

    @classmethod
    def environment(cls, options: DeviceOptions, rank: Rank, workload: Workload = USUAL) -> dict[str, str]:
        huge_pages = {"THP_MEM_ALLOC_ENABLE": "1"} if workload.large_tensors else {}
        return super().environment(options, rank, workload) | huge_pages

    def describe(self) -> str:
        import torch

        return f"cpu, {processor()}, {host.counted(torch.get_num_threads(), 'thread')}"

    def require(self, options: DeviceOptions) -> None:
        super().require(options)
        compiler = os.environ.get("CXX", "g++")
        if self.compiled() and not shutil.which(compiler):
            raise DeviceError(
                f"--compile needs a C++ compiler on a CPU; {compiler} is not on the PATH.",
                "Install one (Debian: apt-get install g++), or leave out --compile.",
            )

    def dtypes(self) -> tuple[str, ...]:
        return ("bf16",) if has_bf16() else ()

    def channels_last(self) -> bool:
        """Also for volumes, because the faster layers of `unet.kernels` need it: --layout NCDHW leaves those out."""
        return self.options.layout not in CHANNELS_FIRST

    def optimize(self, module: nn.Module) -> nn.Module:
        from unet.kernels import select

        return select.optimize(module, self.channels_last())


def keep_memory(volumes: bool = False) -> None:
    """Make the C library keep freed memory instead of returning it to the system and requesting it in every step.

    At 256 px page faults take a tenth of a step otherwise. `volumes`: blocks of 32 MiB and more are returned all the
    same, because they would fragment a third of the memory of a step at 128 x 128 x 128 (and torch uses huge pages for
    them). Does nothing without glibc.
    """
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # parameters of mallopt(3)
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(trim_threshold, -1)
        library.mallopt(mmap_max, 65536 if volumes else 0)
        if volumes:
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
