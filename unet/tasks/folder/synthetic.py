"""A made set in nnU-Net's layout: volumes of two channels with two kinds of bodies in them, one inside the other; or
DICOM series of one channel with DICOM-SEG masks. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files, host, locks
from unet.data.io import nifti, volumes
from unet.data.io.dicom import made
from unet.errors import UsageError

MADE, BEGUN = "synthetic.json", "synthetic.unfinished.json"
RECORD = {"cases": int, "slices": int, "side": int, "seed": int, "dicom?": bool}
MOST = 100_000  # cases of a made set, with 100 slices each: a larger number is a damaged one
NAME, DATASET = "case_{:03}", "dataset.json"
SPACING = (1.0, 1.0, 2.0)  # mm along x, y, z
CLASSES = {"background": 0, "body": 1, "core": 2}


def files_of(about: Mapping[str, Any]) -> list[str]:
    """The files of a made set of these numbers."""
    found, cases = [], min(about["cases"], MOST)
    slices = min(about["slices"], 100 * MOST // max(1, cases))
    for case in map(NAME.format, range(cases)):
        if about.get("dicom"):
            found += [f"images/{case}/{made.NAME.format(n + 1)}" for n in range(slices)]
            found.append(f"masks/{case}.dcm")
        else:
            found += [f"imagesTr/{case}_{channel:04}.nii.gz" for channel in range(2)]
            found.append(f"labelsTr/{case}.nii.gz")
    return [*found, DATASET]


def write_set(
    path: Path, cases: int, slices: int, side: int, seed: int, overwrite: bool = False, dicom: bool = False
) -> None:
    """Write `cases` volumes of side x side x slices into `path`, then synthetic.json; a set that is there with the same
    numbers is kept. Raises UsageError for one with others, unless `overwrite`, and where files lie that were not made
    here: these are never touched."""
    about = {"cases": cases, "slices": slices, "side": side, "seed": seed, **({"dicom": True} if dicom else {})}
    files.make_folder(path)
    with locks.hold(path / ".lock", host.notice):
        whole, begun = path / MADE, path / BEGUN
        found = next((files.read_json(item, RECORD) for item in (whole, begun) if item.exists()), None)
        own = files_of(found) if found else []
        if other := _not_made_here(path, own, files_of(about)):
            raise UsageError(
                f"{path.absolute()}: holds {other}, which was not made here.", "Name another folder with --data."
            )
        if found == about and whole.exists() and not overwrite:
            return
        if found not in (None, about) and not overwrite:
            raise UsageError(
                f"{path} holds a made set of {found}, asked: {about}.", "Give another --data, or --overwrite."
            )
        for name in (MADE, BEGUN, *own):  # old files go first: none may pass for new, should this call be interrupted
            (path / name).unlink(missing_ok=True)
        files.write_text(begun, json.dumps(about))
        for number in host.progress(range(cases), name="synthesize", unit="case"):
            _write_case(path, number, *volume(slices, side, np.random.default_rng([seed, number])), dicom)
        content = {
            "channel_names": {"0": "CT"} if dicom else {"0": "first", "1": "second"},
            "labels": CLASSES,
            "numTraining": cases,
            "file_ending": ".nii.gz",
        }
        files.write_text(path / DATASET, json.dumps(content, indent=1))
        files.write_text(whole, json.dumps(about))
        begun.unlink()


def _not_made_here(path: Path, own: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first file that lies where the set shall, or beside its images or masks, and is not one of its `own`."""
    known = set(own)
    for name in wanted:
        if name not in known and os.path.lexists(path / name):
            return name
    folders = sorted({parts[0] for name in wanted if len(parts := Path(name).parts) > 1})
    lying = (item for folder in folders for item in sorted((path / folder).rglob("*")) if not item.is_dir())
    names = (item.relative_to(path).as_posix() for item in lying if not item.name.startswith("."))
    return next((name for name in names if name not in known), None)


def _write_case(path: Path, number: int, image: NDArray[np.float32], mask: NDArray[np.uint8], dicom: bool) -> None:
    case = NAME.format(number)
    if dicom:
        units = np.rint(10 * image[0] + 2 * image[1] - 2000).astype(np.int16)
        volumes.write_made_series(path / "images" / case, units, mask, CLASSES, SPACING[::-1])
        return
    for channel, values in enumerate(image):
        write(files.make_folder(path / "imagesTr") / f"{case}_{channel:04}.nii.gz", values)
    write(files.make_folder(path / "labelsTr") / f"{case}.nii.gz", mask)


def write(path: Path, values: NDArray[np.generic]) -> None:
    """(z, y, x) -> NIfTI (x, y, z)."""
    array = values.transpose(2, 1, 0)
    nifti.write(path, array, nifti.new_header(array.shape, array.dtype, SPACING))


def volume(slices: int, side: int, random: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Two channels (2, D, H, W) and classes (D, H, W): ellipsoids that the first channel shows bright, with a core that
    only the second one tells from the rest, among shapes that are neither."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, side, side)), indexing="ij"))
    mask = np.zeros(grid.shape[1:], np.uint8)
    image = np.zeros((2, *grid.shape[1:]), np.float32)
    for kind in ("other", "body", "body"):
        centre = random.uniform(-0.5, 0.5, 3)
        radius = random.uniform(0.22, 0.4, 3)
        distance = (((grid - centre[:, None, None, None]) / radius[:, None, None, None]) ** 2).sum(0)
        inside, core = distance < 1, distance < 0.3
        image[0][inside] = 1.0 if kind == "body" else 0.6
        image[1][inside] = 0.5
        if kind == "body":
            mask[inside], mask[core] = 1, 2
            image[1][core] = 1.0
        else:
            mask[inside] = 0
    image += np.asarray(random.normal(0, 0.15, image.shape), np.float32)
    return 100 * (image + 1), mask
