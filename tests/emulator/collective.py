"""The vendors' collective backends, `hccl` and `cncl`: gloo at work on the same memory, seen as CPU tensors."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from emulator.record import RECORD


def aliases(tensors: Any) -> Any:
    """The host's view of a tensor, or of lists of them."""
    if isinstance(tensors, Tensor):
        if tensors.device.type not in (RECORD.kind, "cpu"):
            raise RuntimeError(f"no collective of {RECORD.kind} works on {tensors.device}")
        return RECORD.device.host_alias(tensors)
    return [aliases(tensor) for tensor in tensors]


class Group(distributed.ProcessGroup):
    """A process group which hands every call on."""

    def __init__(self, name: str, store: distributed.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.collective = name
        self.gloo = distributed.ProcessGroupGloo(store, rank, size, timeout=timeout)

    def getBackendName(self) -> str:
        return self.collective

    def called(self, name: str) -> None:
        if name not in RECORD.collectives:
            RECORD.collectives.append(name)
        RECORD.note(name, "collective")

    def allreduce(self, tensors: Any, opts: Any = None) -> Any:
        self.called("allreduce")
        opts = opts or distributed.AllreduceOptions()
        if opts.reduceOp != distributed.ReduceOp.AVG:
            return self.gloo.allreduce(aliases(tensors), opts)
        opts.reduceOp = distributed.ReduceOp.SUM
        work = self.gloo.allreduce(aliases(tensors), opts)
        work.wait()
        for tensor in aliases(tensors):
            tensor.div_(self.size())
        return work

    def broadcast(self, tensors: Any, opts: Any = None) -> Any:
        self.called("broadcast")
        return self.gloo.broadcast(aliases(tensors), opts or distributed.BroadcastOptions())

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None) -> Any:
        self.called("allgather")
        return self.gloo.allgather(aliases(outputs), aliases(inputs), opts or distributed.AllgatherOptions())

    def _allgather_base(self, output: Tensor, tensor: Tensor, opts: Any = None) -> Any:
        self.called("allgather")
        return self.gloo._allgather_base(aliases(output), aliases(tensor), opts or distributed.AllgatherOptions())

    def reduce(self, tensors: Any, opts: Any) -> Any:
        self.called("reduce")
        return self.gloo.reduce(aliases(tensors), opts)

    def gather(self, outputs: Any, inputs: Any, opts: Any) -> Any:
        self.called("gather")
        return self.gloo.gather(aliases(outputs), aliases(inputs), opts)

    def scatter(self, outputs: Any, inputs: Any, opts: Any) -> Any:
        self.called("scatter")
        return self.gloo.scatter(aliases(outputs), aliases(inputs), opts)

    def send(self, tensors: Any, to: int, tag: int = 0) -> Any:
        self.called("send")
        return self.gloo.send(aliases(tensors), to, tag)

    def recv(self, tensors: Any, source: int, tag: int = 0) -> Any:
        self.called("recv")
        return self.gloo.recv(aliases(tensors), source, tag)

    def barrier(self, opts: Any = None) -> Any:
        self.called("barrier")
        return self.gloo.barrier(distributed.BarrierOptions())


def register(name: str) -> None:
    """Make `init_process_group(name)` known to torch."""

    def create(store: distributed.Store, rank: int, size: int, timeout: timedelta) -> Group:
        torch._C._log_api_usage_once(f"emulator.{name}")
        return Group(name, store, rank, size, timeout)

    if not hasattr(distributed.Backend, name.upper()):
        distributed.Backend.register_backend(name, create, devices=[RECORD.kind])
