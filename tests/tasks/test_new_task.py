"""docs/new-task.md: its files make a task from outside of the repository that trains, scores and predicts."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pytest
from conftest import ROOT, error_of, read_json
from PIL import Image

from unet.config.resolve import default_task
from unet.tasks import registry

PAGE = pages.text_of("docs/new-task.md")


@pytest.fixture
def package(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page in an empty folder, which is on the Python path."""
    for name, content in {"discs/__init__.py": "", **pages.files_of(PAGE)}.items():
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text(content)
    monkeypatch.syspath_prepend(str(workplace))
    yield workplace
    for name in [name for name in sys.modules if name.partition(".")[0] == "discs"]:
        del sys.modules[name]
    registry.settings_of.cache_clear()


def test_the_page_makes_a_task(cli, here: None, package: Path) -> None:
    assert set(pages.files_of(PAGE)) == {"make_discs.py", "discs/settings.py", "discs/dataset.py", "discs/task.py"}
    first, *lines = pages.lines_of(PAGE)
    subprocess.run([sys.executable, *shlex.split(first)[1:]], cwd=package, check=True)
    assert [shlex.split(line)[3] for line in lines] == ["train", "evaluate", "predict"]
    for line in lines:
        words = shlex.split(line)
        code, _, err = cli(*words[3:], "--device", "cpu")
        assert code == 0, f"{line}\n{err}"
    assert read_json(package / "performance/discs/summary.json")["best_score"] > 0.8
    masks = sorted((package / "predictions/images").glob("disc_??.png"))
    assert len(masks) == 20
    dice = []
    for path in masks:
        found, true = (np.asarray(Image.open(file)) > 0 for file in (path, package / "data/discs/masks" / path.name))
        assert found.shape == true.shape == (96, 96)  # the image's own grid, not the network's
        dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    assert np.mean(dice) > 0.8


@pytest.mark.slow
def test_a_folder_makes_a_built_in_task(package: Path) -> None:
    """The package moved into a copy of the program: no change elsewhere. Half a task, or what git leaves, is none."""
    tasks = package / "unet/tasks"
    shutil.copytree(ROOT / "unet", package / "unet", ignore=shutil.ignore_patterns("__pycache__"))
    (package / "discs").rename(tasks / "discs")
    for path in (tasks / "discs").glob("*.py"):
        path.write_text(path.read_text().replace("from discs", "from unet.tasks.discs"))
    with (tasks / "discs/task.py").open("a") as stream:
        stream.write("\n\nTASK = Discs\n")
    for name in ("left/__pycache__", "begun"):
        (tasks / name).mkdir(parents=True)
    (tasks / "begun/settings.py").write_text("")
    subprocess.run([sys.executable, "make_discs.py"], cwd=package, check=True)
    words = [sys.executable, "-m", "unet", "train", "--task", "discs", "--device", "cpu", "--epochs", "1"]
    done = subprocess.run([*words, "--run-name", "r"], cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run([*words[:4], "--help"], cwd=package, capture_output=True, text=True).stdout
    known = sorted({*registry.BUILT_IN, "discs"} - {default_task()})
    assert f": {', '.join([default_task(), *known])}" in " ".join(shown.split())


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_built_in_task_has_the_name_of_its_folder(name: str) -> None:
    own = registry.task_class(name)
    assert own.Settings is registry.settings_of(name) and own.Settings.name == own.layout.task == name


def test_weights_bring_the_settings_that_the_page_names(cli, here: None, package: Path) -> None:
    """`inference_settings`: a network of another size is scored without typing its size again."""
    subprocess.run([sys.executable, "make_discs.py"], cwd=package, check=True)
    words = ("--task", "discs.task:Discs", "--device", "cpu")
    small = ("--image-size", 32, "--layers", 2, "--width", 4, "--epochs", 1)
    for line in (
        ("train", *words, *small, "--run-name", "small"),
        ("evaluate", *words, "--weights", "small.safetensors", "--run-name", "scored"),
    ):
        code, _, err = cli(*line)
        assert code == 0, err
    trained, scored = (read_json(package / f"performance/{run}/summary.json") for run in ("small", "scored"))
    assert scored["best_score"] == pytest.approx(trained["best_score"], abs=1e-6)


def test_commands_that_are_named_have_its_task(cli, here: None, package: Path) -> None:
    """An error of the cache says what to type, and that works."""
    subprocess.run([sys.executable, "make_discs.py"], cwd=package, check=True)
    assert cli("preprocess", "--task", "discs.task:Discs")[0] == 0
    image = next((package / "data/discs/images").iterdir())
    image.write_bytes((package / "data/discs/images/disc_05.png").read_bytes() + b" ")
    error = error_of(cli("train", "--task", "discs.task:Discs", "--device", "cpu", "--run-name", "r"))
    words = shlex.split(error.partition("python -m unet ")[2])
    assert words[:3] == ["preprocess", "--task", "discs.task:Discs"]
    assert cli(*words)[0] == 0


def test_nothing_else_knows_the_task() -> None:
    assert not [path for path in (ROOT / "unet").rglob("*.py") if "discs" in path.read_text()]


def test_its_help_and_its_checks_are_its_own(cli, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli("train", "--task", "discs.task:Discs", "--help")
    text = capsys.readouterr().out
    assert "bright discs in grey images" in text
    assert "side of the network's input in pixels [64]" in " ".join(text.split())
    code, _, err = cli("train", "--task", "discs.task:Discs", "--image-size", 60)
    assert code == 2
    assert "--image-size 60 is not a multiple of 8" in err


def test_settings_come_without_torch(package: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; import discs.settings, discs.task"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, env={"PYTHONPATH": f"{ROOT}:{package}"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("class T(SegmentationTask): pass", "has no Settings and no metric and no layout"),
        ("class T(SegmentationTask): Settings, metric, layout = int, 1, LAYOUT", "no subclass of TaskSettings"),
        ("class T(SegmentationTask): Settings, metric, layout = TaskSettings, 1, LAYOUT", "the name None"),
        ("class T(SegmentationTask): Settings, metric, layout = named('lgg'), 1, LAYOUT", "the name 'lgg'"),
        ("class T(SegmentationTask): Settings, metric, layout = named('a/b'), 1, LAYOUT", "the name 'a/b'"),
        ("class T(SegmentationTask): Settings, metric, layout = named('x'), 1, LAYOUT", "layout is of task 'lgg'"),
        ("T = int", "no subclass of unet.tasks.base.Task"),
        ("class T(SegmentationTask): Settings, metric, layout = named('lgg2'), 1, L2", "T.index is not implemented"),
    ],
)
def test_a_class_that_is_no_whole_task(
    body: str, words: str, cli: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could take the weights and the cache of a built-in task for its own."""
    name = f"own{abs(hash(body))}"
    (workplace / f"{name}.py").write_text(
        "import dataclasses\n"
        "from unet.config.task_settings import TaskSettings\n"
        "from unet.tasks.lgg.dataset import LAYOUT\n"
        "from unet.tasks.segmentation import SegmentationTask\n"
        "L2 = dataclasses.replace(LAYOUT, task='lgg2')\n"
        f"def named(word): return type('S', (TaskSettings,), {{'name': word}})\n{body}\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    Path("raw").mkdir()
    code = 1 if "implemented" in words else 2
    command = ("preprocess", "--task", f"{name}:T", "--data", "./raw", "--cache", "./c")
    assert words in error_of(cli(*command), code)
