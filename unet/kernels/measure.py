"""Finds the fastest right algorithm for a convolution on this machine.

Each pass (forward, gradient of the input, gradient of the weights) is looked at alone. An algorithm is first tried on
random numbers against torch's own in float32, with freed memory full of NaN; what is wrong is out. The others are timed
in turn, and the least of their times counts: other processes only make a time longer. Another algorithm than torch's
must be faster by a margin, so that noise does not choose it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.kernels import algorithms, trial
from unet.kernels.algorithms import LAST, Weights
from unet.kernels.geometry import Geometry, strided

VERSION = 3  # of the algorithms; answers of another version are not used
TIMED, TRIED = 1e9, 1e8  # operations of a pass at most, timed and tried: larger volumes are cropped
UNCACHED = 24 * 2**20  # bytes, down to which a volume is cropped: one that fits into a cache has other times
LEAST, MOST = 2, 9  # rounds of a timing
ENOUGH = 0.03  # seconds of a timing, after which no round begins
HOPELESS = 2.0  # times as long as the fastest in the first round: timed no more
MARGIN = 0.95  # of torch's time, which another algorithm must be below
ROUNDING = 1e-5, 1e-3  # largest error in float32, of the norm and of a number (`trial.agree`)

Record = dict[str, Any]
Numbers = tuple[Tensor, Tensor, Weights]  # output's gradient, input, weights


def chosen(how: Geometry, parts: Sequence[str], only: str = "") -> dict[str, Record]:
    """pass -> {"algorithm", "seconds" of each, "wrong": algorithms}. `only`: take this algorithm where it computes the
    pass and is right, else torch's, without timing."""
    names = {part: tried(how, part, only) for part in parts}
    found: dict[str, Record] = {part: {"algorithm": "torch", "seconds": {}, "wrong": []} for part in parts}
    if how.dtype == torch.float32 and all(listed == ["torch"] for listed in names.values()):
        return found
    with trial.alone(), torch.no_grad():
        small, large = how.cropped(int(TRIED)), how.cropped(int(TIMED), UNCACHED)
        numbers = drawn(small)
        for part, listed in names.items():
            good, found[part]["wrong"] = right(small, part, listed, numbers, once=bool(only))
            found[part]["algorithm"] = good[0]
            if len(good) > 1:
                seconds = timed(large, part, good, drawn(large, numbers[2]))
                found[part] |= {"algorithm": fastest(seconds), "seconds": seconds}
    return found


def tried(how: Geometry, part: str, only: str = "") -> list[str]:
    """The algorithms that compute a pass, torch's own first; with `only` that one and those that take its place."""
    names = algorithms.candidates(how, part)
    return sorted(names, key=lambda name: (name != only, name != "torch")) if only else names


def fastest(seconds: dict[str, float]) -> str:
    """The name of the least time; torch's, unless it is beaten by the margin."""
    best = min(seconds, key=lambda name: seconds[name])
    own = seconds.get("torch")
    return "torch" if own is not None and seconds[best] > MARGIN * own else best


def right(
    how: Geometry, part: str, names: list[str], numbers: Numbers, once: bool = False
) -> tuple[list[str], list[str]]:
    """(algorithms that compute a pass rightly, those that were wrong); with `once` the first that does. In float32
    torch's own is the measure."""
    exact = expected(how, part, numbers)
    good: list[str] = []
    wrong: list[str] = []
    for name in names:
        trusted = how.dtype == torch.float32 and name == "torch"
        (good if trusted or is_right(how, part, name, numbers, exact) else wrong).append(name)
        if once and good:
            break
    return good or ["fp32"], wrong


def is_right(how: Geometry, part: str, name: str, numbers: Numbers, exact: Tensor) -> bool:
    """Whether an algorithm gives torch's result in float32 but for rounding, each time."""
    limits = ROUNDING if how.dtype == torch.float32 else (trial.NORM, trial.PEAK)
    for _ in range(trial.REPEATS if name == "torch" else 1):
        trial.poison([exact], how.dtype)
        found = algorithms.run(name, part, how, *numbers)
        if found.shape != exact.shape or not trial.agree(found.float(), exact, *limits):
            return False
    return True


def drawn(how: Geometry, weights: Weights | None = None) -> Numbers:
    """Random numbers of the type, so that rounding them adds no error; with these weights, if they are given."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sides: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(sides, generator=generator).mul_(scale).to(how.dtype)
        return strided(numbers.contiguous(memory_format=LAST))

    if weights is None:
        weight = draw(how.outputs, how.inputs, *how.kernel, scale=(how.inputs * how.window) ** -0.5)
        weights = Weights(weight.float(), weight)
    return draw(how.shape[0], how.outputs, *how.sides), draw(*how.shape), weights


def expected(how: Geometry, part: str, numbers: Numbers) -> Tensor:
    """The result of torch in float32."""
    grad, x, weights = numbers
    w = weights.trained
    if part == "forward":
        return F.conv3d(x.float(), w, None, how.stride, how.padding)
    return algorithms.backward(grad.float(), x.float(), w, how, algorithms.PASSES.index(part) - 1)


def timed(how: Geometry, part: str, names: list[str], numbers: Numbers) -> dict[str, float]:
    """The least seconds of each algorithm, in rounds."""

    # the time of one thread does not run while other processes do
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def once(name: str) -> float:
        start = clock()
        algorithms.run(name, part, how, *numbers)
        return clock() - start

    first = {name: once(name) for name in names}  # with what is prepared once
    seconds = {name: [once(name)] for name in names if first[name] <= HOPELESS * min(first.values())}
    total = sum(map(sum, seconds.values()))
    while len(next(iter(seconds.values()))) < (MOST if total < ENOUGH else LEAST):
        for name, values in seconds.items():
            values.append(once(name))
        total = sum(map(sum, seconds.values()))
    return {name: min(values) for name, values in seconds.items()}
