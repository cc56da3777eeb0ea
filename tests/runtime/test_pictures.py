"""The pictures of a run and of predict: read by the colour-blind, from one epoch on, large enough to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_config

from unet.data import drawing
from unet.runtime.callbacks import pictures
from unet.tasks.kits19 import figure
from unet.tasks.registry import BUILT_IN, create, task_class

OKABE_ITO = {"#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000"}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are saved, with their layout made."""
    from matplotlib import pyplot

    found: list[Any] = []

    def save(figure: Any, path: Path) -> None:
        figure.canvas.draw()
        found.append(figure)

    monkeypatch.setattr(pictures, "_save", save)
    yield found
    pyplot.close("all")


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_curves_are_seen_from_the_first_epoch_on(figures: list[Any], epochs: int) -> None:
    rows = [{"epoch": n, "loss": 1.5 / n, "eval_loss": 2.0 / n, "score": 1 - 0.9 / n} for n in range(1, epochs + 1)]
    pictures.progress(rows, epochs, "dsc", "run", Path("unused.png"))
    (figure,) = figures
    left, right = figure.axes
    for line in (*left.get_lines(), right.get_lines()[0]):
        assert line.get_color() in OKABE_ITO
        x, y = line.get_data()
        axis = line.axes
        (low, high), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        assert low < min(x) and max(x) < high and bottom <= min(y) and max(y) < top
        assert line.get_markersize() >= (7 if epochs < 4 else 3)
    shown = [tick for tick in left.get_xticks() if left.get_xlim()[0] <= tick <= left.get_xlim()[1]]
    assert shown and all(tick == int(tick) for tick in shown)
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(axis.get_tightbbox()) for axis in figure.axes)
    assert len(figure.legends[0].get_texts()) == 3


def test_the_marked_epoch_is_the_best_of_the_run(figures: list[Any]) -> None:
    """Also where less is better."""
    rows = [{"epoch": n, "loss": 1.0, "score": score} for n, score in enumerate((5.0, 2.0, float("nan")), 1)]
    pictures.progress(rows, 2, "error", "run", Path("unused.png"))
    assert "best 2.000, epoch 2" in figures[0].legends[0].get_texts()[-1].get_text()


def test_losses_that_are_not_finite_leave_a_gap(figures: list[Any]) -> None:
    rows = [{"epoch": 1, "loss": float("nan")}, {"epoch": 2, "loss": float("inf")}, {"epoch": 3, "loss": 0.5}]
    pictures.progress(rows, 0, "dsc", "run", Path("unused.png"))
    assert figures[0].axes[0].get_ylim() == pytest.approx((0, 0.525))


def test_probabilities_have_a_bar_and_colours_a_key(figures: list[Any]) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    pictures.panels([("a", {"image": image, "chance": np.zeros((8, 8))})], "t", Path("unused.png"), drawing.KEY)
    pictures.panels([("a", {"image": image})], "t", Path("unused.png"))
    assert [axis.get_ylabel() for axis in figures[0].axes] == ["a", "", "probability"]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["truth", "prediction", "both"]
    assert len(figures[1].axes) == 1 and not figures[1].legends


@pytest.mark.parametrize("name", [name for name in BUILT_IN if task_class(name).colour_key])
def test_colours_are_told_apart_by_the_colour_blind(name: str) -> None:
    known = {"classes": ("background", *"abcdefg")} if name == "folder" else {}
    colours = [colour for _, colour in create(make_config(name, **known)).colour_key]
    assert len(colours) >= 2
    assert {"#{:02X}{:02X}{:02X}".format(*colour) for colour in colours} <= OKABE_ITO


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((64, 64), (512, 512)), ((256, 200), (768, 600)), ((512, 700), (512, 700)), ((2, 900), (8, 3600))],
)
def test_overlays_are_large_enough(shape: tuple[int, int], wanted: tuple[int, int]) -> None:
    image = np.arange(np.prod(shape) * 3).astype(np.uint8).reshape(*shape, 3)
    large = drawing.enlarged(image)
    assert large.shape == (*wanted, 3)
    times = drawing.factor(shape)
    assert np.array_equal(large[::times, ::times], image)


def test_outlines_say_where_truth_and_prediction_meet() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    a, b = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    a[4:12, 4:12], b[4:12, 4:16] = True, True
    drawn = drawing.outlined(image, a, b)
    assert tuple(drawn[4, 4]) == drawing.BOTH
    assert tuple(drawn[8, 11]) == drawing.PREDICTED
    assert tuple(drawn[8, 15]) == drawing.TRUE
    assert tuple(drawn[8, 8]) == (100, 100, 100)
    assert tuple(drawing.filled(image, a, b)[8, 8]) == tuple((100 + part) // 2 for part in drawing.BOTH)


def test_an_area_without_an_end_shows_at_the_border_of_the_image() -> None:
    """A prediction of every pixel had no outline: its picture looked like one of nothing."""
    image, every = np.full((20, 20, 3), 100, np.uint8), np.ones((20, 20), bool)
    drawn = drawing.outlined(image, every)
    assert tuple(drawn[0, 9]) == tuple(drawn[9, 19]) == drawing.PREDICTED
    assert tuple(drawn[9, 9]) == (100, 100, 100)


def test_a_volume_shows_a_slice_of_each_class() -> None:
    logits = torch.zeros(3, 6, 40, 40)
    logits[0] = 1
    logits[1, 1, 5:20, 5:20] = 2
    logits[2, 4, 25:30, 25:30] = 2
    volume = np.zeros((6, 40, 40), np.float32)
    sheet = figure.overlay(volume, logits.argmax(0).numpy())
    times = drawing.factor((40, 40))
    assert sheet.shape == (40 * times + drawing.STRIP, 2 * 40 * times, 3)
    left, right = sheet[drawing.STRIP :, : 40 * times], sheet[drawing.STRIP :, 40 * times :]
    assert tuple(left[5 * times, 5 * times]) == drawing.ORANGE and tuple(right[25 * times, 25 * times]) == drawing.SKY
    assert not (left == drawing.SKY).all(-1).any() and not (right == drawing.ORANGE).all(-1).any()
