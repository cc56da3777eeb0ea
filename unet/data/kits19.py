"""The KiTS19 set as it lies on disk, and any folder of NIfTI images with labels: cases, what is wrong with them, and
the deterministic part of their way to the network. No torch.

<root>/case_00000/imaging.nii.gz  segmentation.nii.gz      KiTS19: 0 background, 1 kidney, 2 tumour; ids from 210 on
                                                           have no labels
<root>/imagesTr/x_0000.nii.gz     labelsTr/x.nii.gz        nnU-Net; also images/ and labels/ or masks/
<root>/x_image.nii.gz             x_label.nii.gz           one folder; also _imaging, _ct or nothing, and _seg, _mask,
                                                           _segmentation
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.config import Config, spelt
from unet.data import boxes, grids, nifti, windows
from unet.data.splits import number_of
from unet.data.volumes import Case
from unet.errors import DataError, UnetError

Array = NDArray[Any]
LOW, HIGH, MEAN, DEVIATION = -79.0, 304.0, 101.0, 76.9  # Hounsfield units (MLPerf's reference)
UNLABELLED = 210
TOGETHER = 10**8  # voxels of a result below which image and mask are made at the same time
IMAGES, LABELS = ("imagestr", "images", "image"), ("labelstr", "labels", "label", "masks", "mask", "segmentations")
TESTS = ("imagests",)
_LABEL = re.compile(r"(^|[_.-])(segmentation|seg|labels?|masks?|gt)$", re.IGNORECASE)
_IMAGE = re.compile(r"(^|[_.-])(imaging|image|img|ct|0000)$", re.IGNORECASE)


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


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if nifti.is_nifti(path) and path.is_file()]


def find(root: Path, tests: bool = False) -> dict[str, Found]:
    """Case id -> its files, sorted by id. `tests`: images without labels (nnU-Net's imagesTs) too.

    Raises DataError where there is no such folder, or no NIfTI file where one is looked for.
    """
    if not root.is_dir():
        near = sorted(item.name for item in root.parent.iterdir() if item.is_dir())[:5] if root.parent.is_dir() else []
        raise DataError(
            f"{root.absolute()}: no such folder" + (f" (beside it: {', '.join(near)})." if near else "."),
            "Give the raw set with --data PATH.",
        )
    result: dict[str, Found] = {}
    folders = [item for item in sorted(root.iterdir()) if item.is_dir() and not item.name.startswith(".")]
    sides = IMAGES + LABELS + (TESTS if tests else ())
    paired = [item for item in folders if item.name.lower() in sides and _files(item)]
    for folder in paired:
        for path in _files(folder):
            case = result.setdefault(_name(path), Found())
            (case.labels if folder.name.lower() in LABELS else case.images).append(path)
    for folder in [] if paired else folders:
        for path in _files(folder):
            case = result.setdefault(folder.name, Found())
            (case.labels if is_label(path) else case.images).append(path)
    for path in [] if paired else _files(root):
        case = result.setdefault(_name(path), Found())
        (case.labels if is_label(path) else case.images).append(path)
    if not result:
        deeper = {path.parent.parent for pattern in ("*/*/*.nii.gz", "*/*/*.nii") for path in root.glob(pattern)}
        where = f"--data {spelt(min(deeper))}" if deeper else "--data PATH, a folder of case_*/imaging.nii.gz"
        raise DataError(f"{root.absolute()}: holds no NIfTI cases.", f"Type {where}.")
    return dict(sorted(result.items()))


def read_case(name: str, found: Found, config: Config) -> tuple[Case, list[str]]:
    """One case, and what is wrong with its files, in words; only headers are read."""
    case = Case(name, tuple(found.images[:1]), tuple(found.labels[:1]))
    faults = []
    for files, kind in ((found.images, "image"), (found.labels, "label")):
        beside = (found.labels or found.images)[0]
        if not files:
            faults.append(f"{beside}: has no {kind} beside it ({name})")
        if len(files) > 1:
            names = ", ".join(path.name for path in files[:3])
            faults.append(f"{name}: {len(files)} files for its {kind}: {names}; one is expected")
    if faults:
        return case, faults
    try:
        head, _, how, _ = _open(case, config)
    except UnetError as error:
        return case, [error.message.rstrip(".")]
    cost = windows.count(how.size, config.eval_patch, config.overlap)
    return dataclasses.replace(case, cost=cost, spacing=how.spacing, memory=memory(head, how)), []


def index(root: Path, config: Config) -> list[Case]:
    """Every case of a raw set. Raises one DataError that names the first faults and counts them.

    KiTS19's ids from 210 on are left out, with a notice, where they have no labels.
    """
    cases: list[Case] = []
    faults: list[str] = []
    skipped: list[str] = []
    odd: list[str] = []
    for name, found in find(root).items():
        number = number_of(name)
        if number is not None and number >= UNLABELLED and not found.labels:
            skipped.append(name)
            continue
        case, wrong = read_case(name, found, config)
        cases.append(case)
        faults += wrong
        words = None if wrong else grids.remark(nifti.read_header(case.images[0]))
        odd += [words] if words else []
    if odd:
        host.notice(odd[0] + (f" ({len(odd)} cases are like that)" if len(odd) > 1 else ""))
    if skipped:
        host.notice(f"{root}: {len(skipped)} cases without labels are left out ({skipped[0]} ... {skipped[-1]})")
    if faults or not cases:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise DataError(
            "; ".join(faults[:2]) + more + "." if faults else f"{root.absolute()}: holds no case with a label.",
            "Complete the set or remove these cases; all faults: python -m unet check --task kits19 --data"
            f" {spelt(root)}",
        )
    return cases


def inputs(paths: Iterable[Path]) -> dict[str, Path]:
    """Images, case folders and whole sets -> {case: its image}; labels are passed over.

    Raises DataError for a path that does not exist, for one with no image, and for two images of one name.
    """
    result: dict[str, Path] = {}
    for path in (Path(os.path.abspath(item)) for item in paths):  # noqa: PTH100 (resolve() would rename links)
        if path.is_dir():
            own = [item for item in _files(path) if not is_label(item)]
            pairs = [(path.name, own[0])] if len(own) == 1 and _is_case(path) else _images(path)
        elif path.is_file() and nifti.is_nifti(path):
            pairs = [] if is_label(path) else [(_name(path), path)]
        else:
            what = "is no .nii or .nii.gz file" if path.is_file() else "no such file or folder"
            raise DataError(f"{path}: {what}.", "Give NIfTI images, case folders or a whole set.")
        for name, image in pairs:
            if result.setdefault(name, image) != image:
                raise DataError(
                    f"{image}: another image, {result[name]}, is case {name} too; their masks would meet.",
                    "Predict them one after the other, each with its own --output.",
                )
    if not result:
        raise DataError("No image among the paths: all of them are labels.", "Give images (imaging.nii.gz).")
    return result


def _is_case(folder: Path) -> bool:
    """Whether the files of a folder take their case's name from it."""
    return any(_name(path) == folder.name for path in _files(folder))


def _images(folder: Path) -> list[tuple[str, Path]]:
    found = [(name, image) for name, case in find(folder, tests=True).items() for image in case.images]
    if not found:
        raise DataError(f"{folder}: holds labels, and no image.", "Give images (imaging.nii.gz) or their folder.")
    return found


def _open(case: Case, config: Config) -> tuple[nifti.Header, nifti.Header, grids.Geometry, grids.Geometry]:
    """Headers of image and label, and their ways to the network's grid. Raises DataError where they do not fit."""
    head, label = nifti.read_header(case.images[0]), nifti.read_header(case.labels[0])
    how = grids.geometry(head, config.spacing, config.pad_to)
    order, flips = grids.turn(label, head)
    own = dataclasses.replace(how, raw=label.shape, order=order, flips=flips)
    if own.turned != how.turned:
        a, b = (" x ".join(map(str, item.shape)) + f" ({_codes(item)})" for item in (head, label))
        raise DataError(
            f"{label.path}: the label is {b}, its image {a}: they are of two grids.",
            "Copy the case's files again, or remove the case.",
        )
    return head, label, how, own


def _codes(head: nifti.Header) -> str:
    return ", ".join(head.codes) if head.codes else "no orientation"


def memory(head: nifti.Header, how: grids.Geometry) -> int:
    """About how many bytes preparing a case takes at its peak: the result, the components of its mask, and scan and
    label that are read whole where their axes lie otherwise; of a large case not all at once."""
    voxels = math.prod(how.size)
    width = 4 if head.slope not in (None, 1) else min(4, head.dtype.itemsize)
    whole = 0 if how.order == (0, 1, 2) and not any(how.flips) else width * math.prod(head.shape)
    if voxels < TOGETHER:
        return 10 * voxels + 2 * whole + 350_000_000
    return max(6 * voxels, 5 * voxels + whole) + 350_000_000


def normalise(volume: Array) -> None:
    """Clip Hounsfield units and scale them to zero mean and unit deviation, in place."""
    np.clip(volume, LOW, HIGH, out=volume)
    volume -= np.float32(MEAN)
    volume /= np.float32(DEVIATION)


def prepare(case: Case, config: Config) -> dict[str, Any]:
    """The deterministic part of one case -> image (1, D, H, W) float32, mask (1, D, H, W) uint8 in {0, 1, 2},
    foreground (voxels of kidney and of tumour), geometry, boxes (see `boxes`).

    Order as in MLPerf's reference: resample, clip, scale, pad. Raises DataError.
    """
    head, label, how, own = _open(case, config)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(_mask, label, own)
        if math.prod(how.size) >= TOGETHER:
            wait([job])
        image = grids.image(head, how, normalise)
        mask, facts = job.result()
    return {"image": image[None], "mask": mask[None], "geometry": how, **facts}


def _mask(label: nifti.Header, how: grids.Geometry) -> tuple[Array, dict[str, Any]]:
    mask = grids.label(label, how)
    return mask, boxes.facts(mask)


def truth(case: Case, config: Config) -> tuple[Array, grids.Geometry]:
    """The labels of a raw case (D, H, W) uint8 on its scan's own grid, and the scan's way to the network's. Raises
    DataError."""
    _, label, how, own = _open(case, config)
    return grids.turned(nifti.read_label(label.path), own), how


def resampled_label(case: Case, config: Config) -> Array:
    """The labels of a raw case (D, H, W) uint8 on the network's grid, as `prepare` makes them. Raises DataError."""
    _, label, _, own = _open(case, config)
    return grids.label(label, own)


def prepare_image(path: Path, config: Config) -> tuple[Array, grids.Geometry]:
    """A scan -> (1, D, H, W) float32 of the network, and the way back. Tells of unusual axes. Raises DataError."""
    head = nifti.read_header(path)
    how = grids.geometry(head, config.spacing, config.pad_to)
    words = grids.remark(head)
    if words:
        host.notice(words)
    return grids.image(head, how, normalise)[None], how
