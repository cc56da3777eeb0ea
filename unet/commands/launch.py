"""Running a command: in this process, as one rank among those that a launcher started, or as --devices N processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from unet import host
from unet.config.resolve import Resolved
from unet.devices import launchers
from unet.errors import FAILED, USAGE, UnetError, UsageError
from unet.runtime.folders import locks
from unet.runtime.stop import handling, interruptible, stop_signals
from unet.runtime.terminal import outlive_terminal

PATIENCE = 15.0  # seconds for the others to end by themselves after one has failed
TURN = 5.0  # seconds for the first process of the node to report an error that all find
ENDS = (0, 3, 130)  # exit codes that are not failures
SEVERAL = ("train", "evaluate", "predict")  # commands that several processes share


def run(command: Any, resolved: Resolved, words: Sequence[str]) -> int:
    """Run a command's module; where --devices asks for several processes and no launcher runs, start them instead."""
    config = resolved.config
    if (config.distributed.devices or 1) > 1 and command.__name__.rpartition(".")[2] in SEVERAL:
        found = launchers.launched(os.environ)
        if found is None or found.world == 1:
            return start(config.distributed.devices or 1, words)
    outlive_terminal()
    try:
        with interruptible():
            code: int = command.run(resolved, "python -m unet " + shlex.join(words))
    except BaseException as error:
        lost = part(error)
        if lost is error:
            raise
        raise lost from error
    finally:
        locks.release_all()
    if lost := part(None):
        raise lost
    return code


def part(error: BaseException | None) -> Any:
    """Leave the process group, if there is one. Returns the error to raise: that of a lost rank if it is the cause."""
    distributed = sys.modules.get("unet.runtime.distributed.process_group")
    if distributed is None:
        return error
    found = distributed.group().explain(error) if error else None
    return distributed.leave(found) or found


def silent(error: UnetError) -> bool:
    """Whether another process reports the same error. Where the first process of the node does, this waits for it: a
    launcher ends all processes when one exits."""
    if error.shown:
        return True
    if not (error.shared and follows()):
        return False
    time.sleep(TURN)
    return True


def follows() -> bool:
    """Whether this process is one of several, and not the first of its node."""
    with contextlib.suppress(UsageError):
        found = launchers.launched(os.environ)
        return found is not None and found.local > 0
    return False


def start(count: int, words: Sequence[str]) -> int:
    """Run this command line in `count` processes of this machine; signals are passed on. Returns the worst exit code.

    If one fails, the others end by themselves, since they watch each other; one that does not is killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), launchers.STARTER: f"--devices {count}"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"UNET_TOKEN": os.environ.get("UNET_TOKEN") or secrets.token_hex(32)}  # shared secret of the ranks
    processes = []
    for number in range(count):
        rest = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
        own = {**rest, **common, "RANK": str(number), "LOCAL_RANK": str(number)}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "unet", *words],
                env=own,
                start_new_session=True,  # Ctrl-C comes from this process alone, once
                preexec_fn=end_with_parent,
            )
        )
    with passing_on(processes):
        return _wait(processes)


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
    failed_at: float | None = None
    while any(process.poll() is None for process in processes):
        time.sleep(0.1)
        for number, process in enumerate(processes):
            if failed_at is None and process.poll() not in (None, *ENDS):
                failed_at = time.monotonic()
                code = process.returncode
                if code == USAGE:  # the others wait for the first, which has told it
                    for other in processes if number == 0 else ():
                        other.terminate()
                    continue
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                host.notice(f"Process {number} of {len(processes)} was the first to end, {how}.")
        if failed_at is not None and time.monotonic() - failed_at > PATIENCE:
            for process in processes:
                process.kill()
    codes = [process.returncode for process in processes]
    if all(code == codes[0] for code in codes) and codes[0] >= 0:
        return codes[0]
    return next((code for code in codes if code > 0 and code not in ENDS), FAILED)


@contextlib.contextmanager
def passing_on(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """SIGINT, SIGTERM and SIGUSR1 of this process go to all of them, a closed terminal (SIGHUP) as SIGTERM; gives the
    list of those that came. The second SIGINT ends a process at once; the third kills those that do not even then
    end."""
    came: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        came.append(number)
        sent = signal.SIGTERM if number == signal.SIGHUP else number
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL if came.count(signal.SIGINT) > 2 else sent)

    with handling(stop_signals(), pass_on):
        yield came


def end_with_parent() -> None:
    """In a new process: a SIGTERM when the starting process dies, so that none is left behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
