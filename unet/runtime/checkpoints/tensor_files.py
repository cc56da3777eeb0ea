"""Tensors and facts as a safetensors file, written whole or not at all, read with its digest verified."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from unet.errors import UnetError
from unet.files import atomic, explain
from unet.weight_files import safetensors_header

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"}
TYPES |= {getattr(torch, f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)} | {torch.uint8: "U8"}


def write(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor], before: Path | None = None) -> None:
    """Write `tensors` and `facts` (plain JSON), atomically; the file that was there gets the name `before`. Raises
    UnetError where the disk is full, or the header is longer than `read` takes."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())  # every tensor is aligned to its type
    host = {name: tensors[name].detach().cpu().contiguous() for name in order}
    table: dict[str, Any] = dict.fromkeys(tensors)  # the header keeps the order that was given
    end = 0
    for name, tensor in host.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    pieces = [tensor.reshape(-1).view(torch.uint8).numpy().data for tensor in host.values()]
    text = json.dumps(facts, allow_nan=False)
    about = {"facts": text, "digest": safetensors_header.content_digest(text, table, pieces)}
    header = json.dumps({"__metadata__": about, **table}).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > safetensors_header.MAX_HEADER:
        raise UnetError(
            f"{path.absolute()}: was not written: its header (names of cases and tensors) would take {len(header)}"
            f" bytes, and at most {safetensors_header.MAX_HEADER} are read.",
            "Give the cases shorter names, or train on fewer of them.",
        )
    with atomic(path, before) as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for piece in pieces:
            stream.write(piece)


def read(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """(facts, tensors) on the CPU; facts are empty for another program's file. Raises DamagedError where the file is
    cut short or its digest is another one."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            header = safetensors_header.parse(path, stream, size)
            stream.seek(0)
            content = stream.read(size)
    except OSError as error:
        raise explain(error, path) from error
    if header.digest is not None or header.facts:
        now = safetensors_header.content_digest(header.text, header.table, [memoryview(content)[header.start :]])
        if now != header.digest:
            raise safetensors_header.damaged(
                path, f"damaged (digest {now[:8]}, {str(header.digest)[:8]} when it was written)"
            )
    try:
        found = safetensors.torch.load(content)
        return header.facts, {name: found[name] for name in header.table}
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise safetensors_header.damaged(path, f"damaged ({str(error)[:80]})") from error
