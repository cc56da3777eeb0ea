"""A network as an ONNX file: written by torch's exporter, with this program's metadata, and run by onnxruntime."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unet import files
from unet.errors import CheckpointError, UnetError
from unet.weight_files import onnx_header

IMAGE, LOGITS, BATCH = "image", "logits", "batch"  # names of input, output, and their first side
ROOM = 2**26  # bytes that the graph takes beside the weights, by far
NONE: Mapping[str, str] = {}
INSTALL = "Type: pip install 'unet-accelerators[export]'"


def textbook(network: nn.Module) -> nn.Module:
    """A copy of a network of torch's own layers on the CPU, in evaluation mode, that changes no tensor in place: those
    changes become costly operators in a file."""
    found = copy.deepcopy(network).cpu().float().eval()
    for layer in found.modules():
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False  # type: ignore[assignment]
    return found


def write(path: Path, network: nn.Module, shape: tuple[int, ...], opset: int) -> list[Path]:
    """Write a textbook network for inputs (any number, *shape[1:]). Gives the files: one, and where the weights exceed
    2 GB one more that holds them. Raises UnetError where a package is missing or torch cannot export the network."""
    onnx = library("onnx", "ONNX files are written")
    large = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    large = large > onnx_header.LARGEST - ROOM
    with quiet():
        try:
            _export(path, network, torch.zeros(2, *shape[1:]), opset, large)
        except UnetError:
            raise
        except Exception as error:  # torch raises many kinds, with pages of text
            said = next(iter(str(error).splitlines()), "")[:160]
            raise UnetError(
                f"torch {torch.__version__} cannot export this network: {type(error).__name__}: {said}",
                "Try another version of torch or --opset 18; -v shows the whole error.",
            ) from error
        model = onnx.load(str(path), load_external_data=False)
    anonymous(model)
    files.write_bytes(path, model.SerializeToString())
    return [path, path.with_name(path.name + ".data")] if large else [path]


def _export(path: Path, network: nn.Module, example: Tensor, opset: int, large: bool) -> None:
    """The one place that knows torch's exporters: the one on torch.export from 2.5 on, before it the older one."""
    names: dict[str, Any] = {"input_names": [IMAGE], "output_names": [LOGITS], "opset_version": opset}
    known = inspect.signature(torch.onnx.export).parameters
    if "dynamic_shapes" not in known:
        axes = {IMAGE: {0: BATCH}, LOGITS: {0: BATCH}}
        names |= {"dynamo": False} if "dynamo" in known else {}
        if large:
            raise UnetError(
                f"torch {torch.__version__} writes no ONNX of more than 2 GB in two files.", "Use torch 2.5 or later."
            )
        torch.onnx.export(network, (example,), str(path), dynamic_axes=axes, **names)
        return
    sides = ({0: torch.export.Dim(BATCH, min=1)},)
    program: Any = torch.onnx.export(
        network, (example,), dynamo=True, dynamic_shapes=sides, verbose=False, external_data=large, **names
    )
    program.save(str(path), external_data=large)


def anonymous(model: Any) -> None:
    """Leave out what the exporter notes for its own debugging: lines of code with paths of this machine."""
    graphs = [model, model.graph, *model.functions]
    parts = [item for graph in graphs[1:] for item in (*graph.node, *graph.value_info)]
    parts += [*model.graph.input, *model.graph.output, *model.graph.initializer]
    for item in (*graphs, *parts):
        item.doc_string = ""
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]


def finish(made: Sequence[Path], about: Mapping[str, Any]) -> None:
    """Add the metadata to the first of the files, and check it. Raises UnetError."""
    path, *others = made
    known = {"tensors": files.digest_files(*others)} if others else {}
    text = json.dumps({**about, **known}, allow_nan=False)
    files.write_bytes(path, onnx_header.appended(path.read_bytes(), text))
    onnx = library("onnx", "ONNX files are checked")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        said = next(iter(str(error).splitlines()), "")[:160]
        raise UnetError(
            f"The file that torch made is no valid ONNX: {said}", "Try another version of torch."
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings, which are about its own parts."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def library(name: str, what: str) -> Any:
    """An optional package. Raises UnetError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnetError(f"{what} with the package {name}, which is not installed.", INSTALL) from error


class Session(NamedTuple):
    """A network in a runtime: what runs a batch, where that is in words, (name, sides without the batch) of its inputs
    and outputs."""

    run: Callable[[Any], Any]
    where: str
    ends: list[tuple[str, tuple[Any, ...]]]


def session(path: Path, threads: int, provider: str, settings: Mapping[str, str] = NONE) -> Session:
    """The file ready to be run. `provider`: onnxruntime's for the device, where it has one, with these settings; the
    CPU's otherwise. Raises UnetError."""
    runtime = library("onnxruntime", f"{path.name}: ONNX files are run")
    chosen = [(provider, dict(settings))] if provider and provider in runtime.get_available_providers() else []
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch needs the cores in between
    try:
        made = runtime.InferenceSession(str(path), options, providers=[*chosen, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds have no common base but this
        said = next(iter(str(error).splitlines()), "")[:160]
        raise CheckpointError(
            f"{path.absolute()}: onnxruntime {runtime.__version__} cannot open it: {said}",
            "Export the weights again, or install another version of onnxruntime.",
        ) from error

    def run(images: Any) -> Any:
        return made.run([LOGITS], {IMAGE: images})[0]

    where = made.get_providers()[0].removesuffix("ExecutionProvider")
    ends = [(end.name, tuple(end.shape[1:])) for end in (*made.get_inputs(), *made.get_outputs())]
    return Session(run, f"onnxruntime {runtime.__version__}, {where}", ends)
