"""Stand-in for `torch.npu`: no streams, events, graphs or fused optimisers, since nothing asks for them."""

import os as _os
from typing import Any as _Any

from emulator import device as _device
from emulator.device import current_device as current_device
from emulator.device import device_count as device_count
from emulator.device import get_rng_state as get_rng_state
from emulator.device import is_available as is_available
from emulator.device import manual_seed_all as manual_seed_all
from emulator.device import max_memory_allocated as max_memory_allocated
from emulator.device import memory_allocated as memory_allocated
from emulator.device import reset_peak_memory_stats as reset_peak_memory_stats
from emulator.device import set_device as set_device
from emulator.device import set_rng_state as set_rng_state
from emulator.device import synchronize as synchronize
from emulator.record import RECORD as _RECORD


def empty_cache() -> None:
    _RECORD.device.use()
    _RECORD.note("empty_cache")


def get_device_name(device: _Any = None) -> str:
    return "EMULATED ASCEND"


def is_bf16_supported() -> bool:
    return _os.environ.get("EMULATED_BF16", "1") != "0"


# HF32 products: on for convolutions by default, off for matrices
conv = _device.Switches("torch.npu.conv", "Ascend", allow_hf32=True)
matmul = _device.Switches("torch.npu.matmul", "Ascend", allow_hf32=False)

__getattr__ = _device.strict(__name__, "Ascend", _device.FOR_TORCH)
