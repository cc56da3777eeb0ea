"""The very deep VAE against the reference program's numbers, and what these numbers would catch."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, ROOT
from torch import Tensor, nn
from torch.nn import functional as F

from unet.models import gaussians, vdvae
from unet.models.vdvae import VDVAE

sys.path.append(str(ROOT / "scripts"))
import brains_golden
import compare_brains

FILE = GOLDEN / "vdvae_reference.json"
RECORDS = brains_golden.read(FILE)
COUNTS = json.loads((GOLDEN / "vdvae_counts.json").read_text())
TINY = RECORDS["tiny8"]
PASS = {
    *("parameters", "names of parameters", "noise_shapes", "parameter_sha256", "input_sha256", "laterals", "features"),
    *("x_mean", "x_std", "log_likelihood", "kl_by_latent_from_the_top", "mse", "l2_term", "loss"),
    *("elbo_bits_per_dimension_higher_is_better", "log_likelihood_bits_per_dimension"),
    *("gradient_norm_by_part", "gradient_norm", "sample_temperature_1"),
    *("sample_reference_way_0.5_scales_the_whole_latent", "sample_right_way_0.5_scales_the_noise"),
}
MORE = {"progressive_x_mean", "arrays: weights, input, noise", "arrays: outputs"} | {
    f"training_clip_{clip} {what}" for clip in ("100", "1e+09") for what in ("losses", "norms", "sums")
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for more: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def outside(table: compare_brains.Comparison) -> list[compare_brains.Row]:
    return [row for row in table.rows.values() if not row.within]


@DTYPES
def test_the_small_network_is_the_references(dtype: torch.dtype) -> None:
    """Every section at 1e-10 (sums of a tensor's elements 1e-9), in float32 the loss at 1e-5 and all else at 1e-4;
    whole outputs, which the file rounds to float32, at 1e-6."""
    table = compare_brains.compare(TINY, dtype, np.load(GOLDEN / "vdvae_tiny8.npz"))
    assert not outside(table)
    fp32 = {"fp32_loss", "training_clip_100 fp32_losses", "training_clip_1e+09 fp32_losses"}
    assert set(table.rows) == PASS | MORE | (fp32 if dtype == torch.float32 else set())
    assert table.rows["gradient_norm"].values == 260 and table.floored == 0


@pytest.mark.slow
@DTYPES
def test_the_published_network_at_32_is_the_references(dtype: torch.dtype) -> None:
    table = compare_brains.compare(RECORDS["published32"], dtype)
    assert not outside(table)
    assert set(table.rows) == PASS | ({"fp32_loss"} if dtype == torch.float32 else set())
    assert table.rows["gradient_norm"].values == 652


@pytest.mark.parametrize("side", ["32", "64", "128"])
def test_parameters_by_block_are_the_published_ones(side: str) -> None:
    counts, k = COUNTS[side], int(side).bit_length() - 1
    rising, kernels = tuple(20 * (level + 1) for level in range(k + 1)), (*(3,) * (k - 1), 2, 1)
    latents, widths = (2, *range(k, 0, -1)), (*(20,) * k, 200)
    with torch.device("meta"):
        model = VDVAE(vdvae.VDVAEShape(latents, widths, rising, rising, rising, rising, kernels, kernels))
    assert model.shape.depth == counts["depth_for_scaling"]

    def size(*parts: nn.Module | None) -> int:
        return sum(p.numel() for part in parts if part is not None for p in part.parameters())

    blocks = [[size(first), size(second)] for first, second in model.encoder]
    assert blocks == counts["encoder_blocks_by_level_fine_to_coarse"]
    assert len(model.decoder) == sum(latents) == len(counts["decoder_from_the_top"])
    for layer, latent, expected in zip(
        model.decoder, model.shape.latent_shapes(1), counts["decoder_from_the_top"], strict=True
    ):
        found = size(layer.prior, layer.posterior, layer.latent, layer.skip)
        assert (found, size(layer.residual)) == (expected["latent_block"], expected["residual_block"])
        assert latent[1:3] == (expected["latent_channels"], expected["resolution"])
        assert layer.residual.conv3.out_channels == expected["channels"]
    assert (size(model.head), size(model)) == (counts["head"], counts["total"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"latent_feature_maps_per_resolution": [3, 3, 1, 1]}, (9276, 32116, 10)),
        ({"latent_feature_maps_per_resolution": [0, 2, 1, 1]}, (9276, 18346, 10)),
        ({"latent_feature_maps_per_resolution": [2, 2, 1, 2]}, (9276, 24946, 10)),
        ({"channels_per_latent": [30, 30, 30, 30]}, (9276, 23558, 10)),
        ({"channels_top_down": [5, 7, 9, 10]}, (9276, 23279, 12)),
        ({"channels_hidden": [3, 3, 3, 3]}, (2889, 23086, 10)),
        ({"channels_hidden_top_down": [3, 5, 7, 9]}, (9276, 16117, 10)),
        ({"kernel_sizes_top_down": [3, 3, 3, 3]}, (9276, 40782, 10)),
    ],
    ids=str,
)
def test_parameters_of_uneven_lists_are_the_references(change: dict[str, Any], expected: tuple[int, ...]) -> None:
    model = VDVAE(brains_golden.shape_of({**TINY["configuration"], **change}))
    assert tuple(sum(p.numel() for p in part.parameters()) for part in model.children()) == expected


# Each change is one that an implementation from a description may make. The second number is the relative change of the
# loss, as measured once: the comparison's 1e-5 (float32) and 1e-10 (float64) lie far below all of them.
Change = Callable[[pytest.MonkeyPatch, VDVAE], None]
CHANGES: dict[str, tuple[Change, float]] = {}


def change(size: float) -> Callable[[Change], Change]:
    def keep(work: Change) -> Change:
        CHANGES[work.__name__] = (work, size)
        return work

    return keep


@change(5e-2)
def posterior_sees_the_stream_first(_: pytest.MonkeyPatch, model: VDVAE) -> None:
    for layer in model.decoder[1:]:
        lateral = model.shape.channels[layer.level]

        def swap(_: nn.Module, inputs: tuple[Tensor], lateral: int = lateral) -> Tensor:
            return torch.cat((inputs[0][:, lateral:], inputs[0][:, :lateral]), 1)

        layer.posterior.register_forward_pre_hook(swap)


@change(5e-3)
def kernel_2_is_padded_on_the_high_side(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, sides: pad(x, sides[::-1]))


@change(3e2)
def finest_blocks_have_a_skip(_: pytest.MonkeyPatch, model: VDVAE) -> None:
    for layer in model.decoder:
        layer.residual.residual = True


@change(1e-4)
def gelu_is_the_approximate_one(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x: gelu(x, approximate="tanh"))


@change(1.2)
def head_has_no_gelu(monkeypatch: pytest.MonkeyPatch, model: VDVAE) -> None:
    own = vdvae.apply
    monkeypatch.setattr(vdvae, "apply", lambda conv, x: conv(x) if conv is model.head else own(conv, x))


@change(8e-2)
def projections_see_the_stream_after_gelu(_: pytest.MonkeyPatch, model: VDVAE) -> None:
    for part in model.modules():
        skip = getattr(part, "skip", None)
        if isinstance(skip, nn.Module) and not isinstance(part, vdvae.GaussianNet):
            skip.register_forward_pre_hook(lambda _, inputs: F.gelu(inputs[0]))


@change(1e-2)
def prior_adds_its_features_before_gelu(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    def forward(self: vdvae.GaussianNet, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for conv in (self.conv0, self.conv1, self.conv2):
            x = vdvae.apply(conv, x)
        return self.mean(F.gelu(x)), vdvae.bounded(self.scale(F.gelu(x)), self.bounds), x

    monkeypatch.setattr(vdvae.GaussianNet, "forward", forward)


@change(3e-4)
def latents_deviations_begin_at_0(_: pytest.MonkeyPatch, model: VDVAE) -> None:
    for part in model.modules():
        if isinstance(part, vdvae.GaussianNet):
            part.bounds = (0.0, 1.0)


@change(2e-2)
def voxels_deviations_begin_at_a_thousandth(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    own = vdvae.bounded
    monkeypatch.setattr(
        vdvae, "bounded", lambda raw, bounds: own(raw, (0.001, 1.0) if bounds == (0.01, 1.0) else bounds)
    )


@change(7e-3)
def odd_voxels_go_down(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    use_downsampling(monkeypatch, lambda x: x[:, :, 1::2, 1::2, 1::2])


@change(0)
def means_of_eight_voxels_go_down(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    use_downsampling(monkeypatch, lambda x: F.avg_pool3d(x, 2))


def use_downsampling(monkeypatch: pytest.MonkeyPatch, halve: Callable[[Tensor], Tensor]) -> None:
    def encode(self: VDVAE, x: Tensor) -> list[Tensor]:
        laterals = []
        for level, (first, second) in enumerate(self.encoder):
            x = second(first(halve(x) if level else x))
            laterals.append(x)
        return laterals

    monkeypatch.setattr(VDVAE, "encode", encode)


@change(0)
def stream_goes_up_trilinear(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    own = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, scale_factor, mode: own(x, scale_factor=2, mode="trilinear"))


@change(0)
def kl_goes_the_other_way(monkeypatch: pytest.MonkeyPatch, _: VDVAE) -> None:
    own = gaussians.kl
    monkeypatch.setattr(gaussians, "kl", lambda a, b, c, d: own(c, d, a, b))


@pytest.mark.parametrize("name", CHANGES)
def test_a_wrong_network_has_another_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, size = CHANGES[name]
    drawn = brains_golden.draw(TINY, torch.float64)
    work(monkeypatch, drawn.model)
    with torch.no_grad():
        loss = float(brains_golden.loss_terms(drawn).loss)
    found = abs(loss / TINY["loss"] - 1)
    assert found > 1e-5
    if size:
        assert found == pytest.approx(size, rel=0.5)


def test_the_tolerance_lies_below_all_of_these() -> None:
    for tolerance in compare_brains.TOLERANCES.values():
        assert tolerance.loss <= 1e-5 < min(size for _, size in CHANGES.values() if size)
