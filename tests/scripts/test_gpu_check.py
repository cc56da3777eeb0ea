"""The check of a card: each piece is done once; what fails or has no time left is done at the next start. The program
is a stand-in that notes its words; those are read by the real parser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from unet import cli

PYTHON = """#!/bin/bash
[[ $1 == - ]] && cat >/dev/null && exit 0
printf '%s\\n' "$*" >>"$SAID"
[[ -z ${FAILS:-} || $* != *$FAILS* ]] || exit 1
case $* in
*'--devices 2'*) echo 'error: the environment runs 2 processes, but it has 1 cuda card.' && exit 1 ;;
*'--accumulate 2'*) echo 'error: --capture on with --accumulate 2.' && exit 1 ;;
*'--batch-size 128'*) echo 'error: The device ran out of memory.' && exit 1 ;;
*benchmark*) folder=performance/$(sed 's/.*--run-name \\([^ ]*\\).*/\\1/' <<<"$*"); mkdir -p "$folder"
    echo '{}' >"$folder/benchmark.json" ;;
esac
echo done
"""


def check(folder: Path, *words: str, **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, last line, and the command lines of the program."""
    fake, said = folder / "python", folder / "said"
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    said.write_text("")
    environment = {**os.environ, "PYTHON": str(fake), "SAID": str(said), **variables}
    line = ["bash", str(ROOT / "scripts/gpu_check.sh"), str(folder / "out"), *words]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines()[-1], said.read_text().splitlines()


@pytest.mark.parametrize("variables", [{}, {"DEVICE": "cpu", "SMALL": "1"}])
def test_what_has_passed_is_not_done_again(variables: dict[str, str], tmp_path: Path) -> None:
    code, last, lines = check(tmp_path, "0", **variables)
    assert (code, lines) == (130, []) and last.startswith("0 failed") and "brains-resumes" in last
    code, last, lines = check(tmp_path, FAILS="--run-name em-bf16", **variables)
    assert (code, last) == (1, "1 failed, 0 left: em-bf16 ")
    code, last, again = check(tmp_path, **variables)
    assert (code, last, len(again)) == (0, "0 failed, 0 left:  ", 1)
    text = (tmp_path / "out/README.md").read_text()
    names = [path.stem for path in (tmp_path / "out/checks").iterdir()]
    assert len(names) > 15 and all(f"| {name} |" in text for name in names)
    assert ("recorded" in text) == (not variables) and "## lgg" in text


def test_its_command_lines_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, lines = check(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert {line.split()[2] for line in lines} == {"train", "predict", "benchmark"}
    for line in lines:
        _, _, name, *words = line.split()
        if "--resume" in words:
            folder = Path("performance") / words[words.index("--run-name") + 1]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps({"command": "", "settings": {}}))
        cli.resolve(name, words)


def test_help() -> None:
    done = subprocess.run(["bash", str(ROOT / "scripts/gpu_check.sh"), "--help"], capture_output=True, text=True)
    assert done.returncode == 2 and "scripts/gpu_check.sh [FOLDER] [MINUTES]" in done.stderr


@pytest.mark.slow
def test_equal_states(tmp_path: Path) -> None:
    """The comparison in the script, on files."""
    import torch
    from safetensors.torch import save_file

    (tmp_path / "weights").mkdir()
    script = (ROOT / "scripts/gpu_check.sh").read_text()
    function = script[script.index("equal() {") : script.index("# refused")]
    for number, expected in ((1.0, 0), (1.5, 1)):
        save_file({"a": torch.tensor([1.0])}, tmp_path / "weights/x.state.safetensors")
        save_file({"a": torch.tensor([number])}, tmp_path / "weights/y.state.safetensors")
        words = ["bash", "-c", f"{function}\nequal x y"]
        done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHON": sys.executable}, capture_output=True)
        assert done.returncode == expected, done.stderr
