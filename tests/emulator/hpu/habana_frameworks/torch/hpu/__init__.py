"""Stand-in for `torch.hpu`. A process has one card, so no card is chosen here."""

from typing import Any as _Any

from emulator import device as _device
from emulator.device import device_count as device_count
from emulator.device import get_rng_state as get_rng_state
from emulator.device import is_available as is_available
from emulator.device import manual_seed as manual_seed
from emulator.device import manual_seed_all as manual_seed_all
from emulator.device import max_memory_allocated as max_memory_allocated
from emulator.device import mem_get_info as mem_get_info
from emulator.device import memory_allocated as memory_allocated
from emulator.device import reset_peak_memory_stats as reset_peak_memory_stats
from emulator.device import set_rng_state as set_rng_state
from emulator.device import synchronize as synchronize
from emulator.streams import Event as Event
from emulator.streams import Stream as Stream
from emulator.streams import current_stream as current_stream
from emulator.streams import stream as stream


def get_device_name(device: _Any = None) -> str:
    return "EMULATED GAUDI"


def memory_stats(device: _Any = None) -> dict[str, int]:
    limit = mem_get_info(device)[1]
    return {"Limit": limit, "InUse": memory_allocated(device), "MaxInUse": max_memory_allocated(device)}


__getattr__ = _device.strict(__name__, "Gaudi", _device.FOR_TORCH, submodules=("graphs", "metrics"))
