"""Made brains in the layout of a raw set: skull-stripped T1 volumes as NIfTI, and the mask of the lesions beside each
that has some (see `anatomy`). A small network learns them in minutes. No torch.
"""

from __future__ import annotations

import functools
import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.errors import DataError, UnetError
from unet.files import atomic, make_folder, read_json, remove_leftovers, write_json
from unet.tasks.brains.anatomy import FIELD_OF_VIEW, make_brain

VERSION = 1
NAME, LESION = "brain_{:04d}.nii.gz", "brain_{:04d}_lesion.nii.gz"
RECORD, BEGUN = "phantom.json", "phantom.unfinished.json"
ILL = 4  # of each so many brains one has lesions
MOST = 100_000  # brains of a made set: a larger number is a damaged one
SMALLEST, LARGEST = 8, 256  # voxels of a side
SCHEMA = {"brains": int, "seed": int}


def has_lesions(seed: int, index: int) -> bool:
    """Whether a brain has lesions: one of each four, drawn by the seed."""
    return int(np.random.default_rng((seed, index // ILL, 1)).integers(ILL)) == index % ILL


def files(seed: int, index: int) -> list[str]:
    """The names of a brain's files: the volume, and the lesions where it has some."""
    return [NAME.format(index), *([LESION.format(index)] if has_lesions(seed, index) else [])]


def _write(path: Path, array: NDArray[Any]) -> None:
    """Write a cube as .nii.gz, axes R, A, S, its middle at 0 mm, atomically; the same content gives the same bytes."""
    from nibabel.nifti1 import Nifti1Image

    side = len(array)
    spacing = FIELD_OF_VIEW / side
    affine = np.diag((spacing, spacing, spacing, 1.0))
    affine[:3, 3] = -spacing * (side - 1) / 2
    image = Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    plain = io.BytesIO()
    image.to_stream(plain)
    with atomic(path) as stream, gzip.GzipFile("", "wb", 1, stream, mtime=0) as packed:
        packed.write(plain.getbuffer())


def _write_brain(folder: Path, seed: int, side: int, index: int) -> None:
    ill = has_lesions(seed, index)
    image, lesion = make_brain(seed, index, side, ill)
    if ill:
        _write(folder / LESION.format(index), lesion)
    _write(folder / NAME.format(index), image)


def write_set(folder: Path, count: int, side: int, seed: int, overwrite: bool = False) -> None:
    """Write `<folder>/brain_0000.nii.gz` and so on, int16 (side, side, side), background 0, axes R, A, S; for a fourth
    of them `brain_0000_lesion.nii.gz`, uint8 of 0 and 1; then phantom.json.

    A brain depends on seed, number and side alone: more brains leave the first ones as they are. Leaves a whole set of
    the same parameters alone and completes an interrupted one. Raises DataError for what cannot be made, and where the
    folder holds a set of other parameters, or volumes of none; `overwrite` replaces made brains and never touches other
    files.
    """
    if not SMALLEST <= side <= LARGEST or not 1 <= count <= MOST:
        raise DataError(
            f"{count} brains of {side} x {side} x {side} voxels: a set has 1 to {MOST:,} of {SMALLEST} to {LARGEST} a"
            " side.",
            "Ask for 40 brains of 32, for example.",
        )
    wanted = {"seed": seed, "brains": count, "side": side, "version": VERSION}
    record, begun = make_folder(folder) / RECORD, folder / BEGUN
    found = next((read_json(path, SCHEMA) for path in (record, begun) if path.exists()), None)
    older = _made(found) if found else set()
    targets = [files(seed, index) for index in range(count)]
    others = sorted(path.name for path in folder.glob("*.nii*") if path.name not in older)
    clash = sorted({name for names in targets for name in names} & set(others))
    if clash:
        raise DataError(
            f"{folder.absolute()}: holds {clash[0]}, which was not made here.", "Name another folder with --data."
        )
    if found != wanted and (found or others) and not overwrite:
        held = f"made brains of {found}" if found else f"{len(others)} volumes of no made set ({others[0]}, ...)"
        raise DataError(
            f"{folder.absolute()}: holds {held}; asked for is {wanted}.",
            "Add --overwrite to replace made brains (other files stay), or name another folder with --data.",
        )
    if found != wanted or overwrite:  # old ones go first: none may pass for new, should this call be interrupted
        for name in (RECORD, BEGUN, *sorted(older)):
            (folder / name).unlink(missing_ok=True)
    missing = [index for index, names in enumerate(targets) if not all((folder / name).exists() for name in names)]
    if missing or not record.exists():
        write_json(begun, wanted)
        remove_leftovers(folder)
        _make(functools.partial(_write_brain, folder, seed, side), missing)
        write_json(record, wanted)
        begun.unlink()


def _made(found: dict[str, Any]) -> set[str]:
    """The files that a record stands for."""
    return {name for index in range(min(found["brains"], MOST)) for name in files(abs(found["seed"]), index)}


def _make(work: Any, indexes: list[int]) -> None:
    try:
        for _, future in host.process_map(work, indexes, "making brains", "brain"):
            future.result()
    except host.ProcessLost as error:
        raise UnetError(
            f"A process that makes brains has died: {error.message}",
            "Free some memory, then type the command again: it goes on where it stopped.",
        ) from error
