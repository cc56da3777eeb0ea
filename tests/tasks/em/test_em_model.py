"""The network, losses and scores of the UNet Medical benchmark, against values of Habana's TensorFlow program and
against their definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from builders import task_config, wave
from conftest import ROOT
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from unet.cli import resolve
from unet.config.schema import Config
from unet.data.context import framed, margin
from unet.metrics import membranes
from unet.models import convert
from unet.models.layers import Up
from unet.models.losses import two_class_losses
from unet.models.unet import UNet
from unet.runtime.inference import tiles
from unet.tasks.em.task import EM

# em_reference.json: Habana Model-References 1.14, TensorFlow UNet2D, computed in float32 on a CPU
GOLDEN = json.loads((ROOT / "tests" / "golden" / "em_reference.json").read_text())


def settings(*words: str) -> Config:
    return resolve("train", ["--task", "em", *words]).config


def reference_order(network: UNet) -> list[str]:
    """Our keys in the order of the golden file's tensors."""
    keys = list(network.state_dict())
    levels = len(network.shape.features)
    order = [key for key in keys if key.startswith(("encoders", "bottleneck"))]
    for level in range(levels):
        order += [key for key in keys if key.startswith((f"ups.{level}.", f"decoders.{level}."))]
    return [*order, *(key for key in keys if key.startswith("head"))]


def golden_network() -> UNet:
    network = EM(settings()).build_model()
    assert isinstance(network, UNet)
    state = network.state_dict()
    for number, (key, (kind, shape)) in enumerate(zip(reference_order(network), GOLDEN["tensors"], strict=True)):
        assert list(state[key].shape) == shape
        count = int(np.prod(shape))
        s = np.sin(0.7 * np.arange(count, dtype=np.float64) + 1.3 * number + 0.1)
        s *= 0.1 if kind == "bias" else 1.3 / np.sqrt(count / shape[0])
        state[key] = torch.from_numpy(s.astype(np.float32).reshape(shape))
    network.load_state_dict(state)
    return network.eval()


@pytest.fixture(scope="module")
def golden_logits() -> Tensor:
    with torch.no_grad():
        return golden_network()(wave((1, 1, 572, 572), 0.013, 0.0))


def test_the_forward_pass_is_the_references(golden_logits: Tensor) -> None:
    want = GOLDEN["forward_572"]["logits"]
    assert list(golden_logits.shape) == want["shape"]
    close = 1e-3 * want["std"]  # the file's own statement: independent implementations differ by up to 9e-4 of it
    assert golden_logits.mean().item() == pytest.approx(want["mean"], abs=close)
    assert golden_logits.std().item() == pytest.approx(want["std"], abs=close)
    assert golden_logits.flatten()[want["flat_index"]].tolist() == pytest.approx(want["values"], abs=close)


def test_the_losses_are_the_references(golden_logits: Tensor) -> None:
    target = (wave((1, 1, 388, 388), 0.0007, 0.3) > 0.2).float()
    want = GOLDEN["losses"]
    softmax, dice = two_class_losses(golden_logits, target)
    sigmoid, same = two_class_losses(golden_logits, target, "sigmoid")
    assert softmax.item() == pytest.approx(want["softmax_cross_entropy (default here)"], rel=1e-3)
    assert sigmoid.item() == pytest.approx(want["sigmoid_cross_entropy (the seed)"], rel=1e-3)
    assert dice.item() == same.item() == pytest.approx(want["dice_loss"], rel=1e-3)


def test_dice_is_its_formula_for_every_image_and_class() -> None:
    logits, target = torch.randn(3, 2, 5, 4), (torch.rand(3, 1, 5, 4) > 0.5).float()
    p = logits.softmax(1).numpy()
    scores = []
    for n in range(3):
        for c in range(2):
            t = (target[n, 0].numpy() == c).astype(float)
            scores.append((2 * (p[n, c] * t).sum() + 1e-6) / ((p[n, c] ** 2 + t**2).sum() + 1e-6))
    assert two_class_losses(logits, target)[1].item() == pytest.approx(1 - np.mean(scores), rel=1e-5)


def test_parameters_and_first_weights() -> None:
    network = EM(settings()).build_model()
    assert sum(parameter.numel() for parameter in network.parameters()) == GOLDEN["parameters"] == 34_512_258
    state = network.state_dict()
    assert all(not value.any() for key, value in state.items() if key.endswith("bias"))
    for key, fans in (("encoders.1.0.weight", (64 + 128) * 9), ("ups.0.conv.weight", (1024 + 512) * 9)):
        limit = float(np.float32((6 / fans) ** 0.5))  # Glorot and Bengio 2010, equation 16
        assert 0.98 * limit < state[key].abs().max().item() <= limit


def test_sides_of_every_level() -> None:
    """The sizes of the original paper: skips 568, 280, 136, 64; bottleneck 28; ups 56, 104, 200, 392; offsets of the
    skips 4, 16, 40, 88."""
    network = EM(settings("--width", "1")).build_model()
    assert isinstance(network, UNet)
    seen: dict[str, int] = {}

    def watch(name: str) -> None:
        part = network.get_submodule(name)
        part.register_forward_hook(lambda module, inputs, output: seen.update({name: output.shape[-1]}))

    names = [f"{kind}.{level}" for kind in ("encoders", "ups", "decoders") for level in range(4)]
    for name in [*names, "bottleneck"]:
        watch(name)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    skips = [seen[f"encoders.{level}"] for level in range(4)]
    ups = [seen[f"ups.{level}"] for level in range(4)]
    assert skips == [568, 280, 136, 64]
    assert ups == [56, 104, 200, 392]
    assert seen["bottleneck"] == 28
    assert [(skip - up) // 2 for skip, up in zip(reversed(skips), ups, strict=True)] == [4, 16, 40, 88]


def test_the_transposed_convolution_is_the_same_padded_one() -> None:
    """By definition: input pixel i adds its kernel at output 2 i .. 2 i + 2; the output is exactly twice the input, so
    what reaches beyond the end is dropped (TensorFlow pads `same` at the end)."""
    up = Up(2, 2, 3, 3)
    weight, bias = up.conv.weight.detach().double().numpy(), up.conv.bias.detach().double().numpy()
    x = torch.randn(1, 2, 4, 5)
    wanted = np.zeros((3, 8, 10)) + bias[:, None, None]
    for channel in range(2):
        for i in range(4):
            for j in range(5):
                for a in range(3):
                    for b in range(3):
                        if 2 * i + a < 8 and 2 * j + b < 10:
                            wanted[:, 2 * i + a, 2 * j + b] += x[0, channel, i, j].item() * weight[channel, :, a, b]
    with torch.no_grad():
        assert np.allclose(up(x)[0].numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("context", ["zero", "mirror"])
@pytest.mark.parametrize("shape", [(30, 41), (61, 20), (97, 130)])
def test_tiles_are_the_whole_image(context: str, shape: tuple[int, int]) -> None:
    config = settings("--width", "4", "--layers", "3", "--image-size", "124", "--context", context)
    network = EM(config).build_model().eval()
    levels, output, images = 3, 36, torch.randn(2, 1, *shape)
    around = margin(levels) // 2
    with torch.no_grad():
        found = tiles.stitch(framed(images, around, context), 124, output, 2**levels, network)
        grown = [-(-(side + 12) // 8) * 8 - 4 for side in shape]  # the next sides that the network has
        whole = F.pad(framed(images, around, context), (0, grown[1] - shape[1], 0, grown[0] - shape[0]))
        wanted = network(whole)[..., : shape[0], : shape[1]]
    assert found.shape == (2, 2, *shape)
    assert (found - wanted).abs().max() < 1e-5 * max(1, wanted.abs().max().item())


def test_tiles_cover_each_pixel_once_and_only_where_they_are_right() -> None:
    for length in (1, 388, 389, 500, 776, 1000, 4096):
        counts = np.zeros(length, int)
        for start, used in tiles.spans(length, 388, 16):
            assert start % 16 == 0
            assert used.start >= 16 or start == 0
            assert used.stop <= 388
            counts[start + used.start : start + used.stop] += 1
        assert (counts == 1).all()


def test_weights_tell_the_shape() -> None:
    config = settings("--width", "4", "--layers", "3", "--image-size", "124", "--normalization", "batch")
    made = EM(config).build_model()
    network, own = EM(config).convert_checkpoint(made.state_dict())
    assert isinstance(made, UNet)
    assert network.shape == made.shape  # type: ignore[union-attr]
    assert own.keys() == made.state_dict().keys()
    assert convert.shape_of(own, "em", padding="valid").padding == "valid"


def by_definition(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """V_Rand and V_Info counted pixel by pixel, and pair by pair for the first."""
    inside = truth.ravel() > 0
    a, b = truth.ravel()[inside], found.ravel()[inside]
    same_a, same_b = a[:, None] == a, b[:, None] == b
    rand = (same_a & same_b).sum() / ((same_a.sum() + same_b.sum()) / 2)

    def entropy(*labels: np.ndarray) -> float:
        _, counts = np.unique(np.stack(labels), axis=1, return_counts=True)
        p = counts / counts.sum()
        return float(-(p * np.log(p)).sum())

    information = entropy(a) + entropy(b) - entropy(a, b)
    return float(rand), 2 * information / (entropy(a) + entropy(b))


def test_rand_and_information_are_their_definitions() -> None:
    rng = np.random.default_rng(1)
    truth, found = rng.integers(0, 4, (12, 10)), rng.integers(1, 6, (12, 10))
    assert membranes.rand_and_information(truth, found) == pytest.approx(by_definition(truth, found))
    same = truth.clip(1)
    assert membranes.rand_and_information(same, same + 5) == pytest.approx((1, 1))
    assert membranes.rand_and_information(np.zeros((3, 3), int), found[:3, :3]) == (1.0, 1.0)


def test_the_width_of_a_membrane_does_not_count_but_a_hole_does() -> None:
    cells = np.ones((40, 40), bool)
    cells[:, 20] = cells[12, :20] = False
    thick = ndimage.binary_erosion(cells, iterations=2, border_value=1)
    assert membranes.scores(thick.astype(np.float32), cells)[0.5] == pytest.approx((1, 1), abs=0.02)
    open_ = cells.copy()
    open_[5, 20] = True
    rand, information = membranes.scores(open_.astype(np.float32), cells)[0.5]
    assert rand < 0.9
    assert information < 0.9


def test_the_best_threshold_of_the_whole_stack_counts() -> None:
    """As in the challenge: not each slice's own, which would be known only from the truth of that slice."""
    cells = np.ones((30, 30), bool)
    cells[:, 15] = False
    high, low = (np.where(cells, *pair).astype(np.float32) for pair in ((0.95, 0.75), (0.55, 0.15)))
    by_slice = [membranes.scores(each, cells) for each in (high, high, low)]
    task = EM(task_config("em"))
    rows = [
        {
            "case": str(number),
            **{f"{key}_{t}": each[t][i] for t in each for i, key in enumerate(("rand", "information"))},
        }
        for number, each in enumerate(by_slice)
    ]
    found = task.common_scores(rows)
    assert set(found[0]) == {"case", "rand", "information"}
    for i, key in enumerate(("rand", "information")):
        totals = {t: sum(each[t][i] for each in by_slice) for t in membranes.THRESHOLDS}
        threshold = max(totals, key=totals.__getitem__)
        assert [row[key] for row in found] == [each[threshold][i] for each in by_slice]
        assert found[0][key] > 0.99 > found[2][key]  # 0.8 sees the membranes of two slices, and no cell of the third
        assert max(values[i] for values in by_slice[2].values()) > 0.99  # at a threshold of its own
    assert task.common_scores([]) == []
