"""Flags as other programs write them, and values that cannot be: what is understood, what is refused, what is said."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from builders import make_config, task_config
from conftest import error_of

from unet import cli as program
from unet.cli import resolve
from unet.config import capacity, check_paths
from unet.config.options import nearest, spellings
from unet.config.schema import Config, contradictions, declared_of, unmeasured
from unet.errors import UsageError
from unet.files import digest_files
from unet.tasks import registry

HABANA = (
    "--task em --exec_mode train_and_evaluate --model_dir m --data_dir None --log_dir m --batch_size 8 --dtype bf16"
    " --fold None --max_steps 6400 --log_every 100 --evaluate_every 0 --warmup_steps 200 --weight_decay 0.0005"
    " --learning_rate 0.0001 --seed 123 --dump_config None --augment True --benchmark False --xla False"
    " --resume_training False --no_hpu False --synth_data False --disable_ckpt_saving False --use_horovod False"
    " --tensorboard_logging False --log_all_workers False --tf_verbosity 0"
)
MLPERF = (
    "--task kits19 --data_dir None --log_dir /tmp --save_ckpt_path None --load_ckpt_path None --loader pytorch"
    " --local_rank 0 --exec_mode train --batch_size 2 --ga_steps 1 --epochs 1 --evaluate_every 20 --start_eval_at 1000"
    " --layout NCDHW --input_shape [128, 128, 128] --val_input_shape '[128, 128, 128]' --seed -1 --num_workers 8"
    " --benchmark False --warmup_steps 200 --amp False --optimizer sgd --learning_rate 1.0 --momentum 0.9"
    " --init_learning_rate 1e-4 --lr_warmup_epochs 0 --lr_decay_epochs None --lr_decay_factor 1.0"
    " --lamb_betas '0.9, 0.999' --weight_decay 0.0 --verbose False --oversampling 0.4 --overlap 0.5"
    " --cudnn_benchmark False --cudnn_deterministic False"
)


def parsed(line: str) -> Config:
    return program.resolve("train", shlex.split(line)).config


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (HABANA, {"fold": None, "augment": True, "compile": "off", "resume": None, "device": "auto", "out": "m"}),
        (HABANA, {"checkpoints": True, "data": "em", "debug_dump": None, "quiet": False, "distributed": False}),
        (MLPERF, {"lamb_betas": (0.9, 0.999), "patch": (128,) * 3, "eval_patch": (128,) * 3, "lr_milestones": ()}),
        (MLPERF, {"precision": "fp32", "cudnn_benchmark": False, "deterministic": False, "data": "kits19"}),
        (MLPERF, {"verbose": False, "load": None, "weights": (), "synth_data": False}),
        ("--lamb_betas 0.9,0.99", {"lamb_betas": (0.9, 0.99)}),
        ("--lamb_betas 0.9, 0.99", {"lamb_betas": (0.9, 0.99)}),
        ("--lamb_betas=(0.9,0.99)", {"lamb_betas": (0.9, 0.99)}),
        ("--aug-scale 0.995", {"aug_scale": 0.005}),
        ("--aug-scale 0.05", {"aug_scale": 0.05}),
        ("--task kits19 --patch=64", {"patch": (64, 64, 64)}),
        ("--CUDA_devices \"['0', '1']\"", {"cuda_devices": (0, 1)}),
        ("--augment False --epochs 3", {"augment": False, "epochs": 3}),
        ("--augment=false", {"augment": False}),
        ("--no-augment True", {"augment": False}),
        ("--hpu False --no_hpu True", {"device": "cpu"}),
        ("--disable_ckpt_saving True", {"checkpoints": False}),
        ("--amp True", {"precision": "auto"}),
        ("--dtype bfloat16", {"precision": "bf16"}),
        ("--capture False", {"capture": "off"}),
        ("--fold none", {"fold": None}),
        ("--split None", {"split": "none"}),
        ("--run-name None", {"run_name": None}),
        ("--json_config_file None", {"config": None}),
        ("--total_epochs 3 --max_niis_to_use 4", {"epochs": 3, "max_cases": 4}),
        ("--output_dir o --workers_per_process 2", {"out": "o", "workers": "2"}),
        ("--gradient_clipping_value 100", {"clip": 100.0}),
        ("--data=~/x --out=~/y", {"data": str(Path.home() / "x"), "out": str(Path.home() / "y")}),
        ("--data=~nosuchuser/x", {"data": "~nosuchuser/x"}),
        ("--run-name lgg-ärzte", {"run_name": "lgg-ärzte"}),
    ],
)
def test_as_the_other_programs_write_it(line: str, expected: dict[str, object], workplace: Path) -> None:
    config = parsed(line)
    assert {name: config.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--aug-scale 0.995", "half-width of 0.005"),
        ("--data_dir None", "--data-dir None is taken as not given"),
        ("--epochs 3 --epochs 4", "--epochs is given more than once: 4 is used, not 3"),
        ("--patch 64", "--patch is for --task folder or kits19: it changes nothing with lgg"),
        ("--task folder --split published", "task folder has a --split fold"),
        ("--split last --fold 0", "--split last changes nothing beside --fold 0"),
        ("--held-out 3 --fold 0", "--held-out 3 changes nothing beside --fold 0"),
        ("--split last --held-out 3 --fold 0", "--split last and --held-out 3 change nothing beside --fold 0"),
        ("--split none --held-out 3", "--held-out 3 is for --split published or last: it changes nothing with --split"),
        ("--task kits19 --image_size 64", "--image-size is for --task lgg or em"),
        ("--momentum 0.5", "without effect: --momentum 0.5 (it goes with --optimizer sgd)"),
        (
            "--lr-gamma 0.3 --warmup-lr 0.5",
            "--lr-gamma 0.3 (it goes with --schedule multistep), --warmup-lr 0.5 (it goes",
        ),
        (
            "--skip-warmup 3 --mlperf-org X",
            "3 (it goes with --skip-norm), --mlperf-org X (it goes with --mlperf-division)",
        ),
        ("--lamb-betas 0.1 0.2", "--lamb-betas 0.1 0.2 (it goes with --optimizer lamb)"),
        ("--no-augment --aug-angle 40", "without effect: --aug-angle 40.0 (it goes with --augment)"),
        ("--task kits19 --noise 0.1 0.2 --no-augment", "without effect: --noise 0.1 0.2 (it goes with --augment)"),
        ("--patience 3 --evaluate-every 0", "--patience 3 (with --evaluate-every 0 only the end is scored)"),
        ("--workers 4 --data-on device", "without effect: --workers 4 (with --data-on device batches are made there)"),
        ("--task em --fold 0 --patience 3", "--patience 3 (with --evaluate-every 0 only the end is scored)"),
        ("--task brains --layers 3", "without effect: --layers 3 (not used here: a level for each halving of"),
    ],
)
def test_what_was_mended_or_changes_nothing_is_said(cli: Any, line: str, words: str) -> None:
    code, _, err = cli("config", *shlex.split(line))
    assert code == 0
    assert words in err


def test_flags_beside_what_they_go_with_are_not_remarked_on() -> None:
    words = "--optimizer sgd --momentum 0.5 --lr-milestones 2 --lr-gamma 0.3 --warmup-epochs 1 --warmup-lr 0.5"
    more = "--warmup-by step --skip-norm 9 --skip-warmup 3 --skip-limit 2"
    assert program.resolve("train", shlex.split(f"{words} {more}")).remarks == ()
    assert program.resolve("train", ["--optimizer", "lamb", "--lamb-betas", "0.1", "0.2"]).remarks == ()
    assert program.resolve("train", ["--aug-angle", "5", "--patience", "3", "--layers", "3"]).remarks == ()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--mode train --target 0.9", "--target 0.9 and --mode train contradict each other: nothing is evaluated"),
        ("--split none --patience 1", "--patience 1 and --split none contradict each other"),
        ("--task em --mode train_and_predict --patience 2 --fold 0", "--patience 2 and --mode train_and_predict"),
        (
            "--no-checkpoints --keep-every 1",
            "--keep-every 1 and --no-checkpoints contradict each other: nothing is saved",
        ),
        ("--no-checkpoints --save-minutes 3 --checkpoint-every 4", "--checkpoint-every 4 and --no-checkpoints"),
    ],
)
def test_an_evaluation_or_a_save_that_will_not_be_is_not_asked_for(line: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        program.resolve("train", shlex.split(line))
    assert expected in caught.value.message
    program.resolve("crossval", ["--task", "em", "--target", "0.9", "--patience", "1"])  # each fold is scored
    program.resolve(
        "train", ["--task", "kits19", "--mode", "train", "--no-checkpoints"]
    )  # whose own target is not typed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resume", ""], "--resume is empty"),
        (["--run-name", " "], "--run-name is empty"),
        (["--run-name", ".."], "not '..'"),
        (["--run-name", "a\nb"], "control character"),
        (["--run-name", "x" * 300], "too long"),
        (["--data", "a\0b"], "control character"),
        (["--data", "\udcff"], "not UTF-8"),
        (["--weights", ""], "--weights is empty"),
        (["--dist-url", "foo"], "--dist-url takes env:// or tcp://HOST:PORT"),
        (["--dist-url", "tcp://host:99999"], "99999 is no port"),
        (["--out=--lr"], "begins with a dash"),
        (["--data", "\u202eabc"], "control character"),
        (["--dist-url", "tcp://host"], "--dist-url takes env:// or tcp://HOST:PORT"),
        (["--warmup-epochs", "1e20"], "--warmup-epochs takes a whole number"),
        (["--warmup-epochs", "1" + "0" * 20], "--warmup-epochs is at most 1000000000"),
        (["--epochs", "9" * 5000], "--epochs takes a whole number, not '999"),
        (["--epochs", "٣"], "--epochs takes a whole number"),
        (["--epochs", "1_000"], "--epochs takes a whole number"),
        (["--epochs", "none"], "--epochs takes a whole number"),
        (["--target", "inf"], "--target takes a number"),
        (["--target", "1.5"], "--target is at most 1 (DSC), not 1.5"),
        (["--target", "-0.1"], "--target is at least 0 (DSC), not -0.1"),
        (["--task", "brains", "--target", "inf"], "--target takes a number"),
        (["--threads", "0"], "--threads is at least 1"),
        (["--keep-every", "0"], "--keep-every is at least 1"),
        (["--lr", "1e999"], "--lr takes a number"),
        (["--lr", "0x1p-3"], "--lr takes a number"),
        (["--lr"], "--lr needs a value"),
        (["--optimizer", "--lr", "1"], "--optimizer needs a value: sgd, adam"),
        (["--overlay=maybe"], "--overlay takes no value, or true or false, not 'maybe'"),
        (["--loader", "dali"], "--loader takes synthetic, pytorch"),
        (["--device-module", "os"], "package.module:Class"),
        (["--workers", "-1"], "--workers takes auto or a whole number"),
        (["--image-size", "-64"], "--image-size is at least 4"),
        (["--layers", "4.5"], "--layers takes a whole number"),
        (["--image-size", "16", "--batch-size", "1"], "one value of a slice to the deepest batch norm"),
        (["--task", "kits19", "--patch", "32", "--normalization", "batch", "--batch-size", "1"], "one value of a crop"),
        (["--width", "1000000"], "a network of 7.57e+15 parameters, which take"),
        (["--device", "cpu", "--batch-size", "100000", "--image-size", "4096"], "at the network's first level"),
        (["extra", "words"], "unexpected 'extra'; unexpected 'words'"),
    ],
)
def test_values_that_cannot_be(cli: Any, words: list[str], expected: str) -> None:
    error = error_of(cli("train", *words), 2)
    assert expected in error
    assert max(map(len, error.splitlines())) < 500


def test_all_mistakes_of_all_kinds_at_once(cli: Any) -> None:
    line = "--lr --epochs x --fold 9 --image-size 100 --overlay=2 --rank 3 --world-size 2"
    error = error_of(cli("train", *line.split()), 2)
    for expected in ("--lr needs a value", "--epochs takes", "--fold 9 is outside", "not a multiple", "--rank 3"):
        assert expected in error
    assert "unknown option --comet." in error_of(cli("train", *line.split()[5:], "--comet", "on"), 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("export --patch 64", "--patch is an option of train, crossval, plan and benchmark. See: "),
        ("evaluate --restarts 2", "--restarts is an option of train and crossval. See: "),
        ("train --temperature 1", "--temperature is an option of sample. See: "),
        ("--predictions masks", "--predictions is an option of evaluate. See: python -m unet train --help"),
        ("runs --data x --lr 1", "; --lr of train, crossval, plan and benchmark. See: python -m unet runs --help"),
        ("export --nothing 1", "See: python -m unet export --help"),
        ("export --accumulate 2", "--accumulate is an option of train, crossval and plan. See: "),
    ],
)
def test_an_option_of_another_command_is_named_with_it(words: str, expected: str, cli: Any) -> None:
    error = error_of(cli(*words.split()), 2)
    assert "unknown option" in error.splitlines()[0]
    hint = error.splitlines()[1].strip()
    assert expected in hint if expected.startswith(";") else hint.startswith(expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\x00",
        b"[1, 2]",
        b'"text"',
        b"[" * 100_000,
        b'{"settings": {"lr": 5}}',
        b'{"settings": []}',
        b'{"cases": {}, "settings": {"image_size": 64}, "version": 3}',
        b'{"lr": NaN}',
        b'{"lr": Infinity}',
        b'{"lr": 1' + b"0" * 400 + b"}",
        b'{"epochs": null}',
        b'{"epochs": 1e20}',
        b'{"epochs": true}',
        b'{"epochs": [3]}',
        b'{"run_name": ["a"]}',
        b'{"data": 5}',
        b'{"data": {"a": {"b": 1}}}',
        b'{"augment": "maybe"}',
        b'{"augment": 1}',
        b'{"patch": {"x": 1}}',
        b'{"patch": [[64]]}',
        b'{"task": "kits19", "patch": []}',
        b'{"resume": "auto"}',
        b'{"config": "other.json"}',
        b'{"device_module": "os:system"}',
        b'{"run_name": "../up"}',
        b'{"task": "brain"}',
        b'{"lr": 0.1, "learning_rate": 0.2}',
        b'{"xla": "yes"}',
        b'{"json_config_file": "other.json"}',
        b'{"resume_training": true}',
        b'{"no": 1, "such": 2, "setting": 3}',
    ],
    ids=lambda content: content[:24].decode(errors="replace"),
)
def test_settings_files_that_cannot_be(cli: Any, workplace: Path, content: bytes) -> None:
    Path("s.json").write_bytes(content)
    error_of(cli("config", "--config", "s.json"), 2)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "circle", "huge"])
def test_a_settings_file_that_is_no_file(cli: Any, workplace: Path, kind: str) -> None:
    import os

    path = Path("/dev/zero" if kind == "device" else "s.json")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "huge":
        with open(path, "wb") as stream:
            stream.truncate(2**40)
    error_of(cli("config", "--config", path), 2)


def test_settings_files_take_what_flags_take(workplace: Path) -> None:
    content = {"workers": 2, "total_epochs": 3.0, "fold": None, "lamb-betas": "0.9, 0.99", "quiet": False}
    content |= {"learning_rate": 0.5, "disable_ckpt_saving": True, "no_hpu": False, "cpu": True, "amp": "bf16"}
    Path("s.json").write_text(json.dumps(content))
    config = parsed("--config s.json")
    assert (config.data.workers, config.train.epochs, config.split.fold, config.train.lamb_betas) == (
        "2",
        3,
        None,
        (0.9, 0.99),
    )
    assert (config.train.lr, config.save.checkpoints, config.device.device, config.device.precision) == (
        0.5,
        False,
        "cpu",
        "bf16",
    )


def test_resume_and_config_do_not_go_together(cli: Any, workplace: Path) -> None:
    Path("s.json").write_text("{}")
    assert "Leave out one of the two" in error_of(cli("train", "--resume", "--config", "s.json"), 2)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--comet", None),
        ("--gpus", None),
        ("--bach-size", "--batch-size"),
        ("--epoch", "--epochs"),
        ("--Epochs", "--epochs"),
        ("--learning_rat", "--learning-rate"),
        ("--tensorbord", "--tensorboard"),
        ("--" + "x" * 10000, None),
    ],
)
def test_only_what_is_near_is_suggested(typed: str, meant: str | None) -> None:
    assert nearest(typed, spellings(program.declared_of_all(program.COMMANDS["train"].groups, None))) == meant


def test_the_network_is_counted_before_it_is_built() -> None:

    from unet.tasks.registry import create

    for task, count in (("lgg", 7_763_041), ("em", 34_512_258), ("kits19", 31_190_243)):
        config = task_config(task)
        assert config.task.parameters(config) == count
    for task in ("lgg", "em", "kits19"):
        for layers, width, norm in ((2, 3, "batch"), (3, 5, "none"), (5, 2, "instance")):
            config = make_config(task, layers=layers, width=width, **({} if task == "lgg" else {"normalization": norm}))
            built = sum(parameter.numel() for parameter in create(config).build_model().parameters())
            assert config.task.parameters(config) == built, (task, layers, width, norm)


def test_the_memory_of_what_every_task_does_by_default_is_granted() -> None:
    for task in registry.BUILT_IN:
        assert not capacity.too_large(parsed(f"--task {task}"))
    wide = parsed("--width 600")  # 11 GB to make, four times that to train
    assert len(capacity.too_large(wide, own_memory=False)) >= len(capacity.too_large(wide, own_memory=True))
    with pytest.raises(UsageError, match="--width 100000 "):
        program.resolve("predict", ["--width", "100000"])
    assert contradictions(parsed("--task kits19 --recipe dgx --devices 8")) == []


@pytest.mark.parametrize("words", [("help", "train"), ("train", "--help"), ("--help", "train")])
def test_help_of_a_command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert program.main(list(words)) == 0
    except SystemExit as ended:
        assert ended.code == 0
    assert "--run-name" in capsys.readouterr().out or words[0] == "--help"


def helped(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        program.main(words)
    return capsys.readouterr().out


def test_a_default_of_zero_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Words for the default are of the option's own default, not of a task's."""
    text = " ".join(helped(["train", "--task", "em", "--help-all"], capsys).split())
    assert "not epochs (also --eval_every) [0]" in text and "add it up to joules [off]" in text
    assert "warm-up from --warmup-lr (also --lr_warmup_epochs) [0]" in text
    folder = " ".join(helped(["train", "--task", "folder", "--help-all"], capsys).split())
    assert "(also --total_epochs) [from the data and --size]" in folder and "(Nesterov) [0.99]" in folder


def test_help_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(helped(["train", "--task", "em", "--help"], capsys).split())
    assert "passes over" in text and "[1000000]" in text
    assert "[572]" in text and "--context" not in text and "more flags: --help-all" in text
    every = helped(["train", "--task", "em", "--help-all"], capsys)
    assert "--context" in every and "--patch" not in every and "--mlperf" not in every
    assert "size of a training crop" in helped(["train", "--task", "kits19", "--help"], capsys)
    assert "[64]" in helped(["train", "--help"], capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "benchmark --source none --max-steps 1 --epochs 3 --target 0.9 --max-time 0.001 --evaluate-every 3",
            "--epochs 3, --max-steps 1, --max-time 0.001 (its length is --rounds of --steps of the command benchmark);"
            " --target 0.9, --evaluate-every 3 (nothing is trained, scored or saved, only timed)",
        ),
        ("benchmark --source none --data d", "in benchmark: --data d (batches are made in memory)"),
        ("benchmark --mode predict --source real", "in benchmark: --source real (batches are made in memory)"),
        ("benchmark --mode predict --lr 1", "in benchmark: --lr 1.0 (--mode predict measures the pass alone)"),
        ("train --benchmark --train_steps 3 --warmup_steps 1", "--train-steps 3 (its length is --rounds of --steps"),
        ("train --benchmark --fold 1 --overlay", "--fold 1, --overlay (nothing is trained, scored or saved"),
        ("benchmark --source none --lr 1 --batch-size 2 --rounds 1 --no-augment", ""),
        ("train --benchmark --warmup_steps 1 --disable_ckpt_saving --max-cases 3 --data d", ""),
        ("benchmark --mode predict --source none --eval-batch-size 2", ""),
    ],
)
def test_benchmark_names_flags_that_it_does_not_read(line: str, words: str) -> None:
    name, *rest = shlex.split(line)
    resolved = program.resolve(name, rest)
    found = list(unmeasured(resolved.config, resolved.sources, resolved.config.run.mode == "predict"))
    assert len(found) == bool(words) and words in "".join(found)


@pytest.mark.parametrize("task", registry.BUILT_IN)
@pytest.mark.parametrize("command", program.COMMANDS)
def test_every_flag_of_a_command_is_in_its_help(command: str, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = helped([command, "--task", task, "--help-all"], capsys)
    settings = registry.settings_of(task)
    without = program.COMMANDS[command].without  # what has no effect is not shown
    assert not any(f"  --{name.replace('_', '-')} " in text for name in without)
    for group in program.COMMANDS[command].groups:
        for name, item in declared_of(settings, (group,)).items():
            if name in without:
                continue
            shown = f"--{name.replace('_', '-')} " in f"{text} " or item.option.positional
            assert shown or f"--{name.replace('_', '-')}\n" in text or (group == "mlperf" and not settings.mlperf)


@pytest.mark.parametrize("columns", [10, 40, 60, 200])
def test_help_at_narrow_terminals(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = helped(["train", "--help"], capsys).splitlines()
    widest = [line for line in lines if len(line) > max(40, min(80, columns))]
    assert all(len(line.split()) <= 2 for line in widest), widest  # a word that is longer than the terminal


def test_values_are_converted_alike_from_flags_and_files() -> None:
    with pytest.raises(UsageError, match="at most 1000"):
        parsed("--lr 1e5")


HOSTILE = (
    *(
        "",
        " ",
        "\0",
        "a\nb",
        "\x1b[31m",
        "\udcff",
        "\u202eabc",
        "\u0663",
        "1_000",
        "0",
        "-1",
        "1.5",
        "-0.0",
        "1e20",
        "1e999",
    ),
    *(
        "inf",
        "-inf",
        "nan",
        "None",
        "none",
        "null",
        "True",
        "0x10",
        "9" * 30,
        "9" * 5000,
        "..",
        "/",
        "a/b",
        "~nosuch/x",
    ),
    *(
        "/dev/zero",
        "./pipe",
        "./circle",
        "$HOME",
        "-",
        "--",
        "--lr",
        "=",
        "a" * 300,
        "a/" * 3000,
        "[1",
        "1,2,3,4",
        "[]",
        ",",
    ),
    *("{}", "%s%n", "os:system", "tcp://x:99999", "tcp://x:1", "unet.pt", "'"),
)


@pytest.mark.slow
def test_hostile_values_of_every_flag(workplace: Path) -> None:
    """Each flag of each command with each of these values: either a value, or one usage error of two short lines."""
    import os

    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    tried: set[tuple[str, str]] = set()
    for name, command in program.COMMANDS.items():
        for spelling, spec in spellings(program.declared_of_all(command.groups, None)).items():
            if (spec.name, spelling) in tried:
                continue
            tried.add((spec.name, spelling))
            for value in HOSTILE[len(tried) % 4 :: 4]:  # each value meets each kind of flag
                try:
                    resolved = program.resolve(name, [f"{spelling}={value}"])
                    check_paths.require(name, resolved)
                except UsageError as error:
                    text = f"{error.message}{error.hint}"
                    assert "\n" not in text and len(text) < 1200 and text.isprintable(), (name, spelling, value)
                    continue
                if spec.name not in resolved.names:  # of another task
                    continue
                found = resolved.config.get(spec.name)
                for item in found if isinstance(found, tuple) else (found,):
                    assert not isinstance(item, float) or abs(item) < 1e13, (spelling, value)
                    assert not isinstance(item, str) or (item.strip() and item.isprintable()), (spelling, value)
    assert len(tried) > 150


@pytest.mark.parametrize(("written", "read"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_a_file_of_when_compile_was_a_switch(written: object, read: str, workplace: Path) -> None:
    Path("s.json").write_text(json.dumps({"compile": written}))
    assert parsed("--config s.json").device.compile == read


def test_a_file_s_load_is_not_what_is_applied(workplace: Path, cli: Any) -> None:
    Path("run.json").write_text(json.dumps({"load": "start.pt", "out": "runs"}))
    for words in (["evaluate"], ["predict"], ["train", "--mode", "evaluate"]):
        found = program.resolve(words[0], [*words[1:], "--config", "run.json", "--weights", "own.pt"])
        assert (found.config.weights.weights, found.config.weights.load) == (("own.pt",), None)
    found = program.resolve("evaluate", ["--config", "run.json", "--load", "typed.pt"])
    assert (found.config.weights.weights, found.sources["weights"]) == (("typed.pt",), "flag --load")
    error = error_of(cli("predict", "--weights", "a.pt", "--load", "b.pt", "images"), 2)
    assert "--load b.pt and --weights a.pt both name the weights" in error
    assert program.resolve("train", ["--config", "run.json"]).config.weights.load == "start.pt"


def folders(*words: str) -> tuple[tuple[str, str], ...]:
    """(value, source) of the raw set and of the cache."""
    found = program.resolve("train", words)
    return tuple((found.config.get(name), found.sources[name]) for name in ("data", "cache"))


@pytest.mark.parametrize("task", ["lgg", "kits19"])
def test_synthetic_data_are_not_written_into_the_folders_of_a_file(task: str, workplace: Path) -> None:
    Path("real.json").write_text(json.dumps({"task": task, "data": "./mine", "cache": "./kept"}))
    made = folders("--task", task, "--synth-data")
    assert folders("--config", "real.json", "--synth-data") == made
    left = program.resolve("train", ["--config", "real.json", "--synth-data"]).remarks
    assert "--data ./mine and --cache ./kept of file real.json do not count beside synthetic data" in left
    assert folders("--config", "real.json", "--loader", "synthetic") == made
    assert folders("--config", "real.json", "--synth-data", "--data", "x")[0] == ("x", "flag --data")
    assert folders("--config", "real.json", "--synth-data", "--cache", "x")[1] == ("x", "flag --cache")
    own = {"task": task, "synth_data": True, "data": "phantoms", "cache": "phantoms_cache"}
    Path("made.json").write_text(json.dumps(own))
    assert [value for value, _ in folders("--config", "made.json", "--synth-data")] == ["phantoms", "phantoms_cache"]
    found = program.resolve("benchmark", ["--config", "real.json", "--source", "synthetic"])
    assert found.sources["data"] == found.sources["cache"] == "synthetic data"


@pytest.mark.parametrize("task", ["lgg", "kits19"])
def test_real_data_are_not_sought_in_synthetic_folders(task: str, workplace: Path) -> None:
    (data, _), (cache, _) = folders("--task", task, "--synth-data")
    Path("made.json").write_text(json.dumps({"task": task, "synth_data": True, "data": data, "cache": cache}))
    assert folders("--config", "made.json", "--no-synth-data") == folders("--task", task)
    assert folders("--config", "made.json", "--no-synth-data", "--data", "x")[0] == ("x", "flag --data")


def test_a_settings_file_of_an_earlier_version_goes_by_its_schedule(tmp_path: Path) -> None:
    """Its milestones had no effect, and no more do they stop what it is used for."""
    path = tmp_path / "a.json"
    path.write_text('{"schedule": "cosine", "lr-milestones": [3]}')
    found = program.resolve("train", ["--config", str(path)])
    assert (found.config.train.schedule, found.config.train.lr_milestones) == ("cosine", ())
    assert f"--lr-milestones of file {path} change nothing with its --schedule cosine" in found.remarks


def test_folders_of_a_settings_file_that_says_nothing_of_synthetic_data_count(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"cache": "/scratch/c", "image-size": 32}')
    assert program.resolve("train", ["--config", str(path), "--synth-data"]).config.data.cache == "/scratch/c"


def test_a_reference_evaluates_what_it_loads_and_names_where_it_would_save() -> None:
    words = ["--task", "kits19", "--exec_mode", "evaluate", "--load_ckpt_path", "a.pt", "--save_ckpt_path", "b.pt"]
    assert program.resolve("train", words).config.weights.weights == ("a.pt",)


def test_a_repeated_flag_takes_several_words() -> None:
    """Where files may follow, those alone that are weights by their names, as a shell writes `weights/cv-fold*`."""
    assert resolve("evaluate", ["--weights", "a", "b", "--weights", "c"]).config.weights.weights == ("a", "b", "c")
    found = resolve("predict", ["--weights", "a", "b", "--weights", "c"]).config
    assert (found.weights.weights, found.get("inputs")) == (("a", "c"), ("b",))
    found = resolve("predict", ["--weights", "x/a.safetensors", "x/b.onnx", "data", "more"]).config
    assert (found.weights.weights, found.get("inputs")) == (("x/a.safetensors", "x/b.onnx"), ("data", "more"))


@pytest.mark.parametrize("task", ["lgg", "em"])
def test_a_drawn_seed_of_a_made_set_is_told(task: str, workplace: Path, cli: Any) -> None:
    for name in "ab":
        small = ("--slices", 6, "--side", 64, *(("--patients", 4) if task == "lgg" else ()))
        code, _, err = cli("synthesize", "--task", task, "--data", f"./{name}", "--seed", -1, *small)
        assert code == 0, err
        assert "The set is made with --seed" in err
    digests = [digest_files(*sorted(Path(name).rglob("*.tif"))[:1]) for name in "ab"]
    assert digests[0] != digests[1]
