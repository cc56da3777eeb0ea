"""Fixtures: made patients, real samples, the command line in this process or in one of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from unet import host
from unet.cli import main

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
TINY = ["--image-size", "16", "--layers", "2", "--width", "4", "--batch-size", "4", "--eval-batch-size", "8"]


def pytest_configure(config: pytest.Config) -> None:
    import torch

    # under nohup and in the background of a shell these are ignored, also by what the tests start
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # the processes of pytest-xdist (-n) share the cores, and what a test starts keeps to the share
    side_by_side = getattr(config.option, "numprocesses", None) or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // side_by_side)))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that the processes end together."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are named by their parameter: what was packed just now differs between the processes of -n."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def restored() -> Any:
    """A command sets flags of torch, and --quiet, for its process; the next test starts without them."""
    import torch

    from unet import host

    yield
    torch.use_deterministic_algorithms(False)
    host.set_quiet(False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; the test is skipped where UNET_REAL_DATA does not name one."""
    name = os.environ.get("UNET_REAL_DATA")
    if not name:
        pytest.skip("UNET_REAL_DATA is not set (a folder with real samples)")
    assert Path(name).is_dir(), f"UNET_REAL_DATA={name} is no folder"
    return Path(name)


@pytest.fixture(scope="session")
def real_lgg(real_data: Path) -> Path:
    return real_data / "lgg" / "kaggle_3m"


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six made patients of 64 px in the raw layout; read only."""
    from unet.tasks.lgg import synthetic

    folder = tmp_path_factory.mktemp("phantoms") / "kaggle_3m"
    synthetic.write_set(folder, patients=6, slices=8, side=64, seed=1)
    return folder


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cli(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process, in the empty folder: (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def phantom_cache(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of these patients at 16 px; to be copied. Made here, since a test in an empty folder would take most of
    its time to make it."""
    folder = tmp_path_factory.mktemp("caches") / "cache_16"
    assert main(["preprocess", "--data", str(phantoms), "--cache", str(folder), "--image-size", "16"]) == 0
    return folder


@pytest.fixture
def tiny(
    cli: Callable[..., tuple[int, str, str]], phantoms: Path, phantom_cache: Path
) -> Callable[..., tuple[int, str, str]]:
    """`train` of a very small network on made patients, whose cache is there."""
    shutil.copytree(phantom_cache, Path("data", phantom_cache.name))

    def run(*words: object) -> tuple[int, str, str]:
        return cli("train", "--data", phantoms, "--cache", "cache_16", "--device", "cpu", *TINY, *words)

    return run


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in this process: starting others takes most of a test's time (the tests without this start them)."""

    def process_map(work: Callable[[Any], Any], items: Sequence[Any], *_: Any) -> Iterator[tuple[Any, Future[Any]]]:
        for item in items:
            future: Future[Any] = Future()
            try:
                future.set_result(work(item))
            except Exception as error:
                future.set_exception(error)
            yield item, future

    monkeypatch.setattr(host, "process_map", process_map)


def program(*words: object, cwd: Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})}
    return subprocess.run(
        [sys.executable, "-m", "unet", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=environment,
        **how,
    )


def error_of(result: tuple[int, str, str], code: int = 1) -> str:
    """The error of a command that failed with `code`: exactly two lines, returned as one text."""
    assert result[0] == code, result
    lines = [line for line in result[2].splitlines() if line.strip()]
    start = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    two = lines[start:]
    assert len(two) == 2, two
    assert "Internal error" not in two[0], two
    assert "Traceback" not in result[2]
    return "\n".join(two)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def stored(path: Path | str) -> dict[str, Any]:
    """The content of weights or of a state."""
    from unet.runtime.checkpoints import checkpoint

    return checkpoint.read(Path(path))


def start(*words: object, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own, its words thrown away."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "unet", *map(str, words)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with convolutions in lower precision, whatever this one has: torch's own loops compute them here."""
    set_native(monkeypatch, True)


@pytest.fixture
def not_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without convolutions in lower precision, as one with AVX2 alone is."""
    set_native(monkeypatch, False)


def set_native(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    import torch

    from unet.kernels import algorithms, trial

    for module in (algorithms, trial):
        monkeypatch.setattr(module, "is_native", lambda dtype: value or dtype == torch.float32)
