"""Networks of every task as files, run by onnxruntime and OpenVINO outside of the program."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export import weights
from torch import Tensor, nn

from unet.errors import DamagedError
from unet.export import onnx_file, openvino_file
from unet.kernels import select
from unet.weight_files import exported, onnx_header

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
openvino = pytest.importorskip("openvino", reason="the extra `export` is not installed")

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "batch norms": ("lgg", {}),
    "neighbouring slices": ("lgg", {"neighbours": 1}),
    "valid convolutions": ("em", {}),
    "strided volumes": ("kits19", {"normalization": "instance", "activation": "leaky_relu"}),
    "deep supervision": ("kits19", {"encoder": "residual", "deep_supervision": True, "normalization": "instance"}),
    "slices": ("folder", weights.folder(2, channels=2)),
    "residual, 8 channels, 100 classes": ("folder", weights.folder(3, 8, 100, encoder="residual")),
}


def spread(x: Tensor) -> float:
    """How far two outputs may lie apart: sums of some hundred products of 24 bits, layer after layer."""
    return 1e-5 * max(1.0, x.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_runtimes_give_what_torch_gives(name: str, tmp_path: Path) -> None:
    kind, values = NETWORKS[name]
    task = weights.task_of(kind, **values)
    network, shape = weights.network_of(task), task.eval_input_shape()
    path = tmp_path / "a.onnx"
    assert onnx_file.write(path, onnx_file.textbook(network), shape, 20) == [path]
    onnx_file.finish([path], {"a": 1})
    xml = tmp_path / "a.xml"
    openvino_file.write(xml, path, {"a": 1}, half=False)

    model = onnx.load(path)
    operators = {node.op_type for node in model.graph.node}
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 20)]
    assert not operators & {"ScatterND", "Loop", "If", "Einsum"}  # what changes in place and faster layers become
    for text in (path.read_bytes(), xml.read_bytes()):  # nothing of this machine
        assert str(Path(onnx_file.__file__).parents[2]).encode() not in text
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.compile_model(xml, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 3):
        x = torch.randn(count, *shape[1:])
        with torch.no_grad():
            expected = network(x)
        assert expected.std() > 0.01
        for found in (session.run(None, {"image": x.numpy()})[0], compiled(x.numpy())[0]):
            assert found.shape == expected.shape
            assert np.abs(found - expected.numpy()).max() < spread(expected)


def test_a_network_with_faster_layers_is_not_changed_by_its_textbook_form(tmp_path: Path) -> None:
    """What is exported is a copy: the layers of the device stay where they were."""
    network = weights.network_of(weights.task_of("kits19", normalization="instance"))
    found = onnx_file.textbook(network)
    select.optimize(network)
    assert {type(layer).__module__.split(".")[0] for layer in found.modules()} == {"torch", "unet"}
    assert not [layer for layer in found.modules() if type(layer).__module__.startswith("unet.kernels")]
    assert [layer for layer in network.modules() if type(layer).__module__.startswith("unet.kernels")]
    assert not [layer for layer in found.modules() if getattr(layer, "inplace", False)]


def test_weights_of_more_than_2_gb_are_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lower limit, since this takes minutes otherwise; a file outside of the folder is not followed."""
    if "dynamic_shapes" not in inspect.signature(torch.onnx.export).parameters:
        pytest.skip("the exporter of this torch writes one file")
    monkeypatch.setattr(onnx_header, "LARGEST", onnx_file.ROOM + 1000)
    path = tmp_path / "a.onnx"
    network = nn.Sequential(nn.Conv2d(1, 64, 3), nn.Conv2d(64, 2, 3)).eval()
    made = onnx_file.write(path, network, (1, 1, 8, 8), 20)
    onnx_file.finish(made, {})
    assert [item.name for item in made] == ["a.onnx", "a.onnx.data"]
    assert made[1].stat().st_size > 4000
    assert onnx_header.verify(path) == made[1:]
    told = json.loads(onnx_header.read(path)["unet"])
    made[1].write_bytes(made[1].read_bytes()[:-4] + b"1234")
    with pytest.raises(DamagedError, match="not the weights of"):
        exported.verify(path, told)
    onnx_file.finish(onnx_file.write(path, network, (1, 1, 8, 8), 20), {})
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert np.abs(session.run(None, {"image": x.numpy()})[0] - network(x).numpy()).max() < 1e-5
