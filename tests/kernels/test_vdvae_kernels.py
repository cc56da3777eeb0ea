"""The faster layers that the VDVAE uses, against their plain forms: values and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unet.kernels import conv3d, gaussian_kl, select
from unet.models.gaussians import GaussianKL

LAST = torch.channels_last_3d


def step(layer: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """Output and the gradients of inputs and weights."""
    given = [each.clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    layer.zero_grad()
    output = layer(*given)
    (output * torch.arange(1, output.numel() + 1).view_as(output)).sum().backward()
    return [output.detach(), *(each.grad for each in (*given, *layer.parameters()) if each.grad is not None)]


def test_the_divergence_with_written_gradients() -> None:
    torch.manual_seed(0)
    shape = (2, 3, 4, 4, 4)
    values = [torch.randn(shape), torch.rand(shape) + 0.01, torch.randn(shape), torch.rand(shape) + 0.01]
    inputs = [value.double().contiguous(memory_format=LAST) for value in values]
    plain, fast = GaussianKL(), GaussianKL()
    select.optimize(fast)
    assert isinstance(fast, gaussian_kl.Fused) and isinstance(fast, GaussianKL)
    for a, b in zip(step(plain, *inputs), step(fast, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-9)
    firsts = [value.contiguous() for value in inputs]  # another order: the plain form, to the bit
    assert all(map(torch.equal, step(plain, *firsts), step(fast, *firsts)))


@pytest.mark.parametrize("voxels", [1, 4])
def test_a_pointwise_convolution_as_a_product(voxels: int) -> None:
    torch.manual_seed(0)
    plain, fast = (nn.Conv3d(8, 12, 1).double().to(memory_format=LAST) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    select.optimize(fast)
    assert type(fast) is conv3d.PointwiseConv3d
    x = torch.randn(2, 8, voxels, voxels, voxels).double().contiguous(memory_format=LAST)
    for a, b in zip(step(plain, x), step(fast, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    assert fast(x).is_contiguous(memory_format=LAST)


def test_few_channels_stay_torch_s() -> None:
    assert conv3d.faster(nn.Conv3d(32, 3, 1)) is conv3d.Conv3d
