"""Devices: what is chosen and why, variables before torch, arithmetic, fixed shapes."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, error_of

from unet import cli as program
from unet import host
from unet.cli import resolve
from unet.commands import setup
from unet.config.flags import DeviceOptions
from unet.devices import cpu, select
from unet.devices.hpu import HPU
from unet.devices.launchers import Rank
from unet.errors import UsageError
from unet.runtime.inference.predictor import Predictor


def device(**settings: object) -> cpu.CPU:
    return cpu.CPU(DeviceOptions(device="cpu", **settings), Rank())  # type: ignore[arg-type]


def test_variables_are_set_before_torch_can_be_imported() -> None:
    """Defect of the seed's program: a variable that the import reads, set after it."""
    code = (
        "import os, sys\n"
        "for name in ('torch', 'habana_frameworks', 'torch_mlu'): sys.modules[name] = None\n"
        "os.environ.pop('OMP_NUM_THREADS', None)\n"
        "from unet.config.flags import DeviceOptions\n"
        "from unet.devices import launchers, select\n"
        "kind, _ = select.choose(DeviceOptions(device='cpu'), launchers.Rank())\n"
        "assert kind.name == 'cpu' and int(os.environ['OMP_NUM_THREADS']) >= 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "typed", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}, {"KMP_BLOCKTIME": "200"}]
)
def test_threads_that_wait_do_not_spin_for_long_unless_the_user_says_so(
    typed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    for name in names:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)
    for name, value in typed.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):  # the second choice must not take the first one's variables for a user's
        select.choose(DeviceOptions(device="cpu"), Rank())
    found = {name: os.environ[name] for name in names if name in os.environ}
    assert found == (typed or {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"})


def test_threads_that_are_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        device(threads=3)
        assert torch.get_num_threads() == 3
        select.choose(DeviceOptions(device="cpu", threads=2), Rank())
        assert os.environ["OMP_NUM_THREADS"] == "2"
    finally:
        torch.set_num_threads(before)


def test_cards_that_the_device_does_not_have() -> None:
    with pytest.raises(UsageError, match=r"--cuda-devices 0 1 \(CUDA_devices\) names 2 cards, but .* is cpu") as caught:
        device(cuda_devices=(0, 1))
    assert "--cuda-devices none" in caught.value.hint and "--device cuda" in caught.value.hint


def test_auto_says_why_the_others_are_passed_over() -> None:
    kind, passed = select.choose(DeviceOptions(), Rank())
    if kind.name == "cpu":
        assert passed
        named = [name for why in passed for name in why.partition(":")[0].split(", ")]
        assert sorted(named) == sorted(set(select.DEVICES) - {"cpu"})
        assert len(passed) <= 3  # a line for what is installed but has no card; one for all the rest


def test_threads_follow_the_affinity_of_the_process() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); from unet import host; assert host.cores() == 1"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert 1 <= host.cores() <= (os.cpu_count() or 1)


def test_precisions() -> None:
    assert device().dtype == torch.float32
    assert device(precision="bf16").dtype == torch.bfloat16
    assert device(precision="auto").dtype == (torch.bfloat16 if cpu.has_bf16() else torch.float32)
    layer = torch.nn.Conv2d(3, 4, 3)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with device(precision=precision).autocast():
            assert layer(torch.zeros(1, 3, 8, 8)).dtype == dtype


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--task", "kits19"), True),
        (("--task", "kits19", "--recipe", "mlperf"), True),
        (("--task", "brains"), True),
        (("--task", "kits19", "--precision", "fp32"), False),
        (("--task", "kits19", "--precision", "bf16"), False),
        (("--task", "kits19", "--recipe", "dgx"), False),
        (("--task", "kits19", "--config", "chosen.json"), False),
        (("--task", "lgg"), False),
        (("--task", "kits19", "--device", "cpu"), False),
    ],
    ids=str,
)
def test_a_slow_precision_that_nobody_chose_is_told_once(
    words: tuple[str, ...],
    said: bool,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Card(cpu.CPU):
        own_memory = True

        def dtypes(self) -> tuple[str, ...]:
            return ("bf16",)

        def describe(self) -> str:
            return "a card"

    (workplace / "chosen.json").write_text('{"precision": "fp32"}')
    resolved = resolve("train", words)
    if "cpu" not in words:
        monkeypatch.setattr(select, "choose", lambda *_: (Card, []))
    host.notice_once.cache_clear()
    for _ in range(2):
        setup.assemble(resolved.config, resolved.sources)
    err = capsys.readouterr().err
    told = "fp32 is the default of {}; bf16 is faster on this device (a card): --precision bf16"
    assert err.count(told.format(words[1])) == err.count("bf16 is faster") == said


def test_layouts() -> None:
    image = torch.zeros(2, 3, 8, 8)
    for layout, expected in (("auto", True), ("NHWC", True), ("NCHW", False)):
        moved = device(layout=layout).to({"image": image, "index": torch.zeros(2)})
        assert moved["image"].is_contiguous(memory_format=torch.channels_last) is expected


@pytest.mark.parametrize(("slices", "static"), [(5, True), (5, False), (16, True), (19, False), (3, True)])
def test_inference_has_one_shape_and_every_slice(slices: int, static: bool) -> None:
    """Rule 6: the last group is padded, so a device that compiles for a shape does it once; the result does not show
    it.
    """
    shapes = set()

    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shapes.add(tuple(x.shape))
            return 2 * x

    where = device()
    where.static_shapes = static
    network = Double().train()
    volume = torch.rand(slices, 3, 4, 4)
    assert torch.equal(Predictor([network], where, 8).slices(volume), 2 * volume)
    assert len(shapes) == 1
    assert not static or shapes == {(8, 3, 4, 4)}
    assert network.training


def test_the_peak_of_a_process_is_its_own() -> None:
    """Linux hands the peak of whoever starts a program on to it, in what getrusage says of the program."""
    inner = "from unet import host; print(host.peak_memory())"
    outer = (
        "import subprocess, sys\n"
        "from unet import host\n"
        "held = b'1' * 600_000_000\n"
        f"print(host.peak_memory(), subprocess.check_output([sys.executable, '-c', {inner!r}], text=True))"
    )
    printed = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    parent, child = map(int, printed.split())
    assert child < 300_000_000 < 600_000_000 < parent


def test_an_out_of_memory_error_of_the_host_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert device().is_out_of_memory(caught.value)
    assert not device().is_out_of_memory(RuntimeError("shapes differ"))


def test_a_device_of_ones_own(cli, phantoms: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "mydevice.py").write_text(
        "from unet.devices.cpu import CPU\nclass Mine(CPU):\n    def describe(self): return 'my own device'\n"
    )
    monkeypatch.syspath_prepend(str(workplace))
    words = ("train", "--data", phantoms, "--cache", "c", *TINY, "--epochs", 1)
    code, _, err = cli(*words, "--device-module", "mydevice:Mine")
    assert code == 0, err
    assert "lgg on my own device" in err
    (workplace / "broken.py").write_text("1 / 0\n")
    for name in ("nowhere:Mine", "mydevice:Other", "broken:Mine", "os:system", "os:PathLike", "os:path"):
        assert "--device-module" in error_of(cli(*words, "--device-module", name), 2)
    (workplace / "s.json").write_text('{"device_module": "mydevice:Mine"}')  # a file does not choose what is imported
    assert "type --device-module" in error_of(cli(*words, "--config", "s.json"), 2)
    assert "package.module:Class" in error_of(cli(*words, "--device-module", "mydevice"), 2)


@pytest.mark.parametrize(
    ("version", "known"),
    [
        ("2.4.0a0+git74cd574", True),  # bridges up to 1.19
        ("2.6.0+hpu_1.20.0-543.git4952fce", True),
        ("2.13.0+cpu", False),
        ("2.13.0", False),
    ],
)
def test_intel_s_builds_of_torch_are_known(version: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HPU, "installed", classmethod(lambda cls: True))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert ("lazy mode needs Intel's build" not in str(HPU.missing(DeviceOptions(use_lazy_mode=True)))) is known


def test_a_task_goes_to_other_processes_without_its_device() -> None:
    """Those that make a cache have no card: a device of a vendor's package cannot be sent to them."""
    where = device()
    where.bridge = sys  # type: ignore[attr-defined]  # a module, as an HPU holds
    with pytest.raises(TypeError, match="cannot pickle 'module'"):
        pickle.dumps(where)
    task = setup.task_on(where, program.resolve("train", []).config)
    assert task.compute is where
    sent = pickle.loads(pickle.dumps(task))
    assert sent.config == task.config and sent.compute is not where


@pytest.mark.parametrize(("share", "kept"), [(0.4, True), (0.6, False)])
def test_large_freed_memory_is_kept_where_there_is_enough(share: float, kept: bool) -> None:
    """A block of 64 MiB that is taken again has its pages, or asks the system for them."""
    code = f"""
import resource, torch
from unet import host
from unet.config.flags import DeviceOptions
from unet.devices.base import Workload
from unet.devices.cpu import CPU
from unet.devices.launchers import Rank
host.memory = lambda: (2**34, 2**33)
CPU(DeviceOptions(device="cpu"), Rank(), Workload(1, True, int({share} * 2**33)))
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
found = []
for _ in range(8):
    before = faults()
    torch.ones(2**24)
    found.append(faults() - before)
print(min(found))  # the system may take some pages back in between
"""
    least = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert (least < 16) is kept  # 64 MiB are 32 huge pages
