"""The JSON keys of 3d_very_deep_vae and of its earlier version, as settings of this program. No torch.

Keys that have a flag of the same meaning are renamed; keys of variants that this program does not have must keep their
default, and are refused by name otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "latent_feature_maps_per_resolution": "latents_per_channel",
    "nifti_flair_dir": "data",
    "nifti_dir": "data",
    "train_frac": "train_fraction",
    "random_seed": "seed",
    "validation_period": "evaluate_every",
    "resume_from_checkpoint": "resume",
}
# key -> (its default, what to do instead)
FIXED: dict[str, tuple[Any, str]] = {
    "latent_feature_maps_per_resolution_weight_sharing": ("none", "every latent has weights of its own here"),
    "latents_to_use": ("all", "all latents are used here: lower latents_per_channel"),
    "latents_to_optimise": ("all", "all latents are trained here"),
    "restore_optimiser": (True, "to start again from weights alone type --load FILE"),
    "predict_x_scale": (True, "the standard deviation is always predicted here"),
    "predict_x_scale_with_sigmoid": (True, "standard deviations are always bounded by a sigmoid here"),
    "use_precision_reweighting": (False, "it has no effect in the reference program either"),
    "bottleneck_resnet_encoder": (True, "the encoder's blocks always have a bottleneck here"),
    "normalise_weight_by_depth": (True, "it has no effect in the reference program either"),
    "zero_biases": (True, "biases always start at zero here"),
    "use_rezero": (False, "residual blocks have no factor here"),
    "veto_batch_norm": (True, "the network has no batch norm here"),
    "convolutional_downsampling": (False, "the encoder takes every other voxel here"),
    "only_use_one_conv_block_at_top": (False, "every level of the encoder has two blocks here"),
    "separate_hidden_loc_scale_convs": (False, "mean and standard deviation share their features here"),
    "separate_output_loc_scale_convs": (False, "mean and standard deviation share their features here"),
    "apply_augmentations_to_validation_set": (False, "validation volumes are never augmented here"),
    "plot_gradient_norms": (True, ""),
    "plot_recons_period": (1, "reconstructions are drawn after each evaluation: evaluate_every"),
    "verbose": (True, ""),
}
FREE = ("plot_gradient_norms", "verbose")  # both values are fine: nothing depends on them
SAVING = ("keep_every_checkpoint", "save_period")


def translated(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a JSON file of the reference program under the names that this one has; other entries unchanged.
    Raises ValueError in words for a key whose value is not supported."""
    found: dict[str, Any] = {}
    mistakes: list[str] = []
    try:
        found |= _kept(content)
    except ValueError as error:
        mistakes.append(str(error))
    for key, value in content.items():
        if key in SAVING:
            continue
        if key in FIXED:
            default, instead = FIXED[key]
            if value != default and key not in FREE:
                mistakes.append(f"{key} {value!r} is not supported, only {default!r}: {instead}")
            continue
        try:
            for name, own in _one(key, value).items():
                if name in found and found[name] != own:
                    raise ValueError(f"{key} contradicts another key: both set {name}")
                found[name] = own
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ValueError("; ".join(mistakes))
    return found


def _kept(content: Mapping[str, Any]) -> dict[str, Any]:
    """Which epochs keep their weights: every `save_period`-th, unless `keep_every_checkpoint` is false. Raises
    ValueError."""
    if not any(key in content for key in SAVING):
        return {}
    keep, period = content.get(SAVING[0], True), content.get(SAVING[1], 1)
    if not isinstance(keep, bool):
        raise ValueError(f"keep_every_checkpoint takes true or false, not {keep!r}")
    if not keep and period != 1:
        raise ValueError(f"save_period {period!r} is not supported, only 1: states are saved by time: save_minutes")
    return {"keep_every": period} if keep else {}


def _one(key: str, value: Any) -> dict[str, Any]:
    """One entry under its own name. Raises ValueError."""
    if key == "nii_target_shape":
        if not isinstance(value, list) or len(value) != 3 or len(set(map(str, value))) != 1:
            raise ValueError(f"nii_target_shape takes three equal numbers, as [32, 32, 32], not {value!r}")
        return {"resolution": value[0]}
    if key == "half_precision":
        return {"precision": "fp16" if value is True else "fp32"}
    if key == "veto_transformations":
        return {"augment": value is not True}
    if key == "output_activation_function" and value == "identity":
        raise ValueError("output_activation_function 'identity' is not supported, only 'tanh' and 'sigmoid'")
    if key == "CUDA_devices" and isinstance(value, list):
        return {"cuda_devices": value}
    if key == "random_seed" and value is None:
        return {"seed": -1}
    if key in ("resume", "resume_from_checkpoint"):
        if value:
            raise ValueError(f"{key} is not taken from a file: type --resume")
        return {}
    return {RENAMED.get(key, key): value}
