"""Two plain baselines for the scores of --task lgg: no network, chosen on the training patients alone.

    python scripts/lgg_baselines.py --data ./kaggle_3m --cache lgg_128_cache --image-size 128 > log.txt

The flags are those of `train`: they name the set, the size and the split. Mean DSC over the validation patients, of all
components or of the largest one, whichever is better on the training patients, of

- a threshold on FLAIR: of the intensities that the network sees, the one that is best in the mean over the training
  patients;
- the mean of the training masks, at each pixel and each tenth of the way from the lowest to the highest slice, above
  the share that is best in the mean over the training patients.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unet import cli, host
from unet.data.cache.cached_case import CachedCase
from unet.errors import UnetError, UsageError
from unet.metrics.overlap import dice, largest_component
from unet.metrics.statistics import bootstrap_interval
from unet.tasks.registry import create

FLAIR = 1  # channel
THRESHOLDS = np.arange(0.0, 6.01, 0.25)  # deviations of the patient
SHARES = np.arange(0.02, 0.51, 0.02)  # of training patients
TENTHS = 10
How = tuple[float, bool]  # what lies above this, and whether only its largest component counts


def flair(case: CachedCase) -> Any:
    """(S, H, W)."""
    return np.asarray(case.arrays()[0][..., FLAIR], dtype=np.float32)


def mask(case: CachedCase) -> Any:
    return np.asarray(case.arrays()[1][..., 0]) > 0


def tenths(count: int) -> Any:
    """The tenth in which each of these slices lies."""
    return np.arange(count) * TENTHS // count


def mean_mask(cases: Sequence[CachedCase]) -> Callable[[CachedCase], Any]:
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


def scores(cases: Sequence[CachedCase], image: Callable[[CachedCase], Any], how: How) -> dict[str, float]:
    """The DSC of each case."""
    level, largest = how
    found = {case.id: image(case) > level for case in cases}
    return {
        case.id: dice(largest_component(found[case.id]) if largest else found[case.id], mask(case)) for case in cases
    }


def best(
    cases: Sequence[CachedCase], image: Callable[[CachedCase], Any], levels: Any, name: str = "levels"
) -> tuple[How, float]:
    """(how, its mean DSC over these cases). `name`: of the progress bar."""
    every = [(float(level), largest) for level in levels for largest in (False, True)]
    means = [statistics.fmean(scores(cases, image, how).values()) for how in host.progress(every, name=name)]
    first = int(np.argmax(means))
    return every[first], means[first]


def show(name: str, how: How, over: float, found: Mapping[str, float]) -> None:
    values, (level, largest) = list(found.values()), how
    low, high = bootstrap_interval(values)
    components = "largest component" if largest else "all components"
    print(f"{name}: above {level:.2f}, {components}, mean DSC over the training patients {over:.4f}")
    print(f"  mean DSC {statistics.fmean(values):.4f}, 95 % interval {low:.4f} to {high:.4f}")
    print(f"  median {statistics.median(values):.4f}")
    print("  " + ", ".join(f"{case} {value:.3f}" for case, value in sorted(found.items())), flush=True)


def main(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 2
    try:
        task = create(cli.resolve("train", ["--task", "lgg", *words]).config)
        cases = {case.id: case for case in task.cached_cases()}
        split = task.split(list(cases))
        if not split["validation"]:
            raise UsageError("The split has no validation patients to score.", "Type --split published, or --fold 0.")
    except UnetError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    training, validation = ([cases[name] for name in split[part]] for part in ("train", "validation"))
    print(f"{len(training)} training patients, {len(validation)} validation patients, {task.describe_input()}")
    for name, image, levels in (
        ("threshold on FLAIR", flair, THRESHOLDS),
        ("mean of the training masks", mean_mask(training), SHARES),
    ):
        how, over = best(training, image, levels, name)
        show(name, how, over, scores(validation, image, how))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
