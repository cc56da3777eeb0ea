"""Which slice comes next: draws by patient and by how much mask a slice holds, from an explicit generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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
