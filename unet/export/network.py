"""An exported network in the place of torch's: it takes and gives tensors, and a runtime computes in between."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet.errors import CheckpointError, UsageError
from unet.export import onnx_file, openvino_file
from unet.export.onnx_file import NONE, Session
from unet.weight_files import exported, safetensors_header


class ExportedNetwork(nn.Module):
    """(N, C, *S) -> logits (N, K, *S') on the device of the input, in float32; C and S are those of the file.

    `where`: runtime and processor, in words.
    """

    def __init__(self, path: Path, sides: tuple[int, ...], session: Session) -> None:
        super().__init__()
        self.path, self.sides, self.session, self.where = path, sides, session, session.where

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.sides:
            raise UsageError(
                f"{self.path.absolute()} takes inputs of {words(self.sides)} (channels and sides), not"
                f" {words(images.shape[1:])}.",
                "Leave out the flags of the input's size, or type them for export too, where it has them (otherwise the"
                " size is that of the training).",
            )
        array = images.detach().float().cpu().contiguous().numpy()
        try:
            output = self.session.run(array)
        except MemoryError:
            raise
        except Exception as error:  # of onnxruntime's and OpenVINO's own kinds
            said = next((line for line in str(error).splitlines() if line.strip()), "")[:160]
            raise CheckpointError(
                f"{self.path.absolute()}: {self.where} failed on a batch of {len(images)}: {said}",
                "Type a smaller --eval-batch-size, or export the weights again.",
            ) from error
        return torch.from_numpy(output).to(images.device)


def words(sides: Any) -> str:
    return " x ".join(map(str, sides))


def load(
    path: Path, facts: Mapping[str, Any], threads: int, provider: str = "", options: Mapping[str, str] = NONE
) -> ExportedNetwork:
    """The network of an ONNX or OpenVINO file with these metadata, after every byte was checked. `threads`: of a pass
    on the host; `provider`, `options`: onnxruntime's for the device. Raises UnetError."""
    exported.verify(path, facts)
    onnx = safetensors_header.kind(path) == "onnx"
    session = onnx_file.session(path, threads, provider, options) if onnx else openvino_file.session(path, threads)
    told = [(facts[end]["name"], tuple(facts[end]["shape"][1:])) for end in ("input", "output")]
    if session.ends != told:
        raise CheckpointError(
            f"{path.absolute()}: its metadata tell of {told[0]} and {told[1]}, the network has {session.ends}.",
            "Export the weights again: python -m unet export --weights FILE",
        )
    return ExportedNetwork(path, told[0][1], session)
