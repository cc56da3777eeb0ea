"""How long a run takes from its start to the end of its first step, beside the import of torch alone.

    python scripts/first_step.py --rounds 7 -- --synth-data --image-size 64 > log.txt

Each round imports torch in one process and makes one step in another (`train` with the arguments behind --); the first
round is left out, since files are read from the disk in it. Everything that the first step needs is in it: the import,
reading the set, the network, the first batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from unet import host
from unet.devices import load

ROOT = Path(__file__).resolve().parents[1]


def torch_alone(folder: str) -> float:
    """Seconds of an import of torch, without those of the interpreter."""
    code = "import time; start = time.perf_counter(); import torch; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True).stdout)


def first_step(folder: str, name: str, words: list[str]) -> float:
    """Seconds from the start of a run to the end of its first step."""
    line = [sys.executable, "-m", "unet", "train", *words, "--max-steps", "1", "--evaluate-every", "0", "--run-name"]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*line, name], cwd=folder, env=path, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads((Path(folder) / "performance" / name / "summary.json").read_text())
    return float(found["to_first_step_seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("words", nargs="*", metavar="-- FLAGS", help="flags of train")
    args = parser.parse_args()
    words = args.words or ["--synth-data", "--image-size", "64"]
    rows, watch = [], load.Watch()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds + 1):
            row = torch_alone(folder), first_step(folder, f"run-{number}", words)
            if number:
                rows.append(row)
                print(
                    f"torch {row[0]:.2f} s, first step after {row[1]:.2f} s: {row[1] - row[0]:.2f} s more", flush=True
                )
    if said := load.words(load.others([watch.span()]), host.cores()):
        print(said)
    torch, step = (statistics.median(values) for values in zip(*rows, strict=True))
    rest = sorted(step - torch for torch, step in rows)
    print(f"median: torch {torch:.2f} s, first step after {step:.2f} s, {step / torch:.2f} times")
    print(f"more than torch: {statistics.median(rest):.2f} s ({rest[0]:.2f} to {rest[-1]:.2f})")


if __name__ == "__main__":
    main()
