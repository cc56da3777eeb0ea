"""The folder of a set that is loaded: what others keep in it stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from unet.data.download import folder
from unet.data.download.sources import Remote, Source
from unet.data.download.transfer import Patience


def load(path: Path) -> int:
    """Load a set of one file that is there already."""
    remotes = [Remote("notes.txt", ("https://example.org/notes.txt",), 10)]
    place = folder.SetFolder(path, Source("title", "home", "licence", (), files=lambda _: remotes))
    return folder.load(place, remotes, folder.How(Patience()))


def test_only_what_loading_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a text")
    room = tmp_path / folder.ROOM
    room.mkdir()
    for name in ("notes.txt.part", "notes.txt.part.json", "mine.txt"):
        (room / name).write_text("x")
    assert load(tmp_path) == 0
    assert [path.name for path in room.iterdir()] == ["mine.txt"]
    (room / "mine.txt").unlink()
    load(tmp_path)
    assert not room.exists()


def test_checksums_of_the_user_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("a text")
    (tmp_path / folder.SUMS).write_text("mine")
    for _ in range(2):
        load(tmp_path)
    assert sorted(path.name for path in tmp_path.glob(f"{folder.SUMS}*")) == [folder.SUMS, f"{folder.SUMS}.1"]
    assert (tmp_path / f"{folder.SUMS}.1").read_text() == "mine"
    assert (tmp_path / folder.SUMS).read_text().endswith("  notes.txt\n")
    assert "was not made here; kept as" in capsys.readouterr().err
