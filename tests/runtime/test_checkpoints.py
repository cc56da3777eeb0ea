"""Weights and states as files: their form, what is believed of them, what is refused, and the state before."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from builders import make_config
from conftest import ROOT, error_of, read_json, stored

from unet.commands import run_callbacks
from unet.config.flags import DeviceOptions
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
from unet.errors import CheckpointError, DamagedError, UnetError
from unet.runtime import trainer
from unet.runtime.checkpoints import checkpoint, history, nested, tensor_files
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.runtime.progress import Progress
from unet.weight_files import pickles, safetensors_header

EARLIER = ROOT / "tests" / "files" / "earlier"
FLAT = ROOT / "tests" / "files" / "flat-settings"
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(7)}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


def write(path: Path, **facts: Any) -> Path:
    checkpoint.save_weights(path, {"task": "lgg", "settings": {"image_size": 16}, **facts}, STATE)
    return path


def with_header(path: Path, change: Any) -> None:
    """Write a safetensors file anew with its header changed, and its digest made to fit."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    change(header)
    about = header.pop("__metadata__", None)
    if about:
        about["digest"] = safetensors_header.content_digest(about["facts"], header, [content[8 + length :]])
        header = {"__metadata__": about, **header}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_everything_nested_comes_back_as_it_was(tmp_path: Path) -> None:
    tensors = [torch.ones(2, dtype=kind) for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int64)]
    value = {
        "a": {0: torch.zeros(()), 1: {"x/y": torch.empty(0, 3)}},
        "x": [1, 2.5, 0.1, 2**70, None, True, "text", (1, (2,)), [], {}],
        "odd": [float("inf"), float("-inf"), float("nan")],
        "t": [*tensors, torch.tensor([True, False]), torch.tensor([1, 2], dtype=torch.uint8)],
        "order": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "a/0": torch.ones(1),
    }
    found: dict[str, torch.Tensor] = {}
    tree = nested.flatten(value, found)
    tensor_files.write(tmp_path / "x", {"format": "x", "content": tree}, found)
    facts, read = tensor_files.read(tmp_path / "x")
    assert same(nested.unflatten(facts["content"], read), value)
    with pytest.raises(TypeError):
        nested.flatten({"a": {1, 2}}, {})


def test_a_history_of_any_length_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not in the header, which `write` and `read` take up to the same length."""
    monkeypatch.setattr(safetensors_header, "MAX_HEADER", 2000)
    rows = [{"epoch": number, "loss": number / 3, "score": float("nan")} for number in range(1, 41)]
    packer, path = history.Packer(), tmp_path / "state"
    for count in (0, 40, 3):
        progress = {"history": packer.pack(rows[:count])}
        checkpoint.save_state(path, {"task": "lgg"}, {"model": STATE, "progress": progress})
        assert same(stored(path)["progress"], {"history": rows[:count]})
    before = path.read_bytes()
    with pytest.raises(UnetError, match="was not written"):
        write(path, training=["case"] * 1000)
    assert path.read_bytes() == before and not list(tmp_path.glob(".*"))


def test_each_row_of_a_history_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, packer = [{"epoch": 1}, {"epoch": 2}], history.Packer()
    assert history.unpack(packer.pack(rows)) == rows
    rows.append({"epoch": 3})
    seen, dumps = [], json.dumps
    monkeypatch.setattr(json, "dumps", lambda row: seen.append(row) or dumps(row))
    assert history.unpack(packer.pack(rows)) == rows and seen == rows[2:]


def test_other_programs_read_our_weights_and_we_read_theirs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    assert same(dict(sorted(safetensors.torch.load_file(path).items())), dict(sorted(STATE.items())))
    safetensors.torch.save_file(STATE, tmp_path / "theirs.bin")
    assert same(dict(sorted(checkpoint.read(tmp_path / "theirs.bin").items())), dict(sorted(STATE.items())))
    assert safetensors_header.read(path).facts["task"] == "lgg"


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors")
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            content = checkpoint.read(path)
        except (UnetError, CheckpointError):
            continue
        assert whole[place : place + 1] == b" ", f"byte {place}: {content}"  # padding of the header


def test_every_rank_draws_dropout_of_its_own_and_the_same_again_on_resuming() -> None:
    context = types.SimpleNamespace(config=make_config(seed=5), power=None)

    def drawn(rank: int, steps: range) -> list[float]:
        context.group = types.SimpleNamespace(rank=rank, world=3, is_main=False)
        callbacks = run_callbacks.build(context, None, {}, "")  # type: ignore[arg-type]
        run = types.SimpleNamespace(
            device=CPU(DeviceOptions(device="cpu"), Rank()),
            group=context.group,
            progress=Progress(step=steps.start),
            callbacks=callbacks,
        )
        trainer.Trainer.emit(run, "on_epoch_start")  # type: ignore[arg-type]
        found = []
        for step in steps:
            found.append(torch.rand(1).item())
            run.progress.step = step + 1
            trainer.Trainer.emit(run, "on_step_end")  # type: ignore[arg-type]
        return found

    whole = drawn(1, range(4)), drawn(2, range(4))
    assert len({*whole[0], *whole[1]}) == 8
    torch.manual_seed(1)  # what a restored state may leave behind
    assert drawn(1, range(2, 4)) == whole[0][2:]


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1, -8])
def test_a_file_cut_short(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError):
        checkpoint.read(path)


def test_a_header_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for size in (2**63, 2**40, 99_000_000):
        path.write_bytes(struct.pack("<Q", size) + b"{}" + b" " * 50)
        with pytest.raises(DamagedError, match=r"header of|not a file of weights"):
            checkpoint.read(path)
    write(path)

    def grow(header: dict[str, Any]) -> None:
        header["a.weight"] |= {"shape": [2**40, 2**20], "data_offsets": [8, 8 + 2**62]}

    with_header(path, grow)
    with pytest.raises(DamagedError, match="bytes, and 32 are there"):
        checkpoint.read(path)
    for wrong in (b"\0" * 500, b"[" * 5000, b"hello"):
        path.write_bytes(wrong)
        with pytest.raises(DamagedError):
            checkpoint.read(path)
    path.write_bytes(struct.pack("<Q", 50_000) + b'{"a":' + b"[" * 49_995)
    with pytest.raises(DamagedError):
        checkpoint.read(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: facts | {"task": "os"}, "belongs to task 'os'"),
        (lambda facts: facts | {"task": 5}, "task is 5"),
        (lambda facts: facts | {"format": "unet weights 9"}, "later version"),
        (lambda facts: facts | {"settings": {"image_size": -4}}, "image-size is at least 4, not -4"),
        (lambda facts: facts | {"settings": {"image_size": [1, 2]}}, "image-size"),
        (lambda facts: facts | {"settings": []}, "settings"),
        (lambda facts: facts | {"validation": "abc"}, "validation"),
        (lambda facts: [facts], "list of facts"),
    ],
)
def test_facts_are_checked_before_they_are_used(cli, change: Any, words: str) -> None:
    path = write(Path("w.safetensors"))

    def alter(header: dict[str, Any]) -> None:
        header["__metadata__"]["facts"] = json.dumps(change(json.loads(header["__metadata__"]["facts"])))

    with_header(path, alter)
    for command in ("evaluate", "predict"):
        result = cli(command, "--weights", "./w.safetensors", "--device", "cpu")
        assert words in error_of(result, result[0] if result[0] in (1, 2) else 1)


def test_weights_that_are_not_finite_are_refused_with_their_name(tiny, cli) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    content = stored("weights/a.safetensors")
    state = {name: value.clone() for name, value in content["model"].items()}
    state["bottleneck.0.weight"][0, 0, 0, 0] = float("inf")
    facts = {name: value for name, value in content.items() if name not in ("model", "format")}
    checkpoint.save_weights(Path("weights/bad.safetensors"), facts, state)
    torch.save(state, "weights/foreign.pt")
    for name in ("bad.safetensors", "foreign.pt"):
        words = ("--weights", name, "--device", "cpu", "--image-size", 16, "--layers", 2, "--width", 4)
        error = error_of(cli("predict", *words, tmp_image()))
        assert "bottleneck.0.weight: 1 of" in error
        assert "not finite" in error_of(cli("evaluate", *words, "--cache", "cache_16", "--run-name", "e"))
        assert "not finite" in error_of(tiny("--load", name, "--run-name", "b"))
    saved = stored("weights/a.state.safetensors")
    saved["model"]["head.bias"][:] = float("nan")
    facts = {name: saved[name] for name in (*facts, "ranks") if name in saved}
    parts = {name: saved[name] for name in checkpoint.STATE_PARTS if not name.endswith("?")}
    checkpoint.save_state(Path("weights/a.state.safetensors"), facts, parts)
    assert "head.bias" in error_of(cli("train", "--resume", "--run-name", "a", "--epochs", 2))


def tmp_image() -> Path:
    import numpy as np
    from PIL import Image

    path = Path("set/TCGA_AA_0001_20000101/TCGA_AA_0001_20000101_1.tif")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(path)
    return path


@pytest.mark.parametrize(
    "how",
    ["missing", "a bit", *(pytest.param(how, marks=pytest.mark.slow) for how in ("truncated", "zeroed", "empty"))],
)
def test_the_state_before_goes_on(tiny, cli, how: str) -> None:
    assert tiny("--run-name", "whole", "--epochs", 3, "--deterministic")[0] == 0
    assert tiny("--run-name", "a", "--epochs", 2, "--deterministic")[0] == 0
    latest = Path("weights/a.state.safetensors")
    content = bytearray(latest.read_bytes())
    if how == "missing":
        latest.unlink()
    else:
        content[-5] ^= 1
        latest.write_bytes(
            {
                "truncated": bytes(content[:-1000]),
                "zeroed": bytes(len(content)),
                "empty": b"",
                "a bit": bytes(content),
            }[how]
        )
    code, _, err = cli("train", "--resume", "--run-name", "a", "--epochs", 3)
    assert code == 0, err
    assert "a.state-before.safetensors: epoch 2, batch 0" in err
    assert ("is missing" if how == "missing" else "set aside") in err
    assert Path("weights/a.state.safetensors.damaged-1").exists() == (how != "missing")
    for name in ("", ".state"):
        a, b = (stored(f"weights/{run}{name}.safetensors") for run in ("a", "whole"))
        assert same(a["model"], b["model"])
        assert a.get("score") == b.get("score") and a.get("epoch") == b.get("epoch")


@pytest.mark.slow
def test_no_state_is_whole(tiny, cli) -> None:
    tiny("--run-name", "a", "--epochs", 2)
    for name in ("state", "state-before"):
        Path(f"weights/a.{name}.safetensors").write_bytes(b"")
    error = error_of(cli("train", "--resume", "--run-name", "a", "--epochs", 3))
    assert "empty (0 bytes)" in error and "no earlier intact state" in error
    assert Path("weights/a.state.safetensors").exists(), "nothing is set aside where nothing goes on"


def test_the_best_weights_follow_the_state(tiny, cli) -> None:
    """Killed between state and weights, or gone back to a state before them: the file of the best weights is that of
    the best epoch."""
    assert tiny("--run-name", "a", "--epochs", 3, "--deterministic", "--lr", 1e-2)[0] == 0
    best, progress = stored("weights/a.safetensors"), stored("weights/a.state.safetensors")["progress"]
    assert best["epoch"] == progress["best_epoch"]
    if progress["best_epoch"] == 3:
        Path("weights/a.safetensors").unlink()
        code, _, err = cli("train", "--resume", "--run-name", "a", "--epochs", 3)
        assert code == 0, err
        again = stored("weights/a.safetensors")
        assert same(again["model"], best["model"]) and again["score"] == best["score"]
    kept = CheckpointPaths(Path("weights/a.safetensors"))
    shutil.copy(kept.weights, kept.weights_before)
    later = {name: value for name, value in best.items() if name not in ("model", "format")} | {
        "epoch": 9,
        "score": 0.9,
    }
    checkpoint.save_weights(kept.weights, later, best["model"])
    code, _, err = cli("train", "--resume", "--run-name", "a", "--epochs", 3)
    assert code == 0, err
    assert stored("weights/a.safetensors")["epoch"] == progress["best_epoch"]
    assert Path("weights/a.safetensors.later-1").exists()


def test_a_state_of_another_run_is_refused(tiny, cli) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    tiny("--run-name", "b", "--epochs", 1, "--seed", 7)
    shutil.copy("weights/b.state.safetensors", "weights/a.state.safetensors")
    error = error_of(cli("train", "--resume", "--run-name", "a", "--epochs", 2))
    assert "a state of 'b'" in error and "the run that goes on is 'a'" in error and "--load" in error


def test_a_run_is_copied_with_its_weights_and_goes_on(tiny, cli, workplace: Path, monkeypatch) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    before = Path("weights/a.state.safetensors").read_bytes()
    other = workplace / "other" / "place"
    for name in ("weights", "performance", "data"):
        shutil.copytree(name, other / name)
    monkeypatch.chdir(other)
    code, _, err = cli("train", "--resume", "--run-name", "a", "--epochs", 2)
    assert code == 0, err
    assert f"resumed from {other / 'weights/a.state.safetensors'}" in err
    assert (workplace / "weights/a.state.safetensors").read_bytes() == before


def test_a_case_in_training_and_validation(tiny, cli) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    split = json.loads(Path("performance/a/splits.json").read_text())
    split["validation"].append(split["train"][0])
    Path("both.json").write_text(json.dumps(split))
    assert split["train"][0] in error_of(tiny("--run-name", "b", "--split", "both.json", "--epochs", 1))
    Path("performance/a/splits.json").write_text(json.dumps(split))
    assert split["train"][0] in error_of(cli("train", "--resume", "--run-name", "a", "--epochs", 2))


def test_a_typed_suffix_gives_way_and_finds_the_file(tiny, cli) -> None:
    code, _, err = tiny("--run-name", "a", "--weights-file", "x.pt", "--epochs", 1)
    assert code == 0 and err.count("Weights are written as safetensors") == 1
    assert Path("weights/x.safetensors").exists() and not Path("weights/x.pt").exists()
    for name in ("x.pt", "x.pth", "x", "x.safetensors"):
        words = ("--weights", name, "--cache", "cache_16", "--device", "cpu", "--dry-run")
        assert cli("evaluate", *words)[0] == 0
    Path("weights/x.safetensors").rename("weights/y.pt")  # the content decides
    assert cli("evaluate", "--weights", "y.pt", "--cache", "cache_16", "--device", "cpu", "--dry-run")[0] == 0
    error = error_of(cli("evaluate", "--device", "cpu"), 2)
    assert "--weights FILE" in error


def test_files_of_the_version_before_are_read_and_resumed(cli, phantoms: Path) -> None:
    """`files/earlier` was written by the version that kept torch files: 2 epochs on the phantoms, at 16 px."""
    for name in ("weights", "performance"):
        shutil.copytree(EARLIER / name, name)
    shutil.copytree(phantoms, "data/kaggle_3m")
    words = ("--weights", "earlier.pt", "--device", "cpu")
    code, out, err = cli("evaluate", *words, "--cache", "cache_16", "--run-name", "e")
    assert code == 0, err
    assert "TCGA_PH_0006" in out
    code, _, err = cli("train", "--resume", "--run-name", "earlier", "--epochs", 3)
    assert code == 0, err
    assert "earlier.state.pt: epoch 3, batch 0, step 16; best DSC 0.0655 (epoch 1)" in err
    before, now = stored("weights/earlier.pt"), stored("weights/earlier.safetensors")
    assert now["epoch"] > 2 or (same(before["model"], now["model"]) and now["score"] == before["score"])
    assert stored("weights/earlier.state.safetensors")["progress"]["step"] == 24
    assert EARLIER.joinpath("weights/earlier.state.pt").read_bytes() == Path("weights/earlier.state.pt").read_bytes()


def test_files_of_the_version_with_flat_settings_are_read_and_resumed(cli, phantoms: Path) -> None:
    """`files/flat-settings` was written by the version whose config.json had no groups and the settings of every task:
    2 epochs on the phantoms at 16 px, their cache, and the masks of one patient. The others may differ from those of
    then by a grey value, so the cache is used alone."""
    for path in FLAT.iterdir():
        shutil.copytree(path, path.name, dirs_exist_ok=True)
    given = "raw/TCGA_PH_0001_20000101"
    shutil.copytree(phantoms / Path(given).name, given)
    code, _, err = cli("train", "--config", "performance/flat/config.json", "--run-name", "again", "--dry-run")
    assert code == 0 and "Building" not in err, err
    before = {path.name: path.stat().st_mtime_ns for path in Path("masks").rglob("*.tif")}
    code, _, err = cli("predict", "--weights", "flat.safetensors", given, "--device", "cpu", "--output", "masks")
    assert code == 0 and f"0 masks written, {len(before)} were there already" in err, err
    assert before == {path.name: path.stat().st_mtime_ns for path in Path("masks").rglob("*.tif")}
    code, _, err = cli("train", "--resume", "--run-name", "flat", "--epochs", 3)
    assert code == 0, err
    assert "flat.state.safetensors: epoch 3, batch 0, step" in err
    assert read_json(Path("performance/flat/config.json"))["settings"]["task"]["image_size"]["value"] == 16


# -- torch files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_the_opcodes_of_plain_checkpoints_pass(tmp_path: Path, zipped: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.rand(2, 1, 5, 5)).sum().backward()
    optimizer.step()
    content = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "big": 2**40}
    content |= {"parameter": torch.nn.Parameter(torch.ones(2)), "view": torch.rand(4, 4)[1:, ::2]}
    path = tmp_path / "a.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    tree = pickles.structure(path)
    assert tree["state_dict"]["0.weight"].shape == (2, 1, 3, 3) and tree["big"] == 2**40
    assert same(
        dict(checkpoint._torch_file(path, safetensors_header.kind(path), "2.4.0")["state_dict"]), content["state_dict"]
    )


class Attack:
    def __reduce__(self) -> Any:
        return (Path("owned").write_text, ("x",))


def test_what_is_not_on_the_list_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    import collections

    class Twisted:
        """SETITEMS on something that is no dict."""

        def __reduce__(self) -> Any:
            return (collections.OrderedDict, (), None, None, iter([(1, 2)]))

    for name, content in (
        ("attack", {"model": Attack()}),
        ("numpy", {"score": np.zeros(2)}),
        ("text", {"name": np.str_("a")}),
        ("set", {"a": {1, 2}}),
        ("default", collections.defaultdict(int, a=1)),
    ):
        for zipped in (True, False):
            torch.save(content, f"{name}.pt", _use_new_zipfile_serialization=zipped)
            with pytest.raises(pickles.UnsafePickle):
                pickles.structure(Path(f"{name}.pt"))
            with pytest.raises(CheckpointError) as error:
                checkpoint._torch_file(Path(f"{name}.pt"), safetensors_header.kind(Path(f"{name}.pt")), "2.4.0")
            assert "safetensors" in error.value.hint and "2.10" in error.value.hint
    Path("raw.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(pickles.UnsafePickle):
        pickles.structure(Path("raw.pt"))
    torch.jit.script(torch.nn.Linear(1, 1)).save("script.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        checkpoint.read(Path("script.pt"))
    assert not Path("owned").exists()


def crafted(numel: int, offset: int, shape: tuple[int, ...]) -> bytes:
    """A checkpoint of one tensor in torch's first form, with the sizes as given and 4 elements of data."""

    mark = object()

    class Made(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel, None) if value is mark else None

    class Tensor:
        def __reduce__(self) -> Any:
            from collections import OrderedDict

            return torch._utils._rebuild_tensor_v2, (mark, offset, shape, (1,), False, OrderedDict())

    import io

    stream = io.BytesIO()
    for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(value, stream, 2)
    Made(stream, 2).dump({"a": Tensor()})
    pickle.dump(["0"], stream, 2)
    stream.write(struct.pack("<Q", 4) + bytes(16))
    return stream.getvalue()


@pytest.mark.parametrize(("numel", "offset", "shape"), [(2**40, 0, (4,)), (4, 1, (4,)), (4, 0, (5,)), (4, -1, (2,))])
def test_tensors_outside_their_storage_are_refused(tmp_path: Path, numel: int, offset: int, shape: Any) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(crafted(4, 0, (4,)))
    assert pickles.structure(path)["a"].shape == (4,)
    path.write_bytes(crafted(numel, offset, shape))
    with pytest.raises(pickles.UnsafePickle):
        pickles.structure(path)


@pytest.mark.parametrize(
    ("version", "safe"),
    [("2.4.1", False), ("2.9.1+cpu", False), ("2.10.0", True), ("2.10.0a0+b558c98", False), ("2.13.0+cpu", True)],
)
def test_which_torch_is_safe(version: str, safe: bool) -> None:
    assert checkpoint.is_safe(version) is safe


@pytest.mark.parametrize(
    "content", [{0: torch.ones(1)}, {"model": {0: torch.ones(1)}}, {"state_dict": {"a": 5}}, {}, {"model": {}}]
)
def test_strange_state_dicts(cli, content: Any) -> None:
    torch.save(content, "x.pt")
    assert "named tensors belong" in error_of(cli("evaluate", "--weights", "./x.pt", "--device", "cpu"))


def test_lightning_s_prefix() -> None:
    from unet.models.convert import strip_prefixes

    assert list(strip_prefixes({"model.module.head.weight": 1, "net.head.bias": 2})) == ["head.weight", "head.bias"]


CHANGES = [
    lambda state: state.pop("rng"),
    lambda state: state.update(rng=5),
    lambda state: state.update(rng={"python": [], "numpy": [], "torch": torch.ones(1), "device": None}),
    lambda state: state.update(optimizer={"state": {}, "param_groups": []}),
    lambda state: state.update(optimizer=[]),
    lambda state: state["progress"].update(epoch="three"),
    lambda state: state["progress"].update(history=[5]),
    lambda state: state["progress"].pop("step"),
    lambda state: state.update(model={0: torch.ones(1)}),
]


def test_states_with_parts_missing_or_of_other_types(tiny, cli) -> None:
    tiny("--run-name", "a", "--epochs", 1)
    path = Path("weights/a.state.safetensors")
    whole = path.read_bytes()
    for change in CHANGES:
        state = stored(path)
        facts = {name: value for name, value in state.items() if name not in (*checkpoint.STATE_PARTS, "format")}
        parts = {name: state[name] for name in checkpoint.STATE_PARTS if not name.endswith("?")}
        change(parts)
        checkpoint.save_state(path, facts, parts)
        error_of(cli("train", "--resume", "--run-name", "a", "--epochs", 2))
        path.write_bytes(whole)


def test_weights_choose_no_places(tiny, cli) -> None:
    assert tiny("--run-name", "a", "--epochs", 1)[0] == 0
    content = stored("weights/a.safetensors")
    facts = {name: value for name, value in content.items() if name not in ("model", "format")}
    facts["settings"] |= {"synth_data": True, "data": "else/where", "cache": "else/cache", "out": "else", "width": 9}
    checkpoint.save_weights(Path("weights/m.safetensors"), facts, content["model"])
    for command in ("evaluate", "predict"):
        assert cli(command, "--weights", "m.safetensors", "--device", "cpu")[0] != 0
        assert not Path("else").exists()
    assert cli("evaluate", "--weights", "m.safetensors", "--device", "cpu", "--cache", "cache_16")[0] == 0


def test_no_room_while_saving_is_told_in_two_lines(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "a.safetensors"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UnetError) as error:
            checkpoint.save_weights(path, {}, {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "no room" in error.value.message and not list(tmp_path.iterdir())


def test_the_content_before_keeps_a_name_at_every_moment(tmp_path: Path) -> None:
    path, before = tmp_path / "a", tmp_path / "b"
    for number in range(4):
        checkpoint.save_weights(path, {"step": number}, {"a": torch.full((2,), float(number))}, before)
    assert stored(path)["step"] == 3 and stored(before)["step"] == 2
    assert {item.name for item in tmp_path.iterdir()} == {"a", "b"}
