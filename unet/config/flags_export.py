"""The flags of export. No torch."""

from __future__ import annotations

import dataclasses

from unet.config.options import option

FORMATS = ("onnx", "openvino", "safetensors", "published", "reference")


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Export"""

    to: tuple[str, ...] = option(
        ("onnx",),
        "what to write: onnx, openvino (.xml and .bin), safetensors (weights under this program's names), published or"
        " reference (weights under the names of the published network or of the reference program)",
        choices=FORMATS,
        metavar="FORMAT",
        common=True,
    )
    half: bool = option(False, "openvino: weights in 16 bits, half the size (the arithmetic stays fp32)", common=True)
    opset: int = option(20, "onnx: version of the operators", minimum=18, maximum=20)
    passes: int = option(
        24, "passes of the network to compare with torch, on the cases that are named", minimum=1, maximum=10**6
    )
    case_names: bool = option(
        True, "--no-case-names leaves the names of the training and validation cases out of the file"
    )
