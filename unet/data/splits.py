"""Which cases train and which validate. No torch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from unet import host
from unet.config.flags import SplitOptions
from unet.errors import DataError, StorageError
from unet.files import read_json, read_text, require_regular

Split = dict[str, list[str]]
SCHEMA = {"validation": [str], "train?": ([str], None)}
LARGEST = 2**26  # bytes of a file of names
FEW, PUBLISHED = 20, 10
FOLDS = "splits_final.json"


def held_out_count(cases: int, asked: int | None) -> int:
    """`asked` validation cases; where nothing is asked the published ten, or a fifth of a set of 20 cases or fewer."""
    if asked is not None:
        return min(asked, cases)
    return PUBLISHED if cases > FEW else max(1, cases // 5)


def published(ids: Sequence[str], held_out: int | None = None) -> Split:
    """`random.seed(42); random.sample(sorted patients, k=10)` (brain-segmentation-pytorch)."""
    ordered = sorted(ids)
    validation = random.Random(42).sample(ordered, k=held_out_count(len(ordered), held_out))
    return split_off(ordered, validation)


def last(ids: Sequence[str], held_out: int | None = None) -> Split:
    """The last ten of the sorted names (the Argonne benchmark)."""
    ordered = sorted(ids)
    return split_off(ordered, ordered[-held_out_count(len(ordered), held_out) :])


def number_of(case: str) -> int | None:
    """The number in a case's id: 160 of case_00160; None for other names."""
    match = re.search(r"case_?(\d+)", case, re.IGNORECASE)
    return int(match[1]) if match else None


def fold(ids: Sequence[str], number: int, folds: int, seed: int, groups: Mapping[str, str] | None = None) -> Split:
    """Fold `number` of `folds` disjoint ones over one seeded shuffle. `groups` {case: its patient}: cases of a patient
    stay together; without them the folds' sizes differ by at most one."""
    ordered = sorted(ids)
    units = sorted({unit_of(case, groups) for case in ordered})
    if folds > len(units):
        what = "cases" if len(units) == len(ordered) else "patients"
        raise DataError(
            f"{folds} folds of {len(units)} {what}: a fold would be empty.", f"Type --folds {len(units)} or less."
        )
    held = set(random.Random(seed).sample(units, k=len(units))[number::folds])
    return split_off(ordered, [case for case in ordered if unit_of(case, groups) in held])


def unit_of(case: str, groups: Mapping[str, str] | None) -> str:
    """What must not be split: the case's patient, or the case."""
    group = (groups or {}).get(case)
    return f"group {group}" if group else case


def from_file(ids: Sequence[str], path: Path) -> Split:
    """A split from a file: JSON {"train": [...], "validation": [...]} (a run's splits.json), or text, one validation
    case a line.

    Whole words of exactly one id (`CS_5393` of `TCGA_CS_5393_19990606`, but not `CS_53`) count as that id, with a
    notice. Raises DataError for names that are not in the set, or are in both parts.
    """
    try:
        require_regular(path)
    except StorageError as error:
        raise DataError(error.message, "Give published, last, none, or a file of names with --split.") from error
    text = read_text(path, LARGEST).removeprefix("\ufeff")
    if text.lstrip().startswith(("{", "[")):
        content = read_json(path, SCHEMA, 'Write {"train": [...], "validation": [...]}, or one validation case a line.')
        validation, train = content["validation"], content.get("train")
    else:
        lines = [line.strip() for line in text.splitlines()]
        validation, train = [line for line in lines if line and not line.startswith("#")], None
    known, together = set(ids), "\n".join(["", *sorted(ids), ""])
    held = list(dict.fromkeys(_match(name, known, together, path) for name in validation))
    taken = set(held)
    kept = [item for item in ids if item not in taken]
    if parts := [name for name in (*validation, *(train or ())) if name not in known]:
        more = f" (and {len(parts) - 1} more)" if len(parts) > 1 else ""
        host.notice_once(f"{path.absolute()}: {parts[0]} is taken as {_match(parts[0], known, together, path)}{more}")
    if train is not None:
        kept = list(dict.fromkeys(_match(name, known, together, path) for name in train))
    if both := sorted(taken & set(kept)):
        raise DataError(f"{path.absolute()}: {', '.join(both[:3])} in both parts.", "Keep each case in one part.")
    return {"train": sorted(kept), "validation": sorted(held)}


def _match(name: str, known: Collection[str], together: str, path: Path) -> str:
    """The id that a name, or words of an id, means. `together`: the ids, each in a line."""
    if name in known:
        return name
    found: list[str] = []
    place = together.find(name) if name.strip() else -1
    while place >= 0:
        after = place + len(name)
        end = together.find("\n", after)
        whole = not (together[place - 1].isalnum() and name[0].isalnum())
        if whole and not (together[after].isalnum() and name[-1].isalnum()):
            found.append(together[together.rfind("\n", 0, place + 1) + 1 : end])
            place = together.find(name, end)
        else:
            place = together.find(name, place + 1)
    if len(found) != 1 or found[0] not in known:
        count, first = len(found), f"{len(known)} cases, first {sorted(known)[:1]}"
        raise DataError(
            f"{path.absolute()}: {name[:120]!r} names {count} cases of the set ({first}).",
            "Write names as the patient folders have them.",
        )
    return found[0]


def split_off(ordered: Sequence[str], validation: Sequence[str]) -> Split:
    held = set(validation)
    return {"train": [item for item in ordered if item not in held], "validation": sorted(held)}


def require_together(split: Split, groups: Mapping[str, str]) -> None:
    """Raise DataError where cases of one patient lie in both parts."""
    own = {groups[case]: case for case in split["train"] if groups.get(case)}
    leaks = [(own[groups[case]], case) for case in split["validation"] if groups.get(case) in own]
    if leaks:
        one, other = leaks[0]
        raise DataError(
            f"{groups[one]!r} is in both parts of the split: {one} trains, {other} validates"
            + (f" (and {len(leaks) - 1} more)." if len(leaks) > 1 else "."),
            "Keep the cases of a patient in one part; --fold N does.",
        )


def make(
    ids: Sequence[str],
    asked: SplitOptions,
    seed: int,
    named: Mapping[str, Callable[[Sequence[str]], Split]] | None = None,
    training: bool = True,
    groups: Mapping[str, str] | None = None,
) -> Split:
    """The split that the settings ask for; `named` are those that a task has of its own. Raises DataError where a part
    that is needed would be empty; training cases are needed for `training`. A number of cases to hold out overrides
    the cases that a named split has: they are drawn."""
    kind, held_out, named = asked.split, asked.held_out, named or {}
    if asked.fold is not None:
        result = fold(ids, asked.fold, asked.folds, max(seed, 0), groups)
    elif kind == "none":
        result = {"train": sorted(ids), "validation": []}
    elif kind in named and held_out is None:
        result = named[kind](ids)
    elif kind in ("published", "last", *named):
        result = (last if kind == "last" else published)(ids, held_out)
    else:
        result = from_file(ids, Path(kind))
    require_together(result, groups or {})
    no_training = training and not result["train"]
    if no_training or (not result["validation"] and kind != "none"):
        empty = "train" if no_training else "validation"
        raise DataError(
            f"The split leaves no {empty} cases ({len(ids)} cases in the set, --split {kind}"
            f"{'' if held_out is None else f', --held-out {held_out}'}).",
            "Add cases, or type a --held-out below their number, --fold 0, --split none, or a file of names with"
            " --split.",
        )
    return result


def given_folds(root: Path, number: int) -> tuple[Path, list[dict[str, list[str]]], str]:
    """nnU-Net's splits_final.json beside dataset.json: its path, its folds, none where there is no such file, and what
    to do about a faulty one. Raises DataError where fold `number` is not there."""
    path = (root if root.is_dir() else root.parent) / FOLDS
    hint = f"Correct it, or move it out of the set: folds are then drawn. --split FILE takes one of your own ({path})."
    folds = read_json(path, [{"train": [str], "val": [str]}], hint) if path.is_file() else []
    if path.is_file() and not 0 <= number < len(folds):
        raise DataError(f"{path}: has the folds 0 to {len(folds) - 1}, not {number}.", hint)
    return path, folds, hint


def given_fold(root: Path, ids: Sequence[str], number: int, part: bool = False) -> dict[str, list[str]] | None:
    """Fold `number` of nnU-Net's splits_final.json, {"train": cases, "validation": cases}; None where there is no such
    file. `part`: `ids` are some of the set's, and the others are left out. Raises DataError for names that are not in
    the set, and a fold that is not there."""
    path, folds, hint = given_folds(root, number)
    if not folds:
        return None
    found = {"train": sorted(set(folds[number]["train"])), "validation": sorted(set(folds[number]["val"]))}
    if part:
        found = {name: [case for case in cases if case in ids] for name, cases in found.items()}
        if not all(found.values()):
            empty = " and no ".join(name for name, cases in found.items() if not cases)
            raise DataError(
                f"{path}: fold {number} has no {empty} case among the first {len(ids)} cases of the set.",
                "Type a larger --max-cases, or another --fold.",
            )
    if odd := sorted({*found["train"], *found["validation"]} - set(ids)):
        raise DataError(f"{path}: names {', '.join(odd[:3])}, not in the set ({len(odd)} of such).", hint)
    if both := sorted({*found["train"]} & {*found["validation"]}):
        raise DataError(f"{path}: {', '.join(both[:3])} in both parts of fold {number}.", hint)
    host.notice_once(f"The split is fold {number} of {path.name}, which the set has")
    return found
