"""Made run folders for the tests of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet.commands import case_pictures

SETTINGS = {"seed": 1, "epochs": 8, "lr": 0.001, "width": 8, "image_size": 32, "target": None}


def write_run(
    path: Path,
    cases: Mapping[str, float],
    task: str = "lgg",
    epochs: int = 8,
    settings: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    status: str = "done",
    terms: Sequence[str] = (),
    pictured: Sequence[str] = (),
    side: int = 24,
    joules: float | None = None,
    kind: str = "train",
) -> Path:
    """The folder of a run as `train`, or another command, leaves it."""
    path.mkdir(parents=True)
    values = {"task": task, **SETTINGS, "run_name": path.name, **(settings or {})}
    config = {"command": f"python -m unet train --run-name {path.name}", "settings": {}}
    config["settings"] = {"train": {name: {"value": value, "source": "default"} for name, value in values.items()}}
    write(path / "config.json", config)
    write(path / "environment.json", {"unet": "0.1.0", "packages": {"torch": "2.13.0"}, "device": "cpu, 2 threads"})
    write(path / "status.json", {"status": status, "pid": 1, "host": "elsewhere", "kind": kind})
    about = {"metric": "dsc", "metric_title": "DSC", "metric_goal": "max", "item": "slices", "best_score": 0.5}
    about["seconds"] = {"train": 10.0 * epochs, "wait": 4.0, "evaluate": 12.0, "save": 2.0}
    write(path / "summary.json", {**about, "images_per_second": 50.0, "peak_memory_bytes": 2**28, **(summary or {})})
    rows = []
    for epoch in range(1, epochs + 1):
        row = {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "time": 1e9 + 12 * epoch, "train_seconds": 10.0}
        row |= {"evaluate_seconds": 1.5, "loss": 1 / epoch, "eval_loss": 1.2 / epoch, "score": epoch / (epoch + 4)}
        row |= {name: number + 1 / epoch for number, name in enumerate(terms)}
        row |= {} if joules is None else {"joules": joules}
        rows.append(json.dumps(row))
    (path / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))
    lines = [f'"{case}",{value},{1 - value}' for case, value in cases.items()]
    if cases:
        (path / "cases.csv").write_text("\n".join(["case,dsc,loss", *lines]) + "\n")
    if pictured:
        write_pictures(path, pictured, cases, side)
    return path


def write_pictures(path: Path, pictured: Sequence[str], cases: Mapping[str, float], side: int) -> None:
    (path / "cases").mkdir()
    generator = np.random.default_rng(0)
    entries = []
    for case in pictured:
        image = generator.integers(0, 255, (6, side, side), dtype=np.uint8)
        truth, found = (np.zeros((6, side, side), np.uint8) for _ in range(2))
        truth[1:5, 4:12, 4:12], found[2:6, 6:14, 6:14] = 1, 1
        png, entry = case_pictures.strip({"image": image, "truth": truth, "prediction": found}, ["spot"])
        name = case_pictures.file_name(case, [each["file"] for each in entries])
        (path / "cases" / name).write_bytes(png)
        entries.append({"case": case, "score": cases[case], **entry, "file": name, "place": "worst"})
    write(path / "cases/index.json", {"version": 1, "cases": entries})


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
