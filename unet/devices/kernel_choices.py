"""Which algorithm the convolutions of this process take, by --kernels: measured on this machine when a size is first
met, and noted in the user's own folder for later runs and for the other processes of this machine; or that of the run
that is resumed."""

from __future__ import annotations

import collections
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import files, host, locks
from unet.config.run_files import KERNELS, KERNELS_JSON
from unet.errors import UnetError

if TYPE_CHECKING:
    from unet.kernels.geometry import Geometry

LONGEST = 15.0  # seconds of each thread that a process measures; what it meets after that is torch's own
RECORD = {"algorithm": str, "seconds": {str: float}, "wrong": [str]}
MEASURED = "measured"
HINT = "Delete the file: what it holds is measured again."


class Choices:
    """What was chosen, pass by pass. `kernels`: measured, or the name of an algorithm; `machine`: what decides the
    times besides the convolution. Copies of layers share it; a pickled one begins anew."""

    def __init__(self, kernels: str, machine: Callable[[], str]) -> None:
        self.kernels, self.machine = kernels, machine
        self.used: dict[str, str] = {}  # pass of a convolution -> algorithm
        self.seconds = self.busy = 0.0  # of measuring; of each thread, which other processes do not make longer
        self.given: dict[str, str] = {}  # of the run that is resumed
        self.others: dict[str, dict[str, Any]] = {}  # rank -> what another process of the run has chosen
        self.known: dict[tuple[Any, ...], dict[str, str]] = {}

    def __reduce__(self) -> Any:
        return Choices, (self.kernels, self.machine)

    def __deepcopy__(self, memo: Any) -> Choices:
        return self

    def names(self, how: Geometry, parts: Sequence[str]) -> dict[str, str]:
        """The algorithm of each pass; what is not known is measured, by one process at a time."""
        place = (how, *parts)
        if place not in self.known:
            self.known[place] = self._names(how, parts)
        return self.known[place]

    def _names(self, how: Geometry, parts: Sequence[str]) -> dict[str, str]:
        keys = {part: f"{part} {how.words()}" for part in parts}
        found = {part: name for part, key in keys.items() if (name := self.used.get(key, self.given.get(key, "")))}
        if missing := [part for part in parts if part not in found]:
            records = self._recorded(how, {part: keys[part] for part in missing})
            found |= {part: record["algorithm"] for part, record in records.items()}
            if any("torch" in record["wrong"] for record in records.values()):
                host.notice_once(
                    "note: some convolutions in mixed precision are wrong on this processor with this torch, by"
                    " comparison with fp32: they are computed in another way (kernels.json of the run names them)"
                )
        self.used |= {keys[part]: found[part] for part in parts}
        return {part: found[part] for part in parts}

    def _recorded(self, how: Geometry, keys: dict[str, str]) -> dict[str, dict[str, Any]]:
        """The records of passes: from the user's own folder, or found now and kept there."""
        if self.kernels != MEASURED:
            return self._measured(how, list(keys))
        place, here = own_file(), self.machine() + ": "

        def noted() -> dict[str, dict[str, Any]]:
            all_of_them = read(place)
            return {part: all_of_them[here + key] for part, key in keys.items() if here + key in all_of_them}

        found = noted()
        if len(found) < len(keys) and place is not None:
            with contextlib.suppress(UnetError), locks.hold(place.with_suffix(".lock")):
                found = noted()
                if self.busy < LONGEST and (missing := [part for part in keys if part not in found]):
                    found |= self._measured(how, missing)
                    files.write_json(place, read(place) | {here + keys[part]: found[part] for part in missing})
        if missing := [part for part in keys if part not in found]:
            found |= self._measured(how, missing)
        return found

    def _measured(self, how: Geometry, parts: list[str]) -> dict[str, dict[str, Any]]:
        import torch

        from unet.kernels import measure

        start, worked = time.perf_counter(), time.process_time()
        only = self.kernels if self.kernels != MEASURED else "torch" if self.busy >= LONGEST else ""
        found = measure.chosen(how, parts, only)
        self.seconds += time.perf_counter() - start
        self.busy += (time.process_time() - worked) / torch.get_num_threads()
        return found

    def own(self) -> dict[str, Any]:
        """What this process has chosen, now and before the run was resumed."""
        return {"machine": self.machine(), "choices": dict(sorted((self.given | self.used).items()))}

    def described(self) -> dict[str, Any]:
        """What `recall` takes: for the folder of a run. The other processes are in it where they chose otherwise, or on
        another machine."""
        own = self.own()
        ranks = {
            rank: each
            for rank, each in sorted(self.others.items())
            if each["machine"] != own["machine"] or not each["choices"].items() <= own["choices"].items()
        }
        return {"kernels": self.kernels, **own, **({"ranks": ranks} if ranks else {})}

    def recall(self, path: Path, rank: int = 0) -> None:
        """Take the choices of this process of a run that goes on, or the first one's where it has none of its own.
        Those of another machine are not taken: another algorithm may be right or fast there. Raises UnetError for a
        damaged file."""
        if not os.path.lexists(path):
            return
        content = files.read_json(path, KERNELS, HINT)
        ranks = content.get("ranks", {})
        found = ranks.get(str(rank), content)
        if found["machine"] != self.machine() or content["kernels"] != self.kernels:
            host.notice(
                f"{path}: chosen with --kernels {content['kernels']} on {found['machine']}; here with --kernels"
                f" {self.kernels} on {self.machine()}. Sums are rounded in another order."
            )
            return
        self.given, self.others = dict(found["choices"]), dict(ranks)

    def summary(self) -> str:
        """How many passes take which algorithm, in words."""
        counts = collections.Counter(self.used.values())
        each = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        took = f"; measured in {self.seconds:.1f} s" if self.kernels == MEASURED and self.seconds else ""
        return f"kernels {self.kernels}: {len(self.used)} passes of convolutions: {each}{took}"


def measured_before(machine: str) -> list[str]:
    """Lines for `doctor`: what the user's own folder holds for this machine."""
    place = own_file()
    records = [record for key, record in read(place).items() if key.startswith(f"{machine}: ")]
    counts = collections.Counter(record["algorithm"] for record in records)
    each = ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none yet"
    wrong = sum(bool(record["wrong"]) for record in records)
    lines = [f"  passes of 3D convolutions measured here: {each} ({place or 'not kept: no folder of the user'})"]
    words = (
        "is wrong by some algorithm, and takes another"
        if wrong == 1
        else "are wrong by some algorithm, and take another"
    )
    return [*lines, f"    {wrong} of them {words}"] if wrong else lines


def own_file() -> Path | None:
    """The file of what was measured; None where it cannot be kept."""
    try:
        return files.make_folder(host.own_folder()) / KERNELS_JSON
    except (UnetError, RuntimeError):
        return None


def read(place: Path | None) -> dict[str, dict[str, Any]]:
    """The content of that file; one that is damaged is begun anew."""
    try:
        return files.read_json(place, {str: RECORD}) if place is not None and place.exists() else {}
    except UnetError:
        return {}
