"""The 3D network, its loss and its optimisers against the MLPerf reference's numbers, and the faster kernels against
torch's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import formula_state, make_config, task_config, wave
from conftest import GOLDEN
from torch import Tensor, nn
from torch.nn import functional as F

from unet.config.flags import DeviceOptions
from unet.config.flags_training import TrainOptions
from unet.data.cache.cached_case import CachedCase
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.errors import CheckpointError, UnetError
from unet.models import convert, losses
from unet.models.unet import UNet, UNetShape
from unet.runtime import optim
from unet.runtime.checkpoints import checkpoint
from unet.runtime.inference.predictor import Predictor
from unet.runtime.lamb import LAMB
from unet.tasks.kits19.task import KiTS19

REFERENCE = json.loads((GOLDEN / "kits19_reference.json").read_text())
KITS19 = UNetShape(
    dims=3, inputs=1, outputs=3, features=(32, 64, 128, 256, 320), bottleneck=320, norm="instance", down="stride"
)
SMALL = UNetShape(dims=3, inputs=1, outputs=3, features=(8, 16), bottleneck=16, norm="instance", down="stride")
LAST = torch.channels_last_3d


def device(**settings: object) -> CPU:
    return CPU(DeviceOptions(device="cpu", **settings), Rank())  # type: ignore[arg-type]


def label_64() -> Tensor:
    value = wave((1, 1, 64, 64, 64), 0.0007, 0.3)
    label = (value > 0.2).to(torch.uint8) + (value > 0.9).to(torch.uint8)
    assert np.bincount(label.flatten()).tolist() == REFERENCE["label_64"]["counts"]
    return label


@pytest.fixture(scope="module")
def reference_state() -> dict[str, Tensor]:
    return formula_state(convert.to_mlperf(UNet(KITS19).state_dict()))


@pytest.fixture
def kits19(reference_state: dict[str, Tensor]) -> UNet:
    network = UNet(KITS19)
    network.load_state_dict(convert.from_mlperf(reference_state))
    return network


def test_state_dict_is_the_reference_one_and_comes_back(reference_state: dict[str, Tensor], kits19: UNet) -> None:
    assert [[key, list(value.shape)] for key, value in reference_state.items()] == REFERENCE["state_dict"]
    assert len(reference_state) == 78
    assert sum(value.numel() for value in reference_state.values()) == 31_190_243
    back = convert.to_mlperf(kits19.state_dict())
    assert list(back) == list(reference_state)
    assert all(torch.equal(back[key], value) for key, value in reference_state.items())
    assert convert.shape_of(kits19.state_dict(), "kits19", down="stride") == KITS19


@pytest.mark.parametrize(("layout", "kernels"), [("auto", "measured"), ("auto", "winograd"), ("NCDHW", "plain")])
def test_forward_loss_and_score_equal_the_reference(kits19: UNet, layout: str, kernels: str) -> None:
    """On the processor's own layout, with the fastest algorithms and with Winograd's, and in torch's usual one."""
    place = device(layout=layout, kernels=kernels)
    network = place.place(kits19).eval()
    batch = place.to({"image": wave((1, 1, 64, 64, 64), 0.013, 0.0), "mask": label_64()})
    with torch.no_grad():
        logits = network(batch["image"])
    values, expected = logits.double(), REFERENCE["forward_64"]["logits"]
    assert list(values.shape) == expected["shape"]
    for name in ("mean", "std", "min", "max"):
        assert float(getattr(values, name)()) == pytest.approx(expected[name], rel=1e-4), name
    assert values.flatten()[expected["flat_index"]].tolist() == pytest.approx(expected["values"], rel=1e-4)
    assert float(losses.dice_ce_loss(logits, batch["mask"])) == pytest.approx(REFERENCE["loss_64"], rel=1e-4)
    hard = F.one_hot(logits.argmax(1), 3).permute(0, 4, 1, 2, 3).float()
    scores = [1 - batch_dice(hard[:, c], batch["mask"][:, 0] == c) for c in (1, 2)]
    assert scores == pytest.approx([1 - score for score in REFERENCE["score_64"]], rel=1e-4)


def batch_dice(p: Tensor, t: Tensor) -> float:
    return float((2 * (p * t).sum() + 1e-6) / (p.sum() + t.sum() + 1e-6))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["auto", "NCDHW"])
def test_three_sgd_steps_equal_the_reference(kits19: UNet, layout: str) -> None:
    place = device(layout=layout)
    network = place.place(kits19)
    optimizer = optim.build(TrainOptions(optimizer="sgd", lr=0.1), [{"params": list(network.parameters())}], place)
    batch = place.to({"image": wave((1, 1, 64, 64, 64), 0.013, 0.0), "mask": label_64()})
    for expected in REFERENCE["sgd_losses"]["losses"]:
        loss = losses.dice_ce_loss(network(batch["image"]), batch["mask"])
        assert float(loss) == pytest.approx(expected, rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_reference_checkpoint_is_read(kits19: UNet, reference_state: dict[str, Tensor], tmp_path: Path) -> None:
    """Of the reference's file the best weights, the last where there are no best; the wrapper's prefix goes."""
    best = {f"module.{key}": value for key, value in reference_state.items()}
    last = {key: torch.zeros_like(value) for key, value in best.items()}
    file = {"last_model_state_dict": last, "best_model_state_dict": best, "epoch": 3, "mean_dice": 0.9}
    torch.save(file, tmp_path / "reference.pt")
    state = convert.strip_prefixes(checkpoint.weights_of(checkpoint.read(tmp_path / "reference.pt")))
    assert convert.is_mlperf(state)
    own = convert.from_mlperf(state)
    assert not convert.is_mlperf(own)
    network = UNet(convert.shape_of(own, "kits19", down="stride"))
    checkpoint.fit(network, own, tmp_path)
    assert all(torch.equal(value, kits19.state_dict()[key]) for key, value in network.state_dict().items())
    del file["best_model_state_dict"]
    assert not any(value.any() for value in checkpoint.weights_of(file).values())


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_the_shape_is_read_from_the_weights(norm: str) -> None:
    shape = UNetShape(dims=3, inputs=2, outputs=4, features=(8, 12, 16), bottleneck=20, norm=norm, down="stride")
    state = UNet(shape).state_dict()
    assert convert.shape_of(state, "kits19", down="stride") == shape
    if norm == "none":
        with pytest.raises(CheckpointError, match="has no name in MLPerf"):
            convert.to_mlperf(state)
        return
    back = convert.from_mlperf(convert.to_mlperf(state))
    assert back.keys() == state.keys()
    assert all(back[key] is value for key, value in state.items())


def test_keys_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match="encoder1"):
        convert.from_mlperf({"encoder1.enc1conv1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"encoders\.0\.0\.weight"):
        convert.shape_of({"head.weight": torch.zeros(1)}, "kits19")


def test_sides_that_leave_one_voxel_are_told_what_fits() -> None:
    network = UNet(SMALL)
    for training in (False, True):  # an instance norm has no statistics of its own in evaluation either
        with pytest.raises(UnetError, match="4 x 4 x 4 leaves one voxel after 2 levels") as caught:
            network.train(training)(torch.zeros(1, 1, 4, 4, 4))
        assert "8 x 8 x 8" in caught.value.hint
    with pytest.raises(UnetError, match="multiples of 4") as caught:
        network(torch.zeros(1, 1, 3, 4, 2))
    assert "8 x 8 x 8" in caught.value.hint
    assert network(torch.zeros(1, 1, 4, 4, 8)).shape == (1, 3, 4, 4, 8)
    assert network.eval()(torch.zeros(2, 1, 4, 4, 8)).shape == (2, 3, 4, 4, 8)


def plain_loss(logits: Tensor, labels: Tensor, include_background: bool) -> Tensor:
    truth = labels[:, 0].long()
    first = 0 if include_background else 1
    p = logits.softmax(1)[:, first:]
    t = F.one_hot(truth, logits.shape[1]).permute(0, 4, 1, 2, 3)[:, first:]
    dice = (2 * (p * t).sum((2, 3, 4)) + 1e-6) / (p.sum((2, 3, 4)) + t.sum((2, 3, 4)) + 1e-6)
    return ((1 - dice).mean() + F.cross_entropy(logits, truth)) / 2


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("order", [torch.contiguous_format, LAST])
def test_dice_ce_is_its_formula_and_so_is_its_gradient(
    kind: torch.dtype, background: bool, order: torch.memory_format
) -> None:
    """Also where a volume is worked on in chunks, a class is missing, and the logits are bfloat16."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 5, 6, 7, generator=generator).contiguous(memory_format=order).requires_grad_()
    labels = torch.randint(0, 3, (2, 1, 5, 6, 7), generator=generator).to(kind)
    labels[1][labels[1] == 2] = 0
    expected = plain_loss(logits.double(), labels, background)
    (slope,) = torch.autograd.grad(expected, logits)
    loss = losses.dice_ce_loss(logits, labels, background, 100)
    (found,) = torch.autograd.grad(3 * loss, logits)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    if not background:
        assert float(losses.plain_dice_ce(logits, labels).detach()) == pytest.approx(float(loss.detach()), rel=1e-6)
    torch.testing.assert_close(found, 3 * slope, rtol=1e-4, atol=1e-9)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.dice_ce_loss(half, labels, background, 100)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(
        float(plain_loss(half.double(), labels, background).detach()), rel=1e-6
    )


def test_dice_ce_of_known_logits() -> None:
    """Uniform logits, no foreground: cross-entropy ln 3, dice 1e-6 / (N / 3 + 1e-6) for both classes."""
    voxels = 4**3
    loss = losses.dice_ce_loss(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8))
    assert float(loss) == pytest.approx((1 - 1e-6 / (voxels / 3 + 1e-6) + np.log(3)) / 2, rel=1e-6)


def test_integer_masks_keep_their_order_and_images_take_the_device_one() -> None:
    batch = {"image": torch.zeros(2, 3, 4, 4, 4), "mask": torch.zeros(2, 3, 4, 4, 4, dtype=torch.uint8)}
    for layout, last in (("auto", True), ("NDHWC", True), ("NHWC", True), ("NCHW", False), ("NCDHW", False)):
        moved = device(layout=layout).to(batch)
        assert moved["image"].is_contiguous(memory_format=LAST) is last
        assert moved["mask"].is_contiguous()
        weight = device(layout=layout).place(UNet(SMALL)).encoders[0][3].weight
        assert weight.is_contiguous(memory_format=LAST) is last


def paper_step(weights: list[np.ndarray], grads: list[np.ndarray], state: dict[str, Any], decay: float) -> None:
    """Algorithm 2 of You et al. 2020 in float64, phi the identity, with bias correction; the gradients' global norm cut
    at 1."""
    b1, b2, lr = 0.9, 0.999, 0.1
    state["t"] += 1
    norm = np.sqrt(sum((grad**2).sum() for grad in grads))
    for i, (x, g) in enumerate(zip(weights, grads, strict=True)):
        g = g / max(1.0, norm)
        state["m"][i] = b1 * state["m"][i] + (1 - b1) * g
        state["v"][i] = b2 * state["v"][i] + (1 - b2) * g**2
        m, v = state["m"][i] / (1 - b1 ** state["t"]), state["v"][i] / (1 - b2 ** state["t"])
        r = m / (np.sqrt(v) + 1e-6) + decay * x
        sizes = np.linalg.norm(x), np.linalg.norm(r)
        x -= lr * (sizes[0] / sizes[1] if min(sizes) > 0 else 1) * r


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lamb_is_the_algorithm_of_the_paper(decay: float) -> None:
    """Three steps; one tensor starts at zero, gradients are larger and smaller than the norm at which they are cut."""
    generator = torch.Generator().manual_seed(4)
    start = [torch.randn(5, 4, generator=generator), torch.zeros(3), torch.randn(2, 2, 2, generator=generator)]
    parameters = [nn.Parameter(value.clone()) for value in start]
    optimizer = optim.build(
        TrainOptions(optimizer="lamb", lr=0.1, weight_decay=decay), [{"params": parameters}], device()
    )
    assert isinstance(optimizer, LAMB)
    weights = [value.double().numpy().copy() for value in start]
    state: dict[str, Any] = {"t": 0, "m": [0.0] * 3, "v": [0.0] * 3}
    for scale in (3.0, 0.05, 1.0):
        grads = [scale * torch.randn(value.shape, generator=generator) for value in start]
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        paper_step(weights, [grad.double().numpy() for grad in grads], state, decay)
        for parameter, weight in zip(parameters, weights, strict=True):
            assert parameter.detach().numpy() == pytest.approx(weight, rel=1e-4, abs=1e-6)


def test_lamb_goes_on_from_its_state() -> None:
    def made() -> tuple[nn.Linear, LAMB]:
        torch.manual_seed(5)
        layer = nn.Linear(3, 2)
        return layer, LAMB(layer.parameters(), 0.1, (0.8, 0.99), weight_decay=0.1)

    def step(layer: nn.Linear, optimizer: LAMB) -> None:
        optimizer.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()

    whole, cut, rest = made(), made(), made()
    for _ in range(4):
        step(*whole)
    for _ in range(2):
        step(*cut)
    rest[0].load_state_dict(cut[0].state_dict())
    rest[1].load_state_dict(cut[1].state_dict())
    for _ in range(2):
        step(*rest)
    assert torch.equal(rest[0].weight, whole[0].weight)


def test_the_arithmetic_of_a_step_is_counted_without_doing_it() -> None:
    """357.5 GFLOP forward and backward for a crop of 64 x 64 x 64, a third of it forward (measured with the reference);
    on tensors without content, where the fast kernels stand back."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        logits = UNet(KITS19)(torch.empty(1, 1, 64, 64, 64))
        forward = counter.get_total_flops()
        logits.sum().backward()
    assert forward == pytest.approx(119.3e9, rel=1e-3)
    assert counter.get_total_flops() == pytest.approx(357.5e9, rel=1e-3)


@pytest.mark.parametrize("mirror", [False, True])
def test_the_warm_up_is_a_full_group_of_windows_and_a_short_one(mirror: bool) -> None:
    shapes: list[tuple[int, ...]] = []

    class Network(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shapes.append(tuple(x.shape))
            return x.expand(-1, 3, -1, -1, -1)

    config = make_config("kits19", eval_patch=(8, 6, 4), eval_batch_size=3, mirror=mirror)
    predictor = Predictor([Network()], device(), 3)
    KiTS19(config).warm_up(predictor)
    assert shapes == [(3, 1, 8, 6, 4)] * 2 * (8 if mirror else 1)


@pytest.mark.parametrize("encoder", ["reference", "plain", "residual"])
def test_the_loss_of_evaluation_is_that_of_training(
    encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are drawn as two curves of one plot."""
    task = KiTS19(task_config("kits19", encoder=encoder, eval_region="full"))
    rng = np.random.default_rng(1)
    image, mask = rng.normal(size=(1, 6, 8, 8)).astype(np.float32), rng.integers(0, 3, (1, 6, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", image)
    np.save(tmp_path / "y.npy", mask)
    case = CachedCase("case_00000", tmp_path / "x.npy", tmp_path / "y.npy", image.shape, (1, 1, 1))
    logits = torch.from_numpy(rng.normal(size=(3, 6, 8, 8)).astype(np.float32))
    monkeypatch.setattr(task, "logits", lambda *_: logits)
    numbers, _ = task.evaluate_case(case, None)  # type: ignore[arg-type]  # the network is not asked
    expected = task.loss(logits[None], {"mask": torch.from_numpy(mask)[None]})["loss"]
    assert numbers["loss"] == pytest.approx(float(expected), rel=1e-5)
