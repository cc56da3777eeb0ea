"""What a recipe may add to the published one: neighbouring slices, changed intensities, cross-entropy, mirroring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import task_config
from conftest import stored
from torch.nn import functional as F

from unet.config.flags import DeviceOptions
from unet.data.cache.cached_case import CachedCase
from unet.data.loading.augment import affine, without_sequences
from unet.data.loading.loader import Slices
from unet.devices import cpu
from unet.devices.launchers import Rank
from unet.files import read_json
from unet.models.losses import batch_dice_bce_loss
from unet.runtime.inference.predictor import Predictor
from unet.tasks.lgg.task import LGG


@pytest.fixture
def cases(tmp_path: Path) -> list[CachedCase]:
    """Two cases, of 4 and 3 slices of 8 px, whose pixels say which slice and channel they are of."""
    found = []
    for number, count in enumerate((4, 3)):
        image = np.zeros((count, 8, 8, 3), np.float32)
        image += 100 * number + 10 * np.arange(count)[:, None, None, None] + np.arange(3)
        paths = tmp_path / f"{number}_image.npy", tmp_path / f"{number}_mask.npy"
        np.save(paths[0], image)
        np.save(paths[1], np.full((count, 8, 8, 1), number, np.uint8))
        found.append(CachedCase(f"case_{number}", *paths, image.shape, (1,) * count))
    return found


@pytest.mark.parametrize("where", ["disk", "ram"])
def test_neighbours_are_those_of_the_case(cases: list[CachedCase], where: str) -> None:
    image, mask = Slices(cases, where, neighbours=1).get(torch.tensor([0, 3, 4, 5]))
    expected = [[0, 0, 10], [20, 30, 30], [100, 100, 110], [100, 110, 120]]
    assert image.shape == (4, 9, 8, 8)
    assert image[:, ::3, 0, 0].tolist() == expected  # the first channel of each slice
    assert image[1, :, 0, 0].tolist() == [20, 21, 22, 30, 31, 32, 30, 31, 32]
    assert mask[:, 0, 0, 0].tolist() == [0, 0, 1, 1]


def test_scoring_sees_the_same_neighbours_as_training(cases: list[CachedCase]) -> None:
    task = LGG(task_config("lgg", image_size=16, neighbours=2, width=4))
    trained, _ = Slices(cases, neighbours=2).get([4, 5, 6])
    assert torch.equal(task.to_input(cases[1].arrays()[0]), trained)
    assert task.input_shape() == (1, 15, 16, 16)
    assert sum(p.numel() for p in task.build_model().parameters()) == task.settings.parameters(task.config)


def test_intensities_change_by_channel_and_the_mask_stays() -> None:
    image, mask = torch.ones(64, 3, 8, 8), torch.zeros(64, 1, 8, 8)
    plain, same = (affine(image, mask, torch.Generator().manual_seed(1), 0.0, 0.0, x)[0] for x in (0.0, 0.25))
    assert torch.equal(plain, image)
    values = same[:, :, 4, 4]
    assert values.unique().numel() == 192
    assert 0.5 <= float(values.min()) < 0.6
    assert 1.4 < float(values.max()) <= 1.5  # 1 x 1.25 + 0.25
    assert float(values.mean()) == pytest.approx(1, abs=0.05)


def test_flair_stands_for_missing_sequences_in_all_slices_of_a_sample() -> None:
    """Seen in the set itself: TCGA_DU_7013_19860523 has FLAIR three times, TCGA_DU_8165_19970205 twice."""
    sequences, slices, samples = 3, 3, 4000
    image = torch.arange(9.0).reshape(1, 9, 1, 1).expand(samples, 9, 2, 2)
    changed = without_sequences(image, torch.Generator().manual_seed(1), 0.25)[:, :, 1, 1].reshape(samples, slices, -1)
    offsets = changed - sequences * torch.arange(slices)[:, None]  # which sequence each channel holds now
    assert torch.equal(offsets[:, :1].expand_as(offsets), offsets)
    found, counts = offsets[:, 0].unique(dim=0, return_counts=True)
    assert found.tolist() == [[0, 1, 1], [0, 1, 2], [1, 1, 1], [1, 1, 2]]
    expected = torch.tensor([0.75 * 0.25, 0.75**2, 0.25**2, 0.25 * 0.75])
    assert torch.allclose(counts / samples, expected, atol=0.03)
    mask = torch.zeros(samples, 1, 2, 2)
    never, always = (affine(image, mask, torch.Generator(), 0.0, 0.0, missing=m)[0] for m in (0.0, 1.0))
    assert torch.equal(never, image)
    assert torch.equal(always[0, :, 1, 1], torch.tensor([1.0, 1, 1, 4, 4, 4, 7, 7, 7]))


def test_dice_and_cross_entropy_are_added() -> None:
    logits = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).double()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    entropy = F.binary_cross_entropy(p, target)
    assert float(batch_dice_bce_loss(logits, target)) == pytest.approx(float(dice + entropy), rel=1e-6)


@pytest.mark.parametrize("loss", ["dice", "dice-ce"])
def test_the_loss_of_evaluation_is_that_of_training(cases: list[CachedCase], loss: str) -> None:
    """They are drawn as two curves of one plot."""
    task = LGG(task_config("lgg", image_size=16, loss=loss))
    torch.manual_seed(1)
    network = torch.nn.Conv2d(3, 1, 3, padding=1)
    predictor = Predictor([network], cpu.CPU(DeviceOptions(device="cpu"), Rank()), 2)
    image, mask = cases[0].arrays()
    batch = {"mask": torch.from_numpy(mask.copy()).permute(0, 3, 1, 2)}
    with torch.no_grad():
        expected = task.loss(network(task.to_input(image)), batch)["loss"]
    numbers, _ = task.evaluate_case(cases[0], predictor)
    assert numbers["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_mirroring_is_the_mean_with_the_mirror_image() -> None:
    network = torch.nn.Conv2d(3, 1, 3, padding=1)
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    predictor = Predictor([network], cpu.CPU(DeviceOptions(device="cpu"), Rank()), 2)
    with torch.no_grad():
        expected = (network(images) + network(images.flip(-1)).flip(-1)) / 2
    assert torch.allclose(predictor.slices(images, mirror=True), expected, atol=1e-6)
    assert not torch.allclose(predictor.slices(images), expected, atol=1e-3)


def test_weights_carry_their_neighbours(
    tiny: Callable[..., tuple[int, str, str]], cli: Callable[..., tuple[int, str, str]], phantoms: Path
) -> None:
    how = "--neighbours", 1, "--loss", "dice-ce", "--aug-intensity", 0.1, "--aug-missing", 0.2, "--ema", 0.9, "--mirror"
    code, _, err = tiny("--run-name", "a", *how)
    assert code == 0, err
    weights = stored("weights/a.safetensors")["model"]
    assert next(iter(weights.values())).shape[1] == 9
    patient = next(path for path in sorted(phantoms.iterdir()) if path.is_dir())
    code, _, err = cli("predict", "--weights", "a.safetensors", "--device", "cpu", patient)
    assert code == 0, err


def test_the_command_that_a_run_prints_gives_its_score(
    tiny: Callable[..., tuple[int, str, str]], cli: Callable[..., tuple[int, str, str]], here: None
) -> None:
    """Of the recipe with most that scoring needs: neighbours, mirroring, the moving average; without typing them."""
    code, out, err = tiny("--run-name", "a", "--recipe", "best", "--precision", "fp32", "--epochs", 2)
    assert code == 0, err
    settings = read_json(Path("performance/a/config.json"))["settings"]
    for name, value in {"neighbours": 1, "mirror": True, "loss": "dice-ce", "aug_intensity": 0.1}.items():
        assert settings["task"][name] == {"value": value, "source": "recipe best"}
    line = next(line for line in out.splitlines() if "unet evaluate" in line)
    command = (*line.split("unet ")[1].split(), "--device", "cpu")
    code, _, err = cli(*command, "--run-name", "b")
    assert code == 0, err
    trained, scored = (Path(f"performance/{run}/cases.csv").read_text() for run in ("a", "b"))
    assert scored == trained
    code, _, err = cli(*command, "--no-mirror", "--run-name", "c")
    assert code == 0, err
    assert Path("performance/c/cases.csv").read_text() != trained
