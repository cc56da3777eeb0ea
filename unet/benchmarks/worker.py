"""A loop in a process of its own: what is asked of it, its answers, and how it may end.

Loops that are compared must not share a process: memory, threads and settings of one would change the other.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import signal
import traceback
from collections.abc import Iterator
from typing import Any

from unet import host
from unet.errors import UnetError

RAN_OUT = "ran out of memory"  # a sweep finds its rows without memory by these words
SMALLER = "Type a smaller --batch-size."
WORDS = ("can't allocate memory", "not enough memory", "out of memory")


class OutOfMemory(UnetError):
    """A loop needs more memory than there is."""


class Worker:
    """The loop in the other process. `worker(steps)` runs steps and gives (their seconds, peak memory in bytes): steps
    overlap, so only the sum is exact; -N waits for each. `ask` calls any other method of the loop."""

    def __init__(self, connection: Any, process: Any, label: str) -> None:
        self.connection, self.process, self.label = connection, process, label
        self._ready = False

    def __call__(self, steps: int) -> tuple[list[float], int]:
        seconds, memory = self.ask("run", steps)
        return list(seconds), int(memory)

    def ask(self, method: str, *args: Any) -> Any:
        """What a method of the loop gives. Raises OutOfMemory, its UnetError, or RuntimeError for another error."""
        try:
            if not self._ready:
                self._receive()  # it has been built
                self._ready = True
            self.connection.send((method, args))
            return self._receive()
        except (EOFError, OSError) as error:
            raise self._lost() from error

    def _receive(self) -> Any:
        kind, value, where = self.connection.recv()
        if kind == "answer":
            return value
        if kind == "memory":
            raise OutOfMemory(f"The {self.label} {RAN_OUT}: {value}", SMALLER)
        failure = value if isinstance(value, UnetError) else RuntimeError(f"the {self.label}: {value}")
        raise failure from RuntimeError(where)  # for -v

    def _lost(self) -> UnetError:
        """The error of a process that has died. The system ends one by SIGKILL where no memory is left."""
        self.process.join(5)
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            return OutOfMemory(f"The {self.label} {RAN_OUT}: its process was ended by SIGKILL.", SMALLER)
        return UnetError(f"The process of the {self.label} has died: {host.how_it_ended(self.process)}", SMALLER)


@contextlib.contextmanager
def started(loop: str, label: str, *args: Any) -> Iterator[Worker]:
    """Start a loop, "module:Class" of this package made with `args`, in its own process; `label` names it in errors."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    # no daemon: a loader in it may start processes
    process = spawn.Process(target=serve, args=(there, loop, args, host.is_quiet()))
    with host.signals_held(spawn):
        process.start()
    there.close()
    try:
        yield Worker(here, process, label)
    finally:
        here.close()
        host.end_processes([process], 10)


def serve(connection: Any, loop: str, args: tuple[Any, ...], quiet: bool) -> None:
    """In the other process: build the loop, then answer until the connection closes."""
    host.follow()
    host.set_quiet(quiet)
    made: Any = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            try:
                if made is None:
                    module, _, name = loop.partition(":")
                    made = getattr(importlib.import_module(f"unet.benchmarks.{module}"), name)(*args)
                    answer = ("answer", None, "")
                else:
                    method, values = connection.recv()
                    answer = ("answer", getattr(made, method)(*values), "")
            except EOFError:
                return
            except Exception as error:
                answer = failure(error, made)
                error.__traceback__ = None  # its frames hold tensors
            connection.send(answer)
            if answer[0] != "answer" and made is None:
                return


def failure(error: Exception, loop: Any) -> tuple[str, Any, str]:
    """An error as it is sent: ("memory" or "error", the error or words, its traceback)."""
    first = (str(error).splitlines() or [""])[0][:200]
    where = traceback.format_exc()
    known = getattr(loop, "is_out_of_memory", lambda _: False)(error)
    if known or isinstance(error, MemoryError) or any(word in str(error) for word in WORDS):
        return "memory", first or type(error).__name__, where
    return "error", error if isinstance(error, UnetError) else f"{type(error).__name__}: {first}", where
