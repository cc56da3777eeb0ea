"""The files with plain onnxruntime and plain openvino, outside of the program: a reader follows the metadata alone,
with windows of its own, and gets the masks that `predict` writes. The page's own example is run too."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel
import numpy as np
import pages
import pytest
from conftest import ROOT
from export import weights

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
openvino = pytest.importorskip("openvino", reason="the extra `export` is not installed")
pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

Cli = Callable[..., tuple[int, str, str]]
SHAPE = (21, 26, 13)  # (x, y, z): no multiples of the window
DEVICE = ["--device", "cpu", "--threads", 1]


def mask_of(image: np.ndarray, run: Callable[[np.ndarray], np.ndarray], about: dict[str, Any]) -> np.ndarray:
    """(D, H, W) in the order of the network -> label values, by a plain reading of the metadata."""
    assert about["normalization"] == [{"channel": "T0", "kind": "zscore"}]
    volume = ((image - image.mean()) / image.std()).astype(np.float32)
    window = about["window"]
    starts = []
    for side, length in zip(volume.shape, window, strict=True):
        step = int(length * (1 - about["overlap"]))
        count = -(-(side - length) // step) + 1 if side > length else 1
        starts.append([round(number * (side - length) / max(1, count - 1)) for number in range(count)])
    axes = [np.arange(length) - (length - 1) / 2 for length in window]
    parts = [np.exp(-((axis / (0.125 * length)) ** 2) / 6) for axis, length in zip(axes, window, strict=True)]
    weight = parts[0][:, None, None] * parts[1][:, None] * parts[2]
    sums = np.zeros((len(about["classes"]), *volume.shape))
    for corner in itertools.product(*starts):
        place = tuple(slice(at, at + length) for at, length in zip(corner, window, strict=True))
        sums[(slice(None), *place)] += run(volume[place][None, None])[0] * weight
    return np.array(about["label_values"])[sums.argmax(0)]


def onnx_runner(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["unet"])
    return lambda batch: session.run([about["output"]["name"]], {about["input"]["name"]: batch})[0], about


def openvino_runner(path: Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = ElementTree.parse(path).getroot().find("rt_info/unet/metadata")
    assert found is not None
    return lambda batch: compiled(batch)[0], json.loads(found.get("value", ""))


@pytest.mark.parametrize(("suffix", "reader"), [("onnx", onnx_runner), ("xml", openvino_runner)])
def test_the_metadata_alone_lead_to_the_masks_of_predict(suffix: str, reader: Any, cli: Cli) -> None:
    weights.save(Path("weights/a.safetensors"), weights.task_of("folder", **weights.folder(3)))
    random = np.random.default_rng(1)
    values = random.normal(100, 30, SHAPE).astype(np.float32)
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    Path("images").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, affine), "images/case_0000.nii.gz")
    to = {"onnx": "onnx", "xml": "openvino"}[suffix]
    code, _, err = cli("export", "--weights", "a.safetensors", "images", "--to", to, *DEVICE)
    assert code == 0, err
    assert cli("predict", "--weights", f"a.{suffix}", "images", *DEVICE)[0] == 0
    ours = np.asarray(nibabel.load("predictions/case.nii.gz").dataobj)
    run, about = reader(Path(f"weights/a.{suffix}"))
    theirs = mask_of(values.transpose(2, 1, 0), run, about["deployment"]).transpose(2, 1, 0)
    assert set(np.unique(ours)) <= {0, 10, 20}
    assert len(np.unique(ours)) > 1
    # where two classes are equal to rounding, the order of the sums decides
    assert (ours != theirs).mean() < 1e-3


def test_the_example_of_the_page_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code = next(text for kind, text in pages.blocks_of(pages.text_of("docs/export.md")) if kind == "python")
    assert (ROOT / "docs/export.md").is_file()
    weights.save(Path("weights/own.safetensors"), weights.task_of("folder", **weights.folder(3)))
    assert cli("export", "--weights", "own.safetensors", *DEVICE)[0] == 0
    found: dict[str, Any] = {}
    exec(compile(code, "docs/export.md", "exec"), found)
    assert found["labels"].shape == (1, 8, 16, 16)
    assert set(np.unique(found["labels"])) <= {0, 10, 20}
