"""Windows over volumes: the arithmetic, the stitched logits, loss and score of MLPerf's U-Net3D reference."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, read_json

from unet import host, windows
from unet.config.flags import DeviceOptions
from unet.devices import cpu
from unet.devices.launchers import Rank
from unet.errors import DataError, UnetError, UsageError
from unet.models import convert, label_maps
from unet.models.unet import UNet
from unet.runtime.inference.blending import gaussian_1d, narrow_1d, window_weights
from unet.runtime.inference.predictor import Predictor, padded_part
from unet.tasks.kits19.task import PAD_VALUE

REFERENCE = read_json(GOLDEN / "kits19_reference.json")
CUBE = (128, 128, 128)


def device(**settings: object) -> cpu.CPU:
    return cpu.CPU(DeviceOptions(device="cpu", **settings), Rank())  # type: ignore[arg-type]


def logits_of(
    volume: torch.Tensor,
    network: torch.nn.Module,
    where: cpu.CPU,
    window: tuple[int, ...],
    overlap: float = 0.5,
    batch: int = 1,
    blend: str = "gaussian",
    mirror: bool = False,
) -> torch.Tensor:
    """Mean logits of every voxel."""
    plan = windows.plan(volume.shape[1:], window, overlap, "full")
    found: torch.Tensor = Predictor([network], where, batch).windows(volume, plan, blend, mirror)
    return found


def wave(shape: tuple[int, ...], a: float, b: float) -> np.ndarray[Any, Any]:
    """The input of the golden numbers."""
    i = np.arange(np.prod(shape), dtype=np.float64)
    return (np.sin(a * i + b) + 0.5 * np.cos(0.00171 * i)).astype(np.float32).reshape(shape)


class Mixer(torch.nn.Module):
    """Three channels that depend on the place in the window, differently along each axis; counts its calls."""

    def __init__(self, golden: bool = False) -> None:
        super().__init__()
        self.golden = golden
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        d, h, w = (torch.linspace(-1, 1, side) for side in x.shape[2:])
        if self.golden:
            return torch.cat((x, x * w, x + 0.5 * w), 1)
        return torch.cat((x * d[:, None, None], x * x * h[:, None] + w, x + w), 1)


def plainly(volume: torch.Tensor, network: Mixer, roi: tuple[int, ...], step: tuple[int, ...], how: str) -> Any:
    """Window inference written out: weights and counts of the size of the volume, float64."""
    axes = [torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in roi]
    each = [torch.exp(-0.5 * (axis / (0.125 * side)) ** 2) for axis, side in zip(axes, roi, strict=True)]
    weight = torch.einsum("i,j,k->ijk", *each) ** (1 / 3) if how == "gaussian" else torch.ones(roi)
    total = torch.zeros(3, *volume.shape[1:], dtype=torch.float64)
    norm = torch.zeros(volume.shape[1:], dtype=torch.float64)
    starts = [range(0, side - r + 1, s) for side, r, s in zip(volume.shape[1:], roi, step, strict=True)]
    for place in itertools.product(*starts):
        box = tuple(slice(start, start + side) for start, side in zip(place, roi, strict=True))
        total[(slice(None), *box)] += network(volume[(slice(None), *box)][None])[0] * weight
        norm[box] += weight
    return total / norm


@pytest.mark.parametrize(
    ("shape", "roi", "expected"),
    [
        ((190, 392, 392), CUBE, 50),
        ((256, 333, 333), CUBE, 48),
        (CUBE, CUBE, 1),
        ((150, 170, 200), CUBE, 1 * 2 * 2),
        ((96, 96, 96), (64, 64, 64), 8),
    ],
)
def test_known_counts(shape: tuple[int, ...], roi: tuple[int, ...], expected: int) -> None:
    assert windows.count(shape, roi) == expected


def test_sides_are_rounded_to_the_nearest_multiple_of_the_stride() -> None:
    """MLPerf's rule for every side from the window on: cropped below half a stride, padded from there on."""
    for side in range(128, 700):
        plan = windows.plan((side,), (128,), 0.5)
        assert plan.count == side // 64 - 1 + (side % 64 >= 32)
        rest = side % 64
        if rest < 32:
            assert plan.crop == (slice(rest // 2, side - (rest - rest // 2)),)
            assert plan.pad == ((0, 0),)
        else:
            low = (64 - rest) // 2
            assert plan.crop == (slice(0, side),)
            assert plan.pad == ((low, 64 - rest - low),)


@pytest.mark.parametrize("region", windows.REGIONS)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.6, 0.9])
def test_windows_cover_what_is_scored(region: str, overlap: float) -> None:
    """Also where the reference fails or skips: sides below the window, strides that do not divide it."""
    for roi in (1, 7, 32, 33):
        step = windows.stride(roi, overlap)
        for side in range(1, 120):
            plan = windows.plan((side,), (roi,), overlap, region)
            scored, padded = plan.scored[0], plan.padded[0]
            if region == "rounded":
                assert padded == roi + (plan.count - 1) * step
            else:
                assert padded == max(side, roi)
            (starts,) = plan.starts
            assert len(starts) == plan.count
            assert starts[0] == 0 and starts[-1] + roi == padded
            assert all(0 < b - a <= step and (region == "full" or b - a == step) for a, b in itertools.pairwise(starts))
            assert (
                padded - sum(plan.pad[0])
                == scored
                == len(range(side)[plan.crop[0]])
                == len(range(padded)[plan.inner[0]])
            )
            assert sum(plan.pad[0]) < step or (side < roi and padded == roi)
            lost = side - scored
            assert 0 <= lost < max(1, step // 2)
            assert lost == 0 or (region == "rounded" and side > roi)


def test_a_small_side_that_the_reference_fails_on() -> None:
    """70 voxels: cropped to 64 and padded to 128 in the reference, whose output and label then disagree."""
    plan = windows.plan((70, 20, 130), CUBE)
    assert (plan.scored, plan.padded, plan.count) == ((70, 20, 128), CUBE, 1)
    assert windows.plan((70, 20, 130), CUBE, region="full").scored == (70, 20, 130)


def test_arrays_and_tensors_are_fitted_alike() -> None:
    plan = windows.plan((9, 13, 17), (8, 8, 16))
    assert (plan.scored, plan.pad) == ((8, 12, 16), ((0, 0), (0, 0), (0, 0)))
    plan = windows.plan((9, 15, 5), (8, 8, 16))
    array = np.random.default_rng(0).normal(size=(2, 9, 15, 5)).astype(np.float32)
    part = array[(...,) + plan.crop]
    assert part.shape == (2, 8, 15, 5)
    padded = padded_part(array, plan, PAD_VALUE)
    assert padded.shape == (2, 8, 16, 16)
    assert padded.dtype == torch.float32
    assert np.array_equal(padded[(...,) + plan.inner].numpy(), part)
    outside = torch.ones(padded.shape, dtype=torch.bool)
    outside[:, :, 0:15, 5:10] = False
    assert (padded[outside] == np.float32(-2.2)).all()
    assert torch.equal(padded_part(torch.from_numpy(array), plan, PAD_VALUE), padded)


@pytest.mark.parametrize("wrong", [((8, 8), (4, 4, 4)), ((8, 0, 8), (4, 4, 4)), ((8, 8, 8), (4, 4, 0))])
def test_impossible_windows_are_refused(wrong: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="No windows of"):
        windows.plan(*wrong)
    with pytest.raises(UsageError):
        windows.plan((8, 8, 8), (4, 4, 4), overlap=1.0)


@pytest.mark.parametrize("name", REFERENCE["sliding_window"]["cases"])
def test_the_reference_s_logits(name: str) -> None:
    case = REFERENCE["sliding_window"]["cases"][name]
    shape = tuple(int(side) for side in name.strip("()").split(","))
    image = wave((1, *shape), a=0.00031, b=0.2)
    plan = windows.plan(shape, CUBE)
    assert [1, 1, *plan.scored] == case["scored_shape"]
    predictor = Predictor([Mixer(golden=True)], device(), batch=2)
    logits = predictor.windows(image, plan, pad_value=PAD_VALUE)
    known = case["logits"]
    assert [1, *logits.shape] == known["shape"]
    flat = logits.reshape(-1)
    assert flat[known["flat_index"]].tolist() == pytest.approx(known["values"], rel=1e-4)
    found = [flat.mean().item(), flat.std().item(), flat.min().item(), flat.max().item()]
    expected = [known[key] for key in ("mean", "std", "min", "max")]
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_windows_that_are_no_cubes(blend: str) -> None:
    roi, step = (8, 12, 16), (4, 6, 8)
    volume = torch.randn(1, 20, 24, 32, generator=torch.Generator().manual_seed(1))
    found = logits_of(volume, Mixer(), device(), roi, 0.5, 3, blend)
    torch.testing.assert_close(found.double(), plainly(volume, Mixer(), roi, step, blend), rtol=1e-4, atol=1e-5)


def test_weights_of_the_reference() -> None:
    """Corner and middle of a face of the importance map, over its highest value."""
    axis = gaussian_1d(128)
    axis /= axis.max()
    assert axis[0] ** 3 == pytest.approx(3.80129e-4, rel=1e-5)
    assert axis[0] == pytest.approx(0.0724, rel=1e-3)


@pytest.mark.parametrize("static", [False, True])
def test_the_result_does_not_depend_on_the_batch(static: bool) -> None:
    """18 windows in groups of 1, 5 (the last has 3 and is padded), 18 and 20."""
    where = device()
    where.static_shapes = static
    volume = torch.randn(1, 16, 24, 32, generator=torch.Generator().manual_seed(2))
    results = []
    for batch in (1, 5, 18, 20):
        network = Mixer().train()
        results.append(logits_of(volume, network, where, (8, 16, 16), 0.5, batch))
        assert network.training
        size = min(batch, 18) if not static else batch
        assert network.shapes == [(size, 1, 8, 16, 16)] * -(-18 // batch)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize(("window", "overlap"), [((1, 9, 12), 0.3), ((1, 18, 18), 0.0), ((4, 9, 9), 0.5)])
def test_slabs_of_slices_take_no_more_passes_than_windows(window: tuple[int, ...], overlap: float, batch: int) -> None:
    volume = torch.from_numpy(wave((1, 11, 18, 18), 0.37, 0.1))
    plan = windows.plan(volume.shape[1:], window, overlap, "full")
    network, alone, whole = Mixer(), Mixer(), Mixer()
    found = torch.cat([slab.clone() for slab in Predictor([network], device(), batch).slabs(volume, plan)], 1)
    one = torch.cat([slab.clone() for slab in Predictor([alone], device(), 1).slabs(volume, plan)], 1)
    assert torch.equal(found, one)
    torch.testing.assert_close(found, Predictor([whole], device(), batch).windows(volume, plan))
    images, expected = (sum(shape[0] for shape in net.shapes) for net in (network, whole))
    passes = plan.grid[0] * math.ceil(math.prod(plan.grid[1:]) / batch)  # of volumes: each row by itself
    assert images == (expected if window[0] == 1 else passes * batch)
    assert expected == math.ceil(plan.count / batch) * batch


def test_mirroring_is_the_mean_of_eight_flipped_volumes() -> None:
    roi = (8, 8, 8)
    volume = torch.randn(1, 12, 16, 8, generator=torch.Generator().manual_seed(3))
    each = []
    for flips in itertools.product((False, True), repeat=3):
        axes = [axis + 1 for axis, flip in enumerate(flips) if flip]
        each.append(logits_of(volume.flip(axes), Mixer(), device(), roi).flip(axes))
    network = Mixer()
    found = logits_of(volume, network, device(), roi, batch=4, mirror=True)
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    assert set(network.shapes) == {(4, 1, *roi)}
    assert (found - each[0]).abs().max() > 0.1  # the flips do differ


def test_bf16_logits_are_added_up_in_fp32() -> None:
    class Half(Mixer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16()

    volume = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(4))
    found = logits_of(volume, Half(), device(precision="bf16"), (8, 8, 8), 0.75)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, logits_of(volume, Mixer(), device(), (8, 8, 8), 0.75), rtol=0.01, atol=0.02)


def test_a_volume_smaller_than_a_window_is_padded_and_cut_back() -> None:
    volume = torch.randn(1, 16, 17, 4, generator=torch.Generator().manual_seed(8))
    plan = windows.plan(volume.shape[1:], (8, 8, 8), region="full")
    network = Mixer()
    found = Predictor([network], device(), batch=1).windows(volume, plan, pad_value=-1.0)
    assert found.shape == (3, 16, 17, 4)
    grown = torch.full((1, 16, 17, 8), -1.0)
    grown[..., 2:6] = volume
    assert torch.equal(found, logits_of(grown, Mixer(), device(), (8, 8, 8))[..., 2:6])
    assert set(network.shapes) == {(1, 1, 8, 8, 8)}


def test_windows_lie_evenly_where_they_do_not_fit() -> None:
    """Every voxel is seen, and the mean of equal outputs is that output."""
    assert windows.plan((392, 256), (128, 128), region="full").starts == ((0, 53, 106, 158, 211, 264), (0, 64, 128))
    volume = torch.randn(1, 11, 17, 8)
    for blend in ("gaussian", "constant"):
        logits = logits_of(volume, Mixer(golden=True), device(), (8, 8, 8), blend=blend)
        assert torch.allclose(logits[0], volume[0], atol=1e-6)


class Card(cpu.CPU):
    """A card with so many bytes for what is put on it; its network needs more still, from the second batch on."""

    own_memory = True
    budget = 10**9
    released = 0

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.nbytes > self.budget:
            raise torch.OutOfMemoryError("Card out of memory. Tried to allocate more than there is.")
        return tensor.clone()

    def release(self) -> None:
        self.released += 1


class Greedy(Mixer):
    """Fails once, at the third batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.shapes) == 2:
            self.shapes.append(())
            raise torch.OutOfMemoryError("Card out of memory. Tried to allocate 1.00 GiB.")
        return super().forward(x)


@pytest.mark.parametrize(("budget", "network"), [(100, Mixer), (10**9, Greedy)])
def test_short_of_memory_the_host_takes_over(
    budget: int, network: type[Mixer], capsys: pytest.CaptureFixture[str]
) -> None:
    host.notice_once.cache_clear()
    volume = torch.randn(1, 16, 16, 16)
    expected = logits_of(volume, Mixer(), device(), (8, 8, 8))
    card = Card(DeviceOptions(device="cpu"), Rank())
    card.budget = budget
    for attempt in (1, 2):
        assert torch.equal(logits_of(volume, network(), card, (8, 8, 8), batch=4), expected)
        assert card.released == attempt
    assert capsys.readouterr().err.count("short of a whole case") == 1


def test_without_memory_of_its_own_there_is_nothing_to_fall_back_to() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        logits_of(torch.randn(1, 16, 16, 16), Greedy(), device(), (8, 8, 8))
    card = Card(DeviceOptions(device="cpu"), Rank())

    class Broken(Mixer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a shape does not fit")

    with pytest.raises(RuntimeError, match="does not fit"):
        logits_of(torch.randn(1, 16, 16, 16), Broken(), card, (8, 8, 8))
    assert not card.released


def test_label_map_is_argmax() -> None:
    """Ties among all channels and pairs of them: the lowest wins, as in argmax."""
    levels = torch.tensor(list(itertools.product((-1.0, 0.0, 2.0), repeat=4))).T
    for channels in (1, 2, 3, 4):
        logits = levels[:channels].reshape(channels, 9, 3, 3)
        assert np.array_equal(label_maps.label_map(logits).numpy(), logits.numpy().argmax(0))


def test_label_map_of_a_view_in_several_chunks() -> None:
    logits = torch.randn(3, 12, 14, 16, generator=torch.Generator().manual_seed(5))[:, 1:, 2:-1, 3:]
    assert torch.equal(label_maps.label_map(logits, 100).long(), logits.argmax(0))


@pytest.mark.parametrize("chunk", [10, 10**6])
def test_confusion_counts_pairs(chunk: int) -> None:
    prediction, target = torch.randint(0, 3, (2, 7, 5, 6), generator=torch.Generator().manual_seed(6)).byte()
    counts = label_maps.confusion(prediction, target, chunk=chunk)
    for t, p in itertools.product(range(3), repeat=2):
        assert counts[t, p] == sum(
            a == t and b == p for a, b in zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True)
        )
    scores = label_maps.dice_by_class(prediction, target, chunk=chunk)
    for number in range(3):
        p, t = prediction == number, target == number
        assert scores[number] == pytest.approx((2 * (p & t).sum().item() + 1e-6) / (p.sum() + t.sum() + 1e-6).item())


@pytest.mark.parametrize("label", [3, 86, 255])
def test_a_class_that_there_is_not_is_an_error(label: int) -> None:
    """86: three times that is 2 in eight bits."""
    target = torch.zeros(2, 3, 4, dtype=torch.uint8)
    target[1, 1, 1] = label
    with pytest.raises(UnetError, match=f"goes up to {label}"):
        label_maps.dice_by_class(torch.zeros_like(target), target)


def test_an_absent_class_scores_one() -> None:
    nothing = torch.zeros(4, 4, 4, dtype=torch.uint8)
    some = nothing.clone()
    some[0, 0, 0] = 2
    assert label_maps.dice_by_class(nothing, nothing) == pytest.approx([1, 1, 1])
    assert label_maps.dice_by_class(nothing, some) == pytest.approx([126 / 127, 1, 0], abs=1e-5)


@pytest.mark.parametrize("chunk", [4096, 2**18])
def test_loss_of_many_chunks_is_that_of_the_formula(chunk: int) -> None:
    shape = (20, 32, 32)
    logits = 30 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))  # exp of it overflows
    labels = torch.from_numpy((wave(shape, 0.0007, 0.3) > 0.2).astype(np.uint8) + (wave(shape, 0.0007, 0.3) > 0.9))
    exact = logits.double()
    ce = torch.nn.functional.cross_entropy(exact[None], labels[None].long())
    p, t = exact.softmax(0).flatten(1), torch.nn.functional.one_hot(labels.long(), 3).permute(3, 0, 1, 2).flatten(1)
    dice = (2 * (p * t).sum(1) + 1e-6) / (p.sum(1) + t.sum(1) + 1e-6)
    for background in (False, True):
        expected = ((1 - dice[0 if background else 1 :].mean() + ce) / 2).item()
        assert label_maps.dice_ce_of(logits, labels, background, chunk) == pytest.approx(expected, rel=1e-5)


def test_loss_of_uniform_logits() -> None:
    """From the formula: cross entropy ln 3, a soft Dice of 1e-6 / (N/3 + 1e-6) for classes that are not there."""
    labels = torch.zeros(8, 8, 8, dtype=torch.uint8)
    expected = (1 - 1e-6 / (512 / 3 + 1e-6) + np.log(3)) / 2
    assert label_maps.dice_ce_of(torch.ones(3, 8, 8, 8), labels) == pytest.approx(expected, rel=1e-6)


def test_the_reference_s_loss_and_score() -> None:
    """Of its network under its made weights, at 64 voxels."""
    state = {}
    for number, (key, shape) in enumerate(REFERENCE["state_dict"]):
        made = np.sin(0.7 * np.arange(np.prod(shape), dtype=np.float64) + 1.3 * number + 0.1).reshape(shape)
        if len(shape) > 1:
            made *= 2 / np.sqrt(np.prod(shape[1:]))
        else:
            made = 1 + 0.1 * made if key.endswith("weight") else 0.1 * made
        state[key] = torch.from_numpy(made.astype(np.float32))
    own = convert.from_mlperf(state)
    network = UNet(convert.shape_of(own, "kits19", down="stride"))
    network.load_state_dict(own)
    volume = torch.from_numpy(wave((1, 64, 64, 64), 0.013, 0))
    logits = logits_of(volume, network, device(), (64, 64, 64))
    waves = wave((64, 64, 64), 0.0007, 0.3)
    labels = torch.from_numpy((waves > 0.2).astype(np.uint8) + (waves > 0.9))
    assert torch.bincount(labels.flatten()).tolist() == REFERENCE["label_64"]["counts"]
    assert label_maps.dice_ce_of(logits, labels) == pytest.approx(REFERENCE["loss_64"], rel=1e-4)
    scores = label_maps.dice_by_class(label_maps.label_map(logits), labels)
    assert scores[1:] == pytest.approx(REFERENCE["score_64"], rel=1e-4)


def test_a_result_that_is_not_finite_is_said_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    class Given(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = torch.zeros(len(x), 1, 2, 3)
            result[..., 1, 1] = self.value
            result[..., 0, :] = torch.tensor([-1e30, 1e30, 1e30])
            return result

    images = torch.zeros(1, 1, 2, 3)
    for value in (float("nan"), float("inf"), -float("inf")):
        host.notice_once.cache_clear()
        predictor = Predictor([Given(value)], device(), 1)
        assert not torch.isfinite(predictor.slices(images)).all()
        assert "the network's output is not finite" in capsys.readouterr().err
        with pytest.raises(DataError, match="not finite"):
            Predictor([Given(value)], device(), 1, finite=True).slices(images)
    assert torch.isfinite(Predictor([Given(0)], device(), 1, finite=True).slices(images)).all()


class Scaled(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.factor).sin()


def test_several_networks_are_averaged_in_one_place() -> None:
    """Bit for bit the means that the tasks had each for itself: NumPy's over arrays, torch's over a stack, a sum
    divided; of slices, tiles and windows. A pass's time is that of all networks."""
    generator = torch.Generator().manual_seed(9)
    images, volume = torch.randn(4, 1, 9, 11, generator=generator), torch.randn(1, 8, 9, 11, generator=generator)
    plan = windows.plan(volume.shape[1:], (4, 4, 4), region="full")
    for count in (1, 2, 3, 5, 8):
        networks = [Scaled(number + 0.3) for number in range(count)]
        members = [Predictor([network], device(), 2) for network in networks]
        predictor = Predictor(networks, device(), 2)
        each = [member.slices(images, torch.sigmoid) for member in members]
        found = predictor.slices(images, torch.sigmoid)
        assert np.array_equal(found.numpy(), np.mean([array.numpy() for array in each], 0, dtype=np.float32))
        assert np.array_equal(predictor.slices(images, lambda x: x.sigmoid().numpy()), found.numpy())
        assert torch.equal(predictor.tiles(images, 4, 4, 2, torch.sigmoid), found)  # without a margin a tile is a part
        mean = torch.stack(each).mean(0)  # in another order from 5 networks on
        assert torch.equal(predictor.tiles(images, 4, 4, 2, torch.sigmoid, lambda of: torch.stack(of).mean(0)), mean)
        logits = members[0].windows(volume, plan)
        for member in members[1:]:
            logits += member.windows(volume, plan)
        assert torch.equal(predictor.windows(volume, plan), logits / count)
        assert len(predictor.seconds) == len(members[0].seconds) + 1 + 2 * 4  # rows of tiles


def test_the_time_of_a_pass_is_that_of_all_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    where = device()
    monkeypatch.setattr(where, "now", lambda: float(next(clock)))  # each network takes a second
    predictor = Predictor([Scaled(1.0), Scaled(2.0), Scaled(3.0)], where, 2)
    for _ in range(2):
        predictor.slices(torch.zeros(4, 1, 8, 8))
    assert predictor.seconds == [3.0, 3.0]
    predictor.each(lambda network, put: [network(put(torch.zeros(1, 1, 8, 8)))])
    assert predictor.seconds == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("blend", ["gaussian", "narrow", "constant"])
def test_the_weights_of_windows_add_up_to_one(blend: str) -> None:
    weights = window_weights(16, (0, 6, 12), blend)
    total = torch.zeros(28)
    for start, weight in zip((0, 6, 12), weights, strict=True):
        total[start : start + 16] += weight
    assert torch.allclose(total, torch.ones(28), atol=1e-6)


def test_a_narrow_weight_is_a_gaussian_of_an_eighth_of_the_window() -> None:
    ratio = narrow_1d(32)[[16, 20, 24]] / narrow_1d(32)[16]
    assert ratio.tolist() == pytest.approx([1, np.exp(-0.5), np.exp(-2)])
