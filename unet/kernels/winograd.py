"""3 x 3 x 3 convolution with half of the multiplications: Winograd's F(4, 3) along the depth, 2D convolutions for the
other axes. CPU only, where multiplications may be what takes the time; volumes are channels-last. The plain form is
`F.conv3d` with padding 1.

Four outputs along an axis, y = A^T [(G w) * (B^T x)], take 6 products of transformed inputs and weights instead of 12
(Lavin and Gray, CVPR 2016). The points of evaluation are 0, +-a, +-b with a = sqrt(2) and b = sqrt(1/2), and infinity.
float32 stays exact to 1e-6. In bfloat16 the result is off by 0.7 % of its size, the input's gradient by 0.85 %, the
weights' by 0.65 % (torch's own: 0.17 % each; with the usual points 0, +-1, +-2: 1 %): 4.1, 5.1 and 3.9 times torch's,
measured by scripts/compare_bf16.py. The backward pass is the transposed computation, with the same saving.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

OUT, PARTS = 4, 6  # outputs of a tile, and its components; it reads as many inputs
A, B = 2**0.5, 0.5**0.5
WEIGHT = torch.tensor(
    [[1, 0, 0], *([1 / 6, p / 6, 2 / 6] for p in (A, -A)), *([-2 / 3, -2 * p / 3, -1 / 3] for p in (B, -B)), [0, 0, 1]]
)  # G
BIAS = 0.2, 0.2, 0.2, 0.2 + A / 2, 0.2 - A / 2, 0.5  # the components that give 1 in all four outputs
CHUNK = 2**23  # elements of transformed input that are held at once
LEAST = 16**3  # voxels of a volume, from which on the transform of the weights may be worth it

Rows = tuple[Tensor, ...]


def conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution with padding 1 and stride 1 of `x` (N, I, D, H, W), channels-last and with a depth that is a
    multiple of 4, with `weight` (O, I, 3, 3, 3), in the type of `x`; the gradients of weight and bias are in their own
    types."""
    y: Tensor = _Conv.apply(x, weight, bias)
    return y


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return forward(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        need_x, need_w, need_b = ctx.needs_input_grad
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        dx, dw = backward(grad, x, weight, (need_x, need_w))
        return dx, dw, grad.sum((0, 2, 3, 4), dtype=weight.dtype) if need_b else None


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv` without gradients."""
    u = transformed_weight(weight, x.dtype)
    shares: list[Any] = [None if bias is None else (share * bias).to(x.dtype) for share in BIAS]
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", enabled=False):
        for source, target in zip(tiles(x), tiles(y), strict=True):
            for first, last in chunks(x):
                v = images(of_input(source, first, last), x)
                products = [F.conv2d(v[j], u[j], shares[j], 1, 1) for j in range(PARTS)]
                to_output(rows(products), target[first:last].unbind(1))
    return y


def backward(grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `x` and of the weight by that of the output, channels-last; None for one that is not needed."""
    need_x, need_w = needed
    u = transformed_weight(weight, x.dtype)
    du = torch.zeros_like(u, dtype=torch.float32)
    dx = torch.empty_like(x) if need_x else x  # x: for its sizes alone
    with torch.autocast("cpu", enabled=False):
        for source, slope, target in zip(tiles(x), tiles(grad), tiles(dx), strict=True):
            below = torch.zeros_like(source[0, 0])
            for first, last in chunks(x):
                # the input is transformed for the weights' gradient alone
                v = images(of_input(source, first, last), x) if need_w else None
                g = images(of_gradient(slope[first:last].unbind(1)), grad)
                pairs = [gradients(g[j], g if v is None else v[j], u[j], needed) for j in range(PARTS)]
                if need_x:
                    below = to_input(rows([dv for dv, _ in pairs]), target, first, last, below)
                if need_w:
                    for j, (_, dw) in enumerate(pairs):
                        du[j] += dw
    return dx if need_x else None, weight_gradient(du, weight) if need_w else None


def gradients(g: Tensor, v: Tensor, u: Tensor, needed: tuple[bool, bool]) -> tuple[Tensor, Tensor]:
    """Of the 2D convolution of `v` (N, I, H, W) with `u` (O, I, 3, 3): gradients of both."""
    ones, zeros = [1, 1], [0, 0]
    if not needed[1]:
        shape = (g.shape[0], u.shape[1], *g.shape[2:])
        v = torch.empty(shape, dtype=g.dtype, memory_format=torch.channels_last)  # read by nothing
    dv, du, _ = torch.ops.aten.convolution_backward(g, v, u, None, ones, ones, ones, False, zeros, 1, [*needed, False])
    return dv, du


def tiles(x: Tensor) -> Tensor:
    """(N, C, D, H, W) with the channel last -> view (N, tiles, 4, H W C)."""
    return x.permute(0, 2, 3, 4, 1).flatten(2).unflatten(1, (-1, OUT))


def rows(parts: list[Tensor]) -> Rows:
    """Each (tiles, C, H, W) with the channel last -> view (tiles, H W C)."""
    return tuple(part.permute(0, 2, 3, 1).flatten(1) for part in parts)


def images(parts: Tensor, x: Tensor) -> Tensor:
    """(6, tiles, H W C) -> view (6, tiles, C, H, W) with the sides of `x`."""
    channels, _, height, width = x.shape[1:]
    return parts.view(PARTS, -1, height, width, channels).permute(0, 1, 4, 2, 3)


def chunks(x: Tensor) -> list[tuple[int, int]]:
    """Ranges of tiles, of about equal length, that are worked on at once."""
    count = x.shape[2] // OUT
    most = max(1, CHUNK // (PARTS * x.shape[1] * x.shape[3] * x.shape[4]))
    step = -(-count // -(-count // most))
    return [(first, min(count, first + step)) for first in range(0, count, step)]


def transformed_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """G: (O, I, 3, 3, 3) -> (6, O, I, 3, 3), each with the channel last."""
    o, i = weight.shape[:2]
    u = WEIGHT @ weight.permute(2, 0, 3, 4, 1).reshape(3, -1).float()
    return u.to(dtype).view(PARTS, o, 3, 3, i).permute(0, 1, 4, 2, 3)


def weight_gradient(du: Tensor, weight: Tensor) -> Tensor:
    """G^T: (6, O, I, 3, 3) -> (O, I, 3, 3, 3), laid out as the weight is."""
    o, i = weight.shape[:2]
    dw = WEIGHT.T @ du.permute(0, 1, 3, 4, 2).reshape(PARTS, -1)
    return torch.empty_like(weight).copy_(dw.view(3, o, 3, 3, i).permute(1, 4, 0, 2, 3))


def of_input(source: Tensor, first: int, last: int) -> Tensor:
    """B^T: tiles (T, 4, K) -> components of some of them (6, tiles, K), from their four rows, the one before and the
    one after; zero outside the volume."""
    r0, r1, r2, r3 = source[first:last].unbind(1)
    v = torch.empty((PARTS, *r0.shape), dtype=r0.dtype)
    lead = 1 if first == 0 else 0
    torch.sub(r3, r1, alpha=2.5, out=v[0])
    v[0, lead:] += source[first - 1 + lead : last - 1, 3]
    after = source[first + 1 : last + 1, 0]
    torch.sub(r0, r2, alpha=2.5, out=v[5])
    v[5, : len(after)] += after
    for plus, factor, point in ((1, 0.5, A), (3, 2.0, B)):
        even, odd = torch.sub(r3, r1, alpha=factor), torch.sub(r2, r0, alpha=factor)
        torch.add(even, odd, alpha=point, out=v[plus])
        torch.sub(even, odd, alpha=point, out=v[plus + 1])
    return v


def to_output(parts: Rows, target: Rows) -> None:
    """A^T: six components (tiles, K), which are overwritten -> four rows of the output (tiles, K)."""
    y0, y1, y2, y3 = target
    sum_a, sum_b, a, b = pairs(parts)
    torch.add(sum_a, sum_b, out=y0).add_(parts[0])
    torch.add(b, a, alpha=2, out=y1).mul_(B)  # A = 2 B
    torch.add(parts[5], a, alpha=2 * A, out=y3).add_(b, alpha=B / 2)
    torch.add(sum_b.mul_(0.5), sum_a, alpha=2, out=y2)


def of_gradient(source: Rows) -> Tensor:
    """A: rows of the output's gradient, four of (tiles, K) -> components (6, tiles, K)."""
    g0, g1, g2, g3 = source
    g = torch.empty((PARTS, *g0.shape), dtype=g0.dtype)
    g[0], g[5] = g0, g3
    for plus, factor, point in ((1, 2.0, A), (3, 0.5, B)):
        even, odd = torch.add(g0, g2, alpha=factor), torch.add(g1, g3, alpha=factor)
        torch.add(even, odd, alpha=point, out=g[plus])
        torch.sub(even, odd, alpha=point, out=g[plus + 1])
    return g


def to_input(parts: Rows, target: Tensor, first: int, last: int, below: Tensor) -> Tensor:
    """B: six components (tiles, K), which get overwritten -> gradients of the tiles' own rows, of the row before
    them (added to what is there), and of the row after, which is returned, and is `below` for the next tiles."""
    r0, r1, r2, r3 = target[first:last].unbind(1)
    sum_a, sum_b, a, b = pairs(parts)
    start, end = parts[0], parts[5]
    torch.sub(end, a, alpha=A / 2, out=r0).sub_(b, alpha=2 * B)
    r0[0] += below
    r0[1:] += end[:-1]
    torch.mul(start, -2.5, out=r1).sub_(sum_a, alpha=0.5).sub_(sum_b, alpha=2)
    torch.mul(end, -2.5, out=r2).add_(a, alpha=A).add_(b, alpha=B)
    torch.add(sum_a, sum_b, out=r3).add_(start)
    r3[:-1] += start[1:]
    if first:
        target[first - 1, 3] += start[0]
    return end[-1]


def pairs(parts: Rows) -> Rows:
    """Sums and differences of the components at a and -a, and at b and -b; the differences take the place of two."""
    sum_a, sum_b = parts[1] + parts[2], parts[3] + parts[4]
    return sum_a, sum_b, parts[1].sub_(parts[2]), parts[3].sub_(parts[4])
