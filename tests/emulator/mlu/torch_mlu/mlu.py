"""Stand-in for `torch.mlu`, which mirrors `torch.cuda` as far as the contract names it."""

import os as _os
from typing import Any as _Any

import torch as _torch
from emulator import device as _device
from emulator.device import current_device as current_device
from emulator.device import device_count as device_count
from emulator.device import get_rng_state as get_rng_state
from emulator.device import is_available as is_available
from emulator.device import manual_seed_all as manual_seed_all
from emulator.device import max_memory_allocated as max_memory_allocated
from emulator.device import mem_get_info as mem_get_info
from emulator.device import memory_allocated as memory_allocated
from emulator.device import reset_peak_memory_stats as reset_peak_memory_stats
from emulator.device import set_device as set_device
from emulator.device import set_rng_state as set_rng_state
from emulator.device import synchronize as synchronize
from emulator.record import RECORD as _RECORD
from emulator.streams import Event as Event
from emulator.streams import Stream as Stream
from emulator.streams import current_stream as current_stream
from emulator.streams import stream as stream

OutOfMemoryError = _torch.OutOfMemoryError


def empty_cache() -> None:
    _RECORD.device.use()
    _RECORD.note("empty_cache")


def memory_stats(device: _Any = None) -> dict[str, int]:
    return {
        "allocated_bytes.all.current": memory_allocated(device),
        "allocated_bytes.all.peak": max_memory_allocated(device),
    }


def is_bf16_supported() -> bool:
    return _os.environ.get("EMULATED_BF16", "1") != "0"


class MLUGraph:
    """Named by the contract, not emulated."""

    def __init__(self) -> None:
        _RECORD.violate("MLUGraph is not emulated")


def _autocast_dtypes() -> list[_torch.dtype]:
    return [_torch.float16, _torch.bfloat16] if is_bf16_supported() else [_torch.float16]


_for_torch = {**_device.FOR_TORCH, "get_amp_supported_dtype": _autocast_dtypes}
__getattr__ = _device.strict(__name__, "Cambricon", _for_torch)
