"""The files for containers: a linter, and what it does not look at."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

FILES = sorted((ROOT / "containers").glob("Dockerfile.*"))
DEVICES = {"cpu", "cuda", "rocm", "gaudi", "mlu"}


def instructions(path: Path) -> list[tuple[str, str]]:
    """(keyword, rest) of a file, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def test_a_file_for_each_device() -> None:
    assert {path.suffix[1:] for path in FILES} == DEVICES
    readme = (ROOT / "containers/README.md").read_text()
    assert all(path.name in readme for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix[1:])
def test_the_linter_finds_nothing(path: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    linter = str(beside) if beside.exists() else shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix[1:])
def test_what_is_copied_exists_and_is_let_in(path: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for name, rest in instructions(path) if name == "COPY" for word in rest.split()[:-1]]
    assert set(copied) == {"pyproject.toml", "README.md", "LICENSE", "unet"} == allowed
    assert all((ROOT / word).exists() for word in copied)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix[1:])
def test_the_image_is_pinned_and_its_torch_stays(path: Path) -> None:
    """A tag with a version; one install of this project as in the README, held to what the image has."""
    steps = instructions(path)
    image = dict(rest.split("=", 1) for name, rest in steps if name == "ARG")["BASE"]
    tag = image.rpartition(":")[2]
    assert "/" not in tag and re.search(r"\d", tag) and "latest" not in tag
    runs = [part.strip() for name, rest in steps if name == "RUN" for part in rest.split("&&")]
    installs = [shlex.split(part) for part in runs if " pip install " in part]
    own = installs[-1]
    assert own[:4] == ["python3", "-m", "pip", "install"] and own[-1] == "."
    assert own[own.index("--constraint") + 1] == "/tmp/image.txt"
    assert "python3 -m pip list --format=freeze > /tmp/image.txt" in runs
    assert "pip install -e ." in (ROOT / "README.md").read_text()
    others = [word for install in installs[:-1] for word in install[4:] if not word.startswith(("-", "http"))]
    assert len(others) == (path.suffix == ".cpu") and all(word.startswith("torch==2.") for word in others)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.suffix[1:])
def test_it_runs_the_program_and_not_as_root(path: Path) -> None:
    steps = instructions(path)
    users = [rest for name, rest in steps if name == "USER"]
    assert users == ["10001"]  # a number: the host knows no name
    assert [name for name, _ in steps].index("USER") > max(i for i, (name, _) in enumerate(steps) if name == "RUN")
    assert ("ENTRYPOINT", '["python3", "-m", "unet"]') in steps
