"""What happened to the emulated device, as one JSON file; and the error of a program that breaks the vendor's rules."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

MOST_EVENTS = 200
VARIABLES = (
    "PT_HPU_",
    "HLS_MODULE_ID",
    "HABANA_",
    "PYTORCH_",
    "MLU_",
    "CN_VISIBLE",
    "ASCEND_",
    "CNCL_",
    "OMP_NUM_THREADS",
)
VARIABLES += ("ENABLE_FALLBACK_TO_CPU", "EMULATED_", "MASTER_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_")


class ContractError(RuntimeError):
    """The program did what the vendor's contract does not allow or does not name."""


def log_path() -> Path | None:
    """Where the log of this process belongs: a file for each rank, and one for each process that a rank starts."""
    name = os.environ.get("EMULATOR_LOG")
    if not name:
        return None
    for rank, world in (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")):
        if rank in os.environ and int(os.environ.get(world, "1")) > 1:
            name += f".rank{os.environ[rank]}"
            break
    owner, own = os.environ.get("EMULATOR_OWNER"), f"{os.getpid()}:{name}"
    if owner and owner != own and owner.partition(":")[2] == name:
        return Path(f"{name}.process{os.getpid()}")
    os.environ["EMULATOR_OWNER"] = own
    return Path(name)


class Record:
    """The log. It is written whenever something new happens, at most a second after anything else, and at the end."""

    def __init__(self) -> None:
        self.kind = ""
        self.device: Any = None
        self.lazy: bool | None = None
        self.counts: Counter[str] = Counter()
        self.events: list[str] = []
        self.violations: list[str] = []
        self.environment = {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)}
        self.autocast_lists: dict[str, list[str]] = {}
        self.ddp: dict[str, Any] | None = None
        self.collectives: list[str] = []
        self.tf32: dict[str, bool] | None = None
        self.shapes: list[str] = []
        self.process = os.getpid()
        self.written = 0.0
        self.lock = threading.RLock()

    def note(self, event: str, count: str | None = None) -> None:
        """Something happened; `count` is the word under which it is counted."""
        with self.lock:
            word = count or event
            self.counts[word] += 1
            if len(self.events) < MOST_EVENTS:
                self.events.append(event)
            if self.counts[word] == 1 or time.monotonic() - self.written > 1:
                self.flush()

    def shape(self, signature: str) -> None:
        """An outermost forward pass with this signature: each new one costs a compilation on a device that compiles."""
        if signature not in self.shapes:
            self.shapes.append(signature)

    def blame(self, message: str) -> None:
        """A broken rule, without an error."""
        with self.lock:
            self.violations.append(message)
            self.flush()

    def violate(self, message: str) -> NoReturn:
        """A broken rule."""
        self.blame(message)
        raise ContractError(message)

    def content(self) -> dict[str, Any]:
        device, cards = self.device, range(8)
        return {
            "kind": self.kind,
            "lazy": self.lazy,
            "environment": self.environment,
            "counts": {**self.counts, "reads": device.reads() if device else 0},
            "events": self.events,
            "violations": self.violations,
            "ddp": self.ddp,
            "collectives": self.collectives,
            "tf32": self.tf32,
            "autocast_lists": self.autocast_lists,
            "shapes": self.shapes,
            "slices": device.slices() if device else 0,  # in lazy mode each one is a graph of its own
            "ops": device.ops() if device else [],
            "peak_bytes": max((device.peak_bytes(card) for card in cards), default=0) if device else 0,
        }

    def flush(self) -> None:
        """Write the log now. A forked child writes none."""
        if os.getpid() != self.process or self.path is None:
            return
        with self.lock:
            draft = self.path.with_name(f"{self.path.name}.writing{self.process}")
            draft.write_text(json.dumps(self.content(), indent=1))
            draft.replace(self.path)
            self.written = time.monotonic()

    @property
    def path(self) -> Path | None:
        if not hasattr(self, "_path"):
            self._path = log_path()
        return self._path


RECORD = Record()


def flush_log() -> None:
    """Write the log now, for a process that is about to end without Python's exit (os._exit)."""
    RECORD.flush()
