"""The arithmetic of the vendors' fused optimisers, which is that of torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emulator.record import RECORD


def check_weights(optimizer: torch.optim.Optimizer) -> None:
    """The vendor's optimisers work on the vendor's device only."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.device.type != RECORD.kind:
                RECORD.violate(f"{type(optimizer).__name__} has a weight on {weight.device}, not on {RECORD.kind}")


def moments(state: dict[str, Any], weight: Tensor) -> tuple[Tensor, Tensor]:
    for name in ("exp_avg", "exp_avg_sq"):
        if name not in state:
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
    return state["exp_avg"], state["exp_avg_sq"]


class Adam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) where `adam_w_mode`; the steps are counted in the
    group, as apex does.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), step, decay = group["betas"], group["step"], group["weight_decay"]
            correction1, correction2 = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1.0, 1.0)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient, (mean, square) = weight.grad, moments(self.state[weight], weight)
                if decay and group["adam_w_mode"]:
                    weight.mul_(1 - group["lr"] * decay)
                elif decay:
                    gradient = gradient.add(weight, alpha=decay)
                mean.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                root = (square.sqrt() / correction2**0.5).add_(group["eps"])
                weight.addcdiv_(mean, root, value=-group["lr"] / correction1)
        return loss


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al. 2020): Adam's direction, its length set by the weight's own; gradients clipped together."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [w.grad for group in self.param_groups for w in group["params"] if w.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            shrink = (norm / group["max_grad_norm"]).clamp(min=1.0)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient, (mean, square) = weight.grad / shrink, moments(self.state[weight], weight)
                mean.lerp_(gradient, 1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                corrections = (1 - beta1 ** group["step"], 1 - beta2 ** group["step"])
                first, second = corrections if group["bias_correction"] else (1.0, 1.0)
                update = (mean / first) / ((square / second).sqrt() + group["eps"]) + group["weight_decay"] * weight
                own, length = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
                trust = torch.where((own > 0) & (length > 0), own / length, torch.ones_like(own))
                weight.sub_(group["lr"] * trust * update)
        return loss
