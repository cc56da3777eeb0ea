"""Process group: rendezvous, collectives, failure detection.

Gradients use the device's collective (nccl, hccl, cncl). Everything else (scores, losses, stop requests) uses a second
group on the host, gloo, which every torch has. A single process needs neither and uses the plain `Group`.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unet import host
from unet.devices.base import Device, first_line
from unet.errors import DeviceError, LostError, UnetError, UsageError
from unet.runtime.distributed.rendezvous import Meeting
from unet.runtime.distributed.watchdog import AGAIN, GRACE, NEWS, RESUME, Watchdog, machine

T = TypeVar("T")
ENDLESS = datetime.timedelta(days=1)  # timeout of a collective: the watchdog ends it long before


class Group:
    """The processes of a run: the form for a single process."""

    rank, world = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 alone; every rank returns its result or raises its error."""
        return work()

    def main_first(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank, on rank 0 before the others, so that they find what it builds."""
        return work()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in every rank."""
        return [value]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Means over the ranks, number by number."""
        return list(values)

    def any_rank(self, value: bool) -> bool:
        """Whether any rank passed True; with several ranks, at the call before: the exchange overlaps with the step."""
        return value

    def set_phase(self, phase: str, may_block: bool = False) -> None:
        """Tell the watchdog what this rank is doing; `may_block`: the phase may take any time."""

    def average_statistics(self, model: nn.Module) -> None:
        """Average the running statistics of batch normalisation over the ranks."""

    def grad_sync(self, network: nn.Module, needed: bool) -> contextlib.AbstractContextManager[Any]:
        """Context of a forward and backward pass; gradients are exchanged only if `needed`."""
        return contextlib.nullcontext()

    def explain(self, error: BaseException) -> BaseException:
        """The error that names a lost rank, if `error` follows from it; else `error` itself."""
        return error

    def set_step_time(self, seconds: float) -> None:
        """Tell the watchdog how long a step takes."""

    def on_peer_lost(self, note: Callable[[str], None]) -> None:
        """Call `note` with the reason before this process ends because another is lost; from now on the error says how
        to resume."""

    def leave(self, error: BaseException | None = None) -> UnetError | None:
        """Leave the group, in order or with an error. Returns the error of another rank, if there is one."""
        return None


class DistributedGroup(Group):
    """A group of several processes, seen from one of them."""

    def __init__(self, device: Device, address: str, port: int, timeout: float, folder: Path, own: str | None) -> None:
        self.rank, self.world = device.rank.rank, device.rank.world
        self._pending: tuple[Any, Tensor] | None = None
        self._explained: BaseException | None = None
        try:
            self._meeting = Meeting(device.rank, address, port, timeout, folder, own)
        except (RuntimeError, OSError, ValueError) as error:
            raise LostError(
                f"Rank {self.rank} of {self.world} on {socket.gethostname()} cannot connect to the others at"
                f" {address}:{port} ({first_line(error)}).",
                "If another program uses the port, set MASTER_PORT to a free one. If rank 0 ended, read its error.",
            ) from error
        line = self._meeting.line
        self.watchdog = Watchdog(line, self.rank, self.world, timeout)
        self.watchdog.start()
        try:
            self._join(device)
        except Exception as error:
            found = self.explain(error)
            if not isinstance(found, UnetError):
                found = LostError(
                    f"The first exchange over {device.collective} failed: {first_line(error)}",
                    "Compare driver, collective library and network interfaces of all nodes; python -m unet doctor",
                )
            self._meeting.close()
            self.watchdog.leave(found)
            raise found from error

    def _join(self, device: Device) -> None:
        """Create both groups and test the device's with a sum, so that a wrong network interface or a dead card shows
        here and not as a first step that never ends. The test may build rings, so it is given more time than a step."""
        from torch import distributed

        self.watchdog.step = self.watchdog.timeout / 2
        self.watchdog.set_phase(f"in the first exchange over {device.collective}")
        own = f"{device.name} with torch {torch.__version__}"
        line = self._meeting.line
        line.write(f"device/{self.rank}", own)
        first = line.wait("device/0", self.watchdog.timeout) or "an unknown device"
        if own != first:
            raise UsageError(
                f"Rank 0 runs on {first}, rank {self.rank} on {own}.",
                "Type the same --device for all, and start all processes in the same environment.",
            )
        self._require_own_cards(device)
        device.join(self._meeting.store, ENDLESS)
        self._host_group = distributed.new_group(backend="gloo", timeout=ENDLESS)
        total = device.put(torch.ones(1))
        distributed.all_reduce(total)
        device.flush()
        device.synchronize()
        found = total.item()
        if found != self.world:
            raise LostError(
                f"The first sum over {device.collective} is {found:g} instead of {self.world}.",
                "Compare driver and collective library of all nodes; python -m unet doctor",
            )
        self._meeting.close()
        self.watchdog.set_phase("starting", may_block=True)
        self.watchdog.step = 0.0

    def _require_own_cards(self, device: Device) -> None:
        """Every rank tells its card to rank 0, which raises DeviceError if two of a node have the same."""
        own, line = device.identity(), self._meeting.line
        line.write(f"card/{self.rank}", json.dumps([machine(), socket.gethostname(), own]))
        owners: dict[tuple[str, str], int] = {}
        for rank in range(self.world if self.is_main else 0):
            where, node, card = json.loads(line.wait(f"card/{rank}", self.watchdog.timeout) or '["", "", ""]')
            other = owners.setdefault((where, card), rank)
            if card and other != rank:
                names = device.visible_by()
                raise DeviceError(
                    f"Ranks {other} and {rank} both use the {device.name} card {card} of {node}.",
                    f"Set {' or '.join(names)} to another card for each process, or start fewer on each node."
                    if names
                    else "Start fewer processes on each node.",
                )

    def gather(self, value: T) -> list[T]:
        from torch import distributed

        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value, group=self._host_group)
        return found

    def run_on_main(self, work: Callable[[], T]) -> T:
        from torch import distributed

        answer: tuple[T | None, UnetError | None] = (None, None)
        if self.is_main:
            try:
                answer = (work(), None)
            except UnetError as error:
                answer = (None, error)
        shared: list[Any] = [answer]
        distributed.broadcast_object_list(shared, src=0, group=self._host_group)
        result, failure = shared[0]
        if failure:
            raise failure
        return result

    def main_first(self, work: Callable[[], T]) -> T:
        found: list[T] = []
        self.run_on_main(lambda: found.append(work()))
        return found[0] if found else work()

    def mean(self, values: Sequence[float]) -> list[float]:
        from torch import distributed

        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total, group=self._host_group)
        means: list[float] = (total / self.world).tolist()
        return means

    def any_rank(self, value: bool) -> bool:
        from torch import distributed

        before, flag = self._pending, torch.tensor([int(value)])
        self._pending = (distributed.all_reduce(flag, group=self._host_group, async_op=True), flag)
        if before is None:
            return False
        before[0].wait()
        return bool(before[1].item())

    def set_phase(self, phase: str, may_block: bool = False) -> None:
        self.watchdog.set_phase(phase, may_block)

    def set_step_time(self, seconds: float) -> None:
        self.watchdog.step = max(self.watchdog.step, seconds)

    def on_peer_lost(self, note: Callable[[str], None]) -> None:
        self.watchdog.on_peer_lost, self.watchdog.hint = note, RESUME

    def average_statistics(self, model: nn.Module) -> None:
        from torch import distributed

        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        if not statistics:
            return
        flat = torch.cat([buffer.detach().reshape(-1).float() for buffer in statistics]).cpu()
        distributed.all_reduce(flat, group=self._host_group)
        parts = (flat / self.world).split([buffer.numel() for buffer in statistics])
        with torch.no_grad():
            for buffer, part in zip(statistics, parts, strict=True):
                buffer.copy_(part.view_as(buffer))

    def grad_sync(self, network: nn.Module, needed: bool) -> contextlib.AbstractContextManager[Any]:
        if needed:
            return contextlib.nullcontext()
        quiet: contextlib.AbstractContextManager[Any] = network.no_sync()  # type: ignore[operator]
        return quiet

    def explain(self, error: BaseException) -> BaseException:
        if isinstance(error, UnetError | KeyboardInterrupt) or error is self._explained or not _of_a_connection(error):
            return error
        self._explained = error
        self.watchdog.set_phase(NEWS, may_block=True)
        return self.watchdog.failure(self.watchdog.timeout + 2 * GRACE) or error

    def leave(self, error: BaseException | None = None) -> UnetError | None:
        from torch import distributed

        if error is None:
            try:
                if self._pending:
                    self._pending[0].wait()
                distributed.destroy_process_group()
            except RuntimeError as broken:
                found = self.explain(broken)
                self.watchdog.leave(found)
                return found if isinstance(found, UnetError) else LostError(first_line(found), AGAIN)
        return self.watchdog.leave(error)


def _of_a_connection(error: BaseException) -> bool:
    """Whether an error looks like that of a collective whose other process is gone."""
    words = ("connection", "closed by peer", "timed out", "timeout", "nccl", "cncl", "hccl", "gloo", "store", "socket")
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in words)


_group = Group()


def group() -> Group:
    """The processes of this run."""
    return _group


def join(device: Device, address: str, port: int, timeout: float, folder: Path, own: str | None = None) -> Group:
    """Connect to the other ranks, once per process: `folder` is shared by the nodes, `own` is this node's address as
    the others see it. Raises LostError if they do not come."""
    global _group
    if device.rank.world > 1 and _group.world == 1:
        _group = DistributedGroup(device, address, port, timeout, folder, own)
        host.set_quiet(host.is_quiet() or not _group.is_main)
        host.processes_here = device.rank.local_world
    return _group


def leave(error: BaseException | None = None) -> UnetError | None:
    """Leave the process group, if there is one. Returns the error of another rank, if there is one."""
    global _group
    parting, _group, host.processes_here = _group, Group(), 1
    return parting.leave(error)
