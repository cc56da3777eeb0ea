"""Several processes as one run: they meet, agree, share what they found, and none outlives another's death.

Gradients go over the device's collective (nccl, hccl, cncl). Everything else (scores, losses, the wish to stop) goes
over a second group on the host, gloo, which every torch has. One process needs neither: its `Group` answers itself.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from unet import host
from unet.devices.base import Device, first_line
from unet.errors import DeviceError, UnetError, UsageError
from unet.runtime.distributed.rendezvous import Meeting
from unet.runtime.distributed.watchdog import AGAIN, GRACE, NEWS, RESUME, Watchdog

T = TypeVar("T")
ENDLESS = datetime.timedelta(days=1)  # how long a collective may wait: the heart ends it long before


class Group:
    """The processes of a run; this form for one."""

    rank, world = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def run_on_main(self, work: Callable[[], T]) -> T:
        """What `work` gives in rank 0, in every rank; its error too. The others wait."""
        return work()

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` in every rank, rank 0 before the others: what it builds they find."""
        return work()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in every rank."""
        return [value]

    def mean(self, values: Sequence[float]) -> list[float]:
        """Means over the ranks, number by number."""
        return list(values)

    def any_rank(self, wish: bool) -> bool:
        """Whether any rank wished it: with several ranks, at the call before (the exchange runs beside the step)."""
        return wish

    def set_phase(self, phase: str, may_block: bool = False) -> None:
        """Say where this rank is, for the others to watch; `patient`: it may take any time there."""

    def average_statistics(self, model: nn.Module) -> None:
        """Give every rank the mean of the running statistics (batch normalisation)."""

    def grad_sync(self, network: nn.Module, needed: bool) -> contextlib.AbstractContextManager[Any]:
        """Forward and backward of a batch; gradients are exchanged only where `needed`."""
        return contextlib.nullcontext()

    def explain(self, error: BaseException) -> BaseException:
        """The death of another rank where that is what an error comes from; else the error itself."""
        return error

    def set_step_time(self, seconds: float) -> None:
        """How long a step usually takes."""

    def on_peer_lost(self, note: Callable[[str], None]) -> None:
        """From now on there is a run to resume: call `note` with the reason before this process is ended because
        another one is lost."""

    def leave(self, error: BaseException | None = None) -> UnetError | None:
        """Say goodbye to the other ranks, in peace or with an error. Returns what another rank ended with meanwhile."""
        return None


class DistributedGroup(Group):
    """Several processes, of which this is one."""

    def __init__(self, device: Device, address: str, port: int, timeout: float, folder: Path, own: str | None) -> None:
        self.rank, self.world = device.rank.rank, device.rank.world
        self._wish: tuple[Any, Tensor] | None = None
        self._explained: BaseException | None = None
        try:
            self._meeting = Meeting(device.rank, address, port, timeout, folder, own)
        except (RuntimeError, OSError, ValueError) as error:
            raise UnetError(
                f"Rank {self.rank} of {self.world} on {socket.gethostname()} does not meet the others at"
                f" {address}:{port} ({first_line(error)}).",
                "Another program may hold the port: set MASTER_PORT to a free one. Or rank 0 ended: it says why.",
            ) from error
        line = self._meeting.line
        self.watchdog = Watchdog(line, self.rank, self.world, timeout)
        self.watchdog.start()
        try:
            self._join(device)
        except Exception as error:
            found = self.explain(error)
            if not isinstance(found, UnetError):
                found = DeviceError(
                    f"The first exchange over {device.collective} failed: {first_line(error)}",
                    "Compare driver, collective library and network interfaces of all nodes; python -m unet doctor",
                )
            self._meeting.close()
            self.watchdog.leave(found)
            raise found from error

    def _join(self, device: Device) -> None:
        """Both groups, and a sum over the device's own: a wrong interface or a card that does not answer shows here,
        and not as a first step that never ends. It may build rings, so it has longer than a step."""
        from torch import distributed

        self.watchdog.step = self.watchdog.timeout / 2
        self.watchdog.set_phase(f"in the first exchange over {device.collective}")
        own = f"{device.name} with torch {torch.__version__}"
        line = self._meeting.line
        line.write(f"device/{self.rank}", own)
        first = line.wait("device/0", self.watchdog.timeout) or "a device that it does not tell"
        if own != first:
            raise UsageError(
                f"Rank 0 runs on {first}, rank {self.rank} on {own}.",
                "Type --device, and start all processes in the same environment.",
            )
        device.join(self._meeting.store, ENDLESS)
        self._talk = distributed.new_group(backend="gloo", timeout=ENDLESS)
        total = device.put(torch.ones(1))
        distributed.all_reduce(total)
        device.flush()
        device.synchronize()
        found = total.item()
        if found != self.world:
            raise DeviceError(
                f"The first sum over {device.collective} is {found:g} instead of {self.world}.",
                "Compare driver and collective library of all nodes; python -m unet doctor",
            )
        self._meeting.close()
        self.watchdog.set_phase("starting", may_block=True)
        self.watchdog.step = 0.0

    def gather(self, value: T) -> list[T]:
        from torch import distributed

        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value, group=self._talk)
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
        distributed.broadcast_object_list(shared, src=0, group=self._talk)
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
        distributed.all_reduce(total, group=self._talk)
        means: list[float] = (total / self.world).tolist()
        return means

    def any_rank(self, wish: bool) -> bool:
        from torch import distributed

        before, flag = self._wish, torch.tensor([int(wish)])
        self._wish = (distributed.all_reduce(flag, group=self._talk, async_op=True), flag)
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
        distributed.all_reduce(flat, group=self._talk)
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
                if self._wish:
                    self._wish[0].wait()
                distributed.destroy_process_group()
            except RuntimeError as broken:
                found = self.explain(broken)
                self.watchdog.leave(found)
                return found if isinstance(found, UnetError) else UnetError(first_line(found), AGAIN)
        return self.watchdog.leave(error)


def _of_a_connection(error: BaseException) -> bool:
    """Whether an error is what a collective says when another process is gone."""
    words = ("connection", "closed by peer", "timed out", "timeout", "nccl", "cncl", "hccl", "gloo", "store", "socket")
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in words)


_group = Group()


def group() -> Group:
    """The processes of this run."""
    return _group


def join(device: Device, address: str, port: int, timeout: float, folder: Path, own: str | None = None) -> Group:
    """Meet the other ranks, once for the life of the process: `folder` is shared by the nodes, `own` this node's
    address as the others see it. Raises UnetError where they do not come."""
    global _group
    if device.rank.world > 1 and _group.world == 1:
        _group = DistributedGroup(device, address, port, timeout, folder, own)
        host.set_quiet(host.is_quiet() or not _group.is_main)
    return _group


def leave(error: BaseException | None = None) -> UnetError | None:
    """Part from the other ranks, if there are any. Returns what another rank ended with meanwhile."""
    global _group
    parting, _group = _group, Group()
    return parting.leave(error)
