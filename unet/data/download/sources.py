"""What a public data set is, before anything is loaded: licence, terms, size, where its files lie. No torch.

A task that has one says so in `unet/tasks/<name>/download.py`, as `SOURCE`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file to load. `name`: where the task reads it, under the folder of the set; `urls`: its addresses, each tried
    where the one before does not have it; `about`: bytes, as far as they are known; `sha256`: where it is public."""

    name: str
    urls: tuple[str, ...]
    about: int
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Archive:
    """A zip file that holds the set. `place`: where a member of the archive belongs in the folder of the set, None for
    one that is left out; `needed`: files without which the set is not whole; `unpacked`: bytes, about; `folders`: how
    many the whole set has, one a case (0: it has none)."""

    file: Remote
    place: Callable[[str], str | None]
    unpacked: int
    needed: tuple[str, ...] = ()
    folders: int = 0


@dataclasses.dataclass(frozen=True)
class Source:
    """A public data set. `home`: the page that tells of it; `terms`: what its licence asks for, in short sentences;
    `files`: the files of the first N cases (None: of all), for a set that is no archive; `account`: what to type where
    its host wants an account."""

    title: str
    home: str
    licence: str
    terms: Sequence[str]
    files: Callable[[int | None], list[Remote]] | None = None
    archive: Archive | None = None
    account: tuple[str, ...] = ()

    def remotes(self, cases: int | None) -> list[Remote]:
        """The files to load."""
        if self.archive is not None:
            return [self.archive.file]
        return self.files(cases) if self.files else []
