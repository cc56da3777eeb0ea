"""What an exported network says of itself: its metadata in an ONNX or OpenVINO file, read without either package."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet.errors import CheckpointError
from unet.files import digest_files, schema_error
from unet.weight_files import onnx_header, openvino_header, safetensors_header

FORMAT = "unet export 1"
SOURCE = "exported_from"  # in the metadata of exported weights: a digest of the file that they are of
KINDS = {"onnx": "ONNX", "openvino": "OpenVINO"}  # what `safetensors_header.kind` says -> as it is written
TENSOR = {"name": str, "shape": [(int, str)]}
# `tensors`: a digest of the file beside it that holds the weights, where there is one
METADATA = {
    "format": str,
    "unet": str,
    "task": str,
    "input": TENSOR,
    "output": TENSOR,
    "weights": str,
    "deployment": {str: object},
    "settings": {str: object},
    "run_name?": str,
    "epoch?": (int, None),
    "score?": (float, None),
    "training?": [str],
    "validation?": [str],
    "trained_before?": [str],
    "tensors?": str,
}


def is_exported(path: Path) -> bool:
    """Whether a file is an ONNX or OpenVINO model, by its content. Raises what `kind` raises."""
    return safetensors_header.kind(path) in KINDS


def read(path: Path) -> dict[str, Any]:
    """The metadata of an exported network. Raises DamagedError for a damaged file, CheckpointError for one of another
    program or of a later version."""
    kind = safetensors_header.kind(path)
    text = onnx_header.read(path).get(onnx_header.KEY, "") if kind == "onnx" else openvino_header.read(path)
    if not text:
        raise CheckpointError(
            f"{path.absolute()}: an {KINDS[kind]} model without this program's metadata: how images are prepared and"
            " what its outputs mean is not known.",
            f"Give one that was made by: python -m unet export --weights FILE --to {kind}",
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise safetensors_header.damaged(path, f"damaged (its metadata are no JSON: {str(error)[:80]})") from error
    form = found.get("format") if isinstance(found, dict) else None
    if form != FORMAT:
        raise CheckpointError(
            f"{path.absolute()}: of the format {str(form)[:40]!r}; this version reads {FORMAT!r}.",
            "Export the weights again with this version, or use the version that made the file.",
        )
    if wrong := schema_error(found, METADATA, "its metadata"):
        raise CheckpointError(
            f"{path.absolute()}: {wrong}.", "Export the weights again: python -m unet export --weights FILE"
        )
    return dict(found)


def source_of(facts: Mapping[str, Any]) -> str:
    """A digest of the weights that a file was exported from, by its metadata; empty for what was trained."""
    return str(facts.get("weights" if facts.get("format") == FORMAT else SOURCE, ""))


def verify(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise DamagedError unless the file, and that of its weights, are as they were written."""
    openvino = safetensors_header.kind(path) == "openvino"
    others = [openvino_header.weights_of(path)] if openvino else onnx_header.verify(path)
    for other in others:
        if not os.path.lexists(other):
            raise safetensors_header.damaged(path, f"its weights {other.name} do not lie beside it")
    if others and digest_files(*others) != facts.get("tensors"):
        raise safetensors_header.damaged(
            others[0], f"not the weights of {path.name}, or damaged (another digest than when it was written)"
        )
