"""Writing that survives a crash: atomic replacement, locks with an owner and an age, fingerprints."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unet.errors import StorageError, UnetError

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_RIGHT = {errno.EACCES, errno.EPERM, errno.EROFS}


def explain(error: OSError, path: Path | str | None = None) -> StorageError:
    """The two-line form of an operating-system error on `path`."""
    name = os.fspath(path) if path is not None else str(error.filename or "a file")
    target = Path(name).absolute()
    if error.errno in _NO_SPACE:
        return StorageError(
            f"{target}: cannot be written: {error.strerror} (no room on the disk, or a quota or limit).",
            "Free some room or name another folder (--out, --weights or --cache), then type the command again;"
            " a run goes on with --resume.",
        )
    if error.errno in _NO_RIGHT:
        return StorageError(
            f"{target}: {error.strerror}.",
            "Give this user the right to read or write there, or name another place with --out, --weights, --cache or"
            " --data.",
        )
    return StorageError(f"{target}: {error.strerror or error}.", "Check the path; -v shows where it was needed.")


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; a folder that cannot be made or written is an UnetError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain(error, path) from error
    if not os.access(path, os.W_OK):
        raise explain(PermissionError(errno.EACCES, "Permission denied"), path)
    return path


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on a clean exit flush, fsync and rename it over `path`.

    Whatever happens, `path` holds either its old content or the whole new one. Raises UnetError (two lines) when the
    disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise explain(error, path) from error
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path | str, content: bytes) -> None:
    with atomic(path) as stream:
        stream.write(content)


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity become null, which every JSON reader accepts."""
    write_text(path, json.dumps(jsonable(value), indent=1, allow_nan=False) + "\n")


def jsonable(value: Any) -> Any:
    """`value` with paths as strings, tuples as lists and non-finite floats as None."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises UnetError where it is missing, cut short or not JSON."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise explain(error, path) from error
    except ValueError as error:
        raise UnetError(f"{path.absolute()}: not valid JSON ({error}).", "Mend the file, or delete it.") from error


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files that a killed process of this host left in `folder`."""
    for path in folder.glob(f".*.{_HOST}-*.tmp"):
        owner = path.name.rsplit("-", 1)[1].removesuffix(".tmp")
        if owner.isdecimal() and not alive(int(owner)):
            with contextlib.suppress(OSError):
                path.unlink()


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(jsonable(value), sort_keys=True).encode()).hexdigest()[:16]


def digest(*contents: bytes) -> str:
    """Thirty-two hex digits of BLAKE2b over `contents` in order."""
    total = hashlib.blake2b(digest_size=16)
    for content in contents:
        total.update(content)
    return total.hexdigest()


def alive(pid: int) -> bool:
    """Whether a process of this host lives; one that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


@contextlib.contextmanager
def lock(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `path` as a lock; wait while another process holds it. The kernel frees it when its owner dies.

    The file names its owner (host, process, since when); `waiting` is told once, in words, whom we wait for.
    """
    try:
        stream = open(path, "a+")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise explain(error, path) from error
    with stream:
        told = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if waiting and not told:
                    waiting(f"waiting for {_owner(path)}, which holds {path}")
                    told = True
                time.sleep(0.2)
        stream.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}, stream)
        stream.flush()
        yield


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']} (since {time.time() - owner['since']:.0f} s)"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
