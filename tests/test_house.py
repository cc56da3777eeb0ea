"""The house rules: who imports whom, what is torch-free, where device words stand, how long files are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from unet.tasks.registry import BUILT_IN

PROGRAM = ROOT / "unet"
MODULES = sorted(path for path in PROGRAM.rglob("*.py") if path.name != "__init__.py")
BASE = {"errors", "files", "json_schema", "host", "windows", "locks", "config", "weight_files"}
ALLOWED = {
    "errors": set(),
    "files": {"errors", "json_schema"},
    "json_schema": set(),
    "locks": {"errors", "files"},
    "host": {"errors"},
    "windows": {"errors"},
    "config": BASE,
    "weight_files": {"errors", "files"},
    "kernels": {"errors", "host"},
    "models": {"errors", "models"},
    "metrics": {"host", "metrics"},  # and no torch
    "data": BASE | {"data"},
    "devices": BASE | {"devices", "kernels"},
    "export": BASE | {"export"},  # networks as files of other runtimes
    "tasks": BASE | {"tasks", "models", "metrics", "data"},
    "runtime": BASE | {"runtime", "devices.base"},
    "report": BASE | {"report", "metrics.statistics"},
    "commands": BASE
    | {"commands", "benchmarks", "tasks", "models", "metrics", "data", "devices", "runtime", "report"}
    | {"export"},
    "benchmarks": BASE | {"benchmarks", "commands", "tasks", "models", "metrics", "data", "devices", "runtime"},
    "cli": BASE | {"commands", "tasks.registry"},
    "__main__": {"cli"},
}
STANDARD_ONLY = sorted(
    path for path in MODULES if path.relative_to(PROGRAM).with_suffix("").parts[0] in (BASE | {"cli"})
)
TORCH_FREE = [
    "cli",
    "config.options",
    "config.schema",
    "config.run_files",
    "config.resolve",
    "errors",
    "files",
    "locks",
    "weight_files.safetensors_header",
    "weight_files.pickles",
    "weight_files.exported",
    "host",
    "windows",
    "data.context",
    "data.download.folder",
    "commands.completion",
    "data.io.outputs",
    "tasks.base",
    *(f"tasks.{name}.task" for name in BUILT_IN),
    "devices.select",
    "devices.base",
    "devices.cpu",
    "devices.cuda",
    "devices.rocm",
    "devices.power.sources",
    "devices.power.sampler",
]
VENDORS = {"torch", "habana_frameworks", "torch_mlu", "torch_npu"}


def part(path: Path) -> str:
    return path.relative_to(PROGRAM).with_suffix("").parts[0]


def imports(path: Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROGRAM)))
def test_imports_go_one_way(path: Path) -> None:
    own = part(path)
    for name in imports(path):
        if name == "unet" or not name.startswith("unet.") or name == "unet.__version__":
            continue
        target = name.removeprefix("unet.")
        assert any(target == allowed or target.startswith(allowed + ".") for allowed in ALLOWED[own] | {own}), (
            f"{path.name} ({own}) imports {name}"
        )


@pytest.mark.parametrize("path", STANDARD_ONLY, ids=lambda path: str(path.relative_to(PROGRAM)))
def test_the_base_is_standard_library(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"unet", "tqdm"}
    assert not outside


def test_nothing_imports_torch_before_a_command_runs() -> None:
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(VENDORS))
    code = blocked + "".join(f"import unet.{name}\n" for name in TORCH_FREE)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROGRAM.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if part(path) in ("tasks", "devices") and path.name != "synthetic.py"],
    ids=lambda path: path.name,
)
def test_tasks_and_devices_are_torch_free_at_their_top(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & VENDORS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROGRAM)))
def test_device_words_stand_in_devices_and_the_flag_table(path: Path) -> None:
    if part(path) == "devices" or path.name in ("flags.py", "schema.py"):
        return
    words = re.findall(
        r"\b(hpu|mlu|cuda|rocm|xpu|npu|mps)\b|habana_frameworks|torch_(?:mlu|npu)|torch\.version\.(?:hip|cuda)",
        path.read_text(),
        re.IGNORECASE,
    )
    assert not words, f"{path} speaks of a device"


def test_models_ask_for_no_device() -> None:
    for path in (path for path in MODULES if part(path) == "models"):
        assert not re.search(r"device\.type|is_cpu|autocast\(|is_compiling", path.read_text()), path


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROGRAM)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} has more than 60 lines"


def test_no_path_of_the_data_is_written_down() -> None:
    repository = PROGRAM.parent
    listed = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = repository / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".json") and path.exists() and path != Path(__file__):
            assert "/work" + "/" not in path.read_text(), name


NAMES = sorted(set(BUILT_IN) - {"folder"})  # that one is a word of the language too
TASK_WORDS = re.compile(rf"\b({'|'.join(NAMES)}|kidney|tumour|membranes?|misfit_valid)\b", re.IGNORECASE)
KNOWS_A_TASK = {
    "config/flags.py": {"lgg"},  # the task that is run where none is named
    "models/convert.py": {"LGG"},  # the published network whose weights it reads
}


@pytest.mark.parametrize(
    "path", [path for path in MODULES if part(path) != "tasks"], ids=lambda path: str(path.relative_to(PROGRAM))
)
def test_nothing_outside_tasks_knows_a_task(path: Path) -> None:
    """Names and texts; docstrings may name a system as the source of a thing."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            words |= {found[0] for found in TASK_WORDS.finditer(node.value)} | set(
                re.findall(r"--task folder", node.value)
            )
        elif isinstance(node, ast.Name):
            words |= {node.id} if TASK_WORDS.fullmatch(node.id) or node.id == "VOLUMES" else set()
    assert words <= KNOWS_A_TASK.get(str(path.relative_to(PROGRAM)), set())


def test_no_room_is_crowded() -> None:
    """A folder with more than 12 modules becomes two; in commands/ a file is a subcommand or a part of one."""
    for folder in {path.parent for path in MODULES}:
        count = sum(path.parent == folder for path in MODULES)
        assert count <= 12 or folder.name == "commands", f"{folder.relative_to(PROGRAM)} has {count} modules"


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Wherever in a module they stand; those for type checking alone do not count."""
    names = {".".join(path.relative_to(PROGRAM).with_suffix("").parts): path for path in MODULES}
    find = module_of(names)
    needs = {name: {found for found in map(find, run_imports(path)) if found} for name, path in names.items()}
    done: set[str] = set()
    while left := {name: needed - done - {name} for name, needed in needs.items() if name not in done}:
        free = {name for name, needed in left.items() if not needed}
        assert free, f"a circle among {sorted(left)[:6]}"
        done |= free


def run_imports(path: Path) -> set[str]:
    """What a module imports when it runs: not what stands under `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module)
    return {f"{node.module}.{alias.name}" for node in found for alias in node.names}


def module_of(names: dict[str, Path]) -> Callable[[str], str | None]:
    """The module that an imported name is, or lies in; None for one of another package."""

    def find(imported: str) -> str | None:
        parts = imported.removeprefix("unet.").split(".") if imported.startswith("unet.") else []
        return next((name for stop in range(len(parts), 0, -1) if (name := ".".join(parts[:stop])) in names), None)

    return find
