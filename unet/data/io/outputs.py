"""What prediction makes, as arrays with what their files must say of them, and the writing of those files. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from unet.data.io import nifti, volumes
from unet.data.io.arrays import write_png, write_stack, write_tiff
from unet.files import make_folder


@dataclasses.dataclass(frozen=True)
class Output:
    """An array on the grid of its `image`, or a picture of it.

    `name`: of its file among the task's `output_files` of that image. `format`: "tiff" (one image), "stack" (many of
    them; `pixel` is pixels a `unit` along x and y, as rational numbers), "png", or "nifti" (on the image's grid, with
    its affine, a DICOM image taken as NIfTI; of `spacing` mm about the origin where it has no image), or "like" (label
    values, axes as stored, in the image's format and on its grid; `names` are kept where the format has a place).
    """

    image: Path
    name: str
    array: NDArray[Any]
    format: str
    pixel: tuple[Any, Any] | None = None
    unit: str | None = None
    spacing: tuple[float, ...] = ()
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)


def write(path: Path, output: Output, origin: str = "") -> None:
    """Write an output, atomically; its folder is made. `origin`: digest of the weights, kept where the format has a
    place. Raises UnetError."""
    make_folder(path.parent)
    if output.format == "nifti" and output.spacing:
        array = output.array
        nifti.write(path, array, nifti.new_header(array.shape, array.dtype, output.spacing))
    elif output.format == "like":
        volumes.write_labels(path, output.array, output.image, output.names, origin)
    elif output.format == "nifti" and volumes.kind_of(output.image) == volumes.DICOM:
        volumes.write_labels(path, output.array.transpose(2, 1, 0), output.image, output.names, origin)
    elif output.format == "nifti":
        nifti.write_like(path, output.array, output.image)
    elif output.format == "stack":
        write_stack(path, output.array, output.pixel, output.unit)
    else:
        {"tiff": write_tiff, "png": write_png}[output.format](path, output.array)
