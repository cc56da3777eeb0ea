"""The cache: an image and a mask of each case (see `layouts`) and `manifest.json`, memory-mapped by whoever trains. No
torch.

A cache names what made it: settings, code version, sizes, times and digests of the sources. One process builds, the
others wait; a build that was stopped continues; a changed source is made again. A cache without manifest (another
program's) is read after its shapes and types are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unet import files, host
from unet.config import spelt
from unet.data.layouts import OF_TASK, Layout, flags
from unet.data.volumes import Case, open_npy, write_npy
from unet.errors import CacheError, DataError, UnetError

MANIFEST = "manifest.json"
SMALL = 2**26  # bytes of masks that are looked through before processes have started
Prepare = Callable[[Case], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class CachedCase:
    """One case of a cache: its files, the shape of its image, and of its mask the pixels of each slice or the voxels of
    each class (`foreground`). `facts` is what the manifest, or `boxes.json`, tells of it; `windows` what scoring it
    takes where that is not its slices."""

    id: str
    image: Path
    mask: Path
    shape: tuple[int, ...]
    foreground: tuple[int, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    windows: int = 0

    @property
    def cost(self) -> int:
        return self.windows or self.shape[0]

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Image and mask, memory-mapped, read-only: (S, H, W, C) with (S, H, W, 1), or (1, D, H, W) both."""
        return open_npy(self.image), open_npy(self.mask)


def _opened(layout: Layout, folder: Path, case: str, shape: tuple[int, ...], facts: Mapping[str, Any]) -> CachedCase:
    image, mask = layout.paths(folder, case)
    return CachedCase(case, image, mask, shape, tuple(facts["foreground"]), facts, layout.windows(shape))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a cache, None where there is none. Raises CacheError for one that lacks its parts."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict) or not {"fingerprint", "settings", "cases", "task", "version"} <= set(found):
        raise CacheError(
            f"{path.absolute()}: not the manifest of a cache.", "Make the cache again with --rebuild-cache."
        )
    return found


def make_manifest(task: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without cases: what a cache of these settings is known by."""
    key = {"task": task, "version": OF_TASK[task].version, "settings": files.jsonable(dict(settings))}
    return {**key, "fingerprint": files.fingerprint(key), "cases": {}}


def stamp(case: Case) -> dict[str, list[int]]:
    """name -> [bytes, time of change in ns] of a case's source files."""
    return {path.name: _stamp(path) for path in (*case.images, *case.labels)}


def digest_of(case: Case) -> str:
    """Thirty-two hex digits of a case's source files."""
    return files.digest_files(*case.images, *case.labels)


def is_current(record: Mapping[str, Any], case: Case, folder: Path, layout: Layout) -> bool:
    """Whether a case's cached files are there and its sources are those that made them (time changed: by content)."""
    if not all(path.exists() for path in layout.paths(folder, case.id)):
        return False
    now = stamp(case)
    if record["sources"] == now:
        return True
    same_sizes = {name: item[0] for name, item in record["sources"].items()} == {
        name: item[0] for name, item in now.items()
    }
    return same_sizes and record["digest"] == digest_of(case)


def outdated(folder: Path, manifest: Mapping[str, Any], cases: Sequence[Case]) -> list[str]:
    """Ids that are missing from the cache, changed since, or no longer in the raw set."""
    records, layout = manifest["cases"], OF_TASK[manifest["task"]]
    changed = [
        case.id for case in cases if case.id not in records or not is_current(records[case.id], case, folder, layout)
    ]
    return changed + sorted(set(records) - {case.id for case in cases})


def require_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CacheError unless a cache was made with these settings and this version of the code."""
    if found["fingerprint"] == wanted["fingerprint"]:
        return
    both = {**found.get("settings", {}), **wanted["settings"]}
    words = [
        f"{name} {found['settings'].get(name)} (asked: {wanted['settings'].get(name)})"
        for name in both
        if found["settings"].get(name) != wanted["settings"].get(name)
    ]
    words += [
        f"{name} {found[name]} (now: {wanted[name]})" for name in ("task", "version") if found[name] != wanted[name]
    ]
    raise CacheError(
        f"{folder.absolute()}: the cache was made with {', '.join(words)}.",
        "Use its settings, name another --cache, or make it again with --rebuild-cache.",
    )


def require_same_set(folder: Path, records: Mapping[str, Any], cases: Sequence[Case]) -> None:
    """Raise CacheError where a cache and a raw set share less than half of the cache's cases: they are two sets."""
    shared = set(records) & {case.id for case in cases}
    if len(shared) < len(records) / 2:
        raise CacheError(
            f"{folder.absolute()}: holds another set: {len(records)} cases ({min(records)} ...), of which this raw set"
            f" has {len(shared)} (its first: {cases[0].id}).",
            "Name another --cache for this set (or replace the cache with --rebuild-cache).",
        )


def build(
    folder: Path, cases: Sequence[Case], prepare: Prepare, wanted: dict[str, Any], rebuild: bool = False
) -> dict[str, int]:
    """Make what is missing or changed. Returns counts: made, kept, removed.

    A case that cannot be read does not stop the others; all of them are named in one CacheError at the end, and what
    was made stays. `rebuild` makes everything anew, also over a cache of other settings.
    """
    files.make_folder(folder)
    with files.lock(folder / ".lock", host.notice):
        files.remove_leftovers(folder)
        manifest = _start(folder, wanted, rebuild)
        records, layout = manifest["cases"], OF_TASK[wanted["task"]]
        require_same_set(folder, records, cases)
        manifest["expected"] = len(cases)
        gone = sorted(set(records) - {case.id for case in cases})
        for case_id in gone:
            del records[case_id]
            for path in layout.paths(folder, case_id):
                path.unlink(missing_ok=True)
        todo = [
            case for case in cases if case.id not in records or not is_current(records[case.id], case, folder, layout)
        ]
        if todo or gone or not (folder / MANIFEST).exists():
            _make(folder, todo, prepare, manifest)
    return {"made": len(todo), "kept": len(cases) - len(todo), "removed": len(gone)}


def _start(folder: Path, wanted: dict[str, Any], rebuild: bool) -> dict[str, Any]:
    """The manifest to go on from: the folder's own, or a new one."""
    found = read_manifest(folder)
    if rebuild or found is None:
        if not rebuild and any(folder.glob("*.npy")):
            raise CacheError(
                f"{folder.absolute()}: holds arrays of another program (no {MANIFEST}).",
                "Name another --cache, or replace it with --rebuild-cache.",
            )
        return wanted
    require_same(folder, found, wanted)
    return found


def _make(folder: Path, todo: Sequence[Case], prepare: Prepare, manifest: dict[str, Any]) -> None:
    faults: list[DataError] = []
    saved = time.monotonic()
    work = functools.partial(_make_one, folder, prepare=prepare, task=manifest["task"])
    _save(folder, manifest)  # before the first array: arrays without a manifest would pass for another program's cache
    at_once = _at_once(len(todo), max((case.memory for case in todo), default=0))
    try:
        for case, done in host.spread(work, todo, "preprocess", "case", at_once):
            try:
                manifest["cases"][case.id] = done.result()
            except BrokenExecutor:
                raise CacheError(
                    f"{folder.absolute()}: a worker process was killed (out of memory?);"
                    f" {len(manifest['cases'])} cases are made.",
                    "Type the command again: it goes on from there.",
                ) from None
            except DataError as error:
                faults.append(error)
            if time.monotonic() - saved > 2:
                _save(folder, manifest)
                saved = time.monotonic()
    finally:
        _save(folder, manifest)
    if faults:
        more = f" (and {len(faults) - 2} more cases)" if len(faults) > 2 else ""
        raise CacheError(
            " ".join(error.message for error in faults[:2]) + more,
            f"{faults[0].hint} The other {len(manifest['cases'])} cases are kept: type the command again after that.",
        )


def _save(folder: Path, manifest: dict[str, Any]) -> None:
    files.write_json(folder / MANIFEST, {**manifest, "cases": dict(sorted(manifest["cases"].items()))})


def _at_once(count: int, largest: int) -> int:
    """How many processes of `count` cases the memory carries where one takes up to `largest` bytes (0: little); a
    notice where that is fewer than the cores."""
    most, available = max(1, min(host.cores(), count)), host.memory()[1]
    carried = min(most, max(1, available // largest)) if largest and available else most
    if carried < most or largest > available > 0:
        host.notice(
            f"{carried} of {most} processes at a time: a case takes up to {host.size(largest)}, {host.size(available)}"
            " of memory are free"
        )
    return carried


def _make_one(folder: Path, case: Case, prepare: Prepare, task: str) -> dict[str, Any]:
    """In a worker: prepare one case, write its arrays, return its record."""
    sources = stamp(case)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(digest_of, case)
        made = prepare(case)
        content = job.result()
    for path, array in zip(OF_TASK[task].paths(folder, case.id), (made["image"], made["mask"]), strict=True):
        write_npy(path, array)
    kept = {name: value for name, value in made.items() if name not in ("image", "mask")}
    plain: dict[str, Any] = {
        name: dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item
        for name, item in kept.items()
    }
    return {"sources": sources, "digest": content, "shape": list(made["image"].shape), **plain}


def open_cache(folder: Path, wanted: Mapping[str, Any]) -> list[CachedCase]:
    """The cases of a cache, sorted by id. Raises CacheError for other settings, missing or damaged files."""
    manifest = read_manifest(folder)
    if manifest is None:
        return open_foreign(folder, wanted)
    require_same(folder, manifest, wanted)
    made, expected = len(manifest["cases"]), manifest.get("expected", 0)
    if made < expected:
        raise CacheError(
            f"{folder.absolute()}: {made} of {expected} cases are made.", "Complete it: python -m unet preprocess"
        )
    layout, result = OF_TASK[manifest["task"]], []
    for case_id, record in sorted(manifest["cases"].items()):
        image, mask = layout.paths(folder, case_id)
        shape = tuple(record["shape"])
        for path, expected in ((image, shape), (mask, layout.mask_shape(shape))):
            if open_npy(path).shape != expected:
                raise CacheError(
                    f"{path.absolute()}: its shape is not the manifest's {expected}.",
                    "Make it again with --rebuild-cache.",
                )
        result.append(_opened(layout, folder, case_id, shape, record))
    return result


def open_foreign(folder: Path, wanted: Mapping[str, Any]) -> list[CachedCase]:
    """A cache without manifest, in the layout of the task: shapes and types are checked, then masks are looked through
    for what the manifest would tell."""
    layout = OF_TASK[wanted["task"]]
    ids = layout.ids(folder)
    if not ids:
        raise CacheError(f"{folder.absolute()}: holds no cache.", "Give the raw set with --data, or another --cache.")
    shapes = {}
    for case in ids:
        image, mask = layout.paths(folder, case)
        if not mask.exists():
            raise CacheError(f"{image.absolute()}: has no {mask.name}.", "Restore the mask, or remove the case.")
        a, b = open_npy(image), open_npy(mask)
        layout.require(image, a, b, wanted["settings"])
        shapes[case] = a.shape
    facts = foreign_facts(folder, wanted["task"], ids)
    host.notice(f"{folder}: a cache without {MANIFEST}; its shapes and types are right, its origin is not known.")
    return [_opened(layout, folder, case, shapes[case], facts[case]) for case in ids]


def foreign_facts(folder: Path, task: str, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the masks of a cache without manifest hold, by case; kept beside the cache where that is costly to find.

    One process finds it, the others wait; a mask that changed is looked through again. A folder that cannot be written
    is read in every run, with a notice.
    """
    layout = OF_TASK[task]
    work = functools.partial(_facts_of, task=task)
    masks = {case: layout.paths(folder, case)[1] for case in ids}
    if layout.kept is None:
        return {case: work(path) for case, path in masks.items()}
    if not os.access(folder, os.W_OK):
        found, missing = _kept(folder / layout.kept, masks)
        if missing:
            host.notice(f"{folder}: cannot be written; {len(missing)} masks are looked through in every run")
        return found | _find(work, missing, masks)
    found, missing = _kept(folder / layout.kept, masks)
    if not missing:
        return found
    with files.lock(folder / ".lock", host.notice):
        found, missing = _kept(folder / layout.kept, masks)
        if missing:
            found |= _find(work, missing, masks)
            files.write_json(folder / layout.kept, found)
    return found


def _kept(path: Path, masks: Mapping[str, Path]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(what is known of masks that are as they were, the cases of the others)."""
    try:
        known = files.read_json(path) if path.exists() else {}
    except UnetError:  # cut short by a crash of another program: found again
        known = {}
    found = {case: known[case] for case, mask in masks.items() if known.get(case, {}).get("mask") == _stamp(mask)}
    return found, [case for case in masks if case not in found]


def _find(work: Callable[[Path], dict[str, Any]], cases: Sequence[str], masks: Mapping[str, Path]) -> dict[str, Any]:
    ids = {masks[case]: case for case in cases}
    if sum(path.stat().st_size for path in ids) < SMALL:
        return {case: work(path) for path, case in ids.items()}
    at_once = _at_once(len(ids), 250_000_000 + 7 * max((path.stat().st_size for path in ids), default=0))
    return {ids[path]: done.result() for path, done in host.spread(work, list(ids), "boxes", "case", at_once)}


def _facts_of(path: Path, task: str) -> dict[str, Any]:
    """In a worker: what a mask holds. Raises CacheError for values that it must not hold."""
    try:
        return {"mask": _stamp(path), **OF_TASK[task].facts(open_npy(path))}
    except CacheError as error:
        raise CacheError(f"{path.absolute()}: {error.message}", error.hint) from error


def _stamp(path: Path) -> list[int]:
    return [(stat := path.stat()).st_size, stat.st_mtime_ns]


def ensure(
    folder: Path,
    index: Callable[[], list[Case]],
    raw: Path,
    prepare: Prepare,
    wanted: dict[str, Any],
    rebuild: bool = False,
) -> list[CachedCase]:
    """The cases of a cache that fits: built where there is none, completed where a build was stopped, checked against
    the raw set where that is at hand. Raises CacheError where sources have changed since."""
    found = None if rebuild else read_manifest(folder)
    if found is None and not rebuild and folder.is_dir() and any(folder.glob("*.npy")):
        return open_foreign(folder, wanted)
    if found is not None:
        require_same(folder, found, wanted)
        if not raw.is_dir():
            return open_cache(folder, wanted)
        cases = index()
        require_same_set(folder, found["cases"], cases)
        stale = outdated(folder, found, cases)
        changed = [case_id for case_id in stale if case_id in found["cases"]]
        if changed:
            raise CacheError(
                f"{folder.absolute()}: {len(changed)} cases changed since the cache was made"
                f" ({', '.join(changed[:3])}).",
                f"Type: python -m unet preprocess --task {wanted['task']} --data {spelt(raw)} --cache {spelt(folder)}"
                f" {flags(wanted['settings'])}",
            )
        if not stale:
            return open_cache(folder, wanted)
    host.notice(f"{'Rebuilding' if rebuild else 'Building'} the cache {folder} from {raw} ...")
    build(folder, index(), prepare, wanted, rebuild)
    return open_cache(folder, wanted)
