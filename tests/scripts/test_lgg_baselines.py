"""Baselines without a network: what they choose, and what they give of a set."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "scripts"))
import lgg_baselines


class Made:
    """A case of four slices: a bright square, which is the tumour, and a bright dot elsewhere."""

    def __init__(self, name: str, row: int) -> None:
        self.id, self.shape = name, (4, 16, 16, 3)
        self.image, self.mask = np.zeros(self.shape, np.float32), np.zeros((4, 16, 16, 1), np.uint8)
        self.image[1:3, row : row + 4, 4:8, 1] = 3
        self.image[0, 0, 15, 1] = 4
        self.mask[1:3, row : row + 4, 4:8] = 1

    def arrays(self) -> tuple[Any, Any]:
        return self.image, self.mask


def test_a_threshold_is_chosen_on_the_training_cases() -> None:
    cases = [Made("a", 2), Made("b", 6)]
    (level, largest), mean = lgg_baselines.best(cases, lgg_baselines.flair, lgg_baselines.THRESHOLDS)
    assert (level, largest, mean) == (0.0, True, 1.0)  # the dot is another component
    assert lgg_baselines.scores(cases, lgg_baselines.flair, (level, False))["a"] == pytest.approx(64 / 65)


def test_the_mean_of_masks() -> None:
    image = lgg_baselines.mean_mask([Made("a", 2), Made("b", 4)])
    share = image(Made("c", 2))
    assert share.shape == (4, 16, 16)
    assert share[1, 2, 4] == 0.5 and share[1, 4, 4] == 1 and share[0].max() == 0


def test_a_set(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(phantoms), "--cache", "cache", "--image-size", "16", "--fold", "0", "--folds", "3"]
    assert lgg_baselines.main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 training patients, 2 validation patients, 16 px")
    means = [float(value) for value in re.findall(r"^  mean DSC ([\d.]+)", out, re.MULTILINE)]
    assert len(means) == 2 and all(0 < mean < 1 for mean in means)
    assert lgg_baselines.main([*words[:6], "--split", "none"]) == 2
    assert "--split published" in capsys.readouterr().err
    assert lgg_baselines.main(["--data", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
