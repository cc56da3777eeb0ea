"""Reading what users and other programs wrote: regular files only, a schema before the first index, names that stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unet import files
from unet.errors import UnetError
from unet.files import digest, digest_files, path_inside, read_json, require_regular, schema_error


@pytest.mark.parametrize(
    ("value", "schema", "words"),
    [
        ({"pid": 3, "more": 1}, {"pid": int}, ""),
        ({"pid": "abc"}, {"pid": int}, 'pid is "abc", expected a whole number'),
        ({"pid": True}, {"pid": int}, "pid is true, expected a whole number"),
        ({}, {"pid": int}, "lacks 'pid'"),
        ({}, {"pid?": int}, ""),
        ([], {"pid": int}, "the file is [], expected an object"),
        ({"cases": {"a": {"shape": [1, "2"]}}}, {"cases": {str: {"shape": [int]}}}, 'cases.a.shape[1] is "2"'),
        ({"cases": []}, {"cases": {str: object}}, "cases is [], expected an object"),
        ({"why": None}, {"why": (str, None)}, ""),
        ({"why": 1}, {"why": (str, None)}, "expected a text or null"),
        ({"mode": "c"}, {"mode": {"a", "b"}}, "expected a or b"),
        ({"lr": float("nan")}, {"lr": float}, "expected a number"),
        ({"lr": 1}, {"lr": float}, ""),
    ],
)
def test_a_schema_names_the_place(value: Any, schema: Any, words: str) -> None:
    found = schema_error(value, schema)
    assert (words in found) if words else not found


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]"])
def test_damaged_json_is_an_error_of_two_lines(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(UnetError, match=r"status\.json"):
        read_json(path, {"pid": int})


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle", "missing", "device"])
def test_what_is_not_a_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "circle":
        path.symlink_to(path)
    for read in (require_regular, read_json, digest_files):
        with pytest.raises(UnetError):
            read(Path("/dev/zero") if kind == "device" else path)


@pytest.mark.parametrize(
    "name",
    ["../victim", "/etc/passwd", "a/../../b", "", ".", "a\0b", "a\nb", 5, None, "x" * 300, "link/victim", "a\\b"],
)
def test_a_name_from_a_file_stays_inside(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(UnetError, match="not the name of a file"):
        path_inside(folder, name)


def test_plain_names_are_taken(tmp_path: Path) -> None:
    assert path_inside(tmp_path, "case_00000_x.npy") == tmp_path / "case_00000_x.npy"
    assert path_inside(tmp_path, "patient/slice 1.tif") == tmp_path / "patient" / "slice 1.tif"


def test_the_digest_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1" * 3_000_000)
    (tmp_path / "b").write_bytes(b"2")
    assert digest_files(tmp_path / "a", tmp_path / "b") == digest(b"1" * 3_000_000, b"2")


def test_a_short_write_of_numpy_is_a_full_disk() -> None:
    error = files.explain(OSError("196608 requested and 32544 written"), Path("a.tif"))
    assert "a.tif: cannot be written" in error.message and "Free some room" in error.hint
