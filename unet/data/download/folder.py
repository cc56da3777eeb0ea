"""The folder of a public data set: what is there, what is missing, and loading it, several files at a time. No torch.

`download.json` holds size, SHA-256 and address of each file, `checksums.sha256` the same as sha256sum reads it. What is
under way lies in `.download/`: a file gets its own name when it is whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import files, host, locks
from unet.data.download import archive, contents, transfer
from unet.data.download.sources import Archive, Remote, Source
from unet.errors import DataError, StorageError, UnetError

RECORD, SUMS, ROOM, LOCK = "download.json", "checksums.sha256", ".download", ".download.lock"
UNPACKED = "unpacked"  # in the room
ENTRY = {"size": int, "sha256": str, "url": str, "etag": str}
SCHEMA = {"version": int, "files": {str: ENTRY}}
MOST_FAILURES = 3  # files that may fail before the others are not begun
TICK, LINE = 0.2, 30.0  # seconds between two looks, and between two lines where there is no bar


class SetFolder:
    """The folder of a set as it stands. Raises UnetError where its record is damaged."""

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source, self.room = path, source, path / ROOM
        self.files: dict[str, Any] = {}
        self.guard = threading.Lock()
        self.read()

    def read(self) -> None:
        """Read the record, where there is one."""
        record = self.path / RECORD
        self.known = record.exists()
        hint = f"Restore {record}, or delete it: the files that are there are then checked again."
        self.files = files.read_json(record, SCHEMA, hint)["files"] if self.known else {}

    def has(self, name: str) -> bool:
        """Whether a file is there with the size that it was recorded with."""
        entry, path = self.files.get(name), files.path_inside(self.path, name)
        return entry is not None and path.is_file() and path.stat().st_size == entry["size"]

    def missing(self, remotes: Sequence[Remote]) -> list[Remote]:
        """The files that are still to load. Of an archive that was unpacked whole: none."""
        if packed := self.source.archive:
            names = [name for name in {**self.files, **dict.fromkeys(packed.needed)} if not self.has(name)]
            return list(remotes) if names or not self.files or self.lacking() else []
        return [item for item in remotes if not self.has(item.name)]

    def lacking(self) -> str:
        """How many cases are there of a set that was unpacked in part, in words; empty where all are."""
        whole = self.source.archive.folders if self.source.archive else 0
        there = {name.partition("/")[0] for name in self.files if "/" in name}
        return f"{len(there)} of {whole} cases are there" if self.files and len(there) < whole else ""

    def part(self, item: Remote) -> Path:
        return self.room / (item.name.replace("/", "--") + ".part")

    def begun(self, remotes: Sequence[Remote]) -> int:
        """Bytes of parts that are there."""
        return sum(path.stat().st_size for path in map(self.part, remotes) if path.exists())

    def add(self, digests: Mapping[str, str], url: str = "", etag: str = "") -> None:
        """Record files that are whole, by their SHA-256."""
        with self.guard:
            for name, sha256 in digests.items():
                size = (self.path / name).stat().st_size
                self.files[name] = {"size": size, "sha256": sha256, "url": url, "etag": etag}
            about = {"version": 1, "title": self.source.title, "home": self.source.home, "licence": self.source.licence}
            files.write_json(self.path / RECORD, {**about, "files": dict(sorted(self.files.items()))})

    def write_sums(self) -> None:
        """Write the list of checksums; a file of this name that was there before the record is kept."""
        path = self.path / SUMS
        if not self.known and os.path.lexists(path):
            host.notice(f"{path}: was not made here; kept as {files.set_aside(path, '').name}")
        rows = [f"{entry['sha256']}  {name}\n" for name, entry in sorted(self.files.items())]
        files.write_text(path, "".join(rows))

    def clear(self, remotes: Sequence[Remote]) -> None:
        """Remove what loading has left, and the room for it where nothing else lies in it."""
        for item in remotes:
            transfer.remove(self.part(item))
        if self.source.archive:
            archive.clear(self.room / UNPACKED)
        with contextlib.suppress(OSError):
            self.room.rmdir()

    def settle(self, source: Path, name: str, sha256: str) -> Path:
        """Give a whole file its own name. Raises DataError where another file has it: nothing is overwritten."""
        target = files.path_inside(self.path, name)
        files.make_folder(target.parent)
        if os.path.lexists(target):
            if target.is_file() and contents.digests(target)["sha256"] == sha256:
                return target
            raise DataError(
                f"{target.absolute()}: is there already, and is not the file of the set.",
                "Move it away, or name another folder with --data.",
            )
        try:
            with open(source, "rb") as stream:
                os.fsync(stream.fileno())
            source.replace(target)
        except OSError as error:
            raise files.explain(error, target) from error
        return target


@dataclasses.dataclass(frozen=True)
class How:
    """How a set is loaded: how long to wait, how many files at a time, (user, key) of an account."""

    patience: transfer.Patience
    at_once: int = 4
    credentials: tuple[str, str] | None = None


def require_room(place: SetFolder, todo: Sequence[Remote]) -> None:
    """Raise StorageError where the set cannot fit."""
    packed = place.source.archive
    needed = sum(item.about for item in todo) - place.begun(todo) + (packed.unpacked if packed and todo else 0)
    free = host.disk(place.path)
    if needed > free:
        raise StorageError(
            f"{place.path.absolute()}: about {host.format_bytes(needed)} are needed, and {host.format_bytes(free)} are"
            " free.",
            "Free some room, or name another folder with --data"
            + ("." if packed else ", or fewer cases: --max-cases N."),
        )


def load(place: SetFolder, remotes: Sequence[Remote], how: How, given: Path | None = None) -> int:
    """Load what is missing; `given`: an archive that the user has. Returns how many files came. Raises UnetError."""
    files.make_folder(place.path)
    with locks.hold(place.path / LOCK, host.notice):
        place.read()  # another process may have loaded it meanwhile
        files.make_folder(place.room)
        if place.source.archive:
            count = _load_archive(place, remotes[0], how, given) if place.missing(remotes) else 0
        else:
            _adopt(place, remotes)
            count = len(todo := place.missing(remotes))
            if todo:
                require_room(place, todo)
                _load_files(place, todo, how)
        place.write_sums()
        place.clear(remotes)
    return count


def _adopt(place: SetFolder, remotes: Sequence[Remote]) -> None:
    """Files that are there and not recorded (the user's own copy): kept where they are whole. Raises DataError."""
    unknown = [item for item in remotes if os.path.lexists(place.path / item.name) and not place.has(item.name)]
    for item in host.progress(unknown, name="check", unit="file"):
        path = place.path / item.name
        try:
            place.add({item.name: contents.verify(path, item.name, _known(item))})
        except UnetError as error:
            raise DataError(error.message, "Move this file away, then type the command again.") from error


def _known(item: Remote) -> dict[str, str]:
    return {"sha256": item.sha256} if item.sha256 else {}


def _load_archive(place: SetFolder, item: Remote, how: How, given: Path | None) -> int:
    """Load an archive, where the user has none, and unpack it. Returns how many files it held."""
    path, url, etag = given or place.part(item), str(given or ""), ""
    if given is None:
        require_room(place, [item])
        with _Watch(place, [item]) as watch:
            one = transfer.Transfer(how.patience, watch.tell, how.credentials)
            answer = watch.wait(one, lambda: one.fetch(item.urls, path))
        url, etag = answer.url, answer.etag
    aside = place.room / UNPACKED
    try:
        contents.require_no_page(path, url)
        entries = _unpack(path, _members(path, place.source.archive), aside)
    except DataError:
        if given is None:
            transfer.remove(path)  # what came is not the archive; the next try begins anew
        raise
    for name, sha256 in entries.items():
        place.settle(aside / name, name, sha256)
    place.add(entries, url, etag)
    return len(entries)


def _members(path: Path, packed: Archive | None) -> list[archive.Member]:
    """The members that the set needs. Raises DataError where they are not all there."""
    assert packed is not None
    chosen = archive.members(path, packed.place, packed.unpacked)
    lost = [name for name in packed.needed if name not in {item.name for item in chosen}]
    if lost or not chosen:
        what = f"no {', no '.join(lost)}" if lost else "no file of this set"
        raise DataError(f"{path}: holds {what}.", "Name the archive of this set with --from.")
    return chosen


def _unpack(path: Path, chosen: list[archive.Member], aside: Path) -> dict[str, str]:
    """Unpack members into a folder and read each to its end. Returns their SHA-256 by name."""
    archive.clear(aside)
    files.make_folder(aside)
    written = archive.unpack(path, chosen, aside)
    bar = host.progress(written, total=len(chosen), name="unpack", unit="file")
    return {item.name: contents.verify(made, item.name, {}) for item, made in zip(chosen, bar, strict=True)}


def _load_files(place: SetFolder, todo: Sequence[Remote], how: How) -> None:
    """Load files, several at a time; one that fails does not stop the others, a disk that is full does."""
    work: queue.SimpleQueue[Remote] = queue.SimpleQueue()
    for item in todo:
        work.put(item)
    failed: dict[str, UnetError] = {}
    with _Watch(place, todo) as watch:
        one = transfer.Transfer(how.patience, watch.tell, how.credentials)

        def serve() -> None:
            while len(failed) < MOST_FAILURES and not any(isinstance(item, StorageError) for item in failed.values()):
                try:
                    item = work.get_nowait()
                except queue.Empty:
                    return
                try:
                    _load_one(place, item, one)
                    watch.files += 1
                except UnetError as error:
                    failed[item.name] = error

        watch.wait(one, *[serve] * min(how.at_once, len(todo)))
    if failed:
        first = next((item for item in failed.values() if isinstance(item, StorageError)), next(iter(failed.values())))
        left = len(place.missing(todo))
        raise type(first)(f"{left} of {len(todo)} files are missing. {first.message}", first.hint) from first


def _load_one(place: SetFolder, item: Remote, one: transfer.Transfer) -> None:
    """Load a file and check it; what is not right is loaded once more from its start."""
    part = place.part(item)
    for last in (False, True):
        answer = one.fetch(item.urls, part)
        try:
            sha256 = contents.verify(part, item.name, {**answer.digests, **_known(item)}, answer.url)
        except DataError:
            one.tell(-part.stat().st_size)
            transfer.remove(part)
            if last:
                raise
            continue
        place.settle(part, item.name, sha256)
        transfer.remove(part)
        place.add({item.name: sha256}, answer.url, answer.etag)
        return


class _Watch:
    """Shows how far a set is, while threads load it; Ctrl-C ends it at once, and the parts stay."""

    def __init__(self, place: SetFolder, todo: Sequence[Remote]) -> None:
        self.total, self.count = sum(item.about for item in todo), len(todo)
        self.bytes, self.files = place.begun(todo), 0
        self.first, self.guard = self.bytes, threading.Lock()

    def __enter__(self) -> _Watch:
        self.began = self.said = time.monotonic()
        self.bar = host.progress(total=max(self.total, 1), initial=self.bytes, name="download", unit="B", scale=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def tell(self, count: int) -> None:
        with self.guard:
            self.bytes += count

    def wait(self, one: transfer.Transfer, *works: Any) -> Any:
        """Run functions in threads and wait for them. Returns the result of the last. Raises the first error."""
        results: dict[int, Any] = {}
        errors: list[BaseException] = []

        def run(number: int) -> None:
            try:
                results[number] = works[number]()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(works))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(TICK)
                    self.show()
        except BaseException:
            one.stop.set()
            raise
        if errors:
            raise errors[0]
        return results[len(works) - 1]

    def show(self) -> None:
        self.bar.n = self.bytes
        self.bar.refresh()
        now = time.monotonic()
        if self.bar.disable and now - self.said > LINE:
            self.said, rate = now, (self.bytes - self.first) / (now - self.began)
            host.notice(
                f"{self.files} of {host.counted(self.count, 'file')}, {host.format_bytes(self.bytes)} of about"
                f" {host.format_bytes(self.total)}, {host.format_bytes(rate)}/s"
            )


def facts(place: SetFolder) -> Mapping[str, Any]:
    """What --json says of a set."""
    return {
        "folder": place.path,
        "whole": not place.lacking(),
        "files": place.files,
        "bytes": sum(item["size"] for item in place.files.values()),
    }
