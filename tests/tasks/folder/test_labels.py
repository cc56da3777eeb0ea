"""Classes and the values that masks give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unet.errors import DataError
from unet.tasks.folder import figure
from unet.tasks.folder.labels import IGNORED, Labels, Names, from_values, require_same

HERE = Path("set")


@pytest.mark.parametrize(
    ("found", "values", "names"),
    [
        ([0, 255], (0, 255), ("background", "foreground")),
        ([0, 1, 2, 4], (0, 1, 2, 4), ("background", "class 1", "class 2", "class 4")),
        ([0, 1000], (0, 1000), ("background", "foreground")),
    ],
)
def test_values_are_mapped_and_mapped_back(found: list[int], values: tuple[int, ...], names: tuple[str, ...]) -> None:
    labels = from_values(found, {}, None, HERE)
    assert (labels.values, labels.names) == (values, names)
    mask = np.array(found * 3)
    classes = labels.classes_of(mask, HERE)
    assert classes.dtype == np.uint8
    assert classes.tolist() == list(range(len(found))) * 3
    assert np.array_equal(labels.values_of(classes), mask)
    assert str(found[-1]) in labels.told()


def test_an_ignored_value_has_no_class() -> None:
    labels = from_values([0, 1, 9], {"background": 0, "organ": 1}, 9, HERE)
    assert labels.classes_of(np.array([0, 1, 9]), HERE).tolist() == [0, 1, IGNORED]
    assert "9 is ignored" in labels.told()


def test_a_class_that_no_mask_has_stays() -> None:
    assert from_values([0, 2], {"background": 0, "a": 1, "b": 2}, None, HERE).classes == 3
    assert not Labels((0, 1, 2), ("background", "a", "b")).told()


@pytest.mark.parametrize(
    ("found", "names", "words"),
    [
        ([1, 2], {}, "no voxel of any mask is 0, the background; the values are 1, 2"),
        ([0], {}, "every mask is empty"),
        (list(range(150)), {}, "masks hold 150 values"),
        ([0, 1, 3], {"background": 0, "organ": 1}, "masks hold 3, which dataset.json does not name"),
    ],
)
def test_values_that_are_no_classes(found: list[int], names: dict[str, int], words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_values(found, names, None, HERE)


def test_a_mask_with_another_value() -> None:
    with pytest.raises(DataError, match=r"m.png: holds the value 7, which is no class of this set \(0, 1\)"):
        Labels((0, 1), ("background", "organ")).classes_of(np.array([0, 7]), Path("m.png"))


def test_names_that_a_set_has_twice_contradict_nothing() -> None:
    """nnU-Net names channels by their normalisation: several may be `noNorm`."""
    classes = {"background": 0, "organ": 1, "ORGAN": 2}
    labels = Labels(tuple(classes.values()), tuple(classes))
    require_same(HERE, Names(("noNorm", "CT", "noNorm"), classes), ("noNorm", "CT", "noNorm"), labels)
    with pytest.raises(DataError, match="the channels are CT, noNorm, noNorm"):
        require_same(HERE, Names(("CT", "noNorm", "noNorm")), ("noNorm", "CT", "noNorm"))
    with pytest.raises(DataError, match="organ 2"):
        require_same(HERE, Names((), {"background": 0, "Organ": 2}), (), Labels((0, 1), ("background", "organ")))


def test_what_is_ignored_is_no_error_in_a_picture() -> None:
    target = np.full((1, 4, 4), IGNORED)
    target[0, 0, :2] = 0, 1
    shown = figure.slices(np.zeros((1, 1, 4, 4), np.float32), target, np.ones((1, 4, 4), np.uint8))
    assert shown["truth"][0].sum() == 1
    assert shown["prediction"][0].sum() == shown["prediction"][0, 0, :2].sum() == 2
