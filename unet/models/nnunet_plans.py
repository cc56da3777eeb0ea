"""What a checkpoint of nnU-Net says of its plan, as settings of this program: classes, spacing, patch ...."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unet.errors import CheckpointError

SCHEMES = {"ZScoreNormalization": "zscore", "CTNormalization": "ct", "NoNormalization": "none"}
LEVELS = ("percentile_00_5", "percentile_99_5", "mean", "std")
HINT = "Predict with nnU-Net, or train here on the same folder: python -m unet plan --data DIR"


def settings_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint that nnU-Net v2 has written; {} for another one. Raises CheckpointError for a plan
    that is not followed here: a cascade, regions, axes in another order, intensities within a mask."""
    made = content.get("init_args")
    if not isinstance(made, Mapping) or not {"plans", "configuration", "dataset_json"} <= set(made):
        return {}
    try:
        return _settings(made["plans"], str(made["configuration"]), made["dataset_json"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"The plan in nnU-Net's checkpoint is not as expected: {error!r}.", HINT) from error


def _settings(plans: Mapping[str, Any], name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    plan = configuration(plans["configurations"], name)
    labels = dict(about["labels"])
    ignore = labels.pop("ignore", None)
    channels = about.get("channel_names", about.get("modality"))
    names = [str(channels[key]) for key in sorted(channels, key=int)]
    schemes = [str(scheme) for scheme in plan["normalization_schemes"]]
    require(not any(isinstance(value, Sequence | Mapping) for value in labels.values()), "its labels are regions")
    require(not plan.get("previous_stage"), "it is the second stage of a cascade")
    require(list(plans.get("transpose_forward", (0, 1, 2))) == [0, 1, 2], "its axes are in another order")
    require(not any(plan.get("use_mask_for_norm") or ()), "its intensities are those within a mask")
    require(set(schemes) <= set(SCHEMES), f"its normalisation is {', '.join(schemes)}")
    require(len(plan["patch_size"]) == 3, f"its configuration {name} is of slices")
    ordered = sorted(labels, key=lambda label: int(labels[label]))
    known = plans.get("foreground_intensity_properties_per_channel", {})
    kinds = [SCHEMES[scheme] for scheme in schemes]
    numbers = [
        float(known[str(channel)][key]) if kind == "ct" else 0.0 for channel, kind in enumerate(kinds) for key in LEVELS
    ]
    return {
        "channels": names,
        "classes": ordered,
        "label_values": [int(labels[label]) for label in ordered],
        "ignore_value": ignore,
        "orientation": "as-stored",
        "spacing": [float(length) for length in plan["spacing"]],
        "normalize": kinds,
        "intensities": numbers if "ct" in kinds else [],
        "crop_background": True,
        "patch": [int(side) for side in plan["patch_size"]],
        "blend": "narrow",
    }


def configuration(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration of a plan with what it inherits."""
    own = dict(known[name])
    parent = own.pop("inherits_from", None)
    return {**(configuration(known, str(parent)) if parent and parent != name else {}), **own}


def require(holds: bool, words: str) -> None:
    if not holds:
        raise CheckpointError(f"nnU-Net's plan cannot be followed here: {words}.", HINT)
