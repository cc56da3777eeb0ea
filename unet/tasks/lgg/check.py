"""What can be wrong with a raw set of brain MRI: found before a run, named with its file. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet import host
from unet.config.schema import shell_path
from unet.data.checks import Report
from unet.data.io.images import read_mask, read_rgb
from unet.data.preprocessing import masks
from unet.errors import DataError, UnetError
from unet.tasks.lgg import dataset, download

PUBLIC = re.compile(r"TCGA_(CS|DU|EZ|FG|HT)_")  # patients of the public set are named by their hospital


def raw(root: Path, split_of: Any) -> Report:
    """Missing masks, shapes, values, duplicates (a nested second copy, equal slices in two patients), leakage of the
    split that `split_of(ids)` makes."""
    report = Report()
    folders = dataset.patient_folders(root)
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
            case, faults = dataset.read_case(folder)
        except UnetError as error:
            report.errors.append(error.message)
            continue
        report.errors += faults
        images = _read(case.images, read_rgb, report)
        found = _masks(folder, [path for path in case.labels if path.exists()], report)
        shapes |= {image.shape for image in images.values()}
        _compare(folder, images, found, report)
        for path, image in images.items():
            digest = dataset.slice_digest(image)
            first = owners.setdefault(digest, (folder.name, path.name))
            if digest and first[0] != folder.name:
                leaks.append((*first, folder.name, path.name))
        slices += len(images)
        tumours += sum(bool(mask.any()) for mask in found.values())
        pixels += sum(mask.size for mask in found.values())
        foreground += sum(int(mask.sum()) for mask in found.values())
    report.warnings += in_part(root, [folder.name for folder in folders])
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


def in_part(root: Path, names: Iterable[str]) -> list[str]:
    """A warning where the folder `root` has patients of the public set, and not all of them."""
    there, whole = sum(bool(PUBLIC.match(name)) for name in names), download.PATIENTS
    if not 0 < there < whole:
        return []
    return [
        f"{there} of the {whole} patients of the public set are there; the others, if a download broke off: type"
        f" python -m unet download lgg --data {shell_path(root)}"
    ]


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
        mask = truths.get(dataset.mask_of(path))
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
    validation = report.validation_of(split_of, ids)
    pairs: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for first, name, second, other in leaks:
        pairs.setdefault((first, second), []).append((name, other))
    for (first, second), names in pairs.items():
        words = f"{first} and {second} share {len(names)} equal slices ({names[0][0]} = {names[0][1]})"
        report.equal(words, (first in validation) != (second in validation))
