"""Records are whole, the tables are theirs, and no page has a figure without a record or a source."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "scripts"))
import records

ONE = "2026-11-20_cpu_lgg_benchmark-64px"


def test_the_repository() -> None:
    assert records.problems(ROOT) == []


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with two records and their tables."""
    for name in (ONE, "2026-11-26_cpu_lgg_openmp-waiting"):
        shutil.copytree(ROOT / records.RECORDS / name, tmp_path / records.RECORDS / name)
    page = tmp_path / records.PAGE
    page.write_text(records.updated(f"x\n{records.BEGIN}\n{records.END}\n", records.tables(records.read(tmp_path))))
    assert records.problems(tmp_path) == []
    return tmp_path


def wrong(root: Path) -> str:
    return "\n".join(records.problems(root))


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("environment.json", "no environment.json"),
        ("config.json", "no config.json, and no settings"),
        ("benchmark.json", "no raw log"),
        ("README.md", "no README.md"),
        ("record.json", "no record.json"),
    ],
)
def test_a_record_that_lacks_a_file(copy: Path, gone: str, words: str) -> None:
    (copy / records.RECORDS / ONE / gone).unlink()
    assert f"{ONE}: {words}" in wrong(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"command": []}, "record.json has no command"),
        ({"command": ["python -m unet benchmark"]}, ""),
        (
            {"command": ["python -m unet train --lr 9"]},
            "README.md does not have the command 'python -m unet train --lr 9'",
        ),
        ({"figure": "9.99 times"}, "README.md does not have the figure 9.99"),
        ({"track": "beauty"}, "track 'beauty'"),
        ({"task": "em"}, "task em is not that of its name"),
        ({"holder": "somebody else"}, "the tables are not those of the records"),
    ],
)
def test_a_record_with_another_content(copy: Path, change: dict[str, object], words: str) -> None:
    path = copy / records.RECORDS / ONE / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert words in wrong(copy) if words else wrong(copy) == ""


def test_the_best_of_the_same_work_holds_its_place(copy: Path) -> None:
    better = copy / records.RECORDS / "2027-01-01_cpu_lgg_benchmark-64px"
    shutil.copytree(copy / records.RECORDS / ONE, better)
    path = better / "record.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"value": record["value"] / 2}))
    assert ONE in records.tables(records.read(copy)) and better.name not in records.tables(records.read(copy))
    path.write_text(json.dumps(record | {"value": record["value"] * 2}))
    assert ONE not in records.tables(records.read(copy)) and better.name in records.tables(records.read(copy))
    path.write_text(json.dumps(record | {"value": record["value"] / 2, "better": "less"}))
    other = copy / records.RECORDS / ONE / "record.json"
    other.write_text(json.dumps(record | {"better": "less"}))
    assert better.name in records.tables(records.read(copy))


@pytest.mark.parametrize(
    "text",
    [
        "The step is 2.8 times as fast.",
        "- Loading takes four times longer there.",
        "It is 30 % faster than before.",
        "The mean DSC is 0.91 after an hour.",
        "A held-out case has 0.617 Dice.",
        "| case | Dice |\n|---|---|\n| one | 0.93 |",
    ],
)
def test_a_figure_without_a_record_is_found(copy: Path, text: str) -> None:
    assert len(records.claims(text)) == 1
    (copy / "README.md").write_text(f"# Title\n\n{text}\n")
    assert "README.md: no record for" in wrong(copy)
    link = "[record](performance/records/x/README.md)"
    assert records.claims(f"As {link} says:\n\n{text}" if text.startswith("|") else f"{text} {link}") == []


@pytest.mark.parametrize(
    "text",
    [
        "A loss that is not finite N times in a row stops the run.",
        "--target 0.908 stops there.",
        "scale U(0.95, 1.05)",
        "```\nDSC 0.91\n```",
        "Others report a mean DSC of 0.91 ([paper](https://example.org)).",
    ],
)
def test_what_is_no_claim(text: str) -> None:
    assert records.claims(text) == []


def test_a_link_to_a_record_that_is_gone(copy: Path) -> None:
    (copy / "README.md").write_text("[record](performance/records/2026-01-01_cpu_lgg_gone/README.md)\n")
    assert "README.md: no record 2026-01-01_cpu_lgg_gone" in wrong(copy)


def test_a_page_without_markers() -> None:
    with pytest.raises(ValueError, match="has no markers"):
        records.updated("nothing", "table")
