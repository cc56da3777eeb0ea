"""Which slice or crop comes next: draws from an explicit generator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Window = tuple[tuple[int, int], ...]
Box = Sequence[int]


def generator(*keys: int) -> torch.Generator:
    """A CPU generator that depends on all `keys` (seed, epoch, batch ...), each between 0 and 2^32."""
    mixed = 0x9E3779B97F4A7C15
    for key in keys:
        mixed = (mixed ^ (key + 0x9E3779B97F4A7C15 + (mixed << 6) + (mixed >> 2))) % 2**63
        mixed = mixed * 0xBF58476D1CE4E5B9 % 2**63
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed)


def slice_probabilities(foreground: Sequence[Sequence[int]]) -> Tensor:
    """Probability of each slice of each case (flat, float64): case uniform, then slice with
    p_i = (s_i + 0.1 S / n) / (1.1 S), s_i = mask pixels of slice i, S their sum, n slices; uniform where S = 0.

    Source: sampling of brain-segmentation-pytorch.
    """
    parts = []
    for counts in foreground:
        s = torch.tensor(list(counts), dtype=torch.float64)
        total = s.sum()
        parts.append((s + 0.1 * total / len(s)) / (1.1 * total) if total > 0 else torch.full_like(s, 1 / len(s)))
    return torch.cat(parts) / len(parts)


def draw(probabilities: Tensor, count: int, seed: int, epoch: int) -> Tensor:
    """`count` flat slice indices of an epoch, with replacement: the same on every rank."""
    return torch.multinomial(probabilities, count, replacement=True, generator=generator(seed, epoch))


def below(bound: int, draws: torch.Generator) -> int:
    """A whole number from 0 to bound - 1; 0 where the bound is 0."""
    return int(torch.randint(bound, (), generator=draws)) if bound > 0 else 0


def balanced_window(
    shape: Sequence[int],
    patch: Sequence[int],
    boxes: Mapping[str, Sequence[Box]],
    oversampling: float,
    draws: torch.Generator,
    last_offset: bool = True,
) -> Window:
    """Where to cut a crop of `patch` voxels from a volume of `shape`: half-open (low, high) for each axis.

    With probability `oversampling` about a labelled region: a class drawn of those present, then one of its `boxes`
    [d0, d1, h0, h1, w0, w1] (the two components with the largest boxes). Otherwise, and where nothing is labelled,
    anywhere. Source: balanced crop of the MLPerf Training U-Net3D reference, whose draws never reach the last offset
    (`last_offset` false).
    """
    more = int(last_offset)
    wanted = float(torch.rand((), generator=draws)) < oversampling
    classes = [boxes[name] for name in sorted(boxes) if boxes[name]]
    if not wanted or not classes:
        lows = [below(side - length + more, draws) if side > length else 0 for side, length in _pairs(shape, patch)]
        return tuple((low, low + length) for low, length in zip(lows, patch, strict=True))
    chosen = classes[below(len(classes), draws)]
    box = chosen[below(len(chosen), draws)]
    window = []
    for axis, (side, length) in enumerate(_pairs(shape, patch)):
        start, stop = box[2 * axis], box[2 * axis + 1]
        spare = length - (stop - start)
        if spare >= 0:  # the crop covers the box; what would stick out at a border is added on the other side
            low = min(max(0, start - below(spare + more, draws)), side - length)
        else:
            low = start + below(-spare + more, draws)
        window.append((low, low + length))
    return tuple(window)


def _pairs(shape: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(shape, patch, strict=True))
