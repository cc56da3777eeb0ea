"""Plain baselines for the scores of --task lgg, em and kits19: no network, chosen on the training cases alone.

    python scripts/baselines.py --task lgg --data ./kaggle_3m --cache lgg_128_cache --image-size 128 > log.txt
    python scripts/baselines.py --task em --fold 0 > log.txt

The flags are those of `train`: they name the task, the set, the size and the split. Of its choices each baseline
takes the one with the best mean over the training cases; then it scores the validation cases, by the main score:

- lgg: a threshold on FLAIR as the network sees it, and the mean of the training masks above a share, at each pixel and
  each tenth of the way from the lowest to the highest slice; of all components or of the largest one;
- em: a threshold on the slice, smoothed or not, and the mean of the training masks as the probability of a cell;
- kits19: kidney and tumour are two ranges of intensity, side by side; and the mean of the training masks above a share,
  at each tenth of the way along the three axes.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unet import cli, host
from unet.data.cache.cached_case import CachedCase
from unet.errors import UnetError, UsageError
from unet.metrics.overlap import dice, largest_component
from unet.metrics.statistics import bootstrap_interval
from unet.tasks.registry import create

FLAIR = 1  # channel
THRESHOLDS = np.arange(0.0, 6.01, 0.25)  # deviations of the patient
SHARES = np.arange(0.02, 0.51, 0.02)  # of training cases
TENTHS = 10
BLURS = (0.0, 1.0, 2.0, 3.0)  # deviations in pixels
GREYS = np.arange(-0.8, 0.81, 0.1)  # of -1 (black) to 1
BINS = np.linspace(-3.0, 4.0, 36)  # edges of ranges of intensity, in deviations of the whole set
Cases = Sequence[CachedCase]


class Baseline(NamedTuple):
    """A guess of a case's masks under a choice, and its score."""

    name: str
    choices: Sequence[Any]
    score: Callable[[CachedCase, Any], float]
    words: Callable[[Any], str]


def mask(case: CachedCase) -> Any:
    return np.asarray(case.arrays()[1][..., 0]) > 0


def tenths(count: int) -> Any:
    """The tenth in which each of these slices lies."""
    return np.arange(count) * TENTHS // count


# lgg: arrays (S, H, W, 3) and (S, H, W, 1)


def flair(case: CachedCase) -> Any:
    """(S, H, W)."""
    return np.asarray(case.arrays()[0][..., FLAIR], dtype=np.float32)


def mean_mask(cases: Cases) -> Callable[[CachedCase], Any]:
    """The share of masks at each place, for a case's slices."""
    total = None
    for case in cases:
        found = mask(case)
        place = tenths(len(found))
        parts = [found[place == part] for part in range(TENTHS)]
        rows = np.stack([part.mean(0) if len(part) else np.zeros(found.shape[1:]) for part in parts])
        total = rows if total is None else total + rows
    share = total / len(cases)
    return lambda case: share[tenths(case.shape[0])]


def above(name: str, image: Callable[[CachedCase], Any], levels: Any) -> Baseline:
    """A case's tumour is where `image` is above a level; of all components, or of the largest alone."""

    def score(case: CachedCase, how: tuple[float, bool]) -> float:
        found = image(case) > how[0]
        return dice(largest_component(found) if how[1] else found, mask(case))

    choices = [(float(level), largest) for level in levels for largest in (False, True)]
    return Baseline(
        name, choices, score, lambda how: f"above {how[0]:.2f}, {'largest component' if how[1] else 'all components'}"
    )


def lgg(training: Cases, task: Any = None) -> list[Baseline]:
    return [
        above("threshold on FLAIR", flair, THRESHOLDS),
        above("mean of the training masks", mean_mask(training), SHARES),
    ]


# em: arrays (1, H, W, 1), a slice a case


def cell_dice(probability: Any, cells: Any) -> float:
    """The benchmark's `eval_dice_score`: its Dice of squares, the mean of cell and membrane."""
    import torch

    from unet.models.losses import two_class_losses

    logits = torch.from_numpy(np.stack([1 - probability, probability])[None].astype(np.float32).clip(1e-12)).log()
    return 1 - two_class_losses(logits, torch.from_numpy(cells[None, None]))[1].item()


def em(training: Cases, task: Any = None) -> list[Baseline]:
    from scipy import ndimage

    def threshold(case: CachedCase, how: tuple[float, float]) -> float:
        image = np.asarray(case.arrays()[0][0, ..., 0], dtype=np.float32)
        return cell_dice(ndimage.gaussian_filter(image, how[0]) > how[1], mask(case)[0])

    share = np.mean([mask(case)[0] for case in training], axis=0)
    return [
        Baseline(
            "threshold on the slice",
            [(blur, float(grey)) for blur in BLURS for grey in GREYS],
            threshold,
            lambda how: f"cell above {how[1]:.1f} of -1 to 1, smoothed with a deviation of {how[0]:.0f} pixels",
        ),
        Baseline(
            "mean of the training masks",
            [None],
            lambda case, _: cell_dice(share, mask(case)[0]),
            lambda _: "as a probability",
        ),
    ]


# kits19: arrays (1, D, H, W) twice, labels 0, 1 kidney, 2 tumour


def both_dice(counts: Any, predicted: Any) -> float:
    """The mean of kidney and tumour: counts (places, 3) of voxels by place and label, predicted (places,) labels."""
    found = [0.0, 0.0]
    for label in (1, 2):
        chosen = counts[predicted == label]
        total = chosen.sum() + counts[:, label].sum()
        found[label - 1] = float(2 * chosen[:, label].sum() / total) if total else 1.0
    return statistics.fmean(found)


def counted(places: Any, labels: Any, count: int) -> Any:
    """(count, 3): voxels of each place and label."""
    return np.bincount(places.ravel() * 3 + labels.ravel().astype(np.int64), minlength=3 * count).reshape(count, 3)


def blocks(shape: Sequence[int]) -> Any:
    """The number of the block in which each voxel lies: tenths of the three axes."""
    deep, high, wide = (tenths(side) for side in shape)
    return (deep[:, None, None] * TENTHS + high[:, None]) * TENTHS + wide


def kits19(training: Cases, task: Any = None) -> list[Baseline]:
    """Of the region that the task scores; without a task, of all voxels."""

    def scored(case: CachedCase) -> tuple[Any, Any]:
        image, labels = (np.asarray(array[0]) for array in case.arrays())
        crop = task.plan(labels.shape, task.settings.eval_region).crop if task else ...
        return image[crop], labels[crop]

    tables: dict[tuple[str, str], Any] = {}  # a case's voxels are counted once for all choices

    def by_intensity(case: CachedCase) -> Any:
        if ("intensity", case.id) not in tables:
            image, labels = scored(case)
            tables["intensity", case.id] = counted(np.digitize(image, BINS), labels, len(BINS) + 1)
        return tables["intensity", case.id]

    def by_place(case: CachedCase) -> Any:
        if ("place", case.id) not in tables:
            _, labels = scored(case)
            tables["place", case.id] = counted(blocks(labels.shape), labels, TENTHS**3)
        return tables["place", case.id]

    def ranges(case: CachedCase, how: tuple[int, int, int, bool]) -> float:
        first, second, last, swapped = how
        predicted = np.zeros(len(BINS) + 1, np.int64)
        predicted[first:second], predicted[second:last] = (2, 1) if swapped else (1, 2)
        return both_dice(by_intensity(case), predicted)

    shares = [by_place(case) / by_place(case).sum(1, keepdims=True).clip(1) for case in training]
    share = sum(shares) / len(shares)

    def placed(case: CachedCase, how: tuple[float, float]) -> float:
        predicted = np.where(share[:, 2] > how[1], 2, np.where(share[:, 1] > how[0], 1, 0))
        return both_dice(by_place(case), predicted)

    def told(how: tuple[int, int, int, bool]) -> str:
        edges = [f"{BINS[edge - 1]:.1f}" for edge in how[:3]]
        names = ("tumour", "kidney") if how[3] else ("kidney", "tumour")
        return f"{names[0]} from {edges[0]} to {edges[1]}, {names[1]} to {edges[2]} as normalized"

    edges = range(1, len(BINS) + 1)
    return [
        Baseline(
            "ranges of intensity",
            [(*how, swapped) for how in itertools.combinations(edges, 3) for swapped in (False, True)],
            ranges,
            told,
        ),
        Baseline(
            "mean of the training masks",
            [(float(a), float(b)) for a, b in itertools.product(SHARES, SHARES)],
            placed,
            lambda how: f"kidney above {how[0]:.2f}, tumour above {how[1]:.2f}",
        ),
    ]


BASELINES: dict[str, Callable[[Cases, Any], list[Baseline]]] = {"lgg": lgg, "em": em, "kits19": kits19}


def scores(cases: Cases, baseline: Baseline, how: Any) -> dict[str, float]:
    """The score of each case."""
    return {case.id: baseline.score(case, how) for case in cases}


def best(cases: Cases, baseline: Baseline) -> tuple[Any, float]:
    """(the choice, its mean score over these cases)."""
    means = [
        statistics.fmean(scores(cases, baseline, how).values())
        for how in host.progress(baseline.choices, name=baseline.name)
    ]
    first = int(np.argmax(means))
    return baseline.choices[first], means[first]


def show(title: str, name: str, over: float, found: Mapping[str, float], items: str) -> None:
    values = list(found.values())
    low, high = bootstrap_interval(values)
    print(f"{name}, mean {title} over the training {items} {over:.4f}")
    print(f"  mean {title} {statistics.fmean(values):.4f}, 95 % interval {low:.4f} to {high:.4f}")
    print(f"  median {statistics.median(values):.4f}")
    print("  " + ", ".join(f"{case} {value:.3f}" for case, value in sorted(found.items())), flush=True)


def run(words: Sequence[str]) -> None:
    """Choose and print the baselines. Raises UnetError."""
    task = create(cli.resolve("train", words).config)
    if task.name not in BASELINES:
        raise UsageError(f"The task {task.name} has no baselines.", f"Type --task with {', '.join(BASELINES)}.")
    cases = {case.id: case for case in task.cached_cases()}
    split = task.split(list(cases))
    if not split["validation"]:
        raise UsageError("The split has no validation cases to score.", "Type --fold 0, or a --split that has some.")
    training, validation = ([cases[name] for name in split[part]] for part in ("train", "validation"))
    title, items = task.metric.name.removeprefix("MEAN "), "patients" if task.name == "lgg" else "cases"
    print(f"{len(training)} training {items}, {len(validation)} validation {items}, {task.describe_input()}")
    for baseline in BASELINES[task.name](training, task):
        how, over = best(training, baseline)
        show(title, f"{baseline.name}: {baseline.words(how)}", over, scores(validation, baseline, how), items)


def main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 2
    try:
        run(words)
    except UnetError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
