"""EM on the emulated Gaudi and MLU: the CPU's weights and masks bit for bit, and the operators that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import program
from emulated_runs import listed, run, same_bits

from unet.tasks.em import synthetic as phantom_em

pytestmark = pytest.mark.slow


def training(name: str, *more: object) -> list[object]:
    sizes = ("--image-size", 76, "--layers", 2, "--width", 4, "--batch-size", 2, "--dropout", 0, "--precision", "fp32")
    common = ("--task", "em", "--data", "./cells", "--cache", "cache", "--layout", "NCHW", "--workers", 0, *sizes)
    names = ("--run-name", name, "--weights", f"{name}.pt", "--max-steps", 6, "--evaluate-every", 3, "--log-every", 2)
    return ["train", *common, *names, "--fold", 0, "--deterministic", *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made cells and the run of the CPU that the devices must repeat."""
    folder = tmp_path_factory.mktemp("em")
    phantom_em.write_set(folder / "cells", 10, 64, 1)
    done = program(*training("cpu"), "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_the_weights_are_the_cpu_s_bit_for_bit(mode: str, place: Path) -> None:
    done = run(place, mode, *training(mode))
    assert done.code == 0, done.err
    assert same_bits(place, mode, "cpu")
    assert done.log["violations"] == []
    listed(done.log, "training", "em")


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_masks_of_a_device_are_the_cpu_s(mode: str, place: Path) -> None:
    words = ("predict", "--task", "em", "--weights", "cpu.pt", "--layout", "NCHW", "--precision", "fp32", "--overwrite")
    done = run(place, mode, *words, "./cells", "--output", mode)
    assert done.code == 0, done.err
    assert done.log["violations"] == []
    listed(done.log, "prediction", "em")
    here = program(*words, "./cells", "--output", "here", "--device", "cpu", cwd=place)
    assert here.returncode == 0, here.stderr
    assert (place / mode / "test-masks.tif").read_bytes() == (place / "here" / "test-masks.tif").read_bytes()


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_slices_changed_on_the_device(mode: str, place: Path) -> None:
    done = run(place, mode, *training(f"{mode}-slices", "--data-on", "device", "--no-checkpoints"))
    assert done.code == 0, done.err
    assert done.log["violations"] == []
