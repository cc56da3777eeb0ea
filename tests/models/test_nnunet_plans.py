"""The settings that a checkpoint of nnU-Net names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from unet.errors import CheckpointError
from unet.models.nnunet_plans import settings_of
from unet.runtime.checkpoints import checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
PLANS: dict[str, Any] = {
    "transpose_forward": [0, 1, 2],
    "foreground_intensity_properties_per_channel": {
        "0": {"percentile_00_5": -900.0, "percentile_99_5": 300.0, "mean": 80.0, "std": 60.0},
    },
    "configurations": {
        "3d_fullres": {
            "patch_size": [32, 48, 40],
            "spacing": [2.0, 1.5, 1.5],
            "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
            "use_mask_for_norm": [False, False],
        },
        "own": {"inherits_from": "3d_fullres", "patch_size": [16, 48, 40]},
    },
}
ABOUT = {"channel_names": {"1": "b", "0": "CT"}, "labels": {"background": 0, "core": 4, "body": 2, "ignore": 5}}


def made(configuration: str = "own", plans: dict[str, Any] = PLANS, about: dict[str, Any] = ABOUT) -> dict[str, Any]:
    return {"init_args": {"plans": plans, "configuration": configuration, "dataset_json": about}}


def test_a_plan_becomes_settings() -> None:
    found = settings_of(made())
    assert found["patch"] == [16, 48, 40]
    assert found["spacing"] == [2.0, 1.5, 1.5]
    assert (found["channels"], found["classes"]) == (["CT", "b"], ["background", "body", "core"])
    assert (found["label_values"], found["ignore_value"]) == ([0, 2, 4], 5)
    assert found["normalize"] == ["ct", "zscore"]
    assert found["intensities"] == [-900.0, 300.0, 80.0, 60.0, 0.0, 0.0, 0.0, 0.0]
    assert settings_of({"network_weights": {}}) == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_mask_for_norm": [True, False]}, "within a mask"),
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        ({"normalization_schemes": ["RescaleTo01Normalization"]}, "RescaleTo01Normalization"),
        ({"patch_size": [48, 40]}, "of slices"),
    ],
)
def test_a_plan_that_is_not_followed_is_refused(change: dict[str, Any], words: str) -> None:
    plans = copy.deepcopy(PLANS)
    plans["configurations"]["3d_fullres"] |= change
    with pytest.raises(CheckpointError, match=words):
        settings_of(made("3d_fullres", plans))


def test_regions_are_refused() -> None:
    with pytest.raises(CheckpointError, match="labels are regions"):
        settings_of(made(about={**ABOUT, "labels": {"background": 0, "whole": [1, 2]}}))


def test_the_checkpoint_that_nnunet_wrote_names_its_plan() -> None:
    found = settings_of(checkpoint.read(GOLDEN / "nnunet_checkpoint.pth"))
    assert (found["patch"], found["spacing"]) == ([8, 16, 16], [2.0, 1.0, 1.0])
    assert found["blend"] == "narrow"
