"""The task kits19 from made scans to scores and masks, through the command line."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import error_of, program, read_json, stored

from unet import host
from unet.cli import resolve
from unet.data.cache import integrity
from unet.models.convert import to_mlperf
from unet.runtime.callbacks import mlperf_rules
from unet.runtime.checkpoints import checkpoint, tensor_files
from unet.tasks.kits19 import synthetic as phantom_ct
from unet.tasks.registry import create

Cli = Callable[..., tuple[int, str, str]]
SMALL = ("--task", "kits19", "--device", "cpu", "--pad-to", 32, "--patch", 16, "--eval-patch", 32, "--layers", 2)
SMALL = (*SMALL, "--width", 4, "--batch-size", 2, "--workers", 0, "--seed", 1)
SCORES = {"mean_dice", "kidney", "tumour", "loss"}
FULL = {"kits_kidney", "kits_tumour", "hd95_kidney", "hd95_tumour", "surface_kidney", "surface_tumour"}


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made scans (cases 0 to 5, of which 0, 3 and 5 are MLPerf's evaluation cases); read only."""
    folder = tmp_path_factory.mktemp("scans") / "kits19"
    phantom_ct.write_set(folder, 6, (32, 36, 40), 1)
    return folder


@pytest.fixture
def volumes(cli: Cli, scans: Path) -> Cli:
    """`train` of a very small network on the made scans."""

    def run(*words: object) -> tuple[int, str, str]:
        return cli("train", *SMALL, "--data", scans, "--cache", "cache", *words)

    return run


def test_a_run_from_scans_to_scores(volumes: Cli, workplace: Path) -> None:
    code, out, err = volumes("--epochs", 2, "--evaluate-every", 1, "--start-eval-at", 1, "--run-name", "a")
    assert code == 0, err
    run = workplace / "performance/a"
    assert read_json(run / "splits.json") == {
        "train": ["case_00001", "case_00002", "case_00004"],
        "validation": ["case_00000", "case_00003", "case_00005"],
    }
    rows = list(csv.DictReader((run / "cases.csv").open()))
    assert [row["case"] for row in rows] == ["case_00000", "case_00003", "case_00005"]
    assert set(rows[0]) == {"case", *SCORES, *FULL}
    for row in rows:
        assert float(row["mean_dice"]) == pytest.approx((float(row["kidney"]) + float(row["tumour"])) / 2)
    assert "evaluate --weights a.safetensors" in out
    assert (run / "predictions.png").stat().st_size > 1000
    assert (workplace / "data/cache/case_00001_x.npy").exists()


@pytest.mark.slow
def test_nnunets_network_from_scans_to_masks(volumes: Cli, cli: Cli, workplace: Path, scans: Path) -> None:
    how = "--epochs", 1, "--evaluate-every", 0, "--eval-crop", 32, "--recipe", "best", "--precision", "fp32"
    code, _, err = volumes(*how, "--run-name", "a")
    assert code == 0, err
    settings = read_json(workplace / "performance/a/config.json")["settings"]
    assert settings["task"]["encoder"] == {"value": "residual", "source": "recipe best"}
    task = create(resolve("config", ["--task", "kits19", "--encoder", "residual", *map(str, SMALL[4:])]).config)
    network = task.build_model()
    assert sum(weight.numel() for weight in network.parameters()) == task.settings.parameters(task.config)
    first = next(iter(stored("weights/a.safetensors")["model"]))
    assert first.startswith("stem")
    scan = scans / "case_00000/imaging.nii.gz"
    code, _, err = cli("predict", "--task", "kits19", "--weights", "a.safetensors", "--device", "cpu", scan)
    assert code == 0, err


def test_the_schedule_is_mlperfs_in_samples(volumes: Cli) -> None:
    code, _, err = volumes("--epochs", 3, "--run-name", "a")
    assert code == 0
    assert "evaluated in the last (3)" in err
    config = resolve("config", ["--task", "kits19"]).config
    task = create(config)
    assert task.eval_schedule(168, 2) == (1000, 20)
    assert task.eval_schedule(160, 32) == (1050, 21)
    assert task.eval_schedule(128, 128) == (1313, 27)
    assert create(config.replace(epoch_samples="padded")).eval_schedule(160, 32) == (875, 18)


def test_weights_carry_what_scoring_needs(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    words = ("evaluate", "--weights", "a.pt", "--device", "cpu", "--data", scans, "--cache", "cache")
    code, _, err = cli(*words, "--run-name", "b")
    assert code == 0, err
    assert "windows of 32^3" in err
    assert read_json(workplace / "performance/b/summary.json")["item"] == "windows", "what its rate counts"
    a, b = ((workplace / f"performance/{name}/cases.csv").read_text() for name in "ab")
    assert a == b
    assert "Add --task kits19" in error_of(cli(*words, "--task", "lgg"), 2)


def test_a_checkpoint_of_the_reference_is_scored_the_same(volumes: Cli, cli: Cli, workplace: Path) -> None:
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    own = stored(workplace / "weights/a.safetensors")["model"]
    theirs = {"epoch": 1, "best_model_state_dict": {f"module.{key}": value for key, value in to_mlperf(own).items()}}
    torch.save(theirs, workplace / "reference.pth")
    words = ["--task", "kits19", "--device", "cpu", "--pad-to", 32, "--eval-patch", 32, "--cache", "cache"]
    code, _, err = cli("evaluate", *words, "--load_ckpt_path", "./reference.pth", "--run-name", "b")
    assert code == 0, err
    a, b = (list(csv.DictReader((workplace / f"performance/{name}/cases.csv").open())) for name in "ab")
    assert [row["mean_dice"] for row in a] == [row["mean_dice"] for row in b]


def test_masks_lie_on_the_scans_grid_however_it_is_stored(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    """Flips and permutations of the axes give the same mask, with the input's own affine."""
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    image: Any = nibabel.load(scans / "case_00001/imaging.nii.gz")
    (workplace / "scans").mkdir()
    turned = image.slicer[::-1, :, ::-1]
    order = [2, 0, 1]
    affine = turned.affine[:, [*order, 3]]
    other = nibabel.Nifti1Image(np.asarray(turned.dataobj).transpose(order), affine)
    nibabel.save(other, workplace / "scans/other.nii.gz")
    words = ("--task", "kits19", "--weights", "a.pt", "--device", "cpu", "--overlay", "--probabilities")
    code, _, err = cli("predict", *words, scans / "case_00001", workplace / "scans/other.nii.gz")
    assert code == 0, err
    mask: Any = nibabel.load(workplace / "predictions/case_00001.nii.gz")
    same: Any = nibabel.load(workplace / "predictions/other.nii.gz")
    assert mask.shape == image.shape and mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.affine, image.affine) and np.array_equal(same.affine, other.affine)
    a, b = np.asarray(mask.dataobj), np.asarray(same.dataobj)
    assert np.array_equal(b, a[::-1, :, ::-1].transpose(order))
    for name in ("case_00001_overlay.png", "case_00001_kidney.nii.gz", "case_00001_tumour.nii.gz"):
        assert (workplace / "predictions" / name).exists()
    chance = np.asarray(nibabel.load(workplace / "predictions/case_00001_kidney.nii.gz").dataobj)  # type: ignore[attr-defined]
    assert chance.min() >= 0 and chance.max() <= 1


@pytest.mark.slow
def test_a_dicom_series_is_a_scan(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    """The same mask as of the same voxels in NIfTI, as DICOM-SEG and as NIfTI."""
    pytest.importorskip("pydicom", "3", reason="the extra `dicom` is not installed")
    highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
    from dicom_series import series

    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    scan = np.asarray(nibabel.load(scans / "case_00002/imaging.nii.gz").dataobj)  # type: ignore[attr-defined]
    scan = np.clip(np.rint(scan), -1024, 3000)
    affine = series(workplace / "ct", (scan + 1024).astype(np.uint16), spacing=(3.0, 1.5, 1.4))[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(scan.transpose(2, 1, 0).astype(np.float32), affine)
    nibabel.save(image, workplace / "same.nii.gz")
    words = ("predict", "--task", "kits19", "--weights", "a.pt", "--device", "cpu", "--probabilities", "--overlay")
    code, _, err = cli(*words, workplace / "ct", workplace / "same.nii.gz", "--format", "both")
    assert code == 0, err
    one, two = (nibabel.load(workplace / f"predictions/{name}.nii.gz") for name in ("ct", "same"))  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))  # type: ignore[attr-defined]
    assert np.allclose(one.affine, affine, atol=1e-4)  # type: ignore[attr-defined]
    found = highdicom.seg.segread(workplace / "predictions/ct.dcm")
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["kidney", "tumour"]
    assert found.pixel_array.sum() == np.count_nonzero(np.asarray(two.dataobj))  # type: ignore[attr-defined]
    assert (workplace / "predictions/ct_tumour.nii.gz").exists()
    assert not (workplace / "predictions/same.dcm").exists()


@pytest.mark.slow
def test_averaging_a_network_with_itself_changes_nothing(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    words = ("--task", "kits19", "--device", "cpu", scans / "case_00002")
    assert cli("predict", "--weights", "a.pt", "--output", "one", *words)[0] == 0
    facts, state = tensor_files.read(workplace / "weights/a.safetensors")
    checkpoint.save_weights(workplace / "weights/twin.safetensors", {**facts, "run_name": "twin"}, state)
    again = ("--weights", "a.pt", "--weights", "twin.safetensors", "--output", "two")
    assert cli("predict", *again, *words)[0] == 0
    one, two = (np.asarray(nibabel.load(workplace / f"{name}/case_00002.nii.gz").dataobj) for name in ("one", "two"))  # type: ignore[attr-defined]
    assert np.array_equal(one, two)


@pytest.mark.slow
def test_the_crop_that_is_scored_during_training(volumes: Cli, workplace: Path) -> None:
    """--eval-crop holds while training; the last scores are those of whole volumes."""
    often = ("--epochs", 1, "--eval-loss", "--run-name")
    assert volumes(*often, "whole", "--weights", "whole.pt")[0] == 0
    assert volumes(*often, "crop", "--weights", "crop.pt", "--eval-crop", 32)[0] == 0
    whole, crop = ((workplace / f"performance/{name}/cases.csv").read_text() for name in ("whole", "crop"))
    assert whole == crop
    lines = [(workplace / f"performance/{name}/metrics.jsonl").read_text() for name in ("whole", "crop")]
    losses = [line.split('"eval_loss": ')[1].split(",")[0] for line in lines]
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(volumes: Cli, cli: Cli, workplace: Path) -> None:
    steps = ("--epochs", 4, "--deterministic", "--run-name")
    assert volumes(*steps, "whole", "--weights", "whole.pt")[0] == 0
    assert volumes(*steps, "cut", "--weights", "cut.pt", "--max-steps", 2)[0] == 0
    code, _, err = cli("train", "--resume", "--run-name", "cut", "--max-steps", 100)
    assert code == 0, err
    a, b = (stored(workplace / f"weights/{name}.state.safetensors")["model"] for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("where", ["ram", "device"])
def test_training_is_the_same_wherever_the_data_lie(volumes: Cli, workplace: Path, where: str) -> None:
    for name in ("disk", where):
        words = ("--max-steps", 2, "--deterministic", "--no-checkpoints", "--data-on", name, "--run-name", name)
        assert volumes(*words)[0] == 0
    a, b = ((workplace / f"performance/{name}/metrics.jsonl").read_text() for name in ("disk", where))
    assert a.split('"loss": ')[1].split(",")[0] == b.split('"loss": ')[1].split(",")[0]


def test_lamb_trains(volumes: Cli) -> None:
    code, _, err = volumes("--optimizer", "lamb", "--lr", 0.01, "--lamb_betas", 0.9, 0.99, "--max-steps", 2)
    assert code == 0, err


def test_an_open_log_passes_the_checker(volumes: Cli, workplace: Path) -> None:
    """Also where the run makes its cache itself: its cases are dropped from the file cache, and that is logged."""
    words = ("--epochs", 2, "--mlperf-division", "open", "--cache", "new_cache", "--run-name", "open")
    code, out, err = volumes(*words)
    assert code == 0, err
    log = workplace / "performance/open/unet3d.log"
    assert str(log.relative_to(workplace)) in out
    checker = [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "4.0.0"]
    found = subprocess.run([*checker, "--werror", str(log)], cwd=workplace, capture_output=True, text=True)
    assert found.returncode == 0 and "SUCCESS" in found.stdout + found.stderr, found.stdout + found.stderr


def test_the_file_cache_is_cleared_after_all_reading_of_the_cache(
    volumes: Cli, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copied cache is compared with its digests, which reads all of it."""
    steps: list[str] = []

    def told(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *words: (steps.append(name), work(*words))[1]

    assert volumes("--max-steps", 1, "--cache", "new_cache", "--no-checkpoints")[0] == 0
    (workplace / "data/new_cache" / integrity.NOTED).unlink()
    monkeypatch.setattr(integrity, "_look", told("read", integrity._look))
    monkeypatch.setattr(mlperf_rules, "clear_caches", told("cleared", mlperf_rules.clear_caches))
    words = ("--max-steps", 1, "--mlperf-division", "open", "--cache", "new_cache", "--no-checkpoints")
    code, _, err = volumes(*words)
    assert code == 0, err
    assert steps == ["read"] * 12 + ["cleared"]  # image and mask of six cases


def test_closed_is_refused_with_everything_that_is_wrong(volumes: Cli) -> None:
    message = error_of(volumes("--mlperf-division", "closed"), 2)
    for flag in ("--patch", "--eval-patch", "--layers", "--width"):
        assert flag in message
    assert "--mlperf-rehearsal" in message


def test_the_network_of_nnunet_is_measured_beside_its_own_step_and_has_its_own_norms(cli: Cli) -> None:
    small = ["--task", "kits19", *map(str, SMALL[4:]), "--encoder", "residual"]
    task = create(resolve("config", small).config)
    model, step = task.reference_step()
    assert torch.isfinite(step(model, task.random_batch()))
    message = error_of(cli("train", "--task", "kits19", "--encoder", "plain", "--normalization", "batch"), 2)
    assert "--encoder plain has instance norms and leaky ReLUs" in message


@pytest.mark.parametrize("how", [[], ["--include-background"], ["--encoder", "plain", "--include-background"]])
def test_the_plain_step_has_the_loss_of_training(how: list[str]) -> None:
    """What `benchmark` measures beside the program's own step is the same mathematics."""
    task = create(resolve("config", ["--task", "kits19", *map(str, SMALL[4:]), *how]).config)
    model, step = task.reference_step()
    batch = task.random_batch()
    torch.testing.assert_close(step(model, batch), task.training_step(model, batch)["loss"], rtol=1e-5, atol=1e-6)


def test_bad_sizes_are_told_at_once(cli: Cli) -> None:
    message = error_of(cli("train", "--task", "kits19", "--patch", 60, "--eval-patch", 32, "--noise", 1), 2)
    assert "--patch 60 60 60" in message and "nearest: 64 64 64" in message and "--noise" in message


@pytest.mark.slow
def test_two_processes_train_and_score_as_one_does(scans: Path, tmp_path: Path) -> None:
    """The same weights have the same scores on one and on two processes, to which cases are dealt."""
    whole = ("train", *SMALL, "--data", scans, "--cache", "cache", "--epochs", 2, "--no-augment", "--oversampling", 0)
    one = program(*whole, "--run-name", "one", "--weights", "one.pt", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = program(*whole, "--batch-size=1", "--run-name", "two", "--weights", "two.pt", "--devices", 2, cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    assert "1 x 1 x 2 crops" in two.stderr
    for name, devices in (("a", 1), ("b", 2)):
        words = ("evaluate", "--task", "kits19", "--device", "cpu", "--weights", "one.pt", "--run-name", name)
        words = (*words, "--data", scans, "--cache", "cache")
        done = program(*words, "--devices", devices, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    a, b = ((tmp_path / f"performance/{name}/cases.csv").read_text() for name in "ab")
    assert a == b


def test_a_scan_is_never_written_over(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    (workplace / "scans").mkdir()
    scan = workplace / "scans/scan.nii.gz"
    scan.write_bytes((scans / "case_00001/imaging.nii.gz").read_bytes())
    before = scan.read_bytes()
    words = ("predict", "--task", "kits19", "--weights", "a.pt", "--device", "cpu", scan)
    assert "over the images" in error_of(cli(*words, "--output", "scans", "--overwrite"), 2)
    assert scan.read_bytes() == before
    code, _, _ = cli(*words, "--output", ".")
    assert code == 0
    assert (workplace / "scan.nii.gz").exists()


@pytest.mark.slow
def test_scores_are_not_mixed_with_another_set_s_scans(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    """A cache without manifest beside a raw set that it was not made of: told, and scored on the cache's grid."""
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    (workplace / "data/cache/manifest.json").unlink()
    other = workplace / "other"
    phantom_ct.write_set(other, 6, (32, 36, 40), 2)
    words = ("--task", "kits19", "--device", "cpu", "--pad-to", 32, "--eval-patch", 32, "--cache", "cache")
    host.notice_once.cache_clear()  # other tests of this process may have been told
    (workplace / "no").mkdir()
    for name, raw, told in (("same", scans, False), ("other", other, True), ("none", workplace / "no", True)):
        done = cli("evaluate", *words, "--weights", "a.pt", "--data", raw, "--run-name", name)
        assert done[0] == 0, done[2]
        assert ("cache's grid" in done[2]) is told, done[2]
    same, first = ((workplace / f"performance/{name}/cases.csv").read_text() for name in ("same", "a"))
    assert same == first


def test_folds_are_disjoint_whatever_the_seed_of_a_run() -> None:
    config = resolve("config", ["--task", "kits19"]).config
    ids = [f"case_{number:05}" for number in range(210)]
    held = [set(create(config.replace(fold=k, seed=17 * k - 1)).split(ids)["validation"]) for k in range(5)]
    assert sum(map(len, held)) == len(set().union(*held)) == 210


@pytest.mark.slow
def test_own_and_foreign_weights_are_averaged(volumes: Cli, cli: Cli, scans: Path, workplace: Path) -> None:
    assert volumes("--epochs", 1, "--run-name", "a")[0] == 0
    own = stored(workplace / "weights/a.safetensors")["model"]
    torch.save({"best_model_state_dict": to_mlperf(own)}, workplace / "reference.pth")
    both = ("--weights", "./reference.pth", "--weights", "a.pt")
    words = ("--task", "kits19", "--device", "cpu", "--output", "o", scans / "case_00001")
    code, _, err = cli("predict", *both, *words)
    assert code == 0, err
    assert "windows of 32^3" in err


def test_milestones_of_a_recipe_can_be_undone_or_outvoted() -> None:
    def of(*words: str) -> tuple[str, str]:
        resolved = resolve("config", ["--task", "kits19", "--recipe", "gaudi2", *words])
        return resolved.config.train.schedule, resolved.sources["schedule"]

    assert of() == ("multistep", "recipe gaudi2")
    assert of("--schedule", "constant") == ("constant", "flag --schedule")
    assert of("--lr-milestones", "none") == ("constant", "default")


def test_milestones_and_another_schedule_never_stand_together() -> None:
    """The later layer counts; else MLPerf's log would tell of a decay that is not there."""

    def of(*words: str) -> tuple[str, tuple[int, ...]]:
        train = resolve("config", ["--task", "kits19", *words]).config.train
        return train.schedule, train.lr_milestones

    assert of("--recipe", "gaudi2", "--schedule", "constant") == ("constant", ())
    assert of("--recipe", "best", "--lr-milestones", "100", "200") == ("multistep", (100, 200))
    assert of("--recipe", "best") == ("poly", ())
    assert of("--recipe", "gaudi2", "--schedule", "multistep") == ("multistep", (1700,))


def test_a_recipe_of_another_task_names_it(cli: Cli) -> None:
    assert "Add --task kits19" in error_of(cli("config", "--recipe", "mlperf"), 2)
