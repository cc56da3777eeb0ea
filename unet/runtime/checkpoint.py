"""Weights and the resumable state: written whole or not at all, read without executing anything that is in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet.errors import CheckpointError
from unet.files import atomic, explain

WEIGHTS, STATE = "unet weights 1", "unet state 1"
KEYS_OF_FOREIGN = (
    "best_model_state_dict",
    "last_model_state_dict",
    "model_state_dict",
    "state_dict",
    "model",
    "network_weights",
)


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, atomically; tensors as the host's, so that any machine can read the file."""
    with atomic(path) as stream:
        torch.save(_on_host(dict(content)), stream)


def _on_host(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_host(item) for item in value)
    return value


def read(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU. Raises CheckpointError for a file that is missing, cut short, or holds
    code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        beside = sorted(item.name for item in path.parent.glob("*.pt"))[:5] if path.parent.is_dir() else []
        raise CheckpointError(
            f"{path.absolute()}: no such file" + (f" (beside it: {', '.join(beside)})." if beside else "."),
            "Give weights with --weights FILE; `python -m unet train` makes some.",
        ) from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path.absolute()}: is a folder.", "Give the file with the weights.") from error
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):  # zip or pickle
            raise CheckpointError(
                f"{path.absolute()}: holds code or objects, not weights alone; it was not opened.",
                "Save its state_dict() with torch.save, where you trust the file, and give that.",
            ) from error
        raise _damaged(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        raise explain(error, path) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.absolute()}: holds {type(content).__name__}, not weights.",
            "Give a state dict saved with torch.save.",
        )
    return content


def _damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path.absolute()}: not a torch checkpoint, or cut short ({path.stat().st_size} bytes;"
        f" {str(error).splitlines()[0][:80] if str(error) else type(error).__name__}).",
        "Copy the file again, or name another one.",
    )


def weights_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state dict within a checkpoint: our own, another trainer's, or a bare one."""
    for key in KEYS_OF_FOREIGN:
        if isinstance(content.get(key), dict):
            return dict(content[key])
    return content


def fit(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load `state` into `module`. Raises CheckpointError that names the keys and shapes that differ."""
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
    module.load_state_dict({**{key: own[key] for key in own if key.endswith("num_batches_tracked")}, **state})
