"""One case of a cache: where its arrays lie and what is known of them before they are opened. No torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files, host
from unet.data.cache.integrity import KINDS
from unet.data.cache.layout import Layout
from unet.data.io.arrays import open_npy
from unet.errors import CacheError

AGAIN = "Make the cache again with --rebuild-cache."
Stamp = tuple[int, int, int]  # of a file: which one it is, its bytes, its time of change


@dataclasses.dataclass(frozen=True)
class CachedCase:
    """One case of a cache: its files, the shape of its image, and of its mask the pixels of each slice or the voxels of
    each class (`foreground`). `facts` is what the manifest, or another file of the layout, tells of it and a run needs;
    `cost` what scoring it takes, in slices or windows; `own`: this program made it, so its sources are known; `digest`:
    of their content; `drawn`: the file of its drawn voxels; `opened`: (stamp, digest) of each of its files when the
    cache was opened; `images`: digests of its image, or of each of its slices, which tell two cases that hold the same.
    Both are empty where digests are not known."""

    id: str
    image: Path
    mask: Path
    shape: tuple[int, ...]
    foreground: tuple[int, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cost: int = 1
    own: bool = False
    digest: str = ""
    drawn: Path | None = None
    opened: tuple[tuple[Stamp, str], ...] = ()
    images: tuple[str, ...] = ()

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image and mask, memory-mapped, read-only: (S, H, W, C) with (S, H, W, 1), or (C, D, H, W) with (1, D, H, W).
        Raises CacheError where the image has another shape than is known of it, the mask does not fit it, or the cache
        was made anew since it was opened."""
        image, mask = open_npy(self.image), open_npy(self.mask)
        self._require_same(self.image, self.mask)
        fits = mask.shape in ((*image.shape[:-1], 1), (1, *image.shape[1:]))
        if image.shape != self.shape or not fits:
            raise CacheError(
                f"{self.image.absolute()}: is {image.shape} with a mask of {mask.shape}; {self.shape} is expected.",
                AGAIN,
            )
        return image, mask

    def voxels(self) -> Mapping[str, Any]:
        """Drawn places (N, 3) of each class, by its number: the voxels that patches are centred on. Those of many cases
        take much memory, so they are read each time from their file, rows of (class, D, H, W). Raises CacheError where
        they do not lie in the case."""
        if self.drawn is None:
            found: Mapping[str, Any] = self.facts.get("voxels") or {}
            return found
        try:
            rows = np.load(files.require_regular(self.drawn), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CacheError(f"{self.drawn.absolute()}: cannot be read as npy ({str(error)[:100]}).", AGAIN) from error
        self._require_same(self.drawn, first=2)
        inside = rows.ndim == 2 and rows.shape[1] == 4 and rows.dtype.kind == "i"
        if not inside or not ((rows[:, 1:] >= 0) & (rows[:, 1:] < self.shape[1:])).all():
            raise CacheError(f"{self.drawn.absolute()}: its voxels do not lie in an image of {self.shape}.", AGAIN)
        return {str(number): rows[rows[:, 0] == number, 1:] for number in np.unique(rows[:, 0])}

    def _require_same(self, *paths: Path, first: int = 0) -> None:
        """Raise CacheError unless files that were just opened have the content that they had when the cache was: a run
        would go on with other data than it began with."""
        for path, (before, digest) in zip(paths, self.opened[first:], strict=False):
            now = _stamp(path)
            if now != before and not _has(path, now, digest):
                raise CacheError(
                    f"{path.absolute()}: is another one than when this command began: the cache was made anew.",
                    "Give each command that makes one a --cache of its own. Make this one as it was, then go on: a run"
                    " with --resume.",
                )


def opened(
    layout: Layout, folder: Path, case: str, shape: tuple[int, ...], facts: Mapping[str, Any], own: bool
) -> CachedCase:
    """The case of a record of the manifest, or of what the masks of another program's cache hold."""
    image, mask, *more = layout.paths(folder, case)
    kept = {name: facts[name] for name in layout.needed if name in facts}
    count, digest = tuple(facts["foreground"]), str(facts.get("digest", "")) if own else ""
    made = facts.get("arrays", {}) if own else {}
    digests = [made[kind]["digest"] for kind in KINDS if kind in made]
    stamps = tuple((_stamp(path), each) for path, each in zip((image, mask, *more), digests, strict=False))
    images = images_of(facts) if own else ()
    drawn = more[0] if more else None
    return CachedCase(case, image, mask, shape, count, kept, layout.cost(shape), own, digest, drawn, stamps, images)


def images_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """The digests of a case's image, or of each of its slices, from its record in the manifest."""
    image = facts.get("arrays", {}).get(KINDS[0], {})
    return tuple(facts.get("slice_digests", [image["digest"]] if "digest" in image else []))


def leaks(known: Mapping[str, Sequence[str]], train: Iterable[str], held: Iterable[str]) -> list[str]:
    """Training cases that hold the image, or slices, of a case that is held back, in words: a pair for each of these.
    `known`: the digests of each case's images, as `images_of` gives them; no array is read."""
    owners: dict[str, str] = {}
    for case in train:
        for digest in known.get(case, ()):
            owners.setdefault(digest, case)
    found: list[str] = []
    for case in held:
        shared = [owners[digest] for digest in known.get(case, ()) if digest in owners]
        if shared:
            one, count = shared[0], shared.count(shared[0])
            slices = f"share {host.counted(count, 'equal slice')}" if len(known[case]) > 1 else "hold the same image"
            found.append(f"{one} and {case} {slices}")
    return found


def _stamp(path: Path) -> Stamp:
    """That of a file which cannot be looked at is 0: reading it tells."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=2**16)
def _has(path: Path, stamp: Stamp, digest: str) -> bool:
    """Whether a file, as it is now, has this digest: it is read once."""
    return files.digest_files(path) == digest


def data_digest(cases: Sequence[CachedCase], split: Mapping[str, Sequence[str]]) -> str | None:
    """Sixteen hex digits of the data of a run: the sources of each case, and which cases validate.
    None where a case's sources are not known (another program's cache)."""
    known = {case.id: case.digest for case in cases}
    parts = {part: {case: known.get(case, "") for case in split[part]} for part in ("train", "validation")}
    whole = all(digest for part in parts.values() for digest in part.values())
    return files.fingerprint(parts) if whole else None
