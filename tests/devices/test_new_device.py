"""docs/new-device.md: its file makes a device from outside of the repository."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pages
import pytest

PAGE = pages.text_of("docs/new-device.md")


def test_the_page_makes_a_device(
    cli, here: None, phantoms: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pages.files_of(PAGE)
    assert set(files) == {"counting.py"}
    (workplace / "counting.py").write_text(files["counting.py"])
    monkeypatch.syspath_prepend(str(workplace))
    monkeypatch.setitem(sys.modules, "counting", None)  # so that it is gone after the test
    del sys.modules["counting"]
    (line,) = pages.lines_of(PAGE)
    words = [word for word in shlex.split(line)[3:] if word != "--synth-data"]
    code, out, err = cli(*words, "--data", phantoms, "--cache", "c", "--batch-size", 16)  # less data: faster
    assert code == 0, err
    assert "lgg on counting cpu" in err
    assert "2 batches went to the device" in out
