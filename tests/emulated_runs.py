"""Command lines on an emulated device, and what is compared of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, program, stored
from emulator import NoCompiler, environment

OPERATORS = ROOT / "tests" / "operators"
FLAGS = {"lazy": ("--hpu", "--use_lazy_mode"), "eager": ("--hpu",), "mlu": ("--mlu",), "npu": ("--device", "npu")}
KINDS = {"lazy": "hpu", "eager": "hpu"}  # the others are called as their mode


@dataclasses.dataclass
class Done:
    """A command that ran on an emulated device: how it ended, and what was done to the device, by rank."""

    code: int
    out: str
    err: str
    logs: list[dict[str, Any]]

    @property
    def log(self) -> dict[str, Any]:
        return self.logs[0]


def emulated(kind: str, log: Path, **how: Any) -> dict[str, str]:
    """`emulator.environment`; the test is skipped, with the reason, where the device cannot be built."""
    try:
        return environment(kind, log, **how)
    except NoCompiler as error:
        pytest.skip(str(error))


def run(place: Path, mode: str, *words: object, env: dict[str, str] | None = None, **how: Any) -> Done:
    """Run a command line on a device in a mode: lazy, eager (Gaudi), mlu, npu; `how`: as for `emulator.environment`."""
    log = place / "device.json"
    for old in place.glob("device.json*"):
        old.unlink()
    variables = emulated(KINDS.get(mode, mode), log, **how)
    done = program(
        *words, *FLAGS[mode], cwd=place, env={"OMP_NUM_THREADS": "1", **variables, **(env or {})}, timeout=300
    )
    logs = [json.loads(path.read_text()) for path in sorted(place.glob("device.json*")) if ".process" not in path.name]
    return Done(done.returncode, done.stdout, done.stderr, logs)


def weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = stored(place / "weights" / f"{name}.safetensors")["model"]
    return state


def same_bits(place: Path, a: str, b: str) -> bool:
    x, y = weights(place, a), weights(place, b)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def listed(log: dict[str, Any], section: str, task: str = "lgg") -> None:
    """Whether the operators that were needed are those that the task's list in tests/operators has; a second word in a
    line names the only device that needs it."""
    text = (OPERATORS / f"{task}.txt").read_text().split(f"[{section}]\n")[1].split("\n[")[0]
    rows = [line.split() for line in text.splitlines() if line]
    found, known = log["ops"], [name for name, *only in rows if only in ([], [log["kind"]])]
    assert found == known, f"write the new list into tests/operators/{task}.txt:\n" + "\n".join(found)
