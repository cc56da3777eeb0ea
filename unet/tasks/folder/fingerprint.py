"""What a set looks like: sizes, spacings, directions, intensities and classes of its cases, read once and kept beside
the cache. What a plan follows from. No torch.

The headers and the masks of all cases are read, and the values of 40 images, evenly chosen; where fewer than 40 of
these are labelled, of further labelled ones.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet import files, host
from unet.data.io import volumes
from unet.data.io.nifti_header import times
from unet.errors import DataError, UnetError
from unet.tasks.folder import dataset, sets

Array = NDArray[Any]
SAMPLED, DRAWN = 40, 20_000  # cases whose values are read, and labelled values drawn of each
LOOKED = 16  # bytes of memory that looking at a case takes for a voxel of its mask
NAME, VERSION = "fingerprint.json", 3
SCHEMA = {"version": int, "made_of": str, "cases": [dict], "values": {str: int}}
CENTILES = (0.5, 50.0, 99.5)


@dataclasses.dataclass(frozen=True)
class Looked:
    """What one case looks like. `stored`, `spacing` and `codes` as its file has them; `values` {value of the mask: its
    voxels}. `samples`: drawn values of each channel where the mask is labelled, `darkest`: the 1 % of all values,
    `inside`: share of the volume within the box of voxels that are not 0; empty where the image was not read.
    `modalities`: of its DICOM images."""

    name: str
    stored: tuple[int, ...]
    spacing: tuple[float, ...] | None
    codes: str
    channels: int
    format: str
    values: dict[int, int]
    samples: list[list[float]] = dataclasses.field(default_factory=list)
    darkest: list[float] = dataclasses.field(default_factory=list)
    inside: float = 1.0
    modalities: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What a set looks like. `cases` are in the order of their names."""

    cases: tuple[Looked, ...]

    @property
    def channels(self) -> int:
        return self.cases[0].channels

    @property
    def flat(self) -> bool:
        """Whether the cases are single slices without a place in space."""
        return all(case.stored[0] == 1 and not case.codes for case in self.cases)

    @property
    def oriented(self) -> bool:
        """Whether every file says how its axes lie."""
        return all(case.codes for case in self.cases)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the channels by the modalities of DICOM images, where these are the same in all cases and differ
        from each other; else empty."""
        found = {tuple(case.modalities) for case in self.cases}
        first = found.pop()
        return first if not found and all(first) and len(set(first)) == len(first) == self.channels else ()

    def values(self) -> dict[int, int]:
        """{value of the masks: cases that have it}, sorted."""
        found = collections.Counter(value for case in self.cases for value in case.values)
        return dict(sorted(found.items()))

    def shares(self) -> dict[int, float]:
        """{value of the masks: its share of all voxels}."""
        total: collections.Counter[int] = collections.Counter()
        for case in self.cases:
            total.update(case.values)
        count = max(1, sum(total.values()))
        return {value: number / count for value, number in sorted(total.items())}

    def turned(self, orientation: str) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
        """(sizes, spacings) of all cases along slices, rows and columns; spacings are 1 where files give none."""
        sizes, spacings = [], []
        for case in self.cases:
            turn = head_of(case).turn(orientation)
            sizes.append(turn.sizes(case.stored))
            spacings.append(turn.sizes(case.spacing or (1.0, 1.0, 1.0)))
        return sizes, spacings

    def intensities(self, channel: int) -> dict[str, float]:
        """Mean, deviation, 0.5 % and 99.5 % of the labelled values of a channel, each case counting the same, and the
        median of the cases' darkest 1 %."""
        drawn = [case.samples[channel] for case in self.cases if case.samples and case.samples[channel]]
        if not drawn:
            return {}
        each = max(1, 2_000_000 // len(drawn))
        together = np.concatenate([np.asarray(values[:each]) for values in drawn])
        low, middle, high = np.percentile(together, CENTILES)
        darkest = statistics.median(case.darkest[channel] for case in self.cases if case.darkest)
        return {
            "mean": float(together.mean()),
            "deviation": float(together.std()),
            "low": float(low),
            "median": float(middle),
            "high": float(high),
            "darkest": darkest,
        }


def head_of(case: Looked) -> volumes.Head:
    """The head that a case's first image had, without its place in space."""
    codes: Any = tuple(case.codes) if case.codes else None
    stored: Any = case.stored
    spacing: Any = case.spacing
    return volumes.Head(Path(case.name), case.format, stored, case.channels, np.dtype(np.float32), spacing, codes)


def look(found: sets.Set, keep: Path | None = None, aside: Sequence[int] | None = None) -> Fingerprint:
    """Look at every case of a set; `keep`: a folder that keeps what was seen, until a file of the set changes. `aside`:
    the values of the masks that are not labelled, the background and what is to be ignored (those of dataset.json).
    Raises one DataError that names the first faults and counts them."""
    aside = found.names.aside if aside is None else tuple(aside)
    made_of = files.fingerprint([VERSION, aside, *map(_identity, found.cases.items())])
    kept = _kept(keep, made_of)
    if kept:
        return kept
    names = list(found.cases)
    chosen = evenly(names, SAMPLED)
    cases = _looked(found, names, chosen, aside)
    labelled = [name for name in names if set(cases[name].values) - set(aside)]
    rest = [name for name in labelled if name not in set(chosen)]
    if further := evenly(rest, SAMPLED - (len(labelled) - len(rest))):
        cases |= _looked(found, further, further, aside)
    result = Fingerprint(tuple(cases[name] for name in names))
    require_alike(found.root, result)
    if keep:
        files.make_folder(keep)
        if (keep / NAME).exists() and not _own(keep / NAME):
            other = files.set_aside(keep / NAME, "")
            host.notice(f"{keep / NAME}: was not made here; kept as {other.name}")
        content = {
            "version": VERSION,
            "made_of": made_of,
            "cases": [dataclasses.asdict(case) for case in result.cases],
            "values": {str(value): count for value, count in result.values().items()},
        }
        files.write_text(keep / NAME, json.dumps(files.jsonable(content)))
    return result


def evenly(names: Sequence[str], count: int) -> list[str]:
    """`count` of the names, or all of fewer, the first and the last among them."""
    places = np.linspace(0, len(names) - 1, max(0, min(count, len(names)))).round().astype(int)
    return [names[place] for place in places]


def _looked(found: sets.Set, names: Sequence[str], whole: Collection[str], aside: tuple[int, ...]) -> dict[str, Looked]:
    """{case: what it looks like}; the values of `whole` are read too."""
    cases, faults, hints, read = {}, [], set(), set(whole)
    items = [(name, found.cases[name], name in read) for name in names]
    work, at_once = functools.partial(_look, aside=aside), host.processes(len(items), memory_to_look(found))
    for (name, *_), future in host.process_map(work, items, "look", "case", at_once):
        try:
            cases[name] = future.result()
        except host.ProcessLost:
            faults.append(f"{name}: a process was killed while it was read (out of memory?)")
        except UnetError as error:
            faults.append(error.message.rstrip("."))
            hints.add(error.hint.rstrip("."))
    hint = next(iter(hints), "") if len(hints) == 1 else ""
    sets.raise_faults(found.root, sorted(faults), hint or "Correct or remove these cases")
    return cases


def _own(path: Path) -> bool:
    """Whether a file is one that `look` keeps, also of an earlier version."""
    try:
        return bool(files.read_json(path, SCHEMA))
    except UnetError:
        return False


def memory_to_look(found: sets.Set) -> int:
    """Bytes that looking at a case of a set takes at most: its images whole, and its mask."""
    channels = max((len(case.images) for case in found.cases.values()), default=1)
    return volumes.memory_of((case.images[0] for case in found.cases.values()), LOOKED + 8 * channels)


def _identity(item: tuple[str, sets.Found]) -> list[Any]:
    name, case = item
    paths = [*case.images, *([case.mask] if case.mask else [])]
    try:
        every = [file for path in paths for file in volumes.files_of(path)]
        return [name, *([str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in every)]
    except OSError as error:  # a link to nowhere, a folder that may not be read
        raise DataError(*files.explain(error, paths[0]).args) from error


def _kept(folder: Path | None, made_of: str) -> Fingerprint | None:
    path = folder / NAME if folder else None
    if path is None or not path.is_file():
        return None
    try:
        content = files.read_json(path, SCHEMA)
        if (content["version"], content["made_of"]) != (VERSION, made_of):
            return None
        return Fingerprint(tuple(_from_json(case) for case in content["cases"]))
    except (UnetError, TypeError, ValueError, KeyError):  # it is made again
        return None


def _from_json(content: Mapping[str, Any]) -> Looked:
    case = Looked(**content)
    values = {int(value): int(count) for value, count in case.values.items()}
    spacing = tuple(case.spacing) if case.spacing else None
    return dataclasses.replace(case, stored=tuple(case.stored), spacing=spacing, values=values)


def _look(item: tuple[str, sets.Found, bool], aside: tuple[int, ...]) -> Looked:
    """One case; `item` says whether its values are read too."""
    name, case, whole = item
    heads = dataset.one_grid(name, case.images)
    first = heads[0]
    channels = sum(head.channels for head in heads)
    assert case.mask is not None  # a set of pairs
    head = volumes.read_head(case.mask, first)
    mask = volumes.read_labels(head)
    values, counts = np.unique(mask, return_counts=True)
    result = Looked(
        name,
        first.stored,
        first.spacing,
        "".join(first.codes or ()),
        channels,
        first.format,
        dict(zip(values.tolist(), counts.tolist(), strict=True)),
        modalities=tuple(head.modality for head in heads),
    )
    if not whole:
        return result
    image = volumes.read_channels(heads)
    darkest = [float(np.percentile(channel[::2, ::2, ::2], 1)) for channel in image]
    result = dataclasses.replace(result, darkest=darkest, inside=_inside(image))
    if not volumes.mismatch(first, head):
        mask = volumes.stored_like(first, head, mask)
    elif first.affine is not None and head.affine is not None:
        mask = dataset.on_grid_of(first, head, mask, aside[0])
    else:
        return result
    labelled = np.flatnonzero(~np.isin(mask, aside))
    draws = np.random.default_rng(0).choice(labelled, min(DRAWN, len(labelled)), replace=False)
    return dataclasses.replace(result, samples=[channel.ravel()[draws].astype(float).tolist() for channel in image])


def _inside(image: Array) -> float:
    """The share of a volume within the box of voxels that are not 0 in every channel."""
    held = (image != 0).any(0)
    share = 1.0
    for axis in range(3):
        places = np.flatnonzero(held.any(tuple(other for other in range(3) if other != axis)))
        share *= (places[-1] - places[0] + 1) / held.shape[axis] if len(places) else 1.0
    return float(share)


def require_alike(root: Path, found: Fingerprint) -> None:
    """Raise DataError where cases have different numbers of channels, or flat images lie beside volumes."""
    channels = collections.Counter(case.channels for case in found.cases)
    if len(channels) > 1:
        usual = channels.most_common(1)[0][0]
        odd = next(case for case in found.cases if case.channels != usual)
        raise DataError(
            f"{root.absolute()}: {odd.name} has {host.counted(odd.channels, 'channel')}, {channels[usual]} of"
            f" {len(found.cases)} cases have {usual}.",
            "Give every case the same channels, in the same order.",
        )
    if found.channels > volumes.MOST_CHANNELS:
        raise DataError(
            f"{root.absolute()}: the images have {found.channels} channels; 1 to {volumes.MOST_CHANNELS} are possible.",
            "Give fewer channels.",
        )
    flat = [case for case in found.cases if case.stored[0] == 1 and not case.codes]
    if 0 < len(flat) < len(found.cases):
        deep = next(case for case in found.cases if case not in flat)
        raise DataError(
            f"{root.absolute()}: {flat[0].name} is one slice ({times(flat[0].stored[1:])}), {deep.name} a volume"
            f" ({times(deep.stored)}).",
            "Give flat images or volumes, in sets of their own.",
        )


def median(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The median of each column."""
    return tuple(statistics.median(column) for column in zip(*rows, strict=True))
