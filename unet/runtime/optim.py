"""Optimisers, and the learning rate as a function of the position in the run (so there is no state to save)."""

from __future__ import annotations

import inspect
import math
import types
from typing import Any

import torch

from unet.config.flags_training import TrainOptions
from unet.devices.base import Device
from unet.runtime.lamb import LAMB


def build(train: TrainOptions, groups: list[dict[str, Any]], device: Device | None) -> torch.optim.Optimizer:
    """The optimiser of the settings: the device's fused one if it has it, else torch's (also without a device)."""
    leave_compiler_out()
    how: dict[str, Any] = {"lr": train.lr, "weight_decay": train.weight_decay}
    if train.optimizer == "sgd":
        how |= {"momentum": train.momentum, "nesterov": train.momentum > 0}
    if train.optimizer == "lamb":
        how["betas"] = train.lamb_betas
    fused = device.optimizer(train.optimizer, groups, **how) if device else None
    if fused is not None:
        return with_plain_step(fused) if type(fused).__module__.startswith("torch.optim.") else fused
    kinds: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adamax": torch.optim.Adamax,
        "lamb": LAMB,
    }
    return with_plain_step(kinds[train.optimizer](groups, **how))


def leave_compiler_out() -> None:
    """Let optimisers not import torch's compiler, which takes two seconds. These methods do, at their first use, to
    tell it that it may not trace them; no program here compiles an optimiser."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            method.__dynamo_disable = method


def with_plain_step(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimiser, whose steps do not import torch's compiler either. Hooks and the profiler's label stay."""
    step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    optimizer.step = types.MethodType(torch.optim.Optimizer.profile_hook_step(step), optimizer)  # type: ignore[method-assign]
    return optimizer


def learning_rate(
    train: TrainOptions, epoch: int, step: int, steps_per_epoch: int, position: int | None = None
) -> float:
    """The rate of optimiser step `step` (from 0), which lies in `epoch` (from 1) at `position` (in steps of epochs as
    long as they are now; `step` itself unless the number of ranks has changed).

    Warm-up is linear per epoch, w + (lr - w) epoch / W for epoch <= W (as in the MLPerf reference), or with
    --warmup-by step, w + (lr - w) (step + 1) / (W steps an epoch): both end at lr. Then: constant;
    cosine to 0; poly (1 - t)^0.9 (nnU-Net), both over the rest of the run; multistep times gamma after each milestone.
    """
    if epoch <= train.warmup_epochs:
        done = epoch / train.warmup_epochs
        if train.warmup_by == "step":
            done = ((step if position is None else position) + 1) / (train.warmup_epochs * steps_per_epoch)
        return train.warmup_lr + (train.lr - train.warmup_lr) * done
    if train.schedule == "multistep":
        return train.lr * train.lr_gamma ** sum(epoch > milestone for milestone in train.lr_milestones)
    if train.schedule == "constant":
        return train.lr
    warm = train.warmup_epochs * steps_per_epoch
    t = ((step if position is None else position) - warm) / max(1, train.epochs * steps_per_epoch - warm)
    if train.max_steps:
        t = max(t, (step - warm) / max(1, train.max_steps - warm))
    t = min(1.0, max(0.0, t))
    return train.lr * ((1 + math.cos(math.pi * t)) / 2 if train.schedule == "cosine" else (1 - t) ** 0.9)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
