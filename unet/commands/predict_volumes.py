"""predict --volumes: how large each class is in each case, counted in the masks of the output folder, also in those of
an earlier run."""

from __future__ import annotations

import collections
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host
from unet.commands import tables
from unet.config.flags_training import PredictOptions
from unet.errors import DataError, UsageError
from unet.runtime.folders.output_folder import OWN, Made, OutputFolder, digests
from unet.tasks.base import Task
from unet.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from unet.commands.predict_outputs import Groups
    from unet.commands.setup import Context

TABLE = "volumes.csv"
COLUMNS = ("case", "class", "voxels", "volume_ml", "area_mm2")
LARGEST = 2**28
Row = dict[str, Any]


def require(task: Task) -> SegmentationTask:
    """The task, if it has masks with classes. Raises UsageError."""
    if not isinstance(task, SegmentationTask):
        raise UsageError(f"--volumes: the task {task.name} writes no masks.", "Leave it out.")
    return task


def table(context: Context, groups: Groups, folders: Sequence[Path], out: OutputFolder, made: Made) -> list[Row]:
    """With --volumes write the table of all cases, of which this process counts those in `folders`; gives its rows.
    Raises UnetError."""
    config, task, group = context.config, context.task, context.group
    if not config.predict.volumes:
        return []
    found = group.gather(count(task, groups, folders, out, config.predict))
    rows = sorted((row for each in found for row in each), key=lambda row: str(row["case"]))
    group.run_on_main(lambda: write(out, rows, made))
    cases = host.counted(len({row["case"] for row in rows}), task.input_noun)
    host.notice(f"{config.predict.output}/{TABLE}: the volumes of {cases}")
    return rows


def count(task: Task, groups: Groups, folders: Sequence[Path], out: OutputFolder, options: PredictOptions) -> list[Row]:
    """A row for each class of these cases. Raises DataError for a mask that cannot be read."""
    names = require(task).mask_classes
    rows = []
    for folder in host.progress(folders, name="volumes", unit=task.input_noun):
        images = groups[folder]
        masks = [task.output_files(image, out.path / folder.name, options)["mask"] for image in images]
        found, planes = voxels(images, masks)
        volume, area = voxel_size(images, planes)
        rows += [
            {
                "case": folder.name,
                "class": name,
                "voxels": found[value],
                "volume_ml": rounded(found[value], volume / 1000 if volume else None),
                "area_mm2": rounded(found[value], area),
            }
            for value, name in names.items()
        ]
    return rows


def voxels(images: Sequence[Path], masks: Sequence[Path]) -> tuple[collections.Counter[int], int]:
    """({value: its voxels} in the masks of some images, how many planes those have along the first axis)."""
    import numpy as np

    from unet.data.io import volumes

    found, planes = collections.Counter[int](), 0
    for image, mask in zip(images, masks, strict=True):
        dicom = volumes.kind_of(mask) == volumes.DICOM
        head = volumes.read_head(mask, volumes.read_head(image) if dicom else None)
        for plane in volumes.read_labels(head):
            planes += 1
            values, numbers = np.unique(plane, return_counts=True)
            found.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    return found, planes


def voxel_size(images: Sequence[Path], planes: int) -> tuple[float | None, float | None]:
    """(mm^3 of a voxel of a volume, mm^2 of a pixel of a flat image) where the file says so, else None. Slices in files
    of their own do not say how far apart they lie."""
    import numpy as np

    from unet.data.io import volumes

    if len(images) > 1:
        return None, None
    try:
        head = volumes.read_head(images[0])
    except DataError:  # a folder of slices
        return None, None
    if head.spacing is None:
        return None, None
    if head.flat and planes == 1:  # pages of a stack may be taken for channels
        return None, math.prod(head.spacing[1:])
    if head.affine is None:
        return math.prod(head.spacing), None
    return abs(float(np.linalg.det(head.affine[:3, :3]))), None


def rounded(number: int, each: float | None) -> float | None:
    """Six digits, whatever the unit."""
    return None if each is None else float(f"{number * each:.6g}")


def write(out: OutputFolder, rows: Sequence[Row], made: Made) -> None:
    """Write the table; rows of cases that are not among these stay. Raises UnetError."""
    path, cases = out.path / TABLE, {row["case"] for row in rows}
    before = read(path) if out.state(path) == OWN else []
    every = sorted([*(row for row in before if row["case"] not in cases), *rows], key=lambda row: str(row["case"]))
    out.note(made, {path: None})
    files.write_text(path, tables.csv_text(every, COLUMNS))
    out.note(made, digests([path]))


def read(path: Path) -> list[Row]:
    """The rows of a table that this program wrote."""
    reader = csv.DictReader(io.StringIO(files.read_text(path, LARGEST), newline=""))
    return list(reader) if tuple(reader.fieldnames or ()) == COLUMNS else []
