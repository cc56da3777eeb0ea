"""What a training sample and a scored case of KiTS19 take beyond the network, against the steps of MLPerf's reference.

    python scripts/compare_kits19.py loading | scoring | share

On made volumes of the set's median size (256, 333, 333), in a temporary folder, both ways in turn, with warm caches.
The reference's steps, written from its description: loading reads the whole image and label of a case for each crop,
and looks for components in the whole label for each foreground crop; scoring sums windows into two volumes, divides
them, and takes argmax, one-hot labels (int64) and means for score and loss. `share`: what a scored case takes beyond
the network, as a share of the network's own passes over its windows, in bf16 where the device has it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from unet import windows
from unet.cli import resolve
from unet.commands import setup
from unet.data.cache.cache import CachedCase
from unet.data.loading.augment import Change
from unet.data.loading.crops import EpochCrops, Volumes
from unet.devices import launchers, select
from unet.runtime.inference.predictor import Predictor, padded_part
from unet.tasks.kits19 import boxes
from unet.tasks.kits19.task import PAD_VALUE

SHAPE, PATCH, ROUNDS = (256, 333, 333), (128, 128, 128), 5


def made_cases(folder: Path, count: int) -> list[CachedCase]:
    """Volumes of noise with two kidneys and a tumour in each, in MLPerf's layout."""
    grid = np.indices(SHAPE, dtype=np.float32)
    cases = []
    for number in range(count):
        mask = np.zeros(SHAPE, np.uint8)
        for label, (d, h, w), radius in ((1, (128, 180, 90), 38), (1, (120, 180, 240), 36), (2, (130, 160, 250), 16)):
            centre = np.array((d + 3 * number, h, w), np.float32).reshape(3, 1, 1, 1)
            mask[((grid - centre) ** 2).sum(0) < radius**2] = label
        image = np.random.default_rng(number).standard_normal(SHAPE, np.float32) + mask
        paths = folder / f"case_{number:05}_x.npy", folder / f"case_{number:05}_y.npy"
        np.save(paths[0], image[None])
        np.save(paths[1], mask[None])
        facts = boxes.facts(mask)
        cases.append(CachedCase(f"case_{number:05}", *paths, (1, *SHAPE), tuple(facts["foreground"]), facts, 48))
    return cases


def reference_sample(case: CachedCase, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One crop as the reference takes it."""
    image, label = np.load(case.image), np.load(case.mask)
    low = [int(draws.integers(side - length)) for side, length in zip(SHAPE, PATCH, strict=True)]
    if draws.random() < 0.4:
        chosen = label[0] == draws.choice(np.unique(label)[1:])
        found = ndimage.find_objects(ndimage.label(chosen)[0])
        box = found[int(draws.integers(min(2, len(found))))]
        low = [
            min(max(0, side.start - 8), whole - length) for side, whole, length in zip(box, SHAPE, PATCH, strict=True)
        ]
    place = (slice(None), *(slice(start, start + length) for start, length in zip(low, PATCH, strict=True)))
    image, label = image[place], label[place]
    for axis in (1, 2, 3):
        if draws.random() < 1 / 3:
            image, label = np.flip(image, axis), np.flip(label, axis)
    image, label = image.astype(np.float32), label.astype(np.uint8)
    if draws.random() < 0.1:
        image = image * (1 + draws.uniform(0.7, 1.3))
    if draws.random() < 0.1:
        image = image + draws.normal(0, draws.uniform(0, 0.1), image.shape).astype(np.float32)
    return np.ascontiguousarray(image), np.ascontiguousarray(label)


def loading(folder: Path) -> tuple[Callable[[], object], Callable[[], object]]:
    """A sample of each of three cases, the reference's way and this program's."""
    cases = made_cases(folder, 3)
    draws, crops = np.random.default_rng(0), EpochCrops(Volumes(cases), PATCH, 3, 0, 0.4, Change())
    epochs = iter(range(1, 10**6))
    return lambda: [reference_sample(case, draws) for case in cases], lambda: crops[next(epochs), 0]


class Cheap(nn.Module):
    """A network that costs next to nothing: the input and its double as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, 2 * x, -x), 1)


def gaussian(length: int) -> Tensor:
    axis = torch.exp(-0.5 * ((torch.arange(length, dtype=torch.float64) - (length - 1) / 2) / (0.125 * length)) ** 2)
    weights = (axis[:, None, None] * axis[:, None] * axis) ** (1 / 3)
    return (weights / weights.max()).float()


def reference_scores(image: Tensor, label: Tensor, weights: Tensor) -> None:
    """Stitch, score and loss of one case as the reference does it; image and label (1, 1, D, H, W), padded."""
    result, norm = torch.zeros((1, 3, *image.shape[2:])), torch.zeros((1, 3, *image.shape[2:]))
    starts = [range(0, side - length + 1, length // 2) for side, length in zip(image.shape[2:], PATCH, strict=True)]
    network = Cheap()
    for d in starts[0]:
        for h in starts[1]:
            for w in starts[2]:
                place = (..., slice(d, d + PATCH[0]), slice(h, h + PATCH[1]), slice(w, w + PATCH[2]))
                result[place] += network(image[place]) * weights
                norm[place] += weights
    result /= norm
    truth = label[:, 0].long()
    for p in (F.one_hot(result.argmax(1), 3), result.softmax(1).movedim(1, -1)):
        hot = F.one_hot(truth, 3)
        p, hot = p[..., 1:], hot[..., 1:]
        overlap, total = (p * hot).sum((1, 2, 3)), p.sum((1, 2, 3)) + hot.sum((1, 2, 3))
        ((2 * overlap + 1e-6) / (total + 1e-6)).mean().item()
    F.cross_entropy(result, truth).item()


def runner(network: nn.Module, **settings: Any) -> tuple[Any, Predictor]:
    """The task and the predictor of a network, with settings of kits19."""
    config = resolve("config", ["--task", "kits19", "--device", "cpu"]).config.replace(**settings)
    rank = launchers.find_rank(config.distributed)
    device = select.choose(config.device, rank)[0](config.device, rank)
    return setup.task_on(device, config), Predictor([device.place(network)], device, batch=1)


def scoring(folder: Path, loss: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    """A case scored the reference's way and this program's, with a network that costs nothing."""
    case = made_cases(folder, 1)[0]
    task, predictor = runner(Cheap(), eval_loss=loss)
    weights = gaussian(PATCH[0])

    def reference() -> None:
        image, label = (torch.from_numpy(np.load(path)) for path in (case.image, case.mask))
        plan = windows.plan(SHAPE, PATCH)
        padded, cut = padded_part(image, plan, PAD_VALUE), padded_part(label, plan, 0)
        reference_scores(padded[None], cut[None], weights)

    return reference, lambda: task.evaluate_case(case, predictor)


def share(folder: Path) -> None:
    """What a case takes beyond the network, and the passes of the network over its windows."""
    case = made_cases(folder, 1)[0]
    cheap, nothing = runner(Cheap())
    network, real = runner(cheap.build_model(), precision="auto")
    one, count = torch.zeros(1, *PATCH), windows.plan(SHAPE, PATCH).count
    plan = windows.plan(PATCH, PATCH)
    rest, passes = [], []
    for number in range(ROUNDS + 1):
        for kept, work in (
            (rest, lambda: cheap.evaluate_case(case, nothing)),
            (passes, lambda: network.logits(one, plan, real)),
        ):
            start = time.perf_counter()
            work()
            if number:
                kept.append(time.perf_counter() - start)
    a, b = statistics.median(rest), count * statistics.median(passes)
    print(f"a case of {count} windows: {a:.3f} s beyond the network, whose passes take {b:.1f} s: {a / b:.4f} of them")


def compare(name: str, theirs: Callable[[], object], ours: Callable[[], object]) -> None:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS + 1):
        for kept, work in zip(times, (theirs, ours), strict=True):
            start = time.perf_counter()
            work()
            if number:
                kept.append(time.perf_counter() - start)
    a, b = map(statistics.median, times)
    ratios = sorted(x / y for x, y in zip(*times, strict=True))
    print(
        f"{name}: reference {a:.3f} s, ours {b:.3f} s: 1/{a / b:.1f} (rounds 1/{ratios[0]:.1f} to 1/{ratios[-1]:.1f})"
    )


def main() -> None:
    if sys.argv[1:] not in (["loading"], ["scoring"], ["share"]):
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as scratch:
        if sys.argv[1] == "loading":
            compare("a sample of each of 3 cases", *loading(Path(scratch)))
        elif sys.argv[1] == "share":
            share(Path(scratch))
        else:
            compare("a case, with the loss", *scoring(Path(scratch), True))
            compare("a case, without the loss", *scoring(Path(scratch), False))


if __name__ == "__main__":
    main()
