"""Completion: what is offered, and that real shells offer it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, error_of

from unet import cli as program
from unet.tasks import registry

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def offered(cli: Cli) -> Callable[..., list[str]]:
    def run(*words: str) -> list[str]:
        code, out, err = cli("completion", "--words", *words)
        assert code == 0 and not err
        return [line.partition("\t")[0] for line in out.splitlines() if line]

    return run


def test_commands_flags_and_choices(offered: Callable[..., list[str]]) -> None:
    assert offered("") == [*program.COMMANDS, "help"]
    assert offered("pre") == ["predict", "preprocess"]
    assert offered("help", "do") == ["download", "doctor"]
    assert offered("train", "--batch") == offered("--batch") == ["--batch-size"]
    assert offered("train", "--image_s") == ["--image-size"]
    assert "--no-checkpoints" in offered("train", "--no") and "--checkpoints" not in offered("train", "--")
    assert offered("train", "--device", "c") == ["cpu", "cuda"]
    assert offered("train", "--device=c") == ["--device=cpu", "--device=cuda"]
    assert offered("train", "--device", "=", "c") == ["cpu", "cuda"]  # as bash hands it over
    assert offered("train", "--device", "=") == offered("train", "--device", "")
    assert offered("benchmark", "--against", "plain", "m") == ["monai"]
    assert offered("completion", "") == ["bash", "zsh", "fish"]
    assert offered("nothing", "--") == [] and offered("train", "--nothing", "x") == []


def test_tasks_recipes_and_sets(offered: Callable[..., list[str]]) -> None:
    assert offered("train", "--task", "") == list(registry.BUILT_IN)
    assert offered("train", "--task", "kits19", "--recipe", "m") == ["mlperf"]
    assert offered("train", "--recipe", "") == list(registry.settings_of("lgg").recipes)
    assert "--fold-scheme" in offered("train", "--task", "em", "--fold")
    assert "--fold-scheme" not in offered("train", "--fold")
    assert offered("download", "") == list(registry.downloads())
    assert offered("download", "em", "--acc") == ["--accept-licence"]


def test_names_of_files_and_runs(offered: Callable[..., list[str]], workplace: Path) -> None:
    for name in ("data/kaggle_3m", "data/other", "performance/a", "performance/none", "weights"):
        Path(name).mkdir(parents=True)
    Path("weights/a.safetensors").touch()
    Path("performance/a/config.json").touch()
    assert offered("train", "--data", "k") == ["kaggle_3m", ":folders"]
    assert offered("evaluate", "--weights", "") == ["a.safetensors", ":files"]
    assert offered("report", "") == offered("train", "--resume", "--run-name", "") == ["a"]
    assert offered("predict", "scan") == [":files"]
    assert offered("predict", "--output", "") == [":folders"]
    assert offered("train", "--config", "") == [":files"]


def test_every_flag_is_offered_and_nothing_heavy_is_imported() -> None:
    for name in program.COMMANDS:
        for task in registry.BUILT_IN:
            found = {*program.settings_by(name, task)}
            assert name in ("runs", "diff", "report", "completion") or found
    code = (
        "import sys; from unet.cli import main\nmain(['completion', '--words', 'train', '--task', 'em', '--ba'])\n"
        "heavy = {'torch', 'numpy', 'scipy', 'tqdm'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.startswith("--batch-size\t"), done.stderr


def test_which_shells(cli: Cli) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert f"Completion of unet in {shell}" in cli("completion", shell)[1]
    assert "--shell" in error_of(cli("completion", "tcsh"), 2)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the programs `unet` and `python` of this environment, and a run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "unet").write_text(f'#!/bin/sh\nexec {sys.executable} -m unet "$@"\n')
    (folder / "unet").chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    (tmp_path / "performance/first").mkdir(parents=True)
    (tmp_path / "performance/first/config.json").touch()
    (tmp_path / "scan.png").touch()
    return tmp_path


def environment(place: Path) -> dict[str, str]:
    kept = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "TERM": "dumb"}
    return {**kept, "HOME": str(place), "XDG_CONFIG_HOME": str(place), "XDG_DATA_HOME": str(place)}


def shell(place: Path, *words: str) -> str:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, cwd=place, env=environment(place), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def test_bash_completes(place: Path) -> None:
    lines = [  # (function, the words, the last of which is not finished)
        ("_unet", "unet tra"),
        ("_unet_python", "python -m unet train --dev"),
        ("_unet_python", "python -m unet report f"),
        ("_unet", "unet predict sc"),
        ("_unet", "unet train --device = cp"),
        ("_unet_python", "python -c"),
    ]
    script = "source <(python -m unet completion bash)\ncomplete -p unet python >/dev/null\n"
    for function, line in lines:
        script += (
            f"COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=(); {function} 2>/dev/null\n"
        )
        script += 'echo "${COMPREPLY[*]}"\n'
    assert shell(place, "bash", "--norc", "-c", script).splitlines() == [
        "train",
        "--device --device-module --devices",
        "first",
        "scan.png",
        "cpu",
        "",
    ]


def test_fish_completes(place: Path) -> None:
    script = (
        "python -m unet completion fish | source\n"
        "complete -C 'unet tra'; complete -C 'python -m unet train --device c'; complete -C 'unet report '"
    )
    found = [line.partition("\t")[0] for line in shell(place, "fish", "--no-config", "-c", script).splitlines()]
    assert found == ["train", "cpu", "cuda", "first"]


def test_zsh_completes(place: Path) -> None:
    """At a terminal, with the key Tab: it is the only way in."""
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    number, terminal = pty.fork()
    if number == 0:
        os.chdir(place)
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment(place))
    try:
        os.write(
            terminal, b"autoload -Uz compinit; compinit -u -D; source <(python -m unet completion zsh); echo rea''dy\n"
        )
        until(terminal, "ready")
        for typed, wanted in (
            ("python -m unet tra\t", "unet train"),
            ("unet train --devi\t\t", "--device-module"),
            ("unet report f\t", "report first"),
            ("unet predict sc\t", "predict scan.png"),
        ):
            os.write(terminal, typed.encode())
            until(terminal, wanted)
            os.write(terminal, b"\x15")
    finally:
        os.kill(number, 9)
        os.close(terminal)
        os.waitpid(number, 0)


def until(terminal: int, wanted: str, seconds: float = 60.0) -> None:
    seen, end = "", time.monotonic() + seconds
    while wanted not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
