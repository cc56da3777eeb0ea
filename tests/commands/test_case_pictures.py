"""Which cases get pictures, and pictures of more classes than a palette has room for."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from conftest import read_json
from PIL import Image

from unet.commands import case_pictures
from unet.config.run_files import PICTURES
from unet.data import drawing
from unet.runtime.folders.run_folder import RunFolder


def test_a_hundred_classes_fit_the_palette() -> None:
    truth = np.arange(250, dtype=np.uint8).reshape(1, 10, 25)
    prediction = np.zeros_like(truth)
    png, entry = case_pictures.strip({"image": truth, "truth": truth, "prediction": prediction})
    shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    labels, nothing, errors = (shown[:, 25 * number : 25 * (number + 1)].reshape(250, 4) for number in (1, 2, 3))
    colours = case_pictures.colours_of(249)
    assert [tuple(colour[:3]) for colour in labels[1:].tolist()] == colours
    assert (labels[0, 3], nothing[:, 3].max(), errors[0, 3]) == (0, 0, 0)
    assert {tuple(colour[:3]) for colour in errors[1:].tolist()} == {drawing.TRUE}
    assert len(entry["key"]["labels"]) == 249


@pytest.mark.parametrize(
    ("sign", "scored", "expected"),
    [
        (1, [0.5, 0.1, 0.9, 0.3, 0.4], [0.1, 0.3, 0.4, 0.9]),
        (-1, [0.5, 0.1, 0.9, 0.3, 0.4], [0.9, 0.5, 0.4, 0.1]),
        (1, [0.5, 0.1], [0.1, 0.5, None, None]),
    ],
)
def test_cases_without_a_score_are_not_the_worst(
    sign: int, scored: list[float], expected: list[float | None], tmp_path: Path
) -> None:
    extremes = case_pictures.Extremes(sign)
    scores = [*[math.nan] * 3, *scored, *[math.nan] * 3]
    for number, score in enumerate(scores):
        extremes.add(score, f"case_{number}", lambda: {"image": np.zeros((1, 8, 8), np.uint8)})
    folder = RunFolder(tmp_path)
    case_pictures.write(folder, [extremes.rows])
    entries = read_json(tmp_path / PICTURES)["cases"]
    assert [entry["score"] for entry in entries] == expected
    places = ["worst", "worst", "worst", "best"] if len(scored) > 2 else ["worst", "best", "unscored", "unscored"]
    assert [entry["place"] for entry in entries] == places
