"""Time `python -m unet preprocess` against the published way of preprocessing, on the same patients, in one run.

    python scripts/compare_preprocessing.py data/kaggle_3m 256

The published pipeline (brain-segmentation-pytorch) resizes each patient's whole (slices, H, W, channels) array as one
spline with scikit-image, patient after patient. Both sides are timed as whole processes, start-up and writing included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PUBLISHED = "--published"


def published(raw: Path, size: int, out: Path) -> None:
    """Read, crop, square, resize in 4-D, rescale and save every patient, in the published order of steps."""
    import numpy as np
    from skimage.exposure import rescale_intensity
    from skimage.io import imread
    from skimage.transform import resize

    for folder in sorted(path for path in raw.iterdir() if path.is_dir()):
        names = sorted(folder.glob("*[0-9].tif"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
        volume = np.stack([imread(name) for name in names])[1:-1]
        mask = np.stack([imread(name.with_name(f"{name.stem}_mask.tif")) for name in names])[1:-1]
        volume[volume < 0.1 * volume.max()] = 0
        box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(volume.max(3)))
        volume, mask = volume[box], mask[box]
        height, width = volume.shape[1:3]
        side = max(height, width)
        rows, columns = side - height, side - width
        edges = [(0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)]
        volume, mask = np.pad(volume, [*edges, (0, 0)]), np.pad(mask, edges)
        how = {"mode": "constant", "cval": 0, "anti_aliasing": False}
        image = resize(volume, (len(volume), size, size, 3), order=2, **how)
        label = resize(mask, (len(mask), size, size), order=0, preserve_range=True, **how) > 0
        low, high = np.percentile(image, (10, 99))
        image = rescale_intensity(image, in_range=(low, high), out_range=(0.0, 1.0))
        image = (image - image.mean((0, 1, 2))) / image.std((0, 1, 2))
        np.save(out / f"{folder.name}.npy", image)
        np.save(out / f"{folder.name}_mask.npy", label[..., None].astype(np.float64))


def timed(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(words, check=True)
    return time.perf_counter() - start


def main(raw: Path, size: int) -> None:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        theirs.mkdir()
        program = [sys.executable, "-m", "unet", "preprocess", "--data", str(raw.absolute()), "--image-size", str(size)]
        seconds: dict[str, list[float]] = {"ours": [], "published": []}
        for number in range(3):
            seconds["ours"].append(timed([*program, "--cache", f"{ours}-{number}"]))
        words = [sys.executable, __file__, PUBLISHED, str(raw), str(size), str(theirs)]
        seconds["published"].append(timed(words))
        for number in range(3, 5):
            seconds["ours"].append(timed([*program, "--cache", f"{ours}-{number}"]))
        names = sorted(path.name for path in theirs.iterdir())
        largest = max(float(np.abs(np.load(theirs / name) - np.load(f"{ours}-0/{name}")).max()) for name in names)
    ratio = seconds["published"][0] / float(np.median(seconds["ours"]))
    print(
        json.dumps(
            {"seconds": seconds, "published_over_ours": ratio, "largest_difference": largest, "arrays": len(names)}
        )
    )


if __name__ == "__main__":
    if sys.argv[1] == PUBLISHED:
        published(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]))
