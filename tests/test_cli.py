"""The command line: help, flags in every spelling, layers of settings, mistakes reported at once."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from builders import make_config
from conftest import ROOT, error_of

from unet import __main__ as entry
from unet import cli as program
from unet.config.options import fields, normalize_dashes
from unet.config.resolve import resolve
from unet.config.schema import Config, contradictions
from unet.errors import UsageError
from unet.tasks import registry


def parsed(line: str) -> Config:
    words = shlex.split(line)
    return program.resolve("train", words).config


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """What keeps --help within 0.2 s of a bare interpreter."""
    code = (
        f"import sys; from unet.cli import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'scipy', 'skimage', 'matplotlib', 'tqdm', 'PIL', 'tifffile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)


def test_ctrl_c_before_the_program_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        def find_spec(self, name: str, *_: Any) -> None:
            if name == "unet.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "unet.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert entry.main() == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize("name", program.COMMANDS)
def test_help_of_every_command_fits_80_columns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    groups, without = program.COMMANDS[name].groups, program.COMMANDS[name].without
    every, _ = program.help_sections(groups, registry.settings_of("lgg"), False, without)
    assert all(title.split("(")[0].strip() in text for title in every)
    assert program.COMMANDS[name].help[1:] in " ".join(text.split())


def test_every_option_has_help_and_one_home() -> None:
    for task in registry.BUILT_IN:
        each_once([*Config.GROUPS.values(), registry.settings_of(task)])


def each_once(groups: list[type]) -> None:
    declared: dict[str, type] = {}
    spellings: dict[str, str] = {}
    for group in groups:
        for name, (option, _, _, _) in fields(group).items():
            assert option.help
            assert name not in declared, f"{name} is declared twice"
            declared[name] = group
            for alias in [
                "--" + name.replace("_", "-"),
                *(item if isinstance(item, str) else item[0] for item in option.aliases),
            ]:
                folded = normalize_dashes(alias)
                assert spellings.setdefault(folded, name) == name, f"{alias} spells {spellings[folded]} and {name}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--run-name x", {"run_name": "x"}),
        ("--batch-size 8", {"batch_size": 8}),
        ("--batch_size=8", {"batch_size": 8}),
        ("--test-batch-size 1", {"eval_batch_size": 1}),
        ("--epochs 5", {"epochs": 5}),
        ("--lr 1e-3", {"lr": 1e-3}),
        ("--learning_rate 1e-3", {"lr": 1e-3}),
        ("--seed 7", {"seed": 7}),
        ("--layers 4", {"layers": 4}),
        ("--data-path other", {"data": "other"}),
        ("--data_dir other", {"data": "other"}),
        ("--im-cache", {"rebuild_cache": True}),
        ("--cache-path kaggle_256_cache", {"cache": "kaggle_256_cache"}),
        ("--weights-file b-h-1.pt", {"weights": ("b-h-1.pt",)}),
        ("--weights-files b-h-1.pt", {"weights": ("b-h-1.pt",)}),
        ("--image-size 256", {"image_size": 256}),
        ("--aug-angle 5", {"aug_angle": 5.0}),
        ("--aug-scale 0.1", {"aug_scale": 0.1}),
        ("--num-workers 2", {"workers": "2"}),
        ("--num_workers 0", {"workers": "0"}),
        (
            "--distributed --world-size 2 --rank 1 --process-per-node 8 --dist-url env://",
            {"distributed": True, "world_size": 2, "rank": 1, "process_per_node": 8},
        ),
        ("--hpu --use_lazy_mode", {"device": "hpu", "use_lazy_mode": True}),
        ("--mlu", {"device": "mlu"}),
        ("--no_hpu", {"device": "cpu"}),
        ("--no-cuda", {"device": "cpu"}),
        ("--device gpu", {"device": "cuda"}),
        ("--CUDA_devices 0 1", {"cuda_devices": (0, 1)}),
        ("--threads_per_rank 3", {"threads": 3}),
        ("--threads auto", {"threads": None}),
        ("--amp", {"precision": "auto"}),
        ("--amp bf16", {"precision": "bf16"}),
        ("--dtype fp16", {"precision": "fp16"}),
        ("--resume", {"resume": "auto"}),
        ("--resume_training", {"resume": "auto"}),
        ("--no-augment", {"augment": False}),
        ("--augment", {"augment": True}),
        ("--disable_ckpt_saving", {"checkpoints": False}),
        ("--no-checkpoints", {"checkpoints": False}),
        ("--cudnn_deterministic", {"deterministic": True}),
        ("--xla", {"compile": "on"}),
        ("--log_dir d", {"out": "d"}),
        ("--exec_mode train", {"mode": "train"}),
        ("--synth_data", {"synth_data": True}),
        ("--max_steps 9", {"max_steps": 9}),
        ("--load_ckpt_path a.pt", {"load": "a.pt"}),
        ("--save_ckpt_path a.pt", {"weights": ("a.pt",)}),
        ("--ga_steps 2", {"accumulate": 2}),
        ("--quality_threshold .9", {"target": 0.9}),
        ("--train_steps 4", {"max_steps": 4}),
        ("--evaluate_every 3", {"evaluate_every": 3}),
        ("--eval_every 3", {"evaluate_every": 3}),
    ],
)
def test_spellings(line: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    Path("performance/x").mkdir(parents=True)
    Path("performance/x/config.json").write_text('{"command": "", "settings": {}}')
    Path("performance/x/status.json").write_text('{"status": "interrupted", "state": "weights/x.state.safetensors"}')
    Path("weights").mkdir()
    Path("weights/x.state.safetensors").touch()  # bare --resume takes runs that have a state
    config = parsed(line)
    assert {name: config.get(name) for name in expected} == expected


def test_defaults_of_the_first_task() -> None:
    config = make_config()
    assert (
        config.train.batch_size,
        config.train.epochs,
        config.train.lr,
        config.general.seed,
        config.network.layers,
        config.task.image_size,
    ) == (
        64,
        25,
        1e-4,
        2001,
        4,
        64,
    )
    assert (config.task.aug_scale, config.task.aug_angle, config.weights.weights, config.data.cache) == (
        0.05,
        15.0,
        (),
        "kaggle_cache",
    )


def test_the_published_recipe() -> None:
    config = parsed("--recipe published")
    assert (
        config.task.image_size,
        config.train.batch_size,
        config.train.epochs,
        config.train.lr,
        config.split.split,
    ) == (
        256,
        16,
        100,
        1e-4,
        "published",
    )
    assert parsed("--recipe published --epochs 3").train.epochs == 3


def test_the_strongest_layer_wins_and_says_so(workplace: Path) -> None:
    Path("s.json").write_text(json.dumps({"epochs": 7, "batch-size": 5, "lr": 0.5}))
    command = program.COMMANDS["train"]
    given = {"config": ("s.json", "--config"), "recipe": ("published", "--recipe"), "batch_size": (3, "--batch_size")}
    resolved = resolve(command.groups, given, registry)
    found = {
        name: (resolved.config.get(name), resolved.sources[name])
        for name in ("epochs", "batch_size", "image_size", "seed", "lr")
    }
    assert found == {
        "epochs": (7, "file s.json"),
        "batch_size": (3, "flag --batch_size"),
        "image_size": (256, "recipe published"),
        "seed": (2001, "default"),
        "lr": (0.5, "file s.json"),
    }


def test_a_settings_file_is_checked(workplace: Path) -> None:
    Path("s.json").write_text(json.dumps({"epohcs": 7, "batch_size": "many", "lr": -1}))
    with pytest.raises(UsageError) as caught:
        parsed("--config s.json")
    for words in (
        "unknown setting 'epohcs' (did you mean 'epochs'?)",
        "batch_size takes a whole number",
        "lr is above 0",
    ):
        assert words in caught.value.message
    Path("s.json").write_text("[1, 2]")
    with pytest.raises(UsageError, match="expected an object"):
        parsed("--config s.json")


def test_all_mistakes_at_once(cli) -> None:
    error = error_of(
        cli("train", "--bach-size", 3, "--lr", "abc", "--hpu", "--no_hpu", "--epochs", 0, "--schedule", "cosin"), 2
    )
    for words in (
        "--bach-size (did you mean --batch-size?)",
        "--lr takes a number, not 'abc'",
        "--hpu (hpu) and --no-hpu (cpu) contradict",
        "--epochs is at least 1, not 0",
        "did you mean cosine?",
    ):
        assert words in error


def test_two_spellings_that_contradict(cli) -> None:
    error = error_of(cli("train", "--batch-size", 3, "--lr", 1e-3, "--learning_rate", 1e-4), 2)
    assert "--lr (0.001) and --learning-rate (0.0001) contradict each other" in error
    assert parsed("--lr 1e-3 --learning_rate 1e-3").train.lr == 1e-3
    assert parsed("--epochs 3 --epochs 4").train.epochs == 4


def test_the_usual_name_of_an_output_is_told_where_it_has_another(cli) -> None:
    assert "--output (did you mean --plan-file?)" in error_of(cli("plan", "--output", "x"), 2)
    assert "--plan-file" not in error_of(cli("runs", "--output", "x"), 2)


def test_abbreviations_are_off(cli) -> None:
    assert "--epoch (did you mean --epochs?)" in error_of(cli("train", "--epoch", 3), 2)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--image-size 100", "not a multiple of 16 (2^layers); nearest: 96 or 112"),
        ("--fold 7", "outside 0 to 4"),
        ("--use-lazy-mode --no_hpu", "--use-lazy-mode is for an HPU"),
        ("--schedule multistep", "needs --lr-milestones"),
        ("--task brains --output-clamp 0 0", "--output-clamp"),
        ("--task brains --hidden-clamp 0 1", "--hidden-clamp"),
        ("--schedule cosine --lr-milestones 3 5", "--schedule cosine has no --lr-milestones 3 5"),
        ("--workers many", "--workers takes auto or a whole number"),
        ("--run-name a/b", "without /"),
        ("--rank 3 --world-size 2", "outside 0 to 1"),
        ("--resume --overwrite --run-name x", ""),
        ("--recipe publisht", "Unknown recipe"),
        ("--aug-scale 1.05", "at most 1"),
        ("--fold -1", "at least 0"),
        ("--lr nan", "a number"),
    ],
)
def test_settings_that_cannot_be(cli, line: str, words: str) -> None:
    assert words in error_of(cli("train", *shlex.split(line)), 2)


def test_check_reports_all() -> None:
    assert len(contradictions(make_config(image_size=100, fold=9, verbose=True, quiet=True))) >= 3


def test_unknown_command(cli) -> None:
    assert "did you mean evaluate?" in error_of(cli("evaluat"), 2)


def test_a_device_that_is_not_there(cli) -> None:
    error = error_of(cli("train", "--hpu", "--synth-data"))
    assert "--device hpu" in error
    assert "--device cpu" in error


def test_world_size_without_a_launcher(tiny) -> None:
    error = error_of(tiny("--world-size", 4), 2)
    assert "--world-size 4" in error
    assert "--devices 4" in error


def test_config_shows_sources(cli) -> None:
    code, out, _ = cli("config", "--recipe", "published", "--batch_size", 4)
    assert code == 0
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert rows["--batch-size"] == ["4", "flag --batch-size"]
    assert rows["--image-size"] == ["256", "recipe published"]
    assert set(rows) >= {"--lr", "--device", "--seed"}


def test_doctor(cli) -> None:
    code, out, _ = cli("doctor")
    assert code == 0
    for words in ("cpu    usable", "not usable", "cores", "memory", "torch", "Would be used"):
        assert words in out


def test_doctor_looks_at_a_device_of_ones_own(cli) -> None:
    assert "nothere" in error_of(cli("doctor", "--device-module", "nothere:Thing"), 2)
    code, out, _ = cli("doctor", "--device-module", "unet.devices.cpu:CPU")
    assert code == 0 and "  unet.devices.cpu:CPU usable" in out and "Would be used: cpu" in out


@pytest.mark.parametrize(
    "line", [line for line in (ROOT / "run-commands.txt").read_text().splitlines() if line and not line.startswith("#")]
)
def test_run_commands_parse(line: str, workplace: Path) -> None:
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "unet"]
    name, rest = (words[3], words[4:]) if not words[3].startswith("-") else ("train", words[3:])
    for run in ("lgg-128", rest[rest.index("--run-name") + 1] if "--resume" in rest else "lgg-64"):
        folder = Path("performance") / run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text('{"command": "", "settings": {}}')
    program.resolve(name, rest)
