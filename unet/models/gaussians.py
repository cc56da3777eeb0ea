"""Diagonal Gaussians of a variational autoencoder: likelihood, divergences, samples. Computed in float32 or wider."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def log_likelihood(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std^2) of each element, in nats: -(2 log s + log 2 pi + ((x - m) / s)^2) / 2."""
    return -0.5 * (2 * std.log() + math.log(2 * math.pi) + ((x - mean) / std) ** 2)


def kl(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(prior_mean, prior_std^2)) of each element, in nats; never below 0 but for rounding
    (Kingma and Welling, ICLR 2014, appendix B).

    The variance of the prior has no floor: a floor of 1e-5, as in 3d_very_deep_vae, makes it negative where the
    standard deviation is smaller than 0.003.
    """
    ratio = std / prior_std
    return 0.5 * (ratio**2 + ((mean - prior_mean) / prior_std) ** 2 - 1) - ratio.log()


def kl_to_standard(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each element, in nats (Kingma and Welling, ICLR 2014, appendix B)."""
    return 0.5 * (std**2 + mean**2 - 1) - std.log()


def sample(mean: Tensor, std: Tensor, noise: Tensor | None, temperature: float = 1.0) -> Tensor:
    """mean + temperature std noise: the noise is scaled, not the mean. Without noise the mean."""
    if noise is None:
        return mean
    return torch.addcmul(mean, std, noise, value=temperature)


def per_case(values: Tensor) -> Tensor:
    """(N, ...) -> (N,): the sum over all other axes."""
    return values.flatten(1).sum(1)


class GaussianKL(nn.Module):
    """`kl` summed over all axes but the first: four (N, ...) -> (N,). A layer, so that a device may swap it."""

    def forward(self, mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: Tensor) -> Tensor:
        return per_case(kl(mean, std, prior_mean, prior_std))
