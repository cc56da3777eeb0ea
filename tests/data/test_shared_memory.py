"""Containers with a small /dev/shm: what the loader puts there, and what is said where that does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from unet import host
from unet.data.loading.memory import require_memory
from unet.errors import DataError

LOADING = """
import torch
from unet.data.loading.workers import Pool

class Batches(dict):
    def __missing__(self, key):
        return {"image": torch.full((4, 1, 1024, 1024), float(key[1]))}  # 16 MB

if __name__ == "__main__":
    for method in ("fork", "forkserver", "spawn"):
        found = list(Pool(Batches(), 2, method).take((0, number) for number in range(4)))
        assert [int(batch["image"].mean()) for batch in found] == [0, 1, 2, 3]
    print("all came")
"""
SEVERAL = """
import types
from unet.commands import setup
from unet.config.schema import Config
from unet.devices.launchers import Rank
from unet.runtime.distributed import process_group
from unet import cli

process_group.join = lambda *_: None
config = cli.resolve("train", []).config
for own_memory, local in ((True, 0), (True, 1), (False, 0)):
    device = types.SimpleNamespace(rank=Rank(local, 2, local, 2, "mpirun"), own_memory=own_memory)
    setup.init_distributed(config, device)
"""
KEPT = """
import numpy
from pathlib import Path
from types import SimpleNamespace
from unet.data.loading.loader import Slices
from unet.data.loading.memory import shared_by
from unet.errors import DataError

numpy.save("image.npy", numpy.ones((8, 256, 256, 3), numpy.float32))
numpy.save("mask.npy", numpy.ones((8, 256, 256, 1), numpy.uint8))
case = SimpleNamespace(id="a", image=Path("image.npy"), mask=Path("mask.npy"), shape=(8, 256, 256, 3))
case.arrays = lambda: (numpy.load(case.image), numpy.load(case.mask))
for workers, how in ((2, "forkserver"), (2, "spawn"), (2, "fork"), (0, "forkserver")):
    try:
        Slices([case], "ram", None, shared_by(workers, {"multiprocessing_context": how}))
        print(how, workers, "kept")
    except DataError as error:
        print(how, workers, error.message, error.hint)
"""


def with_small(megabytes: int, code: str, place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run a program that finds a /dev/shm of so many megabytes; skipped where a mount is not allowed."""
    (place / "program.py").write_text(code)
    line = f'mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm || exit 77; exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", line, "sh", sys.executable, "program.py", *map(str, words)],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip("mounting a small /dev/shm needs root")
    return done


@pytest.mark.slow
def test_batches_do_not_lie_in_dev_shm(tmp_path: Path) -> None:
    done = with_small(1, LOADING, tmp_path)
    assert done.stdout == "all came\n", done.stderr


@pytest.mark.parametrize(("megabytes", "said"), [(64, 1), (1024, 0)])
def test_processes_that_exchange_gradients_through_it_are_warned_once_a_node(
    megabytes: int, said: int, tmp_path: Path
) -> None:
    done = with_small(megabytes, SEVERAL, tmp_path)
    assert done.returncode == 0, done.stderr
    words = "warning: 2 processes of this node exchange gradients through /dev/shm, which has 67.1 MB. Start the"
    assert done.stderr.count(words) == done.stderr.count("--shm-size=1g") == said


def test_slices_in_memory_that_do_not_fit_there(tmp_path: Path) -> None:
    lines = with_small(1, KEPT, tmp_path).stdout.splitlines()
    for line, how in zip(lines, ("forkserver", "spawn"), strict=False):
        assert line.startswith(f"{how} 2 --data-on ram: 1 case takes 6.8 MB, /dev/shm has 1.0 MB")
        assert "Type --workers 0" in line and "--shm-size" in line
    assert lines[2:] == ["fork 2 kept", "forkserver 0 kept"]


@pytest.mark.parametrize(("processes", "fits"), [(1, True), (4, True), (5, False)])
def test_each_process_of_a_run_keeps_all_cases(processes: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asked for itself alone: eight processes ended by the system's hand, without a word."""
    monkeypatch.setattr(host, "processes_here", processes)
    monkeypatch.setattr(host, "memory", lambda: (10**9, 10**9))
    if fits:
        require_memory(3, 2 * 10**8, shared=False)
        return
    with pytest.raises(DataError, match=r"3 cases take 200\.0 MB in each of 5 processes, 1\.0 GB of memory are free"):
        require_memory(3, 2 * 10**8, shared=False)
