"""The scripts of the brains task: what they start, and the launch lines of their page with a very small network."""

from __future__ import annotations

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, read_json

from unet.tasks.brains import synthetic

SCRIPTS = sorted(ROOT.glob("scripts/VeryDeepVAE_*/run_autoencoder.py"))
LAUNCH = [sys.executable, "-m", "torch.distributed.run"]
SMALL = {
    "nii_target_shape": [8, 8, 8],
    "batch_size": 1,
    "total_epochs": 2,
    "latents_per_channel": [1, 1, 1, 1],
    "channels_per_latent": [3, 3, 3, 9],
    "channels": [3, 6, 9, 12],
    "kernel_sizes_bottom_up": [3, 3, 2, 1],
    "kernel_sizes_top_down": [3, 3, 2, 1],
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder with made brains and the script, its hyper_params changed to those of a very small network."""
    synthetic.write_set(tmp_path / "data" / "brains", 4, 16, 1)
    text = SCRIPTS[0].read_text()
    for key, value in SMALL.items():
        text, count = re.subn(rf'"{key}": .*', f'"{key}": {json.dumps(value)},', text)
        assert count == 1
    (tmp_path / "run_autoencoder.py").write_text(text)
    return tmp_path


def start(folder: Path, *words: object) -> subprocess.Popen[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "UNET_TEST": str(folder)}
    line = [*map(str, words), "run_autoencoder.py", "--device", "cpu", "--train-fraction", "0.6"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*line, "--run-name", "a"], cwd=folder, env=variables, **pipes)


def left(folder: Path) -> list[int]:
    """Processes that still have the variable of `start`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"UNET_TEST={folder}\0".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_flags_follow_the_file_and_a_resumed_run_takes_none(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], Any]] = []

    def main(words: list[str]) -> int:
        file = words[words.index("--config") + 1] if "--config" in words else None
        seen.append((words, read_json(Path(file)) if file else None))
        return 3

    monkeypatch.setattr("unet.cli.main", main)
    for typed in (["--local_rank", "0"], ["--resume", "--run-name", "a"]):
        monkeypatch.setattr(sys, "argv", [str(script), *typed])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == 3
    (words, content), (again, nothing) = seen
    assert words[:4] == ["train", "--task", "brains", "--config"] and words[5:] == ["--local_rank", "0"]
    assert f"_{content['nii_target_shape'][0]}x" in script.parent.name
    assert again == ["train", "--task", "brains", "--resume", "--run-name", "a"] and nothing is None


@pytest.mark.slow
def test_a_run_of_two_processes_to_its_end_and_beyond(small: Path) -> None:
    port = free_port()
    line = [*LAUNCH, "--nnodes=1", "--nproc_per_node=2", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}"]
    run = start(small, *line)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert out.count("Run a: finished: 2 epochs") == 1 and err.count("epoch   2/2") == 1
    assert "strides" not in err and not left(small)
    folder, weights = small / "performance" / "a", small / "weights"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    drawn = {f"reconstructions/epoch_000{epoch}.png" for epoch in (1, 2)}
    assert {"terms.png", "progress.png", "predictions.png", *drawn} <= names
    assert any(name.startswith("pipeline_test/") for name in names)
    kept = {f"a.epoch-000{epoch}.safetensors" for epoch in (1, 2)}
    assert {"a.safetensors", "a.state.safetensors", *kept} <= {path.name for path in weights.iterdir()}
    split = read_json(folder / "splits.json")
    assert (len(split["train"]), len(split["validation"])) == (2, 2)

    words = [sys.executable, "run_autoencoder.py", "--resume", "--run-name", "a", "--epochs", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    again = subprocess.run(words, cwd=small, env=environment, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "Run a: finished: 3 epochs" in again.stdout


@pytest.mark.slow
def test_two_nodes(small: Path) -> None:
    port = free_port()
    common = [*LAUNCH, "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}", "--nnodes=2"]
    nodes = [start(small, *common, f"--node_rank={number}") for number in range(2)]
    results = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], results
    assert "Run a: finished" in results[0][0] and not results[1][0]
    assert not left(small)


@pytest.mark.slow
def test_cards_and_processes_that_disagree(small: Path) -> None:
    script = small / "run_autoencoder.py"
    script.write_text(re.sub(r'"CUDA_devices": \[\]', '"CUDA_devices": [str(x) for x in range(8)]', script.read_text()))
    run = start(small, *LAUNCH, "--nproc_per_node=2")
    _, err = run.communicate(timeout=120)
    lines = err.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert "names 8 cards, but 2 processes run on this node" in lines[at]
    assert lines[at + 1].strip() == "Name 2 cards, or start 8 processes on each node."
    assert run.returncode != 0 and not left(small)
