"""The cache: `<case>.npy`, `<case>_mask.npy` and `manifest.json`, memory-mapped by whoever trains. No torch.

A cache names what made it: settings, code version, sizes, times and digests of the sources. One process builds, the
others wait; a build that was stopped continues; a changed source is made again. A cache without manifest (another
program's) is read after its shapes and types are checked.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files, host
from unet.config import spelt
from unet.data.preprocess import VERSION
from unet.data.volumes import Case, open_npy, write_npy
from unet.errors import CacheError, DataError

MANIFEST = "manifest.json"
Prepare = Callable[[Case], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class CachedCase:
    """One case of a cache: its files, slices, and mask pixels of each slice (`foreground`)."""

    id: str
    image: Path
    mask: Path
    shape: tuple[int, ...]
    foreground: tuple[int, ...]

    @property
    def cost(self) -> int:
        return self.shape[0]

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """(S, H, W, C) image and (S, H, W, 1) mask, memory-mapped, read-only."""
        return open_npy(self.image), open_npy(self.mask)


def paths_of(folder: Path, case: str) -> tuple[Path, Path]:
    return folder / f"{case}.npy", folder / f"{case}_mask.npy"


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
    key = {"task": task, "version": VERSION, "settings": dict(settings)}
    return {**key, "fingerprint": files.fingerprint(key), "cases": {}}


def stamp(case: Case) -> dict[str, list[int]]:
    """name -> [bytes, time of change in ns] of a case's source files."""
    return {path.name: [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in (*case.images, *case.labels)}


def digest_of(case: Case) -> str:
    return files.digest(*(path.read_bytes() for path in (*case.images, *case.labels)))


def is_current(record: Mapping[str, Any], case: Case, folder: Path) -> bool:
    """Whether a case's cached files are there and its sources are those that made them (time changed: by content)."""
    if not all(path.exists() for path in paths_of(folder, case.id)):
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
    records = manifest["cases"]
    changed = [case.id for case in cases if case.id not in records or not is_current(records[case.id], case, folder)]
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
        records = manifest["cases"]
        require_same_set(folder, records, cases)
        manifest["expected"] = len(cases)
        gone = sorted(set(records) - {case.id for case in cases})
        for case_id in gone:
            del records[case_id]
            for path in paths_of(folder, case_id):
                path.unlink(missing_ok=True)
        todo = [case for case in cases if case.id not in records or not is_current(records[case.id], case, folder)]
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
    work = functools.partial(_make_one, folder, prepare=prepare)
    _save(folder, manifest)  # before the first array: arrays without a manifest would pass for another program's cache
    try:
        for case, done in host.spread(work, todo, "preprocess", "case"):
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


def _make_one(folder: Path, case: Case, prepare: Prepare) -> dict[str, Any]:
    """In a worker: prepare one case, write its arrays, return its record."""
    sources = stamp(case)
    content = digest_of(case)
    made = prepare(case)
    image, mask = paths_of(folder, case.id)
    write_npy(image, made["image"])
    write_npy(mask, made["mask"])
    return {
        "sources": sources,
        "digest": content,
        "shape": list(made["image"].shape),
        "foreground": made["foreground"],
        "geometry": made["geometry"].plain(),
        "intensity": dataclasses.asdict(made["intensity"]),
    }


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
    result = []
    for case_id, record in sorted(manifest["cases"].items()):
        image, mask = paths_of(folder, case_id)
        shape = tuple(record["shape"])
        for path, expected in ((image, shape), (mask, (*shape[:3], 1))):
            if open_npy(path).shape != expected:
                raise CacheError(
                    f"{path.absolute()}: its shape is not the manifest's {expected}.",
                    "Make it again with --rebuild-cache.",
                )
        result.append(CachedCase(case_id, image, mask, shape, tuple(record["foreground"])))
    return result


def open_foreign(folder: Path, wanted: Mapping[str, Any]) -> list[CachedCase]:
    """A cache without manifest: flat `<case>.npy` (S, H, W, C) and `<case>_mask.npy` (S, H, W, 1) in {0, 1}, any
    float type.
    """
    size = wanted["settings"]["image_size"]
    images = sorted(path for path in folder.glob("*.npy") if not path.stem.endswith("_mask"))
    if not images:
        raise CacheError(f"{folder.absolute()}: holds no cache.", "Give the raw set with --data, or another --cache.")
    result = []
    for image in images:
        case = image.stem
        mask = paths_of(folder, case)[1]
        if not mask.exists():
            raise CacheError(f"{image.absolute()}: has no {mask.name}.", "Restore the mask, or remove the case.")
        a, b = open_npy(image), open_npy(mask)
        if a.ndim != 4 or b.shape != (*a.shape[:3], 1) or a.dtype.kind != "f":
            raise CacheError(
                f"{image.absolute()}: {a.shape} {a.dtype} with mask {b.shape} is not (slices, H, W, channels) floats"
                " with (slices, H, W, 1).",
                "Give a cache of this task, or build one from the raw set.",
            )
        if a.shape[1:3] != (size, size):
            raise CacheError(
                f"{folder.absolute()}: the cache holds slices of {a.shape[1]} x {a.shape[2]}, asked: --image-size"
                f" {size}.",
                f"Type --image-size {a.shape[1]}, or name another --cache.",
            )
        values = np.unique(b)
        if not set(values.tolist()) <= {0, 1}:
            raise CacheError(
                f"{mask.absolute()}: holds values {values[:4].tolist()}; a mask is 0 and 1.", "Build the cache again."
            )
        result.append(CachedCase(case, image, mask, a.shape, tuple(int(item) for item in np.asarray(b).sum((1, 2, 3)))))
    host.notice(f"{folder}: a cache without {MANIFEST}; its shapes and types are right, its origin is not known.")
    return result


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
                f"Type: python -m unet preprocess --data {spelt(raw)} --cache {spelt(folder)} --image-size"
                f" {wanted['settings']['image_size']}",
            )
        if not stale:
            return open_cache(folder, wanted)
    host.notice(f"{'Rebuilding' if rebuild else 'Building'} the cache {folder} from {raw} ...")
    build(folder, index(), prepare, wanted, rebuild)
    return open_cache(folder, wanted)
