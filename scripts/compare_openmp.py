"""How long a step takes alone and beside a busy process, by what OpenMP's threads do while they wait.

    python scripts/compare_openmp.py --repeat 7 > log.txt

Each line is one process that trains a small U-Net (3 x 64 x 64, batch 16, width 8, three levels, fp32) for some
steps: setting, whether a process that only counts is bound to one of the cores, median and least milliseconds of a
step, and the median of those steps in which no thread waited for a core. The settings alternate, so that what else
the machine does falls on all of them; the last lines are medians, and their ratio to torch's own setting. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SETTINGS = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin-1000": {"GOMP_SPINCOUNT": "1000"},
    "spin-10000": {"GOMP_SPINCOUNT": "10000"},
}


def waited() -> float:
    """Milliseconds that the threads of this process could have run and had no core (Linux)."""
    total = 0
    for thread in Path("/proc/self/task").iterdir():
        total += int((thread / "schedstat").read_text().split()[1])
    return total / 1e6


def steps(count: int, width: int, side: int, batch: int) -> list[tuple[float, float]]:
    """(milliseconds, milliseconds without a core) of training steps, the first fifth left out."""
    import torch

    from unet.models.unet import UNet, UNetShape

    torch.manual_seed(0)
    model = UNet(UNetShape(features=(width, 2 * width, 4 * width), bottleneck=8 * width))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    image = torch.rand(batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(count):
        before, began = waited(), time.perf_counter()
        model(image).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        spent = 1000 * (time.perf_counter() - began)
        times.append((spent, waited() - before))
    return times[count // 5 :]


def measure(setting: str, busy: bool, arguments: argparse.Namespace) -> list[tuple[float, float]]:
    """The steps of a process of its own."""
    cores = sorted(os.sched_getaffinity(0))
    rest = {name: value for name, value in os.environ.items() if name not in NAMES}
    environment = {**rest, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(len(cores)), **SETTINGS[setting]}
    words = [
        sys.executable,
        __file__,
        "--child",
        *(f"--{key}={getattr(arguments, key)}" for key in ("steps", "width", "side", "batch")),
    ]
    other = None
    if busy:
        other = subprocess.Popen(
            [sys.executable, "-c", "while True: pass"], preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]})
        )
    try:
        said = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
    finally:
        if other:
            other.kill()
            other.wait()
    return [(float(a), float(b)) for a, b in (line.split() for line in said.splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        for spent, without in steps(arguments.steps, arguments.width, arguments.side, arguments.batch):
            print(f"{spent:.4f} {without:.4f}")
        return
    found: dict[tuple[str, bool], list[float]] = {}
    quiet: dict[str, list[float]] = {}
    print("setting busy median_ms least_ms undisturbed_steps median_of_those_ms load", flush=True)
    for _ in range(arguments.repeat):
        for busy in (False, True):
            for setting in arguments.settings.split(","):
                made = measure(setting, busy, arguments)
                found.setdefault((setting, busy), []).append(statistics.median(spent for spent, _ in made))
                alone = [spent for spent, without in made if without < 0.01 * spent]
                quiet.setdefault(setting, []).extend([] if busy else alone)
                print(
                    f"{setting} {'busy' if busy else 'alone'} {found[setting, busy][-1]:.2f} {min(made)[0]:.2f}"
                    f" {len(alone)} {statistics.median(alone) if alone else float('nan'):.2f} {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    for busy in (False, True):
        base = statistics.median(found["default", busy])
        for setting in arguments.settings.split(","):
            median = statistics.median(found[setting, busy])
            ratios = [a / b for a, b in zip(found[setting, busy], found["default", busy], strict=True)]
            print(
                f"{setting} {'busy' if busy else 'alone'}: median of {arguments.repeat} {median:.2f} ms,"
                f" {median / base:.3f} of the default; pair by pair {statistics.median(ratios):.3f}"
            )
    for setting, all_steps in quiet.items():
        if all_steps:
            print(f"{setting} alone, {len(all_steps)} undisturbed steps: median {statistics.median(all_steps):.2f} ms")


if __name__ == "__main__":
    main()
