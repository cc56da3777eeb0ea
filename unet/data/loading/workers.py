"""Processes that prepare batches. Each has a connection of its own over which whole messages go, so one that is killed
or stopped while it hands a batch over holds up nobody else; and every wait for one has an end.

A batch lies in memory that its process shares by a file descriptor, not in /dev/shm: that is often small in containers.
"""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import mmap
import multiprocessing
import multiprocessing.util
import os
import pickle
import select
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unet import host
from unet.errors import DataError, LostError

Batch = dict[str, Tensor]
Key = tuple[int, int]
AHEAD = 2  # batches that a process prepares ahead
SILENT = 300  # seconds without a batch after which a process counts as lost: a slow disk is no fault
HURRIED = 3  # seconds of that when the run is asked to stop
MESSAGE = 65536  # bytes that a message may have


class Worker:
    """One process and the connection to it; `due` are the batches that it has been asked for."""

    def __init__(self, context: Any, batches: Any, others: Sequence[Worker]) -> None:
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        forked = context.get_start_method() == "fork"
        inherited = [self.channel, *(other.channel for other in others)] if forked else []
        self.process = context.Process(target=_serve, args=(theirs, inherited, batches), daemon=True, name="loader")
        self.process.start()
        theirs.close()
        self.due: deque[tuple[int, Key]] = deque()
        self.late = False

    def ask(self, turn: int, key: Key) -> None:
        self.due.append((turn, key))
        with contextlib.suppress(OSError):  # it has died: waiting for its answer tells
            self.channel.send(json.dumps(key).encode())


class Pool:
    """Batches by key from `count` processes, in order. `hurried` tells whether the run is asked to stop: then a batch
    that does not come is made here."""

    def __init__(self, batches: Any, count: int, method: Any = None) -> None:
        self.batches, self.count, self.workers, self.turn = batches, count, list[Worker](), 0
        self.context = method if hasattr(method, "Process") else multiprocessing.get_context(method)
        self.hurried: Callable[[], bool] = lambda: False
        self._fits = False

    def start(self) -> None:
        processes: list[Any] = []
        multiprocessing.util.Finalize(self, host.end_processes, (processes,), exitpriority=10)
        with host.signals_held(self.context):
            for _ in range(self.count):
                self.workers.append(Worker(self.context, self.batches, self.workers))
                processes.append(self.workers[-1].process)

    def take(self, keys: Iterable[Key]) -> Iterator[Batch]:
        """The batches of `keys`, which may be endless: so many are asked for ahead. What was asked for before and not
        taken is dropped."""
        if not self.workers:
            self.start()
        self.turn += 1
        turn, workers, asked = self.turn, itertools.cycle(self.workers), deque[tuple[Worker, Key]]()

        def ask(count: int) -> None:
            for key, worker in zip(itertools.islice(coming, count), workers, strict=False):
                worker.ask(turn, key)
                asked.append((worker, key))

        coming = iter(keys)
        ask(AHEAD * self.count)
        while asked:
            worker, key = asked.popleft()
            batch = self._answer(worker, turn, key)
            ask(1)
            yield batch

    def _answer(self, worker: Worker, turn: int, key: Key) -> Batch:
        """The batch of `key`; answers to questions of earlier turns, and to those that were answered here, are
        dropped."""
        batch: Batch
        while (turn, key) in worker.due:
            content, shared = self._receive(worker)
            if content is None:
                break
            try:
                its_turn, its_key = worker.due.popleft()
                if (its_turn, its_key) == (turn, key):
                    batch = _load(content, shared)
                    self._require_memory(batch)
                    return batch
            finally:
                for each in shared:
                    os.close(each)
        batch = self.batches[key]  # the process is late, or somebody has begun another epoch in between
        return batch

    def _receive(self, worker: Worker) -> tuple[bytes | None, list[int]]:
        """One message of a process, and the descriptors in it; None where the run is asked to stop and none comes.
        Raises LostError where the process is dead or silent."""
        poll = select.poll()
        poll.register(worker.channel, select.POLLIN)
        waited = 0
        while not poll.poll(1000):  # seconds are counted, not measured: this process may itself be stopped for a while
            waited += 1
            if waited >= (1 if worker.late else HURRIED) and self.hurried():
                worker.late = True
                host.notice_once("A loader process does not answer: this process prepares its batch itself.")
                return None, []
            if waited >= SILENT:
                raise LostError(
                    f"Loader process {worker.process.pid} has given no batch for {SILENT} s"
                    f" ({_state(worker.process.pid)}).",
                    "Look whether the disk with the data answers; --workers 0 reads in the main process. A run goes on"
                    " with --resume.",
                )
        content, shared = b"", list[int]()
        with contextlib.suppress(ConnectionError):
            content, shared, _, _ = socket.recv_fds(worker.channel, MESSAGE, 1)
        if not content:
            raise LostError(
                f"A loader process died: {host.how_it_ended(worker.process)}",
                "Type the command again with fewer --workers, each takes memory of its own; a run goes on with"
                " --resume.",
            )
        return content, shared

    def _require_memory(self, batch: Batch) -> None:
        """Before all processes fill what they prepare ahead. Raises DataError where that does not fit."""
        if self._fits:
            return
        one, ahead = sum(value.numel() * value.element_size() for value in batch.values()), AHEAD * self.count
        available = host.memory()[1]
        if 0 < available < one * ahead:
            raise DataError(
                f"{self.count} loader processes hold {ahead} batches of {host.format_bytes(one)},"
                f" {host.format_bytes(available)} of memory are free.",
                "Type --workers 0, or a smaller --batch-size.",
            )
        self._fits = True


def _state(pid: int) -> str:
    """What the system says of a process: running, sleeping, waiting for a disk, stopped."""
    words = {"R": "running", "S": "sleeping", "D": "waiting for a disk", "T": "stopped by a signal"}
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return words.get(stream.read().rpartition(")")[2].split()[0], "gone")
    except OSError:
        return "gone"


# -- in the process ----------------------------------------------------------------------------------------------------


def _serve(channel: socket.socket, inherited: Sequence[socket.socket], batches: Any) -> None:
    """Batch after batch, until the other end is closed."""
    host.follow()
    for other in inherited:  # ends that only the main process shall hold
        other.close()
    torch.set_num_threads(1)
    with contextlib.suppress(OSError):
        while request := channel.recv(MESSAGE):
            epoch, number = json.loads(request)
            shared: list[int] = []
            try:
                content, shared = _store(batches[epoch, number])
            except Exception as error:
                content = _told(error)
            channel.sendmsg([content], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", shared))])
            for each in shared:
                os.close(each)


def _told(error: Exception) -> bytes:
    """An error as a message: itself, or its words where it cannot be sent."""
    with contextlib.suppress(Exception):
        content = b"!" + pickle.dumps(error)
        pickle.loads(content[1:])
        if len(content) < MESSAGE:
            return content
    return b"!" + pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"[:1000]))


def _store(batch: Mapping[str, Tensor]) -> tuple[bytes, list[int]]:
    """A batch in shared memory: what lies where, and the descriptor. Dense tensors keep their order in memory (channels
    last)."""
    dense, starts, table, end = list[Tensor](), list[int](), list[Any](), 0
    for name, tensor in batch.items():
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=strides.__getitem__, reverse=True)
        dense.append(tensor.permute(order).contiguous())
        table.append([name, str(tensor.dtype).removeprefix("torch."), list(dense[-1].shape), order, end])
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // 64) * 64
    with contextlib.ExitStack() as undo:
        shared = _shared_memory(max(end, 1))
        undo.callback(os.close, shared)
        memory = mmap.mmap(shared, max(end, 1))
        for tensor, start in zip(dense, starts, strict=True):
            if tensor.numel():
                torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=start).copy_(tensor.flatten())
        undo.pop_all()
    return json.dumps(table).encode(), [shared]


def _shared_memory(count: int) -> int:
    """A descriptor of `count` bytes that belong to no file: taken now, since a page that is missing later would be a
    bus error."""
    try:
        shared = os.memfd_create("batch")
    except (AttributeError, OSError):
        with tempfile.TemporaryFile() as stream:
            shared = os.dup(stream.fileno())
    try:
        os.posix_fallocate(shared, 0, count)
    except OSError as error:
        os.close(shared)
        raise DataError(
            f"A batch of {host.format_bytes(count)} has no room in the memory that processes share ({error.strerror}).",
            "Type --workers 0 or a smaller --batch-size, or give the container more (docker run --shm-size).",
        ) from error
    return shared


def _load(content: bytes, shared: Sequence[int]) -> Batch:
    """In the main process: the batch of a message, in the memory that was shared. Raises the process's error."""
    if content[:1] == b"!":
        raise pickle.loads(content[1:])  # of this program's own process, over its own connection
    memory = mmap.mmap(shared[0], os.fstat(shared[0]).st_size)
    batch: Batch = {}
    for name, kind, shape, order, start in json.loads(content):
        dtype, count = getattr(torch, kind), 1
        for length in shape:
            count *= length
        flat = (
            torch.frombuffer(memory, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)
        )
        batch[name] = flat.view(shape).permute([order.index(axis) for axis in range(len(order))])
    return batch
