"""Sets of a user's own in small, in every layout and format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
import tifffile
from PIL import Image

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def volume(number: int, shape: tuple[int, int, int] = (20, 24, 12), classes: int = 2) -> tuple[Any, Any]:
    """An image (x, y, z) float32 with boxes of each class, brighter by class, and its labels uint8."""
    random = np.random.default_rng(number)
    mask = np.zeros(shape, np.uint8)
    for label in range(1, classes):
        low = [int(random.integers(1, side // 3)) for side in shape]
        mask[tuple(slice(first, first + side // 3) for first, side in zip(low, shape, strict=True))] = label
    image = 100 + 50 * mask + random.normal(0, 5, shape)
    return image.astype(np.float32), mask


def write(path: Path, array: Any) -> Path:
    """Write (x, y, z) in the format of the name; flat formats take a slice that has labels, rows and columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    if ".nii" in name:
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    elif name.endswith((".nrrd", ".mha")):
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing((1.0, 1.0, 2.0))
        SimpleITK.WriteImage(image, str(path))
    elif name.endswith(".tif"):
        tifffile.imwrite(path, array.transpose(2, 1, 0), imagej=True, metadata={"axes": "ZYX"})
    elif name.endswith(".npy"):
        np.save(path, array.transpose(2, 1, 0))
    else:
        Image.fromarray(array[..., array.shape[2] // 4].T.astype(np.uint8)).save(path)
    return path


def nnunet(
    root: Path, cases: int = 4, channels: int = 1, classes: int = 2, values: Callable[[Any], Any] = lambda m: m
) -> Path:
    """A set in nnU-Net's layout."""
    for number in range(cases):
        image, mask = volume(number, classes=classes)
        for channel in range(channels):
            write(root / f"imagesTr/case_{number}_{channel:04}.nii.gz", image * (channel + 1))
        write(root / f"labelsTr/case_{number}.nii.gz", values(mask))
    content = {
        "channel_names": {str(channel): f"T{channel + 1}" for channel in range(channels)},
        "labels": {"background": 0, **{f"organ {label}": label for label in range(1, classes)}},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def pairs(root: Path, suffix: str, cases: int = 4, values: Callable[[Any], Any] = lambda m: m) -> Path:
    """images/ and masks/ of the same names."""
    for number in range(cases):
        image, mask = volume(number)
        if suffix in (".png", ".tif"):
            image = image.clip(0, 255).astype(np.uint8)
        write(root / f"images/case_{number}{suffix}", image)
        write(root / f"masks/case_{number}{suffix}", values(mask))
    return root
