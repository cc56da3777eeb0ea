"""Brains on the emulated Gaudi and MLU: the CPU's weights and volumes bit for bit, and the operators that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import program
from emulated_runs import Done, listed, run, same_bits

from unet.tasks.brains import synthetic

pytestmark = pytest.mark.slow
SAMPLE = ("sample", "--weights", "cpu.safetensors", "--count", 2, "--layout", "NCDHW")
PREDICT = ("predict", "--weights", "cpu.safetensors", "./made/brain_0000.nii.gz", "--residual", "--layout", "NCDHW")
# What the settings of a run add: every way of the loss, of the weights' average and of the memory.
SETTINGS = ("--ema", 0.9, "--checkpoint-activations", "--kl-warmup", 9, "--free-bits", 0.1)


def training(name: str, *more: object) -> list[object]:
    sizes = ("--resolution", 8, "--width", 3, "--batch-size", 2, "--layout", "NCDHW")
    common = ("--task", "brains", "--data", "./made", "--cache", "cache", "--workers", 0, *sizes)
    return ["train", *common, "--run-name", name, "--max-steps", 3, "--seed", 1, "--deterministic", *more]


def on_cpu(place: Path, *words: object) -> None:
    done = program(*words, "--device", "cpu", cwd=place, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def clean(done: Done) -> Done:
    assert done.code == 0, done.err
    assert [log["violations"] for log in done.logs] == [[]] * len(done.logs)
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made brains and the run of the CPU that the devices must repeat."""
    folder = tmp_path_factory.mktemp("brains")
    synthetic.write_set(folder / "made", 6, 16, 1)
    on_cpu(folder, *training("cpu"))
    return folder


@pytest.mark.parametrize("mode", ["lazy", "mlu", "eager"])
def test_the_weights_are_the_cpu_s_bit_for_bit(mode: str, place: Path) -> None:
    done = clean(run(place, mode, *training(mode)))
    assert same_bits(place, mode, "cpu")
    if mode != "eager":
        listed(done.log, "training", "brains")


@pytest.mark.parametrize(("name", "words"), [("prediction", PREDICT), ("sampling", SAMPLE)])
def test_volumes_of_a_device_are_the_cpu_s(name: str, words: tuple[object, ...], place: Path) -> None:
    on_cpu(place, *words, "--output", f"{name}-cpu")
    here = {path.name: path.read_bytes() for path in (place / f"{name}-cpu").rglob("*.nii.gz")}
    assert here
    for mode in ("lazy", "mlu"):
        done = clean(run(place, mode, *words, "--output", f"{name}-{mode}"))
        listed(done.log, name, "brains")
        assert here == {path.name: path.read_bytes() for path in (place / f"{name}-{mode}").rglob("*.nii.gz")}
