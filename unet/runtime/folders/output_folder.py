"""The output folder of predict: which files the program wrote, and from which inputs.

`predictions.jsonl` gets a line when a case is started and one when it is finished, with a digest of every file. Lines
are only appended, so the cost per case stays constant.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from unet import files, host, locks
from unet.errors import UsageError

MANIFEST, LOCK = "predictions.jsonl", ".predictions.lock"
FREE, FOREIGN, UNFINISHED, CHANGED, OWN = "free", "foreign", "unfinished", "changed", "own"
BEGINS = '{"source": '
LINE = {"source": str, "inputs": str, "weights": str, "settings": str, "trained?": bool, "files": {str: (str, None)}}


@dataclasses.dataclass(frozen=True)
class Made:
    """What a file was made from: the path of its images; digests of images, weights and settings. `trained`: the
    weights name the case among those that they were trained on."""

    source: str
    inputs: str
    weights: str
    settings: str
    trained: bool = False


class OutputFolder:
    """The files that predict wrote into a folder: name -> (digest, what it was made from); the digest is None for a
    file whose writing was not finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, tuple[str | None, Made]] = {}

    def __contains__(self, path: Path) -> bool:
        return self.name(path) in self.records

    def name(self, path: Path) -> str:
        """The name of a file of this folder in the manifest."""
        return path.relative_to(self.path).as_posix()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder; waits for another predict that writes there."""
        files.make_folder(self.path)
        with locks.hold(self.path / LOCK, host.notice):
            yield

    def read(self) -> None:
        """Read the manifest, if there is one. An incomplete last line is ignored; other damaged lines are too, with a
        notice, and their files count as foreign. Raises UsageError if no line is valid."""
        self.records = {}
        path = self.path / MANIFEST
        if not os.path.lexists(path):
            return
        try:
            text = files.require_regular(path).read_bytes().decode(errors="replace")
        except OSError as error:
            raise files.explain(error, path) from error
        lines = [line for line in text.splitlines() if line.strip()]
        damaged = [number for number, line in enumerate(lines) if not self._take(line)]
        if lines and len(damaged) == len(lines) and not text.startswith(BEGINS):
            raise UsageError(
                f"{path} is not a list of results of this program.", "Move it elsewhere, or name another --output."
            )
        if [number for number in damaged if number < len(lines) - 1 or text.endswith("\n")]:
            host.notice(f"{path}: {len(damaged)} of {host.counted(len(lines), 'line')} are damaged and passed over.")

    def _take(self, line: str) -> bool:
        """Keep what a line of the manifest says; whether it could be read."""
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if files.schema_error(found, LINE):
            return False
        made = Made(**{field.name: found[field.name] for field in dataclasses.fields(Made) if field.name in found})
        self.records.update({name: (digest, made) for name, digest in found["files"].items()})
        return True

    def made(self, path: Path) -> Made:
        """What a file in the manifest was made from."""
        return self.records[self.name(path)][1]

    def state(self, path: Path) -> str:
        """FREE: nothing exists. FOREIGN: not in the manifest, or not a file. UNFINISHED: empty, or never marked as
        finished. CHANGED: changed since this program wrote it. OWN: as this program wrote it."""
        if not os.path.lexists(path):
            return FREE
        if path not in self or path.is_symlink() or not path.is_file():
            return FOREIGN
        digest, _ = self.records[self.name(path)]
        if digest is None or not path.stat().st_size:
            return UNFINISHED
        return OWN if files.digest_files(path) == digest else CHANGED

    def note(self, made: Made, digests: Mapping[Path, str | None]) -> None:
        """Append a line: these files are about to be written (digest None), or were written. Safe with several
        processes. Raises UnetError on a full disk."""
        path = self.path / MANIFEST
        names = {self.name(file): digest for file, digest in digests.items()}
        line = json.dumps({**dataclasses.asdict(made), "files": names}) + "\n"
        begins = None in names.values()
        try:
            with open(path, "a+b") as stream:
                locks.wait(stream.fileno())
                if end := stream.seek(0, os.SEEK_END):
                    stream.seek(end - 1)
                    line = line if stream.read(1) == b"\n" else "\n" + line
                stream.write(line.encode())
                stream.flush()
                if begins:  # after a power failure the file must not look like a foreign one
                    os.fsync(stream.fileno())
        except OSError as error:
            raise files.explain(error, path) from error

    def shorten(self, least: int = 1000) -> None:
        """Rewrite the manifest without replaced lines, if those are most of it; only while the folder is locked."""
        path = self.path / MANIFEST
        groups: dict[Made, dict[str, str | None]] = {}
        for name, (digest, made) in self.records.items():
            groups.setdefault(made, {})[name] = digest
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            count = sum(1 for _ in stream)
            if count > max(least, 4 * len(groups)):
                lines = (json.dumps({**dataclasses.asdict(made), "files": names}) for made, names in groups.items())
                files.write_text(path, "".join(f"{line}\n" for line in lines))


def digests(paths: Iterable[Path]) -> dict[Path, str | None]:
    """The digest of each file. Raises StorageError if one is missing or empty just after it was written."""
    found: dict[Path, str | None] = {}
    for path in paths:
        if not path.is_file() or not path.stat().st_size:
            raise files.explain(OSError(errno.EIO, "is gone or empty just after it was written"), path)
        found[path] = files.digest_files(path)
    return found
