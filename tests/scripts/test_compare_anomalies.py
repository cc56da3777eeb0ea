"""The scripts that compare a brains network with plain baselines, and that make volumes of the LGG patients' FLAIR."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
from conftest import ROOT
from scipy import stats

from unet.cli import resolve
from unet.tasks.brains import dataset, synthetic

sys.path.append(str(ROOT / "scripts"))
import compare_anomalies
import flair_of_lgg

Cli = Callable[..., tuple[int, str, str]]
GOLDEN_BITS = [1.2936, -0.3441, 1.1538, 1.4780, 1.2531, 1.5142]  # vdvae_t1_baseline.json, likelihood_32_whole_volume
SIZES = ("--resolution", 8, "--width", 3, "--batch-size", 2, "--train-fraction", 0.7, "--seed", 1)


def test_bits_are_those_of_the_normal_density() -> None:
    image, mean, variance = np.array([0.3, -1.0]), np.array([0.1, -0.5]), np.array([0.04, 0.25])
    expected = stats.norm.logpdf(image, mean, variance**0.5) / np.log(2)
    assert compare_anomalies.likelihood_bits(image, mean, variance) == pytest.approx(expected)


def test_the_floor_is_the_spread_of_volumes_without_a_common_mean() -> None:
    training = 0.1 * np.random.default_rng(0).standard_normal((3, 8, 8, 8))
    assert compare_anomalies.choose_floor(training) in (0.07, 0.1)
    assert compare_anomalies.choose_floor(np.zeros((3, 8, 8, 8))) == min(compare_anomalies.FLOORS)


@pytest.mark.slow
def test_the_script_compares_a_trained_network(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_set(Path("made"), 8, 16, 1)
    place = ("--data", "./made", "--cache", "cache", "--device", "cpu")
    code, _, err = cli("train", "--task", "brains", *place, "--workers", 0, *SIZES, "--run-name", "a", "--epochs", 1)
    assert code == 0, err
    capsys.readouterr()
    assert compare_anomalies.main(["--weights", "a.safetensors", *map(str, place)]) == 0
    told = capsys.readouterr().out
    assert "3 held-out volumes, 5 training volumes" in told
    assert told.count("15 volumes: average precision, best Dice") == 4
    for name in ("ELBO of the network", "a Gaussian for each voxel", "network |x - m| / s", "z-score", "chance"):
        assert name in told
    assert compare_anomalies.main(["--weights", "none.safetensors"]) != 0


@pytest.mark.real
def test_the_gaussian_for_each_voxel_is_the_golden_one(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Leaving out one of the six real volumes at a time, at 32^3."""
    settings: Any = resolve("config", ["--task", "brains", "--resolution", "32"]).config.task
    paths = sorted((real_data / "brains/t1").glob("*.nii.gz"))
    cubes = np.stack([dataset.prepare_image(path, settings)[0][0] for path in paths])
    found = []
    for left in range(6):
        network: Any = SimpleNamespace(training=np.delete(cubes, left, 0), held={"left": cubes[left]})
        network.reconstruct = lambda image, name: (image, np.ones_like(image), 0.0)
        compare_anomalies.compare_likelihood(network)
        found.append(float(capsys.readouterr().out.splitlines()[-1].split()[-3]))
    assert found == pytest.approx(GOLDEN_BITS, abs=0.005)


@pytest.mark.real
def test_flair_of_lgg_patients(real_lgg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patients = sorted(path for path in real_lgg.iterdir() if path.is_dir())[:2]
    raw = tmp_path / "raw"
    raw.mkdir()
    for patient in patients:
        (raw / patient.name).symlink_to(patient)
    words = [str(raw), str(tmp_path / "flair")]
    assert flair_of_lgg.main(words) == 0
    for patient in patients:
        image: Any = nibabel.load(tmp_path / f"flair/{patient.name}.nii.gz")  # type: ignore[attr-defined]
        lesion: Any = nibabel.load(tmp_path / f"flair/{patient.name}_lesion.nii.gz")  # type: ignore[attr-defined]
        assert nibabel.aff2axcodes(image.affine) == ("S", "P", "L")  # type: ignore[attr-defined]
        assert image.shape == lesion.shape and set(np.unique(lesion.dataobj)) == {0, 1}
        values = np.asarray(image.dataobj)
        assert all(values.any(axis=(1, 2))[[0, -1]]) and (values[np.asarray(lesion.dataobj) > 0] > 0).all()
    assert flair_of_lgg.main(words) != 0
    assert "is there already" in capsys.readouterr().err
