"""The task from end to end on made brains of 8^3: runs, resume, processes, scores, outputs, settings, errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import program, stored

from unet.tasks.brains import passes, synthetic

Cli = Callable[..., tuple[int, str, str]]
SIZES = ("--resolution", 8, "--width", 3, "--batch-size", 2, "--train-fraction", 0.7, "--seed", 1)
COMMON = ("--task", "brains", "--data", "./made", "--cache", "cache", "--device", "cpu", "--workers", 0, *SIZES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "made"
    synthetic.write_set(folder, 8, 16, 1)
    return folder


@pytest.fixture
def train(cli: Cli, made: Path) -> Cli:
    Path("made").symlink_to(made)

    def run(*words: object) -> tuple[int, str, str]:
        return cli("train", *COMMON, *words)

    return run


def weights_of(name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = stored(f"weights/{name}.safetensors")["model"]
    return found


def test_a_run_is_scored_drawn_and_sampled(train: Cli, cli: Cli) -> None:
    code, out, err = train("--run-name", "a", "--epochs", 2, "--show-pipeline", "--deterministic")
    assert code == 0, err
    run = Path("performance/a")
    assert {"terms.png", "progress.png", "predictions.png", "cases.csv"} <= {path.name for path in run.iterdir()}
    assert len(list((run / "reconstructions").iterdir())) == 2
    assert {path.suffix for path in (run / "pipeline_test").iterdir()} == {".png", ".gz"}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epoch = [row for row in rows if row["event"] == "epoch"][-1]
    named = {"elbo_bits", "likelihood_bits", "kl_nats", "kl_0", "eval_kl_0", "gradient_norm_encoder"}
    assert named <= set(epoch)
    assert epoch["elbo_bits"] == pytest.approx(epoch["likelihood_bits"] - epoch["kl_nats"] / (512 * math.log(2)))

    code, out, err = cli("evaluate", "--weights", "a.safetensors", "--samples", 3, *COMMON[2:8])
    assert code == 0, err
    assert "brain ELBO" in out and "IW" in out

    volume = next(path for path in sorted(Path("made").iterdir()) if "lesion" not in path.name and ".nii" in path.name)
    code, out, err = cli("predict", "--weights", "a.safetensors", volume, "--residual", "--overlay", "--device", "cpu")
    assert code == 0, err
    image: Any = nibabel.load(volume)  # type: ignore[attr-defined]
    for name in ("reconstruction", "std", "residual"):
        found: Any = nibabel.load(f"predictions/{volume.name.removesuffix('.nii.gz')}_{name}.nii.gz")  # type: ignore[attr-defined]
        assert found.shape == image.shape and np.array_equal(found.affine, image.affine)
        assert np.isfinite(found.get_fdata()).all()

    assert cli("sample", "--weights", "a.safetensors", "--count", 2, "--output", "one", "--device", "cpu")[0] == 0
    assert cli("sample", "--weights", "a.safetensors", "--count", 1, "--output", "two", "--device", "cpu")[0] == 0
    first = [nibabel.load(f"{name}/sample_0000.nii.gz").get_fdata() for name in ("one", "two")]  # type: ignore[attr-defined]
    assert np.array_equal(*first)
    assert Path("one/samples.png").exists()
    code, _, err = cli("sample", "--weights", "a.safetensors", "--count", 1, "--output", "two", "--device", "cpu")
    assert code == 2 and "--overwrite" in err


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(train: Cli) -> None:
    assert train("--run-name", "whole", "--epochs", 3, "--deterministic", "--ema", 0.9)[0] == 0
    assert train("--run-name", "half", "--epochs", 1, "--deterministic", "--ema", 0.9)[0] == 0
    assert train("--run-name", "half", "--epochs", 3, "--resume")[0] == 0
    a, b = (stored(f"weights/{name}.state.safetensors") for name in ("whole", "half"))
    for part in (lambda state: state["model"], lambda state: state["ema"]["model"]):
        assert all(torch.equal(part(a)[key], part(b)[key]) for key in part(a))
    assert not torch.equal(a["model"]["head.weight"], a["ema"]["model"]["head.weight"])


def test_a_target_is_an_elbo(train: Cli, cli: Cli) -> None:
    code, out, err = train("--run-name", "a", "--epochs", 3, "--target", -9)
    assert code == 0, err
    assert "finished, the target is reached: 1 epoch" in out
    assert "  best       ELBO -" in out and "validation ELBO -" in err and "elbo bits" not in err.lower()
    assert "Best validation mean ELBO: -" in Path("performance/a/a.txt").read_text()
    assert train("--run-name", "b", "--epochs", 1, "--target", 5)[0] == 3
    assert cli("config", "--task", "brains", "--target", 5.3)[0] == 0


@pytest.mark.slow
def test_checkpointed_activations_give_the_same_bits(train: Cli) -> None:
    for name, more in (("plain", ()), ("less", ("--checkpoint-activations",))):
        assert train("--run-name", name, "--max-steps", 3, "--deterministic", *more)[0] == 0
    a, b = weights_of("plain"), weights_of("less")
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_two_processes_train(made: Path, workplace: Path) -> None:
    Path("made").symlink_to(made)
    words = ("train", *COMMON, "--run-name", "two", "--epochs", 1, "--batch-size", 1, "--devices", 2)
    done = program(*words, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert Path("performance/two/reconstructions/epoch_0001.png").exists()


def test_the_keys_of_the_reference(cli: Cli) -> None:
    keys = {
        "nii_target_shape": [32, 32, 32],
        "latents_per_channel": [2, 5, 4, 3, 2, 1],
        "channels_per_latent": [20, 20, 20, 20, 20, 200],
        "train_frac": 0.9,
        "random_seed": None,
        "CUDA_devices": ["0"],
        "gradient_clipping_value": 50,
        "half_precision": False,
        "use_rezero": False,
        "visualise_training_pipeline_before_starting": True,
    }
    Path("a.json").write_text(json.dumps(keys))
    code, out, err = cli("config", "--task", "brains", "--json_config_file", "a.json")
    assert code == 0, err
    shown = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name, value in (("resolution", "32"), ("clip", "50"), ("train_fraction", "0.9"), ("show_pipeline", "True")):
        found = next(line for key, line in shown.items() if name in key.replace("-", "_"))
        assert value.lower() in found.lower(), found


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({}, "-"),
        ({"keep_every_checkpoint": True}, "1"),
        ({"save_period": 5}, "5"),
        ({"keep_every_checkpoint": True, "save_period": 2}, "2"),
        ({"keep_every_checkpoint": False, "save_period": 1}, "-"),
    ],
)
def test_which_epochs_keep_their_weights(keys: dict[str, Any], kept: str, cli: Cli) -> None:
    Path("a.json").write_text(json.dumps(keys))
    code, out, err = cli("config", "--task", "brains", "--config", "a.json")
    assert code == 0, err
    assert next(line.split()[1] for line in out.splitlines() if line.split()[:1] == ["--keep-every"]) == kept


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"keep_every_checkpoint": 1}, "keep_every_checkpoint takes true or false, not 1"),
        ({"keep_every_checkpoint": False, "save_period": 5}, "save_period 5 is not supported"),
        ({"save_period": 0}, "keep_every is at least 1"),
        ({"use_rezero": True}, "use_rezero"),
        ({"nii_target_shape": [32, 32, 64]}, "nii_target_shape"),
        ({"latentz": 3}, "latentz"),
        ({"output_activation_function": "identity"}, "identity"),
        ({"resume_from_checkpoint": True}, "--resume"),
    ],
)
def test_keys_that_cannot_be_followed(keys: dict[str, Any], words: str, cli: Cli) -> None:
    Path("a.json").write_text(json.dumps(keys))
    code, _, err = cli("config", "--task", "brains", "--config", "a.json")
    assert code == 2 and words in err and len(err.strip().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--resolution", 24), "no power of two; nearest: 16 or 32"),
        (("--latents-per-channel", 1, 1, 1), "--latents-per-channel 1 1 1 has 3 entries"),
        (("--channels-per-latent", 9, 3, 3, 30), "--channels-per-latent: 9 at 8 x 8 x 8 voxels (entry 1) is wider"),
        (("--kernel-sizes-top-down", 3, 5, 2, 1), "--kernel-sizes-top-down: 5 at 4 x 4 x 4 voxels (entry 2)"),
        (("--channels-top-down", 3, 6, 9, 11), "at one voxel both must be the same"),
        (("--latents-per-channel", 1, 1, 1, 0), "ends in 0"),
    ],
)
def test_lists_that_do_not_fit(words: tuple[object, ...], named: str, train: Cli) -> None:
    code, _, err = train(*words)
    assert code == 2 and named in err and len(err.strip().splitlines()) == 2


def test_weights_of_another_resolution(train: Cli, cli: Cli) -> None:
    assert train("--run-name", "a", "--max-steps", 1)[0] == 0
    code, _, err = cli("evaluate", "--weights", "a.safetensors", *COMMON[2:8], "--resolution", 16)
    assert code != 0 and "8^3" in err and "--resolution 8" in err and len(err.strip().splitlines()) <= 3


def test_a_segmentation_task_draws_no_samples(tiny: Cli, cli: Cli) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    code, _, err = cli("sample", "--weights", "a.safetensors", "--device", "cpu")
    assert code == 2 and "draws no samples" in err


@pytest.mark.slow
def test_a_benchmark_of_steps_and_passes(cli: Cli) -> None:
    words = ("benchmark", "--task", "brains", "--source", "none", "--device", "cpu", "--threads", 1)
    code, out, err = cli(*words, "--resolution", 8, "--width", 3, "--batch-size", 2, "--rounds", 1, "--steps", 1)
    assert code == 0, err
    assert "volumes/s" in out


@pytest.mark.slow
def test_a_run_is_replaced_and_a_file_of_others_in_it_stays(train: Cli) -> None:
    words = ("--run-name", "a", "--epochs", 1, "--show-pipeline", "--overwrite")
    assert train(*words)[0] == 0
    (Path("performance/a/reconstructions") / "mine.txt").write_text("mine")
    code, _, err = train(*words)
    assert code != 0 and "reconstructions/mine.txt" in err
    (Path("performance/a/reconstructions") / "mine.txt").unlink()
    code, _, err = train(*words[:-2], "--overwrite")
    assert code == 0, err
    assert not Path("performance/a/pipeline_test").exists()


def test_the_bounds_of_several_networks_are_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one of several samples, and the reconstructions by level."""
    rng = torch.Generator().manual_seed(0)
    volume = torch.randn(1, 1, 2, 2, 2, generator=rng)
    drawn = [
        [(torch.randn_like(volume), torch.full_like(volume, 0.5), torch.rand(1, 3)) for _ in "ab"] for _ in range(4)
    ]

    def bound(*networks: int) -> float:
        monkeypatch.setattr(passes, "decoded", lambda *_, sampled: [drawn[sampled][which] for which in networks])
        return passes.importance_weighted(None, None, volume, 0, 3)  # type: ignore[arg-type]

    assert bound(0, 1) == pytest.approx((bound(0) + bound(1)) / 2)
    assert bound(0) != pytest.approx(bound(1), abs=1e-3)
    monkeypatch.setattr(passes, "noise_of", lambda *_: [])
    both: Any = SimpleNamespace(each=lambda work: [[torch.zeros(1, 1, 2, 2, 2)], [torch.ones(1, 1, 2, 2, 2)]])
    levels = passes.by_level(both, SimpleNamespace(levels=1), volume, 0)  # type: ignore[arg-type]
    assert [float(each.mean()) for each in levels.values()] == [0.5, 0.5]


def test_samples_with_a_drawn_seed_differ_and_name_it(train: Cli, cli: Cli) -> None:
    assert train("--run-name", "a", "--epochs", 1)[0] == 0
    words = ("sample", "--weights", "a.safetensors", "--count", 1, "--device", "cpu")
    code, _, err = cli(*words, "--seed", -1, "--output", "s0")
    assert code == 0, err
    seed = re.search(r"--seed (\d+)", err)
    assert seed
    for name, typed in (("s1", -1), ("s2", seed[1])):
        assert cli(*words, "--seed", typed, "--output", name)[0] == 0
    first, other, again = (nibabel.load(next(Path(f"s{n}").glob("*.nii.gz"))).get_fdata() for n in range(3))
    assert not np.array_equal(first, other)
    assert np.array_equal(first, again)
