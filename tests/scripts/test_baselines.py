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
import baselines


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
    baseline = baselines.above("flair", baselines.flair, baselines.THRESHOLDS)
    (level, largest), mean = baselines.best(cases, baseline)
    assert (level, largest, mean) == (0.0, True, 1.0)  # the dot is another component
    assert baselines.scores(cases, baseline, (level, False))["a"] == pytest.approx(64 / 65)


def test_the_mean_of_masks() -> None:
    image = baselines.mean_mask([Made("a", 2), Made("b", 4)])
    share = image(Made("c", 2))
    assert share.shape == (4, 16, 16)
    assert share[1, 2, 4] == 0.5 and share[1, 4, 4] == 1 and share[0].max() == 0


class Slice:
    """A case of em: cells are bright, a dark line is the membrane."""

    def __init__(self, name: str, row: int) -> None:
        self.id, self.image, self.mask = (
            name,
            np.full((1, 16, 16, 1), 0.75, np.float32),
            np.ones((1, 16, 16, 1), np.uint8),
        )
        self.image[0, row], self.mask[0, row] = -0.75, 0

    def arrays(self) -> tuple[Any, Any]:
        return self.image, self.mask


def test_membranes_are_dark() -> None:
    threshold, mean = baselines.em([Slice("a", 2), Slice("b", 4)])
    (blur, _), score = baselines.best([Slice("a", 2), Slice("b", 4)], threshold)
    assert blur == 0 and score == pytest.approx(1)
    share, cells = np.ones((16, 16)), np.ones((16, 16))
    share[[2, 4]], cells[2] = 0.5, 0
    expected = [  # of cells, and of membranes
        2 * (share * cells).sum() / (share**2 + cells).sum(),
        2 * ((1 - share) * (1 - cells)).sum() / ((1 - share) ** 2 + 1 - cells).sum(),
    ]
    assert mean.score(Slice("c", 2), None) == pytest.approx(np.mean(expected), abs=1e-5)


class Scan:
    """A case of kits19: a kidney of 1 with a tumour of -1 in it, in the dark."""

    def __init__(self, name: str, first: int) -> None:
        self.id, self.image, self.mask = name, np.full((1, 20, 20, 20), -2.5), np.zeros((1, 20, 20, 20), np.uint8)
        for label, value, side in ((1, 1.05, 8), (2, -1.05, 4)):
            place = (0, *(slice(first, first + side),) * 3)
            self.image[place], self.mask[place] = value, label

    def arrays(self) -> tuple[Any, Any]:
        return self.image, self.mask


def test_kidneys_and_tumours_have_ranges_of_intensity_and_places() -> None:
    training = [Scan("a", 4), Scan("b", 4)]
    ranges, places = baselines.kits19(training)
    how, score = baselines.best(training, ranges)
    assert score == 1 and how[3] and ranges.words(how).startswith("tumour from -")  # the tumour is the darker one
    assert ranges.score(Scan("c", 10), how) == 1
    how, score = baselines.best(training, places)
    assert score == 1 and places.score(Scan("d", 4), how) == 1
    assert places.score(Scan("e", 6), how) == pytest.approx((152 / 448 + 8 / 64) / 2)
    assert places.score(Scan("f", 12), how) == 0


def test_a_set(
    phantoms: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(phantoms), "--cache", "cache", "--image-size", "16", "--fold", "0", "--folds", "3"]
    assert baselines.main(words) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 training patients, 2 validation patients, 16 px")
    means = [float(value) for value in re.findall(r"^  mean DSC ([\d.]+)", out, re.MULTILINE)]
    assert len(means) == 2 and all(0 < mean < 1 for mean in means)
    assert baselines.main(["--task", "brains"]) == 2
    assert "lgg, em, kits19" in capsys.readouterr().err
    assert baselines.main([*words[:6], "--split", "none"]) == 2
    assert "--fold 0" in capsys.readouterr().err
    assert baselines.main(["--data", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_a_damaged_cache_is_an_error_in_two_lines(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data", str(phantoms), "--cache", "./cache", "--image-size", "16", "--fold", "0", "--folds", "3"]
    assert baselines.main(words) == 0
    image = max(Path("cache").rglob("*.npy"), key=lambda path: path.stat().st_size)
    image.write_bytes(bytes(10) + image.read_bytes()[10:])  # of the same size: found when it is read
    capsys.readouterr()
    assert baselines.main(words) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line.split(":")[0] for line in lines if "rror" in line] == ["error"] and image.name in lines[-2]
