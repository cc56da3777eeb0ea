"""The divergence of two Gaussians with its gradients written out: a third of the passes over memory that autograd's
take. The plain form is the layer that it is swapped for."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from unet.kernels.norms import channel_last

PLAIN = "GaussianKL"  # the layer's name: kernels do not know models


class Fused:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)), summed over all axes but the first: four (N, ...) -> (N,).
    Volumes in another order than channels-last take the plain form, as they do in the other kernels."""

    def forward(self, mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
        if channel_last(mean) and mean.shape[2:].numel() > 1:
            found: Tensor = _KL.apply(mean, std, prior_mean, prior_std)
        else:
            found = super().forward(mean, std, prior_mean, prior_std)  # type: ignore[misc]
        return found


@functools.cache
def fused(plain: type[nn.Module]) -> type[nn.Module]:
    """The layer's class with the gradients written out."""
    return type(f"Fused{plain.__name__}", (Fused, plain), {})


class _KL(torch.autograd.Function):
    """With r = s / s_p and d = (m - m_p) / s_p: KL = (r^2 + d^2 - 1) / 2 - log r. Its slopes: d / s_p by m, minus that
    by m_p, (r - 1 / r) / s_p by s, (1 - r^2 - d^2) / s_p by s_p."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
        inverse = prior_std.reciprocal()
        ratio, distance = std * inverse, torch.sub(mean, prior_mean).mul_(inverse)
        ctx.save_for_backward(inverse, ratio, distance)
        squares = ratio.square().addcmul_(distance, distance)
        return squares.sub_(1).mul_(0.5).sub_(ratio.log()).flatten(1).sum(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inverse, ratio, distance = ctx.saved_tensors
        scaled = inverse * slope.reshape(-1, *[1] * (inverse.ndim - 1))
        by_mean = distance * scaled
        by_std = (ratio - ratio.reciprocal()).mul_(scaled)
        by_prior_std = scaled.addcmul_(ratio.square().addcmul_(distance, distance), scaled, value=-1)
        return by_mean, by_std, -by_mean, by_prior_std
