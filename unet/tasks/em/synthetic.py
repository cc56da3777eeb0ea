"""Made micrographs in the layout of the ISBI 2012 set: cells of all sizes, parted by dark membranes of varying width
and sharpness, with dark organelles that only their shape tells from a membrane. Deterministic. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import host
from unet.data.io.arrays import write_stack
from unet.errors import DataError
from unet.files import make_folder, read_json, write_json
from unet.tasks.em.dataset import LABELS, TEST, VOLUME

VERSION = 1
RECORD = "phantom.json"
PIXEL = (250, 1)  # pixels a micrometre along x and y: 4 nm a pixel, as in the real set
CELL = 26.0  # pixels: distance between the middles of neighbouring cells
BEGUN = {"made by": "unet"}  # the record until the set is whole


def write_set(root: Path, slices: int, side: int, seed: int, overwrite: bool = False) -> None:
    """train-volume.tif, train-labels.tif and test-volume.tif of `slices` pages of `side` pixels; a set made with the
    same settings is left as it is. Raises DataError where the folder holds another one."""
    record = {"made by": "unet", "version": VERSION, "slices": slices, "side": side, "seed": seed}
    names = [root / f"{name}.tif" for name in (VOLUME, LABELS, TEST)]
    found = read_json(root / RECORD, {"made by": str}) if (root / RECORD).exists() else {}
    if found == record and all(path.exists() for path in names):
        return
    own = [path.name for path in names if path.exists()]
    if own and not found:
        raise DataError(
            f"{root.absolute()}: holds {own[0]}, which was not made here.", "Name another folder with --data."
        )
    if not overwrite and found != BEGUN and root.exists() and any(root.iterdir()):
        raise DataError(
            f"{root.absolute()}: holds files that were not made with these settings.",
            "Name another folder with --data, or replace them with --overwrite.",
        )
    make_folder(root)
    write_json(root / RECORD, BEGUN)
    made = [
        make_slice(seed, number, side) for number in host.progress(range(2 * slices), name="synthesize", unit="slice")
    ]
    images, labels = (np.stack(parts) for parts in zip(*made, strict=True))
    for path, stack in zip(names, (images[:slices], labels[:slices], images[slices:]), strict=True):
        write_stack(path, stack, (PIXEL, PIXEL), "micron")
    write_json(root / RECORD, record)


def make_slice(seed: int, number: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One slice: image and labels (0 membrane, 255 cell), both (side, side) uint8."""
    from scipy import ndimage, spatial

    rng = np.random.default_rng((seed, number))
    centres = rng.uniform(-CELL, side + CELL, (max(4, round(((side + 2 * CELL) / CELL) ** 2)), 2))
    y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    bend = [5 * smooth(rng, side, 22) for _ in range(2)]
    points = np.stack((y + bend[0], x + bend[1]), -1).reshape(-1, 2)
    distances, nearest = spatial.cKDTree(centres).query(points, k=2)
    apart = np.linalg.norm(centres[nearest[:, 0]] - centres[nearest[:, 1]], axis=1)
    edge = ((distances[:, 1] ** 2 - distances[:, 0] ** 2) / (2 * apart)).reshape(side, side)  # to the bisector
    width = 1.6 + 0.35 * smooth(rng, side, 25)
    cell = edge > width
    brightness = rng.uniform(0.62, 0.85, len(centres))[nearest[:, 0]].reshape(side, side)
    image = brightness + 0.1 * smooth(rng, side, 2)
    for _ in range(max(2, side * side // 3000)):  # mitochondria and vesicles
        row, column = rng.uniform(0, side, 2)
        a, b, angle = rng.uniform(2.5, 6), rng.uniform(2, 4), rng.uniform(0, np.pi)
        u = (y - row) * np.cos(angle) + (x - column) * np.sin(angle)
        v = (x - column) * np.cos(angle) - (y - row) * np.sin(angle)
        inside = ((u / a) ** 2 + (v / b) ** 2 < 1) & (edge > width + 1)
        image = np.where(inside, rng.uniform(0.3, 0.5), image)
    dark = 0.24 + 0.08 * smooth(rng, side, 6)
    image = np.where(cell, image, dark)
    image = ndimage.gaussian_filter(image, rng.uniform(0.6, 1.1)) + rng.normal(0, 0.05, image.shape)
    return (255 * np.clip(image, 0, 1)).round().astype(np.uint8), np.where(cell, 255, 0).astype(np.uint8)


def smooth(rng: np.random.Generator, side: int, scale: float) -> NDArray[Any]:
    """(side, side) of a random field whose details are `scale` pixels wide, with deviation 1."""
    from scipy import ndimage

    field: NDArray[Any] = ndimage.gaussian_filter(rng.normal(size=(side, side)), scale, mode="wrap")
    return field / field.std()
