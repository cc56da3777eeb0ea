"""The pages for users: their order, the commands and the files in their blocks."""

from __future__ import annotations

import re

from conftest import ROOT

# Pages whose `sh` blocks run one after another in one folder (`test_readme.py`): later ones use what earlier ones made.
IN_ORDER = {
    "lgg": (
        "README.md",
        "docs/first-hour.md",
        "docs/lgg.md",
        "docs/runs.md",
        "docs/reports.md",
        "docs/devices.md",
        "docs/many-cards.md",
        "docs/clusters.md",
        "docs/trackers.md",
        "docs/comparing-machines.md",
        "docs/benchmark.md",
    ),
    "em": ("docs/em.md",),
    "brains": ("docs/brains.md",),
    "kits19": ("docs/kits19.md",),
    "folder": ("docs/own-data.md", "docs/export.md", "docs/dicom.md"),
}
# Pages with a test of their own: in `test_readme.py`, `tests/tasks` and `tests/devices`.
BY_THEMSELVES = ("docs/mlperf.md", "docs/new-task.md", "docs/new-device.md")


def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks_of(text: str) -> list[tuple[str, str]]:
    """(kind, content) of the blocks of a page; the kind of a block without one is ""."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def lines_of(text: str, kind: str = "sh") -> list[str]:
    """The lines of the blocks of one kind, continued lines joined."""
    blocks = [content for found, content in blocks_of(text) if found == kind]
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(text: str, kind: str = "sh") -> list[str]:
    """Those lines that run the program."""
    return [line for line in lines_of(text, kind) if "python -m unet" in line and not line.startswith("#")]


def files_of(text: str) -> dict[str, str]:
    """name -> content of the files that a page shows: a name such as `discs/task.py` ends the line before its block."""
    found = re.findall(r"`([\w/-]+\.py)`:\n\n```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return dict(found)
