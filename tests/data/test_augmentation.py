"""Each change of a patch on its own: what it changes and what it leaves, its bounds, how often it comes; the same
numbers on any number of threads; nothing read from a device."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unet.data.transforms import appearance
from unet.data.transforms.augmentation import NAMES, Augmentation, Drawn
from unet.data.transforms.resampling import resampled

SPACE, PLANE, THIN = (24, 20, 28), (1, 40, 36), (6, 32, 36)
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
INTENSITY = NAMES[3:]


def draws(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=draws(seed))


def smooth(*shape: int) -> Tensor:
    """A scene without jumps, of mean about 0."""
    lines = [torch.linspace(0, 3.0 + axis, side) for axis, side in enumerate(shape[1:])]
    grid = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([torch.sin(grid[0] + channel) + torch.cos(grid[1]) * grid[2] for channel in range(shape[0])])


def labels(*shape: int, seed: int = 0) -> Tensor:
    """Blocks of the classes 0, 1, 7 and of voxels to be ignored, 255."""
    coarse = torch.randint(4, tuple(-(-side // 4) for side in shape), generator=draws(seed))
    fine = coarse
    for axis, side in enumerate(shape):
        fine = fine.repeat_interleave(4, axis).narrow(axis, 0, side)
    return torch.tensor([0, 1, 7, 255], dtype=torch.uint8)[fine][None]


def turned(degrees: float, axis: int = 0, scale: float = 1.0) -> tuple[tuple[float, ...], ...]:
    cos, sin = math.cos(math.radians(degrees)) * scale, math.sin(math.radians(degrees)) * scale
    one, other = (number for number in range(3) if number != axis)
    matrix = [[0.0] * 3 for _ in range(3)]
    matrix[axis][axis] = scale
    matrix[one][one] = matrix[other][other] = cos
    matrix[one][other], matrix[other][one] = -sin, sin
    return tuple(map(tuple, matrix))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# What is drawn.


@pytest.mark.parametrize("name", NAMES)
def test_a_change_comes_as_often_as_it_shall(name: str) -> None:
    how, generator = Augmentation(), draws(3)
    drawn = [how.draw(SPACE, 2, generator) for _ in range(3000)]
    still = [how.alone(name).draw(SPACE, 2, generator) for _ in range(20)]
    if name == "mirror":
        for axis in range(3):
            assert np.mean([each.flips[axis] for each in drawn]) == pytest.approx(0.5, abs=0.03)
        return
    came = {
        "rotate": lambda each: each.matrix is not None and each.matrix[0][1] != 0,
        "scale": lambda each: each.matrix is not None and abs(np.linalg.det(each.matrix) - 1) > 1e-9,
        "blur": lambda each: each.blur[0] is not None,
        "coarse": lambda each: each.coarse[1] is not None,
    }.get(name, lambda each: getattr(each, name) is not None)
    share = getattr(how, name) * (0.5 if name in ("blur", "coarse") else 1)  # half of the channels
    assert np.mean([came(each) for each in drawn]) == pytest.approx(share, abs=0.025)
    assert all(came(each) for each in still)
    assert all(each == dataclasses.replace(Drawn(), **own(each, name)) for each in still)


def own(drawn: Drawn, name: str) -> dict[str, object]:
    """The entries of a draw that a change may have, and those that say nothing."""
    kept = {"rotate": "matrix", "scale": "matrix"}.get(name, name)
    empty = {"blur": (None, None), "coarse": (None, None)}
    return {**empty, "noise_seed": drawn.noise_seed, "still": drawn.still, kept: getattr(drawn, kept)}


def test_what_is_drawn_stays_in_its_range() -> None:
    how, generator = Augmentation(), draws(4)
    drawn = [how.draw(SPACE, 2, generator) for _ in range(4000)]
    for name, (low, high) in (
        ("brightness", how.brightness_range),
        ("contrast", how.contrast_range),
        ("gamma", how.gamma_range),
        ("gamma_inverted", how.gamma_range),
    ):
        values = np.array([getattr(each, name) for each in drawn if getattr(each, name)])
        assert low <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high
        assert np.mean(values < 1) == pytest.approx(0.5, abs=0.05)
        assert not np.array_equal(values[:, 0], values[:, 1])  # each channel has its own
    sigmas = [each.noise for each in drawn if each.noise is not None]
    assert 0 <= min(sigmas) < 0.01 and 0.09 < max(sigmas) <= 0.1
    blurs = np.array([axis for each in drawn for own in each.blur if own for axis in own])
    assert 0.5 <= blurs.min() < 0.52 and 0.98 < blurs.max() <= 1
    shares = [share for each in drawn for share in each.coarse if share is not None]
    assert 0.5 <= min(shares) < 0.52 and 0.98 < max(shares) <= 1
    scales = [abs(np.linalg.det(each.matrix)) ** (1 / 3) for each in drawn if each.matrix]
    assert min(scales) + 1e-9 >= 0.7 and min(scales) < 0.72 and 1.38 < max(scales) <= 1.4 + 1e-9


def test_probabilities_of_one_change_do_not_move_the_draws_of_another() -> None:
    a = Augmentation().draw(SPACE, 2, draws(5))
    b = dataclasses.replace(Augmentation(), rotate=1.0, noise=1.0, blur=0.0).draw(SPACE, 2, draws(5))
    assert (a.flips, a.brightness, a.gamma, a.coarse) == (b.flips, b.brightness, b.gamma, b.coarse)


def test_off_changes_nothing() -> None:
    off = Augmentation.off()
    for patch in (SPACE, PLANE, THIN):
        how = off.draw(patch, 2, draws())
        assert how == dataclasses.replace(Drawn(), **own(how, "noise"))
        assert off.region(patch) == patch
    image = noise(2, *SPACE)
    assert torch.equal(appearance.changed(image.clone(), off.draw(SPACE, 2, draws())), image)


@pytest.mark.parametrize(
    ("patch", "still", "angle"),
    [
        ((64, 64, 64), None, 30),
        ((32, 96, 96), None, 30),
        ((20, 64, 64), 0, 180),
        ((64, 64, 20), 2, 180),
        ((16, 64, 128), 0, 15),
        ((1, 64, 64), 0, 180),
        ((1, 64, 128), 0, 15),
    ],
)
def test_thin_patches_turn_in_their_plane(patch: tuple[int, ...], still: int | None, angle: float) -> None:
    how = Augmentation(rotate=1.0, scale=1.0)
    assert how.still_axis(patch) == still and how.largest_angle(patch) == angle
    generator, turns = draws(), []
    for _ in range(300):
        drawn = how.draw(patch, 1, generator)
        assert drawn.still == still and drawn.matrix
        if still is not None:
            row = [0.0] * 3
            row[still] = 1.0
            assert list(drawn.matrix[still]) == row and [each[still] for each in drawn.matrix] == row
            one, other = (axis for axis in range(3) if axis != still)
            turns.append(math.degrees(math.atan2(drawn.matrix[other][one], drawn.matrix[one][one])))
    if turns:
        assert angle * 0.95 < max(map(abs, turns)) <= angle + 1e-9


def test_the_still_axis_can_be_given() -> None:
    assert Augmentation(still=1).still_axis((64, 64, 64)) == 1
    assert Augmentation(still=-1).still_axis((10, 64, 64)) is None
    assert Augmentation(still=-1).still_axis((1, 64, 64)) == 0  # one slice cannot turn out of its plane


def test_turns_know_the_spacing() -> None:
    how = Augmentation(rotate=1.0, scale=0.0, spacing=(3.0, 1.0, 1.0))
    matrix = np.array(how.draw((32, 64, 64), 1, draws()).matrix)
    size = np.diag(how.spacing)
    in_millimetres = size @ matrix @ np.linalg.inv(size)
    assert np.allclose(in_millimetres @ in_millimetres.T, np.eye(3)) and not np.allclose(matrix @ matrix.T, np.eye(3))


@pytest.mark.parametrize("patch", [SPACE, PLANE, THIN, (33, 64, 65)])
def test_the_region_holds_each_turn_and_each_scale(patch: tuple[int, ...]) -> None:
    how = Augmentation()
    region, still = how.region(patch), how.still_axis(patch)
    assert all((whole - length) % 2 == 0 and whole >= length for whole, length in zip(region, patch, strict=True))
    angle = how.largest_angle(patch)
    for axis, degrees in itertools.product(range(3), (0, angle / 2, angle)):
        for scale in (0.7, 1.0, 1.4) if degrees == 0 else (0.7, 1.0):
            if still in (None, axis):
                matrix = np.abs(np.array(turned(degrees, axis, scale)))
                reached = matrix @ (np.array(patch) - 1)
                for number in range(3):
                    if number != still:
                        assert reached[number] <= region[number], (axis, degrees, scale)
    assert still is None or region[still] == patch[still]


# Turned and scaled.


@pytest.mark.parametrize("still", [None, 0, 1, 2])
def test_the_identity_cuts_out_the_centre(still: int | None) -> None:
    region = [side + 6 for side in SPACE]
    if still is not None:
        region[still] = SPACE[still]
    image, mask = noise(3, *region), labels(*region)
    changed, found = resampled(image, mask, IDENTITY, SPACE, still)
    inner = tuple(slice((whole - side) // 2, (whole + side) // 2) for whole, side in zip(region, SPACE, strict=True))
    assert torch.allclose(changed, image[(slice(None), *inner)], atol=1e-5)
    assert torch.equal(found, mask[(slice(None), *inner)])


@pytest.mark.parametrize("matrix", [turned(25, 0), turned(-30, 2, 1.2), turned(10, 1, 0.7)])
def test_images_are_linear_and_masks_nearest_as_torch_samples_them(matrix: tuple[tuple[float, ...], ...]) -> None:
    region = (44, 42, 48)
    image, mask = noise(2, *region), labels(*region)
    changed, found = resampled(image, mask, matrix, SPACE)
    axes = [torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in SPACE]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) @ torch.tensor(matrix, dtype=torch.float64).T
    grid = (places * 2 / torch.tensor(region)).flip(-1)[None]
    expected = F.grid_sample(image[None].double(), grid, align_corners=False)[0]
    assert torch.allclose(changed.double(), expected, atol=1e-4)  # fp32 places: 1e-6 of the region's side
    nearest = F.grid_sample(mask[None].double(), grid, mode="nearest", align_corners=False)[0]
    assert (found != nearest).float().mean() < 1e-3  # a place half way between two voxels may round either way


def test_a_quarter_turn_moves_every_voxel() -> None:
    image, mask = noise(2, 1, 21, 21), labels(1, 21, 21)
    changed, found = resampled(image, mask, turned(90), (1, 21, 21), 0)
    assert torch.allclose(changed, torch.rot90(image, -1, (2, 3)), atol=1e-4)
    assert torch.equal(found, torch.rot90(mask, -1, (2, 3)))


def test_a_scale_above_one_makes_objects_smaller() -> None:
    image, mask = torch.zeros(1, 1, 61, 61), torch.zeros(1, 1, 61, 61, dtype=torch.uint8)
    image[..., 20:41, 20:41], mask[..., 20:41, 20:41] = 1.0, 1
    areas = []
    for scale in (0.7, 1.0, 1.4):
        changed, found = resampled(image, mask, ((1, 0, 0), (0, scale, 0), (0, 0, scale)), (1, 41, 41), 0)
        areas.append(int(found.sum()))
        assert changed.sum() == pytest.approx((21 / scale) ** 2, rel=0.05)
    assert areas[0] > areas[1] == 441 > areas[2]


@pytest.mark.parametrize("patch", [SPACE, PLANE, THIN])
def test_masks_get_no_new_values_and_fit_their_image(patch: tuple[int, ...]) -> None:
    how = Augmentation(rotate=1.0, scale=1.0)
    region, generator = how.region(patch), draws(8)
    for seed in range(5):
        drawn, mask = how.draw(patch, 1, generator), labels(*region, seed=seed)
        assert drawn.matrix
        image = (mask == 7).float()
        changed, found = resampled(image, mask, drawn.matrix, patch, drawn.still, (0.0, 255))
        assert found.dtype == torch.uint8 and set(found.unique().tolist()) <= {0, 1, 7, 255}
        # where all neighbours are of the class the image is 1, where none is, 0
        assert ((changed == 1) <= (found == 7)).all()
        assert (found[changed == 0] != 7).all()
        assert torch.isfinite(changed).all() and changed.min() >= 0 and changed.max() <= 1


def test_beyond_the_region_is_outside() -> None:
    image, mask = torch.full((2, *PLANE), 5.0), torch.full((1, *PLANE), 3, dtype=torch.uint8)
    changed, found = resampled(image, mask, turned(45, 0, 1.4), PLANE, 0, (-2.0, 255))
    assert set(found.unique().tolist()) == {3, 255} and set(changed.unique().tolist()) == {5.0, -2.0}
    assert torch.equal(changed[0] == -2, found[0] == 255) and changed[0, 0, 0, 0] == -2
    changed, found = resampled(image, mask, turned(30, 0, 0.7), PLANE, 0, (-2.0, 255))
    assert (changed == 5).all() and (found == 3).all()


# Grey values.


def test_noise_has_its_deviation_and_nothing_else() -> None:
    image = smooth(2, 40, 40, 40)
    result = appearance.noisy(image.clone(), 0.3, 7)
    added = result - image
    assert added.std() == pytest.approx(0.3, rel=0.02) and added.mean() == pytest.approx(0, abs=0.01)
    assert torch.equal(result, appearance.noisy(image.clone(), 0.3, 7))
    assert not torch.equal(result, appearance.noisy(image.clone(), 0.3, 8))
    assert torch.equal(appearance.noisy(image.clone(), 0.0, 7), image)
    assert abs(np.corrcoef(*added.reshape(2, -1).numpy())[0, 1]) < 0.02  # each channel has its own


def test_blur_smooths_the_chosen_channels_along_each_axis_by_its_deviation() -> None:
    image = noise(3, 30, 32, 34)
    result = appearance.blurred(image.clone(), [(0.5, 0.8, 1.0), None, (0.0, 0.0, 0.0)])
    assert torch.equal(result[1:], image[1:])
    assert result[0].std() < 0.5 * image[0].std()
    assert result[0].mean() == pytest.approx(image[0].mean().item(), abs=0.01)
    least, most = torch.aminmax(image[0])
    assert result[0].min() >= least and result[0].max() <= most
    point = torch.zeros(1, 15, 15, 15)
    point[0, 7, 7, 7] = 1
    spread = appearance.blurred(point, [(0.5, 0.75, 1.0)])[0]
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    at = torch.arange(15) - 7.0
    for axis, deviation in enumerate((0.5, 0.75, 1.0)):
        line = spread.sum([other for other in range(3) if other != axis])
        variance = (line * at**2).sum().item()  # a voxel is a square of variance 1 / 12; the ends are cut off
        assert variance == pytest.approx(deviation**2 + 1 / 12, rel=0.03)


def test_brightness_multiplies_each_channel() -> None:
    image = noise(2, *PLANE)
    result = appearance.brighter(image.clone(), (0.75, 1.25))
    assert torch.equal(result, image * torch.tensor([0.75, 1.25]).reshape(2, 1, 1, 1))
    assert torch.equal(appearance.brighter(image.clone(), (1.0, 1.0)), image)


def test_contrast_stretches_about_the_mean_and_keeps_the_range() -> None:
    image = noise(2, *SPACE) + 5
    result = appearance.contrasted(image.clone(), (0.75, 1.25))
    mean = image.mean((1, 2, 3), keepdim=True)
    expected = (image - mean) * torch.tensor([0.75, 1.25]).reshape(2, 1, 1, 1) + mean
    assert torch.allclose(result[0], expected[0], atol=1e-4)
    inside = (expected[1] > image[1].min()) & (expected[1] < image[1].max())
    assert torch.allclose(result[1][inside], expected[1][inside], atol=1e-4) and not inside.all()
    assert torch.equal(result[1].amin(), image[1].amin()) and torch.equal(result[1].amax(), image[1].amax())
    assert torch.equal(appearance.contrasted(image.clone(), (1.0, 1.0)), image)


@pytest.mark.parametrize("still", [None, 0])
def test_a_coarser_image_is_the_nearest_voxels_of_a_smaller_one_interpolated(still: int | None) -> None:
    image = noise(2, 14, 20, 27)
    result = appearance.coarser(image.clone(), (0.55, None), still)
    small = [side if axis == still else round(side * 0.55) for axis, side in enumerate(image.shape[1:])]
    fewer = F.interpolate(image[None, :1], small, mode="nearest-exact")
    expected = F.interpolate(fewer, image.shape[1:], mode="trilinear")[0, 0]
    assert torch.allclose(result[0], expected, atol=1e-5)
    assert torch.equal(result[1], image[1])
    assert torch.equal(appearance.coarser(image.clone(), (1.0, 1.0), still), image)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_mean_deviation_and_order(inverted: bool) -> None:
    image = noise(2, *SPACE) * 3 - 40
    result = appearance.powered(image.clone(), (0.7, 1.5), inverted)
    assert torch.allclose(result.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-3)
    assert torch.allclose(result.std((1, 2, 3)), image.std((1, 2, 3)), rtol=1e-3)
    for channel in range(2):
        order = image[channel].reshape(-1).argsort()
        assert (result[channel].reshape(-1)[order].diff() >= -1e-4).all()
    sign = -1 if inverted else 1
    share = (sign * image - (sign * image).amin((1, 2, 3), keepdim=True)).double()
    share = (share / share.amax((1, 2, 3), keepdim=True)) ** torch.tensor([0.7, 1.5]).reshape(2, 1, 1, 1)
    score = (share - share.mean((1, 2, 3), keepdim=True)) / share.std((1, 2, 3), keepdim=True) * sign
    own = (result - result.mean((1, 2, 3), keepdim=True)) / result.std((1, 2, 3), keepdim=True)
    assert torch.allclose(own.double(), score, atol=1e-3)
    assert torch.allclose(appearance.powered(image.clone(), (1.0, 1.0), inverted), image, atol=1e-4)


def test_a_constant_patch_stays_finite() -> None:
    image, how = torch.full((2, *SPACE), 3.0), Augmentation()
    for name in ("contrast", "gamma", "gamma_inverted", "blur", "coarse"):
        result = appearance.changed(image.clone(), how.alone(name).draw(SPACE, 2, draws()))
        assert torch.allclose(result, image, atol=1e-5), name


@pytest.mark.parametrize("name", INTENSITY)
@pytest.mark.parametrize("patch", [SPACE, PLANE])
def test_every_change_of_grey_values_changes_something(name: str, patch: tuple[int, ...]) -> None:
    image = noise(2, *patch)
    result = appearance.changed(image.clone(), Augmentation().alone(name).draw(patch, 2, draws(9)))
    assert result.shape == image.shape and result.dtype == torch.float32 and torch.isfinite(result).all()
    for channel in range(2) if name != "noise" else range(1):
        assert not torch.equal(result[channel], image[channel])


# Wherever it runs.


@pytest.mark.parametrize("patch", [(37, 45, 51), (1, 211, 301), (9, 65, 67)])
def test_the_bits_do_not_depend_on_the_number_of_threads(patch: tuple[int, ...], threads: None) -> None:
    for name in NAMES[1:]:
        how = Augmentation().alone(name)
        drawn, region = how.draw(patch, 2, draws(6)), how.region(patch)
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            if drawn.matrix is not None:
                parts = resampled(noise(2, *region), labels(*region), drawn.matrix, patch, drawn.still)
            else:
                parts = (appearance.changed(noise(2, *patch), drawn), torch.zeros(1))
            results.append(parts)
        for parts in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(parts, results[0], strict=True)), name


@pytest.mark.parametrize("patch", [SPACE, PLANE, THIN])
def test_nothing_is_read_from_a_device(patch: tuple[int, ...]) -> None:
    """Tensors of the device meta have no values: reading one is an error."""
    always = dataclasses.replace(Augmentation(), **dict.fromkeys((*NAMES, "blur_channel", "coarse_channel"), 1.0))
    region, boundaries = always.region(patch), []
    image, mask = torch.empty(2, *region, device="meta"), torch.empty(1, *region, device="meta", dtype=torch.uint8)
    drawn = always.draw(patch, 2, draws())
    assert drawn.matrix
    changed, found = resampled(image, mask, drawn.matrix, patch, drawn.still)
    result = appearance.changed(changed, drawn, lambda: boundaries.append(1))
    assert result.shape == (2, *patch) and found.shape == (1, *patch) and found.dtype == torch.uint8
    assert len(boundaries) == len(INTENSITY)
