"""Passes of the network over a volume: reconstruction, importance-weighted bound, reconstruction by level, samples.

Noise is drawn on the host, from a key and a number alone: the same on every rank and device. No torch at import.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unet.tasks.base import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from unet.models.vdvae import Output, VDVAEShape


def key_of(case: str) -> int:
    """A number for a case's noise."""
    return zlib.crc32(case.encode())


def noise_of(shape: VDVAEShape, key: int, number: int) -> list[Tensor]:
    """The noise of all latents of one volume."""
    from unet.data.loading.sampling import generator
    from unet.models.vdvae import draw_noise

    return draw_noise(shape, 1, "cpu", generator(key, number))


def decoded(
    predictor: Predictor, shape: VDVAEShape, volume: Tensor, key: int, sampled: int | None = None
) -> list[list[Tensor]]:
    """Mean, standard deviation (1, 1, D, H, W) and KL by latent (1, L) of a volume (1, 1, D, H, W) by each network.
    `sampled`: of the sample of this number, whose KL is that of the drawn latents and not the closed form."""
    from unet.models.vdvae import Drawing

    noise = noise_of(shape, key, 0 if sampled is None else sampled)
    how = Drawing(sampled_kl=sampled is not None)

    def work(network: Any, put: Callable[[Tensor], Tensor]) -> Output:
        found: Output = network(put(volume), [put(each) for each in noise], how)
        return found

    return predictor.each(work)


def mixture(outputs: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of the equal mixture of several networks' Gaussians, and their mean KL."""
    import torch

    if len(outputs) == 1:
        mean, std, kl = outputs[0]
        return mean, std, kl
    means, stds, kls = (torch.stack(parts) for parts in zip(*outputs, strict=True))
    return means.mean(0), (stds.square().mean(0) + means.var(0, correction=0)).sqrt(), kls.mean(0)


def importance_weighted(predictor: Predictor, shape: VDVAEShape, volume: Tensor, key: int, samples: int) -> float:
    """log of the mean of p(x, z) / q(z | x) over the samples, in nats: a bound of log p(x) that is tighter than the
    ELBO (Burda, Grosse and Salakhutdinov, ICLR 2016). The mean over the networks, as of their ELBOs."""
    import torch

    from unet.models import gaussians

    weights = []
    for number in range(1, samples + 1):
        found = decoded(predictor, shape, volume, key, sampled=number)
        by_network = [
            gaussians.log_likelihood(volume, *each[:2]).double().sum() - each[2].double().sum() for each in found
        ]
        weights.append(torch.stack(by_network))
    return float((torch.logsumexp(torch.stack(weights), 0) - math.log(samples)).mean())


def by_level(predictor: Predictor, shape: VDVAEShape, volume: Tensor, key: int) -> dict[int, Any]:
    """side -> reconstruction (D, H, W) from the latents of at most that many voxels a side, the mean over networks."""
    import torch

    noise, found = noise_of(shape, key, 0), dict[int, Any]()
    for side in (1 << level for level in range(shape.levels + 1)):

        def work(network: Any, put: Callable[[Tensor], Tensor], side: int = side) -> list[Tensor]:
            return [network(put(volume), [put(each) for each in noise], side=side).mean]

        found[side] = torch.stack([each[0][0, 0] for each in predictor.each(work)]).mean(0).numpy()
    return found


def sample(predictor: Predictor, shape: VDVAEShape, seed: int, number: int, temperature: float) -> Any:
    """The mean (D, H, W) of a volume drawn from the priors by the first network."""
    from unet.models.vdvae import Drawing

    noise = noise_of(shape, seed, number)

    def work(network: Any, put: Callable[[Tensor], Tensor]) -> Output:
        found: Output = network(None, [put(each) for each in noise], Drawing(temperature))
        return found

    return predictor.each(work)[0][0][0, 0].numpy()
