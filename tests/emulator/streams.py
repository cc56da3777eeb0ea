"""Streams and events. All work is done at once; what is refused is what would go wrong where it is not: a batch that is
used before its copy is waited for, and memory that is written while the work before may still read it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from emulator import rules
from emulator.record import RECORD


class Stream:
    """A queue of work."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        RECORD.device.use()
        # by memory, what was made on it and no other stream has waited for; kept, since a card gives memory that one
        # stream has freed to that stream alone
        self.made: dict[int, torch.Tensor] = {}
        self.current = False  # whether it has waited for all that was asked of the main stream

    def wait_stream(self, stream: Stream) -> None:
        stream.made.clear()
        self.current = True

    def synchronize(self) -> None:
        self.made.clear()

    def query(self) -> bool:
        return True


class Event:
    """A moment; work takes no time after it is asked for."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self._timing, self._moment = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._moment = time.perf_counter()

    def synchronize(self) -> None: ...
    def query(self) -> bool:
        return True

    def elapsed_time(self, end_event: Event) -> float:
        if not (self._timing and end_event._timing):
            raise RuntimeError("Both events must be created with enable_timing=True")
        return 1e3 * (end_event._moment - self._moment)


class Copies(TorchDispatchMode):
    """Remembers what is made on a stream; counts copies from memory that is not pinned, for which the host waits."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if rules.on_device(result):
            self.stream.made[result.untyped_storage().data_ptr()] = result
            if args and isinstance(args[0], torch.Tensor) and args[0].device.type == "cpu" and not args[0].is_pinned():
                RECORD.note("copy from memory that is not pinned", "unpinned_copies")
        return result


STREAMS: list[Stream] = []  # those that were chosen, the main one first


def current_stream() -> Stream:
    if not STREAMS:
        STREAMS.append(Stream())
    return STREAMS[0]


@contextlib.contextmanager
def stream(stream: Stream) -> Iterator[None]:
    """A graph boundary in lazy mode, at both ends."""
    current_stream()
    if stream not in STREAMS:
        STREAMS.append(stream)
    RECORD.note("another stream", "side_streams")
    rules.due("another stream", rules.BACKWARD, rules.STEP, rules.EVALUATION)
    if not stream.current:
        RECORD.violate("another stream may write memory that the work before still reads: wait_stream comes first")
    with Copies(stream):
        yield


def used(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
    """Work of the main stream, on tensors whose copies it has waited for."""
    for each in STREAMS:
        each.current = False
        for tensor in inputs:
            if rules.on_device(tensor) and tensor.untyped_storage().data_ptr() in each.made:
                RECORD.violate("a tensor of another stream is used before current_stream().wait_stream(...)")


register_module_forward_pre_hook(used)
