"""One case of a user's set: what its files say, whether they fit each other, and the way to the network's grid and
back. No torch.

Order, as in nnU-Net: turn, cut the border of zeros away (where the plan says so), normalise, resample.
"""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet import host, windows
from unet.data.cache.cached_case import CachedCase
from unet.data.cache.layout import Layout
from unet.data.cases import Case
from unet.data.io import volumes
from unet.data.io.nifti_header import times
from unet.data.preprocessing import resize
from unet.errors import CacheError, DataError, UnetError
from unet.tasks.folder import sets
from unet.tasks.folder.labels import DATASET, IGNORED, Labels, require_same
from unet.tasks.folder.settings import Settings

if TYPE_CHECKING:
    from unet.data.loading.patches import EpochPatches

Array = NDArray[Any]
DRAWN = 500  # voxels of each class that are kept to draw patches about
GRIDS = "Save the mask on the grid of its image, or type --resample-masks to take the nearest voxel of it."
MOST = 2**31  # voxels of a case on the network's grid


@dataclasses.dataclass(frozen=True)
class Way:
    """How a case came to the network's grid: enough to undo it.

    `stored`: voxels as stored; `order`, `flips`: see `volumes.Turn`; `box`: (low, high) of each of D, H, W that is kept
    of the turned volume; `size`: voxels after resampling; `spacing`: mm of the turned volume's voxels.
    """

    stored: tuple[int, int, int]
    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    box: tuple[tuple[int, int], ...]
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]

    @property
    def turn(self) -> volumes.Turn:
        return volumes.Turn(self.order, self.flips)

    @property
    def turned(self) -> tuple[int, ...]:
        """Voxels of the turned volume."""
        return tuple(self.turn.sizes(self.stored))

    @property
    def inner(self) -> tuple[slice, ...]:
        """The part of the turned volume that is kept."""
        return tuple(slice(low, high) for low, high in self.box)

    @property
    def kept(self) -> tuple[int, ...]:
        """Voxels of that part."""
        return tuple(high - low for low, high in self.box)


def labels_of(settings: Settings) -> Labels:
    return Labels(settings.label_values, settings.classes, settings.ignore_value)


def index(found: sets.Set, settings: Settings) -> list[Case]:
    """Every case of a set, by its headers. Raises one DataError that names the first faults and counts them."""
    require_fit(found, settings)
    cases, faults, odd = [], [], list[tuple[str, str]]()
    for name, own in found.cases.items():
        case, fault, remarks = read_case(name, own, settings)
        cases.append(case)
        faults += [fault] if fault else []
        odd += remarks
    groups = {} if faults else sets.groups(found.cases)
    cases = [dataclasses.replace(case, group=groups.get(case.id, "")) for case in cases]
    host.notice_by_kind(odd)
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        words = "; ".join(fault.message.rstrip(".") for fault in faults[:2])
        raise DataError(f"{words}{more}.", faults[0].hint)
    return cases


def require_fit(found: sets.Set, settings: Settings) -> None:
    """Raise DataError where dataset.json contradicts the network's channels or classes."""
    where = (found.root if found.root.is_dir() else found.root.parent) / DATASET
    require_same(where, found.names, settings.channels, labels_of(settings))


def read_case(name: str, own: sets.Found, settings: Settings) -> tuple[Case, UnetError | None, list[tuple[str, str]]]:
    """One case, what is wrong with it, and what is odd about it (kind, words); only headers are read."""
    case = Case(name, own.images, (own.mask,) if own.mask else ())
    try:
        heads = heads_of(name, own.images, settings)
        require_mask(name, heads[0], own.mask, settings)
        way = way_of(heads[0], None, settings)
        require_size(name, way)
    except UnetError as error:
        return case, error, []
    voxels = math.prod(heads[0].stored) * len(settings.channels)
    every = tuple(file for path in (*case.images, *case.labels) for file in volumes.files_of(path))
    case = dataclasses.replace(
        case,
        parts=() if every == (*case.images, *case.labels) else every,
        cost=cost_of(way.size, settings),
        spacing=way.spacing,
        memory=12 * voxels + 8 * len(settings.channels) * math.prod(way.size) + 200_000_000,
    )
    return case, None, [("header", note) for head in heads for note in head.notes]


def cost_of(size: Sequence[int], settings: Settings) -> int:
    """Windows that scoring a case takes."""
    return windows.count(size, settings.patch, settings.overlap) if settings.patch else 1


def heads_of(name: str, images: Sequence[Path], settings: Settings) -> list[volumes.Head]:
    """The heads of a case's images. Raises DataError for images that lie on different grids, and for other channels
    than the network has."""
    heads = one_grid(name, images)
    count, wanted = sum(head.channels for head in heads), len(settings.channels)
    if wanted and count != wanted:
        given = ", ".join(settings.channels)
        raise DataError(
            f"{name}: has {host.counted(count, 'channel')} ({', '.join(path.name for path in images[:4])}); the network"
            f" takes {wanted}: {given}.",
            "Give the channels in this order, CASE_0000, CASE_0001 ..., or one image that holds them.",
        )
    if heads[0].spacing is None and any(mm != 1 for mm in settings.spacing):
        heads[0].notes.append(
            f"{heads[0].path}: does not say how large its voxels are; they are taken as 1 mm, those of the network are"
            f" {times(settings.spacing)} mm"
        )
    return heads


def one_grid(name: str, images: Sequence[Path]) -> list[volumes.Head]:
    """The heads of a case's images. Raises DataError for images that lie on different grids, or are not there."""
    if len(images) > 1 and (missing := [p.name for p in images if not os.path.lexists(volumes.parted(p)[0])]):
        raise DataError(f"{name}: its channel {missing[0]} is not there.", "Complete the case's channels.")
    heads = [volumes.read_head(path) for path in images]
    for head in heads[1:]:
        if words := volumes.mismatch(heads[0], head):
            raise DataError(
                f"{name}: {heads[0].path.name} and {head.path.name} lie on two grids: {'; '.join(words)}.",
                "Resample the channels of a case to one grid, or remove the case.",
            )
    return heads


def require_mask(name: str, image: volumes.Head, mask: Path | None, settings: Settings) -> None:
    """Raise DataError for a mask that does not lie on the grid of its image, unless it shall be resampled."""
    if mask is None:
        raise DataError(f"{name}: has no mask.", "Complete the set, or move the image out of it.")
    head = volumes.read_head(mask, image)
    words = volumes.mismatch(image, head)
    if words and not (settings.resample_masks and head.affine is not None and image.affine is not None):
        hint = GRIDS
        if settings.resample_masks:
            hint = "One of the two files does not say where it lies, so it cannot be resampled: save it again."
        raise DataError(f"{name}: image and mask differ: {'; '.join(words)} (image and mask).", hint)


def way_of(head: volumes.Head, box: tuple[tuple[int, int], ...] | None, settings: Settings) -> Way:
    """The way of an image to the network's grid, `box` of its turned voxels kept (all of them)."""
    turn = head.turn("" if settings.orientation in (None, "as-stored") else str(settings.orientation))
    sizes = turn.sizes(head.stored)
    lengths = turn.sizes(head.spacing or (1.0, 1.0, 1.0))
    kept = box or tuple((0, side) for side in sizes)
    target = settings.spacing or lengths
    size = tuple(
        high - low if math.isclose(mm, wanted, rel_tol=1e-3) else max(1, round((high - low) * mm / wanted))
        for (low, high), mm, wanted in zip(kept, lengths, target, strict=True)
    )
    return Way(head.stored, turn.order, turn.flips, kept, size, tuple(map(float, lengths)))  # type: ignore[arg-type]


def require_size(name: str, way: Way) -> None:
    if math.prod(way.size) > MOST:
        raise DataError(
            f"{name}: its {times(way.turned)} voxels of {times(way.spacing)} mm become {times(way.size)}, more than"
            f" {MOST} voxels.",
            "Correct the spacing in its header, type a coarser --spacing, or remove the case.",
        )


def prepare_image(name: str, images: Sequence[Path], settings: Settings) -> tuple[Array, Way, list[str]]:
    """The images of a case -> (C, D, H, W) float32 on the network's grid, the way back, and what was odd about them.
    Raises DataError."""
    heads = heads_of(name, images, settings)
    way = way_of(heads[0], None, settings)
    image = way.turn.apply(volumes.read_channels(heads))
    if settings.crop_background:
        way = way_of(heads[0], border(image), settings)
        whole: Any = (slice(None), *way.inner)
        image = image[whole]
    require_size(name, way)
    result = np.empty((len(image), *way.size), np.float32)
    kinds = [head.dtype for head in heads for _ in range(head.channels)]
    for channel, (values, kind) in enumerate(zip(image, kinds, strict=True)):
        result[channel] = resize.image(normalised(values, channel, kind, settings), way.size)
    notes = list(dict.fromkeys(note for head in heads for note in head.notes))
    return result, way, notes


def border(image: Array) -> tuple[tuple[int, int], ...]:
    """The box of voxels that are not 0 in every channel, (low, high) of each axis; the whole, where all are 0."""
    held = (image != 0).any(0)
    found = []
    for axis in range(3):
        places = np.flatnonzero(held.any(tuple(other for other in range(3) if other != axis)))
        found.append((int(places[0]), int(places[-1]) + 1) if len(places) else (0, held.shape[axis]))
    return tuple(found)


def normalised(values: Array, channel: int, dtype: np.dtype[Any], settings: Settings) -> Array:
    """One channel (D, H, W) whose values are of this type as float32, by its kind: zscore, ct, rescale (whole numbers
    by the range of their type, others by the image's own, to 0 to 1), none."""
    kind = settings.normalize[channel] if settings.normalize else "zscore"
    volume = np.array(values, np.float32)
    if kind == "ct":
        low, high, mean, deviation = settings.intensities[4 * channel : 4 * channel + 4]
        np.clip(volume, low, high, out=volume)
        volume -= np.float32(mean)
        volume /= np.float32(max(deviation, 1e-8))
    elif kind == "rescale":
        limits = np.iinfo(dtype) if dtype.kind in "iu" else None
        low, high = (limits.min, limits.max) if limits else (float(volume.min()), float(volume.max()))
        volume -= np.float32(low)
        volume /= np.float32(max(high - low, 1e-8))
    elif kind == "zscore":
        volume -= np.float32(volume.mean(dtype=np.float64))
        volume /= np.float32(max(float(volume.std(dtype=np.float64)), 1e-8))
    return volume


def read_mask(name: str, path: Path, image: volumes.Head, settings: Settings) -> Array:
    """The classes of a mask (D, H, W) uint8, turned as its image. Raises DataError."""
    head = volumes.read_head(path, image)
    classes = labels_of(settings).classes_of(volumes.read_labels(head), path)
    codes = "" if settings.orientation in (None, "as-stored") else str(settings.orientation)
    if not volumes.mismatch(image, head):
        return image.turn(codes).apply(volumes.stored_like(image, head, classes))
    require_mask(name, image, path, settings)
    return image.turn(codes).apply(on_grid_of(image, head, classes))


def truth(found: sets.Set, name: str, settings: Settings) -> Array:
    """The classes of the mask of a case of the raw set, as `read_mask`. Raises DataError."""
    own = found.cases.get(name)
    if own is None or own.mask is None:
        raise DataError(f"{name} is not in the raw set.", "Give the set that the cache was made of: --data DIR")
    return read_mask(name, own.mask, volumes.read_head(own.images[0]), settings)


def on_grid_of(image: volumes.Head, mask: volumes.Head, classes: Array, outside: int = 0) -> Array:
    """A mask on the grid of an image by the nearest voxel, axes as the image stores them; `outside` beyond the mask."""
    assert image.affine is not None
    assert mask.affine is not None
    way = np.linalg.inv(mask.affine) @ image.affine
    result = np.full(image.stored, outside, classes.dtype)
    rows, columns = np.meshgrid(*(np.arange(side) for side in image.stored[1:]), indexing="ij")
    for plane in range(image.stored[0]):
        places = np.stack([np.full_like(rows, plane), rows, columns, np.ones_like(rows)]).reshape(4, -1)
        a, b, c = np.rint(way[:3] @ places).astype(int)
        held = np.logical_and.reduce(
            [(each >= 0) & (each < side) for each, side in zip((a, b, c), mask.stored, strict=True)]
        )
        result[plane].ravel()[held] = classes[a[held], b[held], c[held]]
    return result


def prepare(case: Case, settings: Settings) -> dict[str, Any]:
    """A case -> image (C, D, H, W) float32, mask (1, D, H, W) uint8 of classes (255: ignored), foreground (labelled
    voxels, voxels (N, 4) int32 (drawn places of each class: class, D, H, W; of the background, 0, where others are
    ignored), way, remarks. Raises DataError."""
    image, way, notes = prepare_image(case.id, case.images, settings)
    mask = read_mask(case.id, case.labels[0], volumes.read_head(case.images[0]), settings)
    mask = resize.labels(mask[way.inner], way.size)
    voxels, counts = [np.empty((0, 4), np.int32)], {}
    for number in np.unique(mask).tolist():
        if number == IGNORED or (number == 0 and settings.ignore_value is None):
            continue
        places = np.flatnonzero(mask == number)
        if number:
            counts[str(number)] = len(places)
        drawn = np.random.default_rng(number).choice(places, min(DRAWN, len(places)), replace=False)
        rows = np.stack([np.full_like(drawn, number), *np.unravel_index(np.sort(drawn), mask.shape)], 1)
        voxels.append(rows.astype(np.int32))
    return {
        "image": image,
        "mask": mask[None],
        "foreground": [sum(counts.values())],
        "voxels": np.concatenate(voxels),
        "counts": counts,
        "way": dataclasses.asdict(way),
        "group": case.group,
        "remarks": [["header", note] for note in notes],
    }


def way_from(facts: Mapping[str, Any]) -> Way:
    """The way of a cached case."""
    stored = facts["way"]
    return Way(
        tuple(stored["stored"]),
        tuple(stored["order"]),
        tuple(stored["flips"]),
        tuple((low, high) for low, high in stored["box"]),
        tuple(stored["size"]),
        tuple(stored["spacing"]),
    )


def placed(classes: NDArray[np.uint8], way: Way) -> NDArray[np.uint8]:
    """Classes (D, H, W) of the part that was kept -> of the file's own grid, axes as stored; 0 (the background) outside
    of that part."""
    if way.kept == way.turned:
        return way.turn.undo(classes)
    result = np.zeros(way.turned, np.uint8)
    result[way.inner] = classes
    return way.turn.undo(result)


def on_grid(labels: Array, way: Way) -> Array:
    """Classes (D, H, W) of the turned file on the network's grid, by the nearest voxel."""
    return resize.labels(labels[way.inner], way.size)


def patch_seconds(patches: Callable[[list[CachedCase]], EpochPatches], shape: tuple[int, ...]) -> float:
    """Seconds that a training patch of (C, D, H, W) takes to load and change: a batch of noise, after one that is not
    counted."""
    with tempfile.TemporaryDirectory() as folder:
        image, mask = Path(folder, "noise_image.npy"), Path(folder, "noise_mask.npy")
        np.save(image, np.random.default_rng(0).standard_normal(shape, np.float32))
        np.save(mask, np.zeros((1, *shape[1:]), np.uint8))
        batches = patches([CachedCase("noise", image, mask, shape, (1,))])
        batches[0, 0]
        began = time.perf_counter()
        batches[0, 1]
        return (time.perf_counter() - began) / batches.batch_size


def require_arrays(path: Path, image: Array, mask: Array, settings: Mapping[str, Any]) -> None:
    raise CacheError(
        f"{path.absolute()}: the arrays of another program do not say how they were made.",
        "Give the raw set with --data, and another --cache: it is then made anew.",
    )


def facts_of(mask: Array) -> dict[str, Any]:
    return {"foreground": [int(np.count_nonzero((mask != 0) & (mask != IGNORED)))]}


def one(shape: tuple[int, ...]) -> int:
    return 1


def possible(shape: tuple[int, ...], facts: Mapping[str, Any]) -> bool:
    """Whether the way leads to the volume."""
    return list(facts.get("way", {}).get("size", ())) == list(shape[1:])


LAYOUT = Layout(
    "folder",
    "_image.npy",
    "_mask.npy",
    2,
    one,
    require_arrays,
    facts_of,
    one,
    possible,
    schema={
        "counts": {str: int},
        "group?": str,
        "way": {"stored": [int], "order": [int], "flips": [bool], "box": [[int]], "size": [int], "spacing": [float]},
    },
    needed=("counts", "way"),
    voxels="_voxels.npy",
)
