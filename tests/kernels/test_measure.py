"""Algorithms of convolutions are chosen by measuring: what is wrong or slow is out, and the choice is remembered."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, program, read_json, stored
from torch import Tensor, nn

from unet import files, host
from unet.config.flags import DeviceOptions
from unet.devices import cpu, kernel_choices
from unet.devices.launchers import Rank
from unet.errors import UnetError
from unet.kernels import algorithms, measure
from unet.kernels.algorithms import PASSES, TABLE
from unet.kernels.geometry import Geometry

BOX = (3, 3, 3)
USUAL = Geometry((1, 8, 16, 16, 16), 8, BOX, (1, 1, 1), (1, 1, 1), torch.float32)
LOW = USUAL._replace(dtype=torch.bfloat16)
SMALL = Geometry((1, 16, 2, 2, 2), 16, BOX, (1, 1, 1), (1, 1, 1), torch.bfloat16)
pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own folder in which nothing is remembered, and notices that have not been shown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    host.notice_once.cache_clear()
    return tmp_path / "home" / "unet"


def device(**settings: object) -> cpu.CPU:
    return cpu.CPU(DeviceOptions(device="cpu", **settings), Rank())  # type: ignore[arg-type]


def put(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the results of an algorithm."""
    real = TABLE[name]
    changed = algorithms.Algorithm(
        real.applies,
        lambda *how: change(real.forward(*how)),
        lambda *how: change(real.input_gradient(*how)),
        lambda *how: change(real.weight_gradient(*how)),
    )
    monkeypatch.setitem(TABLE, name, changed)


def late(result: Tensor) -> Tensor:
    end = time.thread_time() + 0.02  # work, not sleep: the time of one thread counts where there is only one
    while time.thread_time() < end:
        pass
    return result


@pytest.mark.parametrize("slow", ["torch", "winograd"])
@pytest.mark.parametrize("how", [USUAL, LOW], ids=["float32", "bfloat16"])
def test_the_slow_algorithm_is_not_chosen(how: Geometry, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, slow, late)
    found = measure.chosen(how, PASSES)
    assert all(record["algorithm"] != slow and not record["wrong"] for record in found.values())
    assert list(found) == list(PASSES)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"torch": 1.0, "matrix": 0.97}, "torch"),
        ({"torch": 1.0, "matrix": 0.9, "winograd": 0.8}, "winograd"),
        ({"matrix": 1.0, "fp32": 0.99}, "fp32"),
        ({"torch": 1.0}, "torch"),
    ],
)
def test_torch_s_own_is_left_only_for_what_is_faster_by_a_margin(times: dict[str, float], expected: str) -> None:
    assert measure.fastest(times) == expected


@pytest.mark.parametrize("change", [lambda y: y * 1.1, lambda y: y * float("nan"), lambda y: y[:, :4]])
@pytest.mark.parametrize("how", [USUAL, LOW], ids=["float32", "bfloat16"])
def test_a_wrong_algorithm_is_not_chosen(
    how: Geometry, change: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(monkeypatch, "winograd", change)
    put(monkeypatch, "torch", late)  # all others are faster
    found = measure.chosen(how, PASSES)
    assert all(record["wrong"] == ["winograd"] for record in found.values())
    assert all("winograd" not in record["seconds"] for record in found.values())


def test_where_all_are_wrong_it_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torch", "winograd", "matrix", "channels_first"):
        put(monkeypatch, name, lambda y: y * 1.1)
    found = measure.chosen(LOW, PASSES)
    assert [record["algorithm"] for record in found.values()] == ["fp32"] * 3


def test_torch_s_gradient_of_few_voxels_is_not_trusted() -> None:
    """In bfloat16 it may be memory that nobody has written, which a trial finds by chance."""
    assert "torch" not in algorithms.candidates(SMALL, "weight gradient")
    assert "torch" in algorithms.candidates(SMALL, "forward")
    assert "torch" in algorithms.candidates(SMALL._replace(dtype=torch.float32), "weight gradient")


def test_a_layer_of_few_voxels_has_a_gradient() -> None:
    torch.manual_seed(0)
    place = device(precision="bf16")
    network = place.place(nn.Sequential(nn.Conv3d(64, 64, 3, padding=1, bias=False)))
    weight: Any = next(network.parameters())
    for _ in range(12):
        x = place.to({"image": torch.randn(1, 64, 2, 2, 2)})["image"]
        dirt = [torch.full((weight.numel(),), 1e32, dtype=kind) for kind in (torch.bfloat16, torch.float32) * 2]
        del dirt
        with place.autocast():
            y = network(x)
        weight.grad = None
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16
        assert weight.grad.abs().max() < 1e3


def test_an_algorithm_by_name() -> None:
    """It is not timed, and torch's own stands in where it does not compute a pass."""
    found = measure.chosen(LOW, PASSES, "winograd")
    assert {record["algorithm"] for record in found.values()} == {"winograd"}
    assert not any(record["seconds"] for record in found.values())
    strided = LOW._replace(stride=(2, 2, 2))
    assert {record["algorithm"] for record in measure.chosen(strided, PASSES, "winograd").values()} == {"torch"}
    network = device(kernels="winograd").place(nn.Sequential(nn.Conv3d(8, 8, 3, padding=1)))
    network(torch.randn(1, 8, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)).sum().backward()
    assert set(network[0].choices.used.values()) == {"winograd"}  # type: ignore[index, union-attr]


@pytest.mark.parametrize("settings", [{"kernels": "plain"}, {"layout": "NCDHW"}, {"compile": "on"}])
def test_nothing_is_chosen_without_a_choice(settings: dict[str, str]) -> None:
    place = device(**settings)
    assert place.choices is None
    layer = place.place(nn.Sequential(nn.Conv3d(8, 8, 3)))[0]  # type: ignore[index]
    assert not hasattr(layer, "choices")
    assert (type(layer) is nn.Conv3d) is (settings == {"kernels": "plain"})


def step(place: cpu.CPU) -> dict[str, str]:
    """What a step of a small layer has chosen."""
    network = place.place(nn.Sequential(nn.Conv3d(8, 8, 3, padding=1)))
    network(place.to({"image": torch.randn(1, 8, 8, 8, 8)})["image"].requires_grad_()).sum().backward()
    return dict(place.choices.used)


def test_what_is_measured_is_remembered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = step(device())
    assert [key.split(" 8 -> 8")[0] for key in first] == list(PASSES)
    noted = json.loads((home / "kernels.json").read_text())
    assert {key.split(": ")[1]: record["algorithm"] for key, record in noted.items()} == first
    assert all(cpu.processor() in key and torch.__version__ in key and " thread" in key for key in noted)
    asked: list[Any] = []
    real = measure.chosen
    monkeypatch.setattr(measure, "chosen", lambda *how: asked.append(how) or real(*how))
    assert step(device()) == first and not asked
    monkeypatch.setattr(measure, "VERSION", 99)
    step(device())
    assert len(asked) == 1  # other algorithms
    (home / "kernels.json").write_text("{ cut sh")
    step(device())
    step(device())
    assert len(asked) == 2  # damaged: begun anew
    (home.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home.parent / "file"))
    step(device())
    step(device())
    assert len(asked) == 4  # it cannot be written


def test_measuring_ends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time, what is met is torch's own, and not noted: a later run measures it."""
    monkeypatch.setattr(kernel_choices, "LONGEST", 0.0)
    assert set(step(device()).values()) == {"torch"}
    assert not (home / "kernels.json").exists()


def test_a_wrong_convolution_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(monkeypatch, "torch", lambda y: y * 1.1)
    place = device(precision="bf16")
    network = place.place(nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.Conv3d(8, 8, 3, padding=1)))
    with place.autocast():
        network(place.to({"image": torch.randn(1, 8, 8, 8, 8)})["image"]).sum().backward()
    assert "torch" not in place.choices.used.values()
    assert capsys.readouterr().err.count("wrong on this processor") == 1
    kept = kernel_choices.own_file()
    assert kept is not None
    records = {key: record for key, record in kernel_choices.read(kept).items() if record["wrong"]}
    for count, words in ((2, "2 of them are wrong"), (1, "1 of them is wrong")):
        files.write_json(kept, dict(list(records.items())[:count]))
        assert any(words in line for line in kernel_choices.measured_before(cpu.machine()))


def test_a_run_that_goes_on_takes_its_own_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = device()
    chosen = step(place)
    changed = dict.fromkeys(chosen, "matrix")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(place.choices.described() | {"choices": changed}))
    other = device()
    other.choices.recall(path)
    assert step(other) == changed
    path.write_text(json.dumps(place.choices.described() | {"choices": changed, "machine": "a 6502"}))
    other = device()
    other.choices.recall(path)
    assert step(other) == chosen
    assert "a 6502" in capsys.readouterr().err
    path.write_text('{"choices": 3}')
    with pytest.raises(UnetError, match=r"run\.json"):
        other.choices.recall(path)
    other.choices.recall(tmp_path / "none.json")


RUN = ("--task", "kits19", "--data", "./scans", "--cache", "cache", "--patch", 16, "--eval-patch", 16, "--pad-to", 16)
SIZE = ("--layers", 2, "--width", 8, "--batch-size", 1, "--epochs", 2, "--precision", "bf16")
ONCE = ("--seed", 1, "--deterministic", "--threads", 1, "--workers", 0, "--device", "cpu")


def test_a_run_keeps_its_choices_and_a_resumed_one_takes_them(
    cli: Callable[..., tuple[int, str, str]], here: None, home: Path
) -> None:
    """Also where the user's own folder says otherwise by now. `diff` names the difference, `doctor` the file."""
    made = ("synthesize", "--task", "kits19", "--data", "./scans", "--patients", 3, "--slices", 24, "--side", 32)
    assert cli(*made)[0] == 0
    for name, more in (("whole", ()), ("half", ("--max-steps", 2))):
        code, _, err = cli("train", *RUN, *SIZE, *ONCE, "--run-name", name, *more)
        assert code == 0, err
        assert "kernels measured: " in err
    content = json.loads(Path("performance/whole/kernels.json").read_text())
    assert content["kernels"] == "measured" and torch.__version__ in content["machine"]
    assert {key.split(" 1 -> 8")[0] for key in content["choices"] if " 1 -> 8" in key} == {PASSES[0], PASSES[2]}
    noted = json.loads((home / "kernels.json").read_text())
    swapped = {"torch": "fp32"}
    other = {key: item | {"algorithm": swapped.get(item["algorithm"], "torch")} for key, item in noted.items()}
    changed = sum(record["algorithm"] == "fp32" for record in other.values())
    (home / "kernels.json").write_text(json.dumps(other))
    code, _, err = cli("train", "--resume", "--run-name", "half", "--max-steps", 100)
    assert code == 0, err
    one, two = (stored(f"weights/{name}.state.safetensors")["model"] for name in ("whole", "half"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert json.loads(Path("performance/half/kernels.json").read_text()) == content
    assert cli("train", *RUN, *SIZE, *ONCE, "--run-name", "else")[0] == 0
    code, out, _ = cli("diff", "whole", "else")
    assert code == 0 and f"kernels.json ({len(content['choices'])} of {len(content['choices'])} passes)" in out
    code, out, _ = cli("doctor", "--device", "cpu")
    assert code == 0 and "passes of 3D convolutions measured here: " in out and f"fp32 {changed}" in out


def test_what_was_chosen_before_stays_in_the_file_of_a_run(tmp_path: Path) -> None:
    """A run that is stopped twice: the second part has not met what the first part scored."""
    place = device()
    chosen = step(place)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(place.choices.described() | {"choices": {**chosen, "forward of scoring": "matrix"}}))
    second = device()
    second.choices.recall(path)
    step(second)
    assert second.choices.described()["choices"]["forward of scoring"] == "matrix"


def test_each_rank_of_a_run_takes_its_own_choices(tmp_path: Path) -> None:
    first = device().choices
    first.used = {"a": "torch", "b": "torch"}
    here = first.machine()
    other, alike, elsewhere = {"a": "matrix"}, {"a": "torch"}, {"a": "fp32"}
    first.others = {"1": {"machine": here, "choices": other}, "2": {"machine": here, "choices": alike}}
    first.others["3"] = {"machine": "a 6502", "choices": elsewhere}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(first.described()))
    assert sorted(first.described()["ranks"]) == ["1", "3"]  # the second has chosen as the first
    for rank, expected in ((0, first.used), (1, other), (2, first.used), (3, {}), (4, first.used)):
        again = device().choices
        again.recall(path, rank)
        assert again.given == expected, rank
    again = device().choices
    again.recall(path)
    again.used = {"a": "torch"}
    assert again.described() == first.described()  # until the others tell theirs


BY_RANK = """
from unet.devices.cpu import CPU
from unet.kernels import measure

class ByRank(CPU):
    def __init__(self, options, rank, *rest):
        super().__init__(options, rank, *rest)
        slow = rank.rank == 0  # whether a product of matrices is
        measure.timed = lambda how, part, names, numbers: {each: float((each == "matrix") == slow) for each in names}
"""


@pytest.mark.slow
def test_a_rank_that_chose_otherwise_does_so_after_resuming(tmp_path: Path) -> None:
    """Where the user's own folder cannot be written each process measures for itself."""
    (tmp_path / "by_rank.py").write_text(BY_RANK)
    (tmp_path / "file").touch()
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "XDG_CACHE_HOME": str(tmp_path / "file")}

    def run(*words: object) -> None:
        done = program(*words, cwd=tmp_path, env=env)
        assert done.returncode == 0, done.stderr

    run("synthesize", "--task", "kits19", "--data", "./scans", "--patients", 4, "--slices", 24, "--side", 32)
    same = ("--devices", 2, "--device-module", "by_rank:ByRank")
    how = ("train", *RUN, *SIZE, *ONCE[:-2], *same, "--eval-every", 2)
    run(*how, "--run-name", "whole")
    run(*how, "--run-name", "half", "--max-steps", 1)
    content = read_json(tmp_path / "performance" / "half" / "kernels.json")
    assert list(content["ranks"]) == ["1"] and content["ranks"]["1"]["choices"] != content["choices"]
    run("train", "--resume", "--run-name", "half", "--max-steps", 100, *same)
    one, two = (stored(tmp_path / "weights" / f"{name}.state.safetensors")["model"] for name in ("whole", "half"))
    assert all(torch.equal(one[key], two[key]) for key in one)
