"""What is wrong with a user's set: every case read, each fault with its file, leaks between training and validation.
No torch."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet import files, host
from unet.data import checks
from unet.data.cache import cache, integrity, manifest
from unet.data.io import volumes
from unet.data.io.nifti_header import times
from unet.errors import DataError, UnetError
from unet.tasks.folder import dataset, fingerprint, sets
from unet.tasks.folder.labels import IGNORED, from_values, require_distinct
from unet.tasks.folder.settings import Settings

if TYPE_CHECKING:
    from unet.tasks.folder.task import Folder


def raw(path: Path, task: Folder) -> checks.Report:
    """Every case of a set, its files read whole."""
    report = checks.Report()
    try:
        if path.is_dir() and volumes.kind_of(path) == volumes.DICOM and not sets.has_layout(path):
            return series(path)
        found, faults = sets.survey(path)
    except UnetError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    report.errors += faults
    work = functools.partial(look, settings=task.settings, ignore=found.names.ignore)
    items = [(name, (name, case)) for name, case in found.cases.items()]
    seen = checks.each_case(work, items, report, fingerprint.memory_to_look(found))
    report.errors += [fault for case in seen for fault in case["faults"]]
    report.warnings += list(dict.fromkeys(note for case in seen for note in case["notes"]))
    whole = len(found.cases) > 1 and not faults  # of a set that lacks files the split is not known
    held = report.validation_of(lambda ids: task.split(ids), sorted(found.cases)) if whole else set()
    twins: dict[str, str] = {}
    for case in seen:
        if not case["digest"]:
            continue
        other = twins.setdefault(case["digest"], case["name"])
        if other != case["name"]:
            report.equal(f"{other} and {case['name']} hold the same image", (other in held) != (case["name"] in held))
    values: collections.Counter[int] = collections.Counter(value for case in seen for value in case["values"])
    report.errors += mismatches(found, task.settings, seen)
    for value, count in sorted(values.items()):
        if count == 1 < len(seen):
            report.warnings.append(f"value {value} of the masks is in one case only: trained on or scored, not both")
    for value in set(found.names.classes.values()) - set(values):
        report.warnings.append(f"no mask holds {value}, which dataset.json names")
    empty = [case["name"] for case in seen if list(case["values"]) == [0]]
    if 0 < len(empty) < len(seen):
        report.warnings.append(f"{host.counted(len(empty), 'mask')} without any class ({', '.join(empty[:3])})")
    sizes = [case["size"] for case in seen if case["size"]]
    report.facts = {
        "cases": len(found.cases),
        "channels": ", ".join(found.names.channels) or (seen[0]["channels"] if seen else "-"),
        "values of the masks": ", ".join(f"{value} in {count}" for value, count in sorted(values.items())) or "-",
        "smallest, largest": f"{times(min(sizes))}, {times(max(sizes))}" if sizes else "-",
        "patients": len(set(task.groups().values())) or "not named",
    }
    return report


def mismatches(found: sets.Set, settings: Settings, seen: Sequence[Mapping[str, Any]]) -> list[str]:
    """What keeps the cases from being one set: channels, flat images beside volumes, values that are no classes."""
    faults = []
    read = [case["looked"] for case in seen if case["looked"]]
    counts = collections.Counter[int]()
    for case in seen:
        counts.update(case["values"])
    names = found.names
    try:
        if settings.label_values:
            dataset.require_fit(found, settings)
        if read:
            fingerprint.require_alike(found.root, fingerprint.Fingerprint(tuple(read)))
    except UnetError as error:
        faults.append(f"{error.message} {error.hint}")
    try:
        if counts and not settings.label_values:
            if not names.classes:
                require_distinct(counts, found.root)
            from_values(list(counts), names.classes, names.ignore, found.root)
    except UnetError as error:
        faults.append(f"{error.message} {error.hint}")
    return faults


def series(path: Path) -> checks.Report:
    """A DICOM folder without masks: its series, each read whole."""
    report = checks.Report()
    lines, report.errors = volumes.dicom.check(path)
    report.facts = {f"series {number}": words for number, _, words in (line.partition(": ") for line in lines)}
    return report


def look(item: tuple[str, tuple[str, sets.Found]], settings: Settings, ignore: int | None) -> dict[str, Any]:
    """One case: its faults, what was odd, its values, a digest of its image."""
    name, case = item[1]
    result: dict[str, Any] = {
        "name": name,
        "faults": [],
        "notes": [],
        "values": {},
        "digest": "",
        "size": (),
        "channels": 0,
        "looked": None,
    }
    try:
        heads = dataset.heads_of(name, case.images, settings)
        first, channels = heads[0], sum(head.channels for head in heads)
        result |= {"size": first.stored, "channels": channels}
        codes = "".join(first.codes or ())
        result["looked"] = fingerprint.Looked(name, first.stored, first.spacing, codes, channels, first.format, {})
        image = volumes.read_channels(heads)
        result["digest"] = files.digest(image.tobytes())
        if image.min() == image.max():
            result["faults"].append(f"{case.images[0]}: every value is {image.min():g}")
        dataset.require_mask(name, heads[0], case.mask, settings)
        assert case.mask is not None
        mask = volumes.read_head(case.mask, heads[0])
        labels = volumes.read_labels(mask)
        values, counts = (each.tolist() for each in np.unique(labels, return_counts=True))
        result["values"] = {value: n for value, n in zip(values, counts, strict=True) if value != ignore}
        if settings.label_values:
            dataset.labels_of(settings).classes_of(labels, case.mask)
        result["notes"] = [*(note for head in heads for note in head.notes), *mask.notes]
    except UnetError as error:
        result["faults"].append(f"{error.message} {error.hint}" if isinstance(error, DataError) else error.message)
    return result


def cached(path: Path) -> checks.Report:
    """A cache: shapes, types, digests, finite values, classes and counts as its manifest has them, equal images."""
    report = checks.Report()
    try:
        found = manifest.read_manifest(path, dataset.LAYOUT)
        if found is None:
            raise DataError(
                f"{path.absolute()}: is no cache: it has no {manifest.MANIFEST}.", "Make one with preprocess."
            )
        damaged = integrity.report(path, dataset.LAYOUT, found, report.errors, report.warnings)
        cases = cache.open_cache(path, dataset.LAYOUT, found, manifest=found, compare=False)
    except UnetError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    twins: dict[str, str] = {}
    classes = len(found["settings"].get("label_values", ()))
    for case in host.progress(cases, name="check", unit="case"):
        try:
            image, mask = (np.asarray(array) for array in case.arrays())
        except UnetError as error:
            report.errors += [] if case.id in damaged else [error.message]
            continue
        if not np.isfinite(image).all():
            report.errors.append(f"{case.image}: holds values that are not finite")
        counts = {str(int(n)): int(count) for n, count in zip(*np.unique(mask, return_counts=True), strict=True)}
        if any(classes <= int(number) < IGNORED for number in counts):
            report.errors.append(f"{case.mask}: holds class {max(map(int, counts))}; there are {classes}")
        elif {n: count for n, count in counts.items() if n not in ("0", str(IGNORED))} != dict(case.facts["counts"]):
            report.errors.append(f"{case.mask}: its classes are not those of the manifest; use --rebuild-cache")
        other = twins.setdefault(files.digest(np.ascontiguousarray(image).tobytes()), case.id)
        if other != case.id:
            report.errors.append(f"duplicate: {other} and {case.id} hold the same image")
    report.facts = {
        "cases": len(cases),
        "channels": ", ".join(found["settings"].get("channels", ())),
        "spacing": times(map(float, found["settings"].get("spacing", ()))),
        "manifest": found["fingerprint"],
    }
    return report
