"""One case of a cache: where its arrays lie and what is known of them before they are opened. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files, host
from unet.data.cache.layout import Layout
from unet.data.io.arrays import open_npy
from unet.errors import CacheError

AGAIN = "Make the cache again with --rebuild-cache."


@dataclasses.dataclass(frozen=True)
class CachedCase:
    """One case of a cache: its files, the shape of its image, and of its mask the pixels of each slice or the voxels of
    each class (`foreground`). `facts` is what the manifest, or another file of the layout, tells of it and a run needs;
    `cost` what scoring it takes, in slices or windows; `own`: this program made it, so its sources are known; `digest`:
    of their content; `drawn`: the file of its drawn voxels; `images`: digests of its image, or of each of its slices,
    which tell two cases that hold the same; empty where they are not known."""

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
    images: tuple[str, ...] = ()

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image and mask, memory-mapped, read-only: (S, H, W, C) with (S, H, W, 1), or (C, D, H, W) with (1, D, H, W).
        Raises CacheError where the image has another shape than is known of it, or the mask does not fit it."""
        image, mask = open_npy(self.image), open_npy(self.mask)
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
        inside = rows.ndim == 2 and rows.shape[1] == 4 and rows.dtype.kind == "i"
        if not inside or not ((rows[:, 1:] >= 0) & (rows[:, 1:] < self.shape[1:])).all():
            raise CacheError(f"{self.drawn.absolute()}: its voxels do not lie in an image of {self.shape}.", AGAIN)
        return {str(number): rows[rows[:, 0] == number, 1:] for number in np.unique(rows[:, 0])}


def opened(
    layout: Layout, folder: Path, case: str, shape: tuple[int, ...], facts: Mapping[str, Any], own: bool
) -> CachedCase:
    """The case of a record of the manifest, or of what the masks of another program's cache hold."""
    image, mask, *more = layout.paths(folder, case)
    kept = {name: facts[name] for name in layout.needed if name in facts}
    count, digest = tuple(facts["foreground"]), str(facts.get("digest", "")) if own else ""
    whole = [facts["arrays"]["image"]["digest"]] if "arrays" in facts else []
    images = tuple(facts.get("slice_digests", whole)) if own else ()
    drawn = more[0] if more else None
    return CachedCase(case, image, mask, shape, count, kept, layout.cost(shape), own, digest, drawn, images)


def leaks(cases: Sequence[CachedCase], split: Mapping[str, Sequence[str]]) -> list[str]:
    """Training cases that hold the image, or slices, of a validation case, in words: a pair for each validation case.
    Nothing is read but the digests that the cache's manifest has."""
    known = {case.id: case.images for case in cases}
    owners = {digest: case for case in reversed(split["train"]) for digest in known.get(case, ())}
    found: list[str] = []
    for case in split["validation"]:
        shared = [owners[digest] for digest in known.get(case, ()) if digest in owners]
        if shared:
            one, count = shared[0], shared.count(shared[0])
            slices = f"share {host.counted(count, 'equal slice')}" if len(known[case]) > 1 else "hold the same image"
            found.append(f"{one} and {case} {slices}")
    return found


def data_digest(cases: Sequence[CachedCase], split: Mapping[str, Sequence[str]]) -> str | None:
    """Sixteen hex digits of the data of a run: the sources of each case, and which cases validate.
    None where a case's sources are not known (another program's cache)."""
    known = {case.id: case.digest for case in cases}
    parts = {part: {case: known.get(case, "") for case in split[part]} for part in ("train", "validation")}
    whole = all(digest for part in parts.values() for digest in part.values())
    return files.fingerprint(parts) if whole else None
