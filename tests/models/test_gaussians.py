"""Gaussians against closed forms, SciPy, integrals, samples, and the reference program's values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from scipy import integrate, stats
from torch import Tensor

from unet.models import gaussians

CASES = json.loads((GOLDEN / "vdvae_kl_cases.json").read_text())["cases"]
FLOOR = float(np.float32(1e-5))  # of the prior's variance, in the reference program alone; it rounds it so
PAIRS = [(0.0, 1.0, 0.0, 1.0), (0.3, 0.5, -0.2, 0.7), (-1.0, 0.05, 0.4, 0.9), (0.01, 0.002, 0.0, 0.001)]


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def kl(*values: float) -> float:
    return float(gaussians.kl(*map(scalar, values)))


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Means, and standard deviations from 0.001 to 1."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, count, generator=generator, dtype=torch.float64)
    spreads = 10 ** (-3 * torch.rand(2, count, generator=generator, dtype=torch.float64))
    return means[0], spreads[0], means[1], spreads[1]


def test_log_likelihood_is_scipys() -> None:
    x, std, mean, _ = drawn(1000)
    expected = stats.norm.logpdf(x.numpy(), mean.numpy(), std.numpy())
    np.testing.assert_allclose(gaussians.log_likelihood(x, mean, std).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("values", PAIRS)
def test_kl_is_the_integral(values: tuple[float, ...]) -> None:
    """Over ten standard deviations on both sides: what is outside is below 1e-20."""
    mean, std, prior_mean, prior_std = values
    q, p = stats.norm(mean, std), stats.norm(prior_mean, prior_std)

    def integrand(x: float) -> float:
        return q.pdf(x) * (q.logpdf(x) - p.logpdf(x))

    expected, _ = integrate.quad(integrand, mean - 10 * std, mean + 10 * std, epsabs=1e-12, epsrel=1e-11, limit=200)
    assert kl(*values) == pytest.approx(expected, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("values", PAIRS[1:])
def test_kl_is_the_mean_difference_of_log_likelihoods_of_samples(values: tuple[float, ...]) -> None:
    """Within four standard errors of 200,000 samples."""
    mean, std, prior_mean, prior_std = map(scalar, values)
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z = gaussians.sample(mean, std, noise)
    gap = gaussians.log_likelihood(z, mean, std) - gaussians.log_likelihood(z, prior_mean, prior_std)
    error = float(gap.std()) / math.sqrt(len(gap))
    assert kl(*values) == pytest.approx(float(gap.mean()), abs=4 * error)
    assert 4 * error < 0.05 * kl(*values)  # sharp enough to tell the two directions apart
    swapped = (values[2], values[3], values[0], values[1])
    assert kl(*swapped) != pytest.approx(kl(*values), rel=0.05)


def test_kl_is_torchs() -> None:
    mean, std, prior_mean, prior_std = drawn(1000)
    q, p = torch.distributions.Normal(mean, std), torch.distributions.Normal(prior_mean, prior_std)
    torch.testing.assert_close(
        gaussians.kl(mean, std, prior_mean, prior_std), torch.distributions.kl_divergence(q, p), rtol=1e-9, atol=1e-11
    )


def test_kl_to_standard_is_the_kl_to_mean_0_and_deviation_1() -> None:
    mean, std, _, _ = drawn(1000)
    zero = torch.zeros_like(mean)
    torch.testing.assert_close(gaussians.kl_to_standard(mean, std), gaussians.kl(mean, std, zero, zero + 1))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_kl_is_never_negative_and_zero_where_both_are_the_same(kind: torch.dtype) -> None:
    """Up to the rounding of terms of about 1."""
    values = [value.to(kind) for value in drawn(100_000, seed=1)]
    rounding = 4 * torch.finfo(kind).eps
    assert float(gaussians.kl(*values).min()) >= -rounding
    assert float(gaussians.kl_to_standard(*values[:2]).min()) >= -rounding * 8  # log 0.001 is 7
    near = values[1] * (1 + 1e-4)
    assert float(gaussians.kl(values[0], values[1], values[0], near).min()) >= -rounding
    assert float(gaussians.kl(values[0], values[1], values[0], values[1]).abs().max()) <= rounding


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kl_is_the_references_but_for_its_floor(case: dict[str, float | None]) -> None:
    """Where the prior's variance is below 1e-5 the reference computes with 1e-5 in the quotient alone: one of its
    values is -0.45. Here it is the KL."""
    mean, std, prior_mean, prior_std = (case[f"{a}_{b}"] for a in ("posterior", "prior") for b in ("mean", "std"))
    assert mean is not None and std is not None and case["kl"] is not None
    if prior_mean is None or prior_std is None:
        assert float(gaussians.kl_to_standard(scalar(mean), scalar(std))) == pytest.approx(case["kl"], abs=1e-12)
        return
    if prior_std**2 >= FLOOR:
        assert kl(mean, std, prior_mean, prior_std) == pytest.approx(case["kl"], abs=1e-12)
        return
    log_ratio = math.log(prior_std / std)
    theirs = 0.5 * ((std**2 + (mean - prior_mean) ** 2) / FLOOR - 1) + log_ratio
    ours = 0.5 * ((std**2 + (mean - prior_mean) ** 2) / prior_std**2 - 1) + log_ratio
    assert case["kl"] == pytest.approx(theirs, rel=1e-13)
    assert kl(mean, std, prior_mean, prior_std) == pytest.approx(ours, rel=1e-12, abs=1e-12)
    assert ours > theirs


def test_a_sample_scales_the_noise_and_not_the_mean() -> None:
    mean, std, noise, _ = drawn(100)
    assert gaussians.sample(mean, std, None) is mean
    assert torch.equal(gaussians.sample(mean, std, noise, 0.0), mean)
    torch.testing.assert_close(gaussians.sample(mean, std, noise), mean + std * noise)
    torch.testing.assert_close(gaussians.sample(mean, std, noise, 0.5), mean + 0.5 * std * noise)


def test_a_case_is_the_sum_over_all_axes_but_the_first() -> None:
    values = torch.arange(24.0).reshape(2, 3, 2, 2, 1)
    assert gaussians.per_case(values).tolist() == [66.0, 210.0]


def test_gradients_are_those_of_finite_differences() -> None:
    values = tuple(value[:5].clone().requires_grad_() for value in drawn(5, seed=2))
    mean, std, prior_mean, prior_std = values
    assert torch.autograd.gradcheck(gaussians.kl, values)
    assert torch.autograd.gradcheck(gaussians.kl_to_standard, (mean, std))
    assert torch.autograd.gradcheck(gaussians.log_likelihood, (prior_mean, mean, prior_std))
    assert torch.autograd.gradcheck(lambda m, s: gaussians.sample(m, s, prior_mean.detach(), 0.7), (mean, std))
