"""The cache: an image and a mask of each case (see `layout`) and `manifest.json`, memory-mapped by whoever trains. No
torch.

A cache names what made it: settings, code version, sizes, times and digests of the sources, digests of its arrays (see
`integrity`). One process builds, the others wait; a build that was stopped continues; a changed source is made again.
A cache without manifest (another program's) is read after its shapes and types are checked (`foreign_cache`).
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from unet import files, host, locks
from unet.config.schema import shell_path
from unet.data.cache import integrity
from unet.data.cache.cached_case import CachedCase, opened
from unet.data.cache.foreign_cache import open_foreign
from unet.data.cache.layout import Layout, flags
from unet.data.cache.manifest import (
    MANIFEST,
    digest_of,
    keep_foreign,
    make_manifest,
    outdated,
    read_manifest,
    require_names,
    require_same,
    require_same_set,
    save,
    set_aside,
    stamp,
)
from unet.data.cases import Case
from unet.data.io.arrays import open_npy, write_npy
from unet.errors import CacheError, DataError, UnetError

__all__ = ["MANIFEST", "CachedCase", "build", "ensure", "make_manifest", "open_cache", "open_npy", "read_manifest"]
Prepare = Callable[[Case], dict[str, Any]]
Choose = Callable[[list[str]], Collection[str] | None]  # None: all of them


def build(
    folder: Path,
    layout: Layout,
    cases: Sequence[Case],
    prepare: Prepare,
    wanted: dict[str, Any],
    rebuild: bool = False,
    only: Collection[str] | None = None,
    renew: bool = False,
) -> dict[str, int]:
    """Make what is missing, changed or damaged. Returns counts: made, kept, removed.

    A case that cannot be read does not stop the others; all of them are named in one CacheError at the end, and what
    was made stays. `rebuild` makes everything anew, also over a cache of other settings. `only`: these cases of the
    set, the others stay as they are; the manifest tells that they are missing. `renew`: cases without digests, of an
    earlier version, are made again too.
    """
    files.make_folder(folder)
    with locks.hold(folder / ".lock", host.notice):
        files.remove_leftovers(folder)
        ours = _named(folder, layout)
        manifest = _start(folder, layout, wanted, rebuild)
        records = manifest["cases"]
        require_same_set(folder, records, cases)
        require_names(folder, layout, [case.id for case in cases])
        gone = sorted(set(records) - {case.id for case in cases}) if only is None else []
        for case_id in gone:
            del records[case_id]
            for path in layout.paths(folder, case_id):
                path.unlink(missing_ok=True)
        asked = [case for case in cases if only is None or case.id in only]
        stale = _stale(folder, layout, asked, records, renew)
        todo = [case for case in asked if case.id in stale]
        keep_foreign([path for case in todo for path in layout.paths(folder, case.id) if path not in ours])
        regrouped = _regroup(layout, [case for case in asked if case.id not in stale], records)
        if todo or gone or regrouped or not (folder / MANIFEST).exists():
            _make(folder, layout, todo, prepare, {**manifest, "expected": len(cases)}, {case.id for case in cases})
    return {"made": len(todo), "kept": len(asked) - len(todo), "removed": len(gone)}


def _named(folder: Path, layout: Layout) -> set[Path]:
    """The arrays that the manifest of a cache names, made or about to be; none where it is damaged."""
    try:
        found = read_manifest(folder, layout)
    except UnetError:
        found = None
    if found is None:
        return set()
    return {path for case in (*found["cases"], *found.get("missing", ())) for path in layout.paths(folder, case)}


def _start(folder: Path, layout: Layout, wanted: dict[str, Any], rebuild: bool) -> dict[str, Any]:
    """The manifest to go on from: the folder's own, or a new one."""
    if rebuild:
        set_aside(folder, layout)
        return wanted
    found = read_manifest(folder, layout)
    if found is None:
        if any(folder.glob("*.npy")):
            raise CacheError(
                f"{folder.absolute()}: holds arrays of another program (no {MANIFEST}).",
                "Name another --cache, or replace it with --rebuild-cache.",
            )
        return wanted
    require_same(folder, found, wanted)
    return found


def _regroup(layout: Layout, cases: Sequence[Case], records: dict[str, Any]) -> bool:
    """Note the patients of cases that are kept, for layouts that have them. Returns whether one has changed."""
    if "group?" not in layout.schema:
        return False
    changed = [case for case in cases if records[case.id].get("group") != case.group]
    for case in changed:
        records[case.id]["group"] = case.group
    return bool(changed)


def _stale(
    folder: Path, layout: Layout, cases: Sequence[Case], records: Mapping[str, Any], renew: bool
) -> Collection[str]:
    """The cases that are to be made."""
    known = {case.id: records[case.id] for case in cases if case.id in records}
    stale = set(outdated(folder, layout, records, cases))
    if renew:
        stale |= {case for case, record in known.items() if "arrays" not in record}
    return stale | set(integrity.damaged(folder, layout, {case: known[case] for case in known if case not in stale}))


def _make(
    folder: Path,
    layout: Layout,
    todo: Sequence[Case],
    prepare: Prepare,
    manifest: dict[str, Any],
    whole: Collection[str],
) -> None:
    faults: list[DataError] = []
    states: dict[str, Any] = {}
    remarks: list[list[str]] = []
    records, pause = manifest["cases"], 2.0
    work = functools.partial(_make_one, folder, prepare=prepare, layout=layout)
    saved = _save(folder, manifest, whole)  # first: arrays without a manifest would pass for another program's cache
    most = host.processes(len(todo), max((case.memory for case in todo), default=0))
    try:
        for case, done in host.process_map(work, todo, "preprocess", "case", most):
            try:
                records[case.id], state = done.result()
                states |= state
                remarks += records[case.id].get("remarks", [])
            except host.ProcessLost as lost:
                raise CacheError(
                    f"{folder.absolute()}: {lost.message} {len(records)} cases are made.",
                    "It may have been out of memory. Type the command again: it goes on from there.",
                ) from None
            except DataError as error:
                faults.append(error)
            if time.monotonic() - saved > pause:
                began, saved = time.monotonic(), _save(folder, manifest, whole)
                pause = max(2.0, 20 * (saved - began))  # a long manifest takes its time
    finally:
        _save(folder, manifest, whole)
        integrity.note(folder, states)
    host.notice_by_kind(remarks)
    if faults:
        more = f" (and {len(faults) - 2} more cases)" if len(faults) > 2 else ""
        raise CacheError(
            " ".join(error.message for error in faults[:2]) + more,
            f"{faults[0].hint} The other {len(records)} cases are kept: type the command again after that.",
        )


def _save(folder: Path, manifest: Mapping[str, Any], whole: Collection[str]) -> float:
    """Write the manifest, with the cases of the whole set that are not made. Returns when."""
    save(folder, {**manifest, "missing": sorted(set(whole) - set(manifest["cases"]))})
    return time.monotonic()


def _make_one(folder: Path, case: Case, prepare: Prepare, layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """In a worker: prepare one case, write its arrays; its record, and the states of its arrays."""
    sources = stamp(case)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(digest_of, case)
        made = prepare(case)
        content = job.result()
    arrays, states = {}, {}
    for kind, path in zip(integrity.KINDS, layout.paths(folder, case.id), strict=False):
        digest = write_npy(path, made[kind])
        states[path.name] = integrity.state_of(path, digest)
        arrays[kind] = {"bytes": states[path.name][1], "digest": digest}
    kept = {name: value for name, value in made.items() if name not in integrity.KINDS}
    plain: dict[str, Any] = {
        name: dataclasses.asdict(item) if dataclasses.is_dataclass(item) and not isinstance(item, type) else item
        for name, item in kept.items()
    }
    record = {"sources": sources, "digest": content, "shape": list(made["image"].shape), "arrays": arrays, **plain}
    return record, states


def open_cache(
    folder: Path,
    layout: Layout,
    wanted: Mapping[str, Any],
    only: Collection[str] | None = None,
    manifest: Mapping[str, Any] | None = None,
    again: str = "python -m unet preprocess",
    compare: bool = True,
) -> list[CachedCase]:
    """The cases of a cache (or `only` these), sorted by id. `manifest`: as read just now; `again`: the command that
    makes the cache; `compare` arrays with their digests where that was not done before (see `integrity`).

    Raises CacheError for other settings, cases that are not made, missing or damaged files.
    """
    manifest = manifest or read_manifest(folder, layout)
    if manifest is None:
        return [case for case in open_foreign(folder, layout, wanted["settings"]) if only is None or case.id in only]
    require_same(folder, manifest, wanted)
    records = dict(sorted(manifest["cases"].items()))
    if only is not None:
        records = {case: record for case, record in records.items() if case in only}
    made = len(records)
    expected = len(only) if only is not None else max(manifest.get("expected", 0), made + len(missing_of(manifest)))
    if made < expected:
        raise CacheError(f"{folder.absolute()}: {made} of {expected} cases are made.", f"Complete it: {again}")
    if not records:
        raise CacheError(f"{folder.absolute()}: the cache holds no cases.", f"Complete it: {again}")
    if compare:
        _require_whole(folder, layout, records, again)
    cases = [opened(layout, folder, case, tuple(record["shape"]), record, own=True) for case, record in records.items()]
    before = [case for case in cases if "arrays" not in records[case.id]]
    for case in before:
        case.arrays()
    if before:
        host.notice_once(
            f"{folder}: {len(before)} cases have no digests (an earlier version made them): damage to their arrays is"
            f" not noticed. To make them again with digests: {again}"
        )
    return cases


def _require_fit(
    folder: Path,
    layout: Layout,
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    raw: Path,
    look: Callable[[Path], None] | None,
) -> None:
    """Raise CacheError for a cache of other settings; DataError where the raw set is not even one of the task."""
    try:
        require_same(folder, found, wanted)
    except CacheError:
        if look and raw.exists() and files.real_path(raw) != files.real_path(folder):
            try:
                look(raw)
            except DataError as fault:
                raise DataError(f"{fault.message.rstrip('.')} (task {layout.task}).", fault.hint) from fault
        raise


def missing_of(manifest: Mapping[str, Any]) -> list[str]:
    """The cases of the whole set that a cache does not hold."""
    return [case for case in manifest.get("missing", ()) if case not in manifest["cases"]]


def _require_whole(folder: Path, layout: Layout, records: Mapping[str, Any], again: str) -> None:
    if wrong := integrity.damaged(folder, layout, records):
        case = next(iter(wrong))
        more = f"; {len(wrong)} of {len(records)} cases are damaged ({', '.join(list(wrong)[:3])})"
        raise CacheError(
            f"{folder.absolute()}: {wrong[case]}{more if len(wrong) > 1 else ''}.",
            f"Restore it, or make these cases again: {again} (--rebuild-cache: all of them).",
        )


def ensure(
    folder: Path,
    layout: Layout,
    index: Callable[[], list[Case]],
    raw: Path,
    prepare: Prepare,
    wanted: dict[str, Any],
    rebuild: bool = False,
    choose: Choose | None = None,
    task: str | None = None,
    look: Callable[[Path], None] | None = None,
) -> list[CachedCase]:
    """The cases of a cache that fits: built where there is none, completed where a build was stopped, checked against
    the raw set where that is at hand. Raises CacheError where sources have changed since.

    `choose(ids of the whole set)`: only these cases are prepared, compared and returned. `task`: as --task names it.
    `look`: raises DataError for a folder that is no raw set of the task, which is told before other settings of the
    cache are.
    """
    found = None if rebuild else read_manifest(folder, layout)
    again = (
        f"python -m unet preprocess --task {task or layout.task} --data {shell_path(raw)} --cache {shell_path(folder)}"
        f" {flags(wanted['settings'])}"
    )
    if found is None and not rebuild and folder.is_dir() and any(folder.glob("*.npy")):
        cases = open_foreign(folder, layout, wanted["settings"])
        taken = choose([case.id for case in cases]) if choose else None
        return [case for case in cases if taken is None or case.id in taken]
    if found is not None:
        _require_fit(folder, layout, found, wanted, raw, look)
        if not raw.exists():
            host.notice_once(f"{raw}: is not there; the cache {folder} is used without a comparison with its sources")
        if not raw.exists() or files.real_path(raw) == files.real_path(folder):
            chosen = choose(sorted([*found["cases"], *missing_of(found)])) if choose else None
            return open_cache(folder, layout, wanted, chosen, found, again)
    indexed = index()
    chosen = choose(sorted(case.id for case in indexed)) if choose else None
    if found is not None:
        asked = [case for case in indexed if chosen is None or case.id in chosen]
        require_same_set(folder, found["cases"], indexed)
        stale = set(outdated(folder, layout, found["cases"], asked))
        gone = set(found["cases"]) - {case.id for case in indexed} if chosen is None else set()
        if changed := sorted((stale & set(found["cases"])) | gone):
            raise CacheError(
                f"{folder.absolute()}: {len(changed)} cases changed since the cache was made"
                f" ({', '.join(changed[:3])}).",
                f"Type: {again}",
            )
        if not stale:
            return open_cache(folder, layout, wanted, chosen, found, again)
    only = None if rebuild else chosen  # a cache is never made anew with fewer cases
    part = f"{len(only)} of {len(indexed)} cases of " if only is not None and len(only) < len(indexed) else ""
    host.notice(f"{'Rebuilding' if rebuild else 'Building'} the cache {folder} from {part}{raw} ...")
    build(folder, layout, indexed, prepare, wanted, rebuild, only)
    return open_cache(folder, layout, wanted, chosen, again=again)
