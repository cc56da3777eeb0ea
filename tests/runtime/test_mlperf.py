"""The MLPerf log: what the checkers say of it, on every way a run can end; the rules; the warm-up; when it is
evaluated and saved."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from builders import make_config, task_config
from conftest import ROOT, error_of
from torch import Tensor, nn

from unet.commands import run_resume
from unet.config.schema import Config
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.errors import UnetError, UsageError
from unet.runtime import optim, trainer
from unet.runtime.callbacks import logs, mlperf, mlperf_rules
from unet.runtime.callbacks.checkpoint import Checkpoints
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.runtime.distributed.process_group import Group
from unet.runtime.folders.run_folder import RunFolder
from unet.runtime.inference.predictor import Predictor
from unet.runtime.seeding import rng_state
from unet.tasks.base import Metric
from unet.tasks.kits19.mlperf import tensor_names
from unet.tasks.registry import create, settings_of

SIZES = {"patch": (4,), "eval_patch": (4,), "layers": 2, "width": 2, "batch_size": 2, "lr": 0.1, "seed": 5}


class Task:
    """Stands for kits19: a score from a list for each evaluation."""

    name, metric, by_steps = "kits19", Metric("mean_dice", "max"), False
    terms: tuple[str, ...] = ()
    curves: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config

    def requested_eval_schedule(self) -> tuple[int | None, int | None]:
        return self.config.train.start_eval_at, self.config.train.evaluate_every

    def eval_schedule(self, samples: int, step: int) -> tuple[int, int]:
        return -(-12 // samples), -(-6 // samples)

    def is_diverged(self, score: float) -> bool:
        return score < 1e-6

    def input_shape(self) -> tuple[int, ...]:
        return 1, 1, *self.config.get("patch")

    def eval_input_shape(self) -> tuple[int, ...]:
        return 1, 1, *self.config.get("eval_patch")

    def warm_up(self, predictor: Any) -> None:
        predictor.slices(torch.zeros(self.eval_input_shape()))

    def training_step(self, model: Any, batch: Any) -> dict[str, Tensor]:
        return {"loss": (model(batch["image"]) - batch["mask"].float()).square().mean()}


class Loader:
    """Batches of made crops; `fail` is called with (epoch, batch) before each one."""

    def __init__(self, batches: int, size: int, fail: Any = None) -> None:
        self.batches, self.size, self.fail = batches, size, fail

    def __len__(self) -> int:
        return self.batches

    def epochs(self, epochs: Iterable[int], start: int = 0, stop: int | None = None) -> Iterator[dict[str, Tensor]]:
        last = self.batches if stop is None else stop
        for place, epoch in enumerate(epochs):
            yield from (self.batch(epoch, number) for number in range(0 if place else start, last))

    def batch(self, epoch: int, number: int) -> dict[str, Tensor]:
        if self.fail:
            self.fail(epoch, number)
        drawn = torch.Generator().manual_seed(1000 * epoch + number)
        image = torch.randn(self.size, 1, 4, 4, 4, generator=drawn)
        return {"image": image, "mask": (image > 0).to(torch.uint8), "index": torch.zeros(self.size)}

    def names(self, index: Tensor) -> list[str]:
        return ["made"] * len(index)


def settings(**changes: Any) -> Config:
    return make_config(
        task="kits19",
        **{
            **settings_of("kits19").defaults,
            **SIZES,
            "mlperf_division": "open",
            "epochs": 4,
            "save_minutes": 0.0,
            **changes,
        },
    )


def split_of(training: int = 3, validation: int = 1) -> dict[str, list[str]]:
    names = [f"case_{number:05}" for number in range(training + validation)]
    return {"train": names[:training], "validation": names[training:]}


class Trial:
    """A run of the loop with its log, in folder `runs/a`, as the command puts it together."""

    def __init__(
        self,
        scores: list[float | None],
        config: Config,
        split: dict[str, list[str]] | None = None,
        resume: bool = False,
        fail: Any = None,
        cleared: float | None = 1.0,
        batches: int = 3,
        group: Group | None = None,
    ) -> None:
        torch.manual_seed(config.general.seed)
        self.folder, files = RunFolder(Path("runs/a")), CheckpointPaths(Path("runs/a.safetensors"))
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.device = CPU(config.device, Rank())
        model = nn.Conv3d(1, 1, 1)
        optimizer = optim.build(config.train, [{"params": list(model.parameters())}], self.device)
        self.log = mlperf.MLPerfLog(self.folder, config, create(config).mlperf(), split or split_of(), "cpu", resume)
        if not resume:
            self.log.starts(1, mlperf_rules.process_began(), cleared)
        kept = Checkpoints(files, {})
        self.run = trainer.Trainer(
            *(
                config.train,
                config.save,
                Task(config),
                self.device,
                model,
                model,
                model,
                optimizer,
                self.device.scaler(),
            ),
            loader=Loader(batches, config.train.batch_size, fail),
            evaluate=lambda: self.score(scores),
            stop=trainer.Stop(),
            callbacks=[logs.MetricsLog(self.folder), kept, self.log],
            group=group or Group(),
        )
        if resume:
            run_resume.resume(self.run, self.folder, files, {})

    def score(self, scores: list[float | None]) -> list[dict[str, Any]] | None:
        value = scores.pop(0)
        return None if value is None else [{"case": "case_00000", "mean_dice": value}]

    def train(self) -> str:
        return trainer.train(self.run)


def events(path: Path = Path("runs/a/unet3d.log")) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in path.read_text().splitlines()]


def keys(path: Path = Path("runs/a/unet3d.log")) -> list[str]:
    return [event["key"] for event in events(path)]


def status() -> str:
    last = events()[-1]
    assert last["key"] == "run_stop"
    assert keys().count("run_stop") == 1
    return str(last["metadata"]["status"])


def compliant(*words: str, path: Path = Path("runs/a/unet3d.log")) -> bool:
    done = subprocess.run(
        [sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "training", "--ruleset", "4.0.0"]
        + ["--log_output", "compliance.log", *words, str(path)],
        capture_output=True,
        text=True,
    )
    assert ("SUCCESS" in done.stderr) == (done.returncode == 0), done.stderr
    return done.returncode == 0


HEAD = [
    "cache_clear",
    "init_start",
    "seed",
    "submission_benchmark",
    "submission_org",
    "submission_division",
    "submission_status",
    "submission_platform",
    "opt_name",
    "opt_base_learning_rate",
    "opt_learning_rate_warmup_epochs",
    "opt_learning_rate_decay_boundary_epochs",
    "opt_learning_rate_decay_factor",
    "opt_weight_decay",
    "opt_momentum",
    "oversampling",
    "training_input_shape",
    "validation_input_shape",
    "validation_overlap",
]
COUNTS = ["train_samples", "eval_samples", "samples_per_epoch", "global_batch_size", "gradient_accumulation_steps"]


def test_a_closed_rehearsal_passes_the_checker_and_has_every_event_in_order(workplace: Path) -> None:
    config = settings(
        mlperf_division="closed", mlperf_rehearsal=True, layers=5, accumulate=2, epochs=9, evaluate_every=2
    )
    trial = Trial([0.1, 0.91], config, split_of(168, 42), batches=5)
    assert trial.train() == "target"
    assert compliant("--werror")
    epoch = ["block_start", "epoch_start", "epoch_stop"]
    scored = [*epoch, "eval_start", "eval_accuracy", "eval_stop", "block_stop"]
    body = [*epoch, "block_stop", *scored, *epoch, "block_stop", *scored]
    assert keys() == [*HEAD, *["weights_initialization"] * 50, "init_stop", "run_start", *COUNTS, *body, "run_stop"]
    found = {event["key"]: event for event in events()}
    assert status() == "success"
    values = {key: found[key]["value"] for key in (*COUNTS, "submission_org", "training_input_shape", "seed")}
    assert values == {
        "train_samples": 168,
        "eval_samples": 42,
        "samples_per_epoch": 8,  # 5 batches of 2: two steps of two batches, one batch is left
        "global_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "submission_org": "REHEARSAL",
        "training_input_shape": [4, 4, 4],
        "seed": 5,
    }
    assert [e["metadata"]["epoch_num"] for e in events() if e["key"] == "eval_accuracy"] == [16, 32]
    assert found["epoch_stop"]["metadata"]["current_lr"] == pytest.approx(0.1)
    assert found["block_start"]["metadata"]["first_epoch_num"] == 32
    assert found["block_start"]["metadata"]["epoch_count"] == 8
    assert [e["event_type"] for e in events() if e["key"] == "eval_stop"] == ["INTERVAL_END"] * 2
    assert found["init_start"]["metadata"]["file"] == "unet/runtime/callbacks/mlperf.py"


def test_the_published_names_of_the_fifty_tensors() -> None:
    names = list(tensor_names(5, "instance"))
    blocks = ["input", *(f"down{n}" for n in range(5)), *(f"up{n}" for n in range(5))]
    expected = {f"{block}_block_{n}_{kind}" for block in blocks for n in (0, 1) for kind in ("conv", "instancenorm")}
    assert set(names) == expected | {f"up{n}_deconv" for n in range(5)} | {"output_conv"}
    assert len(names) == 50


def test_an_open_run_of_few_cases_passes_and_a_closed_one_does_not(workplace: Path) -> None:
    assert Trial([0.4, 0.5, 0.6], settings(mlperf_org="us", mlperf_platform="this")).train() == "epochs"
    assert compliant("--werror")
    assert status() == "aborted"  # the target is .908
    found = {event["key"]: event["value"] for event in events()}
    assert (found["submission_org"], found["submission_platform"]) == ("us", "this")
    text = Path("runs/a/unet3d.log").read_text()
    Path("closed.log").write_text(text.replace('"open"', '"closed"'))
    assert not compliant(path=Path("closed.log"))


def test_the_log_counts_the_cases_that_are_scored(workplace: Path) -> None:
    assert Trial([0.4, 0.5, 0.6], settings(eval_steps=2), split_of(3, 5)).train() == "epochs"
    (found,) = [event for event in events() if event["key"] == "eval_samples"]
    assert (found["value"], found["metadata"]["cases"]) == (2, split_of(3, 5)["validation"][:2])


def test_a_closed_log_without_cleared_caches_fails(workplace: Path) -> None:
    config = settings(mlperf_division="closed", mlperf_rehearsal=True)
    assert Trial([0.91], config, split_of(168, 42), cleared=None).train() == "target"
    assert "cache_clear" not in keys()
    assert not compliant()


@pytest.mark.parametrize("where", ["first step", "midst", "evaluation", "epoch's last step"])
def test_a_run_that_was_stopped_and_resumed_has_one_valid_log(workplace: Path, where: str) -> None:
    config = settings(epochs=4, evaluate_every=1, start_eval_at=1)
    place = {"first step": (1, 0), "midst": (2, 1), "epoch's last step": (2, 2)}.get(where)

    def stop(epoch: int, batch: int) -> None:
        if (epoch, batch) == place:
            os.kill(os.getpid(), signal.SIGTERM)

    trial = Trial([0.1, None] if where == "evaluation" else [0.1, 0.2, 0.3, 0.4], config, fail=stop)
    with trial.run.stop.listen():
        reason = trial.train()
    if where == "epoch's last step":  # noted when the epoch is done: the next epoch's first step is the last
        assert trial.run.progress.epoch == 3
    assert reason.startswith("stopped")
    assert status() == "aborted"
    scores = {"first step": [0.1, 0.2, 0.3], "midst": [0.2, 0.3], "evaluation": [0.2, 0.3]}.get(where, [0.3])
    again = Trial([*scores, 0.95], config, resume=True)
    assert again.train() == "target"
    assert status() == "success"
    found = keys()
    assert [found.count(key) for key in ("init_start", "run_start", "resumed")] == [1, 1, 1]
    assert {found.count(f"{name}_{end}") for name in ("block", "epoch", "eval") for end in ("start", "stop")} == {4}
    assert [e["metadata"]["epoch_num"] for e in events() if e["key"] == "epoch_start"] == [6, 12, 18, 24]
    assert [e["value"] for e in events() if e["key"] == "eval_accuracy"] == [0.1, 0.2, 0.3, 0.95]
    assert compliant("--werror")


def test_what_was_logged_after_the_state_is_cut_away(workplace: Path) -> None:
    """A run that dies some epochs after its last save: they are logged once, when they are made again."""

    def fail(epoch: int, batch: int) -> None:
        if epoch == 4:
            raise OSError("the disk is gone")

    config = settings(epochs=4, evaluate_every=0, save_minutes=1000.0)
    with pytest.raises(OSError, match="gone"):
        Trial([], config, fail=fail).train()
    assert status() == "aborted"
    assert keys().count("block_start") == 4
    assert Trial([0.95], config, resume=True).train() == "target"
    numbers = [event["metadata"]["epoch_num"] for event in events() if event["key"] == "epoch_start"]
    assert numbers == [6, 12, 18, 24]
    assert status() == "success"


@pytest.mark.parametrize(
    ("error", "reason"), [(KeyboardInterrupt, "interrupted"), (UnetError, "failed"), (RuntimeError, "failed")]
)
def test_an_interrupt_or_an_error_aborts_the_log(workplace: Path, error: type[BaseException], reason: str) -> None:
    def fail(epoch: int, batch: int) -> None:
        if epoch == 2:
            raise error("one", "two")

    seen = []

    class Ends:
        def on_train_end(self, run: Any, reason: str) -> None:
            seen.append(reason)

    trial = Trial([0.1] * 4, settings(), fail=fail)
    trial.run.callbacks.append(Ends())
    with pytest.raises(error):
        trial.train()
    assert seen == [reason]
    assert status() == "aborted"
    trial.log.stop("aborted")  # what the command does on every way out
    assert status() == "aborted"


def test_a_run_that_ends_before_the_loop_aborts_the_log_too(workplace: Path) -> None:
    trial = Trial([], settings())
    trial.log.stop("aborted")
    assert status() == "aborted"


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [([0.1, 1e-7], 2), ([0.0, 0.0, 0.0], 3), ([0.0, 0.0, 0.95], 3)],  # 18 samples before the task's own first
)
def test_a_score_of_nothing_ends_the_run_as_diverged(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float | None], epochs: int
) -> None:
    monkeypatch.setattr(Task, "eval_schedule", lambda *about: (3, 1))
    trial = Trial(list(scores), settings(epochs=9, start_eval_at=1))
    assert trial.train() == ("target" if 0.95 in scores else "diverged")
    assert len(trial.run.progress.history) == epochs
    assert status() == ("success" if 0.95 in scores else "aborted")


def test_the_convergence_points_are_counted_in_samples(workplace: Path) -> None:
    """Forty runs of batch 56, converged about where the reference does (357 k samples), pass; in epochs they would
    not."""
    Path("results").mkdir()
    for number in range(40):
        config = settings(epochs=9999, batch_size=56, patch=(4,), evaluate_every=1, start_eval_at=1)
        trial = Trial([0.95], config, split_of(168, 42))
        trial.run.loader.size = 1
        trial.run.progress.epoch = 2100 + 5 * number
        assert trial.train() == "target"
        Path("runs/a/unet3d.log").rename(f"results/result_{number}.txt")
    command = [sys.executable, "-m", "mlperf_logging.rcp_checker", "--rcp_usage", "training", "--rcp_version", "4.0.0"]
    done = subprocess.run([*command, "results"], capture_output=True, text=True)
    assert "RCP test PASSED" in done.stderr, done.stderr
    assert "Submission mean epochs: 369180.0" in done.stderr


def test_several_processes_and_an_optimiser_of_ones_own(workplace: Path) -> None:
    class Two(Group):
        world = 2

    steps = {"schedule": "multistep", "lr_milestones": (2,), "lr_gamma": 0.5}
    config = settings(optimizer="adam", accumulate=3, normalization="batch", **steps)
    Trial([0.1] * 9, config, group=Two()).train()
    found = {event["key"]: event["value"] for event in events()}
    assert found["global_batch_size"] == 2 * 3 * 2
    assert found["opt_name"] == "adam"
    assert found["opt_learning_rate_decay_boundary_epochs"] == [2]
    assert found["opt_learning_rate_decay_factor"] == 0.5
    names = [e["metadata"]["tensor"] for e in events() if e["key"] == "weights_initialization"]
    assert "input_block_0_batchnorm" in names


def test_another_network_lists_its_own_layers(workplace: Path) -> None:
    config = settings(encoder="residual")
    Trial([0.1] * 9, config).train()
    names = [e["metadata"]["tensor"] for e in events() if e["key"] == "weights_initialization"]
    layers = {name.rpartition(".")[0] for name, _ in create(config).build_model().named_parameters()}
    assert len(names) == len(set(names))
    assert set(names) == layers


def test_verbose_shows_the_log(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trial([0.1] * 9, settings())
    assert ":::MLLOG" not in capsys.readouterr().out
    Trial([0.1] * 9, settings(verbose=True))
    assert capsys.readouterr().out.count(":::MLLOG") == len(events())


def test_the_warm_up_leaves_every_bit_as_it_was(workplace: Path) -> None:
    config = settings(accumulate=2, mlperf_warmup=3, optimizer="adam", lr=1.0)
    device, task = CPU(config.device, Rank()), Task(config)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Dropout(0.5), nn.Conv3d(2, 1, 1))
    optimizer = optim.build(config.train, [{"params": list(model.parameters())}], device)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state, generators = json.dumps(optimizer.state_dict()), rng_state(device)
    seen: list[Any] = []
    model.register_forward_hook(lambda module, inputs, output: seen.append((tuple(inputs[0].shape), module.training)))
    stepped: list[int] = []
    optimizer.register_step_post_hook(lambda *about: stepped.append(1))

    predictor = Predictor([model], device, 1)
    mlperf.warm_up(config, task, device, model, model, model, optimizer, device.scaler(), predictor, Group())
    assert seen == [((2, 1, 4, 4, 4), True)] * 6 + [((1, 1, 4, 4, 4), False)]
    assert len(stepped) == 3
    after = model.state_dict()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert json.dumps(optimizer.state_dict()) == state
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    now = rng_state(device)
    assert torch.equal(now["torch"], generators["torch"])
    assert now["python"] == generators["python"]
    assert torch.equal(now["numpy"][1], generators["numpy"][1])


FITTING = {
    **settings_of("kits19").defaults,
    "task": "kits19",
    "mlperf_division": "closed",
    "mlperf_org": "us",
    "mlperf_platform": "this",
}
RULES = create(task_config("kits19"))


@pytest.fixture
def cache(workplace: Path) -> str:
    Path("data/kits19_cache").mkdir(parents=True)
    return "kits19_cache"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("patch", (64,), "--patch is 64 64 64, must be 128 128 128"),
        ("eval_patch", (96, 128, 128), "--eval-patch is 96 128 128, must be 128 128 128"),
        ("oversampling", 0.5, "--oversampling is 0.5, must be 0.4"),
        ("overlap", 0.25, "--overlap is 0.25, must be 0.5"),
        ("optimizer", "lamb", "--optimizer is lamb, must be sgd"),
        ("layers", 4, "--layers is 4, must be 5"),
        ("width", 16, "--width is 16, must be 32"),
        ("encoder", "residual", "--encoder is residual, must be reference"),
        ("normalization", "batch", "--normalization is batch, must be instance"),
        ("activation", "leaky_relu", "--activation is leaky_relu, must be relu"),
        ("include_background", True, "--include-background is on, must be off"),
        ("eval_region", "full", "--eval-region is full, must be rounded"),
        ("eval_crop", (128,), "--eval-crop is 128 128 128, must be none"),
        ("blend", "constant", "--blend is constant, must be gaussian"),
        ("mirror", True, "--mirror is on, must be off"),
        ("target", 0.9, "--target is 0.9, must be 0.908"),
        ("load", "w.pt", "--load is w.pt, must be none"),
        ("augment", False, "--augment is off, must be on"),
        ("brightness", (1.0, 1.0), "--brightness is 1.0 1.0, must be 1.7 2.3 or 0.7 1.3"),
        ("noise", (0.0, 0.0), "--noise is 0.0 0.0, must be 0.0 0.1 or 0.1 0.1"),
        ("ema", 0.999, "--ema is 0.999, must be none"),
        ("skip_norm", 1.0, "--skip-norm is 1.0, must be none"),
        ("eval_steps", 3, "--eval-steps is 3, must be none"),
        ("schedule", "poly", "--schedule is poly, must be constant or multistep"),
        ("evaluate_every", 10, "--evaluate-every is 10, must be 20 (steps of 2), or left out"),
        ("start_eval_at", 999, "--start-eval-at is 999, must be 1000 (steps of 2), or left out"),
        ("mlperf_org", None, "--mlperf-org is missing"),
        ("mlperf_platform", None, "--mlperf-platform is missing"),
        ("mode", "train", "--mode train evaluates nothing"),
        ("cache", "none", "does not exist: run"),
        ("batch_size", 169, "a step of 169 samples is more than the 168 training cases"),
    ],
)
def test_a_closed_submission_is_refused_for(cache: str, name: str, value: Any, words: str) -> None:
    mlperf_rules.require(make_config(**FITTING), 1, RULES)
    config = make_config(**{**FITTING, name: value})
    with pytest.raises(UsageError) as caught:
        mlperf_rules.require(config, 1, RULES)
    assert words in caught.value.message
    if name not in ("mode", "cache"):
        mlperf_rules.require(config.replace(mlperf_division="open"), 1, RULES)
        mlperf_rules.require(config.replace(mlperf_rehearsal=True), 1, RULES)


def test_the_augmentation_of_published_submissions_is_closed_too(cache: str) -> None:
    mlperf_rules.require(make_config(**{**FITTING, "brightness": (0.7, 1.3), "noise": (0.1, 0.1)}), 1, RULES)


def test_the_schedule_of_the_rules_may_be_typed(cache: str) -> None:
    """Of 7 x 8 = 56 samples a step an epoch trains 168; of 32, 160 of them."""
    typed = {"start_eval_at": 1000, "evaluate_every": 20, "batch_size": 7}
    mlperf_rules.require(make_config(**{**FITTING, **typed}), 8, RULES)
    mlperf_rules.require(
        make_config(**{**FITTING, "start_eval_at": 1050, "evaluate_every": 21, "batch_size": 4}), 8, RULES
    )
    with pytest.raises(UsageError, match="must be 1050"):
        mlperf_rules.require(make_config(**{**FITTING, **typed, "batch_size": 4}), 8, RULES)


def test_a_closed_submission_needs_all_cases() -> None:
    closed = make_config(**FITTING)
    mlperf_rules.require_cases(closed, RULES, split_of(168, 42))
    with pytest.raises(UsageError, match="168 training and 42 evaluation cases, not 168 and 41"):
        mlperf_rules.require_cases(closed, RULES, split_of(168, 41))
    mlperf_rules.require_cases(closed.replace(mlperf_rehearsal=True), RULES, split_of(4, 2))
    with pytest.raises(UsageError, match="no validation cases"):
        mlperf_rules.require_cases(closed.replace(mlperf_division="open"), RULES, split_of(4, 0))


def test_the_command_names_all_that_is_not_closed_at_once(cli) -> None:
    words = ("--task", "kits19", "--mlperf-division", "closed", "--patch", 64, "--overlap", 0.25)
    error = error_of(cli("train", *words, "--device", "cpu"), 2)
    for part in ("--patch is 64 64 64", "--overlap is 0.25", "--mlperf-org is missing", "does not exist"):
        assert part in error
    assert "--mlperf-rehearsal" in error
    assert "--mlperf-division" in error_of(cli("train", "--mlperf-rehearsal", "--device", "cpu"), 2)
    assert "not for lgg" in error_of(cli("train", "--mlperf-division", "open", "--device", "cpu"), 2)


def test_dropping_the_files_of_the_cache(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = workplace / "cache"
    folder.mkdir()
    paths = [folder / f"case_{number}_x.npy" for number in range(2)]
    for path in paths:
        path.write_bytes(os.urandom(2_000_000))
    nowhere = workplace / "no" / "drop_caches"
    assert mlperf_rules.resident(paths[0])[1] > 0
    other = workplace / "other"
    other.write_bytes(bytes(2_000_000))
    os.sync()
    mlperf_rules.forget(other)
    droppable = mlperf_rules.resident(other)[1] == 0  # a file system in memory keeps what it has
    assert (mlperf_rules.clear_caches(folder, True, proc=nowhere) is not None) == droppable
    assert (sum(mlperf_rules.resident(path)[1] for path in paths) == 0) == droppable
    with open(paths[0], "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert sum(view[:: mmap.PAGESIZE]) > 0  # read, and held by this process
        assert mlperf_rules.clear_caches(folder, True, proc=nowhere) is None
    assert "caches are not cleared" in capsys.readouterr().err
    proc = workplace / "drop_caches"
    proc.touch()
    assert (mlperf_rules.clear_caches(folder, False, proc=proc) is not None) == droppable
    assert not proc.read_text()
    assert mlperf_rules.clear_caches(folder, True, proc=proc) is not None
    assert proc.read_text() == "3\n"
    assert mlperf_rules.clear_caches(workplace / "empty", False) is None


def test_the_process_began_before_now() -> None:
    import time

    assert time.time() - 3600 * 24 < mlperf_rules.process_began() <= time.time()
    code = "import time; from unet.runtime.callbacks import mlperf_rules as m; print(time.time() - m.process_began())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert 0 <= float(done.stdout) < 10


@pytest.mark.parametrize(
    ("typed", "epochs"),
    [
        ({}, [2, 3, 4, 5, 6, 7]),  # the task's own: 12 samples first, then every 6; an epoch trains 6
        ({"batch_size": 1}, [4, 6, 7]),
        ({"evaluate_every": 3}, [3, 6, 7]),
        ({"start_eval_at": 1, "evaluate_every": 3}, [1, 4, 7]),
        ({"start_eval_at": 5}, [5, 6, 7]),
        ({"evaluate_every": 0}, [7]),
    ],
)
def test_when_a_run_is_evaluated(workplace: Path, typed: dict[str, int], epochs: list[int]) -> None:
    trial = Trial([0.1] * 9, settings(epochs=7, **typed))
    trial.train()
    assert [row["epoch"] for row in trial.run.progress.history if "score" in row] == epochs


@pytest.mark.parametrize(("minutes", "saved"), [(0.0, [2, 3, 4, 5, 6, 7]), (1000.0, [2, 4, 7])])
def test_how_often_the_state_is_saved(workplace: Path, minutes: float, saved: list[int]) -> None:
    """First, with a better score (in epoch 3, after which epoch 4 is to come), and at the end."""
    seen = []

    class Saved:
        def on_save(self, run: Any) -> None:
            seen.append(run.progress.epoch)

    scores: list[float | None] = [0.3, 0.2, 0.1]
    trial = Trial(scores, settings(epochs=6, save_minutes=minutes, start_eval_at=3, evaluate_every=2))
    trial.run.callbacks.append(Saved())
    trial.train()
    assert seen == saved


def test_scores_without_a_loss(workplace: Path) -> None:
    trial = Trial([0.3, 0.4, 0.5], settings())
    seeds, curves = logs.ArgonneCsvLog(trial.folder, "command"), logs.Curves(trial.folder)
    trial.run.callbacks += [seeds, curves]
    trial.train()
    text = (trial.folder / seeds.name).read_text()
    trial.run.emit("on_finish")
    assert (trial.folder / seeds.name).read_text().startswith(text)  # grown epoch by epoch, then closed
    lines = (trial.folder / seeds.name).read_text().splitlines()
    first = next(line for line in lines if line.startswith("eval,"))
    assert first.rsplit(",", 2)[1:] == ["", " 0.300000"]
    assert "validation MEAN DICE 0.3000 (best)" in trial.folder.text("run.log")
    assert "eval_loss" not in trial.run.progress.history[-1]
    assert (trial.folder / "progress.png").exists()


def test_warm_up_by_step() -> None:
    config = make_config(lr=1.0, epochs=10, warmup_epochs=2, warmup_lr=0.2, warmup_by="step")
    rates = [optim.learning_rate(config.train, step // 4 + 1, step, 4) for step in range(10)]
    assert rates == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0])
