"""Pages of training patches before and after each change."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from unet.data.cache.cached_case import CachedCase
from unet.data.loading.crops import Volumes
from unet.data.loading.patches import EpochPatches
from unet.data.loading.preview import COLOURS, IGNORE_COLOUR, outlined, pages, strength, with_change
from unet.data.transforms.augmentation import NAMES, Augmentation, Drawn


@pytest.fixture
def case(tmp_path: Path) -> CachedCase:
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in (18, 40, 44)), indexing="ij"))
    ball = (at**2).sum(0) < 0.4
    image = np.stack([np.sin(5 * at).sum(0), -np.cos(4 * at).sum(0)]).astype(np.float32)
    mask = ball.astype(np.uint8)[None]
    mask[:, :, 30:, 30:] = 255
    np.save(tmp_path / "a.npy", image)
    np.save(tmp_path / "a_mask.npy", mask)
    return CachedCase("a", tmp_path / "a.npy", tmp_path / "a_mask.npy", image.shape, (1,))


@pytest.mark.parametrize("patch", [(16, 24, 32), (4, 24, 32), (1, 24, 32)])
def test_a_page_shows_every_change(case: CachedCase, patch: tuple[int, ...]) -> None:
    data = EpochPatches(Volumes([case]), patch, 2, 4, 7, 0.33, Augmentation(), late=True)
    found = list(pages(data, 3, channel=1))
    assert [name for name, _ in found] == ["a_0", "a_1", "a_2"]  # of two batches
    for _, page in found:
        assert page.dtype == np.uint8 and page.shape[2] == 3
        rows = page.reshape(4, -1, *page.shape[1:])
        cells = [cell for row in rows for cell in np.split(row[:, : page.shape[1] // 3 * 3], 3, axis=1)]
        assert len(cells) == len(NAMES) + 2
        different = {cell[40:].tobytes() for cell in cells[:-1]}  # below the words
        assert len(different) == len(NAMES) + 1
    assert data.late  # what is shown is a copy


def test_all_together_is_what_training_sees(case: CachedCase) -> None:
    data = EpochPatches(Volumes([case]), (16, 24, 32), 2, 4, 7, 0.33, Augmentation(), late=True)
    batch = with_change(data, data.change)[1, 2]
    assert torch.equal(batch["image"], data.finish(data[1, 2])["image"])


def test_words_tell_what_was_drawn() -> None:
    patch = (1, 20, 20)
    how = Augmentation.off()
    drawn = dataclasses.replace(
        Drawn(),
        flips=(True, False, True),
        noise=0.071,
        blur=(None, (0.0, 0.5, 0.75)),
        gamma=(1.0, 1.25),
        matrix=((1.0, 0.0, 0.0), (0.0, 0.8, 0.0), (0.0, 0.0, 0.8)),
        still=0,
    )
    assert how.still_axis(patch) == 0
    told = [strength(name, drawn, 1, patch) for name in ("mirror", "noise", "blur", "gamma", "scale")]
    assert told == ["mirrored: W", "noise: 0.07", "blur: 0.50 0.75", "gamma: 1.25", "objects 1.25 times as large"]


def test_labels_are_outlined_and_ignored_voxels_hatched() -> None:
    image, mask = np.zeros((20, 20), np.float32), np.zeros((20, 20), np.uint8)
    mask[4:9, 4:9], mask[12:18, 12:18], mask[2, 15:] = 1, 255, 9
    shown = outlined(image, mask, (-1.0, 1.0))
    assert tuple(shown[4, 4]) == COLOURS[0] and tuple(shown[6, 6]) == (128, 128, 128)
    assert tuple(shown[12, 12]) == IGNORE_COLOUR and tuple(shown[12, 13]) == (128, 128, 128)
    assert tuple(shown[2, 16]) == COLOURS[8 % len(COLOURS)] and tuple(shown[0, 0]) == (128, 128, 128)
