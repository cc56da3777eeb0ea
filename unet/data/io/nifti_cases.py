"""Which NIfTI files are the image and the label of a case, by their names and folders; nothing is opened. No torch.

<root>/case_00000/imaging.nii.gz  segmentation.nii.gz      KiTS19
<root>/imagesTr/x_0000.nii.gz     labelsTr/x.nii.gz        nnU-Net; also images/ and labels/ or masks/
<root>/x_image.nii.gz             x_label.nii.gz           one folder; also _imaging, _ct or nothing, and _seg, _mask,
                                                           _segmentation

nnU-Net's _0000, _0001 ... are the channels of one case.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unet.config.schema import shell_path
from unet.data.cases import require_folder
from unet.data.io import nifti
from unet.errors import DataError, StorageError
from unet.files import require_regular

IMAGES, LABELS = ("imagestr", "images", "image"), ("labelstr", "labels", "label", "masks", "mask", "segmentations")
TESTS = ("imagests",)
NNUNET = ("imagestr", "imagests")  # every name ends in the number of its channel
_LABEL = re.compile(r"(^|[_.-])(segmentation|seg|labels?|masks?|gt)$", re.IGNORECASE)
_IMAGE = re.compile(r"(^|[_.-])(imaging|image|img|ct|0000)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_\d{4}$")


@dataclasses.dataclass
class Found:
    """The files of one case."""

    images: list[Path] = dataclasses.field(default_factory=list)
    labels: list[Path] = dataclasses.field(default_factory=list)


def is_label(path: Path) -> bool:
    """Whether a file is a label, by its name or that of its folder."""
    return bool(_LABEL.search(nifti.stem(path))) or path.parent.name.lower() in LABELS


def _name(path: Path) -> str:
    """The case that a file belongs to by its name; that of its folder where the name is just imaging, seg, ..."""
    return (_LABEL if is_label(path) else _IMAGE).sub("", nifti.stem(path)) or path.parent.name


def _names(images: Sequence[Path], labels: Iterable[Path]) -> list[str]:
    """The cases that images of one folder belong to. A number of four digits at the end is that of a channel in
    nnU-Net's folders, where the folder has _0000 of that name too, and where the label has the name without it; not
    where a label has the whole name."""
    stems, labelled = {nifti.stem(path) for path in images}, {_name(path) for path in labels}
    result = []
    for path in images:
        stem = nifti.stem(path)
        base = _CHANNEL.sub("", stem)
        channel = base != stem and (path.parent.name.lower() in NNUNET or f"{base}_0000" in stems or base in labelled)
        result.append(stem if stem in labelled else base if channel and base else _name(path))
    return result


def _files(folder: Path) -> list[Path]:
    """What a folder holds under the name of a NIfTI file, folders excepted; whether it is a file shows when it is
    opened."""
    return [path for path in sorted(folder.iterdir()) if nifti.is_nifti(path) and not path.is_dir()]


def find(root: Path, tests: bool = False) -> dict[str, Found]:
    """Case id -> its files, sorted by id. `tests`: images without labels (nnU-Net's imagesTs) too.

    Raises DataError where there is no such folder, or no NIfTI file where one is looked for.
    """
    require_folder(root, "Give the raw set with --data PATH.")
    result: dict[str, Found] = {}
    folders = [item for item in sorted(root.iterdir()) if item.is_dir() and not item.name.startswith(".")]
    sides = IMAGES + LABELS + (TESTS if tests else ())
    paired = [item for item in folders if item.name.lower() in sides and _files(item)]
    labels = [path for folder in paired for path in _files(folder) if is_label(path)]
    for folder in [*paired] if paired else [root]:
        _take(_files(folder), labels, result)
    for folder in [] if paired else folders:
        for path in _files(folder):
            case = result.setdefault(folder.name, Found())
            (case.labels if is_label(path) else case.images).append(path)
    if not result:
        deeper = {path.parent.parent for pattern in ("*/*/*.nii.gz", "*/*/*.nii") for path in root.glob(pattern)}
        where = f"--data {shell_path(min(deeper))}" if deeper else "--data PATH, a folder of case_*/imaging.nii.gz"
        raise DataError(f"{root.absolute()}: holds no NIfTI cases.", f"Type {where}.")
    return dict(sorted(result.items()))


def _take(paths: Sequence[Path], labels: Sequence[Path], result: dict[str, Found]) -> None:
    """Sort the files of one folder into cases; `labels` are those that may belong to its images, besides its own."""
    own = [path for path in paths if is_label(path)]
    images = [path for path in paths if not is_label(path)]
    for path in own:
        result.setdefault(_name(path), Found()).labels.append(path)
    for path, name in zip(images, _names(images, [*labels, *own]), strict=True):
        result.setdefault(name, Found()).images.append(path)


def require_one_channel(root: Path, found: Mapping[str, Sequence[Path]]) -> None:
    """Raise DataError where the images of a case are channels of it, by their names: the network takes one."""
    several = {
        name: images
        for name, images in found.items()
        if len(images) > 1 and all(_CHANNEL.search(nifti.stem(path)) for path in images)
    }
    if not several:
        return
    name, images = next(iter(several.items()))
    files = ", ".join(path.name for path in images[:3]) + (" ..." if len(images) > 3 else "")
    first = sorted(images)[0]
    total = sum(map(len, several.values()))
    chosen = f"{shell_path(first.parent)}/*{nifti.stem(first)[-5:]}.nii{'.gz' if first.name.endswith('.gz') else ''}"
    raise DataError(
        f"{root.absolute()}: {len(several)} of {len(found)} cases have several channels, {total} files in all"
        f" ({name}: {files}); the network takes one channel.",
        f"Give one of them, {chosen}, or move the other channels out of the folder.",
    )


def inputs(paths: Iterable[Path]) -> dict[str, Path]:
    """Images, case folders and whole sets -> {case: its image}; labels are passed over.

    Raises DataError for a path that does not exist, for one with no image, and for two images of one name.
    """
    result: dict[str, Path] = {}
    given = [Path(os.path.abspath(item)) for item in paths]  # noqa: PTH100 (resolve() would rename links)
    single = [path for path in given if nifti.is_nifti(path) and not path.is_dir() and not is_label(path)]
    names = _named(single)
    for path in given:
        if path.is_dir():
            own = [item for item in _files(path) if not is_label(item)]
            pairs = [(path.name, own[0])] if len(own) == 1 and _is_case(path) else _images(path)
        else:
            what = "" if nifti.is_nifti(path) else "is no .nii or .nii.gz file"
            what = what if os.path.lexists(path) else "no such file or folder"
            if what:
                raise DataError(f"{path}: {what}.", "Give NIfTI images, case folders or a whole set.")
            pairs = [(names[path], path)] if path in names else []
        for name, image in pairs:
            if result.setdefault(name, image) != image:
                raise DataError(
                    f"{image}: another image, {result[name]}, is case {name} too; their masks would meet.",
                    "Predict them one after the other, each with its own --output.",
                )
    if not result:
        raise DataError("No image among the paths: all of them are labels.", "Give images (imaging.nii.gz).")
    for image in result.values():
        try:
            require_regular(image)
        except StorageError as error:
            raise DataError(error.message, error.hint) from error
    return result


def _named(images: Iterable[Path]) -> dict[Path, str]:
    """Images that were given one by one, and their cases."""
    folders: dict[Path, list[Path]] = {}
    for path in images:
        folders.setdefault(path.parent, []).append(path)
    result: dict[Path, str] = {}
    for folder, paths in folders.items():
        names = dict(zip(paths, _names(paths, []), strict=True))
        groups: dict[str, list[Path]] = {}
        for path, name in sorted(names.items()):
            groups.setdefault(name, []).append(path)
        require_one_channel(folder, groups)
        result |= names
    return result


def _is_case(folder: Path) -> bool:
    """Whether the files of a folder take their case's name from it."""
    return any(_name(path) == folder.name for path in _files(folder))


def _images(folder: Path) -> list[tuple[str, Path]]:
    cases = {name: case.images for name, case in find(folder, tests=True).items()}
    require_one_channel(folder, cases)
    found = [(name, image) for name, images in cases.items() for image in images]
    if not found:
        raise DataError(f"{folder}: holds labels, and no image.", "Give images (imaging.nii.gz) or their folder.")
    return found
