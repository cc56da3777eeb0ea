"""The script that compares the brains network with golden files: other configurations, differences, errors."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from torch import Tensor

sys.path.append(str(ROOT / "scripts"))
import brains_golden
import compare_brains

FILE = GOLDEN / "vdvae_reference.json"
TINY = brains_golden.read(FILE)["tiny8"]
LOSSES, SUMS = "losses_before_step_1_2_3_and_after_step_3", "sum_of_each_parameter_after_3_steps"
Run = Callable[..., tuple[int, str, str]]
UNEVEN = {
    "resolution": 8,
    "channels": [3, 5, 4, 6],
    "channels_hidden": [2, 3, 4, 5],
    "channels_top_down": [4, 3, 5, 6],
    "channels_hidden_top_down": [5, 2, 3, 4],
    "channels_per_latent": [9, 2, 9, 9],  # wider than three of the levels
    "latent_feature_maps_per_resolution": [1, 0, 2, 2],
    "kernel_sizes_bottom_up": [2, 3, 1, 1],
    "kernel_sizes_top_down": [3, 2, 2, 1],
}


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Compare with a file of these configurations: (exit code, standard output, standard error)."""

    def compare(content: Any, *words: str) -> tuple[int, str, str]:
        path = tmp_path / "vdvae_other.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        threads = torch.get_num_threads()
        capsys.readouterr()
        code = compare_brains.main([str(path), *words])
        torch.set_num_threads(threads)
        return code, *capsys.readouterr()

    return compare


def record_of(configuration: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The inputs and some sections of a golden file of this configuration, from the program itself."""
    record = {"configuration": configuration, "seed": 7, "gain": 1.1, "small_factor": 0.5, "head_factor": 4.0}
    shape = brains_golden.shape_of(configuration)
    record |= {"noise_shapes": shape.latent_shapes(2), **changes}
    drawn = brains_golden.draw(record, torch.float64)
    terms = brains_golden.loss_terms(drawn)
    record |= {key: getattr(drawn, key) for key in ("parameter_sha256", "input_sha256")}
    record |= {"loss": float(terms.loss.detach()), "kl_by_latent_from_the_top": terms.output.kl.T.tolist()}
    return record | {"x_mean": summary(terms.output.mean), "noise_shapes": [list(s) for s in record["noise_shapes"]]}


def summary(value: Tensor) -> dict[str, Any]:
    value = value.detach()
    first = value.flatten()[:6].tolist()
    return {"shape": list(value.shape), "mean": float(value.mean()), "std": float(value.std()), "first": first}


@pytest.mark.slow
def test_the_golden_file_is_met_as_it_is_typed(tmp_path: Path) -> None:
    """In a folder of its own, with only the script's path."""
    words = [sys.executable, str(ROOT / "scripts" / "compare_brains.py"), str(FILE), "tiny8"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tiny8, float64, arrays of vdvae_tiny8.npz" and "not compared" not in done.stdout
    assert lines[-1] == "63 of 63 sections are within their tolerance"
    assert any(line.split()[:2] == ["gradient_norm", "260"] for line in lines)


def test_uneven_lists_and_missing_sections_are_compared(run: Run) -> None:
    record = record_of(UNEVEN)
    code, out, _ = run({"configurations": {"uneven": record}})
    assert code == 0 and "12 of 12 sections" in out
    older = {**UNEVEN, "nii_target_shape": [8, 8, 8], "latents_per_channel": [1, 0, 2, 2]}
    del older["resolution"], older["latent_feature_maps_per_resolution"]
    assert run({"configurations": {"older": {**record, "configuration": older}}})[0] == 0


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("gain", 1.1001, "parameter_sha256"),
        ("seed", 8, "input_sha256"),
        ("loss", 1.00002, "loss"),
        ("x_mean", 1.01, "x_mean"),
        ("kl_by_latent_from_the_top", 1.001, "kl_by_latent_from_the_top"),
    ],
)
def test_a_difference_is_named_and_fails(run: Run, key: str, value: float, named: str) -> None:
    record = record_of(UNEVEN)
    if key in ("gain", "seed"):
        record[key] = value
    elif key == "x_mean":
        record[key]["first"][3] *= value
    elif key == "loss":
        record[key] *= value
    else:
        record[key][-1][-1] *= value
    code, out, _ = run({"configurations": {"own": record}})
    assert code == 1 and "NOT WITHIN" in out
    assert f"own float64 {named}" in out and f"own float32 {named}" in out


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("training_clip_100 losses", lambda r: scale(r["training_clip_100"], LOSSES)),
        ("training_clip_1e+09 norms", lambda r: scale(r["training_clip_1e+09"], "gradient_norms_encoder_decoder_head")),
        ("training_clip_100 sums", lambda r: scale(r["training_clip_100"][SUMS], "head.bias")),
        ("gradient_norm", lambda r: scale(r["gradient_norm"], "decoder.3.prior.skip.weight")),
        ("gradient_norm_by_part", lambda r: scale(r["gradient_norm_by_part"], "encoder")),
        ("laterals", lambda r: scale(r["laterals"]["2"], "std")),
        ("features", lambda r: scale(r["features"]["decoder.4.after_latent"], "mean")),
        ("progressive_x_mean", lambda r: scale(r["progressive_x_mean_kept_up_to_resolution"]["4"], "first")),
        ("sample_temperature_1", lambda r: scale(r["sample_temperature_1"]["std"], "std")),
        ("names of parameters", lambda r: r["gradient_norm"].pop("head.bias")),
        ("features", lambda r: r["features"].update({"decoder.9.after_latent": r["x_mean"]})),
        ("parameters", lambda r: r["parameters"].update(encoder=9277)),
        ("noise_shapes", lambda r: r["noise_shapes"].pop()),
        ("log_likelihood", lambda r: r["log_likelihood"].pop()),
    ],
)  # fmt: skip
def test_each_section_is_compared(section: str, change: Callable[[dict[str, Any]], Any]) -> None:
    record = copy.deepcopy(TINY)
    change(record)
    table = compare_brains.compare(record, torch.float64)
    assert section in [row.section for row in table.rows.values() if not row.within]


def scale(values: dict[str, Any], key: str) -> None:
    """A change of 1e-6 to the last number."""
    value = np.array(values[key])
    value.reshape(-1)[-1] *= 1 + 1e-6
    values[key] = value.tolist()


def test_the_two_ways_of_a_temperature_are_told_apart() -> None:
    record = copy.deepcopy(TINY)
    theirs, right = "sample_reference_way_0.5_scales_the_whole_latent", "sample_right_way_0.5_scales_the_noise"
    record[theirs], record[right] = record[right], record[theirs]
    table = compare_brains.compare(record, torch.float64)
    assert not table.rows[theirs].within and not table.rows[right].within


def test_the_references_floor_is_used_where_it_is_reached_and_said(run: Run) -> None:
    """All priors below 0.00316: the file's KL has the floor, the program's own has not."""
    bounds = {"scale_hidden_clamp_bounds": [0.001, 0.002]}
    record = record_of({**UNEVEN, **bounds})
    assert run({"configurations": {"low": record}})[0] == 1
    table = compare_brains.Comparison(torch.float64)
    drawn = brains_golden.draw(record, torch.float64)
    with torch.no_grad(), compare_brains.reference_floor(table):
        terms = brains_golden.loss_terms(drawn)
    record["loss"], record["kl_by_latent_from_the_top"] = float(terms.loss), terms.output.kl.T.tolist()
    priors = 2 * (6 + 5 * 8 * 2 + 4 * 512)
    assert table.floored == priors
    code, out, _ = run({"configurations": {"low": record}})
    assert code == 0 and f"{priors} prior variances below 1e-05" in out


def test_float32_may_round_as_much_as_the_reference_does() -> None:
    """The file's own figures of its float32 run, where they are larger than the usual tolerance."""
    usual = compare_brains.TOLERANCES[torch.float32]
    assert compare_brains.tolerance_of(TINY, torch.float32) == usual
    far = copy.deepcopy(TINY)
    far["relative_difference_of_fp32_gradient_norms_worst"] = 1e-3
    far["training_clip_100"]["fp32_losses"][3] = far["training_clip_100"][LOSSES][3] * 1.0001
    found = compare_brains.tolerance_of(far, torch.float32)
    assert found == pytest.approx((4e-4, 4e-3, usual.steps, usual.array))
    assert compare_brains.tolerance_of(far, torch.float64) == compare_brains.TOLERANCES[torch.float64]


def test_sections_that_are_not_known_are_said(run: Run) -> None:
    code, out, _ = run({"configurations": {"own": {**record_of(UNEVEN), "surprise": 3}}})
    assert code == 0 and "  not compared: surprise" in out


def without(*keys: str) -> dict[str, Any]:
    record = copy.deepcopy(TINY)
    place = record
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return {"configurations": {"own": record}}


def with_list(key: str, value: Any) -> dict[str, Any]:
    return {"configurations": {"own": {**TINY, "configuration": {**TINY["configuration"], key: value}}}}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[", "is no JSON"),
        ([], "no key configurations"),
        ({"configurations": {}}, "no key configurations"),
        ({"configurations": {"own": 3}}, "configurations.own.configuration"),
        (without("seed"), "configurations.own.seed"),
        (without("noise_shapes"), "configurations.own.noise_shapes"),
        (without("configuration", "channels"), "configuration.channels"),
        (without("x_mean", "std"), "'std'"),
        (with_list("channels", [4, 6, 8]), "configuration.latent_feature_maps_per_resolution has 4 entries"),
        (with_list("kernel_sizes_top_down", [4, 3, 2, 1]), "kernel_sizes_top_down has an entry 4"),
        (with_list("channels_hidden", "wide"), "configuration.channels_hidden is 'wide'"),
        (with_list("resolution", 16), "configuration.resolution is 16"),
        (with_list("latent_feature_maps_per_resolution", [2, 2, 1, 0]), "ends in 0"),
        (with_list("use_rezero", True), "configuration.use_rezero is True"),
        (with_list("output_activation_function", "identity"), "output_activation_function is 'identity'"),
        ({"configurations": {"own": {**TINY, "laterals": [1]}}}, "configurations.own.laterals is list"),
    ],
    ids=str,
)  # fmt: skip
def test_a_file_of_another_layout_is_two_lines_and_2(run: Run, content: Any, named: str) -> None:
    code, _, err = run(content)
    assert code == 2
    assert len(err.splitlines()) == 2 and named in err.splitlines()[0]


def test_what_is_typed_wrong_is_two_lines_and_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert compare_brains.main([str(tmp_path / "none.json")]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 2 and "none.json cannot be read" in err
    assert compare_brains.main([str(FILE), "tiny9"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "no configuration 'tiny9'" in lines[0] and lines[1] == "it has: tiny8, published32"
    assert compare_brains.main([]) == 2 and compare_brains.main(["--help"]) == 0
