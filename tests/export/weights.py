"""Small weights of each task as `train` saves them, without a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from builders import task_config
from torch import nn

from unet import files
from unet.runtime.checkpoints import checkpoint
from unet.tasks.base import Task
from unet.tasks.registry import create

SMALL: dict[str, dict[str, Any]] = {
    "lgg": {"image_size": 32, "layers": 2, "width": 4},
    "em": {"image_size": 60, "layers": 2, "width": 4, "raw_side": 32, "eval_batch_size": 2},
    "kits19": {"layers": 2, "width": 4, "patch": (16,) * 3, "eval_patch": (16,) * 3, "pad_to": (16,) * 3},
}


def folder(dims: int = 3, channels: int = 1, classes: int = 3, **values: Any) -> dict[str, Any]:
    """Settings of a planned network; slices of 2D networks are 3 mm apart, voxels of volumes too."""
    return {
        "channels": tuple(f"T{number}" for number in range(channels)),
        "classes": ("background", *(f"organ {number}" for number in range(1, classes))),
        "label_values": (0, *(10 * number for number in range(1, classes))),
        "normalize": ("zscore",) * channels,
        "spacing": (3.0, 1.0, 1.0),
        "orientation": "as-stored",
        "patch": (1, 16, 16) if dims == 2 else (8, 16, 16),
        "layers": 2,
        "width": 4,
        **values,
    }


def task_of(name: str, **values: Any) -> Task:
    """A task with small settings; `values` change them."""
    return create(task_config(name, **{**SMALL.get(name, {}), **values}))


def network_of(task: Task) -> nn.Module:
    """Its network, whose batch norms have the statistics of some inputs: with others every ReLU may give 0."""
    torch.manual_seed(3)
    network = task.build_model()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d)]
    for layer in norms:
        layer.momentum = None  # the mean of what they see
    with torch.no_grad():
        for _ in range(3 if norms else 0):
            network.train()(torch.randn(2, *task.input_shape()[1:]))
    return network.eval()


def save(path: Path, task: Task) -> nn.Module:
    """Write weights of a task; gives their network."""
    network, names = network_of(task), (*task.Settings.inference_settings, "layers")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: files.jsonable(task.config.get(name)) for name in names}
    facts = {"task": task.name, "run_name": path.stem, "training": ["a", "b"], "validation": ["c"]}
    checkpoint.save_weights(path, {**facts, "settings": settings}, network.state_dict())
    return network
