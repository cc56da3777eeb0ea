"""A network as an OpenVINO model: made of the ONNX file, with this program's metadata, and run by OpenVINO."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet import files
from unet.errors import CheckpointError
from unet.export.onnx_file import Session, library
from unet.weight_files import openvino_header

WHAT = "OpenVINO models are written and run"


def write(path: Path, onnx_path: Path, about: Mapping[str, Any], half: bool) -> list[Path]:
    """Write path (.xml) and the weights beside it (.bin), in 16 bits with `half`. Nothing of it is sent anywhere: the
    converter of the package, which reports its use, is not used. Raises UnetError where OpenVINO is missing."""
    openvino = library("openvino", WHAT)
    weights = openvino_header.weights_of(path)
    for _ in range(2):  # the metadata hold a digest of the weights, which the first writing makes
        model = openvino.Core().read_model(str(onnx_path))
        known = {"tensors": files.digest_files(weights)} if weights.exists() else {}
        model.set_rt_info(json.dumps({**about, **known}, allow_nan=False), list(openvino_header.PLACE))
        openvino.save_model(model, str(path), compress_to_fp16=half)
        del model
    return [path, weights]


def session(path: Path, threads: int) -> Session:
    """The model ready to be run, on the CPU in fp32. Raises UnetError."""
    openvino = library("openvino", f"{path.name}: {WHAT}")
    how = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    how |= {"NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}  # other processes may have the first cores
    core = openvino.Core()
    made: dict[int, Any] = {}  # a compiled model for each size of a batch

    def compiled(count: int) -> Any:
        try:
            model = core.read_model(str(path))
            sides = [count, *[side.get_length() for side in list(model.inputs[0].partial_shape)[1:]]]
            model.reshape(sides)
            return core.compile_model(model, "CPU", how).create_infer_request()
        except RuntimeError as error:
            said = next((line for line in str(error).splitlines() if line.strip()), "")[:160]
            raise CheckpointError(
                f"{path.absolute()}: OpenVINO {version(openvino)} cannot open it: {said}",
                "Export the weights again, or install another version of openvino.",
            ) from error

    def run(images: Any) -> Any:
        request = made.get(len(images))
        if request is None:
            request = made[len(images)] = compiled(len(images))
        request.infer({0: images}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    made[1] = compiled(1)
    ends = [(end.any_name, tuple(end.shape)[1:]) for end in (*made[1].model_inputs, *made[1].model_outputs)]
    return Session(run, f"OpenVINO {version(openvino)}, CPU", ends)


def version(openvino: Any) -> str:
    return str(openvino.__version__).partition("-")[0]
