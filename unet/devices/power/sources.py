"""What tells the power of a run: the cards, by the vendor's library or program, and processors and memory, by the
kernel's counters. A source is asked again and again by the sampler; each has its own reasons why it cannot be read.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from unet.devices.power import counters
from unet.devices.power.tools import TOOLS, Tool, Unreadable, ask, watts_of


class Reading(NamedTuple):
    """Watts of a channel (a card, a processor, its memory): at present, or the mean of the last `seconds`."""

    channel: str
    watts: float
    seconds: float = 0.0


class Source(Protocol):
    """Where readings come from."""

    @property
    def name(self) -> str: ...
    def read(self, over: threading.Event) -> list[Reading]:
        """The readings of now; it ends soon after `over` is set. Raises Unreadable."""


class Program:
    """Cards by the vendor's program."""

    def __init__(self, device: str, tool: Tool, cards: Sequence[str]) -> None:
        self.device, self.tool, self.cards, self.name = device, tool, cards or ("",), tool.command[0]

    def read(self, over: threading.Event) -> list[Reading]:
        every = {} if self.tool.for_each else ask(self.tool, "", over)
        found = []
        for card in self.cards:
            seen = ask(self.tool, card, over) if self.tool.for_each else every
            watts = watts_of(seen, card, self.tool.for_each or len(self.cards) == 1)
            if watts is None:
                raise Unreadable(f"{self.name} names no card {card or '(which one is not known)'}: {', '.join(seen)}")
            found.append(Reading(f"{self.device} {card or 0}", watts))
        return found


class Counters:
    """Processors and memory by the kernel's energy counters."""

    name = "RAPL"

    def __init__(self) -> None:
        self.before: tuple[float, dict[str, tuple[int, int]]] | None = None

    def read(self, over: threading.Event) -> list[Reading]:
        now, after = time.monotonic(), counters.energy(counters.zones())
        before, self.before = self.before, (now, after)
        if before is None or now <= before[0]:
            return []
        seconds = now - before[0]
        return [
            Reading(channel, joules / seconds, seconds) for channel, joules in counters.used(before[1], after).items()
        ]


class Nvml:
    """NVIDIA's cards by its library: energy counters where the card has them (from Volta on), else present watts.
    Raises ImportError without the package nvidia-ml-py (imported as pynvml)."""

    name = "NVML"

    def __init__(self, device: str, cards: Sequence[str]) -> None:
        self.library: Any = importlib.import_module("pynvml")
        self.device, self.cards = device, cards or ("0",)
        self.handles: dict[str, Any] = {}
        self.before: dict[str, tuple[float, int]] = {}

    def read(self, over: threading.Event) -> list[Reading]:
        library, found = self.library, []
        try:
            if not self.handles:
                library.nvmlInit()
                self.handles = {card: self._handle(card) for card in self.cards}
            for card, handle in self.handles.items():
                found += self._of(f"{self.device} {card}", handle)
        except library.NVMLError as error:
            raise Unreadable(f"NVML: {error}") from error
        return found

    def _handle(self, card: str) -> Any:
        by_number = card.isdecimal()
        return (
            self.library.nvmlDeviceGetHandleByIndex(int(card))
            if by_number
            else self.library.nvmlDeviceGetHandleByUUID(card)
        )

    def _of(self, channel: str, handle: Any) -> list[Reading]:
        library = self.library
        try:
            now, millijoules = time.monotonic(), int(library.nvmlDeviceGetTotalEnergyConsumption(handle))
        except library.NVMLError_NotSupported:
            return [Reading(channel, library.nvmlDeviceGetPowerUsage(handle) / 1000)]
        before, self.before[channel] = self.before.get(channel), (now, millijoules)
        if before is None or now <= before[0] or millijoules < before[1]:
            return []
        seconds = now - before[0]
        return [Reading(channel, (millijoules - before[1]) / 1000 / seconds, seconds)]


class Asked:
    """A device of the user's own, which tells its present power itself."""

    def __init__(self, device: str, power: Callable[[float], float | None]) -> None:
        self.name, self.power = device, power

    def read(self, over: threading.Event) -> list[Reading]:
        watts = self.power(0.0)
        if watts is None:
            raise Unreadable(f"device {self.name} tells no power")
        return [Reading(self.name, watts)]


class Absent:
    """A source that is known not to be there."""

    def __init__(self, name: str, why: str) -> None:
        self.name, self.why = name, why

    def read(self, over: threading.Event) -> list[Reading]:
        raise Unreadable(self.why, final=True)


def of_cards(device: str, cards: Sequence[str]) -> Source:
    """What tells the power of a device's cards of this machine."""
    if device == "cuda":
        try:
            return Nvml(device, cards)
        except ImportError:
            pass
    if device in TOOLS:
        return Program(device, TOOLS[device], cards)
    return Absent(device, f"no program is known that tells the power of a device {device}")


def of(device: str, cards: Sequence[str], own: Callable[[float], float | None] | None) -> list[Source]:
    """All that tells the power of a run on this machine; `own`: how a device of the user's own tells its power."""
    if device not in TOOLS and own is not None:
        return [Asked(device, own), Counters()]
    if device == "cpu":
        return [Counters()]
    return [of_cards(device, cards), Counters()]


def read(device: str, card: str = "", interval: float = 0.2) -> float | None:
    """Power in watts of a device's card (empty: the only one), after `interval` seconds; of the processors their mean
    over these seconds. None if unknown."""
    if device == "cpu":
        return counters.processors(interval)
    time.sleep(interval)
    if device not in TOOLS:
        return None
    try:
        return Program(device, TOOLS[device], [card]).read(threading.Event())[0].watts
    except Unreadable:
        return None
