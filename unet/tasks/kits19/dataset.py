"""The KiTS19 set (0 background, 1 kidney, 2 tumour; ids from 210 on have no labels) and any other set of CT volumes as
`nifti_cases` finds it: what is wrong with its cases, and the deterministic part of their way to the network. No torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host, windows
from unet.config.schema import shell_path
from unet.data import splits
from unet.data.cache.layout import Layout, require_values
from unet.data.cases import Case
from unet.data.io import nifti, volumes
from unet.data.io.nifti_cases import Found, find, inputs, require_one_channel
from unet.data.io.nifti_header import times
from unet.data.preprocessing import alignment, grids
from unet.data.preprocessing.intensity import AIR, CtWindow
from unet.data.splits import number_of
from unet.errors import CacheError, DataError, UnetError
from unet.tasks.kits19 import boxes
from unet.tasks.kits19.settings import Settings

__all__ = ["Found", "find", "inputs"]

Array = NDArray[Any]
UNLABELLED = 210
TOGETHER = 10**8  # voxels of a result below which image and mask are made at the same time
PREDICTED = 20  # bytes of a voxel in prediction: the scan, sums of three classes, their parts
LONG = 250  # letters of a fault above which one is enough
MISSING = "Complete the set or remove these cases"

# evaluation_cases.txt of MLPerf's U-Net3D reference: the 42 of KiTS19's 210 cases that its target is defined on
EVALUATION_CASES = frozenset(
    (0, 3, 5, 6, 12, 24, 34, 41, 44, 49, 52, 56, 61, 65, 66, 70, 76, 78, 80, 84, 86)
    + (87, 92, 111, 112, 125, 128, 138, 157, 160, 161, 162, 169, 171, 176, 185, 187, 189, 198, 203, 206, 207)
)


def read_case(name: str, found: Found, settings: Settings) -> tuple[Case, list[str]]:
    """One case, and what is wrong with its files, in words; only headers are read."""
    case, faults, _ = _read_case(name, found, settings)
    return case, [fault.message.rstrip(".") for fault in faults]


def _read_case(name: str, found: Found, settings: Settings) -> tuple[Case, list[UnetError], list[tuple[str, str]]]:
    """One case, what is wrong with its files, and what is odd about them (kind, words)."""
    case = Case(name, tuple(found.images[:1]), tuple(found.labels[:1]))
    faults: list[UnetError] = []
    for files, kind in ((found.images, "image"), (found.labels, "label")):
        beside = (found.labels or found.images)[0]
        if not files:
            faults.append(DataError(f"{beside}: has no {kind} beside it ({name})", MISSING))
        if len(files) > 1:
            names = ", ".join(path.name for path in files[:3])
            faults.append(DataError(f"{name}: {len(files)} files for its {kind}: {names}; one is expected", MISSING))
    if not name.isprintable() or "\\" in name:
        hint = "Give the case a name of letters, digits, - and _"
        faults.append(
            DataError(f"{name!r} in {(found.images or found.labels)[0].parent.parent}: no name for a case", hint)
        )
    if faults:
        return case, faults, []
    try:
        head, label, how, _ = _open(case, settings)
    except UnetError as error:
        return case, [error], []
    cost = windows.count(how.size, settings.eval_patch, settings.overlap)
    case = dataclasses.replace(case, cost=cost, spacing=how.spacing, memory=memory(head, how))
    return case, [], grids.remarks(head) + [("header of a label", note) for note in label.notes]


def index(root: Path, settings: Settings) -> list[Case]:
    """Every case of a raw set. Raises one DataError that names the first faults and counts them.

    KiTS19's ids from 210 on are left out, with a notice, where they have no labels.
    """
    cases: list[Case] = []
    faults: list[UnetError] = []
    skipped: list[str] = []
    odd: list[tuple[str, str]] = []
    everything = find(root)
    require_one_channel(root, {name: found.images for name, found in everything.items()})
    for name, found in everything.items():
        number = number_of(name)
        if number is not None and number >= UNLABELLED and not found.labels:
            skipped.append(name)
            continue
        case, wrong, remarks = _read_case(name, found, settings)
        cases.append(case)
        faults += wrong
        odd += remarks
    host.notice_by_kind(odd)
    if skipped:
        host.notice(f"{root}: {len(skipped)} cases without labels are left out ({skipped[0]} ... {skipped[-1]})")
    if faults or not cases:
        words = [fault.message.rstrip(".") for fault in faults]
        shown = 1 if len(max(words, default="", key=len)) > LONG else 2
        more = f" (and {len(faults) - shown} more)" if len(faults) > shown else ""
        hint = (faults[0].hint if faults else MISSING).rstrip(".")
        raise DataError(
            "; ".join(words[:shown]) + more + "." if faults else f"{root.absolute()}: holds no case with a label.",
            f"{hint}; all faults: python -m unet check --task kits19 --data {shell_path(root)}",
        )
    return cases


def _open(case: Case, settings: Settings) -> tuple[nifti.Header, nifti.Header, grids.Geometry, grids.Geometry]:
    """Headers of image and label, and their ways to the network's grid. Raises DataError where they do not fit."""
    head, label = nifti.read_header(case.images[0]), nifti.read_header(case.labels[0], grid=own_grid(settings))
    how = grids.geometry(head, settings.spacing, settings.pad_to)
    return head, label, how, alignment.place(case.id, head, label, how, settings.label_geometry)


def own_grid(settings: Settings) -> bool:
    """Whether the header of a label says where its voxels lie."""
    return settings.label_geometry != alignment.AS_STORED


def memory(head: nifti.Header, how: grids.Geometry) -> int:
    """About how many bytes preparing a case takes at its peak: the result, the components of its mask, and scan and
    label that are read whole where their axes lie otherwise; of a large case not all at once."""
    voxels = math.prod(how.size)
    width = 4 if head.slope not in (None, 1) else min(4, head.dtype.itemsize)
    whole = 0 if how.order == (0, 1, 2) and not any(how.flips) else width * math.prod(head.shape)
    if voxels < TOGETHER:
        return 10 * voxels + 2 * whole + 400_000_000
    return max(6 * voxels, 5 * voxels + whole) + 400_000_000


def require_memory(head: nifti.Header, how: grids.Geometry, needed: int) -> None:
    """Raise DataError for a volume that takes more than this machine has, by its header: before memory is taken."""
    total = host.memory()[0]
    if needed > total > 0:
        raise DataError(
            f"{head.path}: its {times(head.shape)} voxels of {times(head.spacing)} mm become {times(how.size)}, which"
            f" takes {host.format_bytes(needed)} of memory; this machine has {host.format_bytes(total)}.",
            "Correct the spacing in its header, type a coarser --spacing, or remove the case.",
        )


def prepare(case: Case, settings: Settings) -> dict[str, Any]:
    """The deterministic part of one case -> image (1, D, H, W) float32, mask (1, D, H, W) uint8 in {0, 1, 2},
    foreground (voxels of kidney and of tumour), geometry, boxes (see `boxes`), remarks (kind, words): what was odd
    about its voxels and how it was taken.

    Order as in MLPerf's reference: resample, clip, scale, pad. Raises DataError, also for what is no CT.
    """
    head, label, how, own = _open(case, settings)
    require_memory(head, how, memory(head, how))
    headers = len(head.notes), len(label.notes)
    window = CtWindow()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(_mask, label, own)
        if math.prod(how.size) >= TOGETHER:
            wait([job])
        image = grids.image(head, how, window, AIR)
        mask, facts = job.result()
    window.require(head.path)
    strange = window.remark(head.path)
    remarks = [["values", strange]] if strange else []
    remarks += [["voxels", note] for note in head.notes[headers[0] :]]
    remarks += [["labels", note] for note in label.notes[headers[1] :]]
    return {"image": image[None], "mask": mask[None], "geometry": how, **facts, "remarks": remarks}


def _mask(label: nifti.Header, how: grids.Geometry) -> tuple[Array, dict[str, Any]]:
    mask = grids.label(label, how)
    return mask, boxes.facts(mask)


def truth(case: Case, settings: Settings) -> tuple[Array, grids.Geometry]:
    """The labels of a raw case (D, H, W) uint8 on its scan's own grid, and the scan's way to the network's. Raises
    DataError."""
    _, label, how, own = _open(case, settings)
    return grids.turned(nifti.read_label(label.path, own_grid(settings)), own), how


def resampled_label(case: Case, settings: Settings) -> Array:
    """The labels of a raw case (D, H, W) uint8 on the network's grid, as `prepare` makes them. Raises DataError."""
    _, label, _, own = _open(case, settings)
    return grids.label(label, own)


def prepare_image(path: Path, settings: Settings) -> tuple[Array, grids.Geometry]:
    """A scan -> (1, D, H, W) float32 of the network, and the way back. Tells of unusual axes. Raises DataError."""
    head = volumes.scan_header(path)
    how = grids.geometry(head, settings.spacing, settings.pad_to)
    remarks = grids.remarks(head)
    require_memory(head, how, max(memory(head, how), PREDICTED * math.prod(how.size)))
    headers, window = len(head.notes), CtWindow()
    volume = grids.image(head, how, window, AIR)
    window.require(path)
    strange = window.remark(path)
    for words in [words for _, words in remarks] + head.notes[headers:] + ([strange] if strange else []):
        host.notice(words)
    return volume[None], how


def require_volumes(path: Path, image: Array, mask: Array, settings: Mapping[str, Any]) -> None:
    """Raise CacheError unless arrays of another program are a volume, large enough, with its labels."""
    fits = image.ndim == 4 and image.shape[0] == 1 and image.dtype == np.float32
    if not fits or mask.shape != image.shape or mask.dtype != np.uint8:
        raise CacheError(
            f"{path.absolute()}: {image.shape} {image.dtype} with labels {mask.shape} {mask.dtype} is not (1, D, H, W)"
            " float32 with (1, D, H, W) uint8.",
            "Give a cache of this task, or build one from the raw set.",
        )
    least = tuple(settings["pad_to"])
    if any(side < wanted for side, wanted in zip(image.shape[1:], least, strict=True)):
        sides = " ".join(str(min(side, wanted)) for side, wanted in zip(image.shape[1:], least, strict=True))
        raise CacheError(
            f"{path.absolute()}: the cache holds a volume of {' x '.join(map(str, image.shape[1:]))}, asked:"
            f" --pad-to {' '.join(map(str, least))}.",
            f"Type --pad-to {sides} or less, or name another --cache.",
        )


def windows_of(shape: tuple[int, ...]) -> int:
    """Windows of 128 voxels that scoring a cached volume takes."""
    return windows.count(shape[1:], (128, 128, 128))


def classes_of(shape: tuple[int, ...]) -> int:
    return len(boxes.CLASSES)


def mask_facts(mask: Array) -> dict[str, Any]:
    """See `boxes.facts`. Raises CacheError for values that are no class."""
    if int(mask.max()) > max(boxes.CLASSES):
        require_values(mask, {0, *boxes.CLASSES})
    return boxes.facts(mask)


def possible(shape: tuple[int, ...], facts: Mapping[str, Any]) -> bool:
    """Whether boxes of each class are told, and lie inside of the volume."""
    found = facts.get("boxes", {})
    return set(found) == {str(number) for number in boxes.CLASSES} and all(
        len(box) == 6
        and all(0 <= low < high <= side for low, high, side in zip(box[::2], box[1::2], shape[1:], strict=True))
        for each in found.values()
        for box in each
    )


def mlperf_split(ids: Sequence[str]) -> splits.Split:
    """MLPerf's 42 evaluation cases, as many as the set has. Raises DataError where it has none of them."""
    ordered = sorted(ids)
    validation = [case for case in ordered if number_of(case) in EVALUATION_CASES]
    if not validation:
        raise DataError(
            f"None of MLPerf's {len(EVALUATION_CASES)} evaluation cases (case_00000, case_00003 ...) is in the set of"
            f" {len(ordered)} cases (first: {', '.join(ordered[:2])}).",
            "Type --held-out N, --fold 0, --split none, or a file of names with --split.",
        )
    return splits.split_off(ordered, validation)


LAYOUT = Layout(
    "kits19",
    "_x.npy",
    "_y.npy",
    1,
    windows_of,
    require_volumes,
    mask_facts,
    classes_of,
    possible,
    schema={"boxes?": {str: [[int]]}},
    needed=("boxes", "geometry"),
    kept="boxes.json",
)
