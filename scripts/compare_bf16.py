"""How far the convolutions of `unet.kernels.winograd` round in bfloat16, and whether training notices.

    python scripts/compare_bf16.py errors | training

errors: forward pass and both gradients over 20 shapes, as the error's norm relative to the exact result's, beside
torch's own bfloat16. training: 50 steps of a 3D UNet on synthetic CT, three seeds, in float32, in torch's bfloat16 and
in Winograd's; the loss of each step of both bfloat16 runs is compared with float32's.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from unet.kernels import winograd

PAIRS = ((32, 32), (64, 32), (32, 64), (64, 64), (128, 64), (128, 128), (256, 128), (320, 320))
SHAPES = [(1, *pair, side, side, side) for pair in PAIRS for side in (16, 32)]
SHAPES += [(2, 32, 32, 32, 16, 24), (1, 8, 8, 32, 32, 32), (1, 16, 16, 16, 32, 32), (1, 64, 64, 64, 32, 32)]
SEEDS, STEPS = (1, 2, 3), 50
PARTS = ("forward", "input's gradient", "weights' gradient")


def step(conv: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, slope: Tensor) -> list[Tensor]:
    """Output and both gradients of a convolution."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = conv(x, weight)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), slope.to(y.dtype))]


def relative_errors(n: int, inputs: int, outputs: int, *sides: int) -> list[tuple[float, float]]:
    """(Winograd's, torch's) relative error in bfloat16 of output, input's and weights' gradient. The inputs are whole
    bfloat16 numbers after a ReLU, as in the network; float32 is the exact result."""
    draw = torch.Generator().manual_seed(inputs * outputs + sides[0])
    last = torch.channels_last_3d
    x = torch.randn((n, inputs, *sides), generator=draw).relu_().bfloat16().contiguous(memory_format=last)
    weight = (torch.randn((outputs, inputs, 3, 3, 3), generator=draw) / (27 * inputs) ** 0.5).bfloat16().float()
    slope = torch.randn((n, outputs, *sides), generator=draw).bfloat16().contiguous(memory_format=last)
    exact = step(lambda a, b: F.conv3d(a, b, None, 1, 1), x.float(), weight, slope.float())
    ours = step(winograd.conv, x, weight, slope)
    plain = step(lambda a, b: F.conv3d(a, b.bfloat16(), None, 1, 1), x, weight, slope)

    def error(value: Tensor, truth: Tensor) -> float:
        return float((value.double() - truth.double()).norm() / truth.double().norm())

    return [(error(a, t), error(b, t)) for a, b, t in zip(ours, plain, exact, strict=True)]


def errors() -> None:
    rows = []
    for shape in SHAPES:
        found = relative_errors(*shape)
        rows.append(found)
        cells = "  ".join(f"{a:.4f} / {b:.4f} = {a / b:.2f}" for a, b in found)
        print(f"{' x '.join(map(str, shape)):28} {cells}", flush=True)
    for name, column in zip(PARTS, zip(*rows, strict=True), strict=True):
        ratios = [a / b for a, b in column]
        sizes = " ".join(f"{statistics.median(part):.4f}" for part in zip(*column, strict=True))
        print(f"{name}: {statistics.median(ratios):.2f} times torch's, at most {max(ratios):.2f} (medians {sizes})")


def losses(folder: Path, name: str, seed: int) -> list[float]:
    """The loss of each of 50 steps: a run in a process of its own."""
    words = ["train", "--task", "kits19", "--data", "./ct", "--cache", "./ct_cache", "--pad-to", "32", "--patch", "32"]
    words += ["--eval-patch", "32", "--layers", "3", "--width", "16", "--batch-size", "2", "--device", "cpu"]
    words += ["--epochs", "100", "--lr", "0.3", "--warmup-epochs", "0", "--workers", "0", "--deterministic"]
    words += [
        "--seed",
        str(seed),
        "--split",
        "none",
        "--max-steps",
        str(STEPS),
        "--log-every",
        "1",
        "--run-name",
        f"{name}-{seed}",
    ]
    words += ["--precision", "fp32" if name == "fp32" else "bf16", "--mode", "train", "--no-checkpoints", "--quiet"]
    words += ["--kernels", "winograd" if name == "winograd" else "torch"]
    subprocess.run([sys.executable, "-m", "unet", *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    text = (folder / "performance" / f"{name}-{seed}" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return [row["loss"] for row in rows if row["event"] == "step"]


def training() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = ["synthesize", "--task", "kits19", "--data", "./ct", "--patients", "6", "--slices", "48", "--side", "48"]
        made.append("--quiet")
        subprocess.run([sys.executable, "-m", "unet", *made], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        for seed in SEEDS:
            exact = losses(Path(scratch), "fp32", seed)
            for name in ("torch", "winograd"):
                found = losses(Path(scratch), name, seed)
                apart = [abs(a - b) for a, b in zip(found, exact, strict=True)]
                print(
                    f"seed {seed} {name:8} loss {exact[0]:.4f} to {statistics.mean(found[-10:]):.4f} (last 10 steps;"
                    f" float32 {statistics.mean(exact[-10:]):.4f}); apart by {statistics.mean(apart):.4f} a step, at"
                    f" most {max(apart):.4f}",
                    flush=True,
                )


def main() -> None:
    modes = {"errors": errors, "training": training}
    if len(sys.argv) != 2 or sys.argv[1] not in modes:
        raise SystemExit(__doc__)
    modes[sys.argv[1]]()


if __name__ == "__main__":
    main()
