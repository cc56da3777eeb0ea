"""What can be wrong with a set of CT volumes, raw or cached: found before a run, named with its file. No torch.

Every volume is read once, a block at a time, in the process pool.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet import files, windows
from unet.data.cache import cache, integrity
from unet.data.checks import Report, SplitOf, each_case
from unet.data.checksums import SHOWN, some, verify
from unet.data.io import nifti
from unet.data.io.arrays import open_npy
from unet.data.io.nifti_header import times
from unet.data.preprocessing import alignment, grids
from unet.data.preprocessing.intensity import AIR, CtWindow
from unet.data.splits import number_of
from unet.errors import DataError, UnetError
from unet.tasks.kits19 import dataset

LIST = "kits.json"
NAMES = ("kidney", "tumour")
MOST = 0.5  # share of the voxels of a set above which a class is suspected to be inverted
RANGE = (-2.3408, 2.6399)  # of clipped, scaled Hounsfield units
BLOCK = 2**22  # voxels of a cached volume looked at a time


@dataclasses.dataclass
class Seen:
    """One case as it was found: what is wrong, its grid (D, H, W), its content."""

    id: str
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    codes: tuple[str, ...] | None = None
    label_type: str = ""
    counts: tuple[int, int] = (0, 0)
    digest: str = ""


def raw(path: Path, split_of: SplitOf, checksums: Path | None = None, label_geometry: str = alignment.HEADER) -> Report:
    """A raw set: files, grids, values, labels, equal images (leakage of the split that `split_of(ids)` makes), what
    kits.json in the folder or beside it tells of the cases, MD5 sums from a list (see `checksums`)."""
    report = Report()
    found = dataset.find(path)
    bare = [name for name, item in found.items() if not item.labels and (number_of(name) or 0) >= dataset.UNLABELLED]
    try:
        dataset.require_one_channel(path, {name: item.images for name, item in found.items()})
    except DataError as error:
        report.errors.append(error.message)
    look = functools.partial(_look, geometry=label_geometry)
    seen = each_case(look, [item for item in found.items() if item[0] not in bare], report)
    usual = Counter(item.codes for item in seen if item.shape).most_common(1)
    for item in seen:
        report.errors += item.errors
        report.warnings += item.warnings
        if item.shape and item.codes != usual[0][0]:
            report.warnings.append(
                f"{item.id}: axis codes {_codes(item.codes)}, most of the set has {_codes(usual[0][0])}"
            )
    empty = sorted(item.name for item in path.glob("case_*") if item.is_dir() and item.name not in found)
    if empty:
        report.errors.append(f"{len(empty)} case folders hold no NIfTI file: {some(empty)}")
    _equal(seen, split_of, report)
    types = (item.label_type for item in seen if item.label_type)
    report.facts = _facts(seen, report) | {
        "spacing": " x ".join(_median(item.spacing for item in seen if item.spacing)) + " mm (median)",
        "label types": ", ".join(f"{name} {n}" for name, n in sorted(Counter(types).items())),
    }
    if bare:
        report.facts["without labels"] = f"{len(bare)} ({some(bare)}); left out"
    if (path / "phantom.json").exists():
        report.facts["made"] = "yes (phantom.json): no patients; never publish scores on them"
    for listed in (path / LIST, path.parent / LIST):
        if listed.exists():
            _against_list(listed, seen, bare, report)
            break
    if checksums:
        own = [
            item.relative_to(path).as_posix() for item in path.rglob("*") if nifti.is_nifti(item) or item.name == LIST
        ]
        verify(path, checksums, own, report)
    return report


def cached(
    folder: Path, checksums: Path | None = None, patch: Sequence[int] = (128, 128, 128), overlap: float = 0.5
) -> Report:
    """A cache: pairs, shapes, types, finite values, labels, counts against the manifest, equal volumes, MD5 sums; its
    cost in windows of `patch`."""
    report = Report()
    try:
        manifest = cache.read_manifest(folder, dataset.LAYOUT)
    except UnetError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    records = manifest["cases"] if manifest else {}
    if manifest is None:
        report.warnings.append(f"no {cache.MANIFEST}: made by another program; what made it is not known")
    names = sorted(
        {
            path.name[:-6]
            for path in folder.glob("*.npy")
            if path.name[-6:] in (dataset.LAYOUT.image, dataset.LAYOUT.mask)
        }
    )
    gone, new = sorted(set(records) - set(names)), sorted(set(names) - set(records))
    if gone:
        report.errors.append(f"{len(gone)} cases of the manifest have no files: {some(gone)}")
    if new and manifest:
        report.warnings.append(f"{len(new)} cases are not in the manifest: {some(new)}")
    if manifest and len(records) < manifest.get("expected", 0):
        report.warnings.append(f"{len(records)} of {manifest['expected']} cases are made; complete it with preprocess")
    if not names:
        report.errors.append(f"{folder.absolute()}: holds no *{dataset.LAYOUT.image} with *{dataset.LAYOUT.mask}")
    seen = each_case(functools.partial(_look_cached, folder), [(name, records.get(name)) for name in names], report)
    owners: dict[str, str] = {}
    if manifest:
        integrity.report(folder, dataset.LAYOUT, manifest, report.errors, report.warnings)
    for item in seen:
        report.errors += item.errors
        report.warnings += item.warnings
        twin = owners.setdefault(item.digest, item.id) if item.digest else item.id
        if twin != item.id:
            report.errors.append(f"duplicate: {twin} and {item.id} hold the same volume")
    report.facts = _facts(seen, report) | {
        "windows": f"{sum(windows.count(item.shape, patch, overlap) for item in seen if item.shape)} of"
        f" {' x '.join(map(str, patch))} for all cases",
        "manifest": manifest["fingerprint"] if manifest else "none",
    }
    if checksums:
        verify(folder, checksums, [path.name for path in folder.glob("*.npy")], report)
    return report


def _facts(seen: Sequence[Seen], report: Report) -> dict[str, Any]:
    whole = [item for item in seen if item.shape]
    voxels = sum(float(np.prod(item.shape)) for item in whole)
    shares = {
        name: f"{sum(item.counts[number] for item in whole) / max(1.0, voxels):.2%} of the voxels, in"
        f" {sum(item.counts[number] > 0 for item in whole)} cases"
        for number, name in enumerate(NAMES)
    }
    if not whole and not report.errors:
        report.errors.append("no case can be used")
    report.warnings += set_remarks([item.counts for item in whole], voxels)
    shape = " x ".join(_median(item.shape for item in whole)) + " (median)"
    return {"cases": len(seen), "voxels": f"{voxels / 1e6:.1f} million", "shape": shape, **shares}


def set_remarks(counts: Sequence[Sequence[int]], voxels: float) -> list[str]:
    """What is odd about the labels of a whole set, in words. `counts`: voxels of kidney and tumour of each case;
    `voxels`: those of all cases."""
    found = []
    for number, name in enumerate(NAMES):
        total = sum(item[number] for item in counts)
        if total > MOST * voxels:
            found.append(f"{name} (label {number + 1}) fills {total / voxels:.0%} of the set: its labels are inverted?")
    if counts and not any(sum(item) for item in counts):
        found.append(f"no label of the {len(counts)} cases holds kidney or tumour: every voxel is background")
    return found


def _median(rows: Iterable[tuple[float, ...]]) -> list[str]:
    table = np.array(list(rows), float)
    return [f"{value:g}" for value in np.median(table, 0).round(3)] if table.size else ["-"]


def _codes(codes: Sequence[str] | None) -> str:
    return ", ".join(codes) if codes else "none"


def _look(item: tuple[str, dataset.Found], geometry: str = alignment.HEADER) -> Seen:
    """In a worker: one raw case; `geometry` as in `alignment.place`."""
    name, found = item
    seen = Seen(name)
    heads = []
    for paths, kind in ((found.images, "image"), (found.labels, "label")):
        if len(paths) > 1:
            seen.errors.append(f"{name}: {len(paths)} files for its {kind}: {some([path.name for path in paths])}")
        if not paths:
            seen.errors.append(f"{(found.labels or found.images)[0]}: has no {kind} beside it ({name})")
    for paths, look in ((found.images, _look_image), (found.labels, _look_label)):
        if paths:
            try:
                head = nifti.read_header(paths[0], grid=look is _look_image or geometry == alignment.HEADER)
                heads.append(head)
                look(head, seen)
            except UnetError as error:
                seen.errors.append(error.message)
    if len(heads) == 2:
        _compare(heads[0], heads[1], seen, geometry)
    return seen


def _compare(image: nifti.Header, label: nifti.Header, seen: Seen, geometry: str) -> None:
    """Whether an image and its label are of one grid."""
    try:
        alignment.place(seen.id, image, label, grids.geometry(image, image.spacing, (1, 1, 1)), geometry)
    except UnetError as error:
        seen.errors.append(error.message)
        return
    if geometry == alignment.HEADER and image.codes != label.codes:
        seen.warnings.append(
            f"{seen.id}: axis codes {_codes(label.codes)} of the label, {_codes(image.codes)} of its image"
        )


def _look_image(head: nifti.Header, seen: Seen) -> None:
    _set_grid(head, seen)
    seen.warnings += [words for _, words in grids.remarks(head)]
    headers, window = len(head.notes), CtWindow()
    total = hashlib.blake2b(repr(head.shape).encode(), digest_size=16)
    for values in nifti.values(head, AIR):
        total.update(np.ascontiguousarray(values).data)
        window(values.astype(np.float32))
    seen.digest = total.hexdigest()
    seen.warnings += head.notes[headers:]
    words, fault = window.remark(head.path), window.fault()
    if fault:
        seen.errors.append(f"{head.path}: is no CT in Hounsfield units: {fault}")
    elif words:
        seen.warnings.append(words)


def _set_grid(head: nifti.Header, seen: Seen) -> None:
    order = grids.turn(head)[0]
    seen.shape = tuple(head.shape[axis] for axis in order)
    seen.spacing, seen.codes = tuple(head.spacing[axis] for axis in order), head.codes


def _look_label(head: nifti.Header, seen: Seen) -> None:
    headers = len(head.notes)
    if not seen.shape:  # no image, or none that can be read
        _set_grid(head, seen)
    seen.label_type = head.dtype.name
    voxels = np.zeros(3, int)
    odd: Counter[Any] = Counter()
    slack, off = nifti.slack_of(head), 0.0
    for values in nifti.values(head):
        right = [nifti.is_label(values, number, slack) for number in nifti.LABELS]
        voxels += [int(np.count_nonzero(where)) for where in right]
        if values.dtype.kind == "f":
            off = max(off, float(np.abs(np.rint(values) - values).max()))
        if not (right[0] | right[1] | right[2]).all():
            odd.update(Counter(values[~(right[0] | right[1] | right[2])].ravel().tolist()))
    if odd:
        shown = ", ".join(f"{value:.7g} ({count} voxels)" for value, count in sorted(odd.items())[:SHOWN])
        seen.errors.append(
            f"{head.path}: holds labels {shown}{' ...' if len(odd) > SHOWN else ''}; 0 is background, 1 kidney, 2"
            " tumour"
        )
    elif head.dtype.kind not in "iu":
        seen.warnings.append(f"{head.path}: labels are {head.dtype.name}; whole numbers, so they are read")
    if off and not odd:
        seen.warnings.append(f"{head.path}: labels are up to {off:.2g} from whole numbers; they are rounded")
    seen.warnings += head.notes[headers:]
    seen.counts = int(voxels[1]), int(voxels[2])
    _absent(seen)


def _absent(seen: Seen) -> None:
    missing = [name for name, count in zip(NAMES, seen.counts, strict=True) if not count]
    if missing:
        seen.warnings.append(f"{seen.id}: no {' and no '.join(missing)} in its label")


def _equal(seen: Sequence[Seen], split_of: SplitOf, report: Report) -> None:
    """Equal images of two cases: a warning, and an error where one trains and the other validates."""
    validation = report.validation_of(split_of, [item.id for item in seen])
    owners: dict[str, str] = {}
    for item in seen:
        twin = owners.setdefault(item.digest, item.id) if item.digest else item.id
        if twin != item.id:
            leaks = (twin in validation) != (item.id in validation)
            report.equal(f"{twin} and {item.id} hold the same image", leaks)


def _against_list(path: Path, seen: Sequence[Seen], bare: Sequence[str], report: Report) -> None:
    """What the data set's own list of cases, kits.json, tells otherwise: cases, spacing."""
    try:
        listed = {str(item["case_id"]): item for item in files.read_json(path)}
        spacings = {name: _listed_spacing(item) for name, item in listed.items()}
    except (UnetError, TypeError, KeyError, ValueError) as error:
        report.errors.append(f"{path}: not a list of KiTS19's cases ({type(error).__name__}: {str(error)[:80]})")
        return
    here = {item.id for item in seen} | set(bare)
    missing, unknown = sorted(set(listed) - here), sorted(here - set(listed) - set(bare))
    if missing:
        report.warnings.append(f"{len(missing)} of the {len(listed)} cases of {path.name} are missing: {some(missing)}")
    if unknown:
        report.warnings.append(f"{len(unknown)} cases are not in {path.name}: {some(unknown)}")
    other = []
    for item in seen:
        wanted = spacings.get(item.id)
        if wanted and item.spacing and not np.allclose(item.spacing, wanted, rtol=1e-3):
            other.append(f"{item.id} ({times(item.spacing)}, listed {times(wanted)})")
    if other:
        report.warnings.append(f"{len(other)} cases have another spacing than {path.name} tells: {some(other)}")
    report.facts[path.name] = f"{len(listed)} cases, {len(here & set(listed))} of them here"


def _listed_spacing(item: Mapping[str, Any]) -> tuple[float, ...] | None:
    found = item.get("voxel_spacing")
    return tuple(float(found[f"{axis}_spacing"]) for axis in "zyx") if found else None


def _look_cached(folder: Path, item: tuple[str, Mapping[str, Any] | None]) -> Seen:
    """In a worker: one cached case, against its record in the manifest."""
    name, record = item
    seen = Seen(name)
    image, mask, *_ = dataset.LAYOUT.paths(folder, name)
    for path, other in ((image, mask), (mask, image)):
        if not path.exists():
            seen.errors.append(f"{other}: has no {path.name}")
    if seen.errors:
        return seen
    x, y = open_npy(image), open_npy(mask)
    if x.ndim != 4 or x.shape[0] != 1 or y.shape != x.shape or x.dtype != np.float32 or y.dtype != np.uint8:
        seen.errors.append(
            f"{image}: {x.shape} {x.dtype} with labels {y.shape} {y.dtype} is not (1, D, H, W) float32 with uint8"
        )
        return seen
    seen.shape = x.shape[1:]
    low, high, total = np.inf, -np.inf, hashlib.blake2b(repr(x.shape).encode(), digest_size=16)
    voxels, largest, finite = np.zeros(3, int), 0, True
    step = max(1, BLOCK // int(np.prod(x.shape[2:])))
    for first in range(0, x.shape[1], step):
        part, labels = (np.ascontiguousarray(array[0, first : first + step]) for array in (x, y))
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        finite = finite and bool(np.isfinite(part).all())
        total.update(part.data)
        voxels += [int(np.count_nonzero(labels == number)) for number in range(3)]
        largest = max(largest, int(labels.max()))
    seen.digest, seen.counts = total.hexdigest(), (int(voxels[1]), int(voxels[2]))
    if low == high:
        seen.warnings.append(f"{image}: every voxel is {low:g}")
    if not finite:
        seen.errors.append(f"{image}: holds values that are not finite")
    elif low < RANGE[0] or high > RANGE[1]:
        seen.warnings.append(f"{image}: values from {low:.4f} to {high:.4f}, not within {RANGE[0]} to {RANGE[1]}")
    if largest > len(NAMES):
        seen.errors.append(f"{mask}: holds labels up to {largest}; 0 is background, 1 kidney, 2 tumour")
    _absent(seen)
    if record is not None and tuple(record["shape"]) != x.shape:
        seen.errors.append(f"{image}: its shape {x.shape} is not the manifest's {tuple(record['shape'])}")
    elif record is not None and "foreground" in record and tuple(record["foreground"]) != seen.counts:
        seen.errors.append(
            f"{mask}: {seen.counts} voxels of kidney and tumour, the manifest says {tuple(record['foreground'])};"
            " make the cache again with --rebuild-cache"
        )
    return seen
