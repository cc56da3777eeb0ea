"""Task em on files: raw stacks, bad input, folds, augmentation, training by steps, prediction on a stack's own grid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT, program
from PIL import Image

from unet.cli import main, resolve
from unet.commands import run_start
from unet.config.flags import DeviceOptions
from unet.data.context import framed, margin
from unet.data.loading.augment import Frame
from unet.data.loading.loader import StreamBatches
from unet.data.loading.sampling import generator
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.errors import DataError, UsageError
from unet.models.losses import two_class_losses
from unet.runtime import evaluation
from unet.runtime.inference.predictor import Predictor
from unet.tasks.em import check
from unet.tasks.em import dataset as em
from unet.tasks.em.synthetic import make_slice, write_set
from unet.tasks.em.task import EM

SMALL = [
    "--task",
    "em",
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--layers",
    "2",
    "--width",
    "4",
    "--image-size",
    "76",
]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("em") / "em"
    write_set(path, 10, 64, 1)
    return path


def stacks(root: Path, volume: np.ndarray, labels: np.ndarray) -> Path:
    root.mkdir(exist_ok=True)
    photometric = "rgb" if volume.ndim == 4 else "minisblack"
    tifffile.imwrite(root / "train-volume.tif", volume, photometric=photometric)
    tifffile.imwrite(root / "train-labels.tif", labels, photometric="minisblack")
    return root


def arrays(count: int = 4, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 256, (count, side, side)).astype(np.uint8)
    return volume, np.where(rng.random((count, side, side)) < 0.8, 255, 0).astype(np.uint8)


def test_the_seed_folds_are_the_published_ones() -> None:
    ids = [f"slice_{number:02}" for number in range(30)]
    lists = [  # of np.random.seed(123) in the seed
        [2, 6, 13, 17, 19, 28],
        [0, 1, 10, 19, 22, 25],
        [9, 14, 15, 16, 20, 25],
        [3, 4, 16, 18, 23, 24],
        [8, 11, 12, 21, 23, 27],
    ]
    for number, held in enumerate(lists):
        split = em.published_fold(ids, number, 123)
        assert split["validation"] == [ids[place] for place in held]
        assert len(split["train"]) == 24
    config = resolve("train", ["--task", "em", "--fold", "2", "--fold-scheme", "seed"]).config
    assert EM(config).split(ids)["validation"] == [ids[place] for place in lists[2]]


def test_own_folds_are_disjoint_and_complete() -> None:
    ids = [f"slice_{number:02}" for number in range(30)]
    held = []
    for number in range(5):
        config = resolve("train", ["--task", "em", "--fold", str(number), "--seed", str(number)]).config
        held += EM(config).split(ids)["validation"]
    assert sorted(held) == ids


def test_values_and_scale_are_the_recipes(tmp_path: Path) -> None:
    """x / 127.5 - 1, then bilinear between pixel centres (torch's interpolate has the same rule); labels cut at 0.5."""
    volume, labels = arrays(2, 40)
    case = em.index(stacks(tmp_path, volume, labels))[1]
    made = em.prepare(case, 28)

    def resized(image: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(image.astype(np.float32))[None, None]
        return torch.nn.functional.interpolate(tensor, (28, 28), mode="bilinear", align_corners=False)[0, 0].numpy()

    assert np.allclose(made["image"][0, ..., 0], resized(volume[1] / 127.5 - 1), atol=1e-5)  # torch: places in float32
    assert np.array_equal(made["mask"][0, ..., 0], resized(labels[1] / 255) >= 0.5)
    assert made["foreground"] == [int(made["mask"].sum())]
    assert made["raw"] == [40, 40]


@pytest.mark.parametrize("context", ["zero", "mirror"])
def test_the_augmentation_is_crop_and_resize_of_the_framed_image(context: str) -> None:
    """Against the definition of `tf.image.crop_and_resize`, pixel by pixel on the padded, mirrored image."""
    around = margin(2) // 2
    frame = Frame(margin(2), context)
    image, mask = torch.rand(3, 1, 36, 36) * 2 - 1, (torch.rand(3, 1, 36, 36) > 0.4).float()
    changed, cut = frame(image, mask, torch.Generator().manual_seed(5))
    u = torch.rand(3, 7, generator=torch.Generator().manual_seed(5)).double().numpy()
    mode = {"zero": "constant", "mirror": "reflect"}[context]
    side = 36 + 2 * around
    assert changed.shape == (3, 1, side, side)
    assert cut.shape == (3, 1, 36, 36)

    def resized(plane: np.ndarray, top: float, bottom: float, left: float, right: float) -> np.ndarray:
        along = np.arange(side) / (side - 1)
        ys, xs = ((low + (high - low) * along) * (side - 1) for low, high in ((top, bottom), (left, right)))
        result = np.zeros((side, side))
        for i, y in enumerate(ys):
            for j, x in enumerate(xs):
                a, b = min(int(y), side - 2), min(int(x), side - 2)
                v, w = y - a, x - b
                square = plane[a : a + 2, b : b + 2]
                result[i, j] = (1 - v) * ((1 - w) * square[0, 0] + w * square[0, 1]) + v * (
                    (1 - w) * square[1, 0] + w * square[1, 1]
                )
        return result

    for n in range(3):
        planes = [np.pad(item[n, 0].double().numpy(), around, mode=mode) for item in (image, mask)]
        planes = [item[::-1] if u[n, 0] < 0.5 else item for item in planes]
        planes = [item[:, ::-1] if u[n, 3] < 0.5 else item for item in planes]
        box = 0.3 * u[n, 1], 1 - 0.3 * u[n, 2], 0.3 * u[n, 4], 1 - 0.3 * u[n, 5]
        wanted = np.clip(resized(planes[0], *box) + 0.2 * (2 * u[n, 6] - 1), -1, 1)
        assert np.abs(changed[n, 0].numpy() - wanted).max() < 1e-4
        soft = resized(planes[1], *box)[around:-around, around:-around]
        sure = np.abs(soft - 0.5) > 1e-4
        assert np.array_equal(cut[n, 0].numpy()[sure], (soft >= 0.5)[sure])


def test_without_augmentation_only_the_context_is_added() -> None:
    image, mask = torch.rand(1, 1, 20, 20), torch.ones(1, 1, 20, 20)
    found, same = Frame(margin(2), on=False)(image, mask, torch.Generator())
    around = margin(2) // 2
    assert torch.equal(found[..., around:-around, around:-around], image)
    assert found.sum() == pytest.approx(image.sum().item())
    assert same is mask


class _Slices:
    """Slices whose images are their numbers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.cases = [type("Case", (), {"foreground": (1,)})() for _ in range(count)]

    def __len__(self) -> int:
        return self.count

    def get(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return index.float().view(-1, 1, 1, 1), index.float().view(-1, 1, 1, 1)


@pytest.mark.parametrize("world", [1, 2])
def test_the_stream_shows_every_slice_once_a_pass(world: int) -> None:
    """Batches of 4 from 6 slices: passes run across batches and epochs; ranks share them; a batch can be made alone."""
    ranks = [StreamBatches(_Slices(6), 4, 1, None, (rank, world), 3) for rank in range(world)]  # type: ignore[arg-type]
    seen = []
    for epoch in range(1, 5):
        for number in range(3):
            for stream in ranks:
                seen += stream[epoch, number]["index"].tolist()
    passes = [sorted(seen[first : first + 6]) for first in range(0, len(seen), 6)]
    assert passes == [list(range(6))] * len(passes)
    assert seen[:6] != seen[6:12]
    alone = StreamBatches(_Slices(6), 4, 1, None, (0, world), 3)  # type: ignore[arg-type]
    assert torch.equal(alone[4, 2]["index"], ranks[0][4, 2]["index"])


def test_augmentation_does_not_depend_on_the_length_of_an_epoch() -> None:
    def seeded(image: Any, mask: Any, generator: torch.Generator) -> Any:
        return torch.rand(1, generator=generator), mask

    def noise(length: int) -> list[float]:
        stream = StreamBatches(_Slices(6), 2, 1, seeded, (0, 1), length, 5)  # type: ignore[arg-type]
        keys = [divmod(place, length) for place in range(12)]
        return [stream[epoch + 1, number]["image"].item() for epoch, number in keys]

    assert len(set(noise(5))) == 12
    assert noise(2) == noise(3) == noise(5)
    plain = [torch.rand(1, generator=generator(1, place // 5 + 1, place % 5 + 1, 0)).item() for place in range(12)]
    assert noise(5) == plain  # as it always was where an epoch is a piece


def test_a_folder_of_slices_is_the_stack(raw: Path, tmp_path: Path) -> None:
    root = tmp_path / "folders"
    for name in ("train-volume", "train-labels"):
        (root / name).mkdir(parents=True)
        for number, page in enumerate(em.read(raw / f"{name}.tif")):
            if number % 2:
                Image.fromarray(page).save(root / name / f"s{number}.png")
            else:
                tifffile.imwrite(root / name / f"s{number}.tif", page)
    for a, b in zip(em.index(raw), em.index(root), strict=True):
        assert a.id == b.id
        one, other = em.prepare(a, 36), em.prepare(b, 36)
        assert np.array_equal(one["image"], other["image"])
        assert np.array_equal(one["mask"], other["mask"])


BAD = {
    "depth": (lambda v, x: (v, x[:3]), "3 x 40 x 40 .* 4 x 40 x 40"),
    "three values": (lambda v, x: (v, np.where(v < 9, 128, x)), "labels hold 3 values"),
    "one value": (lambda v, x: (v, np.full_like(x, 255)), "labels hold 1 values"),
    "float": (lambda v, x: (v.astype(np.float32), x), "float32 values; grey values of 8 bits"),
    "sixteen bits": (lambda v, x: (v.astype(np.uint16), x), "uint16 values"),
    "colour": (lambda v, x: (np.stack([v, 255 - v, v], -1), x), "of colour"),
    "one page": (lambda v, x: (v[0], x[0]), "holds 1 page"),
    "not square": (lambda v, x: (v[:, :30], x[:, :30]), "30 x 40; the network is trained on squares"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_stacks_are_named(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = BAD[name]
    root = stacks(tmp_path / "bad", *change(*arrays()))
    with pytest.raises(DataError, match=words):
        em.index(root)
    assert main(["check", "--task", "em", "--data", str(root)]) == 1
    assert main([*SMALL, "--data", str(root), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert "train-" in told
    assert "Internal" not in told


def test_a_truncated_stack_and_an_empty_folder(raw: Path, tmp_path: Path) -> None:
    root = stacks(tmp_path, *arrays())
    whole = (root / "train-volume.tif").read_bytes()
    (root / "train-volume.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"train-volume\.tif"):
        for case in em.index(root):
            em.prepare(case, 28)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no train-volume\.tif"):
        em.index(tmp_path / "empty")
    with pytest.raises(DataError, match="no such folder"):
        em.index(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--fold", "5"], "--fold 5 is outside 0 to 4"),
        (["--image-size", "570"], "nearest: 556 or 572"),
        (["--image-size", "100"], "the least is 252"),
        (["--fold", "0", "--folds", "6", "--fold-scheme", "seed"], "--fold-scheme seed"),
    ],
)
def test_settings_that_do_not_fit(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--task", "em", *words]) == 2
    assert told in capsys.readouterr().err


def train(raw: Path, place: Path, *words: str) -> int:
    return main(
        [
            *("train", *SMALL, "--data", str(raw), "--cache", str(place / "cache"), "--out", str(place)),
            *("--batch-size", "2", "--lr", "1e-3", *words),
        ]
    )


def test_by_steps_and_back_to_the_stacks_grid(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ["--max-steps", "25", "--evaluate-every", "10", "--log-every", "5", "--benchmark-warmup", "5"]
    assert train(raw, tmp_path, "--fold", "0", *steps, "--run-name", "r", "--weights", str(tmp_path / "w.pt")) == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    scored = [row for row in rows if row["event"] == "epoch"]
    assert [row["step"] for row in scored] == [10, 20, 25]
    assert all(row["loss"] == pytest.approx(row["ce_loss"] + row["dice_loss"], rel=1e-4) for row in scored)
    assert {"eval_ce_loss", "eval_dice_loss", "eval_loss", "time_to_train"} <= scored[0].keys()
    assert [row["step"] for row in rows if row["event"] == "step"] == [5, 10, 15, 20, 25]
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["steps"] == 25
    assert summary["step_latency"].keys() == {"mean"}  # four stretches say nothing of one in a hundred
    shown = capsys.readouterr().out
    assert "ms in the mean" not in shown and " ms (means of 5 steps)" in shown
    assert "information" in shown

    stack = np.stack([make_slice(3, number, 64)[0] for number in range(3)])[:, :50, :]
    pixel = ((200, 1), (100, 1))
    tifffile.imwrite(tmp_path / "new-volume.tif", stack, imagej=True, resolution=pixel, metadata={"unit": "micron"})
    big = np.stack([make_slice(3, 9, 200)[0]])
    Image.fromarray(big[0]).save(tmp_path / "big.png")
    names = [str(tmp_path / "new-volume.tif"), str(tmp_path / "big.png")]
    place = tmp_path / "masks"
    words = ["--weights", str(tmp_path / "w.pt"), "--overlay", "--probabilities", "--output", str(place)]
    assert main(["predict", "--task", "em", *names, "--device", "cpu", "--precision", "fp32", *words]) == 0
    with tifffile.TiffFile(place / "new-masks.tif") as file:
        masks, tags = file.asarray(), file.pages.first.tags
        assert masks.shape == stack.shape
        assert set(np.unique(masks)) <= {0, 255}
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["unit"] == "micron"
        assert (tags["XResolution"].value, tags["YResolution"].value) == pixel
    cells = tifffile.imread(place / "new-probabilities.tif")
    assert np.array_equal(cells > 0.5, masks > 0)
    drawn = tifffile.imread(place / "new-overlays.tif").shape
    assert (len(drawn), drawn[0], drawn[3]) == (4, len(stack), 3)
    assert min(drawn[1:3]) >= 512  # enlarged
    assert tifffile.imread(place / "big-masks.tif").shape == (200, 200)


def test_weights_bring_the_activation_of_their_network(raw: Path, tmp_path: Path) -> None:
    """No tensor tells of it: without it the network of leaky ReLUs was scored with ReLUs."""
    words = ["--activation", "leaky_relu", "--normalization", "instance", "--fold", "0", "--run-name", "r"]
    assert train(raw, tmp_path, "--max-steps", "1", *words, "--weights", str(tmp_path / "w")) == 0
    place = ["--data", str(raw), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path), *SMALL[2:6]]
    assert main(["evaluate", *place, "--weights", str(tmp_path / "w"), "--run-name", "s"]) == 0
    stored = json.loads((tmp_path / "s" / "config.json").read_text())["settings"]
    found = {name: entry["value"] for group in stored.values() for name, entry in group.items()}
    assert (found["activation"], found["normalization"]) == ("leaky_relu", "instance")
    assert (found["layers"], found["width"]) == (2, 4)
    scores = [json.loads((tmp_path / name / "summary.json").read_text())["best_score"] for name in "rs"]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def test_without_a_fold_nothing_is_evaluated_and_the_run_says_so(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max-steps", "2", "--run-name", "all", "--weights", str(tmp_path / "all.pt")]
    assert train(raw, tmp_path, *words) == 0
    told = capsys.readouterr()
    assert "10 training cases, 0 validation cases" in told.err + told.out
    assert "nothing is evaluated" in told.err + told.out
    assert "unet predict" in told.out
    assert "unet evaluate" not in told.out  # there are no cases that it could score
    assert (tmp_path / "all.safetensors").exists()
    other = ["--run-name", "other", "--weights", str(tmp_path / "o.pt"), "--load", str(tmp_path / "all.pt")]
    assert train(raw, tmp_path, "--max-steps", "2", *other, "--width", "6") == 1
    told = capsys.readouterr()
    assert "--width" in told.err
    assert main([*SMALL, "--image-size", "84", "--data", str(raw), "--cache", str(tmp_path / "cache")]) == 1
    assert "image_size 76 (asked: 84)" in capsys.readouterr().err


def test_what_the_network_sees_of_a_set_of_another_size(raw: Path) -> None:
    config = resolve("train", SMALL).config
    assert EM(config).output_side == 36
    case = type("Case", (), {"facts": {"raw": [64, 64]}})()
    completed = EM(config.replace(max_steps=6400)).finalize_config([case], 8)  # type: ignore[list-item]
    assert completed.task.raw_side == 64
    assert completed.train.max_steps == 800


@pytest.mark.slow
def test_crossval_goes_on_where_it_was_stopped(
    raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        *("crossval", *SMALL, "--data", str(raw), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "p")),
        *("--batch-size", "2", "--max-steps", "4", "--folds", "2", "--run-name", "cv"),
    ]
    assert main(words) == 0
    first = capfd.readouterr().out
    assert "standard deviation" in first
    summary = json.loads((tmp_path / "p" / "cv" / "summary.json").read_text())
    scores = [row["dice"] for row in summary["by_fold"]]
    assert summary["mean"]["dice"] == pytest.approx(np.mean(scores))
    assert summary["standard_deviation"]["dice"] == pytest.approx(np.std(scores, ddof=1))
    own = [json.loads((tmp_path / "p" / f"cv-fold{k}" / "splits.json").read_text())["validation"] for k in (0, 1)]
    assert sorted(own[0] + own[1]) == [f"slice_{number:02}" for number in range(10)]
    kept = (tmp_path / "p" / "cv-fold0" / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "p" / "cv-fold1")
    for path in (tmp_path / "weights").glob("cv-fold1*"):
        path.unlink()
    assert main(words) == 0
    again = json.loads((tmp_path / "p" / "cv" / "summary.json").read_text())
    assert (tmp_path / "p" / "cv-fold0" / "metrics.jsonl").read_text() == kept
    assert [row["dice"] for row in again["by_fold"]] == pytest.approx(scores)
    assert main(words) == 0
    assert json.loads((tmp_path / "p" / "cv" / "summary.json").read_text()) == again, "typed again: the same times too"
    assert main([*words, "--lr", "0.5"]) == 2
    assert "lr 0.0001 -> 0.5" in capfd.readouterr().err
    assert main([*words, "--fold", "1"]) == 2


def test_the_real_set(real_data: Path) -> None:
    root = real_data / "em"
    cases = em.index(root)
    assert len(cases) == 30
    made = em.prepare(cases[7], 388)
    assert made["image"].shape == made["mask"].shape == (1, 388, 388, 1)
    assert -1 <= made["image"].min() < made["image"].max() <= 1
    assert 0.7 < made["mask"].mean() < 0.85
    assert main(["check", "--task", "em", "--data", str(root)]) == 0


def test_what_is_dumped_and_shown_on_a_board(raw: Path, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    words = ["--max-steps", "6", "--log-every", "2", "--run-name", "d", "--weights", str(tmp_path / "d.pt")]
    assert train(raw, tmp_path, *words, "--debug-dump", str(dump), "--tensorboard") == 0
    assert json.loads((dump / "settings.json").read_text())["task"] == "em"
    with np.load(dump / "batch.npz") as batch:
        assert batch["image"].shape == (2, 1, 76, 76)
        assert batch["mask"].shape == (2, 1, 36, 36)
    layers = (dump / "layers.txt").read_text()
    assert "2 x 2 x 36 x 36" in layers.splitlines()[-1]
    assert "conv" in (dump / "trace.json").read_text()
    assert any((tmp_path / "d" / "tensorboard").iterdir())
    plain = [*words[:-4], "--run-name", "p", "--weights", str(tmp_path / "p.pt")]
    assert train(raw, tmp_path, *plain) == 0
    losses = [
        [row["loss"] for row in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())]
        for name in ("d", "p")
    ]
    assert losses[0] == losses[1]  # looking changes nothing


@pytest.mark.slow
def test_an_interrupted_crossval_saves_its_fold_and_goes_on(raw: Path, tmp_path: Path) -> None:
    words = [
        *(sys.executable, "-m", "unet", "crossval", *SMALL, "--data", str(raw), "--cache", str(tmp_path / "cache")),
        *("--out", str(tmp_path / "p"), "--batch-size", "2", "--max-steps", "3000", "--evaluate-every", "300"),
        *("--log-every", "10", "--folds", "2", "--run-name", "cv"),
    ]
    how = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, **how)  # type: ignore[call-overload]
    log = tmp_path / "p" / "cv-fold0" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and '"event": "epoch"' in log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    shown, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "type the same command again (0 of 2 folds are done)" in shown
    assert json.loads((tmp_path / "p" / "cv" / "status.json").read_text())["status"] == "interrupted"
    assert not (tmp_path / "p" / "cv-fold1").exists()
    done = subprocess.run([*words, "--devices", "2"], cwd=tmp_path, text=True, capture_output=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in (tmp_path / "p" / "cv-fold0" / "run.log").read_text()
    assert [row["steps"] for row in json.loads((tmp_path / "p" / "cv" / "summary.json").read_text())["by_fold"]] == [
        3000,
        3000,
    ]


@pytest.mark.parametrize(("image", "label"), [("section7_{:02}.png", "7 label {}.png"), ("{}.png", "{}.png")])
def test_slices_of_two_folders_are_paired_by_their_numbers(image: str, label: str, tmp_path: Path) -> None:
    for folder, name in (("train-volume", image), ("train-labels", label)):
        (tmp_path / folder).mkdir()
        for number in range(12):
            pixels = np.zeros((40, 40), np.uint8)
            pixels[: 20 + number] = 255
            Image.fromarray(pixels).save(tmp_path / folder / name.format(number))
    cases = em.index(tmp_path)
    assert [(case.images[0].name, case.labels[0].name) for case in cases] == [
        (image.format(number), label.format(number)) for number in range(12)
    ]
    (tmp_path / "train-volume" / image.format(2)).unlink()
    (tmp_path / "train-labels" / label.format(4)).unlink()
    with pytest.raises(DataError) as caught:
        em.index(tmp_path)
    words = f"{label.format(2)} is not the label of {image.format(3)} in train-volume"
    assert words in caught.value.message
    assert check.raw(tmp_path, lambda ids: None).errors == [caught.value.message]  # type: ignore[arg-type, return-value]


def test_stacks_in_a_folder_of_slices_are_refused(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    folder.mkdir()
    (folder / "a.tif").write_bytes((raw / "train-volume.tif").read_bytes())
    with pytest.raises(DataError, match="has 10 pages"):
        em.read(folder)
    stacks(tmp_path / "no-test", *arrays())
    with pytest.raises(DataError, match=r"has no test-volume\.tif"):
        em.inputs([tmp_path / "no-test"])


def test_images_that_cannot_be_predicted_are_named(raw: Path, tmp_path: Path) -> None:
    config = resolve("predict", SMALL).config.replace(raw_side=64)
    with pytest.raises(DataError, match=r"tiny\.tif: an image of 1 x 1 pixels is too small"):
        EM(config).probability(np.zeros((1, 1, 1), np.uint8), [], Path("tiny.tif"))
    folder = tmp_path / "slices"
    folder.mkdir()
    for number, page in enumerate(em.read(raw / "train-volume.tif")[:3]):
        Image.fromarray(page).save(folder / f"s{number}.png")
    os.mkfifo(folder / "s3.png")
    with pytest.raises(DataError, match=r"s3\.png: is a pipe, not a file \(1 of 4 slices\)"):
        em.read(folder)
    (folder / "s3.png").unlink()
    Image.fromarray(np.zeros((9, 64), np.uint8)).save(folder / "s3.png")
    with pytest.raises(DataError, match=r"s3\.png: is 9 x 64, but s0\.png is 64 x 64"):
        em.read(folder)


@pytest.mark.parametrize("shape", [(5, 40), (40, 3), (2, 2), (1, 7)])
def test_the_mirrored_context_of_small_images(shape: tuple[int, int]) -> None:
    image = torch.rand(1, 1, *shape)
    wanted = np.pad(image[0, 0].numpy(), 20, mode="reflect")
    assert np.array_equal(framed(image, 20, "mirror")[0, 0].numpy(), wanted)


def test_a_run_goes_on_with_other_distances_between_evaluations(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--fold", "0", "--run-name", "r", "--weights", str(tmp_path / "r.pt"), "--log-every", "1"]
    assert train(raw, tmp_path, *words, "--evaluate-every", "12", "--max-steps", "7") == 0
    again = ["train", "--resume", "--run-name", "r", "--out", str(tmp_path), "--evaluate-every", "4"]
    assert main([*again, "--max-steps", "14"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 15))
    assert [row["step"] for row in rows if row["event"] == "epoch"] == [7, 8, 12, 14]


def test_a_rate_that_counts_epochs_keeps_their_length_on_resuming() -> None:
    for rate, kept in (("--warmup-epochs", True), ("--lr-milestones", True), ("--patience", False)):
        words = [*SMALL, "--fold", "0", rate, "2", "--evaluate-every"]
        before = resolve("train", [*words, "2"]).entries()
        with pytest.raises(UsageError, match="evaluate_every 2 -> 3") if kept else contextlib.nullcontext():
            run_start._require_unchanged(before, resolve("train", [*words, "3"]))


def test_an_evaluation_that_was_stopped_is_made_on_resuming(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps make an epoch; the stop comes in the second evaluation."""
    monkeypatch.chdir(tmp_path)
    scored, calls, armed = evaluation.score, list[int](), list[int]()

    def score(*cases: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 and armed:
            os.kill(os.getpid(), signal.SIGTERM)
        return scored(*cases, **how)

    monkeypatch.setattr(evaluation, "score", score)
    words = ["--fold", "0", "--evaluate-every", "2", "--max-steps", "6", "--eval-steps", "1", "--deterministic"]
    assert train(raw, tmp_path, *words, "--run-name", "whole") == 0
    calls.clear()
    armed.append(1)
    assert train(raw, tmp_path, *words, "--run-name", "cut") == 130
    assert main(["train", "--resume", "--run-name", "cut", "--out", str(tmp_path)]) == 0
    whole, cut = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    scores = [
        [(row["step"], row["loss"], row["score"]) for row in rows if row["event"] == "epoch"] for rows in (whole, cut)
    ]
    assert [step for step, *_ in scores[0]] == [2, 4, 6]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_prediction_alone_is_timed(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["benchmark", *SMALL, "--data", str(raw), "--cache", "./cache", "--mode", "predict"]
    sizes = ["--eval-batch-size", "2", "--rounds", "2", "--steps", "2", "--benchmark-warmup", "1"]
    assert main([*words, *sizes, "--run-name", "timed"]) == 0
    result = json.loads((tmp_path / "performance" / "timed" / "benchmark.json").read_text())
    assert len(result["predict"]["seconds_a_pass"]) == 4
    assert result["predict"]["latency"].keys() == {"mean"}
    assert "prediction" in capsys.readouterr().out


@pytest.mark.slow
def test_several_processes_share_the_steps(raw: Path, tmp_path: Path) -> None:
    words = ["--data", str(raw), "--cache", str(tmp_path / "cache"), "--batch-size", "2", "--fold", "0"]
    names = ["--run-name", "two", "--weights", str(tmp_path / "two.pt")]
    done = program("train", *SMALL, *words, *names, "--max-steps", 20, "--devices", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "10 steps, the share of each of 2 processes" in done.stderr
    summary = tmp_path / "performance" / "two" / "summary.json"
    assert json.loads(summary.read_text())["steps"] == 10
    done = program("train", "--resume", "--run-name", "two", "--max-steps", 40, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(summary.read_text())["steps"] == 40
    log = (tmp_path / "performance" / "two" / "run.log").read_text()
    assert "step 20" in log  # ten steps of two processes are twenty of one


@pytest.mark.slow
def test_the_script_of_five_folds(raw: Path, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "train_and_evaluate.sh"
    small = ["--layers", "2", "--width", "4", "--image-size", "76", "--max-steps", "3", "--cache", str(tmp_path / "c")]
    words = [str(script), str(raw), str(tmp_path / "results"), "2", "fp32", "1", *small]
    how = {"cwd": tmp_path, "text": True, "capture_output": True, "timeout": 300}
    env = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "PYTHONPATH": str(script.parent.parent)}
    done = subprocess.run(words, env=env, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "standard deviation" in done.stdout
    summary = json.loads((tmp_path / "results" / "unet2d" / "summary.json").read_text())
    assert [row["fold"] for row in summary["by_fold"]] == [0, 1, 2, 3, 4]
    assert len(list((tmp_path / "results").glob("em-fold?.safetensors"))) == 5
    assert subprocess.run(words[:4], env=env, **how).returncode == 2  # type: ignore[call-overload]


class Constant(torch.nn.Module):
    """The same logits whatever the image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1, -1, -1)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_several_networks_are_scored_by_their_mean_probability(loss: str) -> None:
    """As they are predicted; of one network the losses are those of its own logits."""
    task = EM(resolve("train", [*SMALL, "--cross-entropy", loss]).config)
    rng = torch.Generator().manual_seed(3)
    logits = [4 * torch.randn(1, 2, 36, 36, generator=rng) for _ in range(3)]
    logits[0][0, 0, 0, 0] = 300  # a probability of 0 in float32, that only one network is sure of
    target = torch.randint(0, 2, (1, 36, 36, 1), generator=rng).numpy()
    case: Any = SimpleNamespace(id="slice_00", arrays=lambda: (np.zeros((1, 36, 36, 1), np.float32), target))
    device = CPU(DeviceOptions(device="cpu"), Rank())

    def scored(*chosen: torch.Tensor) -> tuple[dict[str, float], Any]:
        numbers, found = task.evaluate_case(case, Predictor([Constant(each) for each in chosen], device, 1))
        return numbers, found["probability"]

    numbers, probability = scored(*logits)
    mean = torch.stack([each.softmax(1) for each in logits]).mean(0)
    np.testing.assert_allclose(probability, mean[0, 1], atol=1e-6)
    truth = torch.from_numpy(target[..., 0])
    assert numbers["ce_loss"] == pytest.approx(torch.nn.functional.nll_loss(mean.log(), truth).item(), rel=1e-5)
    ce, dice = two_class_losses(logits[0], truth[None], loss)
    assert scored(logits[0])[0]["ce_loss"] == ce.item()
    assert scored(logits[0])[0]["dice_loss"] == dice.item()
