"""Brains on the emulated Gaudi and MLU: the CPU's weights but for rounding, and no breach of the device's rules."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import program
from emulated_runs import run, weights

from unet.tasks.brains import synthetic

pytestmark = pytest.mark.slow


def training(name: str) -> list[object]:
    sizes = ("--resolution", 8, "--width", 3, "--batch-size", 2, "--layout", "NCDHW")
    common = ("--task", "brains", "--data", "./made", "--cache", "cache", "--workers", 0, *sizes)
    return ["train", *common, "--run-name", name, "--max-steps", 3, "--seed", 1, "--deterministic"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made brains and the run of the CPU that the devices must repeat."""
    folder = tmp_path_factory.mktemp("brains")
    synthetic.write_set(folder / "made", 6, 16, 1)
    done = program(*training("cpu"), "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_the_weights_are_the_cpu_s_but_for_rounding(mode: str, place: Path) -> None:
    """The same data and noise: with others, three steps of 1e-3 would end about that far apart. Measured after one:
    1.5e-8."""
    done = run(place, mode, *training(mode))
    assert done.code == 0, done.err
    assert done.log["violations"] == []
    here, there = weights(place, "cpu"), weights(place, mode)
    assert here.keys() == there.keys()
    assert max(float((here[name] - there[name]).abs().max()) for name in here) < 2e-5


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_samples_and_reconstructions(mode: str, place: Path) -> None:
    for words in (
        ("sample", "--weights", "cpu.safetensors", "--count", 2, "--output", f"{mode}-samples"),
        ("predict", "--weights", "cpu.safetensors", "./made/brain_0000.nii.gz", "--overlay", "--output", mode),
    ):
        done = run(place, mode, *words)
        assert done.code == 0, done.err
        assert done.log["violations"] == []
