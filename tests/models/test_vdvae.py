"""The very deep VAE: its start, its gradients, samples and reconstructions, other lists, memory, layouts."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet.models import gaussians, vdvae
from unet.models.vdvae import VDVAE, Output, VDVAEShape, draw_noise
from unet.tasks.brains import settings

SMALL = VDVAEShape(  # 8 voxels a side, uneven lists
    latents=(2, 2, 1, 2),
    latent_channels=(3, 3, 3, 20),
    channels=(4, 6, 8, 10),
    hidden=(3, 5, 7, 9),
    channels_top_down=(5, 6, 7, 10),
    hidden_top_down=(4, 5, 6, 7),
    kernels=(3, 3, 2, 1),
    kernels_top_down=(3, 2, 2, 1),
)
TINY = VDVAEShape((1, 2, 1), (2, 2, 4), (2, 3, 3), (2, 3, 3), (2, 3, 3), (2, 2, 3), (3, 2, 1), (3, 2, 1))
START = 0.001 + 0.999 / 2  # a latent's standard deviation where the network gives 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for more: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(
    shape: VDVAEShape, count: int = 2, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64
) -> Any:
    """A network with drawn weights, a batch and its noise; `scale`: of all weights and biases to the default ones."""
    torch.manual_seed(seed)
    model = VDVAE(shape).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn_like(parameter) * scale / math.sqrt(fan_in))
    x = (0.4 * torch.randn(count, 1, shape.side, shape.side, shape.side)).clamp(-1, 1).to(dtype)
    return model, x, [noise.to(dtype) for noise in draw_noise(shape, count, "cpu")]


def loss_of(output: Output, x: Tensor) -> Tensor:
    log_likelihood = gaussians.per_case(gaussians.log_likelihood(x, output.mean, output.std))
    return (output.kl.sum(1) - log_likelihood).mean()


def loss_and_gradients(model: VDVAE, x: Tensor, noise: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = loss_of(model(x, noise), x)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return loss.detach(), gradients


def close(found: Output, expected: Output, **how: float) -> None:
    torch.testing.assert_close((found.mean, found.std), (expected.mean, expected.std), **how)


# The start


@pytest.fixture(scope="module")
def published() -> VDVAE:
    """At 32 voxels: 10 million parameters."""
    lists = settings.Settings(resolution=32).lists(20)
    torch.manual_seed(1)
    return VDVAE(
        VDVAEShape(
            latents=lists["latents_per_channel"],
            latent_channels=lists["channels_per_latent"],
            channels=lists["channels"],
            hidden=lists["channels_hidden"],
            channels_top_down=lists["channels_top_down"],
            hidden_top_down=lists["channels_hidden_top_down"],
            kernels=lists["kernel_sizes_bottom_up"],
            kernels_top_down=lists["kernel_sizes_top_down"],
        )
    )


def test_weights_start_as_the_references(published: VDVAE) -> None:
    """Measured there: uniform within 1 / sqrt(fan in); the last convolution of a residual block with a skip smaller by
    sqrt(27), so not at the finest level of the decoder; each prior's mean, scale and skip zero."""
    scaled = zero = 0
    for name, weight in published.named_parameters():
        if not name.endswith("weight"):
            continue
        bound = 1 / math.sqrt(weight[0].numel())
        *path, role, _ = name.split(".")
        if "prior" in path and role in ("mean", "scale", "skip"):
            assert not weight.any(), name
            zero += 1
            continue
        finest = path[:1] == ["decoder"] and published.decoder[int(path[1])].level == 0
        if role == "conv3" and not finest:
            bound, scaled = bound / math.sqrt(27), scaled + 1
        largest = float(weight.detach().abs().max())
        assert bound * (1 - 20 / weight.numel()) < largest <= bound * (1 + 1e-6), name
        # of n uniform values; four standard errors
        assert float(weight.detach().std()) * math.sqrt(3) / bound == pytest.approx(1, abs=4 * weight.numel() ** -0.5)
    assert (scaled, zero) == (2 * 6 + 15, 3 * 16)


def test_biases_start_at_zero_but_for_the_projection_beside_a_latent(published: VDVAE) -> None:
    drawn = {name for name, bias in published.named_parameters() if name.endswith("bias") and bias.any()}
    assert drawn == {f"decoder.{number}.skip.bias" for number in (1, 3, 6, 10, 15)}
    for name in drawn:
        convolution = published.get_submodule(name.removesuffix(".bias"))
        assert float(convolution.bias.detach().abs().max()) <= convolution.weight[0].numel() ** -0.5


def test_every_prior_but_the_first_starts_the_same() -> None:
    model, found = VDVAE(SMALL), []
    for layer in model.decoder:
        if layer.prior is not None:
            layer.prior.register_forward_hook(lambda _, inputs, output: found.append(output[:2]))
    model(torch.randn(1, 1, 8, 8, 8))
    assert len(found) == sum(SMALL.latents) - 1
    for mean, std in found:
        assert not mean.any()
        torch.testing.assert_close(std, torch.full_like(std, START))


def test_elbo_of_zero_heads_in_closed_form() -> None:
    """Heads of the posteriors and of the voxels at zero, the priors' heads as they start: each latent but the first has
    the same prior and posterior, each voxel N(0, 0.505^2)."""
    model, x, noise = VDVAE(SMALL).double(), torch.rand(3, 1, 8, 8, 8).double() - 0.5, draw_noise(SMALL, 3, "cpu")
    with torch.no_grad():
        for part in (model.head, *(conv for layer in model.decoder for conv in heads(layer.posterior))):
            part.weight.zero_()
            part.bias.zero_()
        output = model(x, [value.double() for value in noise])
    first = 10 * (0.5 * (START**2 - 1) - math.log(START))
    torch.testing.assert_close(output.kl[:, 0], torch.full((3,), first).double(), rtol=1e-7, atol=0)
    assert float(output.kl[:, 1:].abs().max()) < 1e-12
    std = 0.01 + 0.99 / 2
    voxels = -0.5 * (x / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    elbo = voxels.sum((1, 2, 3, 4)) - first
    assert float(-loss_of(output, x)) == pytest.approx(float(elbo.mean()), rel=1e-12)


def heads(net: vdvae.GaussianNet) -> tuple[nn.Conv3d, nn.Conv3d]:
    return net.mean, net.scale


# Gradients


def test_gradients_are_those_of_finite_differences() -> None:
    """Of every tensor, in a drawn direction: 2 to 4 channels at 4 voxels a side."""
    model, x, noise = made(TINY, scale=0.8)
    _, gradients = loss_and_gradients(model, x, noise)
    step = 1e-5
    for name, parameter in model.named_parameters():
        direction = torch.randn_like(parameter)
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                values.append(float(loss_of(model(x, noise), x)))
                parameter.sub_(sign * step * direction)
        expected = float((gradients[name] * direction).sum())
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=2e-6, abs=1e-6), name


def test_gradient_of_the_input_is_torchs_check() -> None:
    model, x, noise = made(TINY, count=1)
    x = x.clone().requires_grad_()
    model.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda volume: loss_of(model(volume, noise), volume), (x,))


def test_checkpointed_blocks_give_the_same_bits() -> None:
    model, x, noise = made(SMALL, dtype=torch.float32)
    again = VDVAE(dataclasses.replace(SMALL, checkpoint=True))
    again.load_state_dict(model.state_dict())
    stored = [saved_bytes(network, x, noise) for network in (model, again)]
    assert stored[1] < 0.5 * stored[0]
    (loss, gradients), (other, others) = (loss_and_gradients(network, x, noise) for network in (model, again))
    assert torch.equal(loss, other)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)
    assert torch.equal(again.eval()(x, noise).mean, model.eval()(x, noise).mean)


def saved_bytes(model: VDVAE, x: Tensor, noise: list[Tensor]) -> int:
    """What is kept for the backward pass; each storage once, without the weights."""
    own, kept = {p.data_ptr() for p in model.parameters()}, dict[int, int]()

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = loss_of(model(x, noise), x)
    del loss
    return sum(kept.values())


def test_channels_last_changes_nothing_but_rounding() -> None:
    """The same sums in another order: float32 rounds them within 1e-5."""
    model, x, noise = made(SMALL, dtype=torch.float32)
    loss, gradients = loss_and_gradients(model, x, noise)
    last = torch.channels_last_3d
    other, others = loss_and_gradients(
        model.to(memory_format=last), x.to(memory_format=last), [n.to(memory_format=last) for n in noise]
    )
    assert float(other) == pytest.approx(float(loss), rel=1e-5)
    for name, gradient in gradients.items():
        assert float((gradient - others[name]).norm()) <= 1e-4 * float(gradient.norm()), name


def test_half_precision_computes_distributions_in_float32() -> None:
    model, x, noise = made(SMALL, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x, noise)
    assert {value.dtype for value in output} == {torch.float32}
    expected = float(loss_of(model(x, noise), x).detach())
    assert float(loss_of(output, x).detach()) == pytest.approx(expected, rel=0.05)


# Samples and reconstructions


def encoded(model: VDVAE, x: Tensor, noise: list[Tensor]) -> tuple[Output, list[Tensor]]:
    """A pass, and the noise with which each prior draws the latents that it drew: (z - mean) / std, (z) at the top."""
    latents, priors, hooks = [], [], []
    for layer in model.decoder:
        if not layer.has_latent:
            continue
        hooks.append(layer.latent.register_forward_pre_hook(lambda _, inputs: latents.append(inputs[0])))
        if layer.prior is not None:
            hooks.append(layer.prior.register_forward_hook(lambda _, inputs, output: priors.append(output[:2])))
    output = model(x, noise)
    for hook in hooks:
        hook.remove()
    top = (torch.zeros_like(latents[0]), torch.ones_like(latents[0]))
    return output, [(z - mean) / std for z, (mean, std) in zip(latents, (top, *priors), strict=True)]


def test_sampling_the_latents_of_an_encoding_gives_its_reconstruction() -> None:
    model, x, noise = made(SMALL)
    with torch.no_grad():
        output, same = encoded(model, x, noise)
        close(model.sample(same), output, rtol=1e-11, atol=1e-12)
        assert float((model.sample(noise).mean - output.mean).abs().max()) > 1e-3


def test_temperature_scales_the_noise_and_not_the_mean() -> None:
    model, _, noise = made(SMALL)
    with torch.no_grad():
        close(model.sample(noise, 0.5), model.sample([0.5 * value for value in noise]))
        means = model.sample(noise, 0.0)
        close(means, model.sample([torch.zeros_like(value) for value in noise]))
        scaled = [0.0 * value for value in noise]
        assert float((means.mean - model.sample(noise, 1.0).mean).abs().max()) > 1e-3
        # at temperature 0 the means of the priors are left, which are not zero: without them it is another volume
        for layer in model.decoder:
            if layer.prior is not None:
                layer.prior.mean.weight.zero_()
                layer.prior.mean.bias.zero_()
        assert float((means.mean - model.sample(scaled, 0.0).mean).abs().max()) > 1e-3
    assert not model.sample(noise).kl.any()


def test_reconstruction_keeps_the_coarse_latents_and_takes_means_of_the_fine_ones() -> None:
    model, x, noise = made(SMALL)
    with torch.no_grad():
        close(model.reconstruct(x, noise, 8), model(x, noise))
        close(model.reconstruct(x, noise, 99), model(x, noise))
        for side, kept in ((1, 2), (2, 3), (4, 5), (8, 7)):
            output = model.reconstruct(x, noise, side)
            assert bool(output.kl[:, :kept].all()) and not output.kl[:, kept:].any()
            other = [*noise[:kept], *(torch.randn_like(value) for value in noise[kept:])]
            close(model.reconstruct(x, other, side), output)
            changed = [*(torch.randn_like(value) for value in noise[:kept]), *noise[kept:]]
            assert float((model.reconstruct(x, changed, side).mean - output.mean).abs().max()) > 1e-4


def test_noise_is_drawn_where_none_is_given_and_a_generator_repeats_it() -> None:
    model, x, _ = made(SMALL, dtype=torch.float32)
    torch.manual_seed(3)
    first = model(x)
    torch.manual_seed(3)
    close(model(x, draw_noise(SMALL, 2, "cpu")), first)
    assert not torch.equal(model(x).mean, first.mean)
    draws = [draw_noise(SMALL, 2, "cpu", torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)]
    assert [value.shape for value in draws[0]] == [torch.Size(shape) for shape in SMALL.latent_shapes(2)]
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in zip(*draws, strict=True))


# Bounds and lists


def test_deviations_and_means_keep_to_their_bounds() -> None:
    for activation, low in (("tanh", -1.0), ("sigmoid", 0.0)):
        shape = dataclasses.replace(SMALL, output_clamp=(0.2, 0.3), output_activation=activation)
        model, x, noise = made(shape, scale=4)
        with torch.no_grad():
            output = model(x, noise)
        assert 0.2 <= float(output.std.min()) < float(output.std.max()) <= 0.3
        assert low <= float(output.mean.min()) < 0.4 < float(output.mean.max()) <= 1.0
        raw = []
        model.head.register_forward_hook(lambda _, inputs, value, raw=raw: raw.append(value))
        mean = model(x, noise).mean
        torch.testing.assert_close(mean, getattr(torch, activation)(raw[0][:, :1]))


def drawn_shape(seed: int) -> VDVAEShape:
    """Lists of 2 to 5 entries, none like another."""
    draw, levels = random.Random(seed), 1 + seed % 4

    def entries(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(low, high) for _ in range(levels + 1))

    latents = (*entries(0, 2)[:-1], draw.randint(1, 3))
    return VDVAEShape(latents, entries(1, 9), *(entries(1, 6) for _ in range(4)), entries(1, 3), entries(1, 3))


@pytest.mark.parametrize("seed", range(24))
def test_uneven_lists_build_and_run(seed: int) -> None:
    shape = drawn_shape(seed)
    model, x, noise = made(shape, count=1 + seed % 2, seed=seed)
    assert [list(value.shape) for value in noise] == [list(size) for size in shape.latent_shapes(len(x))]
    loss, gradients = loss_and_gradients(model, x, noise)
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients.values())
    assert tuple(sum(p.numel() for p in part.parameters()) for part in model.children()) == settings.parameters(
        {
            "latents_per_channel": shape.latents,
            "channels_per_latent": shape.latent_channels,
            "channels": shape.channels,
            "channels_hidden": shape.hidden,
            "channels_top_down": shape.channels_top_down,
            "channels_hidden_top_down": shape.hidden_top_down,
            "kernel_sizes_bottom_up": shape.kernels,
            "kernel_sizes_top_down": shape.kernels_top_down,
        }
    )
    with torch.no_grad():
        output, same = encoded(model, x, noise)
        assert output.mean.shape == output.std.shape == x.shape
        assert output.kl.shape == (len(x), sum(shape.latents)) and float(output.kl.min()) >= 0
        close(model.sample(same), output, rtol=1e-9, atol=1e-10)
        close(model.reconstruct(x, noise, shape.side), output)


def test_a_level_without_latents_is_its_residual_block() -> None:
    model = VDVAE(dataclasses.replace(SMALL, latents=(1, 0, 0, 1)))
    assert [(layer.level, layer.has_latent) for layer in model.decoder] == [
        (3, True),
        (2, False),
        (1, False),
        (0, True),
    ]
    assert [name for name, _ in model.decoder[1].named_children()] == ["residual"]
    output = model(torch.zeros(1, 1, 8, 8, 8))
    assert output.kl.shape == (1, 2)


def test_volumes_lie_without_gaps() -> None:
    """A volume with gaps takes the slow way through GELU, with other bits, and no faster kernel."""
    model, x, noise = made(SMALL)
    seen: list[bool] = []
    for layer in model.modules():
        if isinstance(layer, vdvae.ResidualBlock):
            layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    model(x, noise)
    assert len(seen) == 2 * len(model.encoder) + len(model.decoder) and all(seen)
