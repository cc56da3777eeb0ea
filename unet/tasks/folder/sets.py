"""Which files of a user's set are the images and the mask of each case, by their names or by a table; no image is read.

<root>/imagesTr/CASE_0000.nii.gz, CASE_0001.nii.gz ...    nnU-Net: a file for each channel; labelsTr/CASE.nii.gz;
                                                          dataset.json names channels and classes
<root>/images/NAME.png  masks/NAME.png                    pairs of the same name (also labels/, also with _0000 ...)
TABLE.csv                                                 a row for each case: image columns, mask, patient, group

An image may be a folder with a DICOM series in; in a table FOLDER#2 is the second series of one. No torch.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from unet import files, host
from unet.config.schema import shell_path
from unet.data.cases import require_folder
from unet.data.io import volumes
from unet.errors import DataError, UnetError
from unet.tasks.folder.labels import DATASET, Names, read_names

IMAGES, MASKS = (
    ("imagestr", "images", "image", "imgs"),
    ("labelstr", "masks", "labels", "mask", "label", "segmentations"),
)
TESTS = ("imagests",)
CHANNEL = re.compile(r"_(\d{4})$")
CHANNEL_ZERO = re.compile(r"_0000$")
CASE_COLUMNS, MASK_COLUMNS = ("case", "id", "name"), ("mask", "label", "segmentation", "target")
GROUP_COLUMNS = ("patient", "subject", "group")
COLUMN_ENDS = re.compile(r"[ _-]*(path|file|filename|id|name)$")  # "Patient ID", "mask_path"
IMAGE_COLUMN = re.compile(  # words of their own: "image_1", "img2", "ImagePath", and not "pathology"
    r"(?<![a-z])((image|img|channel)[ _-]?(path|file|name)s?|(image|img|channel|(file)?path)s?|modality)(?![a-z])"
)
LAYOUTS = (
    "Give a folder with imagesTr/ and labelsTr/ (nnU-Net), a folder with images/ and masks/, or a table .csv with the"
    " columns image and mask."
)
COMPLETE, CORRECT_TABLE = "Complete the set, or move these files out of it", "Correct the table"
TABLES, LARGEST_TABLE = (".csv", ".tsv"), 2**28
LONGEST_NAME = 200  # bytes: of 255, some are for endings


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of one case: an image for each channel (or one of several channels), its mask if there is one, and the
    patient or group that it belongs to."""

    images: tuple[Path, ...]
    mask: Path | None = None
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Set:
    """A set: {case: its files}, sorted, and what it says of itself."""

    root: Path
    cases: dict[str, Found]
    names: Names


def find(root: Path) -> Set:
    """The cases of a set with masks. Raises one DataError that names the first faults and counts them."""
    found, faults = survey(root)
    raise_faults(root, faults, CORRECT_TABLE if root.suffix.lower() in TABLES else COMPLETE)
    return found


def survey(root: Path) -> tuple[Set, list[str]]:
    """The cases of a set whose image and mask are there, and what is wrong with the others. Raises DataError for what
    is no set."""
    if root.suffix.lower() in TABLES:
        return from_table(root)
    require_folder(root, LAYOUTS)
    names = read_names(root / DATASET)
    image_folder, mask_folder = _folders(root)
    if image_folder is None or mask_folder is None:
        held = ", ".join(item.name for item in list(root.iterdir())[:5]) or "nothing"
        raise DataError(f"{root.absolute()}: holds {held}; images and masks are not told apart.", LAYOUTS)
    masks: dict[str, list[Path]] = {}
    for path in listed(mask_folder, names.ending):
        masks.setdefault(case_of(path), []).append(path)
    images = groups_of(listed(image_folder, names.ending), masks)
    found, faults = pair(images, masks, (image_folder, mask_folder))
    if not found and not faults:
        raise DataError(f"{image_folder.absolute()}: holds no image of a known format.", LAYOUTS)
    return Set(root, dict(sorted(found.items())), names), faults


def _folders(root: Path) -> tuple[Path | None, Path | None]:
    """The folders of images and of masks in a set."""
    inside = {item.name.lower(): item for item in sorted(root.iterdir()) if item.is_dir()}
    image_folder = next((inside[name] for name in IMAGES if name in inside), None)
    return image_folder, next((inside[name] for name in MASKS if name in inside), None)


def has_layout(root: Path) -> bool:
    """Whether a folder holds folders of images and of masks."""
    return all(_folders(root))


def listed(folder: Path, ending: str = "") -> list[Path]:
    """The images of a folder by their names, sorted; a folder with DICOM files in is one. With `ending` those that end
    so, where there are such."""
    found = sorted(path for path in folder.iterdir() if volumes.is_image(path))
    return [path for path in found if ending and path.name.lower().endswith(ending.lower())] or found


def case_of(path: Path) -> str:
    """The name of a file without its format. Letters with marks are one character each: some systems write them as two,
    and an image copied from there would not find its mask."""
    return unicodedata.normalize("NFC", volumes.stem(path))


def groups_of(paths: Sequence[Path], masks: Collection[str] = ()) -> dict[str, list[Path]]:
    """{case: the files of its channels in order}. A number of four digits at a name's end is that of a channel, where
    the folder has _0000 of that name and no mask has the whole name (frame_0001 is then a case)."""
    stems = {case_of(path) for path in paths}
    found: dict[str, list[Path]] = {}
    for path in paths:
        name = case_of(path)
        base = CHANNEL.sub("", name)
        several = base != name and base and f"{base}_0000" in stems and name not in masks
        found.setdefault(base if several else name, []).append(path)
    return found


def pair(
    images: Mapping[str, list[Path]], masks: Mapping[str, list[Path]], folders: Sequence[Path] = ()
) -> tuple[dict[str, Found], list[str]]:
    """Images with the masks of the same name, and what is wrong with the others: one without the other (a file of
    another format in `folders` is named), two masks of one name, channels that are not numbered from 0."""
    faults = [
        f"{name}: {len(paths)} masks ({', '.join(path.name for path in paths)})"
        for name, paths in masks.items()
        if len(paths) > 1
    ]
    faults += [
        f"{paths[0]}: its name cannot be that of a case (at most {LONGEST_NAME} bytes, no control characters)"
        for name, paths in images.items()
        if not is_name(name)
    ]
    alone, left = [name for name in images if name not in masks], [name for name in masks if name not in images]
    faults += [f"{images[name][0]}: no mask of the name {name}" for name in alone]
    faults += [f"{masks[name][0]}: no image of the name {name}" for name in left]
    found = {}
    for name, paths in images.items():
        numbers = [CHANNEL.search(volumes.stem(path)) for path in paths]
        if len(paths) > 1 and [int(number[1]) for number in numbers if number] != list(range(len(paths))):
            held = ", ".join(path.name for path in paths)
            faults.append(f"{name}: its files are not the channels 0 to {len(paths) - 1}: {held}")
        elif len(masks.get(name, ())) == 1 and is_name(name):
            found[name] = Found(tuple(paths), masks[name][0])
    if alone or left:
        odd = (path for folder in folders for path in sorted(folder.iterdir()) if not volumes.is_image(path))
        other = next((path for path in odd if path.stem.split(".")[0] in {*alone, *left}), None)
        faults = [*([f"{other} is of no format that is read here"] if other else []), *faults]
    return found, faults


def is_name(case: str) -> bool:
    """Whether a case's name can be that of its files in a cache and of its mask."""
    odd = case.startswith(".") or any(sign in case for sign in "/\\") or not files.printable(case)
    return not odd and len(case.encode()) <= LONGEST_NAME


def raise_faults(root: Path | None, faults: Sequence[str], hint: str) -> None:
    """One DataError for all faults of a set (None: of no set), which names the first and counts the others."""
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        every = f"; all faults: python -m unet check --task folder --data {shell_path(root)}" if root else "."
        raise DataError("; ".join(faults[:2]) + more + ".", hint + every)


def from_table(path: Path, masks: bool = True) -> tuple[Set, list[str]]:
    """The cases of a table, and what is wrong with its other rows: columns `image` (or image_1 ..., in order), `mask`,
    and where there are such `case`, `patient` or `group`. Paths are relative to the table. Without `masks` they may be
    left out. Raises DataError for what is no such table."""
    if not path.is_file():
        raise DataError(f"{path.absolute()}: no such file.", LAYOUTS)
    try:
        text = files.read_text(path, LARGEST_TABLE).removeprefix("\ufeff")
    except UnetError as error:
        raise DataError(error.message, "Save the table as CSV with UTF-8 (in Excel: CSV UTF-8).") from error
    first = next(iter(text.splitlines()), "")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, row) for row in reader if any((row[name] or "").strip() for name in row if name)]
    except csv.Error as error:
        raise DataError(f"{path.absolute()}, line {reader.line_num}: {error}.", "Correct that line.") from error
    columns = [name for name in reader.fieldnames or () if name]
    mask, group, case = (column_of(columns, known) for known in (MASK_COLUMNS, GROUP_COLUMNS, CASE_COLUMNS))
    images = [name for name in columns if name not in (mask, group, case) and IMAGE_COLUMN.search(plain(name))]
    if not images or (mask is None and masks):
        raise DataError(
            f"{path.absolute()}: has the columns {', '.join(columns) or '(none)'}; image and mask are needed.",
            "Name the columns image (or image_1, image_2 ...), mask, and if you like case and patient.",
        )
    found: dict[str, Found] = {}
    faults: list[str] = []
    if unused := [name for name in columns if name not in (mask, group, case, *images)]:
        host.notice_once(f"{path.name}: the columns {', '.join(unused[:5])} are not used")
    whole = [case_of(place(path.parent, row[images[0]] or "")) for _, row in rows]
    bases = [CHANNEL.sub("", name) for name in whole]  # of frame_0001, frame_0002 the numbers tell the cases
    names = bases if len({*bases}) == len(bases) else whole
    for (number, row), stem in zip(rows, names, strict=True):
        own = [place(path.parent, row[name]) for name in images if (row[name] or "").strip()]
        target = place(path.parent, row[mask]) if mask and (row[mask] or "").strip() else None
        name = (row[case] or "").strip() if case else stem if own else ""
        missing = [item for item in (*own, *([target] if target else [])) if not volumes.is_there(item)]
        if len(own) != len(images) or (target is None and masks):
            faults.append(
                f"{path.name}, line {number}: {'an image' if len(own) != len(images) else 'the mask'} is empty"
            )
        elif missing:
            faults += [f"{path.name}, line {number}: {item} is not there" for item in missing]
        elif name in found or not name:
            faults.append(f"{path.name}, line {number}: case {name!r} is {'there already' if name else 'empty'}")
        elif not is_name(name):
            faults.append(f"{path.name}, line {number}: case {name!r} cannot be the name of a file")
        else:
            found[name] = Found(tuple(own), target, (row[group] or "").strip() if group else "")
    if not found and not faults:
        raise DataError(f"{path.absolute()}: has no rows.", LAYOUTS)
    return Set(path, dict(sorted(found.items())), read_names(path.parent / DATASET)), faults


def column_of(columns: Sequence[str], known: Sequence[str]) -> str | None:
    """The column of a table that has one of the known names, perhaps with _path, _id or _name behind it."""
    meant = {name: {name.strip().lower(), COLUMN_ENDS.sub("", plain(name))} for name in columns}
    return next((name for word in known for name in columns if word in meant[name]), None)


def plain(column: str) -> str:
    """A column's name in small letters, its words apart: ImagePath, image path."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column.strip()).lower()


def place(folder: Path, text: str) -> Path:
    """A path of a table."""
    path = Path(text.strip())
    return path if path.is_absolute() else folder / path


def groups(cases: Mapping[str, Found]) -> dict[str, str]:
    """{case: its group}: those of a table; else numbers for the patients of DICOM headers, who are not named. Where all
    headers name the same patient they say nothing: files without names do so."""
    if any(case.group for case in cases.values()):
        return {name: case.group for name, case in cases.items() if case.group}
    found = {name: patient for name, case in cases.items() if (patient := volumes.patient_of(case.images[0]))}
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(found.values()), 1)}
    return {name: f"patient {numbers[patient]}" for name, patient in found.items()} if len(numbers) > 1 else {}


def inputs(paths: Sequence[Path], channels: int, series: str | None = None) -> dict[str, tuple[Path, ...]]:
    """Images, folders of them, whole sets and tables -> {case: the files of its channels}; `series`: which one of DICOM
    folders. A file that is missing is among them. Raises DataError for what is no image, and for two cases of one
    name."""
    found: dict[str, tuple[Path, ...]] = {}
    masked = functools.cache(masks_beside)  # a folder is listed once
    for path in paths:
        for name, own in named_inputs(path, channels, series, masked):
            if found.setdefault(name, own) != own:
                raise DataError(
                    f"{own[0]}: another image, {found[name][0]}, is case {name} too; their masks would meet.",
                    "Predict them one after the other, each with its own --output.",
                )
    if len(found) == 1:  # what is wrong with the only image is told before a network is loaded
        volumes.read_head(next(iter(found.values()))[0])
    return found


def named_inputs(
    path: Path, channels: int, series: str | None, masked: Callable[[Path], Collection[str]]
) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """(case, the files of its channels) of what a path names; `masked`: `masks_beside`. Where a mask has the whole name
    of an image, that has no number of a channel (`groups_of`)."""
    if path.suffix.lower() in TABLES:
        found, faults = from_table(path, masks=False)
        raise_faults(path, faults, CORRECT_TABLE)
        yield from ((name, case.images) for name, case in found.cases.items())
        return
    for image in images_in(path, series):
        own, name = channel_files(image, channels), case_of(image)
        second = renamed(image, CHANNEL_ZERO.sub("_0001", volumes.stem(image)))  # of frame_0000, which is then a case
        alone = CHANNEL_ZERO.search(name) and not (volumes.is_there(second) or name in masked(image.parent))
        several = len(own) > 1 or alone
        yield CHANNEL.sub("", name) if several else name, own


def masks_beside(images: Path) -> frozenset[str]:
    """The cases of the masks of the set whose images this folder holds; none where it is no such folder."""
    place = Path(os.path.abspath(images))  # noqa: PTH100 (links keep their name)
    inside = place.parent.iterdir() if place.name.lower() in IMAGES else ()
    folders = [item for item in inside if item.name.lower() in MASKS and item.is_dir()]
    return frozenset(case_of(path) for folder in folders for path in folder.iterdir())


def channel_files(image: Path, channels: int) -> tuple[Path, ...]:
    """The files of a case's channels, of which one is named: CASE_0000, CASE_0001 ... beside each other, also one that
    is missing; the file alone where it is not numbered so, or holds all channels."""
    number = CHANNEL.search(volumes.stem(image))
    if channels == 1 or number is None or volumes.holds_channels(image, channels):
        return (image,)
    base = CHANNEL.sub("", volumes.stem(image))
    found = {name: beside(image, name) for name in (f"{base}_{channel:04}" for channel in range(channels))}
    if sum(path is None for path in found.values()) >= max(2, channels - 1):
        return (image,)
    return tuple(path or renamed(image, name) for name, path in found.items())


def beside(image: Path, name: str) -> Path | None:
    """An image of this name in the folder of another, which is not listed: it may hold thousands."""
    endings = (*volumes.FORMATS, *map(str.upper, volumes.FORMATS), "")
    paths = itertools.chain((renamed(image, name),), (image.with_name(name + end) for end in endings))
    return next(filter(volumes.is_there, paths), None)


def renamed(image: Path, name: str) -> Path:
    """The path of an image of another name, of the same folder and ending."""
    return image.with_name(name + image.name[len(volumes.stem(image)) :])


def images_in(path: Path, series: str | None = None) -> list[Path]:
    """The images that a path names: itself, those of a folder, of a set's folder of images, or the series of a DICOM
    folder (`series`: which one of several)."""
    place, chosen = volumes.parted(path)
    if place.is_dir():
        place = Path(os.path.abspath(place)) if place.name in ("", "..") else place  # noqa: PTH100 (links keep their name)
        inside = {item.name.lower(): item for item in place.iterdir() if item.is_dir()}
        folder = next((inside[name] for name in (*TESTS, *IMAGES) if name in inside), place)
        found = listed(folder)
        if chosen or (not is_of_set(folder) and is_series(found)):
            if left := [image for image in found if volumes.kind_of(image) != volumes.DICOM]:
                host.notice(f"{place}: read as DICOM; {host.counted(len(left), 'other image')} there left out")
            return [_of_series(place, chosen or series)]
        if not is_of_set(folder):
            found = [image for image in found if not image.is_dir()]
        if not found:
            raise DataError(f"{path}: holds no image of a known format.", f"Give images: {', '.join(volumes.FORMATS)}.")
        return [_of_series(image, series) if image.is_dir() else image for image in found]
    if not place.exists():
        raise DataError(f"{path}: no such file or folder.", "Give images, or a folder of them.")
    if not volumes.is_image(path):
        raise DataError(f"{path}: is no format that is read here.", f"Give images: {', '.join(volumes.FORMATS)}.")
    return [path]


def is_of_set(folder: Path) -> bool:
    """Whether what lies in a folder are the cases of a set: nnU-Net's, or images with a folder of masks beside it."""
    name = folder.name.lower()
    beside = {item.name.lower() for item in folder.parent.iterdir() if item.is_dir()} if name in IMAGES else set()
    return name in (*TESTS, IMAGES[0]) or bool(beside & set(MASKS))


def is_series(found: Sequence[Path]) -> bool:
    """Whether what lies in a folder are the files of DICOM series: such files themselves, or folders of them and
    nothing else."""
    dicom = [image for image in found if volumes.kind_of(image) == volumes.DICOM]
    return bool(dicom) and (len(dicom) == len(found) or not all(image.is_dir() for image in dicom))


def _of_series(folder: Path, series: str | None) -> Path:
    return Path(f"{folder}#{series}") if series else folder
