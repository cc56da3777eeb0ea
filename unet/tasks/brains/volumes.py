"""Which files of a folder are volumes and which masks of lesions, what their cases are called, and which of them
train. No file is opened. No torch.

<root>/sub-01.nii.gz, sub-02.nii ...          volumes, in the order of their names; --recursive: in folders below too
<root>/sub-01_lesion.nii.gz                   where a lesion lies in sub-01, for scores; never a volume
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import floor
from pathlib import Path

from unet.config.schema import shell_path
from unet.data import splits
from unet.data.io import nifti
from unet.errors import DataError, StorageError
from unet.files import explain, require_regular
from unet.host import counted
from unet.tasks.brains.settings import Settings

LESION = "_lesion"
SUFFIXES = (".nii.gz", ".nii")
SUBJECT = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")
JOINT = "__"  # in place of / in a case's id
GIVE = "Give a folder of .nii or .nii.gz files with --data PATH, or type --synth-data for synthetic brains."


def is_lesion(path: Path) -> bool:
    """Whether a file is the mask of a lesion, by its name."""
    return nifti.stem(path).endswith(LESION)


def lesion_of(path: Path) -> Path | None:
    """The mask of the lesions of a volume, <stem>_lesion.nii.gz or .nii beside it; None where there is none. Raises
    DataError where there are two."""
    found = [other for suffix in SUFFIXES if (other := path.with_name(f"{nifti.stem(path)}{LESION}{suffix}")).exists()]
    if len(found) > 1:
        raise DataError(
            f"{path}: has two masks of lesions, {found[0].name} and {found[1].name}.", "Remove one of them."
        )
    return found[0] if found else None


def every(root: Path, recursive: bool) -> list[Path]:
    """Every .nii and .nii.gz file of a folder, sorted by path; links to folders are followed, hidden files and folders
    left out. Raises DataError where there is no such folder."""
    if not root.is_dir():
        near = sorted(item.name for item in root.parent.iterdir() if item.is_dir())[:5] if root.parent.is_dir() else []
        beside = f" (beside it: {', '.join(near)})" if near else ""
        what = "is a file, not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root.absolute()}: {what}{beside}.", GIVE)
    found: list[Path] = []
    seen: set[str] = set()
    for folder, below, names in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [name for name in below if not name.startswith(".")] if recursive and real not in seen else []
        found += [Path(folder, name) for name in names if nifti.is_nifti(Path(name))] if real not in seen else []
        seen.add(real)
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise explain(error) from error


def find(root: Path, settings: Settings) -> list[Path]:
    """The volumes of a folder, sorted by path: .nii and .nii.gz files whose name matches --pattern, without masks of
    lesions.

    Raises DataError where there is no such folder, where it has no such file (what it has is named), and for two
    files of one case.
    """
    there = every(root, settings.recursive)
    matching = [path for path in there if fnmatch.fnmatchcase(_usual(path), settings.pattern)]
    found = [path for path in matching if not is_lesion(path)]
    if not found:
        raise _nothing(root, settings, there, matching)
    owners: dict[str, Path] = {}
    for path in found:
        other = owners.setdefault(name_of(path, root), path)
        if other != path:
            raise DataError(
                f"{path}: case {name_of(path, root)} is {other.relative_to(root)} too; a case is one file.",
                f"Remove or rename one of them, or choose one kind with --pattern '*{SUFFIXES[0]}'.",
            )
    return found


def _usual(path: Path) -> str:
    """The name of a file, with .nii.gz or .nii in small letters."""
    stem = nifti.stem(path)
    return stem + path.name[len(stem) :].lower()


def name_of(path: Path, root: Path) -> str:
    """The id of a case: its path below the set without .nii or .nii.gz, __ for /."""
    return JOINT.join((*path.parent.relative_to(root).parts, nifti.stem(path)))


def _nothing(root: Path, settings: Settings, there: Sequence[Path], matching: Sequence[Path]) -> DataError:
    """Why a folder has no volumes, with what it has."""
    where = root.absolute()
    if matching:
        words = f"{where}: {counted(len(matching), 'file')} match {settings.pattern!r}, all of them masks of lesions"
        return DataError(f"{words} ({matching[0].name}).", "Give a folder that has their volumes too with --data PATH.")
    if there:
        kinds = Counter(next(end for end in SUFFIXES if path.name.lower().endswith(end)) for path in there)
        listed = " and ".join(f"{counted(count, 'file')} {end}" for end, count in sorted(kinds.items()))
        usual = max(kinds, key=lambda end: kinds[end])
        return DataError(
            f"{where}: {listed} (first: {there[0].name}), and none of them matches --pattern {settings.pattern!r}.",
            f"Type --pattern '*{usual}', or another pattern of the names of files.",
        )
    deeper = every(root, True)
    if deeper:
        return DataError(
            f"{where}: holds no .nii or .nii.gz file, but folders below it hold {len(deeper)}"
            f" ({deeper[0].relative_to(root)} ...).",
            f"Type --recursive, or --data {shell_path(deeper[0].parent)}.",
        )
    names = sorted(item.name for item in root.iterdir() if not item.name.startswith("."))
    held = f"holds no .nii or .nii.gz file (there are: {', '.join(names[:5])})" if names else "is an empty folder"
    return DataError(f"{where}: {held}.", GIVE)


def inputs(paths: Iterable[Path], settings: Settings) -> dict[str, Path]:
    """Files and folders that a user gives -> {name of the outputs: volume}; of a folder those that `find` takes, masks
    of lesions are passed over.

    Raises DataError for a path that does not exist or is no NIfTI file, where no volume is left, and for two of one
    name.
    """
    result: dict[str, Path] = {}
    given = [Path(os.path.abspath(item)) for item in paths]  # noqa: PTH100 (resolve() would rename links)
    for path in given:
        if path.is_dir():
            found = [(name_of(item, path), item) for item in find(path, settings)]
        elif not nifti.is_nifti(path) or not os.path.lexists(path):
            what = "is no .nii or .nii.gz file" if os.path.lexists(path) else "no such file or folder"
            raise DataError(f"{path}: {what}.", "Give NIfTI volumes, or folders of them.")
        else:
            found = [] if is_lesion(path) else [(nifti.stem(path), path)]
        for name, volume in found:
            if result.setdefault(name, volume) != volume:
                raise DataError(
                    f"{volume}: another volume, {result[name]}, is called {name} too; their outputs would meet.",
                    "Predict them one after the other, each with its own --output.",
                )
    if not result:
        raise DataError(
            f"No volume among the paths: {given[0]} is the mask of a lesion." if given else "No volume was given.",
            "Give NIfTI volumes, or folders of them.",
        )
    for volume in result.values():
        try:
            require_regular(volume)
        except StorageError as error:
            raise DataError(error.message, error.hint) from error
    return result


def split(ids: Sequence[str], fraction: float) -> splits.Split:
    """{"train": ids, "validation": ids}: of the sorted ids the first floor(n * fraction) train, as in
    3d_very_deep_vae, and the others validate. Where a subject has several volumes, they follow the first of them.

    At least one trains, and at least one validates where `fraction` is below 1 (the reference fails without one); 1
    leaves none to validate. The share is taken as typed: 0.29 of 100 is 29. Raises DataError for no volume, and for a
    single one, or a single subject, where one is to validate.
    """
    ordered = sorted(ids)
    if not ordered:
        raise DataError("No volumes to split.", GIVE)
    if fraction >= 1:
        return {"train": ordered, "validation": []}
    groups = subjects(ordered)
    units: dict[str, list[str]] = {}
    for case in ordered:
        units.setdefault(splits.unit_of(case, groups), []).append(case)
    if len(units) == 1:
        what = f"1 volume ({ordered[0]})" if len(ordered) == 1 else f"{len(ordered)} volumes of {groups[ordered[0]]}"
        raise DataError(
            f"{what} cannot be split: --train-fraction {fraction:g} leaves {1 - fraction:.3g} of it to validate.",
            "Add volumes, or type --split none to train on all of them without validation.",
        )
    count = max(1, floor(len(ordered) * Fraction(str(fraction))))
    train: list[str] = []
    for unit in list(units.values())[:-1]:
        if len(train) < count:
            train += unit
    return splits.split_off(ordered, sorted(set(ordered) - set(train)))


def subjects(ids: Sequence[str]) -> dict[str, str]:
    """{case: its subject} of the volumes of subjects that have several, by the `sub-<label>` of BIDS in their names."""
    found = {case: match[0] for case in ids if (match := SUBJECT.search(case))}
    counts = Counter(found.values())
    return {case: subject for case, subject in found.items() if counts[subject] > 1}
