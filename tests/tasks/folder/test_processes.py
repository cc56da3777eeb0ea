"""How many cases are looked at and scored at a time: as many as the memory holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from builders import task_config
from tasks.folder import sets as made

from unet import host
from unet.tasks.folder import check, fingerprint, scoring, sets
from unet.tasks.folder.task import Folder

WAYS: dict[str, Callable[[Path], object]] = {
    "look": lambda root: fingerprint.look(sets.find(root)),
    "check": lambda root: check.raw(root, Folder(task_config("folder"))),
    "score": lambda root: scoring.score(root / "masks", root / "masks", task_config("folder").task),
}


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
@pytest.mark.parametrize("name", WAYS)
def test_the_memory_bounds_the_processes(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made.pairs(tmp_path, suffix, cases=4)
    monkeypatch.setattr(host, "cores", lambda: 3)
    WAYS[name](tmp_path)
    assert "processes at a time" not in capsys.readouterr().err
    voxels = 20 * 24 * (12 if suffix == ".nii.gz" else 1)
    monkeypatch.setattr(host, "memory", lambda: (2**40, 2 * 24 * voxels))  # a case takes between 16 and 48 bytes each
    WAYS[name](tmp_path)
    assert "of 3 processes at a time" in capsys.readouterr().err
