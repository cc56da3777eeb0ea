"""Sets that a table names: their caches are compared with the files, and patients stay together without the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import task_config
from tasks.folder import sets as made

from unet import host
from unet.data.cache import cache
from unet.errors import CacheError
from unet.tasks.folder.task import Folder

pytestmark = pytest.mark.usefixtures("here")
IDS = [f"case_{number}" for number in range(6)]
PLAN = {"channels": ("a",), "classes": ("background", "organ"), "label_values": (0, 1), "normalize": ("zscore",)}


def task(root: Path, **asked: int) -> Folder:
    sides = {"patch": (8, 8, 8), "spacing": (1.0, 1.0, 1.0), "orientation": "as-stored"}
    return Folder(
        task_config("folder", data=str(root / "set.csv"), cache=str(root / "cache"), **PLAN, **sides, **asked)
    )


def table(root: Path) -> Path:
    """Six cases of three patients, and their cache."""
    made.pairs(root / "files", ".npy", cases=6)
    rows = [f"files/images/{case}.npy,files/masks/{case}.npy,P{number // 2}" for number, case in enumerate(IDS)]
    (root / "set.csv").write_text("\n".join(["image,mask,patient", *rows]))
    host.notice_once.cache_clear()
    assert [case.id for case in task(root).cached_cases()] == IDS
    return root


def test_a_mask_that_changed_is_noticed(tmp_path: Path) -> None:
    root = table(tmp_path)
    assert len(task(root).cached_cases()) == 6
    made.write(root / "files/masks/case_3.npy", made.volume(3)[1][::-1])
    with pytest.raises(CacheError, match=r"1 cases changed since the cache was made \(case_3\)"):
        task(root).cached_cases()


def test_patients_stay_together_without_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = table(tmp_path)
    folds = [task(root, fold=fold, folds=3).split(IDS) for fold in range(3)]
    (root / "set.csv").rename(root / "moved.csv")
    assert len(task(root).cached_cases()) == 6
    assert "set.csv: is not there; the cache" in capsys.readouterr().err
    assert [task(root, fold=fold, folds=3).split(IDS) for fold in range(3)] == folds
    assert "does not say which cases" not in capsys.readouterr().err
    before = json.loads((root / "cache/manifest.json").read_text())
    for record in before["cases"].values():
        del record["group"]  # as earlier versions wrote it
    (root / "cache/manifest.json").write_text(json.dumps(before))
    task(root, fold=0, folds=3).split(IDS)
    assert "does not say which cases are of one patient" in capsys.readouterr().err
    (root / "moved.csv").rename(root / "set.csv")
    own = task(root)
    counts = cache.build(root / "cache", own.layout, own.find_cases(), own.preprocess, own.manifest())
    assert counts == {"made": 0, "kept": 6, "removed": 0}
    after = json.loads((root / "cache/manifest.json").read_text())["cases"]
    assert [after[case]["group"] for case in IDS] == ["P0", "P0", "P1", "P1", "P2", "P2"]
