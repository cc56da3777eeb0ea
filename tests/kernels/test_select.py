"""Networks with swapped layers against the same networks of torch's layers."""

from __future__ import annotations

import copy
import io
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unet.config.flags import DeviceOptions
from unet.devices import cuda, hpu, mlu
from unet.devices.base import Device
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.kernels import conv3d, norms, select, trial, upsample
from unet.kernels.cards import forms
from unet.models.unet import UNet, UNetShape
from unet.models.vdvae import VDVAE, VDVAEShape, draw_noise

SMALL = UNetShape(dims=3, inputs=1, outputs=3, features=(8, 16), bottleneck=16, norm="instance", down="stride")
LAST = torch.channels_last_3d


def device(**settings: object) -> CPU:
    return CPU(DeviceOptions(device="cpu", **settings), Rank())  # type: ignore[arg-type]


# A plain layer, the class it becomes, and sides of its input.
FASTER: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], tuple[int, ...]]] = {
    "usual": (lambda: nn.Conv3d(8, 12, 3, padding=1, bias=False), conv3d.Conv3d, (16, 16, 20)),
    "strided": (lambda: nn.Conv3d(8, 8, 3, stride=2, padding=1, bias=False), conv3d.Conv3d, (8, 9, 10)),
    "groups": (lambda: nn.Conv3d(8, 8, 3, padding=1, bias=False, groups=8), conv3d.Conv3d, (16, 16, 16)),
    "circular": (
        lambda: nn.Conv3d(8, 8, 3, padding=1, bias=False, padding_mode="circular"),
        conv3d.Conv3d,
        (16, 16, 16),
    ),
    "dilated": (lambda: nn.Conv3d(8, 8, 3, padding=1, bias=False, dilation=2), conv3d.Conv3d, (16, 16, 16)),
    "one channel, strided": (
        lambda: nn.Conv3d(1, 8, 3, stride=2, padding=1, bias=False),
        conv3d.UnfoldedConv3d,
        (8, 8, 8),
    ),
    "one channel": (lambda: nn.Conv3d(1, 8, 3, padding=1, bias=False), conv3d.OneChannelConv3d, (8, 8, 8)),
    "bias": (lambda: nn.Conv3d(8, 3, 1), conv3d.Conv3d, (8, 8, 8)),
    "few voxels": (lambda: nn.Conv3d(8, 8, 3, padding=1, bias=False), conv3d.Conv3d, (2, 2, 2)),
    "norm": (lambda: nn.InstanceNorm3d(8, affine=True), norms.InstanceNorm3d, (5, 6, 7)),
    "up": (lambda: nn.ConvTranspose3d(8, 4, 2, stride=2), upsample.ConvTranspose3d, (3, 4, 5)),
    "up, anisotropic": (lambda: nn.ConvTranspose3d(8, 4, (1, 2, 3), (1, 2, 3)), upsample.ConvTranspose3d, (3, 4, 5)),
}


@pytest.mark.parametrize("kernels", ["measured", "plain", "torch"])
@pytest.mark.parametrize(
    ("kernel", "stride", "sides"),
    [
        ((3, 3, 3), (1, 1, 2), (4, 4, 2)),  # wrong in channels-last order where a row of the output is one voxel
        ((3, 3, 3), (1, 1, 3), (2, 5, 3)),
        ((5, 5, 5), (2, 2, 2), (4, 6, 2)),  # so it may be here, by chance
        ((11, 11, 11), (2, 2, 2), (8, 9, 4)),  # the gradient of the weights is wrong in any order
        ((3, 3), (1, 2), (6, 2)),
        ((5, 5), (1, 3), (4, 3)),
    ],
)
def test_one_channel_with_a_stride_is_not_left_to_torch(
    kernel: tuple[int, ...], stride: tuple[int, ...], sides: tuple[int, ...], kernels: str
) -> None:
    """Networks of --width 1 have such layers. torch 2.13 computes them wrongly, or ends the process."""
    torch.manual_seed(0)
    conv = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    exact = conv(1, 4, kernel, stride, tuple(side // 2 for side in kernel)).double()  # type: ignore[arg-type]
    layer = device(kernels=kernels).optimize(nn.Sequential(copy.deepcopy(exact).float()))
    x = torch.randn(2, *sides, 1).movedim(-1, 1)
    found, wanted = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = layer(found), by_windows(exact, wanted)
    slope = torch.randn(y.shape[0], *y.shape[2:], y.shape[1]).movedim(-1, 1)
    trial.poison([exact.weight], torch.float32)
    pairs = zip(
        (y, *torch.autograd.grad(y, [found, *layer.parameters()], slope)),
        (expected, *torch.autograd.grad(expected, [wanted, *exact.parameters()], slope.double())),
        strict=True,
    )
    for a, b in pairs:
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


def by_windows(layer: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution of one channel as its formula says."""
    x = nn.functional.pad(x[:, 0], [pad for side in reversed(layer.kernel_size) for pad in [side // 2] * 2])
    for axis, (side, step) in enumerate(zip(layer.kernel_size, layer.stride, strict=True), 1):
        x = x.unfold(axis, side, step)
    assert layer.bias is not None
    return (x.flatten(layer.weight.ndim - 1) @ layer.weight.flatten(1).T + layer.bias).movedim(-1, 1)


@pytest.mark.parametrize("last", [True, False], ids=["NDHWC", "NCDHW"])
@pytest.mark.parametrize("name", FASTER)
def test_a_swapped_layer_computes_what_the_plain_one_does(name: str, last: bool) -> None:
    """Outputs and all gradients; the output has the order of the input."""
    make, kind, sides = FASTER[name]
    torch.manual_seed(8)
    plain = make()
    fast = select.optimize(copy.deepcopy(plain))
    assert isinstance(fast, kind)
    assert type(plain) is not type(fast)
    order = LAST if last else torch.contiguous_format
    if not last:
        fast = select.optimize(copy.deepcopy(plain), channels_last=False)
    fast = fast.to(memory_format=order)  # type: ignore[call-overload]
    channels = next(iter(plain.parameters())).shape[0 if name.startswith(("norm", "up")) else 1] * getattr(
        plain, "groups", 1
    )
    x = torch.randn(2, channels, *sides)
    y = fast(x.contiguous(memory_format=order).requires_grad_())
    expected = plain(x)
    slope = torch.randn_like(expected)
    assert y.is_contiguous(memory_format=order)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(
        torch.autograd.grad(y, list(fast.parameters()), slope.contiguous(memory_format=order)),
        torch.autograd.grad(expected, list(plain.parameters()), slope),
        strict=True,
    ):
        assert float((a - b).norm() / b.norm()) < 1e-4


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(4, 4, 3, stride=2),
        nn.ConvTranspose3d(4, 4, 2, stride=2, groups=2),
        nn.ConvTranspose3d(4, 4, 2, stride=(1, 2, 2)),
        nn.Conv2d(4, 4, 3),
        nn.BatchNorm3d(4),
    ],
    ids=repr,
)
def test_a_layer_without_a_faster_form_stays(layer: nn.Module) -> None:
    kind = type(layer)
    assert type(select.optimize(nn.Sequential(layer))[0]) is kind  # type: ignore[index]


def test_the_network_keeps_parameters_and_state_dict() -> None:
    network = UNet(SMALL)
    parameters, keys = list(network.parameters()), list(network.state_dict())
    assert select.optimize(network) is network
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert list(network.state_dict()) == keys
    kinds = [type(layer) for layer in network.modules()]
    assert isinstance(network, UNet)
    assert [type(layer) for layer in select.optimize(network).modules()] == kinds
    assert nn.ReLU not in kinds


def test_activations_are_fused_only_where_that_is_the_same() -> None:
    class Mirrored(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(-x)

    def block(norm: nn.Module) -> list[nn.Module]:
        return [norm, nn.ReLU(), nn.Conv3d(4, 4, 1), norm]

    shared = nn.InstanceNorm3d(4, affine=True)
    for plain in (
        nn.Sequential(*block(shared)),
        Mirrored(*block(nn.InstanceNorm3d(4, affine=True))),
        nn.Sequential(nn.InstanceNorm3d(4, affine=True), nn.LeakyReLU(-0.5)),
    ):
        fast = select.optimize(copy.deepcopy(plain)).to(memory_format=LAST)  # type: ignore[call-overload]
        assert [type(layer) for layer in fast][1] is type(plain[1])
        x = torch.randn(1, 4, 4, 5, 6).contiguous(memory_format=LAST)
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_a_swapped_network_can_be_copied_and_pickled(way: str) -> None:
    torch.manual_seed(9)
    network = device().place(UNet(SMALL))
    if way == "copy":
        twin = copy.deepcopy(network)
    else:
        stream = io.BytesIO()
        torch.save(network, stream)
        stream.seek(0)
        twin = torch.load(stream, weights_only=False)
    assert type(twin) is type(network)
    kinds = ([getattr(layer, "plain", type(layer)) for layer in each.modules()] for each in (twin, network))
    assert next(kinds) == next(kinds)
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        network.head.weight.add_(1)  # the twin has its own
        assert not torch.equal(twin(image), network(image))
        twin.load_state_dict(network.state_dict())
        assert torch.equal(twin(image), network(image))


def test_other_devices_keep_the_plain_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the norms of a GPU without Triton, whose volumes are channels-last in half precision."""
    monkeypatch.setattr(forms, "_registered", lambda kind: False)
    assert hpu.HPU.optimize is mlu.MLU.optimize is Device.optimize
    for last, norm in ((True, norms.InstanceNorm3d), (False, nn.InstanceNorm3d)):
        network = UNet(SMALL)
        options = DeviceOptions(device="cuda")
        gpu = types.SimpleNamespace(channels_last=lambda last=last: last, options=options, torch_type=lambda: "cuda")
        assert cuda.CUDA.optimize(gpu, network) is network  # type: ignore[arg-type]
        assert type(network) is UNet
        block = [type(layer) for layer in network.encoders[0]]  # type: ignore[arg-type]
        assert block[:3] == [nn.Conv3d, norm, nn.Identity if last else nn.ReLU]


def test_a_second_backward_pass_says_what_to_do() -> None:
    loss = device().place(UNet(SMALL))(torch.randn(1, 1, 16, 16, 16)).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="--layout NCDHW"):
        loss.backward()


def test_with_layout_ncdhw_a_step_is_the_plain_one_s_to_the_bit() -> None:
    """Also where a volume or its weights have one channel or one voxel, so that strides do not tell the order."""
    torch.manual_seed(0)
    shape = VDVAEShape(*[(1, 1, 1)], *[(1, 4, 8)] * 5, *[(3, 3, 1)] * 2)  # type: ignore[arg-type]
    plain, fast = VDVAE(shape), VDVAE(shape)
    fast.load_state_dict(plain.state_dict())
    place = device(layout="NCDHW")
    place.place(fast)
    x, noise = place.to({"image": torch.randn(2, 1, 4, 4, 4)})["image"], draw_noise(shape, 2, "cpu")
    outputs = [network(x, noise) for network in (plain, fast)]
    assert all(map(torch.equal, *outputs))
    for output in outputs:
        (output.kl.sum() + output.mean.square().sum() + output.std.sum()).backward()
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def gradients_of(state: dict[str, Tensor], image: Tensor, **settings: object) -> list[Tensor]:
    """Logits and all gradients of a step."""
    place = device(**settings)
    network = UNet(SMALL)
    network.load_state_dict(state)
    network = place.place(network)
    with place.autocast():
        logits = network(place.to({"image": image})["image"])
    logits.float().square().mean().backward()
    return [value.detach().double() for value in (logits, *(parameter.grad for parameter in network.parameters()))]  # type: ignore[union-attr]


def test_the_fast_kernels_give_the_same_network() -> None:
    """With a batch of two, against torch's own in the other layout: the same in float32 but for rounding; in bfloat16
    not much farther from float32 than torch's own (measured: 1.5 times)."""
    torch.manual_seed(3)
    state, image = UNet(SMALL).state_dict(), torch.randn(2, 1, 16, 16, 16)
    exact = gradients_of(state, image, layout="NCDHW")

    def error(**settings: object) -> float:
        found = gradients_of(state, image, **settings)
        each = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        return float(np.sqrt(np.mean(np.square(each))))

    assert error(layout="NDHWC") < 1e-5
    stock = error(layout="NCDHW", precision="bf16")
    assert 0.05 < stock < 0.3
    assert error(layout="NDHWC", precision="bf16") < 2.2 * stock


def test_few_voxels_have_a_gradient_in_bfloat16() -> None:
    """torch's own leaves it uninitialised: memory that held large numbers shows."""
    torch.manual_seed(0)
    for _ in range(12):
        conv = conv3d.Conv3d(64, 64, 3, padding=1, bias=False)
        x = torch.randn(1, 64, 2, 2, 2)
        dirt = [torch.full((conv.weight.numel(),), 1e32, dtype=kind) for kind in (torch.bfloat16, torch.float32) * 2]
        del dirt
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = conv(x)
        y.sum().backward()
        assert y.dtype == torch.bfloat16
        assert conv.weight.grad is not None
        assert conv.weight.grad.abs().max() < 1e3
