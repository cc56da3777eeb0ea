"""Names that a running process holds: run folders and weights files. Two runs never write under one name."""

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
    """Hold the lock file `path` for the run in folder `run` until `release` or the end of this process.

    Returns "" where this process holds it now; else who does, in words. The file is made by exclusive creation or
    opened, and locked (flock): the kernel frees it when its owner dies. It names its owner. Raises UnetError where it
    cannot be made.
    """
    key = files.real(path.parent) / path.name
    while key not in _held:
        try:
            descriptor = os.open(key, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise files.explain(error, path) from error
        owner = _lock(descriptor, key)
        if owner:
            os.close(descriptor)
            return owner
        if not _is_at(descriptor, key):  # its owner removed it between our opening and our locking
            os.close(descriptor)
            continue
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "run": str(run)}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(about).encode(), 0)
        _held[key] = descriptor
    return ""


def _lock(descriptor: int, path: Path) -> str:
    """Lock an open file. Returns "" or who holds it."""
    try:
        for last in (False, False, True):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if last:
                    return in_words(_owner(path))
                time.sleep(0.1)  # somebody may only be looking (`holder`)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise files.explain(error, path) from error
        owner = _owner(path)
        here = owner.get("host") == socket.gethostname() and owner.get("pid") != os.getpid()
        return in_words(owner) if here and files.alive(owner["pid"]) else ""
    return ""


def holder(path: Path) -> str:
    """Who else holds a lock file, in words; "" where nobody does, or this process."""
    key = files.real(path.parent) / path.name
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
    """Whom a lock file names; empty where that is not written (yet)."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if not files.misfit(found, OWNER) else {}


def in_words(owner: Mapping[str, Any]) -> str:
    """The owner of a lock: process, host, run."""
    if not owner:
        return "another process"
    return (
        f"process {owner['pid']} on {owner['host']}, for {max(0.0, time.time() - owner['since']):.0f} s, run"
        f" {owner['run']}"
    )


def release(path: Path) -> None:
    """Let go of a lock file, which is removed."""
    key = files.real(path.parent) / path.name
    descriptor = _held.pop(key, None)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            if _is_at(descriptor, key):
                key.unlink()
        os.close(descriptor)


def release_all() -> None:
    """Let go of all that this process holds."""
    for path in list(_held):
        release(path)


def _leave_to_parent() -> None:
    """In a forked process: the locks are the parent's, and must not outlive it."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_parent)
