"""A user's own set on the emulated Gaudi and MLU: the CPU's weights but for rounding and its masks bit for bit, with
patches changed on the host and on the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import program
from emulated_runs import run, same_bits, weights
from tasks.folder import sets as made

pytestmark = pytest.mark.slow


def training(name: str, *more: object) -> list[object]:
    sizes = ("--patch", 8, 16, 16, "--layers", 2, "--width", 4, "--widest", 8, "--batch-size", 2, "--precision", "fp32")
    common = ("--task", "folder", "--data", "./set", "--cache", "cache", "--workers", 0, "--spacing", 2, 1, 1, *sizes)
    names = ("--run-name", name, "--weights", f"{name}.safetensors", "--epochs", 1, "--epoch-batches", 3)
    return ["train", *common, *names, "--fold", 0, "--folds", 3, "--deterministic", *more]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set, and the runs of the CPU that the devices must repeat."""
    folder = tmp_path_factory.mktemp("folder")
    made.nnunet(folder / "set", cases=3, classes=3)
    for where in ("host", "device"):
        words = training(f"cpu-{where}", "--augment-on", where)
        done = program(*words, "--device", "cpu", cwd=folder, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    return folder


def test_host_and_device_change_patches_alike(place: Path) -> None:
    assert same_bits(place, "cpu-host", "cpu-device")


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_weights_and_masks_are_the_cpu_s(mode: str, place: Path) -> None:
    done = run(place, mode, *training(mode, "--augment-on", "device"))
    assert done.code == 0, done.err
    assert done.log["violations"] == []
    there, here = weights(place, mode), weights(place, "cpu-device")
    for key, value in here.items():  # the CPU's own kernels of the loss and the norm sum in another order
        assert torch.allclose(there[key], value, rtol=0, atol=1e-6), key
    words = ("predict", "--weights", "cpu-host.safetensors", "--precision", "fp32", "--overwrite", "--mirror")
    done = run(place, mode, *words, "./set/imagesTr", "--output", f"masks-{mode}")
    assert done.code == 0, done.err
    assert done.log["violations"] == []
    done_here = program(*words, "./set/imagesTr", "--output", "masks", "--device", "cpu", cwd=place)
    assert done_here.returncode == 0, done_here.stderr
    for path in sorted((place / "masks").glob("*.nii.gz")):
        assert (place / f"masks-{mode}" / path.name).read_bytes() == path.read_bytes(), path.name
