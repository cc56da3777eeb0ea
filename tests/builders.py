"""What many tests make: settings, tensors and weights from formulas (as the golden files were made with them)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet.config.schema import Config
from unet.tasks.registry import settings_of


def wave(shape: tuple[int, ...], a: float, b: float) -> Tensor:
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    return torch.from_numpy((np.sin(a * i + b) + 0.5 * np.cos(0.00171 * i)).astype(np.float32).reshape(shape))


def formula_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the golden file: element i of tensor t is a sine, scaled by the kind of tensor (the file's
    `formula`).
    """
    result = {}
    for number, (key, value) in enumerate(state.items()):
        if not value.is_floating_point():
            result[key] = value
            continue
        s = np.sin(0.7 * np.arange(value.numel(), dtype=np.float64) + 1.3 * number + 0.1)
        if value.ndim > 1:
            s = s * 2 / np.sqrt(value.numel() / value.shape[0])
        elif key.endswith("running_var"):
            s = 1 + 0.5 * s
        elif key.endswith("weight"):
            s = 1 + 0.1 * s
        else:
            s = 0.1 * s
        result[key] = torch.from_numpy(s.astype(np.float32).reshape(value.shape))
    return result


def make_config(task: str = "lgg", **values: Any) -> Config:
    """The settings of a task: the declared defaults, with these values."""
    return Config.of(settings_of(task), {"task": task, **values})


def task_config(task: str, **values: Any) -> Config:
    """The settings of a task: its own defaults, with these values."""
    return make_config(task, **{**settings_of(task).defaults, **values})
