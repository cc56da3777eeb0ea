"""The cache as a place that others can damage: names that lead out, arrays that changed, manifests of any kind."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import error_of, read_json

from unet import files
from unet.data.cache import cache, integrity
from unet.data.cases import Case
from unet.errors import CacheError, UnetError
from unet.tasks.kits19 import dataset as kits19
from unet.tasks.lgg import dataset as lgg

SIZE = 16
NETWORK = ["--image-size", SIZE, "--layers", 2, "--width", 2, "--batch-size", 4, "--epochs", 1, "--device", "cpu"]


def wanted() -> dict[str, Any]:
    return cache.make_manifest(lgg.LAYOUT, {"image_size": SIZE})


def built(folder: Path, raw: Path) -> Path:
    cache.build(folder, lgg.LAYOUT, lgg.index(raw), functools.partial(lgg.prepare, size=SIZE), wanted())
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, phantoms: Path) -> Path:
    """A cache of six patients; read only."""
    return built(tmp_path_factory.mktemp("whole") / "c", phantoms)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "c"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = read_json(folder / "manifest.json")
    edit(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def first(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(content["cases"].values()))
    return found


@pytest.mark.parametrize(
    "name", ["../../victim", "/etc/victim", "a/b", "", ".", "..", "a\0b", "a\nb", "x" * 260, "a\\b", "../c/x"]
)
@pytest.mark.parametrize("place", ["cases", "missing"])
def test_a_name_in_a_manifest_never_becomes_a_path(folder: Path, phantoms: Path, name: str, place: str) -> None:
    victim = folder.parent.parent / "victim.npy"
    victim.write_text("precious")

    def add(content: dict[str, Any]) -> None:
        if place == "cases":
            content["cases"][name] = first(content)
        else:
            content["missing"] = [name]

    change(folder, add)
    before = sorted(path.name for path in folder.glob("*.npy"))
    prepare = functools.partial(lgg.prepare, size=SIZE)
    for act in (
        lambda: cache.build(folder, lgg.LAYOUT, lgg.index(phantoms), prepare, wanted()),
        lambda: cache.open_cache(folder, lgg.LAYOUT, wanted()),
        lambda: cache.ensure(folder, lgg.LAYOUT, lambda: lgg.index(phantoms), phantoms, prepare, wanted()),
    ):
        with pytest.raises(UnetError, match="not the name"):
            act()
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in folder.glob("*.npy")) == before


def test_two_cases_that_would_write_one_file(tmp_path: Path, phantoms: Path) -> None:
    cases = lgg.index(phantoms)[:2]
    other = Case(f"{cases[0].id}_mask", cases[1].images, cases[1].labels)
    with pytest.raises(CacheError, match="would both write"):
        cache.build(tmp_path / "c", lgg.LAYOUT, [cases[0], other], functools.partial(lgg.prepare, size=SIZE), wanted())


def zeros(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) - 128))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def exchange(path: Path) -> None:
    other = next(item for item in sorted(path.parent.glob("*01.npy")) if item != path)
    shutil.copy2(path, path.with_suffix(".x"))
    shutil.copy2(other, path)
    path.with_suffix(".x").replace(other)


def in_place(path: Path) -> None:
    """Other bytes under the same size and time of change, as a backup that restores both."""
    status = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(200)
        stream.write(bytes([7]) * 400)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("damage", [zeros, cut, flip, exchange, in_place, Path.unlink])
@pytest.mark.parametrize("end", [".npy", "_mask.npy"])
def test_a_damaged_array_is_found_before_it_is_used(
    folder: Path, phantoms: Path, damage: Callable[[Path], None], end: str
) -> None:
    cache.open_cache(folder, lgg.LAYOUT, wanted())  # compared and noted: what comes after must show all the same
    case = sorted(read_json(folder / "manifest.json")["cases"])[2]
    if end == "_mask.npy" and damage is exchange:
        pytest.skip("masks of made patients may be equal")
    damage(folder / f"{case}{end}")
    with pytest.raises(CacheError, match=case) as caught:
        cache.open_cache(folder, lgg.LAYOUT, wanted())
    assert "preprocess" in caught.value.hint
    errors: list[str] = []
    manifest = cache.read_manifest(folder, lgg.LAYOUT)
    assert manifest
    integrity.report(folder, lgg.LAYOUT, manifest, errors, [])
    assert len(errors) == (2 if damage is exchange else 1)
    if damage is cut:  # one way to mend them all
        counts = cache.build(
            folder, lgg.LAYOUT, lgg.index(phantoms), functools.partial(lgg.prepare, size=SIZE), wanted()
        )
        assert (counts["made"], counts["kept"]) == (1, 5)
        assert len(cache.open_cache(folder, lgg.LAYOUT, wanted())) == 6


def test_an_array_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    own = files.digest_files

    def count(*paths: Path) -> str:
        read.extend(path.name for path in paths)
        return own(*paths)

    monkeypatch.setattr(files, "digest_files", count)
    cache.open_cache(
        folder, lgg.LAYOUT, wanted()
    )  # a copy: its files have other times than those that preprocess wrote
    assert len(read) == 12
    cache.open_cache(folder, lgg.LAYOUT, wanted())
    assert len(read) == 12
    sorted(folder.glob("*_mask.npy"))[0].touch()
    cache.open_cache(folder, lgg.LAYOUT, wanted())
    assert len(read) == 13
    (folder / integrity.NOTED).write_text("{cut")
    cache.open_cache(folder, lgg.LAYOUT, wanted())
    assert len(read) == 25


def test_what_preprocess_wrote_is_not_read_again(
    tmp_path: Path, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path / "c", phantoms)
    monkeypatch.setattr(files, "digest_files", lambda *paths: pytest.fail("read again"))
    assert len(cache.open_cache(tmp_path / "c", lgg.LAYOUT, wanted())) == 6


def test_a_cache_without_digests_is_read_with_one_notice(
    cli: Callable[..., tuple[int, str, str]], folder: Path, phantoms: Path
) -> None:
    def drop(content: dict[str, Any]) -> None:
        for record in content["cases"].values():
            del record["arrays"]
        content.pop("missing")

    change(folder, drop)
    words = ("--data", phantoms, "--cache", folder, "--image-size", SIZE)
    code, _, err = cli(
        "train", *words, "--layers", 2, "--width", 2, "--batch-size", 4, "--epochs", 1, "--device", "cpu"
    )
    assert code == 0, err
    assert err.count("6 cases have no digests") == 1
    assert "python -m unet preprocess" in err
    assert "6 of 6 cases have no digests" in cli("check", "--cache", folder)[1]
    assert "6 cases made, 0 kept" in cli("preprocess", *words)[2]
    assert "0 cases made, 6 kept" in cli("preprocess", *words)[2]


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "cases []": lambda content: content.update(cases=[]),
    "cases {}": lambda content: content.update(cases={}),
    "task": lambda content: content.update(task="knee"),
    "task of a list": lambda content: content.update(task=["lgg"]),
    "settings": lambda content: content.update(settings=None),
    "fingerprint": lambda content: content.update(fingerprint=5),
    "no cases": lambda content: content.pop("cases"),
    "expected": lambda content: content.update(expected="six"),
    "missing": lambda content: content.update(missing=5),
    "record": lambda content: content["cases"].update(TCGA=[]),
    "shape of text": lambda content: first(content).update(shape=["1", 2, 3, 4]),
    "negative shape": lambda content: first(content).update(shape=[-6, 16, 16, 3]),
    "huge shape": lambda content: first(content).update(shape=[6, 10**30, 16, 3]),
    "short shape": lambda content: first(content).update(shape=[6]),
    "foreground": lambda content: first(content).update(foreground=[1]),
    "negative foreground": lambda content: first(content).update(foreground=[-1] * first(content)["shape"][0]),
    "sources": lambda content: first(content).update(sources=5),
    "digest": lambda content: first(content).update(digest=None),
    "arrays": lambda content: first(content).update(arrays={"image": "x"}),
    "bytes": lambda content: first(content)["arrays"]["image"].update(bytes=True),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_manifest_is_an_error_of_two_lines(
    cli: Callable[..., tuple[int, str, str]], folder: Path, phantoms: Path, name: str
) -> None:
    change(folder, DAMAGES[name])
    words = ("--data", phantoms, "--cache", folder, "--image-size", SIZE)
    if name != "cases {}":
        assert str(folder) in error_of(cli("preprocess", *words))
        code, out, _ = cli("check", *words[2:])
        assert code == 1
        assert "manifest" in out
    with pytest.raises(UnetError):
        cache.open_cache(folder, lgg.LAYOUT, wanted())
    if name == "cases []":
        assert cli("preprocess", *words, "--rebuild-cache")[0] == 0
        assert len(cache.open_cache(folder, lgg.LAYOUT, wanted())) == 6
        assert (folder / "manifest.json.1").exists()


def brighter(case: Case) -> dict[str, Any]:
    """Another content of the same shape."""
    return {**(found := lgg.prepare(case, SIZE)), "image": found["image"] + 1}


def test_a_cache_that_is_made_anew_while_a_command_reads_it(folder: Path, phantoms: Path) -> None:
    """A run opens arrays again and again: those of another content are no longer its data."""
    cases = cache.open_cache(folder, lgg.LAYOUT, wanted())
    indexed, prepare = lgg.index(phantoms), functools.partial(lgg.prepare, size=SIZE)
    cache.build(folder, lgg.LAYOUT, indexed, prepare, wanted(), rebuild=True)
    assert [case.arrays()[0].shape for case in cases] == [case.shape for case in cases]  # the same once more

    earlier, _ = cases[0].arrays()
    before = earlier.copy()
    cache.build(folder, lgg.LAYOUT, indexed, brighter, wanted(), rebuild=True)
    assert np.array_equal(earlier, before)
    for case in cases:
        with pytest.raises(CacheError, match=f"{case.image.name}: is another one than when") as caught:
            case.arrays()
        assert "--cache of its own" in caught.value.hint
    again = cache.open_cache(folder, lgg.LAYOUT, wanted())
    assert np.array_equal(again[0].arrays()[0], before + 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{", b'"text"', b"nan", b"[" * 100_000])
def test_a_manifest_that_is_none(folder: Path, content: bytes) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(UnetError, match=r"manifest\.json"):
        cache.open_cache(folder, lgg.LAYOUT, wanted())


@pytest.mark.parametrize("kind", ["pipe", "folder", "circle"])
def test_a_manifest_that_is_no_file(folder: Path, kind: str) -> None:
    path = folder / "manifest.json"
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "circle": lambda name: path.symlink_to(name)}[kind](path)
    with pytest.raises(UnetError, match=r"manifest\.json"):
        cache.open_cache(folder, lgg.LAYOUT, wanted())


WHOLE = {"mask": "STAMP", "foreground": [1, 2], "boxes": {"1": [], "2": []}}


@pytest.mark.parametrize(
    "content",
    [
        *([], "{cut", {"case_00000": []}, {"case_00000": {"mask": 5}}, {"../../victim": WHOLE}),
        {"case_00000": {**WHOLE, "foreground": [1]}},
        {"case_00000": {**WHOLE, "boxes": []}},
        {"case_00000": {**WHOLE, "boxes": {"1": [[5]], "2": []}}},
        {"case_00000": {**WHOLE, "boxes": {"1": [[0, 99, 0, 1, 0, 1]], "2": []}}},
    ],
)
def test_damaged_boxes_are_found_again(tmp_path: Path, content: Any) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    label = np.zeros((1, 8, 8, 8), np.uint8)
    label[0, 2:5, 2:5, 2:5] = 1
    np.save(folder / "case_00000_x.npy", np.zeros((1, 8, 8, 8), np.float32))
    np.save(folder / "case_00000_y.npy", label)
    status = (folder / "case_00000_y.npy").stat()
    text = json.dumps(content).replace('"STAMP"', f"[{status.st_size}, {status.st_mtime_ns}]")
    (folder / "boxes.json").write_text(text)
    found = cache.open_cache(
        folder, kits19.LAYOUT, cache.make_manifest(kits19.LAYOUT, {"pad_to": [8, 8, 8], "spacing": [1, 1, 1]})
    )
    assert found[0].facts["boxes"] == {"1": [[2, 5, 2, 5, 2, 5]], "2": []}


def few_files(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("unet.data.cache.maps.room", lambda: count)


def test_maps_are_closed_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet.data.cache.maps import Maps

    few_files(monkeypatch, 2)
    cases = cache.open_cache(whole, lgg.LAYOUT, wanted())
    maps = Maps(cases)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in (0, 1, 2, 3, 4, 5, 0, 5, 3):
        image, mask = maps[number]
        assert np.array_equal(image, np.load(cases[number].image))
        assert np.array_equal(mask, np.load(cases[number].mask))
    del image, mask
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 4


def test_batches_are_the_same_with_few_files_open(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from unet.data.loading.loader import EpochBatches, Slices

    cases = cache.open_cache(whole, lgg.LAYOUT, wanted())
    usual = EpochBatches(Slices(cases), 8, 5, None)
    expected = [usual[1, number] for number in range(len(usual))]
    few_files(monkeypatch, 2)
    again = EpochBatches(Slices(cases), 8, 5, None)
    for number, batch in enumerate(expected):
        for key, value in again[1, number].items():
            assert torch.equal(value, batch[key])


@pytest.mark.parametrize("kind", ["zero", "binary", "folder", "pipe", "list", "numbers", "no validation", "many"])
def test_a_split_that_is_none(tmp_path: Path, kind: str) -> None:
    from unet.data import splits

    path = tmp_path / "split"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "zero":
        content = {"list": "[]", "numbers": '{"validation": [1]}', "no validation": '{"train": []}', "many": "a\n"}
        path.write_bytes(content.get(kind, "").encode() or bytes(range(256)))
    with pytest.raises(UnetError) as caught:
        splits.from_file(["aa", "ab"], Path("/dev/zero") if kind == "zero" else path)
    assert caught.value.hint


def test_a_split_of_many_names_is_fast() -> None:
    from unet.data import splits

    ids = [f"TCGA_ZZ_{number:05d}_20000101" for number in range(20_000)]
    text = "\n".join(["", *ids, ""])
    known = set(ids)
    found = [splits._match(f"ZZ_{number:05d}", known, text, Path("x")) for number in range(0, 20_000, 40)]
    assert found == ids[::40]


def test_pictures_of_many_cases_are_few_and_spread() -> None:
    from unet.commands.scores import KEPT, SHOWN, Spread, shown_of
    from unet.metrics.statistics import rank

    rng = np.random.default_rng(0)
    scores = [float("nan"), *rng.beta(5, 1, 2000).tolist(), 0.0, 1.0]
    made: list[float] = []
    kept = Spread()
    for number, score in enumerate(scores):
        kept.add(score, f"{number:05d}", lambda score=score: made.append(score) or {"x": score})  # type: ignore[misc]
    assert len(kept.rows) == KEPT
    assert all(row.panel for row in kept.rows)
    assert len(made) < len(scores)
    chosen = shown_of(kept.rows, [rank(score) for score in scores])
    assert len(chosen) == SHOWN
    assert (chosen[0].score, chosen[-1].score) == (0.0, 1.0)
    middle = sorted(scores[1:])[round(2 * len(scores) / 5)]
    assert abs(chosen[2].score - middle) < 0.05
    few = Spread()
    for number in range(11):
        few.add(number / 10, str(number), dict)
    assert [row.score for row in shown_of(few.rows, [0.0] * 11)] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_evaluate_prepares_only_what_it_scores(
    cli: Callable[..., tuple[int, str, str]], phantoms: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantoms, "raw")
    assert cli("train", "--data", "./raw", "--cache", "./c", *NETWORK, "--held-out", 2, "--run-name", "a")[0] == 0
    held = read_json(Path("performance/a/splits.json"))["validation"]
    shutil.rmtree("c")
    weights = ("evaluate", "--weights", "a")
    code, _, err = cli(*weights, "--data", "./raw", "--cache", "./c", "--run-name", "e")
    assert code == 0, err
    assert "2 of 6 cases" in err
    manifest = read_json(Path("c/manifest.json"))
    assert sorted(manifest["cases"]) == held
    assert len(manifest["missing"]) == 4
    assert len(list(Path("c").glob("*_mask.npy"))) == 2
    Path("names.txt").write_text(manifest["missing"][0])
    assert cli(*weights, "--data", "./raw", "--cache", "./c", "--run-name", "f", "--split", "names.txt")[0] == 0
    assert len(list(Path("c").glob("*_mask.npy"))) == 3
    Path("raw").rename("away")
    assert cli(*weights, "--cache", "./c", "--run-name", "g")[0] == 0  # what is made is enough
    words = ("--cache", "./c", *NETWORK, "--run-name", "b", "--weights", "./b.pt")
    assert "3 of 6 cases are made" in error_of(cli("train", *words))
    assert "cases are made" in error_of(cli(*weights, "--run-name", "h", "--fold", 0, "--folds", 3, "--cache", "./c"))
    Path("away").rename("raw")
    assert cli("train", "--data", "./raw", *words)[0] == 0
    assert sorted(read_json(Path("c/manifest.json"))["cases"]) == sorted(
        path.name for path in Path("raw").glob("TCGA*")
    )


def test_data_that_is_a_cache_is_used_as_one(cli: Callable[..., tuple[int, str, str]], whole: Path) -> None:
    shutil.copytree(whole, "prepared")
    code, _, err = cli("train", "--data_dir", "./prepared", *NETWORK, "--run-name", "a")
    assert code == 0, err
    assert "used as the cache" in err
    assert read_json(Path("performance/a/config.json"))["settings"]["data"]["cache"]["value"] == "./prepared"
    assert cli("evaluate", "--weights", "a", "--data_dir", "./prepared", "--run-name", "e")[0] == 0
    assert cli("check", "--data_dir", "./prepared")[0] == 0


def test_an_image_and_a_label_of_one_name_are_two_files(tmp_path: Path) -> None:
    from unet.data.cache import manifest

    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.nii.gz").write_bytes(b"before")
    image, label = tmp_path / "images" / "x.nii.gz", tmp_path / "labels" / "x.nii.gz"
    case = Case("x", (image,), (label,))
    record = {"sources": manifest.stamp(case), "digest": manifest.digest_of(case)}
    old = {"sources": manifest.stamp_of_before(case), "digest": manifest.digest_of(case)}
    layout = kits19.LAYOUT
    for path in layout.paths(tmp_path, "x"):
        path.touch()
    for known in (record, old):
        assert manifest.is_current(known, case, tmp_path, layout)
    label.touch()  # another time, the same content
    for known in (record, old):
        assert manifest.is_current(known, case, tmp_path, layout)
    image.write_bytes(b"after.")
    for known in (record, old):
        assert not manifest.is_current(known, case, tmp_path, layout)
    label.write_bytes(b"longer than it was")
    for known in (record, old):
        assert not manifest.is_current(known, case, tmp_path, layout)


@pytest.mark.parametrize("task", ["lgg", "em", "kits19"])
@pytest.mark.parametrize("content", ["[]", "5", '{"patients": "x", "cases": "x", "labels": []}', "{", "\0"])
def test_a_damaged_record_of_a_made_set(cli: Callable[..., tuple[int, str, str]], task: str, content: str) -> None:
    Path("set").mkdir()
    Path("set/phantom.json").write_text(content)
    words = ("--data", "./set", "--patients", 2) if task != "em" else ("--data", "./set", "--slices", 6)
    assert "phantom.json" in error_of(cli("synthesize", "--task", task, *words, "--overwrite"))


def test_a_record_of_a_made_set_names_nothing_outside(cli: Callable[..., tuple[int, str, str]]) -> None:
    for folder in ("victim", "set"):
        Path(folder).mkdir()
    Path("victim/imaging.nii.gz").write_text("precious")
    record = {"made": True, "labels": {"../victim": "0"}, "seed": 1, "version": 1}
    Path("set/phantom.json").write_text(json.dumps(record))
    words = ("--task", "kits19", "--data", "./set", "--patients", 2, "--overwrite")
    assert "not the name" in error_of(cli("synthesize", *words))
    assert Path("victim/imaging.nii.gz").read_text() == "precious"


def test_a_stack_of_somebody_is_not_made_over(cli: Callable[..., tuple[int, str, str]]) -> None:
    Path("cells").mkdir()
    Path("cells/train-volume.tif").write_text("precious")
    words = ("synthesize", "--task", "em", "--data", "./cells", "--slices", 6, "--side", 64, "--overwrite")
    assert "was not made here" in error_of(cli(*words))
    assert Path("cells/train-volume.tif").read_text() == "precious"
    Path("cells/train-volume.tif").unlink()
    assert cli(*words)[0] == 0
    assert cli(*words)[0] == 0
