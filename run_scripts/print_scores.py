"""Prints, from the folder of an `evaluate` run, the five lines that Cambricon's inference prints."""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

from unet.runtime.checkpoints import checkpoint

NAMES = {"L1 dice": "kidney", "L2 dice": "tumour", "mean_dice": "mean_dice", "eval_loss": "loss"}


def lines(folder: Path) -> list[str]:
    """`name value` of the weights' epoch and of the means over the cases; - for what was not computed or is unknown."""
    summary = json.loads((folder / "summary.json").read_text())
    content = checkpoint.read(Path(summary["paths"]["weights"]))
    progress = content.get("progress")  # of a state instead of weights
    epoch = content.get("epoch", progress.get("epoch", "-") if isinstance(progress, dict) else "-")
    with open(folder / "cases.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    means = {
        name: round(statistics.fmean(float(row[column]) for row in rows), 4) if rows and column in rows[0] else "-"
        for name, column in NAMES.items()
    }
    return [f"epoch {epoch}", *(f"{name} {value}" for name, value in means.items())]


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1]))))
