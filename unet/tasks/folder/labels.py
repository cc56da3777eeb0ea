"""The classes of a set and the values that masks give them: any whole numbers in the files, 0, 1, 2 ... in the network;
and what nnU-Net's dataset.json says of a set.

NumPy only.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files
from unet.errors import DataError, UnetError

Array = NDArray[Any]
IGNORED = 255  # the class of voxels that are neither trained on nor scored
MOST = 100
DATASET = "dataset.json"


@dataclasses.dataclass(frozen=True)
class Names:
    """What a set says of itself: names of channels, {class: its value in the masks} with the background, the value that
    is ignored, the ending of its files; all empty where it says nothing."""

    channels: tuple[str, ...] = ()
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    ignore: int | None = None
    ending: str = ""

    @property
    def aside(self) -> tuple[int, ...]:
        """The values of masks that are no class to be found: the background, and what is ignored."""
        background = next(iter(self.classes.values()), 0)
        return (background,) if self.ignore is None else (background, self.ignore)


@dataclasses.dataclass(frozen=True)
class Labels:
    """`values`: what masks hold for each class, the background first; `names` of the same; `ignore`: the value of
    voxels whose class is not known, None where there is none."""

    values: tuple[int, ...]
    names: tuple[str, ...]
    ignore: int | None = None

    @property
    def classes(self) -> int:
        return len(self.values)

    @property
    def plain(self) -> bool:
        """Whether the values are 0, 1, 2 ... themselves."""
        return self.values == tuple(range(len(self.values)))

    def classes_of(self, mask: Array, path: Path) -> NDArray[np.uint8]:
        """Values -> classes, uint8, IGNORED where they are to be ignored. Raises DataError for other values."""
        found = np.unique(mask)
        known = [*self.values] + ([] if self.ignore is None else [self.ignore])
        if odd := sorted(set(found.tolist()) - set(known)):
            words = ", ".join(map(str, odd[:4])) + (" ..." if len(odd) > 4 else "")
            raise DataError(
                f"{path}: holds the value {words}, which is no class of this set"
                f" ({', '.join(map(str, known[:8]))}{' ...' if len(known) > 8 else ''}).",
                "Correct the mask, or name every value with --label-values (the background first).",
            )
        order = np.argsort(known)
        classes = np.array([*range(len(self.values))] + ([] if self.ignore is None else [IGNORED]), np.uint8)[order]
        return classes[np.searchsorted(np.array(known)[order], mask)]

    def values_of(self, classes: Array) -> Array:
        """Classes -> values as the set's masks have them, uint8 where they fit, else uint16 or int32."""
        low, high = min(self.values), max(self.values)
        kind = np.uint8 if low >= 0 and high < 2**8 else np.uint16 if low >= 0 and high < 2**16 else np.int32
        return classes.astype(kind, copy=False) if self.plain else np.array(self.values, kind)[classes]

    def told(self) -> str:
        """The mapping in words, empty where the values are the classes."""
        if self.plain and self.ignore is None:
            return ""
        pairs = ", ".join(f"{value} ({name})" for value, name in zip(self.values, self.names, strict=True))
        ignored = "" if self.ignore is None else f"; {self.ignore} is ignored"
        return f"masks hold {pairs}{ignored}: classes 0 to {self.classes - 1} in the network, written back as they were"


def from_values(found: Sequence[int], names: Mapping[str, int], ignore: int | None, where: Path) -> Labels:
    """The classes of a set whose masks hold the values `found`; `names` {class: value} are those of dataset.json, where
    it has any. Raises DataError for values that are no classes: without a background, more than 100 of them, others
    than the names tell."""
    values = sorted(set(found) - {ignore}, key=lambda value: (value != 0, value))  # 0 is the background, also beside -1
    if names:
        if len(names) > MOST or not names:
            raise DataError(f"{where}: names {len(names)} classes; 2 to {MOST} are possible.", "Merge some of them.")
        if odd := sorted(set(values) - set(names.values())):
            raise DataError(
                f"{where}: masks hold {', '.join(map(str, odd[:4]))}, which dataset.json does not name"
                f" ({', '.join(f'{name} {value}' for name, value in list(names.items())[:6])}).",
                "Add these classes to dataset.json, or correct the masks.",
            )
        return Labels(tuple(names.values()), tuple(names), ignore)
    if len(values) > MOST:
        raise DataError(
            f"{where}: masks hold {len(values)} values ({', '.join(map(str, values[:5]))} ...); a mask has a number for"
            f" each class, {MOST} at most.",
            "Masks that were smoothed or saved as JPEG have such values: save them again, with whole numbers.",
        )
    if 0 not in values and values:
        raise DataError(
            f"{where}: no voxel of any mask is 0, the background; the values are {', '.join(map(str, values[:6]))}.",
            f"Say which is the background by naming it first: --label-values {' '.join(map(str, values[:6]))}",
        )
    if len(values) < 2:
        raise DataError(
            f"{where}: every mask is empty: no voxel has a class other than {values[0] if values else 0}.",
            "Give masks with a number of 1 or more where there is something.",
        )
    return Labels(tuple(values), default_names(values), ignore)


def whole(value: Any) -> int:
    """A value of a class. Raises ValueError for what is no whole number."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def named_classes(path: Path, pairs: Sequence[tuple[str, int]], hint: str) -> dict[str, int]:
    """{class: its value} of a dataset.json, the background first: the class of this name, else that of the value 0; the
    others by their values. Raises DataError for two classes of one value, two values of one class, and where none is
    the background."""
    names, values = dict[str, int](), dict[int, str]()
    for name, value in sorted(pairs, key=lambda pair: (pair[0].lower() != "background", pair[1] != 0, pair[1])):
        if value in values:
            raise DataError(f"{path}: the classes {values[value]!r} and {name!r} have one value, {value}.", hint)
        if name in names:
            raise DataError(f"{path}: the class {name!r} has two values, {names[name]} and {value}.", hint)
        names[name], values[value] = value, name
    if names and 0 not in values and next(iter(names)).lower() != "background":
        told = ", ".join(f"{name} {value}" for name, value in list(names.items())[:6])
        raise DataError(f"{path}: no class is named background or has the value 0 ({told}).", hint)
    return names


def require_distinct(counts: Mapping[int, float], where: Path) -> None:
    """Raise DataError where masks without names look like pictures of two values that were saved with losses: nearly
    all voxels have the lowest and the highest value, and many others lie between. `counts` {value: its voxels}."""
    usual = sorted(counts, key=lambda value: counts[value])[-2:]
    total = sum(counts.values())
    between = len(counts) - 2
    ends = len(usual) == 2 and min(usual) - min(counts) < 8 and max(counts) - max(usual) < 8
    if between > 10 and ends and max(counts) - min(counts) >= 128 and sum(counts[v] for v in usual) > 0.8 * total:
        raise DataError(
            f"{where}: masks hold {len(counts)} values, nearly all of them {min(usual)} and {max(usual)}: they were"
            " smoothed or saved as JPEG.",
            "Save them again from the program that made them, as PNG or TIFF; or name the classes in dataset.json.",
        )


def default_names(values: Sequence[int]) -> tuple[str, ...]:
    if len(values) == 2:
        return "background", "foreground"
    return ("background", *(f"class {value}" for value in values[1:]))


def read_names(path: Path) -> Names:
    """What nnU-Net's dataset.json says (also in the form of its first version and of the Medical Segmentation
    Decathlon). Raises DataError for labels that are regions of several classes, and for damaged files."""
    if not path.is_file():
        return Names()
    hint = "Correct it, as nnU-Net documents dataset.json, or remove it: classes are then named by their numbers."
    content = files.read_json(path, dict, hint)
    channels, labels = content.get("channel_names", content.get("modality", {})), content.get("labels", {})
    try:
        named = [str(name) for _, name in sorted(dict(channels).items(), key=lambda item: int(item[0]))]
        numbers = {str(key): value for key, value in dict(labels).items()}
        if any(isinstance(value, list | tuple) for value in numbers.values()):
            region = next(key for key, value in numbers.items() if isinstance(value, list | tuple))
            raise DataError(
                f"{path}: the label {region!r} is a region, {list(numbers[region])}; each class has one value.",
                "Give each value a class of its own; the union of classes is scored from their masks.",
            )
        if numbers and all(key.lstrip("-").isdecimal() for key in numbers):  # {"0": "background"}: the first version
            pairs = [(str(name), int(key)) for key, name in numbers.items()]
        else:
            pairs = [(name, whole(value)) for name, value in numbers.items()]
        ending = str(content.get("file_ending", ""))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: channel_names or labels are not as expected ({error}).", hint) from error
    classes = named_classes(path, pairs, hint)
    ignore = classes.pop("ignore", None)
    return Names(tuple(named), classes, ignore, ending)


def require_same(where: Path, names: Names, channels: Sequence[str], labels: Labels | None = None) -> None:
    """Raise DataError where what a set says of itself (`names`, in the file `where`) contradicts the network's channels
    or classes: a name that both have at another place, or of another value. Names that only one of them has say
    nothing, nor do those that one has twice, where upper and lower case are the same."""
    given, wanted = ([name.casefold() for name in each] for each in (names.channels, channels))
    once = [name for name in given if given.count(name) == wanted.count(name) == 1]
    if any(wanted.index(name) != given.index(name) for name in once):
        raise DataError(
            f"{where}: the channels are {', '.join(names.channels)}; the network takes {', '.join(channels)}.",
            "Number the files of this set in the network's order; or give a table .csv with a column of images for each"
            " channel, in that order.",
        )
    ours, theirs = (Counter(map(str.casefold, each)) for each in (names.classes, labels.names if labels else ()))
    here = {name.casefold(): value for name, value in names.classes.items() if ours[name.casefold()] == 1}
    shared = {name for name in here if theirs[name] == 1}
    both = {name: here[name.casefold()] for name in labels.names if name.casefold() in shared} if labels else {}
    there = dict(zip(labels.names, labels.values, strict=True)) if labels else {}
    if odd := [f"{name} {value} (the network: {there[name]})" for name, value in both.items() if value != there[name]]:
        typed = " ".join(str(both[name]) for name in there) if len(both) == len(there) else ""
        raise DataError(
            f"{where}: gives classes other values than the network's settings: {', '.join(odd[:4])}.",
            f"Type the values of this set in the order of the network's classes: --label-values {typed or '...'}",
        )


def require_order(paths: Sequence[Path], channels: Sequence[str]) -> None:
    """As `require_same`, of the channels of images or folders of them: by the dataset.json in a folder or in the two
    above, where there is one that can be read."""
    for where in dict.fromkeys(folder / DATASET for path in paths for folder in (path, *path.absolute().parents[:2])):
        try:
            names = read_names(where)
        except UnetError:  # another program's file of that name
            continue
        require_same(where, names, channels)
