"""Caches without manifest, in the layout of a task: read after shapes and types are checked; what a manifest would tell
is found in the masks, and kept in a file beside them where that is costly. No torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import files, host, locks
from unet.data.cache.cached_case import CachedCase, opened
from unet.data.cache.layout import Layout, Shape
from unet.data.cache.manifest import FACTS, MANIFEST, file_stamp, possible
from unet.data.io.arrays import open_npy
from unet.errors import CacheError, UnetError

SMALL = 2**26  # bytes of masks that are looked through before processes have started


def open_foreign(folder: Path, layout: Layout, settings: Mapping[str, Any]) -> list[CachedCase]:
    """A cache without manifest, in the layout of the task: shapes and types are checked, then masks are looked through
    for what the manifest would tell."""
    ids = layout.ids(folder)
    if not ids:
        raise CacheError(f"{folder.absolute()}: holds no cache.", "Give the raw set with --data, or another --cache.")
    shapes = {}
    for case in ids:
        image, mask = layout.paths(folder, case)[:2]
        if not mask.exists():
            raise CacheError(f"{image.absolute()}: has no {mask.name}.", "Restore the mask, or remove the case.")
        a, b = open_npy(image), open_npy(mask)
        layout.require(image, a, b, settings)
        shapes[case] = a.shape
    facts = foreign_facts(folder, layout, shapes)
    host.notice(f"{folder}: a cache without {MANIFEST}; its shapes and types are right, its origin is not known.")
    return [opened(layout, folder, case, shapes[case], facts[case], own=False) for case in ids]


def foreign_facts(folder: Path, layout: Layout, shapes: Mapping[str, Shape]) -> dict[str, dict[str, Any]]:
    """What the masks of a cache without manifest hold, by case; kept beside the cache where that is costly to find.

    One process finds it, the others wait; a mask that changed is looked through again. A folder that cannot be written
    is read in every run, with a notice.
    """
    work = functools.partial(_facts_of, layout=layout)
    masks = {case: layout.paths(folder, case)[1] for case in shapes}
    if layout.kept is None:
        return {case: work(path) for case, path in masks.items()}
    known = functools.partial(_kept, folder / layout.kept, masks, shapes, layout)
    found, missing = known()
    if not missing:
        return found
    if not os.access(folder, os.W_OK):
        host.notice(f"{folder}: cannot be written; {len(missing)} masks are looked through in every run")
        return found | _find(work, missing, masks)
    with locks.hold(folder / ".lock", host.notice):
        found, missing = known()
        if missing:
            found |= _find(work, missing, masks)
            files.write_json(folder / layout.kept, found)
    return found


def _kept(
    path: Path, masks: Mapping[str, Path], shapes: Mapping[str, Shape], layout: Layout
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(what is known of masks that are as they were, the cases of the others)."""
    try:
        known = files.read_json(path, {str: {**FACTS, **layout.schema, "mask": [int]}}) if path.exists() else {}
    except UnetError:  # cut short by a crash, or changed by another program: found again
        known = {}
    found = {
        case: known[case]
        for case, mask in masks.items()
        if case in known and known[case]["mask"] == file_stamp(mask) and possible(layout, shapes[case], known[case])
    }
    return found, [case for case in masks if case not in found]


def _find(work: Callable[[Path], dict[str, Any]], cases: Sequence[str], masks: Mapping[str, Path]) -> dict[str, Any]:
    ids = {masks[case]: case for case in cases}
    if sum(path.stat().st_size for path in ids) < SMALL:
        return {case: work(path) for path, case in ids.items()}
    most = host.processes(len(ids), 250_000_000 + 7 * max((path.stat().st_size for path in ids), default=0))
    return {ids[path]: done.result() for path, done in host.process_map(work, list(ids), "boxes", "case", most)}


def _facts_of(path: Path, layout: Layout) -> dict[str, Any]:
    """In a worker: what a mask holds. Raises CacheError for values that it must not hold."""
    try:
        return {"mask": file_stamp(path), **layout.facts(open_npy(path))}
    except CacheError as error:
        raise CacheError(f"{path.absolute()}: {error.message}", error.hint) from error
