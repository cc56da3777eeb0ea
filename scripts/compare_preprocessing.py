"""Time `python -m unet preprocess` against the published way of preprocessing, on the same cases, in one run.

    python scripts/compare_preprocessing.py data/kaggle_3m 256
    python scripts/compare_preprocessing.py data/kits19_made kits19

lgg (the second word is the size): the published pipeline (brain-segmentation-pytorch) resizes each patient's whole
(slices, H, W, channels) array as one spline with scikit-image, patient after patient. kits19: the steps of MLPerf's
U-Net3D reference, nibabel's get_fdata and torch's interpolate, case after case, with torch's usual threads. Both sides
are timed as whole processes, start-up and writing included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PUBLISHED = "--published"
KITS19 = "kits19"


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


def mlperf(raw: Path, out: Path) -> None:
    """Read, resample, clip, scale, pad and save every case, in the reference's order of steps."""
    import nibabel
    import numpy as np
    import torch
    from torch.nn.functional import interpolate

    for folder in sorted(path for path in raw.iterdir() if path.is_dir()):
        image, label = (nibabel.load(folder / f"{name}.nii.gz") for name in ("imaging", "segmentation"))
        spacing = np.array(image.header["pixdim"][1:4].tolist())
        x = image.get_fdata().astype(np.float32)[None, None]
        y = label.get_fdata().astype(np.uint8)[None, None]
        size = (spacing / (1.6, 1.2, 1.2) * x.shape[2:]).astype(int).tolist()
        x = interpolate(torch.from_numpy(x), size=size, mode="trilinear", align_corners=True).numpy()[0]
        y = interpolate(torch.from_numpy(y), size=size, mode="nearest").numpy()[0]
        x = (np.clip(x, -79.0, 304.0) - 101.0) / 76.9
        short = [max(0, 128 - side) for side in size]
        edges = [(0, 0), *((side // 2, side - side // 2) for side in short)]
        np.save(out / f"{folder.name}_x.npy", np.pad(x, edges, "edge").astype(np.float32))
        np.save(out / f"{folder.name}_y.npy", np.pad(y, edges, "edge"))


def timed(words: list[str], rows: list[dict[str, float]]) -> float:
    """Seconds of a process; a row of them, of its processor seconds and of the peak of resident bytes (its own, or that
    of its largest worker) is added to `rows`."""
    start = time.perf_counter()
    process = subprocess.Popen(words)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    seconds = time.perf_counter() - start
    rows.append({"s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024})
    return seconds


def main(raw: Path, kind: str) -> None:
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        theirs.mkdir()
        task = ["--task", KITS19] if kind == KITS19 else ["--task", "lgg", "--image-size", kind]
        program = [sys.executable, "-m", "unet", "preprocess", *task, "--data", str(raw.absolute())]
        words = [sys.executable, __file__, PUBLISHED, str(raw), kind, str(theirs)]
        seconds: dict[str, list[float]] = {"ours": [], "published": []}
        rows: dict[str, list[dict[str, float]]] = {"ours": [], "published": []}
        for number in range(5):
            if number == 3:
                seconds["published"].append(timed(words, rows["published"]))
            seconds["ours"].append(timed([*program, "--cache", f"{ours}-{number}"], rows["ours"]))
        names = sorted(path.name for path in theirs.iterdir())
        largest = max(float(np.abs(np.load(theirs / name) - np.load(f"{ours}-0/{name}")).max()) for name in names)
    ratio = seconds["published"][0] / float(np.median(seconds["ours"]))
    result = {"seconds": seconds, "published_over_ours": ratio, "largest_difference": largest, "arrays": len(names)}
    print(json.dumps({**result, "processes": rows}))


if __name__ == "__main__":
    if sys.argv[1] != PUBLISHED:
        main(Path(sys.argv[1]), sys.argv[2])
    elif sys.argv[3] == KITS19:
        mlperf(Path(sys.argv[2]), Path(sys.argv[4]))
    else:
        published(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
