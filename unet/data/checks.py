"""What can be wrong with a data set: found before a run, named with its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet import files, host
from unet.data.cache import cache, integrity
from unet.data.cache.layout import Layout
from unet.errors import DataError, UnetError

SHOWN = 10
NAMED = 5  # of items that are alike
SplitOf = Callable[[list[str]], Mapping[str, Sequence[str]]]


@dataclasses.dataclass
class Report:
    """Errors (the set cannot or must not be used), warnings (somebody should know), and numbers of a set."""

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def validation_of(self, split_of: SplitOf, ids: list[str]) -> set[str]:
        """The validation cases of the split of `ids`; a split that cannot be made is an error of the set."""
        try:
            return set(split_of(ids)["validation"])
        except DataError as error:
            self.errors.append(f"{error.message} {error.hint}")
            return set()

    def equal(self, words: str, leaks: bool) -> None:
        """Equal images: a warning, or an error if one trains and the other validates."""
        if leaks:
            self.errors.append(f"leakage: {words}; one trains, the other validates")
        else:
            self.warnings.append(f"duplicate: {words}")

    def text(self, title: str) -> str:
        lines = [title, *(f"  {name:<22} {value}" for name, value in self.facts.items())]
        for word, items in (("error", self.errors), ("warning", self.warnings)):
            shown = _grouped(items)
            lines += [f"  {word}: {item}" for item, _ in shown[:SHOWN]]
            left = sum(count for _, count in shown[SHOWN:])
            lines += [f"  ... and {host.counted(left, f'more {word}')}"] if left else []
        counts = f"{host.counted(len(self.errors), 'error')}, {host.counted(len(self.warnings), 'warning')}"
        return "\n".join([*lines, f"  {counts}"])


def _grouped(items: Sequence[str]) -> list[tuple[str, int]]:
    """(the first of the items that differ in the file or case before the colon alone, with the names of the next; how
    many there are)."""
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item.partition(": ")[2] or item, []).append(item)
    shown = []
    for found in groups.values():
        names = [item.partition(": ")[0].rpartition("/")[2] for item in found[1:NAMED]]
        dots = " ..." if len(found) > NAMED else ""
        more = f" (and {len(found) - 1} more like it: {', '.join(names)}{dots})" if names else ""
        shown.append((found[0] + more, len(found)))
    return shown


def cached(folder: Path, layout: Layout, wanted: Mapping[str, Any], foreground: str) -> Report:
    """A cache: shapes, types, digests, finite values, masks of 0 and 1, counts against the manifest, equal volumes."""
    report = Report()
    try:
        manifest = cache.read_manifest(folder, layout)
    except UnetError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    own = {**wanted, "settings": manifest["settings"], "fingerprint": manifest["fingerprint"]} if manifest else wanted
    if manifest is None:
        report.warnings.append(f"no {cache.MANIFEST}: made by another program; what made it is not known")
        images = sorted(path for path in folder.glob("*.npy") if not path.stem.endswith("_mask"))
        if images and "layers" not in wanted["settings"]:
            size = cache.open_npy(images[0]).shape[1]
            own = {**wanted, "settings": {**wanted["settings"], "image_size": size}}
    try:
        cases = cache.open_cache(folder, layout, own, compare=False)
    except UnetError as error:
        report.errors.append(error.message)
        return report
    damaged = integrity.report(folder, layout, manifest, report.errors, report.warnings) if manifest else {}
    seen: dict[str, str] = {}
    labelled = voxels = 0
    for case in host.progress(cases, name="check", unit="case"):
        try:
            image, mask = (np.asarray(array) for array in case.arrays())
        except UnetError as error:
            report.errors += [] if case.id in damaged else [error.message]
            continue
        if not np.isfinite(image).all():
            report.errors.append(f"{case.image}: holds values that are not finite")
        if not set(np.unique(mask).tolist()) <= {0, 1}:
            report.errors.append(f"{case.mask}: a mask is 0 and 1")
        elif tuple(int(count) for count in mask.sum((1, 2, 3))) != case.foreground:
            report.errors.append(
                f"{case.mask}: {foreground} pixels differ from the manifest; make the cache again with --rebuild-cache"
            )
        twin = seen.setdefault(files.digest(np.ascontiguousarray(image).tobytes()), case.id)
        if twin != case.id:
            report.errors.append(f"duplicate: {twin} and {case.id} hold the same volume")
        labelled += int(mask.sum())
        voxels += mask.size
    report.facts = {
        "cases": len(cases),
        "slices": sum(case.shape[0] for case in cases),
        "image size": cases[0].shape[1] if cases else "-",
        f"{foreground} pixels": f"{labelled / max(1, voxels):.2%}",
        "manifest": own.get("fingerprint") if manifest else "none",
    }
    return report


def each_case(
    work: Callable[[Any], Any], items: Sequence[tuple[str, Any]], report: Report, largest: int = 0
) -> list[Any]:
    """`work` on each item in the process pool; results in the order of the items, errors into the report. `largest`:
    bytes of memory that an item takes at most (0: little)."""
    done: dict[str, Any] = {}
    for (name, _), future in host.process_map(work, items, "check", "case", host.processes(len(items), largest)):
        try:
            done[name] = future.result()
        except host.ProcessLost:
            report.errors.append(f"{name}: not checked: a process was killed (out of memory?)")
        except UnetError as error:
            report.errors.append(error.message)
    return [done[name] for name, _ in items if name in done]
