"""Lock files for run folders and weights: two runs never write under the same name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet import files

OWNER = {"host": str, "pid": int, "since": float, "run": str}
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
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "run": str(run)}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
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


def _owner(path: Path) -> dict[str, Any]:
    """The owner named in a lock file; empty if it is not written yet."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if not files.schema_error(found, OWNER) else {}


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
