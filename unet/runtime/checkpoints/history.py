"""The history of a run (a row an epoch) as a tensor of bytes: the header of a file is of limited length, and a long run
has many rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Packer:
    """Packs a history that grows. Each row is encoded once, so saving stays fast; a row must not change after that."""

    def __init__(self) -> None:
        self.rows: Sequence[Mapping[str, Any]] | None = None
        self.encoded: list[bytes] = []

    def pack(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The rows as JSON, in a tensor of bytes."""
        if rows is not self.rows or len(rows) < len(self.encoded):
            self.rows, self.encoded = rows, []
        self.encoded += [json.dumps(row).encode() for row in rows[len(self.encoded) :]]
        return torch.frombuffer(bytearray(b"[" + b",\n".join(self.encoded) + b"]"), dtype=torch.uint8)


def unpack(packed: Tensor) -> Any:
    """What was packed. Raises ValueError for bytes that are not JSON."""
    return json.loads(packed.numpy().tobytes())
