"""What a cache says of itself, `manifest.json`: settings, code version, and of each case its sources, its arrays with
their digests, and what a run must know of it. Read with a schema; the names of cases stay inside the folder. No torch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import files, host
from unet.data.cache.layout import Layout
from unet.data.cases import Case
from unet.errors import CacheError, StorageError, UnetError

MANIFEST = "manifest.json"
LARGEST = 2**40  # values of an array: more is a damaged number
AGAIN = "Make the cache again with --rebuild-cache."
ARRAY = {"bytes": int, "digest": str}
FACTS: dict[str, Any] = {"foreground": [int]}
RECORD = {
    "shape": [int],
    "sources": ([str], {str: list}),
    "digest": str,
    "slice_digests?": [str],
    "arrays?": {"image": ARRAY, "mask": ARRAY, "voxels?": ARRAY},
}
SCHEMA = {
    "fingerprint": str,
    "settings": {str: object},
    "cases": {str: object},
    "task": str,
    "version": int,
    "expected?": int,
    "missing?": [str],
}


def read_manifest(folder: Path, layout: Layout) -> dict[str, Any] | None:
    """The manifest of a cache, None where there is none. Raises CacheError for one that is damaged, of another task, or
    names a case that would lie outside of the folder."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    try:
        found: dict[str, Any] = files.read_json(path, SCHEMA)
    except StorageError:
        raise
    except UnetError as error:
        raise CacheError(f"{error.message} This is not the manifest of a cache.", AGAIN) from error
    if found["task"] != layout.task:
        raise CacheError(
            f"{path.absolute()}: a cache of task {found['task'][:40]!r}, not of {layout.task}.",
            f"Name another --cache, or type --task {found['task'][:40]}.",
        )
    record = {**RECORD, **FACTS, **layout.schema}
    wrong = next(
        (words for name, item in found["cases"].items() if (words := files.schema_error(item, record, name))), ""
    )
    if wrong:
        raise CacheError(f"{path.absolute()}: {wrong}. This is not the manifest of a cache.", AGAIN)
    require_names(folder, layout, [*found["cases"], *found.get("missing", ())])
    for case, record in found["cases"].items():
        if not possible(layout, tuple(record["shape"]), record):
            raise CacheError(f"{path.absolute()}: the numbers of case {case} do not fit one another.", AGAIN)
    return found


def require_names(folder: Path, layout: Layout, ids: Sequence[str]) -> None:
    """Raise CacheError for a case whose arrays would lie outside of the folder, or be another case's."""
    owners: dict[str, str] = {}
    for case in ids:
        for path in layout.paths(folder, case):
            if owners.setdefault(path.name, case) != case:
                raise CacheError(
                    f"{folder.absolute()}: cases {owners[path.name]} and {case} would both write {path.name}.",
                    f"Rename one of them: a name must not end in {layout.mask.removesuffix('.npy')}.",
                )


def possible(layout: Layout, shape: tuple[int, ...], facts: Mapping[str, Any]) -> bool:
    """Whether what is told of a case can be: its shape, and what its mask holds."""
    if len(shape) != 4 or min(shape) < 1 or math.prod(shape) > LARGEST:
        return False
    counts = facts["foreground"]
    if layout.possible and not layout.possible(shape, facts):
        return False
    return len(counts) == layout.counted(shape) and min(counts, default=0) >= 0


def make_manifest(layout: Layout, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without cases: what a cache of these settings is known by."""
    key = {"task": layout.task, "version": layout.version, "settings": files.jsonable(dict(settings))}
    return {**key, "fingerprint": files.fingerprint(key), "cases": {}}


def save(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest: a line for each case, in the order of their names."""
    head = json.dumps(files.jsonable({name: value for name, value in manifest.items() if name != "cases"}), indent=1)
    lines = (
        f"  {json.dumps(case)}: {json.dumps(files.jsonable(record), allow_nan=False)}"
        for case, record in sorted(manifest["cases"].items())
    )
    files.write_text(folder / MANIFEST, head[:-2] + ',\n "cases": {\n' + ",\n".join(lines) + "\n }\n}\n")


def groups_kept(folder: Path, layout: Layout) -> dict[str, str]:
    """{case: its patient or group} as a cache has them, for a set that is not at hand; with a notice where an earlier
    version made the cache, which kept none."""
    found = read_manifest(folder, layout)
    records = found["cases"] if found else {}
    if any("group" not in record for record in records.values()):
        host.notice_once(
            f"{folder}: does not say which cases are of one patient, which may train and validate; preprocess notes it"
        )
    return {case: record["group"] for case, record in records.items() if record.get("group")}


def set_aside(folder: Path, layout: Layout) -> None:
    """Keep a file in the manifest's place that is none, or another task's, under another name, with a notice."""
    path = folder / MANIFEST
    with contextlib.suppress(UnetError):
        if read_manifest(folder, layout) is not None or not os.path.lexists(path):
            return
    other = files.set_aside(path, "")
    host.notice(f"{path}: is no manifest of a cache of {layout.task}; kept as {other.name}")


def keep_foreign(paths: Sequence[Path]) -> None:
    """Give arrays that lie where others are about to be written, and that no manifest names, another name."""
    kept = [files.set_aside(path, "replaced-") for path in paths if os.path.lexists(path)]
    if kept:
        host.notice(
            f"{kept[0].parent}: {host.counted(len(kept), 'array')} that no {MANIFEST} names ({kept[0].name}, ...) were"
            " set aside: delete them if you do not need them"
        )


def stamp(case: Case) -> list[str]:
    """Digests of a case's source files by name and bytes, and by name, bytes and time of change."""
    rows = [(path.name, *file_stamp(path)) for path in case.files]
    return [files.digest(repr(part).encode()) for part in ([row[:2] for row in rows], rows)]


def stamp_of_before(case: Case) -> dict[str, list[int]]:
    """name -> [bytes, time of change in ns] of a case's source files, as earlier versions noted them."""
    return {path.name: file_stamp(path) for path in case.files}


def file_stamp(path: Path) -> list[int]:
    """[bytes, time of change in ns] of a file. Raises StorageError."""
    try:
        return [(stat := path.stat()).st_size, stat.st_mtime_ns]
    except OSError as error:
        raise files.explain(error, path) from error


def digest_of(case: Case) -> str:
    """Thirty-two hex digits of a case's source files."""
    paths = case.files
    return _digest(paths, tuple(map(tuple, map(file_stamp, paths))))


@functools.lru_cache(maxsize=8)
def _digest(paths: tuple[Path, ...], stamps: tuple[tuple[int, ...], ...]) -> str:
    """As `digest_of`; the cases of a stack share its file, which is read once."""
    return files.digest_files(*paths)


def is_current(record: Mapping[str, Any], case: Case, folder: Path, layout: Layout) -> bool:
    """Whether a case's cached files are there and its sources are those that made them (time changed: by content)."""
    if not all(path.exists() for path in layout.paths(folder, case.id)):
        return False
    known = record["sources"]
    if isinstance(known, dict):
        before = stamp_of_before(case)
        whole = len(before) == len(case.files)  # one of two files of one name was not noted
        same = whole and known == before
        sizes = {name: item[0] for name, item in known.items()} == {name: item[0] for name, item in before.items()}
    else:
        now = stamp(case)
        same, sizes = known == now, known[:1] == now[:1]
    return same or (sizes and record["digest"] == digest_of(case))


def outdated(folder: Path, layout: Layout, records: Mapping[str, Any], cases: Sequence[Case]) -> list[str]:
    """Ids that are missing from the cache, or changed since."""
    return [
        case.id for case in cases if case.id not in records or not is_current(records[case.id], case, folder, layout)
    ]


def require_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise CacheError unless a cache was made with these settings and this version of the code."""
    if found["fingerprint"] == wanted["fingerprint"]:
        return
    both = {**found["settings"], **wanted["settings"]}
    words = [
        f"{name} {found['settings'].get(name)} (asked: {wanted['settings'].get(name)})"
        for name in both
        if found["settings"].get(name) != wanted["settings"].get(name)
    ]
    words += [
        f"{name} {found[name]} (now: {wanted[name]})" for name in ("task", "version") if found[name] != wanted[name]
    ]
    raise CacheError(
        f"{folder.absolute()}: the cache was made with {', '.join(words) or 'other settings'}.",
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
