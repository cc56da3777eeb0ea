"""Dice and cross-entropy of many classes, with a label to ignore and over several resolutions: against their formula,
finite differences and nnU-Net's numbers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from builders import wave
from conftest import GOLDEN
from torch import Tensor

from unet.errors import DataError, UnetError
from unet.models import dice_ce, label_maps, losses

REFERENCE = json.loads((GOLDEN / "nnunet_reference.json").read_text())
IGNORE = 255


def labels_of(count: int, classes: int, sides: tuple[int, ...], ignore: bool) -> Tensor:
    """The golden file's labels."""
    labels = ((wave((count, 1, *sides), 0.0031, 0.4) + 1.5) / 3 * classes).floor().clamp(0, classes - 1).to(torch.uint8)
    if ignore:
        labels[:, :, 1:3, :, 2:5] = IGNORE
    return labels


def drawn(classes: int, ignore: bool, kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits and labels; the second sample lacks the last class."""
    generator = torch.Generator().manual_seed(classes)
    logits = 2 * torch.randn(2, classes, 3, 4, 5, generator=generator, dtype=kind)
    labels = torch.randint(0, classes, (2, 1, 3, 4, 5), generator=generator).to(torch.uint8)
    labels[1][labels[1] == classes - 1] = 0
    if ignore:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("case", REFERENCE["losses"], ids=lambda case: "-".join(str(case[k]) for k in list(case)[:4]))
def test_nnunet_loss_is_nnunets(case: dict[str, Any]) -> None:
    sides = tuple(case["sides"])
    logits = (3 * wave((2, case["classes"], *sides), 0.37, 0.2)).requires_grad_()
    labels = labels_of(2, case["classes"], sides, case["ignore"])
    how = {"batch_dice": case["batch_dice"], "ignore": IGNORE if case["ignore"] else None}
    loss = losses.nnunet_loss(logits, labels, case["background"], 50, **how)
    (slope,) = torch.autograd.grad(loss, logits)
    assert float(loss.detach()) == pytest.approx(case["value"], rel=1e-5, abs=1e-6)
    assert float(slope.double().abs().sum()) == pytest.approx(case["gradient_absolute_sum"], rel=1e-4)
    assert slope.flatten()[:4].tolist() == pytest.approx(case["gradient_first"], rel=1e-3, abs=1e-8)
    assert slope.flatten()[-4:].tolist() == pytest.approx(case["gradient_last"], rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize("ignore", [None, IGNORE])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_value_and_gradient_are_those_of_the_formula(
    classes: int, ignore: int | None, batch_dice: bool, background: bool
) -> None:
    logits, labels = drawn(classes, ignore is not None)
    how: dict[str, Any] = {"batch_dice": batch_dice, "ignore": ignore, "smooth": 1e-5}
    loss = losses.dice_ce_loss(logits, labels, background, 7, **how)
    expected = losses.plain_dice_ce(logits, labels, background, **how)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (found,), (slope,) = (torch.autograd.grad(2 * value, logits) for value in (loss, expected))
    torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-14)
    if ignore is not None:
        assert not found.movedim(1, -1)[labels[:, 0] == IGNORE].any()
        other = logits.detach() + 9 * (labels == IGNORE)
        other[:, 0] += 5 * (labels[:, 0] == IGNORE)
        assert torch.equal(losses.dice_ce_loss(other, labels, background, 7, **how), loss)


@pytest.mark.parametrize("smooth", [1e-6, 0.0])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_gradient_is_that_of_finite_differences(batch_dice: bool, smooth: float) -> None:
    logits, labels = drawn(3, ignore=True)

    def loss(values: Tensor) -> Tensor:
        return losses.dice_ce_loss(values, labels, True, 11, batch_dice=batch_dice, ignore=IGNORE, smooth=smooth)

    assert torch.autograd.gradcheck(loss, (logits,), eps=1e-6, atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_sample_of_which_nothing_counts(batch_dice: bool) -> None:
    """It adds nothing to the cross-entropy; alone, its dice is 1 and its loss 0."""
    logits, labels = drawn(3, ignore=False)
    labels[0] = IGNORE
    loss = losses.dice_ce_loss(logits, labels, batch_dice=batch_dice, ignore=IGNORE)
    (slope,) = torch.autograd.grad(loss, logits)
    assert not slope[0].any()
    alone = losses.dice_ce_loss(logits[1:], labels[1:], ignore=IGNORE)
    cross_entropy = torch.nn.functional.cross_entropy(logits[1:], labels[1:, 0].long())
    assert float((loss - alone).detach()) == pytest.approx(
        0 if batch_dice else float((cross_entropy / 2 - alone).detach() / 2), abs=1e-9
    )
    labels[1] = IGNORE
    logits.grad = None
    loss = losses.dice_ce_loss(logits, labels, batch_dice=batch_dice, ignore=IGNORE)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


def test_without_smoothing_a_class_in_neither_is_no_division_by_zero() -> None:
    """Of a class that is nowhere, with a probability of exactly 0, dice is 0 / 1e-8."""
    logits = torch.tensor([[5.0, 4.0, -300.0]]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2).clone().requires_grad_()
    labels = torch.zeros(1, 1, 2, 2, 2, dtype=torch.uint8)
    loss = losses.dice_ce_loss(logits, labels, smooth=0.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(losses.plain_dice_ce(logits, labels, smooth=0.0).detach()))
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_with_many_classes_a_chunk_has_fewer_voxels() -> None:
    """So that its memory is that of three classes."""
    for classes, voxels in ((2, 30), (3, 30), (10, 9), (90, 1)):
        parts = list(dice_ce.chunks(torch.zeros(1, classes, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4), 30))
        assert max(z.shape[1] for _, _, z, _, _ in parts) == voxels
        assert sum(z.shape[1] for _, _, z, _, _ in parts) == 64


def test_deep_supervision_is_nnunets() -> None:
    """Its lowest output, of weight 0, is not given."""
    case = REFERENCE["deep_supervision"]
    labels = labels_of(2, 3, tuple(case["sides"][0]), ignore=True)
    outputs = [3 * wave((2, 3, *sides), 0.37, 0.2 + level) for level, sides in enumerate(case["sides"][:-1])]
    for sides, first, counts in zip(case["sides"], case["first"], case["targets"], strict=True):
        target = losses.down_sampled(labels, sides)
        assert target.dtype == torch.uint8
        assert target.flatten()[:24].tolist() == first
        assert torch.bincount(target.flatten(), minlength=3)[:3].tolist() == counts

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return losses.nnunet_loss(logits, target, batch_dice=True, ignore=IGNORE)

    assert float(losses.deep_supervision_loss(outputs, labels, loss)) == pytest.approx(case["value"], rel=1e-5)
    values = [torch.full((1, 1, 1, 1, 1), 10.0**level) for level in range(3)]
    found = losses.deep_supervision_loss(values, labels[:1, :, :1, :1, :1], lambda logits, _: logits.sum())
    assert float(found) == pytest.approx(sum(w * 10**level for level, w in enumerate(case["weights"][:-1])))


def test_labels_at_a_lower_resolution_are_the_nearest_voxels() -> None:
    labels = torch.arange(2 * 4 * 6 * 9).view(2, 1, 4, 6, 9)
    for sides in ((4, 6, 9), (4, 3, 3), (2, 1, 9), (1, 2, 1)):
        expected = torch.nn.functional.interpolate(labels.double(), sides, mode="nearest-exact").long()
        assert torch.equal(losses.down_sampled(labels, sides), expected)
    with pytest.raises(UnetError, match="4 x 6 x 9 are no multiple of an output of 3 x 6 x 9"):
        losses.down_sampled(labels, (3, 6, 9))


@pytest.mark.parametrize("classes", [8, 9, 100])
def test_dice_by_class_with_an_ignore_label(classes: int) -> None:
    """Up to 8 classes by a product of matrices, above by the number of the pair."""
    generator = torch.Generator().manual_seed(classes)
    prediction, target = torch.randint(0, classes, (2, 9, 10, 11), generator=generator).to(torch.uint8)
    ignored = torch.rand(target.shape, generator=generator) < 0.2
    target[ignored] = IGNORE
    scores = label_maps.dice_by_class(prediction, target, classes, 100, IGNORE)
    assert scores == label_maps.dice_by_class(prediction, target, classes, ignore=IGNORE)
    for number in range(classes):
        p, t = (prediction == number) & ~ignored, target == number
        both = 2 * int((p & t).sum())
        assert scores[number] == pytest.approx((both + 1e-6) / (int(p.sum()) + int(t.sum()) + 1e-6))
    with pytest.raises(DataError, match="goes up to 255"):
        label_maps.dice_by_class(prediction, target, classes)
    prediction[0, 0, 0], target[0, 0, 0] = classes, 0
    with pytest.raises(DataError, match=f"above {classes - 1} .it goes up to {classes}"):
        label_maps.dice_by_class(prediction, target, classes, ignore=IGNORE)


@pytest.mark.parametrize("classes", [3, 20])
def test_the_loss_of_a_case_with_an_ignore_label(classes: int) -> None:
    logits, labels = drawn(classes, ignore=True, kind=torch.float32)
    for background in (False, True):
        found = label_maps.dice_ce_of(logits[0].detach(), labels[0, 0], background, 25, IGNORE, 1e-5)
        expected = losses.plain_dice_ce(logits[:1], labels[:1], background, ignore=IGNORE, smooth=1e-5)
        assert found == pytest.approx(float(expected.detach()), rel=1e-5)
