"""What can be wrong with a data set: found before a run, named with its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet import files, host
from unet.data import cache, integrity, lgg, masks
from unet.data.images import read_mask, read_rgb
from unet.errors import DataError, UnetError

SHOWN = 10


@dataclasses.dataclass
class Report:
    """Errors (the set cannot or must not be used), warnings (somebody should know), and numbers of a set."""

    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    errors: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def text(self, title: str) -> str:
        lines = [title, *(f"  {name:<22} {value}" for name, value in self.facts.items())]
        for word, items in (("error", self.errors), ("warning", self.warnings)):
            lines += [f"  {word}: {item}" for item in items[:SHOWN]]
            lines += [f"  ... and {len(items) - SHOWN} more {word}s"] if len(items) > SHOWN else []
        return "\n".join([*lines, f"  {len(self.errors)} errors, {len(self.warnings)} warnings"])


def raw_lgg(root: Path, split_of: Any) -> Report:
    """Missing masks, shapes, values, duplicates (a nested second copy, equal slices in two patients), leakage of the
    split that `split_of(ids)` makes."""
    report = Report()
    folders = lgg.patient_folders(root)
    nested = sorted(
        {str(path.parent.parent.relative_to(root)) for path in root.glob("*/*/*.tif")}
        | {str(path.parent.parent.relative_to(root)) for path in root.glob("*/*/*/*.tif")}
    )
    if nested:
        report.warnings.append(
            f"{', '.join(nested)}: a second copy of patients below the first; it is not read, and may be deleted"
        )
    owners: dict[str, tuple[str, str]] = {}
    slices = tumours = pixels = foreground = 0
    shapes: set[tuple[int, ...]] = set()
    leaks: list[tuple[str, str, str, str]] = []
    for folder in host.progress(folders, name="check", unit="patient"):
        try:
            case, faults = lgg.read_case(folder)
        except UnetError as error:
            report.errors.append(error.message)
            continue
        report.errors += faults
        images = _read(case.images, read_rgb, report)
        found = _masks(folder, [path for path in case.labels if path.exists()], report)
        shapes |= {image.shape for image in images.values()}
        _compare(folder, images, found, report)
        for path, image in images.items():
            if not image.any():
                continue
            first = owners.setdefault(files.digest(image.tobytes()), (folder.name, path.name))
            if first[0] != folder.name:
                leaks.append((*first, folder.name, path.name))
        slices += len(images)
        tumours += sum(bool(mask.any()) for mask in found.values())
        pixels += sum(mask.size for mask in found.values())
        foreground += sum(int(mask.sum()) for mask in found.values())
    report.warnings += masks.crowded("tumour", foreground / max(1, pixels))
    _duplicates(leaks, [folder.name for folder in folders], split_of, report)
    report.facts = {
        "patients": len(folders),
        "slices": slices,
        "with tumour": tumours,
        "tumour pixels": f"{foreground / max(1, pixels):.2%}",
        "sizes": ", ".join(sorted("x".join(map(str, shape)) for shape in shapes)),
    }
    return report


def _read(paths: Iterable[Path], read: Callable[[Path], Any], report: Report) -> dict[Path, Any]:
    result = {}
    for path in paths:
        try:
            result[path] = read(path)
        except UnetError as error:
            if not any(error.message.startswith(known) for known in report.errors):  # a pipe or link is named already
                report.errors.append(error.message)
    return result


def _masks(folder: Path, paths: Iterable[Path], report: Report) -> dict[Path, Any]:
    """The masks of a patient, (H, W) bool, as `preprocess` reads them."""
    found = _read(paths, read_mask, report)
    try:
        read, levels = masks.binary(list(found.values()), list(found))
    except DataError as error:
        report.errors.append(error.message)
        return {}
    if levels.noise:
        report.warnings.append(f"{folder.name}: {levels.told}")
    return dict(zip(found, read, strict=True))


def _compare(folder: Path, images: Mapping[Path, Any], truths: Mapping[Path, Any], report: Report) -> None:
    """Sizes within a patient, masks against images, channels that equal one another."""
    sizes = {image.shape[:2] for image in images.values()}
    if len(sizes) > 1:
        report.errors.append(f"{folder}: slices of different sizes: {', '.join(f'{a}x{b}' for a, b in sorted(sizes))}")
    for path, image in images.items():
        mask = truths.get(lgg.mask_of(path))
        if mask is not None and mask.shape != image.shape[:2]:
            report.errors.append(
                f"{path}: {image.shape[0]}x{image.shape[1]}, its mask is {mask.shape[0]}x{mask.shape[1]}"
            )
    if images:
        volume = list(images.values())
        equal = [
            name
            for channel, name in ((0, "pre-contrast"), (2, "post-contrast"))
            if all(np.array_equal(image[..., channel], image[..., 1]) for image in volume)
        ]
        if equal:
            report.warnings.append(
                f"{folder.name}: {' and '.join(equal)} equal FLAIR (the set has ten such patients: the sequence is"
                " missing)"
            )
    if truths and not any(mask.any() for mask in truths.values()):
        report.warnings.append(f"{folder.name}: no tumour in any mask")


def _duplicates(leaks: Sequence[tuple[str, str, str, str]], ids: list[str], split_of: Any, report: Report) -> None:
    """Equal slices of two patients: a warning, and an error where one trains and the other validates."""
    try:
        validation = set(split_of(ids)["validation"])
    except DataError as error:
        report.errors.append(error.message)
        validation = set()
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for first, name, second, other in leaks:
        pairs.setdefault((first, second), []).append((name, other))
    for (first, second), names in pairs.items():
        words = f"{first} and {second} share {len(names)} equal slices ({names[0][0]} = {names[0][1]})"
        if (first in validation) != (second in validation):
            report.errors.append(f"leakage: {words}; one trains, the other validates")
        else:
            report.warnings.append(f"duplicate: {words}")


def cached(folder: Path, wanted: Mapping[str, Any]) -> Report:
    """A cache: shapes, types, digests, finite values, masks of 0 and 1, counts against the manifest, equal volumes."""
    report = Report()
    try:
        manifest = cache.read_manifest(folder)
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
        cases = cache.open_cache(folder, own, compare=False)
    except UnetError as error:
        report.errors.append(error.message)
        return report
    damaged = integrity.report(folder, manifest, report.errors, report.warnings) if manifest else {}
    seen: dict[str, str] = {}
    foreground = voxels = 0
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
                f"{case.mask}: tumour pixels differ from the manifest; make the cache again with --rebuild-cache"
            )
        twin = seen.setdefault(files.digest(np.ascontiguousarray(image).tobytes()), case.id)
        if twin != case.id:
            report.errors.append(f"duplicate: {twin} and {case.id} hold the same volume")
        foreground += int(mask.sum())
        voxels += mask.size
    report.facts = {
        "cases": len(cases),
        "slices": sum(case.shape[0] for case in cases),
        "image size": cases[0].shape[1] if cases else "-",
        "tumour pixels": f"{foreground / max(1, voxels):.2%}",
        "manifest": own.get("fingerprint") if manifest else "none",
    }
    return report
