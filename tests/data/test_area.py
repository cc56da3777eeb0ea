"""Volumes by area and between centres: torch's numbers, whatever the sizes and the order in memory."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from unet.data.preprocessing import area

SIZES = [
    ((40, 37, 21), (16, 16, 16)),
    ((5, 7, 3), (8, 8, 8)),
    ((16, 16, 16), (16, 16, 16)),
    ((1, 33, 2), (4, 4, 4)),
    ((9, 30, 17), (16, 7, 1)),
]


def test_areas_are_those_of_torch() -> None:
    for size, target in SIZES:
        array = np.random.default_rng(1).normal(size=size)
        wanted = F.adaptive_avg_pool3d(torch.from_numpy(array)[None], target)[0].numpy()
        found = area.area(array, target)
        assert found.dtype == np.float64 and np.abs(found - wanted).max() < 1e-14, (size, target)


def test_the_order_in_memory_and_blocks_change_no_bit(monkeypatch) -> None:
    array = np.random.default_rng(2).normal(size=(19, 23, 31)).astype(np.float32)
    wanted = area.area(array, (8, 8, 8))
    other = np.asfortranarray(array[::-1])[::-1]
    assert np.array_equal(area.area(other, (8, 8, 8)), wanted)
    monkeypatch.setattr(area, "SLAB", 1500)
    assert np.array_equal(area.area(array, (8, 8, 8)), wanted)


def test_linear_is_that_of_torch() -> None:
    """Of its double precision; 2e-6: these are single, of a normal distribution."""
    for target, size in SIZES:
        array = np.random.default_rng(3).normal(size=size).astype(np.float32)
        before = array.copy()
        exact = torch.from_numpy(array.astype(np.float64))[None, None]
        wanted = F.interpolate(exact, size=target, mode="trilinear", align_corners=False)
        found = area.linear(array, target)
        assert found.dtype == np.float32 and np.abs(found - wanted[0, 0].numpy()).max() < 2e-6, (size, target)
        assert np.array_equal(array, before) and not np.shares_memory(found, array)
