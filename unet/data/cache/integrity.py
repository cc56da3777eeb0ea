"""Whether the arrays of a cache are what preprocess wrote: the manifest has a digest of each.

`check` reads every array. A run reads those that it has not seen in their present state: bytes, time of change and time
of the file's entry (which no program can set back) are noted when an array is written or compared. So a file that was
zeroed, cut short, exchanged or changed in one bit is read again, and a copied cache of 200 GB once on each machine.
Decay beneath the file system leaves these times as they are: `check` finds that. No torch.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from unet import files, host, locks
from unet.data.cache.layout import Layout
from unet.errors import UnetError

NOTED = ".verified.json"
KINDS = ("image", "mask", "voxels")  # the last where the layout has it
LARGE = 2**30  # bytes that take a while to read: worth a word
Records = Mapping[str, Mapping[str, Any]]
State = list[Any]


class Array(NamedTuple):
    """An array of a case, as the manifest has it."""

    case: str
    path: Path
    bytes: int
    digest: str


def state_of(path: Path, digest: str) -> State:
    """[digest, bytes, time of change, time of its entry] of an array that has this digest now."""
    status = path.stat()
    return [digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def note(folder: Path, states: Mapping[str, State]) -> None:
    """Remember arrays (file name -> state) that were just written."""
    place = _place(folder)
    if states and place is not None:
        with locks.hold(place.with_suffix(".lock"), host.notice):
            _write(place, states)


def damaged(folder: Path, layout: Layout, records: Records, always: bool = False) -> dict[str, str]:
    """case -> what is wrong with its arrays, in words, for cases that have digests (those of earlier versions have
    none). `always`: read every array, whatever was noted."""
    arrays = [
        Array(case, path, record["arrays"][kind]["bytes"], record["arrays"][kind]["digest"])
        for case, record in records.items()
        if "arrays" in record
        for kind, path in zip(KINDS, layout.paths(folder, case), strict=False)
    ]
    place = None if always else _place(folder)
    wrong, left = _by_size(arrays, _read(place))
    if not left:
        return wrong
    if place is None:
        return wrong | _compare(folder, left, {})
    with locks.hold(place.with_suffix(".lock"), host.notice):
        wrong, left = _by_size(arrays, _read(place))  # another process may have compared them meanwhile
        states: dict[str, State] = {}
        try:
            return wrong | _compare(folder, left, states)
        finally:
            _write(place, states)


def report(
    folder: Path, layout: Layout, manifest: Mapping[str, Any], errors: list[str], warnings: list[str]
) -> dict[str, str]:
    """As `damaged`, of every case of a cache; what is wrong goes into `errors`, cases without digests `warnings`."""
    records = manifest["cases"]
    wrong = damaged(folder, layout, records, always=True)
    errors += [f"{folder}: {words}; make it again with preprocess" for words in wrong.values()]
    if bare := sum("arrays" not in record for record in records.values()):
        warnings.append(f"{bare} of {len(records)} cases have no digests (an earlier version); preprocess makes them")
    return wrong


def _by_size(arrays: Iterable[Array], noted: Mapping[str, State]) -> tuple[dict[str, str], list[Array]]:
    """(what is wrong at first sight, by case; the arrays of the others that are to be read)."""
    wrong: dict[str, str] = {}
    left = []
    for array in arrays:
        try:
            status = array.path.stat()
        except OSError as error:
            wrong.setdefault(array.case, f"{array.path.name} cannot be read ({error.strerror})")
            continue
        if not stat.S_ISREG(status.st_mode):
            wrong.setdefault(array.case, f"{array.path.name} is not a file")
        elif status.st_size != array.bytes:
            wrong.setdefault(array.case, f"{array.path.name} has {status.st_size} bytes of {array.bytes}")
        elif noted.get(array.path.name) != [array.digest, status.st_size, status.st_mtime_ns, status.st_ctime_ns]:
            left.append(array)
    return wrong, [array for array in left if array.case not in wrong]


def _compare(folder: Path, arrays: list[Array], states: dict[str, State]) -> dict[str, str]:
    """Read arrays: case -> what is wrong. The states of those that are whole go into `states`."""
    size = sum(array.bytes for array in arrays)
    if size > LARGE:
        host.notice(f"{folder}: {len(arrays)} arrays ({host.format_bytes(size)}) are compared with their digests")
    wrong: dict[str, str] = {}
    for array, state, words in _each(arrays):
        if words:
            wrong.setdefault(array.case, words)
        else:
            states[array.path.name] = state
    return wrong


def _each(arrays: list[Array]) -> Iterator[tuple[Array, State, str]]:
    """(array, its state before it was read, what is wrong) in threads: hashing and reading let each other run."""
    with ThreadPoolExecutor(host.cores()) as pool:
        waiting = {pool.submit(_look, array): array for array in arrays}
        try:
            for done in host.progress(as_completed(waiting), total=len(arrays), name="compare", unit="array"):
                yield (waiting[done], *done.result())
        finally:
            pool.shutdown(cancel_futures=True)


def _look(array: Array) -> tuple[State, str]:
    try:
        state = state_of(array.path, array.digest)
        same = files.digest_files(array.path) == array.digest
    except (OSError, UnetError) as error:
        return [], f"{array.path.name} cannot be read ({getattr(error, 'strerror', None) or error})"
    return state, "" if same else f"{array.path.name} has other content than was written"


def _place(folder: Path) -> Path | None:
    """Where this cache's states are noted: in it, or, where it cannot be written, in the user's own folder."""
    if os.access(folder, os.W_OK):
        return folder / NOTED
    try:
        own = files.make_folder(host.own_folder())
    except (UnetError, RuntimeError):
        return None
    return own / f"{files.fingerprint([socket.gethostname(), str(files.real_path(folder))])}{NOTED}"


def _read(place: Path | None) -> dict[str, State]:
    try:
        return files.read_json(place, {str: list}) if place is not None and place.exists() else {}
    except UnetError:  # cut short: the arrays are compared again
        return {}


def _write(place: Path, states: Mapping[str, State]) -> None:
    """Add to what is noted; where there is no room the arrays are compared again next time."""
    if not states:
        return
    try:
        files.write_json(place, {**_read(place), **states})
    except UnetError as error:
        host.notice(f"{error.message} The comparison of the cache's arrays is not remembered.")
