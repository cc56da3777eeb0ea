"""XPU, MPS and ROCm without a card: what is asked of torch, in modules that have no more than that device's has."""

from __future__ import annotations

import datetime
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TINY, error_of

from unet.config.flags import DeviceOptions
from unet.devices import accelerator, cuda, rocm, select
from unet.devices.accelerator import XPU
from unet.devices.base import Workload
from unet.devices.launchers import Rank
from unet.errors import DeviceError


def module(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """A module of a device, in the place of the one that torch would give."""
    api = ModuleType("api")
    for name, value in functions.items():
        setattr(api, name, value if callable(value) else lambda *_, value=value: value)
    monkeypatch.setattr(torch, "get_device_module", lambda name: api)


@pytest.fixture
def intel(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two Intel cards without float64; a list of the cards that were chosen."""
    chosen: list[int] = []
    module(
        monkeypatch,
        device_count=2,
        set_device=chosen.append,
        is_available=True,
        max_memory_allocated=7,
        get_device_name="Arc",
        get_device_properties=SimpleNamespace(has_fp64=False),
    )
    monkeypatch.setattr(accelerator, "torch_has", lambda part: part == "xpu")
    return chosen


def test_an_intel_card(intel: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert XPU.missing(DeviceOptions()) is None
    device = XPU(DeviceOptions(device="xpu", precision="auto"), Rank(rank=1, world=2, local=1, local_world=2))
    assert (intel, device.device, device.dtype) == ([1], torch.device("xpu", 1), torch.bfloat16)
    assert device.dtypes() == ("bf16",)  # no float64, so no loss scaler
    assert device.describe() == "xpu, Arc, card 1 of 2"
    assert device.parallel_options()["device_ids"] == [1]
    assert device.memory() == 7
    device.release()  # this module has no empty_cache
    with pytest.raises(DeviceError, match="this xpu runs fp32 and bf16, not fp16") as caught:
        XPU(DeviceOptions(device="xpu", precision="fp16"), Rank())
    assert "--precision bf16" in caught.value.hint
    monkeypatch.setenv("ZE_AFFINITY_MASK", "3,1")
    assert device.card_name() == "1"


def test_several_intel_cards_need_a_collective(intel: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []
    device = XPU(DeviceOptions(device="xpu"), Rank(world=2, local_world=2))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, **_: joined.append(name))
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: False, raising=False)
    with pytest.raises(DeviceError, match="Several XPUs need xccl"):
        device.join(None, datetime.timedelta(1))
    monkeypatch.setitem(sys.modules, "oneccl_bindings_for_pytorch", ModuleType("oneccl"))
    device.join(None, datetime.timedelta(1))
    monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda: True)
    XPU(DeviceOptions(device="xpu"), Rank()).join(None, datetime.timedelta(1))
    assert joined == ["ccl", "xccl"]


def test_an_apple_gpu_has_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, device_count=1, driver_allocated_memory=9, get_rng_state=torch.zeros(1), synchronize=None)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: version <= (14, 0))
    alone = DeviceOptions(device="mps", precision="auto")
    found, _ = select.choose(alone, Rank())
    device = found(alone, Rank())
    assert (device.name, device.device, device.dtype) == ("mps", torch.device("mps"), torch.bfloat16)
    assert device.memory() == 9  # its module counts no peak
    assert device.now() > 0
    two = Rank(world=2, local_world=2, launcher="mpirun")
    with pytest.raises(DeviceError, match="mps: it runs one process, and mpirun runs 2"):
        select.choose(alone, two)
    found, passed = select.choose(DeviceOptions(), two)  # auto goes on to the CPU
    assert found.name == "cpu" and "mps: it runs one process" in passed[-1]


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards behind torch.cuda."""
    known = {"is_available": True, "device_count": 2, "get_device_name": "AMD Instinct MI250"}
    known |= {"set_device": None, "reset_peak_memory_stats": None, "get_device_capability": (9, 0)}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


@pytest.mark.parametrize("kind", [cuda.CUDA, rocm.ROCm])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_recorded_graph_has_one_batch_a_step(kind: type[cuda.CUDA], compiled: bool, cards: None) -> None:
    """Its next run writes the memory that holds the gradients, also where the compiler has recorded it."""
    recorded = DeviceOptions(device=kind.name, capture="on", compile=compiled)
    kind(recorded, Rank())
    kind(DeviceOptions(device=kind.name, compile=compiled), Rank(), Workload(accumulate=4))
    with pytest.raises(DeviceError, match="--capture with --accumulate 4") as caught:
        kind(recorded, Rank(), Workload(accumulate=4))
    assert "--batch-size" in caught.value.hint


def test_amd_cards_answer_under_another_name(cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4", raising=False)
    monkeypatch.setattr(accelerator, "torch_has", lambda part: part == "hip")
    for name in ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")
    assert cuda.CUDA.missing(DeviceOptions()) is not None  # a card of NVIDIA's is not taken for it
    options = DeviceOptions(device="rocm", precision="bf16", cuda_devices=(3, 1))
    found, _ = select.choose(options, Rank(world=2, local_world=2))
    device = found(options, Rank(local=1))
    assert isinstance(device, rocm.ROCm)
    assert (device.device, device.collective, device.dtypes()) == (torch.device("cuda", 1), "nccl", ("bf16", "fp16"))
    assert device.describe() == "rocm, AMD Instinct MI250, ROCm 6.4"
    assert not device.channels_last() and device.card_name() == "1"
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "6,4,2,0")  # rocm-smi still shows all cards of the machine
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device.card_name() == "4"
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "3,2")
    assert device.card_name() == "2"
    assert device.autocast().device == "cuda"  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="rocm has no TF32"):
        rocm.ROCm(DeviceOptions(device="rocm", precision="tf32"), Rank())


@pytest.mark.parametrize(
    ("name", "language", "variable", "usual"),
    [
        ("cuda", "C", "CC", "gcc or clang"),
        ("rocm", "C", "CC", "gcc or clang"),
        ("xpu", "C", "CC", "gcc or clang"),
        ("xpu", "C++", "CXX", "icpx or clang++ or g++"),
        ("cpu", "C++", "CXX", "g++"),
    ],
)
def test_compiling_needs_a_compiler(
    name: str,
    language: str,
    variable: str,
    usual: str,
    intel: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Triton and inductor would fail in the first step, with a traceback."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for key in ("CC", "CXX"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    if language == "C++":
        program(tmp_path / "clang")
    kind = select.load(name)
    kind(DeviceOptions(device=name), Rank())  # nothing is asked for without the flag
    compiling = DeviceOptions(device=name, compile="on")

    def refused() -> DeviceError:
        with pytest.raises(DeviceError) as caught:
            kind(compiling, Rank())
        assert f"--compile needs a {language} compiler on {name}: " in caught.value.message
        assert "leave out --compile" in caught.value.hint and "apt-get install g" in caught.value.hint
        return caught.value

    assert f"{variable} names none, and the PATH has no {usual}." in refused().message
    monkeypatch.setenv(variable, "gone")
    assert f"{variable} names 'gone', which is no program" in refused().message
    mine = str(program(tmp_path / "mine"))
    for key in ("CC", "CXX"):
        monkeypatch.setenv(key, mine)
    kind(compiling, Rank())
    for key in ("CC", "CXX"):
        monkeypatch.delenv(key)
    for last in (usual.rpartition(" ")[2], "clang", "g++"):
        program(tmp_path / last)
    kind(compiling, Rank())


def program(path: Path) -> Path:
    """An executable file."""
    path.write_text("")
    path.chmod(0o755)
    return path


def test_the_parts_of_torch_are_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator.torch_has("cpu")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtorch_xpu.so").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert [accelerator.torch_has(part) for part in ("xpu", "hip", "xp")] == [True, False, False]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not accelerator.torch_has("xpu")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("xpu", "built without XPU"),
        ("rocm", "built without ROCm"),
        ("npu", "torch_npu is not installed"),
        ("mps", "not an Apple computer"),
    ],
)
def test_what_is_missing_is_said(name: str, said: str, cli: Any, phantoms: Path) -> None:
    device, options = select.load(name), DeviceOptions(device=name)
    if device.missing(options) is None or device.installed():
        pytest.skip(f"this machine has {name}")
    error = error_of(cli("train", "--data", phantoms, "--cache", "c", *TINY, "--device", name))
    assert f"--device {name} cannot be used here: {name}: " in error and said in error
