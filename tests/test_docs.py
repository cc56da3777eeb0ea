"""The pages for users: links, the length of the README, the index, command lines that the program understands."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pages
import pytest
from conftest import ROOT

from unet import cli as program
from unet.devices.base import Device
from unet.tasks.segmentation import SegmentationTask

PAGES = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")])
DOCS = [page for page in PAGES if page.startswith("docs/")]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", pages.text_of(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT.resolve()))), f"{page}: {link}"


def test_the_readme_is_short_and_has_the_test_command() -> None:
    text = pages.text_of("README.md")
    assert text.count("\n") < 150
    assert text.count("```\npip install -e '.[test]' && python -m pytest\n```") == 1


def test_the_index_has_every_page() -> None:
    linked = set(LINK.findall(prose("docs/README.md")))
    assert {Path(page).name for page in DOCS} - {"README.md"} <= linked


def test_every_command_for_users_is_run_by_one_test() -> None:
    """A new page with `sh` blocks must be listed in `pages`, and no command runs twice."""
    listed = (*itertools.chain(*pages.IN_ORDER.values()), *pages.BY_THEMSELVES)
    assert {page for page in ("README.md", *DOCS) if pages.commands(pages.text_of(page))} <= set(listed)
    lines = [line for page in listed for line in pages.commands(pages.text_of(page))]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("docs/new-task.md", "docs/new-device.md")])
def test_command_lines_are_understood(page: str, workplace: Path) -> None:
    """Also those that no test can run, because they need data or cards."""
    for run in ("short", "again", "hour", "sliced"):
        (workplace / "performance" / run).mkdir(parents=True)
        (workplace / "performance" / run / "config.json").write_text('{"command": "", "settings": {}}')
    (workplace / "plan.json").write_text('{"task": "folder"}')
    for line in [line for kind in ("sh", "") for line in pages.commands(pages.text_of(page), kind)]:
        words = shlex.split(line.partition("#")[0])
        words = words[words.index("unet") + 1 :]
        if "COMMAND" not in words:
            program.resolve(words[0], words[1:])


@pytest.mark.parametrize(("page", "kind"), [("docs/new-task.md", SegmentationTask), ("docs/new-device.md", Device)])
def test_the_methods_of_a_page_exist(page: str, kind: type) -> None:
    rows = re.findall(r"^\| (`.*?) \|", prose(page), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(names) > 10
    assert not [name for name in names if not hasattr(kind, name)]
