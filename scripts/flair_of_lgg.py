"""Write the FLAIR channel of the LGG patients as volumes for the task brains, each with the mask of its tumour.

    python scripts/flair_of_lgg.py data/kaggle_3m data/lgg_flair
    python -m unet train --task brains --data lgg_flair --resolution 32 --run-name lgg-flair

OUTPUT/<patient>.nii.gz is uint8, OUTPUT/<patient>_lesion.nii.gz holds 0 and 1. What is not over a tenth of the 99.5th
percentile becomes background, and volumes are cut to the rest, so that slices without tissue do not count. The TIFF
files hold no voxel sizes: 1 mm is written, and the affine turns rows to the back and columns to the left. An existing
file is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unet.errors import UnetError, UsageError
from unet.tasks.lgg import dataset

FLAIR = 1  # channel
AFFINE = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])  # (slice, row, column) -> R, A, S


def write_patient(case: dataset.Case, output: Path) -> None:
    """Write a patient's two files. Raises UsageError where one is there."""
    from nibabel.loadsave import save
    from nibabel.nifti1 import Nifti1Image

    image = dataset.read_images(case.images)[..., FLAIR]
    lesion, _ = dataset.read_masks(case.labels)
    brain = image > 0.1 * np.percentile(image, 99.5)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(brain))
    files = {"": np.where(brain, image, 0), "_lesion": (lesion & brain).astype(np.uint8)}
    for ending, array in files.items():
        path = output / f"{case.id}{ending}.nii.gz"
        if path.exists():
            raise UsageError(f"{path}: is there already.", "Name another folder, or remove its files.")
        save(Nifti1Image(np.ascontiguousarray(array[box]), AFFINE), path)


def main(words: Sequence[str]) -> int:
    if len(words) != 2 or words[0] in ("-h", "--help"):
        print(__doc__)
        return 2
    try:
        cases, output = dataset.index(Path(words[0])), Path(words[1])
        output.mkdir(parents=True, exist_ok=True)
        for case in cases:
            write_patient(case, output)
    except UnetError as error:
        print(f"error: {error.message}\n  {error.hint}", file=sys.stderr)
        return error.exit_code
    print(f"{output}: {len(cases)} volumes with masks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
