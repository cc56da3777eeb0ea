"""Unpacking a zip file that somebody else made: each member goes where the task says, or nowhere; nothing is believed
of names and sizes. No torch."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from unet import files, host
from unet.errors import DataError, StorageError

MOST_MEMBERS = 200_000
MOST_TIMES = 4  # how many times the size that is known of a set its archive may have unpacked
LARGEST_NAME = 1000
CHUNK = 2**20
HINT = "Load the archive again from its source."


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive, and where it belongs in the folder of the set."""

    info: zipfile.ZipInfo
    name: str


def members(path: Path, place: Callable[[str], str | None], unpacked: int) -> list[Member]:
    """The members of an archive that belong to the set, each place once (the copy that lies least deep). Raises
    DataError for what is no zip file, encrypted, a link, or larger than the set can be."""
    with _opened(path) as archive:
        infos = archive.infolist()
        if len(infos) > MOST_MEMBERS:
            raise DataError(f"{path}: holds {len(infos)} files; at most {MOST_MEMBERS} are unpacked.", HINT)
        found: dict[str, Member] = {}
        for info in sorted(infos, key=lambda info: (info.filename.count("/"), info.filename)):
            if info.is_dir() or len(info.filename) > LARGEST_NAME:
                continue
            name = place(info.filename)
            if name is None or name in found:
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise DataError(f"{path}: its member {info.filename[:120]!r} is a link.", HINT)
            if info.flag_bits & 1:
                raise DataError(f"{path}: its member {info.filename[:120]!r} is encrypted.", HINT)
            found[name] = Member(info, name)
    total = sum(item.info.file_size for item in found.values())
    if total > MOST_TIMES * unpacked:
        raise DataError(
            f"{path}: would be {host.format_bytes(total)} unpacked; the set has {host.format_bytes(unpacked)}.", HINT
        )
    return list(found.values())


def unpack(path: Path, chosen: list[Member], folder: Path) -> Iterator[Path]:
    """Write members under `folder`; yields each path when its check sum is right. Raises DataError, StorageError."""
    needed = sum(item.info.file_size for item in chosen)
    if needed > host.disk(folder):
        raise StorageError(
            f"{folder.absolute()}: {host.format_bytes(needed)} are to be unpacked, and"
            f" {host.format_bytes(host.disk(folder))} are free.",
            "Free some room, or name another folder with --data.",
        )
    with _opened(path) as archive:
        for item in chosen:
            target = files.path_inside(folder, item.name)
            files.make_folder(target.parent)
            try:
                with archive.open(item.info) as source, open(target, "wb") as stream:
                    _copy(source, stream, item, path)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                target.unlink(missing_ok=True)
                raise DataError(
                    f"{path}: its member {item.info.filename[:120]!r} is damaged ({str(error)[:80]}).", HINT
                ) from error
            except OSError as error:
                raise files.explain(error, target) from error
            yield target


def _copy(source: object, stream: object, item: Member, path: Path) -> None:
    """Copy a member; stop where it is longer than the archive says."""
    left = item.info.file_size
    while piece := source.read(CHUNK):  # type: ignore[attr-defined]
        left -= len(piece)
        if left < 0:
            raise DataError(f"{path}: its member {item.info.filename[:120]!r} is longer than the archive says.", HINT)
        stream.write(piece)  # type: ignore[attr-defined]
    stream.flush()  # type: ignore[attr-defined]


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(files.require_regular(path))
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError) as error:
        raise DataError(
            f"{path}: cannot be opened as a zip file ({str(error)[:80]}; {path.stat().st_size} bytes).", HINT
        ) from error


def clear(folder: Path) -> None:
    """Delete a folder that this program made for unpacking."""
    if os.path.lexists(folder):
        shutil.rmtree(folder)
