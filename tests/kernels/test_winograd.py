"""Winograd's convolution against `F.conv3d`."""

from __future__ import annotations

import runpy

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from unet.kernels import algorithms, winograd

LAST = torch.channels_last_3d


@pytest.mark.parametrize(("kind", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
@pytest.mark.parametrize("chunk", [2**24, 6 * 8 * 16 * 20])
def test_winograd_is_the_convolution(
    kind: torch.dtype, error: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and both gradients, all tiles at once and one after the other; error of the whole tensor, relative to
    its size: float32 rounds at 1e-7, bfloat16 at 0.4 %, and torch's own loops, on a processor without it, more."""
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 8, 12, 16, 20, generator=generator).to(kind).contiguous(memory_format=LAST).requires_grad_()
    weight = (0.1 * torch.randn(12, 8, 3, 3, 3, generator=generator)).requires_grad_()
    slope = torch.randn(2, 12, 12, 16, 20, generator=generator).to(kind)
    exact = F.conv3d(x.double(), weight.double(), padding=1)
    y = winograd.conv(x, weight)
    assert y.is_contiguous(memory_format=LAST)
    found = (y, *torch.autograd.grad(y, (x, weight), slope))
    expected = (exact, *torch.autograd.grad(exact, (x, weight), slope.double()))
    assert [value.dtype for value in found] == [kind, kind, torch.float32]
    torchs = F.conv3d(x, weight.to(kind), padding=1)
    plain = (torchs, *torch.autograd.grad(torchs, (x, weight), slope))
    for a, b, own in zip(found, expected, plain, strict=True):
        rounded = 0.0 if algorithms.is_native(kind) else float((own.double() - b).norm() / b.norm())
        assert float((a.double() - b).norm() / b.norm()) < error + rounded


@pytest.mark.skipif(
    not algorithms.is_native(torch.bfloat16), reason="torch's own loops, which round otherwise, compute bfloat16 here"
)
def test_winograd_rounds_in_bfloat16_as_the_readme_says() -> None:
    """4.1, 5.1 and 3.9 times torch's own error, the medians of 20 shapes (scripts/compare_bf16.py); these shapes differ
    from the medians by less than 15 %."""
    script = runpy.run_path(str(ROOT / "scripts" / "compare_bf16.py"))
    found = [script["relative_errors"](1, 32, 32, *sides) for sides in ((16, 16, 16), (8, 24, 40))]
    for errors in found:
        for (ours, plain), ratio, size in zip(errors, (4.1, 5.1, 3.9), (0.007, 0.0085, 0.0065), strict=True):
            assert ours == pytest.approx(size, rel=0.15)
            assert ours / plain == pytest.approx(ratio, rel=0.15)
