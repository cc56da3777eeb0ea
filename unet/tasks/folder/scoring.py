"""The columns of the table of scores; and scores of label maps that any program has written, against masks of the same
names. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.data.cases import require_folder
from unet.data.io import volumes
from unet.errors import DataError, UnetError
from unet.metrics import classes as scores
from unet.tasks.base import Column, Predictor
from unet.tasks.folder import dataset, sets
from unet.tasks.folder.labels import DATASET, Labels, Names, default_names, from_values, read_names
from unet.tasks.folder.settings import Settings

if TYPE_CHECKING:
    from unet.data.cache.cached_case import CachedCase
    from unet.tasks.folder.task import Folder

SCORED = 32  # bytes of memory that scoring takes for a voxel of a mask
TABLED = 8  # classes whose every score has a column; of more only the Dice has
NOTES = """Dice, surface Dice (within --surface-tolerance mm), HD95 (mm) and the error of the volume of each
class, on the grid of the masks. A class that is in neither mask of a case has no score there (-)."""
KINDS = (("surface", "surf.", "{:.4f}"), ("hd95", "HD95", "{:.2f}"), ("volume", "volume", "{:+.3f}"))


def columns_of(classes: Sequence[str]) -> tuple[Column, ...]:
    """Mean Dice, the Dice of each class but the background, and on the masks' grid the other scores."""
    names = list(enumerate(classes))[1:]
    found = [Column("mean_dice", "mean Dice", "{:.4f}")]
    found += [Column(f"dice_{number}", name, "{:.4f}") for number, name in names]
    if len(names) <= TABLED:
        found += [
            Column(f"{key}_{number}", f"{words} {name}", form) for key, words, form in KINDS for number, name in names
        ]
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prediction and the mask of the same name."""

    name: str
    prediction: Path
    mask: Path


def pairs(predictions: Path, masks: Path) -> list[Pair]:
    """Every mask with its prediction: that of its name, or for a mask CASE_0000 that of CASE, as images of one channel
    are predicted. Raises DataError where one lacks its prediction, or is there twice."""
    hint = "Give a folder of label maps: --predictions DIR --labels DIR"
    for folder in (predictions, masks):
        require_folder(folder, hint)
    found: dict[Path, dict[str, list[Path]]] = {}
    for folder in dict.fromkeys((predictions, masks)):
        for path in sets.listed(folder):
            found.setdefault(folder, {}).setdefault(sets.case_of(path), []).append(path)
    ours, theirs = found.get(predictions, {}), found.get(masks, {})
    bases = {name: sets.CHANNEL_ZERO.sub("", name) for name in theirs}
    own = {
        name: base if name not in ours and base in ours and base not in theirs else name for name, base in bases.items()
    }
    faults = [
        f"{masks / name}: no prediction of this name in {predictions}" for name in theirs if own[name] not in ours
    ]
    for named in (ours, theirs):
        faults += [f"{name}: {len(paths)} files of this name" for name, paths in named.items() if len(paths) > 1]
    sets.raise_faults(None, faults, "Complete the predictions, or leave these masks out")
    if not theirs:
        raise DataError(f"{masks.absolute()}: holds no label map of a known format.", hint)
    used = set(own.values())
    if extra := sorted(set(ours) - used - {f"{name}_overlay" for name in used}):  # pictures of `predict --overlay`
        host.notice(f"{host.counted(len(extra), 'prediction')} without a mask are left out ({', '.join(extra[:3])})")
    return [Pair(name, ours[own[name]][0], theirs[name][0]) for name in sorted(theirs)]


def of_case(
    task: Folder, case: CachedCase, predictor: Predictor, full: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """(numbers, arrays) of a cached case, as `Folder.evaluate_case`."""
    import numpy as np

    from unet.models.label_maps import label_map

    image, mask = case.arrays()
    classes = len(task.settings.classes)
    if full and (truth := task.truth(case)) is not None:
        target, way = truth
        prediction = way.turn.apply(task.label_map(image, way, predictor))
        found = scores.full_scores(
            prediction, target, way.spacing, classes, task.settings.surface_tolerance, task.ignored
        )
        shown = dataset.on_grid(prediction, way), np.asarray(mask[0])
    else:
        parts = [label_map(slab).cpu().numpy() for slab in task.slabs(image, predictor)]
        prediction, target = np.concatenate(parts), np.asarray(mask[0])
        found = {
            f"dice_{number}": value
            for number, value in enumerate(scores.dice_of(prediction, target, classes, task.ignored), 1)
        }
        if full:
            found = scores.full_scores(
                *(prediction, target, task.settings.spacing, classes),
                *(task.settings.surface_tolerance, task.ignored),
            )
        shown = prediction, target
    dices = [found[f"dice_{number}"] for number in range(1, classes)]
    return {"mean_dice": scores.mean_of(dices), **found}, {
        "image": image,
        "prediction": shown[0],
        "target": shown[1],
    }


def score(predictions: Path, masks: Path, own: Settings) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The scores of every mask's prediction, by name, and the names of the classes. Raises DataError."""
    found = pairs(predictions, masks)
    names = own.classes or default_names(own.label_values)
    given = Labels(own.label_values, names, own.ignore_value) if own.label_values else None
    labels = labels_of(found, given, masks)
    return records(found, labels, own.surface_tolerance), labels.names


def labels_of(found: list[Pair], given: Labels | None, where: Path) -> Labels:
    """The classes: those that were typed, those of dataset.json beside the masks' folder, or the values of the masks.
    Raises DataError."""
    if given is not None:
        return given
    names = next(
        (read_names(folder / DATASET) for folder in (where, where.parent) if (folder / DATASET).is_file()),
        Names(),
    )
    values: set[int] = set()
    extra: set[int] = set()
    for _, future in host.process_map(_values, found, "look", "mask", _at_once(found)):
        held, predicted = future.result()
        values |= held
        extra |= predicted
    if not names.classes and (extra := extra - values):
        told = ", ".join(map(str, sorted(extra)[:5]))
        host.notice(f"No mask holds the value {told}, which predictions hold; it is scored as a class.")
        values |= extra
    return from_values(sorted(values), names.classes, names.ignore, where)


def _at_once(found: Sequence[Pair]) -> int:
    """How many processes the memory holds."""
    return host.processes(len(found), volumes.memory_of((pair.mask for pair in found), SCORED))


def _values(pair: Pair) -> tuple[set[int], set[int]]:
    """The values of a mask, and those of its prediction; one that cannot be read is told when it is scored."""
    import numpy as np

    mask, predicted = volumes.read_labels(volumes.read_head(pair.mask)), set[int]()
    with contextlib.suppress(UnetError):
        prediction = volumes.read_heads(pair.mask, pair.prediction)[1]
        predicted = set(np.unique(volumes.read_labels(prediction)).tolist())
    return set(np.unique(mask).tolist()), predicted


def records(found: list[Pair], labels: Labels, tolerance: float) -> list[dict[str, Any]]:
    """The scores of every pair, by name. Raises one DataError for all that cannot be scored."""
    work = functools.partial(_score, labels=labels, tolerance=tolerance)
    done, faults, hints = {}, [], set()
    for pair, future in host.process_map(work, found, "score", "case", _at_once(found)):
        try:
            done[pair.name] = future.result()
        except host.ProcessLost:
            faults.append(f"{pair.name}: a process was killed while it was scored (out of memory?)")
        except UnetError as error:
            faults.append(error.message.rstrip("."))
            hints.add(error.hint)
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        hint = next(iter(hints), "") if len(hints) == 1 else ""
        raise DataError("; ".join(sorted(faults)[:2]) + more + ".", hint or "Correct or remove these cases.")
    return [{"case": pair.name, **done[pair.name]} for pair in found]


def _score(pair: Pair, labels: Labels, tolerance: float) -> dict[str, float]:
    head, other = volumes.read_heads(pair.mask, pair.prediction)
    if words := volumes.mismatch(head, other):
        raise DataError(f"{pair.name}: mask and prediction differ: {'; '.join(words)}.", "")
    target, prediction = (labels.classes_of(volumes.read_labels(each), each.path) for each in (head, other))
    turn = head.turn("")
    found = scores.full_scores(
        turn.apply(volumes.stored_like(head, other, prediction)),
        turn.apply(target),
        turn.sizes(head.spacing or (1.0, 1.0, 1.0)),
        labels.classes,
        tolerance,
        None if labels.ignore is None else 255,
    )
    return {"mean_dice": scores.mean_of([found[f"dice_{n}"] for n in range(1, labels.classes)]), **found}
