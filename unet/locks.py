"""Lock files. `acquire`: two runs never write under the same name. `hold`: the others wait for their turn."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unet import files
from unet.errors import StorageError

HOLDER = {"host": str, "pid": int, "since": float}
OWNER = HOLDER | {"run": str}
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}  # file systems without flock
_held: dict[Path, int] = {}  # lock file -> its open descriptor


def acquire(path: Path, run: Path) -> str:
    """Lock the file `path` for the run in folder `run`, until `release` or the end of this process.

    Returns "" if this process now holds the lock, else a description of its owner. The file is locked by flock, so the
    kernel frees it when its owner dies, and it names its owner. Raises UnetError if it cannot be created.
    """
    key = files.real_path(path.parent) / path.name
    while key not in _held:
        try:
            descriptor = os.open(key, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise files.explain(error, path) from error
        if owner := _lock(descriptor, key):
            os.close(descriptor)
            return owner
        if not _is_at(descriptor, key):  # its owner removed it after we opened it and before we locked it
            os.close(descriptor)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_about() | {"run": str(run)}).encode(), 0)
        _held[key] = descriptor
    return ""


def _lock(descriptor: int, path: Path) -> str:
    """Lock an open file. Returns "" or a description of the owner."""
    try:
        for last in (False, False, True):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    return in_words(_owner(path))
                time.sleep(0.1)  # another process may only be checking (`holder`)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise files.explain(error, path) from error
        owner = _owner(path)
        here = owner.get("host") == socket.gethostname() and owner.get("pid") != os.getpid()
        return in_words(owner) if here and files.process_alive(owner["pid"]) else ""
    return ""


@contextlib.contextmanager
def hold(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file; wait while another process holds it. The kernel releases it when its owner dies.

    The file names its owner (host, process, start). `waiting` is called once, with a text that names the owner. The
    owner touches the file regularly. Raises StorageError if it has not for `files.LOCK_TIMEOUT` seconds: it is
    stopped, or its disk or host does not answer. On a file system without flock a second file, made and removed by
    the owner, stands for the lock; one of a process of this host that has died is removed.
    """
    try:
        stream = open(path, "a+")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise files.explain(error, path) from error
    with stream:
        touched, idle, notified = 0, 0.0, False
        stand_in = path.with_name(f"{path.name}.held")
        while not (held := _take(stream.fileno(), path, stand_in)):
            if waiting and not notified:
                waiting(f"waiting for {_in_brief(path)}, which holds {path}")
                notified = True
            time.sleep(0.2)
            before, touched = touched, os.fstat(stream.fileno()).st_mtime_ns
            idle = 0.0 if touched != before else idle + 0.2  # not by the clock: this process may be stopped too
            if idle > files.LOCK_TIMEOUT:
                rest = f", delete {stand_in} if it has ended" if stand_in.exists() else ""
                raise StorageError(
                    f"{path.absolute()}: {_in_brief(path)} holds it, without a sign of life for"
                    f" {files.LOCK_TIMEOUT:.0f} s.",
                    f"Let that process go on (kill -CONT) or end it (kill -KILL){rest}, then type the command again.",
                ) from None
        released = threading.Event()
        try:
            stream.truncate(0)
            json.dump(_about(), stream)
            stream.flush()
            threading.Thread(target=_touch_until, args=(path, released), daemon=True).start()
            yield
        finally:
            released.set()
            if held is stand_in and _owner(stand_in, HOLDER).get("pid") == os.getpid():
                stand_in.unlink(missing_ok=True)


def _take(descriptor: int, path: Path, stand_in: Path) -> Path | None:
    """Take a lock now: the file that is the lock, None where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise files.explain(error, path) from error
    for _ in range(2):
        try:
            with open(stand_in, "x") as stream:
                json.dump(_about(), stream)
            return stand_in
        except FileExistsError:
            if not _is_dead(_owner(stand_in, HOLDER)):
                return None
            old = stand_in.with_name(f"{stand_in.name}.{os.getpid()}")
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                stand_in.rename(old)
                if not _is_dead(_owner(old, HOLDER)):  # it has replaced the stand-in since we looked
                    old.rename(stand_in)
                    return None
                old.unlink()
        except OSError as error:
            raise files.explain(error, stand_in) from error
    return None


def wait(descriptor: int) -> None:
    """Lock an open file until it is closed, after the others; nothing where its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the owner was a process of this host and has ended."""
    return owner.get("host") == socket.gethostname() and not files.process_alive(owner["pid"])


def _touch_until(path: Path, released: threading.Event) -> None:
    while not released.wait(files.LOCK_TIMEOUT / 10):
        with contextlib.suppress(OSError):
            os.utime(path)


def _about() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}


def _in_brief(path: Path) -> str:
    owner = _owner(path, HOLDER)
    if not owner:
        return "another process"
    return f"process {owner['pid']} on {owner['host']} (since {time.time() - owner['since']:.0f} s)"


def holder(path: Path) -> str:
    """A description of the other process that holds a lock; "" if there is none."""
    key = files.real_path(path.parent) / path.name
    if key in _held or not key.exists():
        return ""
    try:
        descriptor = os.open(key, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        return _lock(descriptor, key)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there, ours = path.stat(), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _owner(path: Path, form: dict[str, Any] = OWNER) -> dict[str, Any]:
    """The owner named in a lock file; empty if it is not written yet."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if not files.schema_error(found, form) else {}


def in_words(owner: Mapping[str, Any]) -> str:
    """The owner of a lock: process, host, run."""
    if not owner:
        return "another process"
    return (
        f"process {owner['pid']} on {owner['host']}, for {max(0.0, time.time() - owner['since']):.0f} s, run"
        f" {owner['run']}"
    )


def release(path: Path) -> None:
    """Release a lock and remove its file."""
    key = files.real_path(path.parent) / path.name
    descriptor = _held.pop(key, None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            if _is_at(descriptor, key):
                key.unlink()
        os.close(descriptor)


def release_all() -> None:
    """Release all locks of this process."""
    for path in list(_held):
        release(path)


def _leave_to_parent() -> None:
    """In a forked process: close the locks, which belong to the parent and must not outlive it."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
