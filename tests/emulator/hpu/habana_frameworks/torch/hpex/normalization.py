"""Stand-in: gradients clipped by their common norm."""

from collections.abc import Iterable as _Iterable
from typing import Any as _Any

import torch as _torch
from emulator.device import no_more as _no_more
from emulator.device import strict as _strict


class FusedClipNorm:
    """The norm of all gradients together is held at `max_norm`."""

    def __init__(self, parameters: _Iterable[_torch.Tensor], max_norm: float, **other: _Any) -> None:
        _no_more("FusedClipNorm", other)
        self._weights, self._most = list(parameters), max_norm

    def clip_norm(self, parameters: _Iterable[_torch.Tensor]) -> _torch.Tensor:
        return _torch.nn.utils.clip_grad_norm_(list(parameters), self._most)


__getattr__ = _strict(__name__, "Gaudi")
