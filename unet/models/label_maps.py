"""Label maps of several classes and their scores, from logits, on their device, `chunk` voxels at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.errors import DataError
from unet.models.dice_ce import CHUNK, FEW
from unet.models.losses import SMOOTH

MANY = 8  # classes, above which pairs are counted by their number instead of by a product of matrices


def label_map(logits: Tensor, chunk: int = CHUNK) -> Tensor:
    """(K, D, H, W) -> the class of the highest logit (D, H, W) uint8, the lowest class where several are equal.

    What argmax says, by comparing channel with channel; torch's argmax takes fifteen times as long on a CPU.
    """
    result = torch.zeros(logits.shape[1:], dtype=torch.uint8, device=logits.device)
    for rows in _chunks(result, chunk):
        highest, label = logits[0, rows], result[rows]
        for number in range(1, len(logits)):
            channel = logits[number, rows]
            torch.maximum(label, (channel > highest).to(torch.uint8).mul_(number), out=label)
            highest = torch.maximum(highest, channel)
    return result


def label_map_of(slabs: Iterable[Tensor], depth: int, shape: Sequence[int]) -> Tensor:
    """Logits in slabs (K, d, h, w) along an axis of `depth` planes in all, one after the other -> the class of the
    highest logit on the grid of `shape` (D, H, W), uint8, where the slabs lie; linear between the planes, rows and
    columns (centred voxels, as F.interpolate without align_corners).

    Class after class of a slab at a time, so neither the logits of a case nor a resampled slab are ever in memory; a
    slab may be written over once the next one is asked for.
    """
    result: Tensor | None = None
    before: Tensor | None = None  # the last plane that was seen (K, 1, h, w)
    places = [min(max((number + 0.5) * (depth / shape[0]) - 0.5, 0), depth - 1) for number in range(shape[0])]
    first = done = 0
    for slab in slabs:
        if result is None:
            result = torch.zeros(tuple(shape), dtype=torch.uint8, device=slab.device)
        start = first if before is None else first - 1  # the first plane that is at hand
        first += slab.shape[1]
        ready = [place for place in places[done:] if place <= first - 1]
        if ready:
            target = result[done : done + len(ready)]
            between = None if len(ready) == slab.shape[1] and depth == shape[0] else [at - start for at in ready]
            _label_slab(slab, before, between, target)
            done += len(ready)
        before = slab[:, -1:].clone() if depth != shape[0] else None
    assert result is not None
    assert done == shape[0]
    return result


def _label_slab(slab: Tensor, before: Tensor | None, places: Sequence[float] | None, target: Tensor) -> None:
    """Write the classes of a slab, with the plane before it, into `target` (D, H, W). `places` among its planes count
    from that plane; None: its planes themselves."""
    lower = upper = weight = None
    if places is not None:
        last = slab.shape[1] - 1 + (before is not None)
        low = torch.tensor([min(int(place), max(0, last - 1)) for place in places])
        weight = (torch.tensor(places) - low).float().to(slab.device)[:, None, None]
        lower, upper = low.to(slab.device), (low + 1).clamp(max=last).to(slab.device)
    highest: Tensor | None = None
    for number, planes in enumerate(slab):
        channel = planes if before is None else torch.cat((before[number], planes))
        channel = channel.float()
        if channel.shape[1:] != target.shape[1:]:
            channel = F.interpolate(channel[None], target.shape[1:], mode="bilinear", align_corners=False)[0]
        if lower is not None and upper is not None and weight is not None:
            below = channel.index_select(0, lower)
            channel = channel.index_select(0, upper).sub_(below).mul_(weight).add_(below)
        if highest is None:
            highest = channel
            continue
        torch.maximum(target, (channel > highest).to(torch.uint8).mul_(number), out=target)
        highest = torch.maximum(highest, channel)


def confusion(prediction: Tensor, target: Tensor, classes: int = 3, chunk: int = CHUNK) -> Tensor:
    """Voxels of each class (rows: target, columns: prediction) of two uint8 label maps: (classes, classes) int64, on
    their device, up to 8 classes without reading it. A voxel of a higher class in either is counted nowhere."""
    counts = torch.zeros((classes, classes), dtype=torch.int64, device=target.device)
    numbers = torch.arange(classes, dtype=torch.uint8, device=target.device)[:, None]
    for rows in _chunks(target, min(chunk, CHUNK)):  # float32 counts exactly up to there
        both = target[rows].flatten(), prediction[rows].flatten()
        if classes > MANY:
            true, predicted = (labels.long() for labels in both)
            known = (true < classes) & (predicted < classes)
            pairs = torch.where(known, true * classes + predicted, classes**2)
            counts += torch.bincount(pairs, minlength=classes**2 + 1)[:-1].view(classes, classes)
        else:
            true, predicted = ((labels == numbers).float() for labels in both)
            counts += (true @ predicted.T).long()
    return counts


def dice_by_class(
    prediction: Tensor, target: Tensor, classes: int = 3, chunk: int = CHUNK, ignore: int | None = None
) -> list[float]:
    """MLPerf's Dice of each class, background first, of two uint8 label maps: (2 |p t| + 1e-6) / (|p| + |t| + 1e-6), so
    1 for a class that is in neither. Voxels of the label `ignore`, which is no class, are not counted. Raises DataError
    for a class that there is not."""
    counts = confusion(prediction, target, classes, chunk)
    ignored = [(target[rows] == ignore).sum() for rows in _chunks(target, chunk)] if ignore is not None else []
    both = torch.cat((counts.flatten(), sum(ignored, counts.new_zeros(1)))).cpu()  # one read
    if both.sum() != target.numel():
        found = max(int(labels[target != ignore].max()) for labels in (prediction, target))
        raise DataError(
            f"The label map holds a class above {classes - 1} (it goes up to {found}).",
            "Check the labels: python -m unet check",
        )
    table = both[:-1].view(classes, classes).double()
    return ((2 * table.diagonal() + SMOOTH) / (table.sum(0) + table.sum(1) + SMOOTH)).tolist()


def dice_ce_of(
    logits: Tensor,
    labels: Tensor,
    include_background: bool = False,
    chunk: int = CHUNK,
    ignore: int | None = None,
    smooth: float = SMOOTH,
) -> float:
    """MLPerf's loss of one case, (1 - mean soft Dice + cross entropy) / 2: logits (K, D, H, W), labels (D, H, W) uint8,
    of which `ignore` is no class and not counted.

    Softmax, cross entropy and the sums of the Dice of each chunk in turn, so nothing of the size of the logits is made;
    one read from the device. Without gradients: training has `unet.models.losses`.
    """
    first = 0 if include_background else 1
    classes = torch.arange(len(logits), dtype=torch.float32, device=logits.device)[:, None]
    parts = []
    for rows in _chunks(labels, chunk * FEW // max(FEW, len(logits))):
        log_p = torch.log_softmax(logits[:, rows].float().flatten(1), 0)
        truth = labels[rows].flatten().float().repeat(len(logits), 1).eq_(classes)  # in place: 7 times as fast on a CPU
        agreed = (log_p * truth).sum()
        p, t = log_p[first:].exp_(), truth[first:]
        valid = (labels[rows] != ignore).flatten() if ignore is not None else None
        count = agreed.new_tensor(labels[rows].numel()) if valid is None else valid.sum().float()
        p = p if valid is None else p.mul_(valid)
        parts.append(torch.cat((agreed[None], count[None], (p * t).sum(1), p.sum(1), t.sum(1))))
    sums = torch.stack(parts).cpu().double().sum(0)
    both, predicted, true = sums[2:].chunk(3)
    dice = (2 * both + smooth) / (predicted + true + smooth)
    return float((1 - dice.mean() - sums[0] / max(1, int(sums[1]))) / 2)


def nnunet_loss_of(logits: Tensor, labels: Tensor, include_background: bool = False, chunk: int = CHUNK) -> float:
    """`losses.nnunet_loss` of one case, as `dice_ce_of`."""
    return 2 * dice_ce_of(logits, labels, include_background, chunk, smooth=1e-5) - 1


def _chunks(volume: Tensor, size: int) -> Iterator[slice]:
    """Slices along the first axis with about `size` voxels each."""
    step = max(1, size * len(volume) // max(1, volume.numel()))
    return (slice(first, first + step) for first in range(0, len(volume), step))
