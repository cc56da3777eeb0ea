"""Training through the command line: what a run leaves, how it stops and goes on, what it reads from the device."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_config
from conftest import error_of, read_json, stored

from unet.commands import crossval
from unet.config import run_files
from unet.errors import UsageError
from unet.runtime import optim
from unet.runtime.distributed.process_group import Group

RUN_FILES = {
    "cases",
    "files.json",
    "config.json",
    "environment.json",
    "status.json",
    "metrics.jsonl",
    "results.csv",
    "run.log",
    "a.txt",
    "splits.json",
    "cases.csv",
    "summary.json",
    "progress.png",
    "predictions.png",
}


def weights_of(name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = stored(Path("weights", name).with_suffix(".safetensors"))["model"]
    return state


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_what_is_promised(tiny) -> None:
    code, out, err = tiny("--run-name", "a", "--epochs", 3)
    assert code == 0, err
    folder = Path("performance/a")
    assert {path.name for path in folder.iterdir()} == RUN_FILES
    before = {"a.state-before.safetensors", "a.best-before.safetensors"}
    assert {path.name for path in Path("weights").iterdir()} - before == {"a.safetensors", "a.state.safetensors"}
    summary = read_json(folder / "summary.json")
    assert set(summary) >= {
        "metric",
        "best_score",
        "best_epoch",
        "epochs",
        "steps",
        "images_per_second",
        "data_wait_fraction",
        "peak_memory_bytes",
        "seconds",
        "paths",
    }
    assert summary["epochs"] == 3
    assert summary["images_per_second"] > 0
    assert 0 <= summary["data_wait_fraction"] < 1
    assert read_json(folder / "status.json")["status"] == "done"
    setting = read_json(folder / "config.json")["settings"]["task"]["image_size"]
    assert setting == {"value": 16, "source": "flag --image-size"}
    split = read_json(folder / "splits.json")
    assert (len(split["train"]), len(split["validation"])) == (5, 1)
    assert "python -m unet evaluate --weights a.safetensors --data /" in out
    assert "--cache cache_16\n" in out
    assert "performance/a" in out
    events = [json.loads(line)["event"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert events.count("epoch") == 3
    assert (folder / "cases.csv").read_text().splitlines()[0] == "case,dsc,hd95,volume_error,loss"


def test_the_seeds_log(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 2)
    lines = Path("performance/a/a.txt").read_text().splitlines()
    assert lines[0].startswith("Command: python -m unet train")
    assert lines[1:3] == ["Begin CSV", "type,epoch,time,loss,dsc"]
    number = r"[0-9.]+"
    patterns = [rf"loaders_init,,{number},,"]
    for epoch in (1, 2):
        patterns += [rf"train,{epoch},{number},{number},", rf"eval,{epoch},{number},{number}, {number}"]
    patterns += [
        rf"total_train_time,2,{number},,",
        rf"total_eval_time,2,{number},,",
        rf"Best validation mean DSC: {number}",
        "End CSV",
    ]
    assert len(lines) == 3 + len(patterns)
    for line, pattern in zip(lines[3:], patterns, strict=True):
        assert re.fullmatch(pattern, line), line


def test_weights_of_single_epochs_are_kept(tiny, cli, phantoms: Path) -> None:
    assert tiny("--run-name", "a", "--epochs", 3)[0] == 0
    assert not list(Path("weights").glob("*.epoch-*"))  # off by default
    theirs = Path("weights/a.epoch-0002.safetensors")
    theirs.write_bytes(b"theirs")
    code, out, err = tiny("--run-name", "a", "--epochs", 5, "--keep-every", 2, "--save-minutes", 60, "--overwrite")
    assert code == 0, err
    kept = [Path(f"weights/a.epoch-000{epoch}.safetensors") for epoch in (2, 4)]
    assert sorted(Path("weights").glob("a.epoch-*.safetensors")) == kept
    assert Path("weights/a.epoch-0002.safetensors.replaced-1").read_bytes() == b"theirs"
    assert [stored(path)["epoch"] for path in kept] == [2, 4]
    assert not torch.equal(*(next(iter(stored(path)["model"].values())) for path in kept))
    assert read_json(Path("performance/a/summary.json"))["paths"]["kept"] == list(map(str, kept))
    assert "kept       weights/a.epoch-0002.safetensors ... a.epoch-0004.safetensors (2 epochs)" in out
    code, _, err = cli("evaluate", "--weights", kept[0], "--data", phantoms, "--cache", "cache_16", "--device", "cpu")
    assert code == 0, err
    assert tiny("--run-name", "a", "--epochs", 1, "--overwrite")[0] == 0
    assert not any(path.exists() for path in kept)


def test_kept_weights_follow_the_state(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the state and the kept weights: a resumed run writes them from the state."""
    from unet.runtime.callbacks.checkpoint import Checkpoints

    assert tiny("--run-name", "whole", "--epochs", 2, "--keep-every", 1, "--deterministic")[0] == 0
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoints, "keep", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            tiny("--run-name", "a", "--epochs", 2, "--keep-every", 1, "--deterministic")
    code, _, err = tiny("--resume", "--run-name", "a")
    assert code == 0 and "a.epoch-0001.safetensors: the weights of epoch 1, to be kept, are restored" in err, err
    for epoch in (1, 2):
        one, other = (stored(f"weights/{name}.epoch-000{epoch}.safetensors") for name in ("whole", "a"))
        assert same(one["model"], other["model"]) and one["score"] == other["score"]


def test_a_bare_command_line_means_train(cli, phantoms: Path) -> None:
    code, _, err = cli(
        "--data_path",
        phantoms,
        "--cache-path",
        "c",
        "--image_size",
        16,
        "--layers",
        2,
        "--width",
        2,
        "--batch_size",
        4,
        "--test-batch-size",
        1,
        "--epochs",
        1,
        "--run_name",
        "seed",
        "--weights-files",
        "s.pt",
        "--no_hpu",
        "--num_workers",
        0,
    )
    assert code == 0, err
    assert Path("weights/s.safetensors").exists()
    assert Path("performance/seed/seed.txt").exists()


def test_the_same_seed_gives_the_same_bits(tiny) -> None:
    for name in ("a", "b"):
        assert tiny("--run-name", name, "--weights", f"{name}.pt", "--epochs", 2, "--deterministic")[0] == 0
    assert same(weights_of("a.pt"), weights_of("b.pt"))
    tiny("--run-name", "c", "--weights", "c.pt", "--epochs", 2, "--deterministic", "--seed", 5)
    assert not same(weights_of("a.pt"), weights_of("c.pt"))


def test_workers_do_not_change_the_bits(tiny) -> None:
    for name, workers in (("a", 0), ("b", 2)):
        assert (
            tiny("--run-name", name, "--weights", f"{name}.pt", "--epochs", 1, "--deterministic", "--workers", workers)[
                0
            ]
            == 0
        )
    assert same(weights_of("a.pt"), weights_of("b.pt"))


@pytest.mark.parametrize(
    "extra",
    [
        ("--schedule", "cosine", "--accumulate", 2, "--optimizer", "adamw", "--clip", 1.0),
        pytest.param((), marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_at_every_step_ends_with_the_same_bits(tiny, extra: tuple[object, ...]) -> None:
    assert tiny("--run-name", "whole", "--weights", "whole.pt", "--epochs", 2, "--deterministic", *extra)[0] == 0
    steps = read_json(Path("performance/whole/summary.json"))["steps"]
    code, _, err = tiny(
        "--run-name", "cut", "--weights", "cut.pt", "--epochs", 2, "--deterministic", "--max-time", 1e-6, *extra
    )
    stops = 0
    while code == 130:
        stops += 1
        assert read_json(Path("performance/cut/status.json"))["status"] == "interrupted"
        assert stops <= 2 * steps + 4
        code, _, err = tiny("--run-name", "cut", "--resume", "--max-time", 1e-6)
    assert code == 0, err
    assert stops >= steps - 1
    for name in ("", ".state"):
        assert same(weights_of(f"whole{name}.pt"), weights_of(f"cut{name}.pt"))
    generators = [stored(f"weights/{name}.state.safetensors")["rng"]["torch"] for name in ("whole", "cut")]
    assert torch.equal(*generators), "a stopped run draws what a whole one draws"
    whole, cut = (
        [json.loads(line) for line in Path(f"performance/{name}/metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    )
    losses = [[event["loss"] for event in events if event["event"] == "epoch"] for events in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_max_time_counts_from_the_start_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing torch and building the cache take minutes too."""
    from unet import host
    from unet.runtime.stop import Stop

    monkeypatch.setattr(host, "STARTED", host.STARTED - 6000)
    for minutes, over in ((99, True), (1e5, False), (None, False)):
        stop = Stop(minutes)
        assert not stop.requested()
        stop.made_progress = True
        assert stop.requested() is over and stop.signal is None


def test_the_latency_leaves_out_the_first_step_after_each_start(tiny) -> None:
    """It compiles and fills caches; --max-time stops the first run after one step."""
    often = ("--run-name", "a", "--epochs", 2, "--log-every", 1)
    assert tiny(*often, "--max-time", 1e-6)[0] == 130
    assert tiny("--run-name", "a", "--resume", "--max-steps", 3)[0] == 0
    assert tiny("--run-name", "a", "--resume", "--max-steps", 6)[0] == 0
    rows = [json.loads(line) for line in Path("performance/a/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["step"] for row in steps if row.get("warm_up")] == [1, 2, 4]
    kept = [row["step_seconds"] for row in steps if row["step"] in (3, 5, 6)]
    mean = read_json(Path("performance/a/summary.json"))["step_latency"]["mean"]
    assert mean == pytest.approx(sum(kept) / 3)


@pytest.mark.parametrize(
    "how", [("--resume",), ("--resume", "performance/a"), ("--resume", "weights/a.state.safetensors")]
)
def test_what_resume_may_be_told(tiny, how: tuple[str, ...]) -> None:
    assert tiny("--run-name", "a", "--epochs", 2, "--max-time", 1e-6)[0] == 130
    code, out, err = tiny(*how)
    assert code == 0, err
    assert f"resumed from {Path('weights/a.state.safetensors').absolute()}" in err
    assert "Run a: finished: 2 epochs" in out


@pytest.mark.slow
def test_resume_from_another_folder(
    tiny, cli, workplace: Path, monkeypatch: pytest.MonkeyPatch, phantoms: Path
) -> None:
    assert tiny("--run-name", "a", "--epochs", 2, "--max-time", 1e-6, "--cache", workplace / "cache")[0] == 130
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    code, _, err = cli("train", "--resume", workplace / "performance/a")
    assert code == 0, err
    assert f"resumed from {workplace / 'weights/a.state.safetensors'}: epoch 1, batch 1" in err
    for path in (workplace / "weights").glob("a.state*"):
        path.unlink()
    assert "is gone" in error_of(cli("train", "--resume", workplace / "performance/a"))


@pytest.mark.slow
def test_what_was_typed_on_resuming_lasts(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    assert tiny("--resume", "--run-name", "a", "--epochs", 4, "--max-time", 1e-6)[0] == 130
    settings = run_files.read_settings(Path("performance/a/config.json"))
    assert settings["epochs"] == {"value": 4, "source": "flag --epochs"}
    assert settings["image_size"] == {"value": 16, "source": "flag --image-size"}
    assert tiny("--resume", "--run-name", "a")[0] == 0
    assert read_json(Path("performance/a/summary.json"))["epochs"] == 4


def test_a_raised_target_is_not_reached(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 3, "--target", 0.0)[0] == 0
    code, out, _ = tiny("--resume", "--run-name", "a", "--target", 0.9999)
    assert code == 3
    assert "target 0.9999 not reached" in out
    assert read_json(Path("performance/a/summary.json"))["epochs"] == 3


def test_a_run_that_rebuilt_its_cache_goes_on(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 2, "--im-cache", "--max-time", 1e-6)[0] == 130
    assert tiny("--resume", "--run-name", "a")[0] == 0


def test_weights_that_are_not_finite_are_not_saved(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch's loss is finite, its gradients are not: the state of before stays."""
    from unet.runtime import trainer

    tiny("--run-name", "a", "--epochs", 1)
    before = Path("weights/a.state.safetensors").read_bytes()
    original = trainer.optimizer_step

    def step(run: Any) -> None:
        if run.progress.batch == run.steps_per_epoch:
            run.model.head.bias.grad.fill_(math.inf)
        original(run)

    monkeypatch.setattr(trainer, "optimizer_step", step)
    error = error_of(tiny("--resume", "--run-name", "a", "--epochs", 2))
    assert "Weights are not finite after step" in error and "with --resume and a lower --lr" in error
    assert Path("weights/a.state.safetensors").read_bytes() == before


@pytest.fixture
def bad_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of each epoch's last batch is NaN."""
    from unet.runtime import trainer
    from unet.tasks.segmentation import SegmentationTask

    epoch, step, left = trainer.train_epoch, SegmentationTask.training_step, [0]

    def train_epoch(run: Any) -> bool:
        left[0] = run.batches_per_epoch - run.progress.batch
        return epoch(run)

    def training_step(self: Any, model: Any, batch: Any) -> dict[str, torch.Tensor]:
        left[0] -= 1
        losses = step(self, model, batch)
        return losses if left[0] else losses | {"loss": losses["loss"] * math.nan}

    monkeypatch.setattr(trainer, "train_epoch", train_epoch)
    monkeypatch.setattr(SegmentationTask, "training_step", training_step)


def test_good_weights_are_saved_after_a_skipped_batch(tiny, bad_last_batch: None) -> None:
    """--skip-norm: the last loss is NaN, and the weights are those of before."""
    assert tiny("--run-name", "a", "--epochs", 1, "--skip-norm", 1e9, "--keep-every", 1)[0] == 0
    files = [Path(f"weights/a{name}.safetensors") for name in ("", ".state", ".epoch-0001")]
    assert all(torch.isfinite(value).all() for path in files for value in stored(path)["model"].values())
    assert stored(files[0])["score"] == read_json(Path("performance/a/summary.json"))["best_score"]


def test_a_stopped_run_does_not_say_that_bad_weights_were_saved(tiny, bad_last_batch: None, monkeypatch: Any) -> None:
    from unet.runtime import trainer

    monkeypatch.setattr(trainer, "evaluate_epoch", lambda run: None)
    error = error_of(tiny("--run-name", "a", "--epochs", 1))
    assert "Weights are not finite after step" in error and "they were not saved" in error and "TCGA" in error
    assert "No state is saved: start a new run" in error and "--resume" not in error
    assert not list(Path("weights").glob("*.safetensors"))
    assert read_json(Path("performance/a/status.json"))["status"] == "failed"


@pytest.mark.parametrize(
    ("resumed", "checkpoints", "saved", "has_state"),
    [
        (True, True, False, True),
        (False, True, False, False),
        (False, True, True, True),
        (False, False, True, False),
        (True, False, False, True),
    ],
)
def test_a_failed_run_is_told_to_go_on_only_from_a_state_that_exists(
    resumed: bool, checkpoints: bool, saved: bool, has_state: bool
) -> None:
    from unet.runtime.trainer import Trainer

    run = Trainer.__new__(Trainer)
    run.resumed, run.saving = resumed, make_config(checkpoints=checkpoints).save
    run.saved_at = 5.0 if saved else -math.inf
    assert ("--resume" in run.advice("--clip 1")) is has_state
    assert ("start a new run" in run.advice("--clip 1")) is not has_state


def test_two_epochs_and_two_more_are_four(tiny) -> None:
    tiny("--run-name", "four", "--weights", "four.pt", "--epochs", 4, "--deterministic")
    tiny("--run-name", "two", "--weights", "two.pt", "--epochs", 2, "--deterministic")
    code, _, err = tiny("--resume", "--run-name", "two", "--epochs", 4)
    assert code == 0
    assert "Changed on resuming: epochs 2 -> 4" in err
    assert same(weights_of("four.state.safetensors"), weights_of("two.state.safetensors"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_finish_the_step_save_and_exit_130(tiny, number: signal.Signals) -> None:
    timer = threading.Timer(1.5, os.kill, (os.getpid(), number))

    from unet.runtime import trainer

    original = trainer.Stop.listen

    def listen(self: Any) -> Any:
        timer.start()
        return original(self)

    trainer.Stop.listen = listen  # type: ignore[method-assign]
    try:
        code, out, _ = tiny("--run-name", "a", "--epochs", 100000, "--evaluate-every", 0)
    finally:
        trainer.Stop.listen = original  # type: ignore[method-assign]
        timer.cancel()
    assert code == 130
    status = read_json(Path("performance/a/status.json"))
    assert (status["status"], status["why"]) == ("interrupted", f"stopped: {number.name}")
    assert "python -m unet train --resume --run-name a" in out
    state = stored("weights/a.state.safetensors")
    assert state["progress"]["step"] > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    before = Path("weights/a.state.safetensors").read_bytes()
    best = Path("weights/a.safetensors").read_bytes()
    poisoned = read_json(Path("performance/a/splits.json"))["train"]
    for name in poisoned:
        path = Path(f"data/cache_16/{name}.npy")
        image = np.load(path)
        image[:] = np.nan
        np.save(path, image)
    manifest = read_json(Path("data/cache_16/manifest.json"))  # as of a version that kept no digests of its arrays
    for record in manifest["cases"].values():
        del record["arrays"]
    Path("data/cache_16/manifest.json").write_text(json.dumps(manifest))
    error = error_of(tiny("--resume", "--run-name", "a", "--epochs", 3))
    assert "not finite from step" in error
    assert any(name in error for name in poisoned)
    assert "--resume" in error
    assert Path("weights/a.state.safetensors").read_bytes() == before
    assert Path("weights/a.safetensors").read_bytes() == best
    assert read_json(Path("performance/a/status.json"))["status"] == "failed"


def test_steps_read_nothing_from_the_device_between_log_lines(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 5, and a defect of the seed's program: loss.item() in every step."""
    reads: list[str] = []
    inside = False

    def watch(name: str) -> None:
        original = getattr(torch.Tensor, name)

        def wrapped(self: torch.Tensor, *args: Any, **how: Any) -> Any:
            frame = sys._getframe(1)
            if inside and re.search(r"unet/(runtime|tasks|models|devices)/", frame.f_code.co_filename):
                reads.append(f"{name} in {frame.f_code.co_name}")
            return original(self, *args, **how)

        monkeypatch.setattr(torch.Tensor, name, wrapped)

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"):
        watch(name)
    from unet.runtime import trainer

    original = trainer.train_epoch

    def train_epoch(run: Any) -> bool:
        nonlocal inside
        inside = True
        try:
            return original(run)
        finally:
            inside = False

    monkeypatch.setattr(trainer, "train_epoch", train_epoch)
    code, _, err = tiny("--run-name", "a", "--epochs", 1, "--log-every", 4, "--clip", 1.0, "--batch-size", 2)
    assert code == 0, err
    lines = [json.loads(line) for line in Path("performance/a/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if line["event"] == "step"]
    assert len(logged) > 2
    assert reads == ["tolist in read"] * len(logged)


def test_evaluation_keeps_no_graph(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect of the seed's program: evaluation without no_grad."""
    from unet.models.unet import UNet

    seen = []
    original = UNet.forward

    def forward(self: UNet, x: torch.Tensor) -> torch.Tensor:
        result = original(self, x)
        seen.append((self.training, result.requires_grad))
        return result

    monkeypatch.setattr(UNet, "forward", forward)
    tiny("--run-name", "a", "--epochs", 1)
    assert set(seen) == {(True, True), (False, False)}


def test_target_patience_and_steps(tiny) -> None:
    assert tiny("--run-name", "a", "--weights", "a.pt", "--epochs", 9, "--target", 0.0)[0] == 0
    assert read_json(Path("performance/a/summary.json"))["epochs"] == 1
    code, out, _ = tiny("--run-name", "b", "--weights", "b.pt", "--epochs", 1, "--target", 0.9999)
    assert code == 3
    assert "target 0.9999 not reached" in out
    assert tiny("--run-name", "c", "--weights", "c.pt", "--epochs", 50, "--patience", 2, "--lr", 1e-12)[0] == 0
    summary = read_json(Path("performance/c/summary.json"))
    assert summary["ended"] == "patience"
    assert summary["epochs"] < 50
    assert tiny("--run-name", "d", "--weights", "d.pt", "--epochs", 50, "--max-steps", 3)[0] == 0
    assert read_json(Path("performance/d/summary.json"))["steps"] == 3


def test_a_run_that_lost_patience_does_not_go_on(tiny) -> None:
    words = ("--run-name", "a", "--epochs", 9, "--patience", 1)
    assert tiny(*words, "--lr", 1e-12)[0] == 0
    epochs = read_json(Path("performance/a/summary.json"))["epochs"]
    assert epochs < 9
    code, out, err = tiny("--run-name", "a", "--resume")
    assert code == 0 and "nothing is left to train" in out + err
    assert read_json(Path("performance/a/summary.json"))["epochs"] == epochs


def test_a_stop_in_the_last_evaluation_loses_nothing(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that ends by its steps, which the state has all."""
    from unet.runtime import trainer

    evaluate = trainer.evaluate_epoch
    monkeypatch.setattr(trainer, "evaluate_epoch", lambda run: None if run.out_of_steps else evaluate(run))
    assert tiny("--run-name", "a", "--epochs", 50, "--max-steps", 3, "--evaluate-every", 0)[0] == 130
    assert not Path("performance/a/cases.csv").exists()
    monkeypatch.setattr(trainer, "evaluate_epoch", evaluate)
    assert tiny("--run-name", "a", "--resume")[0] == 0
    summary = read_json(Path("performance/a/summary.json"))
    assert (summary["steps"], summary["ended"]) == (3, "max-steps")
    assert summary["best_score"] is not None
    assert Path("performance/a/cases.csv").exists()


def test_a_signal_after_the_last_step_leaves_scoring_to_a_resumed_run(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet.runtime import trainer

    close = trainer.close_epoch

    def closing(run: Any, scores: dict[str, Any]) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return close(run, scores)

    with monkeypatch.context() as late:
        late.setattr(trainer, "close_epoch", closing)
        code, out, _ = tiny("--run-name", "a", "--epochs", 1)
        assert code == 130 and "python -m unet train --resume --run-name a" in out
        status = read_json(Path("performance/a/status.json"))
        assert (status["status"], status["why"]) == ("interrupted", "stopped: SIGTERM")
        assert not Path("performance/a/cases.csv").exists()
        assert tiny("--run-name", "b", "--epochs", 1, "--no-checkpoints")[0] == 0  # nothing is left to do
    assert tiny("--run-name", "a", "--resume")[0] == 0
    assert Path("performance/a/cases.csv").exists()
    assert read_json(Path("performance/a/summary.json"))["ended"] == "epochs"


def test_the_scores_of_a_moving_average_are_those_of_the_best_weights(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet.commands import scores
    from unet.runtime import trainer

    full, close, found = scores.full, trainer.close_epoch, {}

    def scored(context: Any, predictor: Any, *rest: Any) -> Any:
        (network,) = predictor.networks
        network = getattr(network, "_orig_mod", network)
        found["scored"] = {name: value.clone() for name, value in network.state_dict().items()}
        return full(context, predictor, *rest)

    monkeypatch.setattr(scores, "full", scored)
    scores_of = iter((0.9, 0.1))
    monkeypatch.setattr(trainer, "close_epoch", lambda run, given: close(run, {**given, "score": next(scores_of)}))
    assert tiny("--run-name", "a", "--epochs", 2, "--ema", 0.5, "--evaluate-every", 1)[0] == 0
    assert read_json(Path("performance/a/summary.json"))["best_epoch"] == 1
    assert same(found["scored"], weights_of("a"))


def test_a_state_given_as_weights_is_the_network_that_its_run_scores(tiny) -> None:
    """The moving average, as in the scores that the run has printed."""
    from unet.runtime.checkpoints import checkpoint

    assert tiny("--run-name", "a", "--epochs", 1, "--ema", 0.9)[0] == 0
    averaged = weights_of("a")
    assert same(checkpoint.weights_of(stored("weights/a.state.safetensors")), averaged)
    assert not same(stored("weights/a.state.safetensors")["model"], averaged)
    assert tiny("--run-name", "b", "--epochs", 1, "--load", "weights/a.state.safetensors", "--lr", 1e-12)[0] == 0
    start = weights_of("b")
    assert all(torch.allclose(start[key], averaged[key]) for key in start if key.endswith("weight"))


def test_a_moving_average_has_the_statistics_of_all_ranks() -> None:
    from unet.runtime import trainer

    class Two(Group):
        def average_statistics(self, model: Any) -> None:
            for buffer in model.buffers():
                buffer.fill_(7)

    model = torch.nn.BatchNorm2d(2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    trainer.average_statistics(SimpleNamespace(group=Two(), model=model, averaged=averaged))  # type: ignore[arg-type]
    assert averaged.module.running_mean.tolist() == model.running_mean.tolist() == [7, 7]


def test_a_score_that_is_no_number_is_never_the_best(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet.runtime import trainer

    close = trainer.close_epoch
    for name, given, best in (("a", (math.nan, 0.2, 0.1), 2), ("b", (math.nan, math.nan), 0)):
        scores_of = iter(given)
        monkeypatch.setattr(
            trainer,
            "close_epoch",
            lambda run, found, scores_of=scores_of: close(run, {**found, "score": next(scores_of)}),
        )
        words = ("--run-name", name, "--weights", f"{name}.pt", "--epochs", len(given), "--evaluate-every", 1)
        assert tiny(*words)[0] == 0
        assert read_json(Path(f"performance/{name}/summary.json"))["best_epoch"] == best
        assert stored(Path(f"weights/{name}.safetensors"))["epoch"] == (best or len(given))


def test_a_reached_target_is_read_from_a_file_without_exit_code_3(tiny) -> None:
    Path("s.json").write_text('{"target": 0.9999, "epochs": 1}')
    assert tiny("--run-name", "a", "--config", "s.json")[0] == 0


def test_a_dry_run_keeps_nothing(tiny) -> None:
    code, out, err = tiny("--dry-run", "--epochs", 50)
    assert code == 0, err
    assert "nothing was kept" in out
    assert not Path("performance").exists()
    assert not Path("weights").exists()


def test_a_runs_config_replays_it(tiny, cli) -> None:
    assert tiny("--run-name", "a", "--weights", "a.pt", "--epochs", 2, "--deterministic", "--lr", 3e-4)[0] == 0
    code, _, err = cli("train", "--config", "performance/a/config.json", "--run-name", "b", "--weights", "b.pt")
    assert code == 0, err
    assert same(weights_of("a.pt"), weights_of("b.pt"))
    sources = run_files.read_settings(Path("performance/b/config.json"))
    assert sources["lr"] == {"value": 3e-4, "source": "file performance/a/config.json"}


def test_modes(tiny, cli, phantoms: Path) -> None:
    code, out, err = tiny("--run-name", "a", "--mode", "train", "--epochs", 1)
    assert code == 0
    assert "nothing is evaluated: --mode train" in err
    assert "python -m unet evaluate --weights a.safetensors" in out, "there are cases to score"
    assert "evaluate" not in Path("performance/a/a.txt").read_text()
    code, out, err = tiny("--run-name", "b", "--exec_mode", "evaluate", "--weights", "a.pt")
    assert code == 0, err
    assert "95 % interval" in out or "mean" in out
    code, _, err = tiny("--mode", "predict", "--output", "masks", "--weights", "a.pt")
    assert code == 0, err
    assert len(list(Path("masks").glob("*/*.tif"))) == len(
        [path for path in phantoms.glob("*/*.tif") if "mask" not in path.name]
    )
    assert "--mode train goes with train" in error_of(cli("evaluate", "--mode", "train"), 2)


def test_training_on_everything_says_so(tiny) -> None:
    code, _, err = tiny("--run-name", "a", "--split", "none", "--epochs", 1)
    assert code == 0, err
    assert "nothing is evaluated: the split has no validation cases" in err
    assert Path("weights/a.safetensors").exists()


@pytest.mark.parametrize("where", ["disk", "ram", "device"])
def test_data_on(tiny, where: str) -> None:
    assert tiny("--run-name", "a", "--data-on", where, "--epochs", 1, "--deterministic")[0] == 0
    assert math.isfinite(read_json(Path("performance/a/summary.json"))["best_score"])


@pytest.mark.parametrize(
    "extra",
    [
        ("--precision", "bf16"),
        ("--amp",),
        ("--layout", "NCHW"),
        ("--no-augment",),
        ("--optimizer", "sgd"),
        ("--optimizer", "adamax", "--warmup-epochs", 1),
        ("--no-checkpoints",),
        ("--fold", 1, "--folds", 3),
    ],
)
def test_settings_run(tiny, extra: tuple[object, ...]) -> None:
    code, _, err = tiny("--run-name", "a", "--epochs", 1, *extra)
    assert code == 0, err


def test_loading_weights_starts_from_them(tiny) -> None:
    tiny("--run-name", "a", "--weights", "a.pt", "--epochs", 2)
    tiny("--run-name", "b", "--weights", "b.pt", "--epochs", 1, "--load", "a.pt", "--lr", 1e-12)
    a, b = weights_of("a.pt"), weights_of("b.pt")
    torch.testing.assert_close(a["head.weight"], b["head.weight"], atol=1e-6, rtol=0)


def test_learning_rates() -> None:
    def rates(**settings: Any) -> list[float]:
        config = make_config(lr=1.0, epochs=10, **settings)
        return [optim.learning_rate(config.train, step // 5 + 1, step, 5) for step in range(50)]

    assert set(rates()) == {1.0}
    warm = rates(warmup_epochs=4, warmup_lr=0.2)
    assert warm[0:20:5] == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert set(warm[20:]) == {1.0}
    cosine = rates(schedule="cosine")
    assert cosine[25] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert rates(schedule="poly")[25] == pytest.approx(0.5**0.9)
    steps = rates(schedule="multistep", lr_milestones=(2, 6), lr_gamma=0.5)
    assert (steps[9], steps[10], steps[29], steps[30]) == (1.0, 0.5, 0.5, 0.25)
    short = rates(schedule="cosine", max_steps=20)
    assert short[10] == pytest.approx(0.5)
    assert short[20] == 0


def test_accumulation_makes_fewer_steps(tiny) -> None:
    tiny("--run-name", "a", "--weights", "a.pt", "--epochs", 1)
    tiny("--run-name", "b", "--weights", "b.pt", "--epochs", 1, "--accumulate", 2)
    one, two = (read_json(Path(f"performance/{name}/summary.json"))["steps"] for name in "ab")
    assert two == one // 2


def test_seed_minus_one_draws_one_and_logs_it(tiny) -> None:
    tiny("--run-name", "a", "--epochs", 1, "--seed", -1)
    setting = read_json(Path("performance/a/config.json"))["settings"]["general"]["seed"]
    assert setting["source"] == "drawn"
    assert setting["value"] >= 0


def test_each_fold_of_a_crossval_draws_a_seed_of_its_own(tmp_path: Path) -> None:
    fold = crossval.Fold(0, "cv-fold0", tmp_path / "cv-fold0", tmp_path / "cv-fold0.pt")
    for seed, typed in ((-1, True), (7, False)):  # 7 is in the file of settings
        words = " ".join(fold.command(tmp_path / "settings.json", make_config(seed=seed), None))
        assert ("--seed -1" in words) is typed


def test_a_finished_run_that_goes_on_says_that_nothing_is_left(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    code, out, err = tiny("--run-name", "a", "--resume")
    assert code == 0 and "nothing is left to train: the run is finished" in out + err and "--epochs" in out + err


def test_weight_decay_and_momentum_typed_on_resuming_are_applied(tiny) -> None:
    words = ("--optimizer", "sgd", "--momentum", 0.0, "--lr", 1e-3)
    assert tiny("--run-name", "a", "--epochs", 1, *words)[0] == 0
    code, _, err = tiny("--resume", "--run-name", "a", "--epochs", 2, "--weight-decay", 0.5, "--momentum", 0.8)
    assert code == 0, err
    assert "momentum 0.0 -> 0.8, weight_decay 0.0 -> 0.5" in err
    (group,) = stored("weights/a.state.safetensors")["optimizer"]["param_groups"]
    assert (group["weight_decay"], group["momentum"], group["nesterov"]) == (0.5, 0.8, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipe", "published"), "recipe None -> published"),
        (("--load", "a.safetensors"), "load None -> a.safetensors"),
        (("--eval-steps", 1), "eval_steps None -> 1"),
        (("--mode", "train"), "mode None -> train"),
        (("--mode", "train_and_predict"), "mode None -> train_and_predict"),
    ],
)
def test_what_a_resumed_run_refuses(tiny, words: tuple[object, ...], said: str) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    before = Path("performance/a/config.json").read_bytes()
    error = error_of(tiny("--resume", "--run-name", "a", "--epochs", 2, *words), 2)
    assert said in error
    assert Path("performance/a/config.json").read_bytes() == before


def test_a_resumed_run_does_not_need_the_weights_that_it_began_with(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    Path("weights/a.safetensors").rename("weights/first.safetensors")
    assert tiny("--run-name", "b", "--epochs", 1, "--load", "first.safetensors")[0] == 0
    code, _, err = tiny("--run-name", "b", "--resume", "--epochs", 1, "--load", "weights/first.safetensors")
    assert code == 0, err
    Path("weights/first.safetensors").unlink()
    code, _, err = tiny("--run-name", "b", "--resume", "--epochs", 2)
    assert code == 0, err


def test_a_resumed_run_may_evaluate_in_other_batches_and_begin_to_evaluate(tiny) -> None:
    assert tiny("--run-name", "a", "--epochs", 1, "--mode", "train")[0] == 0
    words = ("--mode", "train_and_evaluate", "--eval-batch-size", 2, "--bootstrap", 100)
    code, _, err = tiny("--resume", "--run-name", "a", "--epochs", 2, *words)
    assert code == 0, err
    assert read_json(Path("performance/a/summary.json"))["best_epoch"] == 2


def test_of_kits19_what_shapes_the_score_stays_on_resuming() -> None:
    from unet import cli as program
    from unet.commands import run_start

    begun = program.resolve("train", ["--task", "kits19"])
    for words, said in (("--eval-region full", "eval_region"), ("--eval-crop 8 8 8", "eval_crop")):
        now = program.resolve("train", ["--task", "kits19", *words.split()])
        with pytest.raises(UsageError, match=said):
            run_start._require_unchanged(begun.entries(), now)
    assert run_start._require_unchanged(
        begun.entries(), program.resolve("train", ["--task", "kits19", "--no-eval-loss"])
    )
