"""A made set in nnU-Net's layout: volumes of two channels with two kinds of bodies in them, one inside the other; or
DICOM series of one channel with DICOM-SEG masks. No torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet import files, host
from unet.data.io import nifti, volumes
from unet.errors import UsageError

MADE = "synthetic.json"
SPACING = (1.0, 1.0, 2.0)  # mm along x, y, z
CLASSES = {"background": 0, "body": 1, "core": 2}


def write_set(
    path: Path, cases: int, slices: int, side: int, seed: int, overwrite: bool = False, dicom: bool = False
) -> None:
    """Write `cases` volumes of side x side x slices into `path`; a set that is there with the same numbers is kept.
    Raises UsageError for one with others, unless `overwrite`."""
    about = {"cases": cases, "slices": slices, "side": side, "seed": seed, **({"dicom": True} if dicom else {})}
    files.make_folder(path)
    with files.lock(path / ".lock", host.notice):
        there = path / MADE
        if there.is_file() and not overwrite:
            made = files.read_json(there, dict)
            if made == about:
                return
            raise UsageError(
                f"{path} holds a made set of {made}, asked: {about}.", "Give another --data, or --overwrite."
            )
        for name in () if dicom else ("imagesTr", "labelsTr"):
            files.make_folder(path / name)
        for number in host.progress(range(cases), name="synthesize", unit="case"):
            image, mask = volume(slices, side, np.random.default_rng([seed, number]))
            if dicom:
                units = np.rint(10 * image[0] + 2 * image[1] - 2000).astype(np.int16)
                volumes.write_made_series(path / f"images/case_{number:03}", units, mask, CLASSES, SPACING[::-1])
                continue
            for channel, values in enumerate(image):
                write(path / "imagesTr" / f"case_{number:03}_{channel:04}.nii.gz", values)
            write(path / "labelsTr" / f"case_{number:03}.nii.gz", mask)
        content = {
            "channel_names": {"0": "CT"} if dicom else {"0": "first", "1": "second"},
            "labels": CLASSES,
            "numTraining": cases,
            "file_ending": ".nii.gz",
        }
        files.write_text(path / "dataset.json", json.dumps(content, indent=1))
        files.write_text(there, json.dumps(about))


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
