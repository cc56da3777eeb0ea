"""An exported network in the place of torch's: it takes and gives tensors, and a runtime computes in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet.errors import UsageError
from unet.export import onnx_file, openvino_file
from unet.weight_files import exported, safetensors_header


class ExportedNetwork(nn.Module):
    """(N, C, *S) -> logits (N, K, *S') on the device of the input, in float32; C and S are those of the file.

    `where`: runtime and processor, in words.
    """

    def __init__(self, path: Path, sides: tuple[int, ...], run: Callable[[Any], Any], where: str) -> None:
        super().__init__()
        self.path, self.sides, self.run, self.where = path, sides, run, where

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.sides:
            raise UsageError(
                f"{self.path.absolute()} takes inputs of {words(self.sides)} (channels and sides), not"
                f" {words(images.shape[1:])}.",
                "Leave out the flags of the input's size, or export the weights with that size.",
            )
        array = images.detach().float().cpu().contiguous().numpy()
        return torch.from_numpy(self.run(array)).to(images.device)


def words(sides: Any) -> str:
    return " x ".join(map(str, sides))


def load(path: Path, facts: Mapping[str, Any], threads: int, provider: str = "") -> ExportedNetwork:
    """The network of an ONNX or OpenVINO file with these metadata, after every byte was checked. `threads`: of a pass
    on the host; `provider`: onnxruntime's for the device. Raises UnetError."""
    exported.verify(path, facts)
    if safetensors_header.kind(path) == "onnx":
        run, where = onnx_file.session(path, threads, provider)
    else:
        run, where = openvino_file.session(path, threads)
    return ExportedNetwork(path, tuple(facts["input"]["shape"][1:]), run, where)
