"""Brains on the emulated Gaudi and MLU: the CPU's weights and volumes bit for bit, and the operators that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import program
from emulated_runs import Done, listed, run, same_bits

from unet.tasks.brains import synthetic

pytestmark = pytest.mark.slow
ON_DATA = ("--data", "./made", "--cache", "cache", "--workers", 0)
SAMPLE = ("sample", "--weights", "cpu.safetensors", "--count", 2, "--layout", "NCDHW")
PREDICT = ("predict", "--weights", "cpu.safetensors", "./made/brain_0000.nii.gz", "--layout", "NCDHW")
EVALUATE = ("evaluate", "--weights", "cpu.safetensors", *ON_DATA, "--layout", "NCDHW", "--samples", 2)
SETTINGS = ("--ema", 0.9, "--checkpoint-activations", "--kl-warmup", 9, "--free-bits", 0.1)


def training(name: str, *more: object) -> list[object]:
    sizes = ("--resolution", 8, "--width", 3, "--batch-size", 2, "--layout", "NCDHW")
    course = ("--run-name", name, "--max-steps", 3, "--seed", 1, "--deterministic")
    return ["train", "--task", "brains", *ON_DATA, *sizes, *course, *more]


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


@pytest.mark.parametrize(
    ("name", "words"), [("prediction", (*PREDICT, "--residual", "--overlay")), ("sampling", SAMPLE)]
)
def test_volumes_of_a_device_are_the_cpu_s(name: str, words: tuple[object, ...], place: Path) -> None:
    on_cpu(place, *words, "--output", f"{name}-cpu")
    here = {path.name: path.read_bytes() for path in (place / f"{name}-cpu").rglob("*.nii.gz")}
    assert here
    for mode in ("lazy", "mlu"):
        done = clean(run(place, mode, *words, "--output", f"{name}-{mode}"))
        listed(done.log, name, "brains")
        assert here == {path.name: path.read_bytes() for path in (place / f"{name}-{mode}").rglob("*.nii.gz")}


def test_scores_of_a_device_are_the_cpu_s(place: Path) -> None:
    """With the bound of two samples, whose noise is the same everywhere."""
    on_cpu(place, *EVALUATE, "--run-name", "scores-cpu")
    for mode in ("lazy", "mlu"):
        done = clean(run(place, mode, *EVALUATE, "--run-name", f"scores-{mode}"))
        listed(done.log, "prediction", "brains")
    tables = [place / "performance" / f"scores-{mode}" / "cases.csv" for mode in ("cpu", "lazy", "mlu")]
    here, *others = (path.read_text() for path in tables)
    assert "importance_bits" in here and others == [here, here]


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_two_ranks_with_all_settings_give_the_weights_of_two_cpu_ranks(mode: str, place: Path) -> None:
    more = (*SETTINGS, "--devices", 2, "--accumulate", 2, "--batch-size", 1)
    if not (place / "weights" / "cpu-2.safetensors").exists():
        on_cpu(place, *training("cpu-2", *more))
    done = clean(run(place, mode, *training(f"{mode}-2", *more)))
    assert len(done.logs) == 2
    assert same_bits(place, f"{mode}-2", "cpu-2")


@pytest.mark.parametrize("mode", ["lazy", "mlu"])
def test_training_reads_the_device_once_for_a_log_line(mode: str, place: Path) -> None:
    """Rule 5: no synchronisation inside a step; one shape, so one graph. With all settings, in bf16, volumes cut and
    changed on the device."""
    once = ("--split", "none", "--log-every", 100, "--no-checkpoints", "--precision", "bf16", "--data-on", "device")
    done = clean(run(place, mode, *training(f"{mode}-reads", *once, *SETTINGS)))
    assert "bfloat16" in done.err
    assert (done.log["counts"]["optimizer_step"], done.log["counts"]["reads"]) == (3, 1)
    assert len(done.log["shapes"]) == 1
