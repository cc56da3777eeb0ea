"""Dice and cross-entropy as an operator: what torch asks of one, and that compilers keep it whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unet.models import dice_ce, losses

IGNORE = 255


def drawn(classes: int, kind: torch.dtype, ignore: int | None) -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 3, 4, 5, generator=generator).to(kind)
    labels = torch.randint(0, classes, (2, 1, 3, 4, 5), generator=generator).to(torch.uint8)
    if ignore is not None:
        labels[torch.rand(labels.shape, generator=generator) < 0.3] = ignore
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("ignore", [None, IGNORE])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_the_operators_are_good_citizens(batch_dice: bool, ignore: int | None, order: torch.memory_format) -> None:
    """Their forms without content, their gradients, and what compilers ask of them."""
    logits, labels = drawn(3, torch.float32, ignore)
    logits = logits.detach().contiguous(memory_format=order).requires_grad_()
    torch.library.opcheck(dice_ce.operator, (logits, labels, True, 20, batch_dice, ignore, 1e-5))
    logits = logits.detach()
    _, *kept = dice_ce.operator(logits, labels, True, 20, batch_dice, ignore, 1e-5)
    torch.library.opcheck(dice_ce.sums_over_voxels, (logits, labels, 20, batch_dice, ignore))
    torch.library.opcheck(dice_ce.operator_backward, (torch.tensor(2.0), logits, labels, *kept, 20, batch_dice, ignore))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ignore", [None, IGNORE])
def test_a_compiler_keeps_it_whole_with_the_same_bits(ignore: int | None, kind: torch.dtype) -> None:
    graphs: list[list[str]] = []

    def noted(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return losses.dice_ce_loss(logits, labels, chunk=20, ignore=ignore)

    logits, labels = drawn(3, kind, ignore)
    results = []
    for way in (
        loss,
        torch.compile(loss, fullgraph=True, backend="aot_eager"),
        torch.compile(loss, fullgraph=True, backend=noted),
    ):
        value = way(logits, labels)
        (slope,) = torch.autograd.grad(3 * value, logits)
        assert value.dtype == torch.float32 and slope.dtype == kind
        results.append((value.detach(), slope))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    assert [name for name in graphs[0] if "getitem" not in name] == ["unet.dice_ce.default"]


def test_nothing_of_the_logits_size_is_kept_but_the_logits() -> None:
    logits, labels = drawn(3, torch.float32, IGNORE)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        losses.dice_ce_loss(logits, labels, ignore=IGNORE)
    large = {x.untyped_storage().data_ptr() for x in kept if x.numel() > 6}
    assert large == {x.untyped_storage().data_ptr() for x in (logits, labels)}
