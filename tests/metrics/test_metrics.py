"""Scores against definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from unet.metrics import overlap, statistics, surface
from unet.models.losses import batch_dice_loss
from unet.runtime import evaluation


def blob(seed: int, shape: tuple[int, ...] = (8, 20, 20), share: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


def test_dice_by_sets() -> None:
    a, b = blob(1), blob(2, share=0.3)
    pairs = [set(map(tuple, np.argwhere(mask))) for mask in (a, b)]
    assert overlap.dice(a, b) == 2 * len(pairs[0] & pairs[1]) / (len(pairs[0]) + len(pairs[1]))
    empty = np.zeros_like(a)
    assert (overlap.dice(a, a), overlap.dice(empty, empty), overlap.dice(a, empty), overlap.dice(empty, a)) == (
        1,
        1,
        0,
        0,
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 0.5)])
def test_hausdorff_by_all_pairs_of_surface_voxels(seed: int, spacing: tuple[float, ...] | None) -> None:
    a, b = blob(seed, share=0.02 + 0.1 * seed), blob(seed + 50, share=0.05)

    def surface_of(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inner = np.ones_like(mask)
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inner) * np.array(spacing or (1, 1, 1))

    distances = cdist(surface_of(a), surface_of(b))
    expected = max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))
    assert surface.hausdorff95(a, b, spacing) == pytest.approx(expected)


def test_hausdorff_of_empty_masks() -> None:
    a, empty = blob(1), np.zeros((8, 20, 20), bool)
    assert surface.hausdorff95(empty, empty) == 0
    assert math.isnan(surface.hausdorff95(a, empty))
    assert math.isnan(surface.hausdorff95(empty, a))


def test_volume_error() -> None:
    a = np.zeros((2, 4, 4), bool)
    a[0, :2] = True
    b = np.zeros_like(a)
    b[0] = True
    empty = np.zeros_like(a)
    assert (overlap.volume_error(a, b), overlap.volume_error(b, a), overlap.volume_error(empty, a)) == (-0.5, 1.0, -1.0)
    assert overlap.volume_error(empty, empty) == 0
    assert math.isnan(overlap.volume_error(a, empty))


def test_largest_component_connects_slices_by_faces_only() -> None:
    """Defect of the seed's program: no such step."""
    mask = np.zeros((3, 6, 6), bool)
    mask[0, 0, 0] = mask[1, 0, 0] = mask[2, 0, 0] = True  # three voxels through the slices
    mask[0, 3, 3] = mask[0, 4, 4] = mask[0, 5, 5] = mask[0, 4, 5] = True  # four, but diagonal: at most three connected
    mask[0, 4, 5] = False
    kept = overlap.largest_component(mask)
    assert kept.sum() == 3
    assert kept[:, 0, 0].all()
    empty = np.zeros_like(mask)
    assert not overlap.largest_component(empty).any()


def test_a_bootstrap_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(37).tolist()
    whole = statistics.bootstrap_interval(values, 1000)
    monkeypatch.setattr(statistics, "PIECE", 37 * 7)
    assert statistics.bootstrap_interval(values, 1000) == whole


def test_bootstrap_interval_of_a_known_mean() -> None:
    values = list(np.random.default_rng(0).normal(0.8, 0.1, 400))
    low, high = statistics.bootstrap_interval(values)
    error = 1.96 * 0.1 / 20
    assert low == pytest.approx(np.mean(values) - error, abs=0.002)
    assert high == pytest.approx(np.mean(values) + error, abs=0.002)
    assert math.isnan(statistics.bootstrap_interval([math.nan])[0])


def test_batch_dice_loss_is_over_the_whole_batch() -> None:
    p, t = torch.rand(3, 1, 4, 4), (torch.rand(3, 1, 4, 4) > 0.5).float()
    expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    assert batch_dice_loss(p, t) == expected
    assert batch_dice_loss(p.bfloat16(), t).dtype == torch.float32


def test_cases_are_dealt_by_cost_without_loss() -> None:
    """Rule 7: every case once, loads even; the seed's distributed score was nan."""
    costs = [40, 3, 3, 3, 20, 22, 1, 9]
    for ranks in (1, 2, 3):
        shares = evaluation.balance_by_cost(costs, ranks)
        assert sorted([case for share in shares for case in share]) == list(range(8))
        loads = [sum(costs[index] for index in share) for share in shares]
        assert max(loads) <= max(40, sum(costs) / ranks * 4 / 3)


def test_means_leave_out_what_is_undefined() -> None:
    records = [{"a": 1.0}, {"a": math.nan}, {"a": 2.0}, {"a": 6.0}]
    assert evaluation.mean(records, "a") == 3.0
    assert evaluation.median(records, "a") == 2.0
    assert math.isnan(evaluation.mean([{"a": math.nan}], "a"))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, {}),
        (1, {"mean": 1.0}),
        (9, {"mean": 5.0}),
        (10, {"mean": 5.5, "p90": 10.0}),
        (20, {"mean": 10.5, "p90": 19.0, "p95": 20.0}),
        (100, {"mean": 50.5, "p90": 91.0, "p95": 96.0, "p99": 100.0}),
    ],
)
def test_percentiles_only_of_enough_durations(count: int, expected: dict[str, float]) -> None:
    assert evaluation.latency([float(count - number) for number in range(count)]) == expected
