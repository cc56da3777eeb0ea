"""Pictures of volumes: which slices, how they are turned, one scale for all, colours of a residual."""

from __future__ import annotations

import numpy as np

from unet.tasks.brains import figure


def test_slices_have_up_and_front_at_the_top() -> None:
    volume = np.full((4, 6, 8), -1.0, np.float32)
    volume[:, -1], volume[:, :, -1] = 0.0, 1.0  # the front is grey, the top is white
    side, front, above = figure.cut(figure.grey(volume, -1.0))
    assert side.shape == (8, 6, 3) and front.shape == (8, 4, 3) and above.shape == (6, 4, 3)
    assert (side[0] == 255).all() and (front[0] == 255).all()
    assert (above[0] == 128).all() and (above[1:] == 0).all()
    assert (side[1:, -1] == 128).all()  # seen from the side the front is on the right


def test_one_scale_for_the_whole_volume() -> None:
    volume = np.linspace(-1, 0, 64, dtype=np.float32).reshape(4, 4, 4)
    shown = figure.grey(volume, -1.0)
    assert shown.min() == 0 and shown.max() == 128
    assert (figure.grey(volume + 1, 0.0).max()) == 255


def test_a_residual_is_white_at_zero_blue_below_and_red_above() -> None:
    blue, white, red, far = figure.signed(np.array([-4.0, 0.0, 4.0, 40.0]))
    assert (white == 255).all() and (red == far).all()
    assert blue[2] > blue[0] and red[0] > red[2]


def test_a_page_has_a_row_for_each_level() -> None:
    cube = np.zeros((8, 8, 8), np.float32)
    arrays = {"image": cube, "mean": cube, "std": cube + 0.1}
    heights = [figure.page(arrays, cube, dict.fromkeys(levels, cube), -1.0).shape[0] for levels in ((1,), (1, 2, 4))]
    assert heights[1] * 2 == heights[0] * 3
