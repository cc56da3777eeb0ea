"""What can be wrong with a folder of brain volumes, or a cache of them: found before a run, named with its file. No
torch.

Every volume is read once, in the process pool.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet import host
from unet.data.cache import cache, integrity
from unet.data.checks import Report, each_case
from unet.data.checksums import some
from unet.data.io import nifti
from unet.data.io.arrays import open_npy
from unet.data.io.nifti_header import times
from unet.errors import DataError, UnetError
from unet.tasks.brains import cube, dataset
from unet.tasks.brains.settings import Settings
from unet.tasks.brains.volumes import every, find, is_lesion, lesion_of, name_of, split

FEW = 16  # voxels along an axis below which a volume is coarse
SPACING = 0.05  # spacings that differ by less are the same
STRETCHED = 2.0  # longest edge of the field of view to the shortest one: a brain is 1.3
SplitOf = Callable[[list[str]], Mapping[str, Sequence[str]]]


@dataclasses.dataclass
class Seen:
    """One volume as it was found: what is wrong, its grid in the order R, A, S, its values."""

    id: str
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    codes: str = ""
    dtype: str = ""
    low: float = 0.0
    high: float = 0.0
    gaps: int = 0
    lesion: bool = False
    digest: str = ""


def raw(path: Path, settings: Settings, split_of: SplitOf | None = None) -> Report:
    """A folder of volumes: files that cannot be read, 4-D files, values (NaN, constant, two values only), orientations
    and spacings that differ, masks of lesions that do not fit, volumes that occur twice (leakage of the split that
    `split_of(ids)` makes; by default that of --train-fraction)."""
    report = Report()
    try:
        found = find(path, settings)
    except DataError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    work = functools.partial(_look, settings=settings)
    items = [(name_of(item, path), item) for item in found]
    seen = each_case(work, items, report)
    for item in seen:
        report.errors += item.errors
        report.warnings += item.warnings
    _odd_ones(seen, report)
    stems = {(item.parent, nifti.stem(item)) for item in found}
    alone = [
        item.name
        for item in every(path, settings.recursive)
        if is_lesion(item) and (item.parent, nifti.stem(item).removesuffix("_lesion")) not in stems
    ]
    if alone:
        report.warnings.append(f"{len(alone)} masks of lesions have no volume beside them: {some(alone)}")
    _equal(seen, split_of or functools.partial(split, fraction=settings.train_fraction), report)
    report.facts = _facts(seen)
    if not any(item.digest for item in seen) and not report.errors:
        report.errors.append("no volume can be used")
    return report


def _look(item: tuple[str, Path], settings: Settings) -> Seen:
    """In a worker: one volume, and its mask of lesions."""
    name, path = item
    seen = Seen(name)
    try:
        head = dataset.open_header(path, settings)
        dataset.require_memory(head, dataset.memory(head, settings.resolution))
        order, _ = cube.turn(head)
        seen.shape, seen.spacing = tuple(head.shape[i] for i in order), tuple(head.spacing[i] for i in order)
        seen.codes, seen.dtype = "".join(head.codes) if head.codes else "none", head.dtype.name
        seen.warnings += [words for _, words in cube.remarks(head)]
        _shape_remarks(path, seen)
        noted = len(head.notes)
        volume = nifti.read_volume(head, None)
        seen.digest = _digest(volume)
        seen.gaps = int(np.isnan(volume).sum())
        seen.low, seen.high = _range(volume)
        cube.fill(head, volume)
        if seen.low < seen.high and np.isin(volume, (0, seen.low, seen.high)).all():
            seen.warnings.append(f"{path}: holds {seen.low:g} and {seen.high:g} and nothing between: a mask?")
        image, grid = cube.of_volume(head, volume, settings.resolution, dataset.bottom(settings))
        seen.warnings += head.notes[noted:]
        share = float(cube.brain(image, grid.bottom).mean())
        if share > 0.9:
            seen.warnings.append(f"{path}: {share:.0%} of the cube counts as brain: no dark background")
        lesion = lesion_of(path)
        if lesion:
            seen.lesion = True
            seen.warnings += [words for _, words in cube.lesions(lesion, head, grid, image.shape)[1]]
    except UnetError as error:
        seen.errors.append(f"{error.message} {error.hint}")
    return seen


def _digest(volume: Any) -> str:
    """Of the values as numbers, axes as stored: a copy in another type or packing is the same volume."""
    total = hashlib.blake2b(repr(volume.shape).encode(), digest_size=16)
    for plane in volume.transpose(2, 1, 0):
        total.update(np.ascontiguousarray(plane).data)
    return total.hexdigest()


def _range(volume: Any) -> tuple[float, float]:
    """The smallest and the largest value that is a number; 0 and 0 where there is none."""
    low, high = float(np.fmin.reduce(volume, axis=None)), float(np.fmax.reduce(volume, axis=None))
    return (low, high) if low <= high else (0.0, 0.0)


def _shape_remarks(path: Path, seen: Seen) -> None:
    edges = [count * mm for count, mm in zip(seen.shape, seen.spacing, strict=True)]
    if min(seen.shape) < FEW:
        seen.warnings.append(f"{path}: is {times(seen.shape)} voxels: few along an axis")
    if max(edges) > STRETCHED * min(edges):
        seen.warnings.append(
            f"{path}: covers {times(round(edge) for edge in edges)} mm: in the cube it is much stretched"
        )


def _odd_ones(seen: Sequence[Seen], report: Report) -> None:
    """Orientations and spacings that differ in the set; each is handled, but tells of mixed sources."""
    whole = [item for item in seen if item.shape]
    codes = Counter(item.codes for item in whole)
    if len(codes) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in codes.most_common())
        odd = [item.id for item in whole if item.codes != codes.most_common(1)[0][0]]
        report.warnings.append(f"orientations differ ({listed}): {some(odd)}; all are turned to R, A, S")
    if not whole:
        return
    usual = Counter(tuple(np.round(item.spacing, 2)) for item in whole).most_common(1)[0][0]
    others = [item.id for item in whole if not np.allclose(item.spacing, usual, rtol=SPACING)]
    if others:
        report.warnings.append(
            f"spacings differ: {len(others)} of {len(whole)} volumes are not of {times(map(float, usual))} mm"
            f" ({some(others)}); the field of view of each fills the cube"
        )


def _equal(seen: Sequence[Seen], split_of: SplitOf, report: Report) -> None:
    """Volumes of equal content: a warning, and an error where one trains and the other validates."""
    validation: set[str] = set()
    try:
        validation = set(split_of([item.id for item in seen])["validation"])
    except DataError as error:
        report.errors.append(f"{error.message} {error.hint}")
    owners: dict[str, str] = {}
    for item in seen:
        twin = owners.setdefault(item.digest, item.id) if item.digest else item.id
        if twin == item.id:
            continue
        words = f"{twin} and {item.id} hold the same volume"
        if (twin in validation) != (item.id in validation):
            report.errors.append(f"leakage: {words}; one trains, the other validates")
        else:
            report.warnings.append(f"duplicate: {words}")


def _facts(seen: Sequence[Seen]) -> dict[str, Any]:
    whole = [item for item in seen if item.shape]
    read = [item for item in whole if item.digest]

    def listed(names: Iterable[str]) -> str:
        return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common()) or "-"

    facts = {
        "volumes": len(seen),
        "shape": _span([item.shape for item in whole]),
        "spacing": f"{_span([item.spacing for item in whole])} mm",
        "orientation": listed(item.codes for item in whole),
        "types": listed(item.dtype for item in whole),
        "values": f"{min(i.low for i in read):g} to {max(i.high for i in read):g}" if read else "-",
        "with NaN": sum(item.gaps > 0 for item in seen),
    }
    lesions = sum(item.lesion for item in seen)
    return facts | ({"with a lesion mask": lesions} if lesions else {})


def _span(rows: Sequence[Sequence[float]]) -> str:
    """The smallest to the largest of each axis."""
    if not rows:
        return "-"
    low, high = np.min(rows, 0), np.max(rows, 0)
    return " x ".join(f"{a:.4g}" if a == b else f"{a:.4g}..{b:.4g}" for a, b in zip(low, high, strict=True))


def cached(folder: Path, settings: Settings) -> Report:
    """A cache: pairs, shapes, types, finite values within the range, masks, counts against the manifest, digests, equal
    volumes."""
    report = Report()
    layout, wanted = dataset.LAYOUT, cache.make_manifest(dataset.LAYOUT, dataset.cache_settings(settings))
    try:
        manifest = cache.read_manifest(folder, layout)
        own = {**wanted, **{name: manifest[name] for name in ("settings", "fingerprint")}} if manifest else wanted
        cases = cache.open_cache(folder, layout, own, compare=False)
    except UnetError as error:
        report.errors.append(f"{error.message} {error.hint}")
        return report
    if manifest is None:
        report.warnings.append(f"no {cache.MANIFEST}: made by another program; what made it is not known")
    damaged = integrity.report(folder, layout, manifest, report.errors, report.warnings) if manifest else {}
    bottom = 0.0 if own["settings"].get("output_activation") == "sigmoid" else -1.0
    owners: dict[str, str] = {}
    brain = lesion = 0
    for case in host.progress(cases, name="check", unit="case"):
        if case.id in damaged:
            continue
        try:
            image, mask = open_npy(case.image), open_npy(case.mask)
            dataset.require_cube(case.image, image, mask, own["settings"])
            counts = dataset.mask_facts(mask)["foreground"]
        except UnetError as error:
            report.errors.append(f"{case.id}: {error.message}")
            continue
        if tuple(counts) != case.foreground:
            report.errors.append(f"{case.mask}: {counts} voxels of brain and lesion, not {list(case.foreground)}")
        if not np.isfinite(image).all() or image.min() < bottom - 1e-6 or image.max() > 1 + 1e-6:
            report.errors.append(f"{case.image}: holds values that are not within {bottom:g} to 1")
        twin = owners.setdefault(_digest(np.asarray(image[0])), case.id)
        if twin != case.id:
            report.warnings.append(f"duplicate: {twin} and {case.id} hold the same volume")
        brain, lesion = brain + counts[0], lesion + (counts[1] > 0)
    size = own["settings"]["resolution"]
    report.facts = {
        "cases": len(cases),
        "cube": times((size,) * 3),
        "brain": f"{brain / max(1, len(cases) * size**3):.2%} of the voxels",
        "with lesions": lesion,
        "manifest": own["fingerprint"] if manifest else "none",
    }
    return report
