"""Stacks of electron micrographs as they lie on disk (ISBI 2012 layout), and the way to the network's scale and back.

<root>/train-volume.tif, train-labels.tif, test-volume.tif     multi-page, 8 bits; labels 0 (membrane) and 255 (cell)
<root>/train-volume/, train-labels/, test-volume/              or folders of PNG or TIFF slices, in the order of names

A case is a slice: `slice_00` and on. Values become x / 127.5 - 1, and the whole slice, whatever its size, the output of
the network (512 -> 388); what lies around it is added in batches. Source: NVIDIA's UNet Medical, as Habana's UNet2D.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.config.schema import shell_path
from unet.data import splits
from unet.data.cache.layout import slice_layout
from unet.data.cases import Case
from unet.data.context import margin
from unet.data.io.images import irregular, read_labels, read_stack, stack_shape, words
from unet.data.preprocessing import masks
from unet.errors import CacheError, DataError
from unet.files import real_path

VERSION = 1
TIFF, SLICES = (".tif", ".tiff"), (".png", ".tif", ".tiff")
VOLUME, LABELS, TEST = "train-volume", "train-labels", "test-volume"
OTHER = {VOLUME: ("train_volume", "images"), LABELS: ("train_labels", "labels"), TEST: ("test_volume", "test")}
SAMPLE = 64  # slices
ORDER = re.compile(r"(\d+)")


def find(root: Path, name: str) -> Path | None:
    """The stack or folder `name` of a raw set, also under its other names."""
    for word in (name, *OTHER[name]):
        for path in (*(root / f"{word}{suffix}" for suffix in TIFF), root / word):
            if path.is_file() or (path.is_dir() and slices_in(path)):
                return path
    return None


def require(root: Path, name: str) -> Path:
    """As `find`. Raises DataError where there is none, with what is there instead."""
    if not root.is_dir():
        raise DataError(
            f"{root.absolute()}: no such folder.", "Give the raw set with --data PATH, or try --synth-data."
        )
    found = find(root, name)
    if found is None:
        there = ", ".join(sorted(item.name for item in root.iterdir() if not item.name.startswith("."))[:5])
        raise DataError(
            f"{root.absolute()}: has no {name}.tif and no folder {name} of slices (there are: {there or 'no files'}).",
            f"Name the stack {name}.tif, or give another folder with --data PATH.",
        )
    return found


def slices_in(folder: Path) -> list[Path]:
    """The slices of a folder, in the order of the numbers in their names."""
    found = [item for item in folder.iterdir() if item.suffix.lower() in SLICES and not item.name.startswith(".")]
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in ORDER.split(path.name)])


def read(path: Path) -> NDArray[np.uint8]:
    """A stack, a folder of slices or one image -> (S, H, W) uint8. Raises DataError."""
    if not path.is_dir():
        return read_stack(path)
    shape_of(path)
    return np.concatenate([read_stack(item) for item in slices_in(path)])


def shape_of(path: Path) -> tuple[int, int, int]:
    """(S, H, W) of a stack, or of the slices in a folder, whose pixels are not read. Raises DataError."""
    if not path.is_dir():
        return stack_shape(path)
    paths = slices_in(path)
    if wrong := irregular(paths):
        raise DataError(f"{wrong[0]} ({len(wrong)} of {len(paths)} slices).", "Copy the slices again.")
    sizes: list[tuple[int, int]] = []
    for item in paths:
        pages, height, width = stack_shape(item)
        sizes.append((height, width))
        if pages != 1:
            raise DataError(
                f"{item}: has {pages} pages; one slice of a stack is expected in a file of a folder.",
                "Give the stack itself, or a folder with a file for each slice.",
            )
        if sizes[-1] != sizes[0]:
            raise DataError(
                f"{item}: is {words(sizes[-1])}, but {paths[0].name} is {words(sizes[0])}.",
                "The slices of a stack have one size: copy them again, or remove the odd ones.",
            )
    return len(paths), *sizes[0]


def index(root: Path) -> list[Case]:
    """Every labelled slice of a raw set. Raises DataError where images and labels do not belong together, where the
    labels have other than two values, and for slices that are not square."""
    volume, labels = require(root, VOLUME), require(root, LABELS)
    images, masks = shape_of(volume), shape_of(labels)
    for path, (count, *_) in ((volume, images), (labels, masks)):
        if count < 2:
            raise DataError(
                f"{path.absolute()}: holds {count} page; a stack of slices is expected.",
                "Save the whole stack as a multi-page TIFF, or as a folder of slices.",
            )
    if images != masks:
        raise DataError(
            f"{labels.name} is {words(masks)} (slices x rows x columns), but {volume.name} is {words(images)}.",
            f"Give labels of the same slices; see: python -m unet check --task em --data {shell_path(root)}",
        )
    require_pairs(volume, labels)
    if images[1] != images[2]:
        raise DataError(
            f"{volume.absolute()}: slices are {images[1]} x {images[2]}; the network is trained on squares.",
            "Cut them into squares (prediction takes images of any size).",
        )
    read_stack(slices_in(volume)[0] if volume.is_dir() else volume, 0)  # of the right kind; `prepare` reads the others
    levels_of(labels)
    pages = [slices_in(path) if path.is_dir() else [path] * images[0] for path in (volume, labels)]
    return [Case(f"slice_{number:02}", (a,), (b,)) for number, (a, b) in enumerate(zip(*pages, strict=True))]


def require_pairs(volume: Path, labels: Path) -> None:
    """Raise DataError where an image and a label of folders of slices, paired in order, have other numbers in their
    names: a file is missing in one of them."""
    if not (volume.is_dir() and labels.is_dir()):
        return
    images, truth = slices_in(volume), slices_in(labels)
    for image, label, own, other in zip(images, truth, numbers_of(images), numbers_of(truth), strict=True):
        if own != other:
            raise DataError(
                f"{labels.absolute()}: {label.name} is not the label of {image.name} in {volume.name}: the numbers in"
                " their names are not the same.",
                "Give an image and a label of each slice, with the same number in both names; remove those without.",
            )


def numbers_of(paths: Sequence[Path]) -> list[list[str]]:
    """The number of each slice: those in its name, without those that are the same in all names."""
    found = [[part.lstrip("0") for part in ORDER.findall(path.stem)] for path in paths]
    if len({len(numbers) for numbers in found}) > 1:
        return found
    columns = [column for column in zip(*found, strict=True) if len(set(column)) > 1]
    return [list(row) for row in zip(*columns, strict=True)] or [[] for _ in paths]


def levels_of(labels: Path) -> masks.Levels:
    """What labels, a stack or a folder of slices, are written with. Raises DataError unless they have two values, or
    nearly two. Of large sets `SAMPLE` slices are looked at here; `prepare` looks at each."""
    return _levels_of(labels, labels.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _levels_of(labels: Path, changed: int) -> masks.Levels:
    if labels.is_dir():
        paths = slices_in(labels)
        step = max(1, len(paths) // SAMPLE)
        found = masks.values(read_labels(path) for path in paths[::step])
    else:
        found = masks.values([read_labels(labels)])
    levels = masks.levels(found)
    if levels is None or len(found) < 2:
        shown = ", ".join(f"{value:g}" for value in found[:5]) + (" ..." if len(found) > 5 else "")
        raise DataError(
            f"{labels.absolute()}: labels hold {len(found)} values ({shown}); they are 0 (membrane) and 255 (cell).",
            "Save the labels with two values, without smoothing or lossy compression.",
        )
    return levels


def page_of(path: Path, case: str) -> int | None:
    """The page of a case in its stack; None where its file is the slice."""
    return int(case.rpartition("_")[2]) if stack_shape(path)[0] > 1 else None


def cells_of(path: Path, case: str) -> tuple[NDArray[np.bool_], masks.Levels]:
    """(H, W), whether each pixel of a case's label is cell, and what its set is written with. Raises DataError for
    values that its set has not."""
    page = page_of(path, case)
    found, levels = read_labels(path, page or 0), levels_of(path.parent if page is None else path)
    own = masks.values([found])
    if not levels.fits(own):
        raise DataError(
            f"{path}: {case} has the label values {masks.words(own)}; its set has 0 and {2 * levels.cut:g}.",
            "Save the labels with two values, without smoothing or lossy compression.",
        )
    return levels.foreground(found), levels


def prepare(case: Case, side: int) -> dict[str, Any]:
    """One slice for a network whose output is `side` pixels wide -> image (1, side, side, 1) float32 in [-1, 1], mask
    of the same shape (uint8, 1 = cell), foreground, raw (its sides in pixels), remarks where the labels are not
    exactly two values. Raises DataError."""
    path = case.images[0]
    image = read_stack(path, page_of(path, case.id) or 0)
    label, levels = cells_of(case.labels[0], case.id)
    if image.shape != label.shape:
        raise DataError(
            f"{case.labels[0]}: {case.id} is {words(label.shape)}, its image is {words(image.shape)}.",
            "Give labels of the same slices.",
        )
    mask = (scaled(label.astype(np.float32), (side, side)) >= 0.5).astype(np.uint8)
    return {
        "image": normalised(image, (side, side))[None, ..., None],
        "mask": mask[None, ..., None],
        "foreground": [int(mask.sum())],
        "raw": list(image.shape),
        **({"remarks": levels.remarks(case.id)} if levels.noise else {}),
    }


def normalised(image: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(H, W) uint8 -> float32 in [-1, 1] at the network's scale."""
    return scaled(image.astype(np.float32) / np.float32(127.5) - 1, shape)


def scaled(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(..., H, W) -> (..., *shape) float32, bilinear between the centres of pixels, without smoothing, the border
    repeated: `tf.image.resize` of the sources, torch's `interpolate(align_corners=False)`."""
    result = image.astype(np.float32, copy=False)
    for axis, new in zip((-2, -1), shape, strict=True):
        old = result.shape[axis]
        if new != old:
            place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
            low = np.minimum(place.astype(np.intp), max(0, old - 2))
            share = (place - low).astype(np.float32)
            share = share[:, None] if axis == -2 else share
            result = (1 - share) * result.take(low, axis) + share * result.take(np.minimum(low + 1, old - 1), axis)
    return result


def inputs(paths: Sequence[Path]) -> dict[Path, list[Path]]:
    """What the user named -> {name of the outputs: [stack, image or folder of slices]}; a raw set stands for its
    test-volume. Raises DataError."""
    found: dict[Path, list[Path]] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path.absolute()}: no such file or folder.", "Give stacks, images or a raw set.")
        stack = path
        if path.is_dir() and (not slices_in(path) or find(path, TEST) or find(path, VOLUME)):
            stack = require(path, TEST)
        elif path.is_file() and path.suffix.lower() not in SLICES:
            raise DataError(f"{path.absolute()}: is neither TIFF nor PNG.", "Give 8-bit grey TIFF or PNG images.")
        name = Path(
            (real_path(stack).name if stack.is_dir() else stack.stem).removesuffix("-volume").removesuffix("_volume")
        )
        if name in found and found[name] != [stack]:
            raise DataError(
                f"{stack} and {found[name][0]} have the same name; their masks would meet.",
                "Predict them one after the other, each with its own --output.",
            )
        found[name] = [stack]
    return found


def published_fold(ids: Sequence[str], number: int, seed: int) -> splits.Split:
    """Fold `number` of Habana's UNet2D, whose published scores rest on it: the shuffled slices turned by five for each
    fold (a sixth of them was meant), the last six validate. So folds overlap and four slices never validate."""
    ordered = sorted(ids)
    places = np.arange(len(ordered))
    np.random.RandomState(seed).shuffle(places)
    count = len(ordered) // 5
    return splits.split_off(ordered, [ordered[place] for place in np.roll(places, 5 * number)[-count:]])


def require_squares(path: Path, image: Any, mask: Any, settings: Mapping[str, Any]) -> None:
    """Raise CacheError unless arrays of another program are a slice of the network's output size with its mask."""
    side = settings["image_size"] - margin(settings["layers"])  # the network's output
    if image.shape != (1, side, side, 1) or image.dtype != np.float32 or mask.shape != image.shape:
        raise CacheError(
            f"{path.absolute()}: {image.shape} {image.dtype} with mask {mask.shape} is not (1, {side}, {side}, 1)"
            " float32 with a mask of that shape.",
            "Build the cache from the raw set.",
        )


LAYOUT = slice_layout("em", VERSION, require_squares, schema={"raw?": [int]}, needed=("raw",))
