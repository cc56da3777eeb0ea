"""The kernels for cards, in Triton: computed by its interpreter on the CPU, in a process of their own, and compiled for
cards that are not here. Both are skipped where Triton is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import nn

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices import cuda, rocm
from unet.devices.launchers import Rank
from unet.kernels import norms
from unet.kernels.cards import forms

OLDEST = (3, 7)  # of Triton: before, the interpreter does not take functions of functions

HOPPER, MI300 = ("cuda", 90, 32), ("hip", "gfx942", 64)  # what Triton compiles for: maker, kind, threads of a warp


def triton_version() -> tuple[int, ...]:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    import triton

    version = tuple(map(int, triton.__version__.split(".")[:2]))
    if version < OLDEST:
        pytest.skip(f"Triton {triton.__version__} is older than {OLDEST[0]}.{OLDEST[1]}")
    return version


def test_in_tritons_interpreter() -> None:
    triton_version()
    words = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", "cards_interpreted.py"]
    variables = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, cwd=Path(__file__).parent, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"^\d\d passed", done.stdout, re.MULTILINE), done.stdout[-4000:]


@pytest.mark.parametrize(
    ("card", "last", "channels"),
    [
        (("cuda", 80, 32), True, 32),
        *((card, *how) for card in (HOPPER, MI300) for how in ((True, 32), (False, 32), (False, 1))),
    ],
)
def test_they_compile_for_cards(
    card: tuple[str, Any, int], last: bool, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code of NVIDIA's and AMD's cards; channels that are a multiple of 16 are read 16 bytes at a time."""
    triton_version()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from unet.kernels.cards import loss, norm

    half = dict.fromkeys(("x", "y", "dx", "logits"), "*bf16") | {"labels": "*u8", "eps": "fp32"}
    whole = {"channels", "voxels", "classes", "per", "parts", "ignore", "row"}
    shape: dict[str, Any] = {"BV": 4096, "BC": 1, "LAST": False}
    if last:
        shape = {"BV": 4096 // channels, "BC": channels, "LAST": True}
    ones = {"channels": 1} if channels == 1 else {}  # the launcher makes a number of 1 a constant

    def text(kernel: Any, constants: dict[str, Any], **types: str) -> str:
        known = {name: constants[name] for name in kernel.arg_names if name in constants}
        kinds = {
            name: types.get(name) or half.get(name, "i32" if name in whole else "*fp32") for name in kernel.arg_names
        }
        signature = {name: "constexpr" if name in known else kind for name, kind in kinds.items()}
        even = [
            number
            for number, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or name in ("channels", "voxels")
        ]
        attributes = {
            (number,): [["tt.divisibility", 16]]
            for number in even
            if signature[kernel.arg_names[number]] != "constexpr"
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=attributes)
        code = triton.compile(source, target=GPUTarget(*card)).asm
        return str(code.get("ptx") or code["amdgcn"])

    for kernel in (norm._parts, norm._normalise, norm._sums, norm._by_input):
        found = text(kernel, shape | ones, slope="fp32", grad="*bf16")
        assert "ld.global.v4.b32" in found or "load_dwordx4" in found
    assert text(norm._combine, shape | ones | {"BP": 64})
    if channels == 1:
        return
    for ignores in (False, True):
        constants = {**shape, "BV": 512, "BC": 4, "IGNORES": ignores}
        assert text(loss._sums, constants) and text(loss._gradient, constants, out="*bf16")


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card behind torch.cuda; what is placed stays on the host."""
    known = {"is_available": True, "device_count": 1, "get_device_name": "Card", "get_device_capability": (9, 0)}
    for name, value in {**known, "set_device": None, "reset_peak_memory_stats": None}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)


@pytest.mark.parametrize(
    ("kind", "precision", "kernels", "there", "expected"),
    [
        (cuda.CUDA, "bf16", "measured", True, (norms.InstanceNorm3d, True)),
        (cuda.CUDA, "fp32", "measured", True, (norms.InstanceNorm3d, True)),
        (rocm.ROCm, "bf16", "measured", True, (norms.InstanceNorm3d, True)),
        (cuda.CUDA, "bf16", "measured", False, (norms.InstanceNorm3d, False)),
        (rocm.ROCm, "bf16", "measured", False, (nn.InstanceNorm3d, False)),
        (cuda.CUDA, "bf16", "plain", True, (nn.InstanceNorm3d, False)),
    ],
)
def test_a_card_takes_them_where_triton_is(
    kind: type[cuda.CUDA],
    precision: str,
    kernels: str,
    there: bool,
    expected: tuple[type, bool],
    cards: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Norm and activation are one operator, in either order; without Triton, in channels-last order, torch's functions;
    with --kernels plain torch's layers."""
    asked: list[str] = []
    monkeypatch.setattr(forms, "_registered", lambda name: asked.append(name) or there)
    device = kind(DeviceOptions(device=kind.name, precision=precision, kernels=kernels), Rank())
    device.device = torch.device("cpu")
    network = device.optimize(nn.Sequential(nn.InstanceNorm3d(4, affine=True), nn.ReLU()))
    assert (type(network[0]), getattr(network[0], "whole", False)) == expected
    assert asked == ([] if kernels == "plain" else ["cuda"])
    assert ("cuda" in forms._on) == (there and kernels != "plain")
    forms.install("cuda", False)


def test_without_triton_that_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("loss", "norm"):
        monkeypatch.delitem(sys.modules, f"unet.kernels.cards.{name}", raising=False)
        monkeypatch.delattr(f"unet.kernels.cards.{name}", raising=False)
    host.notice_once.cache_clear()
    forms._registered.cache_clear()
    assert not forms.install("cuda") and "not installed" in forms.tried(torch.device("cuda"), torch.bfloat16)[0]
    assert capsys.readouterr().err.count("Triton is not installed") == 1
    forms._registered.cache_clear()


def test_triton_is_no_dependency() -> None:
    assert "triton" not in (ROOT / "pyproject.toml").read_text().split("[tool.")[0]
