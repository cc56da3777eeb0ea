"""LAMB: Adam whose step is scaled, tensor by tensor, to the size of the weights that it changes.

Source: You et al., Large Batch Optimization for Deep Learning, ICLR 2020 (arXiv 1904.00962), algorithm 2. Of what the
paper leaves open this follows NVIDIA's FusedLAMB, which the MLPerf reference trains with: epsilon 1e-6, bias
correction, decoupled weight decay inside the scaled update, and gradients divided by their global norm where that is
above 1. One thing follows the paper: every tensor is scaled. FusedLAMB scales none where the weight decay is 0 (it is
Adam then).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LAMB(torch.optim.Optimizer):
    """m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, r = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w,
    w -= lr |w| / |r| r with norms of whole tensors, and 1 for |w| / |r| where either is 0.

    g are the gradients of all tensors, divided by max(1, their norm / `max_norm`); None leaves them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        max_norm: float | None = 1.0,
    ) -> None:
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults)
        self.max_norm = max_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; nothing in it reads from the device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale = self._scale()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                group["step"] += 1
                self._update(group, weights, scale)
        return loss

    def _scale(self) -> Tensor | None:
        """What all gradients are multiplied by."""
        grads = [weight.grad for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        if self.max_norm is None or not grads:
            return None
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        return self.max_norm / norm.clamp(min=self.max_norm)

    def _update(self, group: dict[str, Any], weights: list[Tensor], scale: Tensor | None) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {name: torch.zeros_like(weight) for name in ("mean", "square")}
        b1, b2 = group["betas"]
        means = [self.state[weight]["mean"] for weight in weights]
        squares = [self.state[weight]["square"] for weight in weights]
        grads = [weight.grad for weight in weights if weight.grad is not None]
        if scale is not None:
            grads = list(torch._foreach_mul(grads, scale))
        torch._foreach_lerp_(means, grads, 1 - b1)
        torch._foreach_mul_(squares, b2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - b2)
        below = torch._foreach_div(squares, 1 - b2 ** group["step"])
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, group["eps"])
        update = torch._foreach_div(means, 1 - b1 ** group["step"])
        torch._foreach_div_(update, below)
        if group["weight_decay"]:
            torch._foreach_add_(update, weights, alpha=group["weight_decay"])
        sizes = torch._foreach_norm(weights), torch._foreach_norm(update)
        for weight, change, size, step in zip(weights, update, *sizes, strict=True):
            ratio = torch.where((size > 0) & (step > 0), size / step, torch.ones_like(size))
            weight.sub_(change * (group["lr"] * ratio))
