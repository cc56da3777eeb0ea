"""A folder of brain volumes: its cases (`volumes`), and the deterministic part of their way to the network (`cube`). No
torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.config.schema import shell_path
from unet.data.cache.layout import Layout, require_values
from unet.data.cases import Case
from unet.data.io import nifti
from unet.data.io.nifti_header import raw_header, sides_of, times, volumes_of
from unet.data.preprocessing import area
from unet.errors import CacheError, DataError, UnetError
from unet.tasks.brains import cube
from unet.tasks.brains.cube import Grid, restore, restore_deviation
from unet.tasks.brains.settings import Settings
from unet.tasks.brains.volumes import find, inputs, is_lesion, lesion_of, name_of, split, subjects

__all__ = ["Grid", "find", "inputs", "is_lesion", "restore", "restore_deviation", "split", "subjects"]

Array = NDArray[Any]
BRAIN, LESION = 1, 2  # values of a mask
BASE = 150_000_000  # bytes of a process with numpy and scipy
LONG = 250  # letters of a fault above which one is enough


def bottom(settings: Settings) -> float:
    """The lower end of a cube's range: 0 with --output-activation sigmoid, else -1. The upper one is 1."""
    return 0.0 if settings.output_activation == "sigmoid" else -1.0


def cache_settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide the content of a case's arrays."""
    return {
        "resolution": settings.resolution,
        "output_activation": settings.output_activation,
        "volume": settings.volume,
    }


def open_header(path: Path, settings: Settings) -> nifti.Header:
    """The header of a volume, or of volume --volume of a 4-D file (a 3-D file is taken as it is). Raises DataError for
    a 4-D file where none is chosen, for a single slice, and as `nifti.read_header` does."""
    raw = raw_header(path)
    count = volumes_of(raw)
    if count > 1 and settings.volume is None:
        raise DataError(
            f"{path}: holds {count} volumes ({times(sides_of(raw))}); one is expected.",
            f"Type --volume N to take one of them, 0 to {count - 1}, or save the one that is wanted as a file.",
        )
    if count > 1 and settings.volume is not None and settings.volume >= count:
        raise DataError(
            f"{path}: has no volume {settings.volume}: it holds {count} ({times(sides_of(raw))}).",
            f"Type --volume N with N from 0 to {count - 1}.",
        )
    head = nifti.read_header(path, volume=settings.volume if count > 1 else None)
    if min(head.shape) < 2:
        raise DataError(f"{path}: is {times(head.shape)} voxels: one slice; a volume is expected.", cube.REMOVE)
    return head


def memory(head: nifti.Header, resolution: int) -> int:
    """About how many bytes preparing a case takes at its peak: the volume, where it is NaN, a block of it in double
    precision, its planes at the size of the cube, and the cube."""
    planes = 8 * max(head.shape) * resolution**2
    return BASE + 8 * math.prod(head.shape) + 32 * area.SLAB + planes + 40 * resolution**3


def require_memory(head: nifti.Header, needed: int) -> None:
    """Raise DataError for a volume that takes more than this machine has, by its header: before memory is taken."""
    total = host.memory()[0]
    if needed > total > 0:
        raise DataError(
            f"{head.path}: its {times(head.shape)} voxels take {host.format_bytes(needed)} of memory; this machine has"
            f" {host.format_bytes(total)}.",
            "Save it with larger voxels, or leave it out with --pattern.",
        )


def _read_case(path: Path, root: Path, settings: Settings) -> tuple[Case, list[list[str]]]:
    """One case and what is odd about its header. Raises DataError."""
    name = name_of(path, root)
    if not name.isprintable() or "\\" in name:
        raise DataError(f"{name!r} in {root}: no name for a case.", "Name the file with letters, digits, - and _.")
    head, lesion = open_header(path, settings), lesion_of(path)
    case = Case(name, (path,), (lesion,) if lesion else (), memory=memory(head, settings.resolution))
    return case, cube.remarks(head)


def index(root: Path, settings: Settings) -> list[Case]:
    """Every case of a folder, sorted by path; only headers are read. Raises one DataError that names the first faults
    and counts them, and as `find` does."""
    cases: list[Case] = []
    faults: list[UnetError] = []
    odd: list[list[str]] = []
    paths = find(root, settings)
    for path in paths:
        try:
            case, remarks = _read_case(path, root, settings)
        except UnetError as error:
            faults.append(error)
            continue
        cases.append(case)
        odd += remarks
    host.notice_by_kind(odd)
    if faults:
        words = [fault.message.rstrip(".") for fault in faults]
        shown = 1 if len(max(words, key=len)) > LONG else 2
        more = f" ({len(faults)} of {len(paths)} files have faults)" if len(faults) > shown else ""
        raise DataError(
            "; ".join(words[:shown]) + more + ".",
            f"{faults[0].hint.rstrip('.')}; all faults: python -m unet check --task {settings.name} --data"
            f" {shell_path(root)}",
        )
    return cases


def prepare(case: Case, settings: Settings) -> dict[str, Any]:
    """The deterministic part of one case -> image (1, r, r, r) float32 in [-1, 1] ([0, 1] for a sigmoid), mask of the
    same shape (uint8: 1 brain, 2 lesion where a mask of lesions lies beside the volume, 0 elsewhere), foreground
    (voxels of 1 and of 2), geometry (see `Grid`), remarks (kind, words): what was odd about its voxels.

    Raises DataError, also for a volume without contrast. Source: the validation pipeline of 3d_very_deep_vae, on the
    axes R, A, S.
    """
    head = open_header(case.images[0], settings)
    require_memory(head, memory(head, settings.resolution))
    noted = len(head.notes)
    image, grid = cube.of_file(head, settings.resolution, bottom(settings))
    mask = cube.brain(image, grid.bottom).astype(np.uint8)
    remarks = [["voxels", note] for note in head.notes[noted:]]
    for path in case.labels:
        lesion, odd = cube.lesions(path, head, grid, image.shape)
        mask[lesion] = LESION
        remarks += odd
    return {"image": image[None], "mask": mask[None], **mask_facts(mask), "geometry": grid, "remarks": remarks}


def prepare_image(path: Path, settings: Settings) -> tuple[Array, Grid]:
    """A volume -> (1, r, r, r) float32 of the network, and the way back. Tells what is odd. Raises DataError."""
    head = open_header(path, settings)
    require_memory(head, memory(head, settings.resolution) + 12 * math.prod(head.shape))
    remarks = cube.remarks(head)
    noted = len(head.notes)
    image, grid = cube.of_file(head, settings.resolution, bottom(settings))
    for words in [words for _, words in remarks] + head.notes[noted:]:
        host.notice(words)
    return image[None], grid


def require_cube(path: Path, image: Array, mask: Array, settings: Mapping[str, Any]) -> None:
    """Raise CacheError unless arrays of another program are a cube of the resolution with its mask."""
    shape = (1, *(settings["resolution"],) * 3)
    if image.shape == shape and image.dtype == np.float32 and mask.shape == shape and mask.dtype == np.uint8:
        return
    is_cube = image.ndim == 4 and len(set(image.shape[1:])) == 1
    fitting = f"Type --resolution {image.shape[1]}, or name" if is_cube and image.shape != shape else "Name"
    raise CacheError(
        f"{path.absolute()}: {image.shape} {image.dtype} with a mask {mask.shape} {mask.dtype} is not {shape} float32"
        " with uint8.",
        f"{fitting} another --cache, or build one from the volumes.",
    )


def mask_facts(mask: Array) -> dict[str, Any]:
    """foreground: voxels of brain without lesions, and of lesions. Raises CacheError for values that a mask has not."""
    if int(mask.max()) > LESION:
        require_values(mask, {0, BRAIN, LESION})
    return {"foreground": [int(np.count_nonzero(mask == value)) for value in (BRAIN, LESION)]}


def one(shape: tuple[int, ...]) -> int:
    """Scoring a cube takes one pass."""
    return 1


def values_of(shape: tuple[int, ...]) -> int:
    return len((BRAIN, LESION))


def possible(shape: tuple[int, ...], facts: Mapping[str, Any]) -> bool:
    """Whether a cube of one channel holds as many voxels of brain and lesion."""
    return shape[0] == 1 and len(set(shape[1:])) == 1 and sum(facts["foreground"]) <= math.prod(shape)


LAYOUT = Layout(
    "brains",
    "_volume.npy",
    "_mask.npy",
    1,
    one,
    require_cube,
    mask_facts,
    values_of,
    possible,
    schema={"geometry?": {"raw": [int], "order": [int], "flips": [bool], "low": float, "high": float, "bottom": float}},
    needed=("geometry",),
)
