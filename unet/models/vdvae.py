"""A very deep variational autoencoder of volumes (Child, ICLR 2021), as 3d_very_deep_vae builds it for brain MRI.

The encoder halves a cube of 2^K voxels a side down to one voxel; the decoder goes back up and draws latents on each
level, which the encoder's features of that level (`laterals`) inform. Lists go from fine to coarse, an entry for each
of the K + 1 levels. No normalisation layers; GELU is exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unet.models import gaussians

Noise = Sequence[Tensor | None]
Gaussian = tuple[Tensor, Tensor]  # mean and standard deviation


@dataclasses.dataclass(frozen=True)
class VDVAEShape:
    """The lists of the network, fine to coarse, and the bounds of its standard deviations.

    `latents`: stochastic layers; `latent_channels`: of a latent, at most those of its level; `channels`, `hidden`,
    `kernels`: of the encoder's blocks, `..._top_down`: of the decoder's. `checkpoint`: compute each block again in the
    backward pass instead of storing what is inside it.
    """

    latents: tuple[int, ...]
    latent_channels: tuple[int, ...]
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    channels_top_down: tuple[int, ...]
    hidden_top_down: tuple[int, ...]
    kernels: tuple[int, ...]
    kernels_top_down: tuple[int, ...]
    hidden_clamp: tuple[float, float] = (0.001, 1.0)
    output_clamp: tuple[float, float] = (0.01, 1.0)
    output_activation: str = "tanh"
    checkpoint: bool = False

    @property
    def levels(self) -> int:
        """K, the halvings from the cube to one voxel."""
        return len(self.channels) - 1

    @property
    def side(self) -> int:
        return 1 << self.levels

    @property
    def depth(self) -> int:
        """Blocks on the way of a residual, which its initial weights are scaled by."""
        return sum(self.latents) + 2 * self.levels

    def latent_shapes(self, count: int) -> list[tuple[int, int, int, int, int]]:
        """(count, C, D, H, W) of each latent, from the top (one voxel) down."""
        found = []
        for level in reversed(range(self.levels + 1)):
            side, channels = self.side >> level, min(self.latent_channels[level], self.channels_top_down[level])
            found += [(count, channels, side, side, side)] * self.latents[level]
        return found


class Output(NamedTuple):
    """What a pass gives: mean and standard deviation of each voxel (N, 1, D, H, W), the KL of each latent from the top
    down (N, latents) in nats (0 where it was drawn from the prior)."""

    mean: Tensor
    std: Tensor
    kl: Tensor


def convolution(inputs: int, outputs: int, kernel: int = 1) -> nn.Conv3d:
    """A convolution that keeps the sides (`apply` pads for kernel 2)."""
    return nn.Conv3d(inputs, outputs, kernel, padding=1 if kernel == 3 else 0)


def apply(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """GELU, then a convolution; zeros are put on the low side of each axis for a kernel of 2."""
    x = F.gelu(x)
    y: Tensor = conv(F.pad(x, (1, 0) * 3) if conv.kernel_size[0] == 2 else x)
    return y


class ResidualBlock(nn.Module):
    """GELU 1, GELU k, GELU k, GELU 1, added to the input (N, I, D, H, W) -> (N, O, D, H, W); `skip` false: not
    added."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kernel: int, skip: bool = True) -> None:
        super().__init__()
        self.conv0 = convolution(inputs, hidden)
        self.conv1 = convolution(hidden, hidden, kernel)
        self.conv2 = convolution(hidden, hidden, kernel)
        self.conv3 = convolution(hidden, outputs)
        self.residual = skip
        self.skip = convolution(inputs, outputs) if skip and inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in (self.conv0, self.conv1, self.conv2, self.conv3):
            y = apply(conv, y)
        if not self.residual:
            return y
        return y + (x if self.skip is None else self.skip(x))


class GaussianNet(nn.Module):
    """Features (N, I, D, H, W) -> mean and standard deviation of a latent (N, C, D, H, W), in float32 or wider, and the
    features before them (N, hidden, D, H, W). `skip`: channels of the stream to which a prior adds its features."""

    def __init__(
        self, inputs: int, hidden: int, latent: int, kernel: int, bounds: tuple[float, float], skip: int | None = None
    ) -> None:
        super().__init__()
        self.conv0 = convolution(inputs, hidden)
        self.conv1 = convolution(hidden, hidden, kernel)
        self.conv2 = convolution(hidden, hidden, kernel)
        self.mean = convolution(hidden, latent)
        self.scale = convolution(hidden, latent)
        self.skip = convolution(hidden, skip) if skip else None
        self.bounds = bounds

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for conv in (self.conv0, self.conv1, self.conv2):
            x = apply(conv, x)
        x = F.gelu(x)
        return at_least_float32(self.mean(x)), bounded(self.scale(x), self.bounds), x


def at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def bounded(raw: Tensor, bounds: tuple[float, float]) -> Tensor:
    """A standard deviation between two bounds, in float32 or wider."""
    low, high = bounds
    return low + (high - low) * at_least_float32(raw).sigmoid()


class Drawing(NamedTuple):
    """How latents are drawn: the noise is scaled by `temperature`; `sampled_kl`: their KL is that of the drawn latents
    (an importance weight) instead of the closed form."""

    temperature: float = 1.0
    sampled_kl: bool = False


class Layer(nn.Module):
    """A latent and a residual block: stream (N, I, D, H, W) -> (N, O, D, H, W).

    The prior looks at the stream, the posterior at the lateral and the stream. The first layer (`inputs` 0) has no
    stream above it, and the prior N(0, 1). On a level without latents the layer is the residual block alone.
    """

    def __init__(self, shape: VDVAEShape, level: int, inputs: int) -> None:
        super().__init__()
        outputs, hidden = shape.channels_top_down[level], shape.hidden_top_down[level]
        kernel, latent = shape.kernels_top_down[level], min(shape.latent_channels[level], outputs)
        self.level, self.has_latent = level, shape.latents[level] > 0
        residual_inputs = inputs
        if self.has_latent:
            bounds = shape.hidden_clamp
            self.prior = GaussianNet(inputs, hidden, latent, kernel, bounds, skip=outputs) if inputs else None
            self.posterior = GaussianNet(shape.channels[level] + inputs, hidden, latent, kernel, bounds)
            self.latent = convolution(latent, outputs)
            self.skip = convolution(inputs, outputs) if inputs not in (0, outputs) else None
            self.kl = gaussians.GaussianKL()
            residual_inputs = outputs
        self.residual = ResidualBlock(residual_inputs, hidden, outputs, kernel, skip=level > 0)

    def forward(
        self, x: Tensor | None, lateral: Tensor | None, noise: Tensor | None, how: Drawing
    ) -> tuple[Tensor, Tensor | None]:
        """The stream and the KL of the latent (N,), None where there is no latent. Without a lateral the latent is
        drawn from the prior; without noise it is the mean."""
        kl = None
        if self.has_latent:
            x, kl = self._first(lateral, noise, how) if x is None else self._latent(x, lateral, noise, how)
        y: Tensor = self.residual(x)
        return y, kl

    def _first(self, lateral: Tensor | None, noise: Tensor | None, how: Drawing) -> tuple[Tensor, Tensor]:
        """The stream (N, O, 1, 1, 1) of the first latent and its KL (N,)."""
        if lateral is None:
            assert noise is not None
            return self.latent(how.temperature * noise), noise.new_zeros(len(noise))
        mean, std, _ = self.posterior(lateral)
        z = gaussians.sample(mean, std, noise, how.temperature)
        if how.sampled_kl:
            prior = torch.zeros_like(mean), torch.ones_like(std)
            return self.latent(z), self._kl(z, (mean, std), prior, how)
        return self.latent(z), gaussians.per_case(gaussians.kl_to_standard(mean, std))

    def _latent(self, x: Tensor, lateral: Tensor | None, noise: Tensor | None, how: Drawing) -> tuple[Tensor, Tensor]:
        """The stream (N, O, D, H, W) after a latent and its KL (N,)."""
        assert self.prior is not None and self.prior.skip is not None
        prior_mean, prior_std, features = self.prior(x)
        if lateral is None:
            z, kl = gaussians.sample(prior_mean, prior_std, noise, how.temperature), prior_std.new_zeros(len(x))
        else:
            mean, std, _ = self.posterior(torch.cat((lateral, x), 1))
            z = gaussians.sample(mean, std, noise, how.temperature)
            kl = self._kl(z, (mean, std), (prior_mean, prior_std), how)
        return self.latent(z) + self.prior.skip(features) + (x if self.skip is None else self.skip(x)), kl

    def _kl(self, z: Tensor, posterior: Gaussian, prior: Gaussian, how: Drawing) -> Tensor:
        """KL of posterior and prior (N,): in closed form, or log q(z) - log p(z) of the latent that was drawn."""
        if how.sampled_kl:
            return gaussians.per_case(gaussians.log_likelihood(z, *posterior) - gaussians.log_likelihood(z, *prior))
        kl: Tensor = self.kl(*posterior, *prior)
        return kl


class VDVAE(nn.Module):
    """Volumes (N, 1, side, side, side) -> `Output`. Encoder, decoder and head are its three parts."""

    def __init__(self, shape: VDVAEShape) -> None:
        super().__init__()
        self.shape = shape
        encoder, before = nn.ModuleList(), 1
        for channels, hidden, kernel in zip(shape.channels, shape.hidden, shape.kernels, strict=True):
            first = ResidualBlock(before, hidden, channels, kernel)
            encoder.append(nn.ModuleList([first, ResidualBlock(channels, hidden, channels, kernel)]))
            before = channels
        self.encoder, self.decoder, stream = encoder, nn.ModuleList(), 0
        for level in reversed(range(shape.levels + 1)):
            for _ in range(max(1, shape.latents[level])):
                self.decoder.append(Layer(shape, level, stream))
                stream = shape.channels_top_down[level]
        self.head = convolution(stream, 2)
        initialise(self)

    @property
    def layers(self) -> Iterator[Layer]:
        """The decoder's layers from the top down."""
        return (layer for layer in self.decoder if isinstance(layer, Layer))

    def forward(
        self,
        x: Tensor | None,
        noise: Noise | None = None,
        how: Drawing = Drawing(),  # noqa: B008
        side: int | None = None,
    ) -> Output:
        """One sample of every latent from its posterior; `noise` (see `draw_noise`) is drawn where it is not given.

        Without a volume the latents come from the priors. `side`: only those of at most so many voxels a side are
        drawn, from 1 on; the finer ones are the mean of their prior. All passes go through here, so that devices see
        one forward pass of one network.
        """
        if x is None:
            assert noise is not None
            return self.decode([None] * (self.shape.levels + 1), noise, how)
        laterals: list[Tensor | None] = list(self.encode(x))
        noise = draw_noise(self.shape, len(x), x.device) if noise is None else noise
        if side is not None:
            finer = [level for level in range(self.shape.levels + 1) if self.shape.side >> level > side]
            laterals = [None if level in finer else each for level, each in enumerate(laterals)]
            levels = [layer.level for layer in self.layers if layer.has_latent]
            noise = [None if level in finer else each for level, each in zip(levels, noise, strict=True)]
        return self.decode(laterals, noise, how)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The laterals, fine to coarse: (N, channels, D, H, W) of each level."""
        laterals = []
        for level, blocks in enumerate(self.encoder):
            x = x[:, :, ::2, ::2, ::2].clone() if level else x  # without gaps: GELU and kernels are made for that
            for block in cast(nn.ModuleList, blocks):
                x = self._run(block, x)
            laterals.append(x)
        return laterals

    def decode(self, laterals: Sequence[Tensor | None], noise: Noise, how: Drawing = Drawing()) -> Output:  # noqa: B008
        """From the top down. Where a level's lateral is None, its latents come from the prior; where a latent's noise
        is None, it is the mean (the first latent has a lateral or noise: they say how many volumes)."""
        x: Any = None
        level, divergences, rest = self.shape.levels, [], iter(noise)
        for layer in self.layers:
            if layer.level != level:
                assert x is not None
                x, level = F.interpolate(x, scale_factor=2, mode="nearest"), layer.level
            epsilon = next(rest) if layer.has_latent else None
            x, kl = self._run(layer, x, laterals[level], epsilon, how)
            divergences += [] if kl is None else [kl]
        mean, std = at_least_float32(apply(self.head, x)).chunk(2, 1)
        mean = mean.tanh() if self.shape.output_activation == "tanh" else mean.sigmoid()
        return Output(mean, bounded(std, self.shape.output_clamp), torch.stack(divergences, 1))

    def sample(self, noise: Sequence[Tensor], temperature: float = 1.0) -> Output:
        """Volumes from the priors alone; the noise is scaled by the temperature, the means are not."""
        found: Output = self(None, noise, Drawing(temperature))
        return found

    def reconstruct(self, x: Tensor, noise: Noise, side: int) -> Output:
        """A reconstruction from the latents of at most `side` voxels a side, from 1 on."""
        found: Output = self(x, noise, side=side)
        return found

    def _run(self, block: nn.Module, *inputs: Any) -> Any:
        """A block's output; with `shape.checkpoint` what is inside it is computed again in the backward pass."""
        if self.shape.checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)


def draw_noise(shape: VDVAEShape, count: int, device: Any, generator: torch.Generator | None = None) -> list[Tensor]:
    """Standard normal noise for each latent of `count` volumes, from the top down, drawn where `generator` lives (None:
    the device's own)."""
    where = device if generator is None else generator.device
    return [torch.randn(size, generator=generator, device=where).to(device) for size in shape.latent_shapes(count)]


@torch.no_grad()
def initialise(model: VDVAE) -> None:
    """The reference's start: torch's own weights, but zeros for each prior's mean, scale and skip, and the last
    convolution of each residual block that has a skip smaller by sqrt(depth); zero biases, but for the projection
    beside a latent."""
    kept = {layer.skip for layer in model.layers if layer.has_latent and layer.skip is not None}
    for part in model.modules():
        if isinstance(part, nn.Conv3d) and part not in kept:
            assert part.bias is not None
            part.bias.zero_()
        if isinstance(part, ResidualBlock) and part.residual:
            part.conv3.weight.mul_(model.shape.depth**-0.5)
        if isinstance(part, GaussianNet) and part.skip is not None:
            for conv in (part.mean, part.scale, part.skip):
                conv.weight.zero_()
