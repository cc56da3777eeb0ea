"""Files: atomic writes, checked reads of JSON, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import socket
import stat
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from unet.errors import StorageError, UnetError
from unet.json_schema import schema_error

_HOST = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname()) or "host"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LOCK_TIMEOUT = 600.0  # seconds; a lock whose owner has not touched it for so long is an error
_WRONG_PATH = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


def explain(error: OSError, path: Path | str | None = None) -> StorageError:
    """The two-line error for an operating-system error on `path`."""
    name = os.fspath(path) if path is not None else error.filename
    target = Path(os.fsdecode(name)).absolute() if isinstance(name, str | bytes) else "A file, or the output"
    short = error.errno is None and re.search(r"requested and \d+ written", str(error))  # as numpy says it
    if short or error.errno in _NO_SPACE:
        return StorageError(
            f"{target}: cannot be written: {error.strerror or error} (no room on the disk, or a quota or limit).",
            "Free some room or name another folder (--out, --weights or --cache), then type the command again;"
            " a run goes on with --resume.",
        )
    if error.errno in _NO_PERMISSION:
        return StorageError(
            f"{target}: {error.strerror}.",
            "Give this user the right to read or write there, or name another place, with the flag that named this one"
            " or --out, --weights, --cache or --data.",
        )
    found = StorageError(f"{target}: {error.strerror or error}.", "Check the path; -v shows where it was needed.")
    found.passing = error.errno not in _WRONG_PATH
    return found


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
def atomic(path: Path | str, before: Path | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on a clean exit flush, fsync and rename it over `path`.

    After a crash `path` has its old content or the complete new one; with `before` the old content gets that name
    first. The temporary file is locked, so no other process takes it for a leftover. Raises StorageError if the disk is
    full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.tmp")
    try:
        with _locked(temporary) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            if before is not None and path.exists():
                _move_aside(path, before, path.with_name(f".{path.name}.old.{_HOST}-{os.getpid()}.tmp"))
            temporary.replace(path)  # while it is locked
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise explain(error, path) from error
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _locked(temporary: Path) -> BinaryIO:
    """A new temporary file, open, and locked until it is closed where its file system has locks."""

    def untouched(path: str, flags: int) -> int:  # its content is nobody's only once it is locked
        return os.open(path, flags & ~os.O_TRUNC, 0o666)

    for last in (*[False] * 50, True):
        stream = open(temporary, "wb", opener=untouched)  # noqa: SIM115 (closed by the caller)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = _is_at(stream, temporary)  # another process may have removed it as a leftover before it was locked
        except BlockingIOError:
            mine = False
        except OSError:  # no locks here
            mine = True
        if mine or last:
            stream.truncate(0)
            return stream
        stream.close()
        time.sleep(0.02)
    raise AssertionError


def _is_at(stream: BinaryIO, path: Path) -> bool:
    """Whether an open file still lies at a path."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.lstat())
    except FileNotFoundError:
        return False


def _move_aside(path: Path, before: Path, spare: Path) -> None:
    """Give the content of `path` also the name `before`. Both are complete at every moment; on a file system without
    links, `path` is missing for a moment and `before` exists."""
    with contextlib.suppress(OSError):
        spare.unlink()
    try:
        os.link(path, spare)
    except OSError:
        path.replace(before)
    else:
        try:
            spare.replace(before)
        except FileNotFoundError:  # another process took it for a leftover
            return _move_aside(path, before, spare)
        with contextlib.suppress(FileNotFoundError):  # rename leaves both where they are one file already
            spare.unlink()


def write_bytes(path: Path | str, content: bytes) -> None:
    with atomic(path) as stream:
        stream.write(content)


def write_text(path: Path | str, text: str) -> None:
    write_bytes(path, text.encode())


def append_line(path: Path, text: str) -> None:
    """Add a line to a file, also after half a line. Raises StorageError if it cannot be written."""
    size = require_regular(path).stat().st_size if os.path.lexists(path) else 0
    try:
        with open(path, "ab+") as stream:
            torn = size and os.pread(stream.fileno(), 1, size - 1) != b"\n"
            stream.write(f"{chr(10) if torn else ''}{text}\n".encode())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)  # no half line
        raise explain(error, path) from error


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity become null, which every JSON reader accepts."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON; NaN and infinity become null."""
    return json.dumps(jsonable(value), indent=1, allow_nan=False) + "\n"


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


def real_path(path: Path) -> Path:
    """The path without links; a loop of links is left as it is (Path.resolve raises RuntimeError for it)."""
    return Path(os.path.realpath(path))


def require_regular(path: Path | str) -> Path:
    """`path` if it is a regular file. Raises StorageError if it is missing, a folder, a pipe, a device or a broken
    link: opening those may block forever."""
    path = Path(path)
    if "\0" in os.fspath(path):
        raise StorageError(f"{os.fspath(path)!r}: a file name cannot hold a NUL character.", "Check the name.")
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise explain(error, path) from error
    if not stat.S_ISREG(mode):
        raise StorageError(f"{path.absolute()}: is {kind_of(mode)}, not a file.", "Name a regular file.")
    return path


def kind_of(mode: int) -> str:
    """The kind of file that `st_mode` says, in words."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def read_text(path: Path | str, limit: int = 2**30) -> str:
    """The text of a regular file in UTF-8. Raises StorageError for what `require_regular` refuses and for more than
    `limit` bytes; UnetError for other bytes than UTF-8.
    """
    path = require_regular(path)
    try:
        size = path.stat().st_size
        if size > limit:
            raise StorageError(f"{path.absolute()}: {size} bytes; at most {limit} are read.", "Name another file.")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise explain(error, path) from error
    except UnicodeDecodeError as error:
        raise UnetError(
            f"{path.absolute()}: not a text file (byte {error.start} is not UTF-8).",
            "Name another file, or restore it.",
        ) from error


def read_json(path: Path | str, schema: Any = None, hint: str = "Repair the file, or delete it.") -> Any:
    """Parse a JSON file and check it against `schema` (see `schema_error`). Raises UnetError with `hint` if it is no
    regular file, not JSON, or does not match.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnetError(f"{Path(path).absolute()}: not valid JSON ({str(error)[:120]}).", hint) from error
    if schema is not None and (wrong := schema_error(found, schema)):
        raise UnetError(f"{Path(path).absolute()}: {wrong}.", hint)
    return found


def printable(text: str) -> bool:
    """Whether all letters can be shown; spaces of any kind can."""
    return all(letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in text)


def path_inside(folder: Path, name: Any) -> Path:
    """The path of `name` in `folder`, for names that were read from a file. Raises UnetError if it leads out of the
    folder (absolute, `..`, through a link) or is no file name.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    bad = any(
        part in ("", ".", "..") or "\\" in part or not printable(part) or len(part.encode()) > 255 for part in parts
    )
    path = folder.joinpath(*parts) if not bad else folder
    if not bad and len(parts) > 1:
        bad = not real_path(path.parent).is_relative_to(real_path(folder))
    if bad:
        raise UnetError(
            f"{folder.absolute()}: {str(name)[:120]!r} is not the name of a file in this folder.",
            "The list of its files was changed or damaged: restore it, or use another folder.",
        )
    return path


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a file to the first free `<name>.<suffix><number>`. Returns the new path. Raises StorageError."""
    names = (path.with_name(f"{path.name}.{suffix}{number}") for number in itertools.count(1))
    new = next(name for name in names if not os.path.lexists(name))
    try:
        return path.rename(new)
    except OSError as error:
        raise explain(error, path) from error


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes of this host from `folder`. A file that is locked has a living
    owner: a process of a container that shares the host's name, and whose number means another process here."""
    for path in folder.glob(f".*.{_HOST}-*.tmp"):
        owner = path.name.rsplit("-", 1)[1].removesuffix(".tmp")
        if owner.isdecimal() and not process_alive(int(owner)):
            with contextlib.suppress(OSError), open(path, "r+b") as stream:
                if _is_left(stream) and _is_at(stream, path):
                    path.unlink()


def _is_left(stream: BinaryIO) -> bool:
    """Whether no process writes to a temporary file any more, which is locked then. On a file system without locks:
    whether it has not changed for `LOCK_TIMEOUT` seconds."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - os.fstat(stream.fileno()).st_mtime > LOCK_TIMEOUT
    return True


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over the canonical JSON of `value`."""
    return hashlib.sha256(json.dumps(jsonable(value), sort_keys=True).encode()).hexdigest()[:16]


def digest(*contents: bytes) -> str:
    """Thirty-two hex digits of BLAKE2b over `contents` in order."""
    total = hashlib.blake2b(digest_size=16)
    for content in contents:
        total.update(content)
    return total.hexdigest()


def digest_files(*paths: Path) -> str:
    """Thirty-two hex digits of BLAKE2b over the contents of `paths` in order."""
    total = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            with open(require_regular(path), "rb") as stream:
                while piece := stream.read(2**20):
                    total.update(piece)
        except OSError as error:
            raise explain(error, path) from error
    return total.hexdigest()


def process_alive(pid: int) -> bool:
    """Whether a process of this host runs; a zombie does not."""
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
