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
from pathlib import Path
from typing import Any

from unet import host, locks
from unet.config.options import flag
from unet.config.resolve import Resolved
from unet.config.run_files import read_status
from unet.config.schema import Config
from unet.devices import launchers
from unet.errors import FAILED, USAGE, UnetError, UsageError
from unet.runtime.stop import handling, interruptible, stop_signals
from unet.runtime.terminal import outlive_terminal
from unet.tasks.registry import task_flag

PATIENCE = 15.0  # seconds for the others to end by themselves after one has failed
TURN = 5.0  # seconds for the first process of the node to report an error that all find
ENDS = (0, 3, 130)  # exit codes that are not failures
SEVERAL = ("train", "evaluate", "predict", "benchmark")  # commands that several processes share
RESTARTED = ("train",)  # commands that --restarts starts again
LASTING = 65  # exit code, for the process that started this one: it failed, and would fail again


def run(command: Any, resolved: Resolved, words: Sequence[str]) -> int:
    """Run a command's module; where --devices asks for several processes and no launcher runs, or --restarts for new
    ones, start them instead."""
    config, name = resolved.config, command.__name__.rpartition(".")[2]
    restarts = config.save.restarts if name in RESTARTED and not config.run.dry_run else 0
    if config.save.restarts and name not in (*RESTARTED, "config") and "restarts" in resolved.names:
        raise UsageError(f"--restarts {config.save.restarts} is for train, not for {name}.", "Leave it out.")
    alone = name not in SEVERAL or config.measure.sweep  # a sweep starts its own
    count = 1 if alone else config.distributed.devices or 1
    if (count > 1 or restarts) and launchers.STARTER not in os.environ:
        found = launchers.launched(os.environ)
        if found is None or found.world == 1:
            return start(config, count, words, restarts)
        if restarts:
            raise UsageError(
                f"--restarts {restarts}, but {found.launcher} runs {found.world} processes, and it must restart them.",
                f"Leave it out (torch.distributed.run has --max-restarts {restarts}: type --resume --run-name NAME with"
                f" it); or type --devices {found.world} in place of the launcher.",
            )
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


def exit_code(error: UnetError) -> int:
    """The exit code after an error; a process that this program started also tells whether it may pass."""
    lasting = launchers.STARTER in os.environ and error.exit_code == FAILED and not error.passing
    return LASTING if lasting else error.exit_code


def follows() -> bool:
    """Whether this process is one of several, and not the first of its node."""
    with contextlib.suppress(UsageError):
        found = launchers.launched(os.environ)
        return found is not None and found.local > 0
    return False


def start(config: Config, count: int, words: Sequence[str], restarts: int = 0) -> int:
    """Run this command line in `count` processes of this machine; signals are passed on. Returns the worst exit code.

    If one fails, the others end by themselves, since they watch each other; one that does not is killed. Then all are
    started again, up to `restarts` times, and go on with the run; but not after this process was asked to stop.
    """
    processes: list[subprocess.Popen[bytes]] = []
    began, number = time.monotonic(), secrets.token_hex(8)
    with passing_on(processes) as came:
        for restart in range(restarts + 1):
            processes[:] = start_all(count, words, number)
            if came:  # while they were started: they have not begun
                for process in processes:
                    process.kill()
                raise KeyboardInterrupt
            code, cause = _wait(processes)
            if code == LASTING:
                code = FAILED
                if restarts and not came:
                    host.notice("Not started again: the same error would come again.")
            if came or not cause or restart == restarts:
                break
            host.notice(f"Restart {restart + 1} of {restarts}: {cause}.")
            if folder := begun(Path(config.run.out), number):
                words = going_on(config, folder, (time.monotonic() - began) / 60)
    return code


def start_all(count: int, words: Sequence[str], number: str) -> list[subprocess.Popen[bytes]]:
    """Start the processes; `number` is in the status of the run that they write."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), launchers.STARTER: f"--devices {count}"}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), launchers.START: number}
    common |= {"UNET_TOKEN": os.environ.get("UNET_TOKEN") or secrets.token_hex(32)}  # shared secret of the ranks
    rest = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "unet", *words],
            env={**rest, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # Ctrl-C comes from this process alone, once
            preexec_fn=end_with_parent,
        )
        for rank in range(count)
    ]


def begun(out: Path, number: str) -> Path | None:
    """The folder of the run that the processes of a start have begun; None where they did not come so far."""
    return next(
        (path.parent for path in out.glob("*/status.json") if read_status(path.parent).get("start") == number), None
    )


def going_on(config: Config, folder: Path, minutes: float) -> list[str]:
    """The command line that goes on with a run, `minutes` after its start."""
    left = None if config.train.max_time is None else max(0.001, config.train.max_time - minutes)
    words = ["train", "--resume", "--run-name", folder.name, "--out", str(folder.parent), *typed_again(config, left)]
    several = config.distributed
    words += [flag("devices"), str(several.devices)] if several.devices else []
    return [*words, flag("dist_url"), several.dist_url]


def typed_again(config: Config, minutes: float | None) -> list[str]:
    """The flags of a run that goes on which its config.json does not hold, with a time limit in minutes."""
    words = [word for word, on in (("--quiet", config.logging.quiet), ("--verbose", config.logging.verbose)) if on]
    words += ["--max-time", f"{minutes:.3f}"] if minutes is not None else []
    words += task_flag(config)
    words += [flag("device_module"), config.device.device_module] if config.device.device_module else []
    words += [flag("cuda_devices"), *map(str, config.device.cuda_devices)] if config.device.cuda_devices else []
    return words


def _wait(processes: list[subprocess.Popen[bytes]]) -> tuple[int, str]:
    """(exit code, what failed first); the latter is empty where nothing did, or where a new start would not help."""
    failed_at: float | None = None
    cause, running = "", True
    while running:
        time.sleep(0.1)
        polled = [process.poll() for process in processes]
        running = None in polled
        failed = [(code, number) for number, code in enumerate(polled) if code is not None and code not in ENDS]
        if failed and failed_at is None:
            failed_at = time.monotonic()
            # one that was killed comes first, then one whose error is its own: the others end because of it
            _, _, code, number = min((code > 0, code == FAILED, code, number) for code, number in failed)
            if code == USAGE:  # the others wait for the first, which has told it
                for other in processes if number == 0 else ():
                    other.terminate()
                continue
            shown = FAILED if code == LASTING else code
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {shown}"
            cause = f"process {number} ended {how}"
            if len(processes) > 1:
                host.notice(f"Process {number} of {len(processes)} was the first to end, {how}.")
        if failed_at is not None and time.monotonic() - failed_at > PATIENCE:
            for process in processes:
                process.kill()
    codes = [process.returncode for process in processes]
    if any(code > 0 and code != FAILED for code in codes):
        cause = ""
    if all(code == codes[0] for code in codes) and codes[0] >= 0:
        return codes[0], cause
    return next((code for code in codes if code > 0 and code not in (FAILED, *ENDS)), FAILED), cause


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
