"""Made abdominal CT in the layout of KiTS19: cases with an anatomy of their own, or Hounsfield units painted on real
labels (see `anatomy`). A small network learns them in minutes. No torch.
"""

from __future__ import annotations

import functools
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io import nifti
from unet.errors import DataError
from unet.files import atomic, digest, make_folder, path_inside, read_json, real_path, remove_leftovers, write_json
from unet.tasks.kits19.anatomy import DEPTH, Body, Painter, draw_kidneys, paint

Array = NDArray[Any]
VERSION = 1
NAME = "case_{:05d}"
IMAGE, LABEL = PARTS = "imaging.nii.gz", "segmentation.nii.gz"
RECORD, BEGUN = "phantom.json", "phantom.unfinished.json"
GRID = (1.6, 1.2, 1.2)  # mm: the spacing of the network's grid, in which `shape` is meant
SMALLEST = 16


def _grid(rng: np.random.Generator, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Voxels and spacing of a case whose sides on the network's grid are `shape` up to a twelfth more."""
    sides = [int(n * factor) for n, factor in zip(shape, 1 + rng.uniform(0, 1 / 12, 2)[[0, 1, 1]], strict=True)]
    # Finer than the grid where it differs: resampling moves labels against the image by up to half a voxel.
    slices, pixels = (1.0 if rng.random() < 0.65 else rng.uniform(low, 0.95) for low in (0.6, 0.7))
    spacing = [round(mm * factor, 4) for mm, factor in zip(GRID, (slices, pixels, pixels), strict=True)]
    # A thousandth more than needed: a size that is cut to whole voxels must not fall short by rounding.
    voxels = [
        n if s == mm else int(np.ceil((n + 0.001) * mm / s)) for n, mm, s in zip(sides, GRID, spacing, strict=True)
    ]
    return tuple(voxels), tuple(spacing)


def _phantom(seed: int, index: int, shape: Sequence[int]) -> Painter:
    rng = np.random.default_rng((seed, index))
    voxels, spacing = _grid(rng, shape)
    sides = [n * s for n, s in zip(voxels, spacing, strict=True)]
    half = rng.uniform(0.44, 0.47) * min(sides[2], sides[1] / DEPTH)
    centre = [side * (0.5 + rng.uniform(-0.02, 0.02)) for side in sides]
    body = Body(rng, voxels, spacing, centre, half)
    return Painter(body, draw_kidneys(body))


def make_case(
    seed: int, index: int, shape: Sequence[int]
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, ...]]:
    """One phantom: HU (D, H, W) int16, labels (D, H, W) of 0, 1 kidney, 2 tumour, spacing in mm.

    Resampled to GRID its sides are `shape` up to a twelfth more. The same arguments give the same arrays.
    """
    painter = _phantom(seed, index, shape)
    hu = np.concatenate([slab.astype(np.int16) for slab in painter.slabs()])
    return hu.transpose(2, 1, 0), painter.label.transpose(2, 1, 0), painter.body.spacing


def _header(shape: Sequence[int], spacing: Sequence[float], dtype: Any) -> Any:
    """A NIfTI-1 header with the axes of KiTS19: I, P, L."""
    from nibabel.nifti1 import Nifti1Header

    affine = np.diag((0.0, 0.0, 0.0, 1.0))
    affine[2, 0], affine[1, 1], affine[0, 2] = (-float(mm) for mm in spacing)
    header = Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(tuple(shape))
    header.set_zooms(tuple(map(float, spacing)))
    header.set_sform(affine, "aligned")
    return header


def _write(path: Path, header: Any, slabs: Iterator[Array]) -> None:
    """Write header and slabs (planes, H, D) as .nii.gz, atomically; the same content gives the same bytes."""
    header["vox_offset"] = header.single_vox_offset
    dtype = header.get_data_dtype()
    with atomic(path) as stream, gzip.GzipFile("", "wb", 1, stream, mtime=0) as packed:
        packed.write(header.binaryblock + bytes(header.single_vox_offset - len(header.binaryblock)))
        for slab in slabs:
            packed.write(np.ascontiguousarray(slab, dtype).data)


def _make_phantom(folder: Path, seed: int, shape: Sequence[int], index: int) -> None:
    painter, target = _phantom(seed, index, shape), _target(folder, NAME.format(index))
    grid = painter.body.shape, painter.body.spacing
    _write(target / LABEL, _header(*grid, np.uint8), iter([painter.label]))
    _write(target / IMAGE, _header(*grid, np.int16), painter.slabs())


def _make_painted(folder: Path, seed: int, labels: Path, index: int) -> None:
    """Copy a label as it is, and paint a float32 image on its grid, with its header."""
    source, target = labels / NAME.format(index) / LABEL, _target(folder, NAME.format(index))
    head = nifti.read_header(source)
    slabs = paint(seed, index, nifti.read_label(source), head.spacing)
    with atomic(target / LABEL) as stream:
        stream.write(source.read_bytes())
    header = head.raw.copy()
    header.set_data_dtype(np.float32)
    header.set_slope_inter(1, 0)
    _write(target / IMAGE, header, slabs)


def _target(folder: Path, name: str) -> Path:
    target = make_folder(folder / name)
    remove_leftovers(target)
    return target


def _numbers(labels: Path, cases: int | None) -> list[int]:
    """Numbers of the first `cases` labels of a folder. Raises DataError where there are none."""
    found = sorted(
        int(match[1])
        for path in labels.glob(f"*/{LABEL}")
        if (match := re.fullmatch(r"case_(\d{5})", path.parent.name))
    )
    if not found:
        raise DataError(
            f"{labels.absolute()}: holds no case_XXXXX/{LABEL}.",
            "Give a folder of KiTS19 labels with --labels, or make cases of their own without it.",
        )
    return found[:cases]


SCHEMA = {"cases?": int, "labels?": {str: object}, "seed?": int}
MOST = 100_000  # cases of a made set: a larger number is a damaged one


def _wanted(folder: Path, cases: int | None, shape: Sequence[int], seed: int, labels: Path | None) -> dict[str, Any]:
    """The record of a set: what makes it. Raises DataError for what cannot be made."""
    base = {"made": True, "seed": seed, "version": VERSION}
    if labels is None:
        if min(shape) < SMALLEST or len(shape) != 3 or not cases:
            raise DataError(
                f"{cases} phantoms of {' x '.join(map(str, shape))}: a body needs {SMALLEST} voxels a side.",
                "Ask for one case or more of larger sides, 64 for example.",
            )
        return {**base, "cases": cases, "shape": list(shape)}
    if real_path(folder) == real_path(labels):
        raise DataError(
            f"{folder.absolute()}: made images would lie among the real labels.", "Name another folder with --data."
        )
    numbers = _numbers(labels, cases)
    content = {NAME.format(n): digest((labels / NAME.format(n) / LABEL).read_bytes()) for n in numbers}
    return {**base, "cases": len(numbers), "labels": content}


def _targets(folder: Path, record: Any) -> set[str]:
    """The case folders that a record names. Raises UnetError for a name that leads out of the set."""
    if not isinstance(record, dict):
        return set()
    if "labels" not in record:
        return set(map(NAME.format, range(min(record.get("cases", 0), MOST))))
    return {path_inside(folder, name).name for name in record["labels"]}


def write_set(
    folder: Path,
    cases: int | None,
    shape: Sequence[int],
    seed: int,
    labels: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write `<folder>/case_XXXXX/imaging.nii.gz` and `segmentation.nii.gz`, then phantom.json, which says "made": true.

    Without `labels`: cases 0 to `cases` - 1 with an anatomy of their own, about `shape` (D, H, W) on the grid of GRID.
    With `labels`: images painted on the first `cases` (None: all) of a folder of real labels, which are copied, each
    under its own number and on its own grid; `shape` plays no part.
    Leaves a whole set of the same parameters alone and completes an interrupted one. Raises DataError where the folder
    holds a set of other parameters, or cases of none; `overwrite` replaces made cases and never touches others.
    """
    wanted = _wanted(folder, cases, shape, seed, labels)
    record, begun = make_folder(folder) / RECORD, folder / BEGUN
    found = next((read_json(path, SCHEMA) for path in (record, begun) if path.exists()), None)
    older, targets = _targets(folder, found), sorted(_targets(folder, wanted))
    others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in older)
    clash = [name for name in targets if name in others and any((folder / name / part).exists() for part in PARTS)]
    if (found != wanted and (found or others) and not overwrite) or clash:
        held = f"made cases of {_words(found)}" if found else f"{len(others)} folders of no made set ({others[0]}, ...)"
        if clash and (found or overwrite):
            held = f"{clash[0]}, which was not made here"
        raise DataError(
            f"{folder.absolute()}: holds {held}; asked for is {_words(wanted)}.",
            "Name another folder with --data."
            if clash
            else "Add --overwrite to replace made cases (other folders stay), or name another folder with --data.",
        )
    if found != wanted or overwrite:
        _clear(folder, older)
    missing = [name for name in targets if not all((folder / name / part).exists() for part in PARTS)]
    if missing or not record.exists():
        write_json(begun, wanted)
        if labels is None:
            work = functools.partial(_make_phantom, folder, seed, tuple(shape))
        else:
            work = functools.partial(_make_painted, folder, seed, labels)
        host.run_all(work, [int(name[-5:]) for name in missing], "making cases", "case")
        write_json(record, wanted)
        begun.unlink()


def _clear(folder: Path, names: set[str]) -> None:
    """Remove the made files of an older set, then its records; anything else stays."""
    for target in map(folder.joinpath, sorted(names)):
        for part in PARTS:
            (target / part).unlink(missing_ok=True)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
    for path in (folder / RECORD, folder / BEGUN):
        path.unlink(missing_ok=True)


def _words(record: Any) -> str:
    if isinstance(record, dict) and "labels" in record:
        return (
            f"{record['cases']} cases on real labels ({', '.join(sorted(record['labels'])[:3])}), seed {record['seed']}"
        )
    return str(
        {name: value for name, value in record.items() if name != "made"} if isinstance(record, dict) else record
    )
