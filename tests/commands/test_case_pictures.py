"""Pictures of cases with more classes than a palette has room for."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unet.commands import case_pictures
from unet.data import drawing


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
