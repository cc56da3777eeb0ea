"""Memory of a prediction: many classes on a large volume, whose logits are never held."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tasks.folder import sets as made

PEAK = """
import sys
from unet import cli, host
code = cli.main(sys.argv[1:])
print("peak", host.peak_memory())
sys.exit(code)
"""
BRIEF = ["--epochs", "1", "--epoch-batches", "1", "--batch-size", "2"]
CLASSES, SIDE, PATCH = 100, 128, 32


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_logits_of_many_classes_are_not_kept(cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(3):
        mask = np.kron(random.permutation(125).reshape(5, 5, 5) % CLASSES, np.ones((8, 8, 8))).astype(np.uint8)
        made.write(tmp_path / f"data/set/imagesTr/{number}_0000.npy", mask.astype(np.float32))
        made.write(tmp_path / f"data/set/labelsTr/{number}.npy", mask)
    small = ["--patch", str(PATCH), "--width", "2", "--widest", "4", "--layers", "2", "--device", "cpu"]
    code, _, err = cli("train", "--task", "folder", "--data", "set", "--run-name", "a", *small, *BRIEF)
    assert code == 0, err
    peaks = {}
    for side in (PATCH, SIDE):
        volume = random.integers(0, 100, (side,) * 3).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.9, 0.9, 0.9, 1])), f"{side}.nii.gz")
        words = ["predict", f"{side}.nii.gz", "--weights", "a.safetensors", "--overlap", "0", "--device", "cpu"]
        done = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[side] = int(done.stdout.split("peak ")[1])
    logits = 4 * CLASSES * SIDE**3
    row = logits * PATCH // SIDE  # what a row of windows takes
    images = 40 * SIDE**3
    assert peaks[SIDE] - peaks[PATCH] < row + images + 2**27, "a row of windows, the image and a slab"
    assert row + images + 2**27 < 0.6 * logits
