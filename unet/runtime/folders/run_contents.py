"""The list of files that the program wrote into a run folder (`files.json`). Other files are never removed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from unet import files
from unet.config.run_files import (
    CONFIG,
    KERNELS,
    KERNELS_JSON,
    MANIFEST,
    PICTURE_INDEX,
    PICTURED,
    PICTURES,
    SPLIT,
    read_lines,
)
from unet.errors import UnetError

MANIFEST_NAME = "files.json"
BOARD = "tensorboard"
FOLDERS = (BOARD, PICTURED, "reconstructions", "pipeline_test")  # of a run folder, with files of the run in them
NAMES = re.compile(
    r"(config|settings|environment|status|splits|kernels|summary|benchmark|files|trace)\.json|metrics\.jsonl|run\.log|(cases|classes|sweep|results|power)\.csv"
    r"|(progress|predictions|terms)\.png|reconstructions/epoch_\d+\.png|cases/([\w-]+\.png|index\.json)|pipeline_test/[^/]+\.(png|nii\.gz)|unet3d\.log|worker_\d+\.log|tensorboard/events\.out\.tfevents\.[^/]+"
)
WHEN = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


class Contents:
    """The entries of a run folder. A file belongs to the program if its name is one of a run's files and is in the
    list; in folders of versions without a list, if its content is of the expected kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listed: list[str] | None = None

    def listed(self) -> list[str] | None:
        """The names in files.json; None where there is no such list, or a damaged one."""
        try:
            found: list[str] = files.read_json(self.path / MANIFEST_NAME, MANIFEST)["files"]
        except UnetError:
            return None
        return found

    def add(self, *names: str) -> None:
        """List files before they are written, so that they are recognised after a crash."""
        if self._listed is None:
            listed = self.listed()
            if listed is None:  # a run of an earlier version goes on: what is its own joins the list
                listed = [MANIFEST_NAME, *(name for name in self.entries() if self._recognised(name))]
            self._listed = listed
        new = [name for name in dict.fromkeys(names) if name not in self._listed]
        if new or not (self.path / MANIFEST_NAME).exists():
            self._listed += new
            files.write_json(self.path / MANIFEST_NAME, {"files": self._listed})

    def entries(self) -> Iterator[str]:
        """Names of everything in the folder, and within its FOLDERS; a folder ends in `/`."""
        for item in sorted(self.path.iterdir()):
            if item.is_symlink() or not item.is_dir():
                yield item.name
            elif item.name in FOLDERS:
                yield from (f"{item.name}/{part.name}{'/' if part.is_dir() else ''}" for part in sorted(item.iterdir()))
            else:
                yield f"{item.name}/"

    def strange(self) -> list[str]:
        """Entries that the program did not write."""
        listed = self.listed()
        return [name for name in self.entries() if not self._is_ours(name, listed)]

    def clear(self) -> None:
        """Remove the program's files, and nothing else. Raises UnetError if the system refuses."""
        listed = self.listed()
        for name in sorted(self.entries(), key=lambda name: name == MANIFEST_NAME):  # the list last
            if self._is_ours(name, listed):
                path = files.path_inside(self.path, name)
                try:
                    path.unlink()
                except OSError as error:
                    raise files.explain(error, path) from error
        for folder in (self.path / name for name in FOLDERS):
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
        self._listed = [MANIFEST_NAME]

    def _is_ours(self, name: str, listed: list[str] | None) -> bool:
        if listed is None:
            return self._recognised(name)
        return (name == MANIFEST_NAME or name in listed) and self._is_known(name)

    def _is_known(self, name: str) -> bool:
        return bool(NAMES.fullmatch(name)) or name == f"{self.path.name}.txt"

    def _recognised(self, name: str) -> bool:
        """Whether name and content of a file look like those of this program."""
        path = self.path / name
        if not self._is_known(name) or path.is_symlink() or not path.is_file():
            return False
        if path.suffix == ".json" and name not in JSON_KINDS:
            return False
        try:
            if name in JSON_KINDS:
                return not files.schema_error(files.read_json(path), JSON_KINDS[name])
            if name == "metrics.jsonl":
                rows = read_lines(path)
                return not path.stat().st_size or bool(rows and "event" in rows[0])
            with open(path, "rb") as stream:
                start = stream.read(4096)
        except (OSError, UnetError):
            return False
        return not start or _start_of(name)(start)


# What a JSON file of each name has, in every version of the program.
JSON_KINDS = {
    "config.json": CONFIG,
    "environment.json": {"unet": str, "packages": {str: str}},
    "status.json": {"status": {"running", "done", "failed", "interrupted"}, "pid": int, "host": str},
    "splits.json": SPLIT,
    KERNELS_JSON: KERNELS,
    "summary.json": {"metric": str},
    "benchmark.json": {"predict": dict, "device": str},
    PICTURES: PICTURE_INDEX,
    "settings.json": {"task": str, "seed?": int, "epochs": object},
}


def _start_of(name: str) -> Callable[[bytes], bool]:
    """Whether the first bytes of a file are those of its kind."""
    if name.endswith(".png"):
        return lambda start: start.startswith(b"\x89PNG") and b"Matplotlib" in start
    if name.startswith(BOARD):
        return lambda start: b"brain.Event" in start
    if name == "cases.csv":
        return lambda start: start.startswith((b"case,", b"fold,"))
    if name in ("results.csv", "power.csv"):
        return lambda start: start.startswith((b"epoch,", b"time,source,watts"))
    if name.endswith(".txt"):
        return lambda start: start.startswith(b"Command: ")
    if name == "unet3d.log":
        return lambda start: start.startswith(b":::MLLOG ")
    return lambda start: bool(re.match(WHEN, start))
