"""KiTS19 on the emulated Gaudi and MLU: the CPU's weights and masks bit for bit, and the operators that it takes."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import program
from emulated_runs import listed, run, same_bits

from unet.tasks.kits19 import synthetic as phantom_ct

pytestmark = pytest.mark.slow
STEPS = 3  # in which a crop is made noisy


def training(name: str, *more: object) -> list[object]:
    sizes = ("--pad-to", 32, "--patch", 16, "--eval-patch", 32, "--layers", 2, "--width", 4)
    common = ("--task", "kits19", "--data", "./scans", "--cache", "cache", "--layout", "NCDHW", "--workers", 0, *sizes)
    names = ("--run-name", name, "--weights", f"{name}.pt", "--max-steps", STEPS, "--epochs", 9, "--seed", 1)
    return ["train", *common, *names, "--deterministic", *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made scans and the run of the CPU that the devices must repeat."""
    folder = tmp_path_factory.mktemp("kits19")
    phantom_ct.write_set(folder / "scans", 6, (32, 36, 40), 1)
    done = program(*training("cpu"), "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_the_weights_are_the_cpu_s_bit_for_bit(mode: str, place: Path) -> None:
    done = run(place, mode, *training(mode))
    assert done.code == 0, done.err
    assert same_bits(place, mode, "cpu")
    assert done.log["violations"] == []
    listed(done.log, "training", "kits19")


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_masks_of_a_device_are_the_cpu_s(mode: str, place: Path) -> None:
    words = ("predict", "--task", "kits19", "--weights", "cpu.pt", "--layout", "NCDHW", "--overwrite", "--mirror")
    done = run(place, mode, *words, "./scans/case_00001", "--output", mode)
    assert done.code == 0, done.err
    assert done.log["violations"] == []
    listed(done.log, "prediction", "kits19")
    here = program(*words, "./scans/case_00001", "--output", "here", "--device", "cpu", cwd=place)
    assert here.returncode == 0, here.stderr
    a, b = (np.asarray(nibabel.load(place / name / "case_00001.nii.gz").dataobj) for name in (mode, "here"))  # type: ignore[attr-defined]
    assert np.array_equal(a, b)


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_crops_made_on_the_device(mode: str, place: Path) -> None:
    done = run(place, mode, *training(f"{mode}-crops", "--data-on", "device"))
    assert done.code == 0, done.err
    assert same_bits(place, f"{mode}-crops", "cpu")
    assert done.log["violations"] == []
