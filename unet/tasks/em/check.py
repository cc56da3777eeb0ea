"""What can be wrong with a raw set of electron micrographs: found before a run, named with its file. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unet import files
from unet.data.checks import Report, SplitOf
from unet.data.preprocessing import masks
from unet.errors import UnetError
from unet.tasks.em import dataset
from unet.tasks.em.synthetic import RECORD

PALE = 0.02  # of the range of values: a slice with less contrast is empty


def raw(root: Path, split_of: SplitOf) -> Report:
    """A raw set: stacks that belong together, two-valued labels, empty and equal slices (leakage of the split that
    `split_of(ids)` makes)."""
    report = Report()
    try:
        cases = dataset.index(root)
        truth = dataset.require(root, dataset.LABELS)
        volume, levels = dataset.read(dataset.require(root, dataset.VOLUME)), dataset.levels_of(truth)
        labels = np.stack([dataset.cells_of(case.labels[0], case.id)[0] for case in cases])
    except UnetError as error:
        report.errors.append(error.message)
        return report
    held = report.validation_of(split_of, [case.id for case in cases])
    if levels.noise:
        report.warnings.append(f"{truth.name}: {levels.told}")
    report.warnings += masks.crowded("membrane", 1 - float(labels.mean()))
    slices(volume, labels, [case.id for case in cases], held, report)
    report.facts = {
        "slices": len(volume),
        "size": dataset.words(volume.shape[1:]),
        "cell": f"{labels.mean():.2%}",
        "values": f"{volume.min()} to {volume.max()}, mean {volume.mean():.1f}",
    }
    test = dataset.find(root, dataset.TEST)
    if test is None:
        report.warnings.append(f"no {dataset.TEST}: predict needs the name of a stack")
    else:
        try:
            report.facts["to predict"] = dataset.words(dataset.shape_of(test))
        except UnetError as error:
            report.errors.append(error.message)
    if (root / RECORD).exists():
        report.facts["made"] = f"yes ({RECORD}): no real tissue; never publish scores on it"
    return report


def slices(
    volume: NDArray[np.uint8], labels: NDArray[np.bool_], ids: Sequence[str], held: set[str], report: Report
) -> None:
    """Empty slices and labels, and slices that occur twice."""
    seen: dict[str, str] = {}
    for name, image, label in zip(ids, volume, labels, strict=True):
        if int(image.max()) - int(image.min()) < PALE * 255:
            report.warnings.append(f"{name}: its values lie between {image.min()} and {image.max()}: no contrast")
        if not label.any() or label.all():
            report.warnings.append(f"{name}: its label is {'all cell' if label.any() else 'all membrane'}")
        twin = seen.setdefault(files.digest(np.ascontiguousarray(image).tobytes()), name)
        if twin != name:
            report.equal(f"{twin} and {name} are the same image", (twin in held) != (name in held))
