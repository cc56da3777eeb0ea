"""The emulated device in this process: loading it, the module `torch.<kind>`, and refusing what no vendor names."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from emulator import build, rules
from emulator.record import RECORD

Which = torch.device | str | int | None
UNLIMITED = 32 << 30  # bytes that a card without a limit says it has


def start(kind: str, cards: int) -> Any:
    """Load the device into this process, once, and watch what is done with it."""
    if RECORD.kind:
        raise RuntimeError(f"one emulated device a process: {RECORD.kind} is loaded, {kind} cannot be")
    path = os.environ.get("EMULATOR_LIBRARY") or str(build.library(kind))
    spec = importlib.util.spec_from_file_location(build.name_of(kind), path)
    assert spec and spec.loader
    RECORD.device = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(RECORD.device)
    bfloat16 = kind == "hpu" or os.environ.get("EMULATED_BF16", "1") != "0"
    float64 = kind != "hpu" and os.environ.get("EMULATED_FP64", "1") != "0"
    RECORD.device.configure(cards, int(os.environ.get("EMULATED_MEMORY_MB", "0")) << 20, bfloat16, float64)
    RECORD.kind = kind
    atexit.register(finish)
    return RECORD.device


def cards_here() -> int:
    """How many cards the machine has."""
    return int(os.environ.get("EMULATED_CARDS", "2"))


def finish() -> None:
    """The end of the process. Autograd's threads may still clear up after the last backward pass, and Python must not
    be taken away under them.
    """
    time.sleep(0.2)
    if os.getpid() == RECORD.process:
        rules.at_exit()
        RECORD.flush()


def index_of(which: Which) -> int:
    """The card that is meant."""
    if isinstance(which, int):
        index = which
    else:
        named = torch.device(which).index if which is not None else None
        index = RECORD.device.current_device() if named is None else named
    RECORD.device.check_index(index)
    return index


class Switches(types.ModuleType):
    """Settings of which each one is named."""

    def __init__(self, name: str, vendor: str, **switches: object) -> None:
        super().__init__(name)
        self.__dict__.update(switches, _vendor=vendor)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.__dict__:
            RECORD.violate(f"{self.__name__}.{name} is not in the contract of {self._vendor}")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return RECORD.violate(f"{self.__name__}.{name} is not in the contract of {self._vendor}")


# ---- functions that the vendors' modules share ----


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return RECORD.device.device_count()


def current_device() -> int:
    return RECORD.device.current_device()


def set_device(device: Which) -> None:
    RECORD.device.set_device(index_of(device))


def synchronize(device: Which = None) -> None:
    RECORD.device.use()
    index_of(device)
    RECORD.note("synchronize")


def memory_allocated(device: Which = None) -> int:
    return RECORD.device.live_bytes(index_of(device))


def max_memory_allocated(device: Which = None) -> int:
    return RECORD.device.peak_bytes(index_of(device))


def reset_peak_memory_stats(device: Which = None) -> None:
    RECORD.device.reset_peak(index_of(device))


def mem_get_info(device: Which = None) -> tuple[int, int]:
    total = RECORD.device.limit_bytes() or UNLIMITED
    return total - memory_allocated(device), total


def manual_seed(seed: int) -> None:
    RECORD.device.generator(current_device()).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for card in range(8):
        RECORD.device.generator(card).manual_seed(seed)


def get_rng_state(device: Which = None) -> torch.Tensor:
    return RECORD.device.generator(index_of(device)).get_state()


def set_rng_state(new_state: torch.Tensor, device: Which = None) -> None:
    RECORD.device.generator(index_of(device)).set_state(new_state)


class Card:
    """`with torch.<kind>.device(i)`, which torch itself uses."""

    def __init__(self, device: Which) -> None:
        self.index = index_of(device)

    def __enter__(self) -> None:
        self.before = current_device()
        RECORD.device.set_device(self.index)

    def __exit__(self, *error: object) -> None:
        RECORD.device.set_device(self.before)


# what torch asks of a device's module, whether or not a program may
FOR_TORCH: dict[str, Any] = {
    "is_initialized": lambda: True,
    "_is_in_bad_fork": lambda: RECORD.device.forked(),
    "_lazy_init": lambda: RECORD.device.check_process(),
    "current_device": current_device,
    "set_device": set_device,
    "device": Card,
    "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
}


def strict(
    module: str, contract: str, for_torch: Mapping[str, Any] | None = None, submodules: tuple[str, ...] = ()
) -> Callable[[str], Any]:
    """A module's `__getattr__`: torch gets what it needs, Python what it looks for, a program a ContractError."""

    def get(name: str) -> Any:
        if name in submodules:
            return importlib.import_module(f"{module}.{name}")
        caller = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if for_torch and name in for_torch and (caller == "torch" or name.startswith("_")):  # "_": asked by torch's C++
            return for_torch[name]
        if caller == "torch" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return RECORD.violate(f"{module}.{name} is not in the contract of {contract}")

    return get


def no_more(who: str, arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the contract does not name."""
    if arguments:
        RECORD.violate(f"{who} takes no argument {', '.join(arguments)}")
