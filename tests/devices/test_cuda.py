"""NVIDIA's cards by what torch and the driver say of them: names, slices, libraries with faults. No card is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from unet import host
from unet.config.flags import DeviceOptions
from unet.devices import cuda
from unet.devices.launchers import Rank
from unet.devices.power import sources


def card(monkeypatch: pytest.MonkeyPatch, name: str, uuid: str | None = None, **settings: object) -> cuda.CUDA:
    """The device on a card of this name, of which torch knows this UUID."""
    properties = SimpleNamespace(**({"uuid": uuid} if uuid else {}))
    answers = {"device_count": 1, "get_device_name": name, "get_device_properties": properties}
    for function, value in {**answers, "get_device_capability": (9, 0)}.items():
        monkeypatch.setattr(torch.cuda, function, lambda *_, value=value: value)
    for function in ("set_device", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, function, lambda *_: None)
    return cuda.CUDA(DeviceOptions(device="cuda", **settings), Rank())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 989 / 7),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 989 * 3 / 7),
        ("NVIDIA H100 80GB HBM3 MIG 1c.3g.40gb", 989 / 7),
        ("NVIDIA H100 NVL MIG 7g.94gb", 835),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", 312 * 2 / 7),
        ("NVIDIA A30 MIG 1g.6gb", 165 / 4),
        ("NVIDIA H20", 148),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_the_peak_of_a_card(name: str, tera: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = None if tera is None else pytest.approx(tera * 1e12)
    assert card(monkeypatch, name, precision="bf16").peak_flops() == expected
    half = None if tera is None else pytest.approx(tera * 1e12 / 2)
    assert card(monkeypatch, name, precision="tf32").peak_flops() == half
    assert card(monkeypatch, name).peak_flops() is None


@pytest.mark.parametrize(
    ("visible", "uuid", "name", "identity"),
    [
        ("1", "6d8c1f3a", "GPU-6d8c1f3a", "GPU-6d8c1f3a"),
        ("GPU-6d8c", "6d8c1f3a", "GPU-6d8c1f3a", "GPU-6d8c1f3a"),
        ("GPU-6d8c", None, "GPU-6d8c", "GPU-6d8c"),  # before torch told UUIDs
        ("MIG-41b3", "6d8c1f3a", "MIG-41b3", "MIG-41b3"),  # two slices of one card are two
        ("", "6d8c1f3a", "GPU-6d8c1f3a", "GPU-6d8c1f3a"),
        ("3", None, "3", "3"),
    ],
)
def test_the_name_of_a_card(
    visible: str, uuid: str | None, name: str, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device = card(monkeypatch, "NVIDIA H100 NVL", uuid)
    assert (device.card_name(), device.identity()) == (name, identity)
    assert cuda.CUDA.card(0) == {"CUDA_VISIBLE_DEVICES": visible or "0"}


@pytest.mark.parametrize(
    ("version", "cudnn", "precision", "dims", "said"),
    [
        ("2.9.1+cu128", 91002, "fp16", 3, "cuDNN 9.10 with torch 2.9.1+cu128 may give wrong results in 3D"),
        ("2.9.0+cu130", 91300, "fp16", 3, "is slow in 3D convolutions of fp16"),
        ("2.9.0+cu130", 91300, "bf16", 3, "is slow in 3D convolutions of bf16"),
        ("2.9.0+cu130", 91500, "bf16", 3, ""),
        ("2.9.0+cu130", 91300, "fp32", 3, ""),
        ("2.9.0+cu130", 91300, "bf16", 2, ""),
        ("2.8.0+cu128", 91002, "bf16", 3, "may give wrong results"),
        ("2.8.0+cu128", 90800, "bf16", 3, "cuDNN 9.8 with torch 2.8.0+cu128 may give wrong results"),
        ("2.8.0+cu128", 91002, "fp16", 3, ""),
        ("2.8.0+cu128", 90701, "bf16", 3, ""),
        ("2.13.0+cu130", 91900, "bf16", 3, ""),
        ("2.13.0", None, "bf16", 3, ""),
    ],
)
def test_libraries_with_faults_in_3d_are_told_once(
    version: str,
    cudnn: int | None,
    precision: str,
    dims: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host.notice_once.cache_clear()
    device = card(monkeypatch, "NVIDIA H100 NVL", precision=precision)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    device.device = torch.device("cpu")
    layer = torch.nn.Conv3d(1, 2, 3) if dims == 3 else torch.nn.Conv2d(1, 2, 3)
    for _ in range(2):
        device.place(layer)
    err = capsys.readouterr().err
    assert (said in err, err.count("warning: cuDNN")) == (True, 1 if said else 0)


def test_a_slice_has_no_watts_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host.notice_once.cache_clear()
    monkeypatch.setattr(sources, "read", lambda *_: 300.0)
    device = card(monkeypatch, "NVIDIA H100 80GB HBM3 MIG 1g.10gb")
    assert (device.power(0), device.power(0)) == (None, None)
    assert capsys.readouterr().err.count("nvidia-smi gives none for a slice of a card (MIG)") == 1
    assert card(monkeypatch, "NVIDIA H100 80GB HBM3").power(0) == 300
