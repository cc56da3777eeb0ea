"""export: writes trained weights as ONNX, OpenVINO, safetensors, or under the key names of other programs, after the
networks were compared with torch."""

from __future__ import annotations

import collections
import copy
import dataclasses
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unet
from unet import files, host
from unet.commands import number_format, output, setup
from unet.commands.predict_outputs import absolute
from unet.config.flags_reports import ExportOptions
from unet.config.options import fields, flag
from unet.config.resolve import Resolved
from unet.config.schema import Config, resolve_path
from unet.errors import CheckpointError, UnetError, UsageError
from unet.runtime.checkpoints import checkpoint_paths
from unet.runtime.stop import interruptible
from unet.weight_files import exported, openvino_header, safetensors_header

if TYPE_CHECKING:
    from torch import nn

SUFFIXES = {
    "onnx": (".onnx",),
    "openvino": (".xml",),
    "safetensors": (".safetensors",),
    "published": (".pt", ".pth", ".safetensors"),
    "reference": (".pt", ".pth", ".safetensors"),
}
RUN = ("onnx", "openvino")  # what holds a network, and not weights alone
USERS = {"half": ("openvino",), "opset": RUN, "passes": RUN, "case_names": (*RUN, "safetensors")}  # of flags: formats
CASES_OF = ("training", "validation", "trained_before")  # what metadata call the lists of cases
CASES = 3  # of a data set that is at hand


@dataclasses.dataclass(frozen=True)
class Source:
    """The network to export, on the host and as it runs on the device, with the metadata of its weights."""

    path: Path
    facts: Mapping[str, Any]
    network: nn.Module
    placed: nn.Module
    context: setup.Context


def run(resolved: Resolved, command: str) -> int:
    """Write the weights in each format of --to. A network that differs from torch's beyond the tolerance is not
    written. Raises UnetError."""
    paths = setup.given_weights(resolved.config, "export")
    if len(paths) > 1:
        raise UsageError(f"export writes one network, not {len(paths)}.", "Type one --weights FILE.")
    targets = targets_of(resolved, paths[0])
    tell_unused(resolved, targets)
    precision = resolved.config.device.precision
    resolved = dataclasses.replace(resolved, config=resolved.config.replace(precision="fp32"))
    context = setup.assemble(resolved.config, resolved.sources)
    if context.group.world > 1:
        raise UsageError(f"export runs in one process, not in {context.group.world}.", "Type it without the launcher.")
    setup.read_weights(paths[0])  # refuses exported files
    declared = context.task.Settings
    shape = setup.shaping(declared)
    resolved, facts = setup.apply_checkpoint_settings(resolved, paths, declared.inference_settings, shape)
    context = context.with_config(resolved.config)
    network = setup.read_network(context, paths[0], resolved).eval()
    source = Source(paths[0], facts[0], network, setup.placed(context, copy.deepcopy(network)), context)
    results = []
    with interruptible():
        for kind, path in targets.items():
            written, found = write(source, kind, path)
            sizes = sum(item.stat().st_size for item in written)
            results.append({"to": kind, "files": list(map(str, written)), "bytes": sizes, **found})
    text = "\n".join(f"{item['files'][0]}: {host.format_bytes(item['bytes'])}{item.pop('text')}" for item in results)
    if set(RUN) & set(targets) and (line := number_format.beside_torch(precision, context.device)):
        text = f"{text}\n{line}"
    output.show(context.config, {"weights": str(paths[0]), "device": context.device.describe(), "made": results}, text)
    return 0


def tell_unused(resolved: Resolved, kinds: Collection[str]) -> None:
    """Tell of typed flags that no format of --to has."""
    for name, users in USERS.items():
        typed = resolved.sources[name].startswith("flag")
        if typed and resolved.config.get(name) != fields(ExportOptions)[name].default and not set(users) & set(kinds):
            spelling = resolved.sources[name].removeprefix("flag ")
            host.notice(f"note: {spelling} is for --to {' or '.join(users)}: it changes nothing with {' '.join(kinds)}")


def targets_of(resolved: Resolved, weights: Path) -> dict[str, Path]:
    """format -> the file to write. Raises UsageError for names that cannot be, and files that must not be replaced."""
    config, kinds = resolved.config, list(dict.fromkeys(resolved.config.export.to))
    given = None if resolved.sources["output"] == "default" else Path(config.predict.output)
    if given is not None and len(kinds) > 1:
        raise UsageError(
            f"--output {given} names one file, and --to {' '.join(kinds)} writes {len(kinds)}.",
            "Type one format, or leave --output out.",
        )
    found = {}
    for kind in kinds:
        path = absolute(given or weights.with_name(usual_name(weights, kind)))
        if path.suffix.lower() not in SUFFIXES[kind]:
            raise UsageError(
                f"--output {path.name}: a file of --to {kind} ends in {' or '.join(SUFFIXES[kind])}.",
                f"Type --output {path.with_suffix(SUFFIXES[kind][0]).name}",
            )
        beside = {"onnx": path.with_name(f"{path.name}.data"), "openvino": openvino_header.weights_of(path)}
        for each in (path, *([beside[kind]] if kind in beside else [])):  # onnx: of weights over 2 GB
            require_free(each, path, config)
        found[kind] = path
    return found


def usual_name(weights: Path, kind: str) -> str:
    """The name of an exported file beside its weights."""
    stem = weights.name.removesuffix(weights.suffix)
    middle = "" if kind in RUN else f".{'weights' if kind == 'safetensors' else kind}"
    return f"{stem}{middle}{SUFFIXES[kind][0]}"


def require_free(path: Path, model: Path, config: Config) -> None:
    """Raise UsageError where a file is there that must not be replaced: without --overwrite any, with it one that this
    program did not export. `model`: the file whose metadata say so."""
    if not os.path.lexists(path):
        return
    if not config.general.overwrite:
        raise UsageError(f"{path} is there already.", "Name another --output, or replace it with --overwrite.")
    try:
        ours = exported.is_exported(model) and bool(exported.read(model))
    except UnetError:
        ours = False
    if not ours and exported.SOURCE not in checkpoint_paths.metadata_of(model):
        raise UsageError(
            f"{path} is there, and does not say that this program exported it.",
            "Move it elsewhere, or name another --output.",
        )


def write(source: Source, kind: str, path: Path) -> tuple[list[Path], dict[str, Any]]:
    """(the files, what is told of them) of one format. They are made in a folder of their own beside, and moved to
    their place when all is well."""
    files.make_folder(path.parent)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent) as folder:
        made, found = make(source, kind, Path(folder) / path.name)
        for each in reversed(made):  # the weights first: a model never stands without them
            with open(each, "rb") as stream:
                os.fsync(stream.fileno())
            each.replace(path.parent / each.name)
    return [path.parent / each.name for each in made], found


def make(source: Source, kind: str, path: Path) -> tuple[list[Path], dict[str, Any]]:
    """Write the files of one format at `path`, and compare. Raises UnetError beyond the tolerance."""
    context = source.context
    state = source.network.state_dict()
    if kind == "safetensors":
        from unet.runtime.checkpoints import checkpoint

        left = CASES_OF if not context.config.export.case_names else ()
        names = {name.removesuffix("?") for name in safetensors_header.FACTS} - {"format", "ranks", *left}
        facts = {name: value for name, value in source.facts.items() if name in names}
        own = {**described(source), **facts, exported.SOURCE: files.digest_files(source.path)}
        checkpoint.save_weights(path, own, state)
        return [path], {"text": ", weights under this program's names"}
    if kind not in RUN:
        content = context.task.reference_checkpoint(state, kind == "published")
        save(path, content)
        return [path], {"text": f", weights under the names of the {kind} network"}
    from unet.export import compare, network, onnx_file, openvino_file

    for name in ("onnx", "onnxscript", "onnxruntime" if kind == "onnx" else "openvino"):
        onnx_file.library(name, f"{exported.KINDS[kind]} files are written and compared")
    about, shape = metadata(source), context.task.eval_input_shape()
    model = path if kind == "onnx" else path.with_suffix(".onnx")
    made = onnx_file.write(model, onnx_file.textbook(source.network), shape, context.config.export.opset)
    if kind == "onnx":
        onnx_file.finish(made, about)
    else:
        made = openvino_file.write(path, model, about, context.config.export.half)
    import torch

    facts = exported.read(path)
    runtime = context.device.onnx_provider, context.device.onnx_options
    other = network.load(path, facts, torch.get_num_threads(), *runtime)
    both = compare.Both(source.placed, other, context.device.now)
    where = compared(source, both)
    found = both.result()
    half = kind == "openvino" and context.config.export.half
    if wrong := found.fault(half):
        raise CheckpointError(
            f"{path.name} was not written: {wrong} ({other.where}, beside torch on {where}).",
            "Try --opset 18, or another version of torch or of that runtime." if not half else "Leave --half out.",
        )
    words = f", run by {other.where}\n  beside torch on {where}: {found.line()}"
    if len(made) > 1 and kind == "onnx":
        words += f"\n  more than 2 GB: keep {made[1].name} beside it"
    return made, {"runtime": other.where, "compared_on": where, **found.described(), "text": words}


def described(source: Source) -> dict[str, Any]:
    """What a file says of the task: its name, and the settings that its network and its input need."""
    config = source.context.config
    names = dict.fromkeys((*config.task.inference_settings, *setup.shaping(type(config.task))))
    return {"task": config.task.name, "settings": {name: files.jsonable(config.get(name)) for name in names}}


def metadata(source: Source) -> dict[str, Any]:
    """The metadata of an exported network. Raises UsageError where the task has no such."""
    import torch

    from unet.export import onnx_file

    task, facts = source.context.task, source.facts
    deployment = task.deployment()
    shape = task.eval_input_shape()
    with torch.no_grad():
        result = onnx_file.textbook(source.network)(torch.zeros(shape))
    cases = CASES_OF if source.context.config.export.case_names else ()
    kept = ("run_name", "epoch", "score", *cases)
    return {
        "format": exported.FORMAT,
        "unet": unet.__version__,
        **described(source),
        "input": {"name": onnx_file.IMAGE, "shape": [onnx_file.BATCH, *shape[1:]], "type": "float32"},
        "output": {"name": onnx_file.LOGITS, "shape": [onnx_file.BATCH, *result.shape[1:]], "type": "float32"},
        "weights": files.digest_files(source.path),
        "deployment": files.jsonable(deployment),
        **{name: facts[name] for name in kept if name in facts},
    }


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write weights under other names, as a file of torch.save or as bare safetensors, by the suffix."""
    import torch

    if path.suffix.lower() == ".safetensors":
        import safetensors.torch

        from unet.runtime.checkpoints.checkpoint import weights_of

        bare = {name: value.clone().contiguous() for name, value in weights_of(content).items()}  # none twice
        files.write_bytes(path, safetensors.torch.save(bare, {"format": "pt"}))
        return
    with files.atomic(path) as stream:
        torch.save(dict(content), stream)


def compared(source: Source, both: nn.Module) -> str:
    """Run both networks over real cases: those named on the command line, or the first of the data set if it is there,
    or else over noise. Gives what it was, in words."""
    import torch

    from unet.export.compare import Both, Enough

    assert isinstance(both, Both)
    context, config = source.context, source.context.config
    cases, passes = cases_of(context), config.export.passes
    if not cases:
        generator = torch.Generator().manual_seed(0)
        both.limit = min(passes, 4)
        with torch.no_grad():
            for _ in range(both.limit):
                made = torch.randn(context.task.eval_input_shape(), generator=generator)
                both(context.device.to({"image": made})["image"])
        noise = host.counted(both.limit, "input")
        return f"{noise} of noise (no case was named, and {flag('data')} has none)"
    predictor = setup.make_predictor(context, both)
    share = -(-passes // len(cases))
    for number, images in enumerate(cases, 1):
        both.limit = min(passes, number * share)
        try:
            collections.deque(context.task.predict_case(images, images, predictor, config.predict), maxlen=0)
        except Enough:
            continue
    found = [images[0].parent.name if len(images) > 1 else images[0].name for images in cases]
    names = ", ".join(found[:CASES]) + (" ..." if len(found) > CASES else "")
    given = host.counted(len(cases), context.task.input_noun)
    return f"{given} ({names}), passes of the network: {both.passes}"


def cases_of(context: setup.Context) -> list[list[Path]]:
    """The images of each case to compare on; empty where none was named and the data set is not there."""
    task, config = context.task, context.config
    if config.input.inputs:
        return list(task.find_inputs([Path(name) for name in config.input.inputs]).values())
    root = resolve_path(config.data.data, "data")
    try:
        return list(task.find_inputs([root]).values())[:CASES] if root.exists() else []
    except UnetError as error:
        host.notice(f"note: {error.message}")
        return []
