"""Golden files of the brains task's network: their layout, and the recipe of their weights, input and noise.

`compare_brains.py` compares the network with them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from unet.errors import UsageError
from unet.models import gaussians
from unet.models.vdvae import VDVAE, Output, VDVAEShape

PARTS = ("encoder", "decoder", "head")
LISTS = {  # of VDVAEShape: the keys of the reference program, and the list that stands for a missing one
    "channels": (("channels",), None),
    "latents": (("latent_feature_maps_per_resolution", "latents_per_channel"), None),
    "latent_channels": (("channels_per_latent",), None),
    "hidden": (("channels_hidden",), "channels"),
    "channels_top_down": (("channels_top_down",), "channels"),
    "hidden_top_down": (("channels_hidden_top_down",), "channels"),
    "kernels": (("kernel_sizes_bottom_up",), None),
    "kernels_top_down": (("kernel_sizes_top_down",), None),
}
SWITCHES = {  # keys that change the reference program's network, with the values that the network here has
    "bottleneck_resnet_encoder": (True,),
    "convolutional_downsampling": (False,),
    "latent_feature_maps_per_resolution_weight_sharing": ("none", False),
    "latents_to_use": ("all", True),
    "only_use_one_conv_block_at_top": (False,),
    "predict_x_scale": (True,),
    "predict_x_scale_with_sigmoid": (True,),
    "separate_hidden_loc_scale_convs": (False,),
    "separate_output_loc_scale_convs": (False,),
    "use_rezero": (False,),
    "veto_batch_norm": (True,),
}
INPUTS = {
    "configuration": dict,
    "seed": int,
    "gain": (int, float),
    "small_factor": (int, float),
    "head_factor": (int, float),
    "noise_shapes": list,
}
# sections that have keys of their own
SECTIONS = r"parameters|laterals|features|x_mean|x_std|gradient_norm.*|training_clip_.*|progressive_.*|sample_.*"


class Drawn(NamedTuple):
    """A network with its input (N, 1, D, H, W) and noise, and the digests of the weights and the input."""

    model: VDVAE
    x: Tensor
    noise: list[Tensor]
    parameter_sha256: str
    input_sha256: str


def shape_of(configuration: Mapping[str, Any]) -> VDVAEShape:
    """The network's lists; raises UsageError with the key that is missing, wrong, or of another network."""
    found: dict[str, tuple[int, ...]] = {}
    for name, (keys, standin) in LISTS.items():
        key = next((key for key in keys if key in configuration), None)
        if key is None and standin is None:
            raise layout(f"configuration.{keys[0]} is missing")
        values = found[standin or ""] if key is None else configuration[key]
        if not isinstance(values, list | tuple) or not all(type(v) is int and v >= 0 for v in values):
            raise layout(f"configuration.{key} is {values!r}, not a list of whole numbers")
        found[name] = tuple(values)
        if len(values) != len(found["channels"]) or (len(values) < 2):
            levels = len(found["channels"])
            raise layout(f"configuration.{key} has {len(values)} entries, configuration.channels {levels}")
        bad = [v for v in values if (v not in (1, 2, 3) if "kernel" in name else v < 1 and name != "latents")]
        if bad:
            raise layout(f"configuration.{key} has an entry {bad[0]}")
    if not found["latents"][-1]:
        raise layout("configuration.latent_feature_maps_per_resolution ends in 0: one voxel needs a latent")
    shape = VDVAEShape(**found, **options_of(configuration))
    side = configuration.get("resolution", configuration.get("nii_target_shape", shape.side))
    if any(axis != shape.side for axis in (side if isinstance(side, list) else [side])):
        raise layout(f"configuration.resolution is {side}; lists of {shape.levels + 1} entries are for {shape.side}")
    return shape


def options_of(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds and the mean's activation; raises UsageError for a switch of a network that is not here."""
    for key, own in SWITCHES.items():
        value = configuration.get(key, own[0])
        if not all(entry in own for entry in (value if isinstance(value, list) else [value])):
            raise UsageError(
                f"configuration.{key} is {value!r}: the program has no such network",
                f"name a configuration where it is {own[0]!r} or missing",
            )
    options: dict[str, Any] = {}
    for name, key in (("hidden_clamp", "scale_hidden_clamp_bounds"), ("output_clamp", "scale_output_clamp_bounds")):
        if key in configuration:
            bounds = configuration[key]
            if not isinstance(bounds, list) or len(bounds) != 2:
                raise layout(f"configuration.{key} is {bounds!r}, not two numbers")
            options[name] = tuple(bounds)
    activation = configuration.get("output_activation_function", "tanh")
    if activation not in ("tanh", "sigmoid"):
        raise layout(f"configuration.output_activation_function is {activation!r}, not tanh or sigmoid")
    return {**options, "output_activation": activation}


def layout(message: str) -> UsageError:
    return UsageError(message, "name a file of the layout of tests/golden/vdvae_reference.json")


def draw(record: Mapping[str, Any], dtype: torch.dtype) -> Drawn:
    """The network, its weights, input and noise by the recipe of the golden files.

    One NumPy generator. Names of the parameters in sorted order; each is standard normal times a scale, rounded to
    float32. The scale of a bias is 0.1, of a weight gain / sqrt(inputs * kernel^3), times small_factor for the roles
    conv3, latent, mean and scale, times head_factor for the head. Then the input, 0.4 times standard normal within
    [-1, 1], then the noise of each latent from the top.
    """
    model, generator = VDVAE(shape_of(record["configuration"])).to(dtype), np.random.default_rng(record["seed"])
    weights, digest = dict(model.named_parameters()), hashlib.sha256()
    for name in sorted(weights):
        weight, (*_, role, kind) = weights[name], name.split(".")
        scale = 0.1
        if kind == "weight":
            scale = record["gain"] / math.sqrt(weight[0].numel())
            scale *= record["small_factor"] if role in ("conv3", "latent", "mean", "scale") else 1
            scale *= record["head_factor"] if role == "head" else 1
        values = (generator.standard_normal(tuple(weight.shape)) * scale).astype(np.float32)
        digest.update(values.tobytes())
        weight.data = torch.from_numpy(values).to(dtype)
    count = record["noise_shapes"][0][0] if record["noise_shapes"] else 1
    side = model.shape.side
    x = np.clip(0.4 * generator.standard_normal((count, 1, side, side, side)), -1, 1).astype(np.float32)
    noise = [
        torch.from_numpy(generator.standard_normal(shape).astype(np.float32)).to(dtype)
        for shape in model.shape.latent_shapes(count)
    ]
    return Drawn(
        model, torch.from_numpy(x).to(dtype), noise, digest.hexdigest(), hashlib.sha256(x.tobytes()).hexdigest()
    )


def l2_term(model: nn.Module, factor: float = 1e-4) -> Tensor:
    """`factor` times the sum of the mean square of each tensor with more than one axis."""
    return factor * torch.stack([p.square().mean() for p in model.parameters() if p.ndim > 1]).sum()


class Terms(NamedTuple):
    """Of a pass: log-likelihood (N,), the L2 term, the loss, and what the network gave."""

    log_likelihood: Tensor
    l2: Tensor
    loss: Tensor
    output: Output


def loss_terms(drawn: Drawn, factor: float = 1e-4) -> Terms:
    """Mean over the batch of KL - log-likelihood, plus the L2 term."""
    output = drawn.model(drawn.x, drawn.noise)
    log_likelihood = gaussians.per_case(gaussians.log_likelihood(drawn.x, output.mean, output.std))
    l2 = l2_term(drawn.model, factor)
    return Terms(log_likelihood, l2, (output.kl.sum(1) - log_likelihood).mean() + l2, output)


def train(
    drawn: Drawn, clip: float, steps: int, rate: float = 1e-3, factor: float = 1e-4
) -> tuple[list[float], list[list[float]], VDVAE]:
    """Adamax on the same input and noise, encoder, decoder and head clipped each to `clip`: the losses before each step
    and after the last one, the norms of the parts at each of these, the network after the last step."""
    model = copy.deepcopy(drawn.model)
    optimizer = torch.optim.Adamax(model.parameters(), lr=rate)
    losses, norms = [], []
    for step in range(steps + 1):
        optimizer.zero_grad()
        loss = loss_terms(drawn._replace(model=model), factor).loss
        loss.backward()
        parts = [getattr(model, part).parameters() for part in PARTS]
        losses.append(loss.item())
        norms.append([float(nn.utils.clip_grad_norm_(part, clip)) for part in parts])
        if step < steps:
            optimizer.step()
    return losses, norms, model


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a file; raises UsageError with the key that another layout lacks."""
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise UsageError(f"{path} cannot be read: {reason}", "name a JSON file of golden numbers") from error
    except json.JSONDecodeError as error:
        raise layout(f"{path} is no JSON: {error}") from error
    found = content.get("configurations") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise layout(f"{path} has no key configurations, or nothing in it")
    for name, record in found.items():
        for key, kind in INPUTS.items():
            value = record.get(key) if isinstance(record, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                raise layout(f"{path}: configurations.{name}.{key} is missing or of another type")
        shapes = record["noise_shapes"]
        if not all(
            isinstance(shape, list) and len(shape) == 5 and all(type(n) is int for n in shape) for shape in shapes
        ):
            raise layout(f"{path}: configurations.{name}.noise_shapes has an entry that is no shape of five axes")
        for key, value in record.items():
            if re.fullmatch(SECTIONS, key) and not isinstance(value, dict):
                raise layout(f"{path}: configurations.{name}.{key} is {type(value).__name__}, not keys with values")
    return found


def beside(path: Path, name: str) -> Path:
    """tests/golden/vdvae_reference.json, tiny8: tests/golden/vdvae_tiny8.npz"""
    return path.with_name(f"{path.stem.split('_')[0]}_{name}.npz")
