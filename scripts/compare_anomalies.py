"""How well a brains network finds painted lesions, and how likely it holds volumes, beside plain baselines.

    python scripts/compare_anomalies.py --weights brains-32.safetensors [flags of `python -m unet evaluate`]

Into each held-out volume spheres are painted, one at a time: five places, four changes of the intensity (the volumes'
scale is [-1, 1]), radius a sixteenth of the cube's side. Scores are average precision and best Dice over the voxels of
the brain (> -0.9), means over all painted volumes: of the network's residual |x - m| / s, of the difference to the mean
of the training volumes, and of the intensity with the sign of the change known. "chance" is the share of the sphere.

The likelihood of the held-out volumes is compared with an independent Gaussian for each voxel: mean and variance of the
training volumes, the variance raised by s0^2, which is chosen by leaving out one training volume at a time (of 40 at
most).
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unet.cli import resolve
from unet.commands import evaluate, setup
from unet.errors import UnetError, UsageError
from unet.metrics import anomalies
from unet.tasks.brains import passes

CHANGES, DRAWS = (-0.5, -0.25, 0.25, 0.5), 5
FLOORS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2)  # s0 of the Gaussian for each voxel
BRAIN = -0.9  # voxels above are brain
Array = Any


def likelihood_bits(image: Array, mean: Array, variance: Array) -> Array:
    """log2 of the density of each voxel."""
    return -0.5 * (np.log(2 * math.pi * variance) + (image - mean) ** 2 / variance) / math.log(2)


def choose_floor(training: Array) -> float:
    """The s0 under which training volumes (N, D, H, W) that are left out in turn are likeliest."""
    number, total, squares = len(training), training.sum(0), (training**2).sum(0)
    found = dict.fromkeys(FLOORS, 0.0)
    for image in training[:40]:
        mean = (total - image) / (number - 1)
        variance = np.maximum((squares - image**2) / (number - 1) - mean**2, 0)
        for floor in FLOORS:
            found[floor] += float(likelihood_bits(image, mean, variance + floor**2).mean())
    return max(FLOORS, key=found.__getitem__)


class Network:
    """A trained network, its held-out volumes and those that it was trained on."""

    def __init__(self, words: Sequence[str]) -> None:
        resolved = resolve("evaluate", words)
        path = setup.given_weights(resolved.config, "evaluate")[0]
        context = setup.assemble(resolved.config)
        if context.task.Settings.name != "brains":
            raise UsageError(f"{path}: weights of {context.task.Settings.name}.", "Give weights of the task brains.")
        resolved, facts = setup.apply_checkpoint_settings(resolved, [path], context.task.Settings.inference_settings)
        context = context.with_config(resolved.config)
        self.task: Any = context.task
        network = setup.trained_network(context, path, resolved)
        self.predictor = setup.make_predictor(context, network, finite=True)
        trained = set(facts[0]["training"])
        held = evaluate.chosen_cases(context, resolved, facts[0])
        past = setup.all_cases(context, functools.partial(sorted, key=lambda name: (name not in trained, name)))
        self.held = {case.id: np.array(case.arrays()[0][0]) for case in held}
        self.training = np.stack([np.array(case.arrays()[0][0]) for case in past if case.id in trained])

    def reconstruct(self, image: Array, name: str) -> tuple[Array, Array, float]:
        """Mean and standard deviation of each voxel, and the KL in nats."""
        volume = torch.from_numpy(image)[None, None]
        outputs = passes.decoded(self.predictor, self.task.shape(), volume, passes.key_of(name))
        mean, std, kl = passes.mixture(outputs)
        return mean[0, 0].numpy(), std[0, 0].numpy(), float(kl.sum())


def compare_likelihood(network: Network) -> None:
    """Print bits a voxel of the held-out volumes."""
    training = network.training
    floor, mean, variance = choose_floor(training), training.mean(0), training.var(0)
    rows = []
    for name, image in network.held.items():
        own_mean, own_std, kl = network.reconstruct(image, name)
        own, plain = likelihood_bits(image, own_mean, own_std**2), likelihood_bits(image, mean, variance + floor**2)
        brain, bits = image > BRAIN, kl / math.log(2)
        errors = [float(((middle - image) ** 2).mean()) for middle in (own_mean, mean)]
        rows.append(
            (own.mean() - bits / own.size, own[brain].mean() - bits / brain.sum(), errors[0])
            + (plain.mean(), plain[brain].mean(), errors[1])
        )
    means = np.mean(rows, 0)
    print(f"{len(rows)} held-out volumes, {len(training)} training volumes, s0 {floor}")
    print(f"{'bits a voxel, higher is better':36} {'all voxels':>10} {'brain':>10} {'MSE':>8}")
    print(f"{'ELBO of the network':36} {means[0]:10.4f} {means[1]:10.4f} {means[2]:8.5f}")
    print(f"{'a Gaussian for each voxel':36} {means[3]:10.4f} {means[4]:10.4f} {means[5]:8.5f}", flush=True)


def compare_anomalies(network: Network) -> None:
    """Print average precision and best Dice of painted lesions."""
    training = {"mean": network.training.mean(0), "std": network.training.std(0)}
    radius = next(iter(network.held.values())).shape[0] / 16
    for change in CHANGES:
        found: dict[str, list[tuple[float, float]]] = {}
        for number, (name, image) in enumerate(network.held.items()):
            brain = image > BRAIN
            for draw in range(DRAWS):
                painted, sphere = anomalies.painted(image, brain, radius, change, 1000 * number + draw)
                mean, std, _ = network.reconstruct(painted, name)
                z = np.abs(painted - mean) / std
                scores = {"network |x - m| / s": z, "network, smoothed": anomalies.smoothed(z)}
                scores |= {"network |x - m|": np.abs(painted - mean)}
                scores |= anomalies.baselines(painted, training, change)
                truth = sphere[brain]
                for key, score in scores.items():
                    values = score[brain]
                    pair = anomalies.average_precision(values, truth), anomalies.best_dice(values, truth)
                    found.setdefault(key, []).append(pair)
                found.setdefault("chance", []).append((float(truth.mean()), float("nan")))
        volumes = len(network.held) * DRAWS
        print(f"\nradius {radius:g}, change {change:+g}, {volumes} volumes: average precision, best Dice")
        for key, pairs in found.items():
            precision, dice = np.mean(pairs, 0)
            print(f"{key:36} {precision:10.4f}" + ("" if math.isnan(dice) else f" {dice:10.4f}"), flush=True)


def main(words: Sequence[str]) -> int:
    try:
        network = Network(words)
        compare_likelihood(network)
        compare_anomalies(network)
    except UnetError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
