"""Files that are damaged, of another kind or made to mislead, in the place of each file that a command reads: two lines
that name the file, within five seconds, and nothing accepted that is nonsense.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from unet.cli import main

LGG = [
    "--data",
    "./raw",
    "--cache",
    "./cache",
    "--image-size",
    "16",
    "--layers",
    "2",
    "--width",
    "2",
    "--batch-size",
    "4",
    "--workers",
    "0",
    "--device",
    "cpu",
]
KITS = [
    "--pad-to",
    "32",
    "--patch",
    "32",
    "--eval-patch",
    "32",
    "--layers",
    "2",
    "--width",
    "4",
    "--batch-size",
    "1",
    "--workers",
    "0",
    "--device",
    "cpu",
]
VOLUMES = ["--task", "kits19", "--data", "./ct", "--cache", "./ct_cache"]
STACKS = ["--task", "em", "--data", "./em", "--cache", "./em_cache", "--device", "cpu"]


pytestmark = pytest.mark.slow


class Hang(BaseException):
    """The command took longer than it may."""


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a raw set, a cache, a run, its weights and its masks for each task."""
    folder = tmp_path_factory.mktemp("whole")
    commands: list[list[str]] = [
        ["synthesize", "--data", "./raw", "--patients", "4", "--slices", "6", "--side", "32"],
        ["train", *LGG, "--epochs", "2", "--checkpoint-every", "1", "--run-name", "r"],
        [
            "predict",
            "--weights",
            "r.safetensors",
            "./raw/TCGA_PH_0001_20000101",
            "--output",
            "./masks",
            "--device",
            "cpu",
        ],
        ["synthesize", "--task", "kits19", "--data", "./ct", "--patients", "3", "--slices", "32", "--side", "32"],
        ["train", *VOLUMES, *KITS, "--epochs", "1", "--split", "last", "--held-out", "1", "--run-name", "v"],
        ["synthesize", "--task", "em", "--data", "./em", "--slices", "6", "--side", "64"],
    ]
    before = Path.cwd()
    os.chdir(folder)
    try:
        for words in commands:
            assert main(words) == 0, words
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def place(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(whole, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def bytes_of(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return damage


def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def flipped(content: bytes) -> bytes:
    """One bit in the last third, where the numbers are."""
    place = len(content) - len(content) // 4 - 1
    return content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]


ANY: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": bytes_of(lambda content: b""),
    "one byte": bytes_of(lambda content: content[:1]),
    "cut": bytes_of(lambda content: content[: len(content) // 2]),
    "end missing": bytes_of(lambda content: content[:-20]),
    "zeros": bytes_of(lambda content: bytes(len(content))),
    "noise": bytes_of(lambda content: random.Random(1).randbytes(len(content))),
    "text": bytes_of(lambda content: b"hello, world\n" * 9),
    "pipe": instead(os.mkfifo),
    "circle": instead(lambda path: path.symlink_to(path)),
    "folder": instead(Path.mkdir),
}
ARRAY = {
    **ANY,
    "zeroed values": bytes_of(lambda content: content[:128] + bytes(len(content) - 128)),
    "one bit": bytes_of(flipped),
    "objects": bytes_of(lambda content: content.replace(b"'<f4'", b"'|O' ").replace(b"'|u1'", b"'|O' ")),
    "a huge shape": bytes_of(
        lambda content: content.replace(b"'shape': (", b"'shape': (9999999999, ").replace(b" " * 12, b"", 1)
    ),
}
TENSORS = {
    **ANY,
    "one bit": bytes_of(flipped),
    "a huge header": bytes_of(lambda content: (2**40).to_bytes(8, "little") + content[8:]),
    "header of text": bytes_of(lambda content: content[:8] + b"x" * (len(content) - 8)),
}
TREES = ("[]", "{}", "5", "null", '"abc"', "NaN", "[" * 5000, '{"a": {"b": {}}}', "\ufeff{}")
JSON = {**ANY, **{f"holds {text[:12]}": bytes_of(lambda content, text=text: text.encode()) for text in TREES}}


def paths_of(tree: object, prefix: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The places of a JSON tree, of lists only the first item."""
    items: list[tuple[object, object]] = []
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree[:1]))
    return [place for key, item in items for place in ((*prefix, key), *paths_of(item, (*prefix, key)))]


def put(tree: object, place: tuple[object, ...], value: object) -> object:
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)  # type: ignore[call-overload]
    copy[place[0]] = put(copy[place[0]], place[1:], value)  # type: ignore[index]
    return copy


VALUES = ("abc", -1, 1e300, 2**80, [], {}, None, True, "../../victim", float("nan"))

RESUME = ["train", "--resume", "--run-name", "r", "--epochs", "3"]
EVALUATE = ["evaluate", "--weights", "r.safetensors", *LGG[:4], "--run-name", "e", "--device", "cpu"]
PREDICT = [
    "predict",
    "--weights",
    "r.safetensors",
    "./raw/TCGA_PH_0001_20000101",
    "--output",
    "./new",
    "--device",
    "cpu",
]
AGAIN = [*PREDICT[:4], "--output", "./masks", "--device", "cpu"]
TRAIN = ["train", *LGG, "--epochs", "1", "--run-name", "n"]
CHECK = ["check", "--data", "./raw", "--cache", "./cache"]
PREPROCESS = ["preprocess", "--task", "lgg", "--data", "./raw", "--cache", "./other", "--image-size", "16"]
SLICE = "raw/TCGA_PH_0001_20000101/TCGA_PH_0001_20000101_3"
CT = ["preprocess", *VOLUMES[:4], "--cache", "./new_cache", "--pad-to", "32"]
CT_PREDICT = ["predict", "--weights", "v.safetensors", "./ct/case_00000", "--output", "./new", "--device", "cpu"]
CT_TRAIN = ["train", *VOLUMES, *KITS, "--epochs", "1", "--split", "last", "--held-out", "1", "--run-name", "n"]
EM = ["preprocess", *STACKS[:-2]]
SCAN, LABEL = "ct/case_00000/imaging.nii.gz", "ct/case_00000/segmentation.nii.gz"

# A file, ways to damage it, commands that read it, and whether these may succeed: without the file, or from another.
NO_MANIFEST = {how: damage for how, damage in JSON.items() if how != "missing"}  # such a cache is another program's
NO_SLICE = {how: damage for how, damage in ANY.items() if how != "missing"}  # nothing tells predict that it was there
TABLE: list[tuple[str, dict[str, Callable[[Path], None]], list[list[str]], bool]] = [
    ("weights/r.safetensors", TENSORS, [EVALUATE, PREDICT], False),
    ("weights/r.state.safetensors", TENSORS, [RESUME], True),
    ("performance/r/status.json", JSON, [RESUME], True),
    ("performance/r/config.json", JSON, [RESUME], False),
    ("performance/r/splits.json", NO_MANIFEST, [RESUME], False),
    ("performance/r/metrics.jsonl", JSON, [RESUME], True),
    ("cache/manifest.json", NO_MANIFEST, [TRAIN, CHECK], False),
    ("cache/TCGA_PH_0001_20000101.npy", ARRAY, [TRAIN, CHECK], False),
    ("cache/TCGA_PH_0001_20000101_mask.npy", ARRAY, [TRAIN, CHECK], False),
    ("masks/predictions.jsonl", JSON, [AGAIN], True),
    (f"{SLICE}.tif", ANY, [PREPROCESS], False),
    (f"{SLICE}.tif", NO_SLICE, [PREDICT], False),
    (f"{SLICE}_mask.tif", ANY, [PREPROCESS, CHECK], False),
    (SCAN, ANY, [CT, CT_PREDICT], False),
    (LABEL, ANY, [CT], False),
    ("ct_cache/case_00000_x.npy", ARRAY, [CT_TRAIN], False),
    ("ct_cache/case_00000_y.npy", ARRAY, [CT_TRAIN], False),
    ("em/train-volume.tif", ANY, [EM], False),
    ("em/train-labels.tif", ANY, [EM], False),
]
CASES = [
    pytest.param(name, damage, words, may, id=f"{name}-{how}-{words[0]}")
    for name, ways, commands, may in TABLE
    for how, damage in ways.items()
    for words in commands
]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what a command that has five seconds prints as its error, or as its report."""
    capsys.readouterr()
    start = time.monotonic()
    try:
        with limit(15):
            code = main(words)
    except SystemExit as stop:
        code = int(stop.code or 0)
    seconds = time.monotonic() - start
    out, err = capsys.readouterr()
    assert "Traceback" not in err, err
    assert "Internal error" not in err, err
    assert seconds < 5, f"{seconds:.1f} s"
    return code, out if words[0] == "check" else err


def require_two_lines(code: int, err: str) -> None:
    """The two lines of an error; a report of `check` has a line for each fault."""
    lines = [line for line in err.splitlines() if line.strip()]
    if not any(line.startswith("error: ") for line in lines):
        assert re.search(r"\b[1-9]\d* errors?\b", err), err
        return
    start = next(number for number, line in enumerate(lines) if line.startswith("error: "))
    assert len(lines) - start == 2, lines[start:]
    assert code in (1, 2)


@pytest.mark.parametrize(("name", "damage", "words", "may_succeed"), CASES)
def test_a_damaged_file(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
    words: list[str],
    may_succeed: bool,
) -> None:
    damage(place / name)
    code, err = run(words, capsys)
    assert may_succeed or code, "accepted"
    if code:
        require_two_lines(code, err)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("performance/r/status.json", RESUME),
        ("performance/r/config.json", RESUME),
        ("performance/r/splits.json", RESUME),
        ("cache/manifest.json", TRAIN),
        ("masks/predictions.jsonl", AGAIN),
    ],
)
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_of_another_kind(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, words: list[str], value: object
) -> None:
    """In each place of a file in turn: never more than two lines, or a run that goes on without it."""
    tree = json.loads((place / name).read_text().splitlines()[-1] if name.endswith("l") else (place / name).read_text())
    spots = paths_of(tree)
    for spot in random.Random(name).sample(spots, min(6, len(spots))):
        (place / name).write_text(json.dumps(put(tree, spot, value)))
        shutil.rmtree(place / "performance/n", ignore_errors=True)
        code, err = run(words, capsys)
        if code:
            require_two_lines(code, err)
        (place / name).write_text(json.dumps(tree))
    assert not (place.parent / "victim").exists()
