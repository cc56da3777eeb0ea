"""Reads and writes weights and states: written atomically, read without executing code from the file.

This program writes safetensors. In weights the tensors have the network's key names, so other programs can read them;
in a state `facts["content"]` holds the structure of its tensors, and the history of the run is a tensor of bytes. Torch
files of earlier versions and other programs are read too, by a torch without known vulnerabilities, or after a check of
their opcodes.
"""

from __future__ import annotations

import contextlib
import pickle
import re
import shlex
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet.errors import CheckpointError, DamagedError, StorageError
from unet.files import explain, jsonable, schema_error
from unet.runtime.checkpoints import history, nested, numpy_numbers, tensor_files
from unet.runtime.progress import wrong_progress
from unet.weight_files import exported, pickles, safetensors_header

WEIGHTS, STATE = "unet weights 2", "unet state 3"
WEIGHTS_FORMATS, STATE_FORMATS = ("unet weights 1", WEIGHTS), ("unet state 1", "unet state 2", STATE)
SAFE = (2, 10)  # the first torch whose weights_only has no known vulnerability
STATE_PARTS = {
    "model": {str: Tensor},
    "optimizer": {"state": dict, "param_groups": [dict]},
    "scaler": dict,
    "ema?": {"model": {str: Tensor}, "count": Tensor},
    "rng": {"python": [object], "numpy": [object], "torch": Tensor, "device": object},
    "progress": dict,
}
KEYS_OF_FOREIGN = (
    "best_model_state_dict",
    "last_model_state_dict",
    "model_state_dict",
    "state_dict",
    "model",
    "network_weights",
)


def save_weights(path: Path, facts: Mapping[str, Any], state: Mapping[str, Tensor], before: Path | None = None) -> None:
    """Write a state dict and its metadata atomically; existing weights are renamed to `before`."""
    tensor_files.write(path, jsonable({"format": WEIGHTS, **facts}), state, before)


def save_state(path: Path, facts: Mapping[str, Any], content: Mapping[str, Any], before: Path | None = None) -> None:
    """Write nested tensors and plain values atomically; an existing state is renamed to `before`."""
    tensors: dict[str, Tensor] = {}
    tree = nested.flatten(content, tensors)
    tensor_files.write(path, {"format": STATE, **facts, "content": tree}, tensors, before)


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint in any format, on the CPU; the format is detected from the content. Raises
    DamagedError for a truncated file, CheckpointError for one that is missing or holds code.
    """
    try:
        kind = safetensors_header.kind(path)
    except DamagedError:
        raise
    except StorageError as error:
        if path.exists() or path.is_symlink():
            raise CheckpointError(error.message, "Give the file with the weights.") from error
        names = [item for form in ("safetensors", "pt", "pth") for item in path.parent.glob(f"*.{form}")]
        beside = sorted(item.name for item in names)[:5]
        raise CheckpointError(
            f"{path.absolute()}: no such file" + (f" (beside it: {', '.join(beside)})." if beside else "."),
            "Give weights with --weights FILE; `python -m unet train` makes some.",
        ) from error
    if kind in exported.KINDS:
        raise CheckpointError(
            f"{path.absolute()}: an exported network ({exported.KINDS[kind]}), which can be run, and not trained or"
            " changed.",
            f"Give the weights that it was made of; to run it: python -m unet predict --weights {path.name}",
        )
    content = _torch_file(path, kind) if kind != "safetensors" else _safetensors(path)
    form = content.get("format")
    if isinstance(form, str) and form.startswith("unet "):
        safetensors_header.require_facts({name: value for name, value in content.items() if name in _FACTS}, path)
        if form not in (*WEIGHTS_FORMATS, *STATE_FORMATS):
            raise CheckpointError(f"{path.absolute()}: {form!r} is of a later version.", "Read it with that version.")
    return content


_FACTS = {name.removesuffix("?") for name in safetensors_header.FACTS}


def _safetensors(path: Path) -> dict[str, Any]:
    facts, tensors = tensor_files.read(path)
    if not facts:
        return dict(tensors)
    if "content" not in facts:
        return {**facts, "model": tensors}
    try:
        content = nested.unflatten(facts["content"], tensors)
        progress = content.get("progress")
        if isinstance(progress, dict) and isinstance(progress.get("history"), Tensor):
            progress["history"] = history.unpack(progress["history"])
        return {**{name: value for name, value in facts.items() if name != "content"}, **content}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise safetensors_header.damaged(
            path, f"not a state ({type(error).__name__} in the structure of its tensors)"
        ) from error


def is_safe(version: str) -> bool:
    """Whether this torch reads files with `weights_only=True` without known vulnerabilities; pre-releases (2.10.0a0)
    count as unsafe."""
    match = re.match(r"(\d+)\.(\d+)(?:\.\d+)?(a|b|rc|\.?dev)?", version)
    if match is None:
        return False
    number = int(match[1]), int(match[2])
    return number > SAFE or (number == SAFE and not match[3])


def _torch_file(path: Path, kind: str, version: str = torch.__version__) -> dict[str, Any]:
    """The content of a torch checkpoint. Raises CheckpointError."""
    if kind == "zip" and _is_program(path):
        raise CheckpointError(
            f"{path.absolute()}: holds a TorchScript program, not weights alone; it was not opened.",
            "Save its state_dict() with torch.save, where you trust the file, and give that.",
        )
    try:
        if not is_safe(version):
            pickles.structure(path)
        content = _load(path)
    except pickles.UnsafePickle as error:
        raise CheckpointError(
            f"{path.absolute()}: holds {error}; it was not opened, since torch {version} has known holes.",
            f"On a machine with torch 2.10 or later type: {conversion(path)}",
        ) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.absolute()}: holds code or objects, not weights alone; it was not opened.",
            "Save its state_dict() with torch.save, where you trust the file, and give that.",
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise explain(error, path) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.absolute()}: holds {type(content).__name__}, not weights.",
            "Give a state dict saved with torch.save.",
        )
    return content


def _load(path: Path) -> Any:
    """What torch reads without executing code. Raises pickle.UnpicklingError for anything else."""
    try:
        with open(path, "rb") as stream:  # by its name torch would take any .safetensors for one
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with contextlib.suppress(pickles.UnsafePickle):
            return numpy_numbers.read(path)
        raise error


def require_state(content: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if `content` is not a resumable state, or a part is missing or of the wrong type."""
    if content.get("format") not in STATE_FORMATS:
        raise CheckpointError(
            f"{path.absolute()}: holds no resumable state (format {str(content.get('format', 'unknown'))[:40]!r}).",
            "Give the state file or the run's folder with --resume; weights alone: --load FILE.",
        )
    weights_of({"model": content.get("model")}, path)
    if wrong := schema_error(content, STATE_PARTS, "the state") or wrong_progress(content["progress"]):
        raise CheckpointError(
            f"{path.absolute()}: {wrong}.",
            "Restore the file that the run saved, or start a new run from its weights: --load FILE --run-name NEW.",
        )


def conversion(path: Path) -> str:
    """The command that converts a torch checkpoint to safetensors."""
    new = str(path.with_suffix(".safetensors"))
    code = (
        f"import torch, safetensors.torch as s; f = open({str(path)!r}, 'rb');"
        " w = torch.load(f, map_location='cpu', weights_only=True);"
        f" w = w.get('state_dict', w.get('model', w)); s.save_file({{k: v.clone() for k, v in w.items()}}, {new!r})"
    )
    return f"python -c {shlex.quote(code)}"


def _is_program(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> DamagedError:
    said = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
    return safetensors_header.damaged(
        path, f"not a torch checkpoint, or cut short ({path.stat().st_size} bytes; {said})"
    )


def weights_of(content: Mapping[str, Any], path: Path | None = None) -> dict[str, Tensor]:
    """The state dict in a checkpoint: this program's (of a state that of the moving average, where the run has one: it
    is the network that is scored), another trainer's, or a bare one. Raises CheckpointError if its entries are not
    named tensors."""
    if content.get("format") in STATE_FORMATS:
        content = content.get("ema") or content
    state = next((content[key] for key in KEYS_OF_FOREIGN if isinstance(content.get(key), dict)), content)
    strange: Any = next(
        (key for key, value in state.items() if not isinstance(key, str) or not isinstance(value, Tensor)), None
    )
    if strange is not None or not state:
        found = f"the entry {strange!r} ({type(state[strange]).__name__})" if state else "nothing"
        raise CheckpointError(
            f"{path.absolute() if path else 'The checkpoint'}: holds {found} where named tensors belong.",
            "Give a state dict: names and tensors, saved with torch.save or as safetensors.",
        )
    return dict(state)


def require_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError that names the first tensor with NaN or infinity."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise CheckpointError(
                f"{path.absolute()}: {name}: {count} of {value.numel()} values are not finite (NaN or infinite).",
                "Give other weights: every mask and score of these would be empty.",
            )


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load `state` into `module`. Raises CheckpointError that names the keys and shapes that differ, or a tensor that
    is not finite."""
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(value.shape)} (here {tuple(own[key].shape)})"
        for key, value in state.items()
        if key in own and getattr(value, "shape", None) != own[key].shape
    ]
    faults = [
        f"{word} {len(items)}: {', '.join(items[:3])}{' ...' if len(items) > 3 else ''}"
        for word, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    if faults:
        raise CheckpointError(
            f"{path.absolute()}: weights of another network; {'; '.join(faults)}.",
            "Give the --layers and --width (and --task) that these weights were trained with.",
        )
    require_finite(state, path)
    module.load_state_dict({**{key: own[key] for key in own if key.endswith("num_batches_tracked")}, **state})
