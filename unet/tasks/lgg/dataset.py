"""The LGG set as it lies on disk (kaggle_3m layout): patients, slices in order, masks; reading; what can be wrong
with it.

<root>/<patient>/<patient>_<n>.tif         H x W x 3 uint8: pre-contrast, FLAIR, post-contrast
<root>/<patient>/<patient>_<n>_mask.tif    H x W uint8 in {0, 255}
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet.config.schema import shell_path
from unet.data.cache.layout import flags, slice_layout
from unet.data.cases import Case, require_folder
from unet.data.io.images import irregular, read_mask, read_rgb, words
from unet.data.preprocessing import slice_geometry
from unet.data.preprocessing.masks import Levels, binary
from unet.errors import CacheError, DataError
from unet.files import digest, require_regular

SUFFIXES = (".tif", ".tiff")
MASK = "_mask"


def is_image(path: Path) -> bool:
    return _is_slice(path) and not path.stem.lower().endswith(MASK)


def slice_number(path: Path) -> int:
    """The trailing integer of a slice's name. Raises DataError where there is none."""
    match = re.search(r"(\d+)$", path.stem)
    if not match:
        raise DataError(f"{path}: the name does not end in a slice number.", "Name slices <patient>_<n>.tif.")
    return int(match[1])


def is_mask(path: Path) -> bool:
    return _is_slice(path) and path.stem.lower().endswith(MASK)


def _is_slice(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def mask_of(image: Path) -> Path:
    """The mask beside an image: <stem>_mask with the image's suffix, or with another one where that exists."""
    first = image.with_name(image.stem + MASK + image.suffix)
    if first.exists():
        return first
    others = (image.with_name(image.stem + MASK + suffix) for suffix in SUFFIXES)
    return next((name for name in others if name.exists()), first)


def patient_folders(root: Path) -> list[Path]:
    """Direct sub-folders of `root` that hold slices or masks, sorted. A second copy nested deeper is not looked at.

    Raises DataError where there are none, and says where they are if one level away.
    """
    require_folder(
        root,
        "Give the raw set with --data PATH (--task folder for a set or table of your own), or use --synth-data.",
    )
    found = [folder for folder in sorted(root.iterdir()) if folder.is_dir() and any(map(_is_slice, folder.iterdir()))]
    if not found:
        deeper = {path.parent.parent for path in root.glob("*/*/*.tif")} | {
            root.parent for _ in filter(is_image, root.iterdir())
        }
        own = "a folder of patient folders with .tif slices; or --task folder for images and masks of your own"
        where = f"--data {shell_path(min(deeper))}" if deeper else f"--data PATH, {own}"
        raise DataError(f"{root.absolute()}: holds no patient folders with .tif slices.", f"Type {where}.")
    return found


def read_case(folder: Path) -> tuple[Case, list[str]]:
    """One patient: slices in the order of their trailing numbers, and what is wrong with its files, in words."""
    files = sorted(folder.iterdir())
    images = sorted(filter(is_image, files), key=slice_number)
    numbers = [slice_number(path) for path in images]
    masks = set(filter(is_mask, files))
    expected = {mask_of(path): path for path in images}
    faults = [f"{expected[path]}: has no mask {path.name}" for path in expected if path not in masks]
    faults += [f"{path}: is a mask without an image" for path in sorted(masks - set(expected))]
    faults += [f"{folder}: slice number {n} occurs twice" for n in sorted({n for n in numbers if numbers.count(n) > 1})]
    faults += irregular([*images, *(path for path in expected if path in masks)])
    if len(images) < 3:
        faults.append(f"{folder}: has {len(images)} slices; 3 are needed (the first and the last are dropped)")
    return Case(folder.name, tuple(images), tuple(expected), max(1, len(images) - 2)), faults


def index(root: Path) -> list[Case]:
    """Every patient of a raw set. Raises one DataError that names the first faults and counts them."""
    cases, faults = [], []
    for folder in patient_folders(root):
        case, wrong = read_case(folder)
        cases.append(case)
        faults += wrong
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise DataError(
            "; ".join(faults[:2]) + more + ".",
            f"Complete the set or remove these patients; all faults: python -m unet check --data {shell_path(root)}",
        )
    return cases


def read_images(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """Slices -> (S, H, W, 3) uint8. Raises DataError for sizes that differ."""
    return _stack((read_rgb(path) for path in paths), paths)


def read_masks(paths: Sequence[Path]) -> tuple[NDArray[np.bool_], Levels]:
    """Masks of one patient -> (S, H, W), whether each pixel is tumour, and what they are written with. Raises DataError
    for sizes that differ and for other values than two."""
    found, levels = binary([read_mask(path) for path in paths], paths)
    return _stack(found, paths), levels


def _stack(images: Iterable[NDArray[Any]], paths: Sequence[Path]) -> NDArray[Any]:
    read: list[NDArray[Any]] = []
    for image, path in zip(images, paths, strict=True):
        read.append(image)
        if image.shape != read[0].shape:
            raise DataError(
                f"{path}: is {words(image.shape)}, but {paths[0].name} is {words(read[0].shape)}: slices of a patient"
                " have one size.",
                "Copy the patient's files again, or remove the patient.",
            )
    return np.stack(read)


def slice_digest(image: NDArray[np.uint8]) -> str:
    """A digest of a slice (H, W, 3), which tells two patients that hold the same one; "" for one that is empty."""
    return digest(np.ascontiguousarray(image).tobytes()) if image.any() else ""


def prepare(case: Case, size: int) -> dict[str, Any]:
    """The deterministic part of one patient -> image (S, size, size, 3) float32, mask (S, size, size, 1) uint8 in {0,
    1}, geometry, intensity, foreground (mask pixels of each slice), slice_digests (of the raw slices), and remarks
    where masks are not exactly two values.

    Order as published: drop the first and the last slice, crop, square, resize, rescale. Raises DataError.
    """
    image, (mask, levels) = read_images(case.images), read_masks(case.labels)
    if mask.shape != image.shape[:3]:
        raise DataError(
            f"{case.labels[0]}: masks are {mask.shape[1]} x {mask.shape[2]}, images {image.shape[1]} x"
            f" {image.shape[2]}.",
            "Copy the patient's files again, or remove the patient.",
        )
    volume, mask = slice_geometry.suppress(image[1:-1]), mask[1:-1]
    try:
        how = slice_geometry.geometry(volume, size)
        inner = slice(*how.box[0])
        normalised, intensity = slice_geometry.normalise(
            slice_geometry.resize_image(slice_geometry.to_square(volume[inner], how), how)
        )
    except slice_geometry.BlankError as error:
        raise DataError(f"{case.images[0].parent}: {error.message}", error.hint) from error
    small = slice_geometry.resize_mask(slice_geometry.to_square(mask[inner], how), how).astype(np.uint8)
    return {
        "image": np.ascontiguousarray(np.moveaxis(normalised, 1, 3)),
        "mask": small[..., None],
        "geometry": how,
        "intensity": intensity,
        "foreground": small.sum((1, 2)).tolist(),
        "slice_digests": [digest for digest in map(slice_digest, image) if digest],
        **({"remarks": levels.remarks(case.id)} if levels.noise else {}),
    }


def prepare_for_prediction(paths: Sequence[Path], size: int) -> tuple[NDArray[np.float32], slice_geometry.Geometry]:
    """Slices of one patient in order -> (S, size, size, 3) float32 of every slice, and the geometry.

    Crop box and intensities come from the slices that training would use (all but the first and last, from three on);
    the box is opened to all slices, so that each input gets a mask. Raises DataError, and BlankError for a volume with
    nothing in it.
    """
    image = read_images(paths)
    inner = image[1:-1] if len(image) > 2 else image
    volume = slice_geometry.suppress(inner)
    limit = slice_geometry.threshold(inner)
    how = slice_geometry.geometry(volume, size)
    trained = slice(*how.box[0])
    _, intensity = slice_geometry.normalise(
        slice_geometry.resize_image(slice_geometry.to_square(volume[trained], how), how)
    )
    whole = slice_geometry.resize_image(slice_geometry.to_square(slice_geometry.suppress(image, limit), how), how)
    normalised, _ = slice_geometry.normalise(whole, intensity)
    return np.ascontiguousarray(np.moveaxis(normalised, 1, 3)), how


def patients_of(inputs: Iterable[Path]) -> dict[Path, list[Path]]:
    """Images, patient folders and whole sets -> {folder: its slices in order}, each slice once; masks are passed over.

    Raises DataError for a path that does not exist or holds no slices, and for two folders of one name.
    """
    groups: dict[Path, set[Path]] = {}
    for path in (Path(os.path.abspath(item)) for item in inputs):  # noqa: PTH100 (resolve() would rename links)
        if path.is_dir():
            own = [item for item in path.iterdir() if is_image(item)]
            for folder in [path] if own else _folders_of(path):
                if found := set(filter(is_image, folder.iterdir())):
                    groups.setdefault(folder, set()).update(found)
        elif path.suffix.lower() in SUFFIXES and (path.exists() or path.is_symlink()):
            require_regular(path)
            if is_image(path):
                groups.setdefault(path.parent, set()).add(path)
        else:
            what = "is no .tif image" if path.is_file() else "no such file or folder"
            raise DataError(f"{path}: {what}.", "Give slices, patient folders or a whole set.")
    names = collections.Counter(folder.name for folder in groups)
    for folder in groups:
        if names[folder.name] > 1:
            raise DataError(
                f"{folder}: another input folder is named {folder.name} too; their masks would meet.",
                "Predict them one after the other, each with its own --output.",
            )
    return {folder: sorted(paths, key=_order) for folder, paths in groups.items()}


def _folders_of(path: Path) -> list[Path]:
    """As `patient_folders`, of what was named to be predicted."""
    try:
        return patient_folders(path)
    except DataError as error:
        raise DataError(error.message, "Give slices, patient folders or a whole set.") from error


def _order(path: Path) -> tuple[int, str]:
    match = re.search(r"(\d+)$", path.stem)
    return int(match[1]) if match else 0, path.name


def require_slices(path: Path, image: Any, mask: Any, settings: Mapping[str, Any]) -> None:
    """Raise CacheError unless arrays of another program are slices of the network's size with their masks."""
    size = settings["image_size"]
    if image.ndim != 4 or mask.shape != (*image.shape[:3], 1) or image.dtype.kind != "f":
        raise CacheError(
            f"{path.absolute()}: {image.shape} {image.dtype} with mask {mask.shape} is not (slices, H, W, channels)"
            " floats with (slices, H, W, 1).",
            "Give a cache of this task, or build one from the raw set.",
        )
    if image.shape[1:3] != (size, size):
        raise CacheError(
            f"{path.parent.absolute()}: the cache holds slices of {image.shape[1]} x {image.shape[2]}, asked:"
            f" {flags(settings)}.",
            f"Type --image-size {image.shape[1]}, or name another --cache.",
        )


LAYOUT = slice_layout(
    "lgg",
    slice_geometry.VERSION,
    require_slices,
    left_out="the first and the last of each patient, and those at the ends with nothing in them",
)
