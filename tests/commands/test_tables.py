"""Tables and blocks on terminals of any width."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from builders import make_config

from unet.commands import label_scores, scores, tables
from unet.tasks.kits19.task import KiTS19
from unet.tasks.lgg.task import LGG

TASKS = (LGG(make_config("lgg")), KiTS19(make_config("kits19")))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("columns", [None, 200, 80, 60, 40, 30])
def test_no_line_of_the_scores_is_wider_than_the_terminal(
    task: object, columns: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    names = ("TCGA_PH_0004_20000101", "TCGA_PH_0005_20000101", "case_00003")
    keys = [key for key, _, _ in task.columns]  # type: ignore[attr-defined]
    records = [{"case": name, **dict.fromkeys(keys, -1234.5)} for name in names]
    shown = scores.table(task, records, 10)
    for key in keys:
        heading = next(name for item, name, _ in task.columns if item == key)  # type: ignore[attr-defined]
        assert heading in shown
    for name in names:
        assert name[-8:] in shown
    if columns is None:
        assert shown.splitlines()[0] == f"  {task.subject:<28}" + "".join(  # type: ignore[attr-defined]
            f"{name:>13}"
            for _, name, _ in task.columns  # type: ignore[attr-defined]
        )
    else:
        wide = [line for line in shown.splitlines() if len(line) > columns and " " in line.strip()]
        assert not wide, wide


def test_long_names_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    heads = ["case", "surf. left kidney", "HD95 left kidney"]
    name = "a case with a name of more than 28 letters"
    lines = tables.table(heads, [[name, "0.5", "1"], ["short", "0.25", "12"]])
    assert lines[0].endswith(" surf. left kidney HD95 left kidney")
    assert name + " " in lines[1]
    assert len({len(line) for line in lines}) == 1


def test_long_lines_are_filled_under_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    line = "  speed      167.2 slices/s in training, data wait 12.3%, peak memory 420.2 MB"
    found = tables.text(line, indent=13)
    assert max(map(len, found)) <= 40
    assert found[0].startswith("  speed      167.2")
    assert found[1].startswith(" " * 13)
    assert " ".join(" ".join(found).split()) == " ".join(line.split())
    monkeypatch.setenv("COLUMNS", "0")
    monkeypatch.setattr("sys.stdout", SimpleNamespace())
    assert tables.width() == tables.UNLIMITED


@pytest.mark.parametrize(("goal", "worst"), [("max", "c3 0.100, c1 0.900, c0 nan"), ("min", "c1 0.900, c3 0.100")])
def test_the_worst_cases_are_those_with_the_worst_scores(goal: str, worst: str) -> None:
    task = LGG(make_config("lgg"))
    task.metric = task.metric._replace(goal=goal)  # type: ignore[misc]
    keys = [key for key, _, _ in task.columns]
    scored = zip(("c0", "c1", "c2", "c3", "c4"), (math.nan, 0.9, math.nan, 0.1, math.nan), strict=True)
    shown = scores.table(task, [{"case": case, **dict.fromkeys(keys, value)} for case, value in scored], 10)
    assert f"worst 5: {worst}" in shown


def test_healthy_cases_do_not_fill_the_worst_label_maps() -> None:
    names = [f"{kind}_1" for kind in label_scores.KINDS]
    values = {f"healthy {n}": math.nan for n in range(label_scores.SHOWN)} | {"sick": 0.5}
    records = [{"case": case, **dict.fromkeys(["mean_dice", *names], value)} for case, value in values.items()]
    by_class = [label_scores.summed(records, 1, "lesion", 10)]
    rows = label_scores.table(records, by_class, ("background", "lesion")).splitlines()
    assert rows[rows.index(next(row for row in rows if "the worst" in row)) + 1].split()[0] == "sick"
