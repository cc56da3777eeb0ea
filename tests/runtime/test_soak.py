"""A long run stays flat: memory, open files, threads, shared memory, seconds a step (-m slow; a third of the whole).

The whole is 20,000 steps in 307 epochs, each scored and saved:
UNET_SOAK_STEPS=20000 python -m pytest tests/runtime/test_soak.py -m slow -s
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

STEPS = int(os.environ.get("UNET_SOAK_STEPS", "6000"))
EPOCH = 65  # steps: the slices of five patients


def reading(pid: int) -> dict[str, int]:
    """What a process and its children hold now."""
    home = Path(f"/proc/{pid}")
    children = (home / f"task/{pid}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in (pid, *children))
    return {
        "memory": pages * os.sysconf("SC_PAGE_SIZE"),
        "files": len(list((home / "fd").iterdir())),
        "threads": len(list((home / "task").iterdir())),
        "shared": sum(path.lstat().st_size for path in Path("/dev/shm").glob(f"*{pid}*")),
    }


def steady(part: list[dict[str, int]]) -> dict[str, float]:
    """What the readings of a quarter agree on: batches on their way hold files for a moment, and a leak raises all."""
    return {key: (statistics.median if key == "memory" else min)(each[key] for each in part) for key in part[0]}


@pytest.mark.slow
def test_a_long_run_stays_flat(tmp_path: Path) -> None:
    from unet.tasks.lgg import synthetic

    synthetic.write_set(tmp_path / "raw", patients=6, slices=13, side=16, seed=1)
    words = ["train", "--data", "./raw", "--cache", "./c", "--image-size", "16", "--layers", "2", "--width", "2"]
    words += ["--batch-size", "1", "--device", "cpu", "--workers", "1", "--epochs", str(STEPS // EPOCH)]
    words += ["--run-name", "soak", "--log-every", "13", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "unet", *words], cwd=tmp_path, env=environment)
    log, readings = tmp_path / "performance/soak/metrics.jsonl", []
    while process.poll() is None:
        try:
            if log.exists() and log.stat().st_size:
                readings.append(reading(process.pid))
        except OSError:
            pass  # a child ended between two looks
        time.sleep(0.2)
    assert process.returncode == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(row["event"] == "epoch" for row in rows) == STEPS // EPOCH
    readings = readings[: -max(1, len(readings) // 10)]  # the end scores in full and draws pictures
    quarter = max(1, len(readings) // 4)
    early, late = readings[quarter : 2 * quarter], readings[-quarter:]
    before, after = (steady(part) for part in (early, late))
    seconds = [row["step_seconds"] for row in rows if row["event"] == "step"]
    quarter = len(seconds) // 4
    # The lower quartile: what the machine does beside the run slows some steps, and none of the quickest.
    pace = [statistics.quantiles(part)[0] for part in (seconds[quarter : 2 * quarter], seconds[-quarter:])]
    print(f"{STEPS} steps: {before} -> {after}; seconds a step {pace[0]:.5f} -> {pace[1]:.5f}")
    assert after["memory"] - before["memory"] < 16 * 2**20
    assert after["files"] - before["files"] <= 2
    assert after["threads"] <= before["threads"]
    assert after["shared"] <= before["shared"]
    assert pace[1] < 1.5 * pace[0]
