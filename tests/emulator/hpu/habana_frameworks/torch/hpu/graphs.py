"""Stand-in for recorded graphs, which exist in lazy mode only: the shapes are counted, the network runs as it is."""

from typing import Any as _Any

import torch as _torch
from emulator.device import no_more as _no_more
from emulator.device import strict as _strict
from emulator.record import RECORD as _RECORD


def _captured(model: _torch.nn.Module, most: int, training: bool) -> _torch.nn.Module:
    forward, seen = model.forward, set()

    def replay(*inputs: _Any, **named: _Any) -> _Any:
        if _torch.is_grad_enabled() != training:
            if training:
                return forward(*inputs, **named)
            _RECORD.violate("wrap_in_hpu_graph is for inference: call the network under torch.no_grad()")
        shape = tuple((tuple(t.shape), t.dtype) for t in [*inputs, *named.values()] if isinstance(t, _torch.Tensor))
        if shape not in seen and len(seen) < most:
            seen.add(shape)
            _RECORD.note("graph captured", "graphs_captured")
        return forward(*inputs, **named)

    model.forward = replay
    return model


def _lazy_only(who: str) -> None:
    if not _RECORD.lazy:
        _RECORD.violate(f"{who} needs lazy mode (PT_HPU_LAZY_MODE=1)")


class ModuleCacher:
    """Records the training graph of each input shape, at most `max_graphs` of them."""

    def __init__(self, max_graphs: int = 10, **other: _Any) -> None:
        _lazy_only("ModuleCacher")
        _no_more("ModuleCacher", other)
        self._most = max_graphs

    def __call__(
        self,
        model: _torch.nn.Module,
        *,
        allow_unused_input: bool = False,
        have_grad_accumulation: bool = False,
        **other: _Any,
    ) -> _torch.nn.Module:
        _no_more("ModuleCacher(...)", other)
        _RECORD.note(f"ModuleCacher unused={allow_unused_input} accumulation={have_grad_accumulation}", "module_cacher")
        return _captured(model, self._most, training=True)


def wrap_in_hpu_graph(model: _torch.nn.Module, **other: _Any) -> _torch.nn.Module:
    """Records the inference graph of each input shape."""
    _lazy_only("wrap_in_hpu_graph")
    _no_more("wrap_in_hpu_graph", other)
    _RECORD.note("wrap_in_hpu_graph")
    return _captured(model, 1 << 30, training=False)


__getattr__ = _strict(__name__, "Gaudi")
