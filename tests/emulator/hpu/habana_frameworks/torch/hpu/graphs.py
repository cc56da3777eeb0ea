"""Stand-in for recorded graphs, which exist in lazy mode only. A replay writes the same memory again: the outputs and
the gradients of a graph are its own tensors, until it runs once more."""

import inspect as _inspect
from typing import Any as _Any

import torch as _torch
from emulator.device import no_more as _no_more
from emulator.device import strict as _strict
from emulator.record import RECORD as _RECORD


def _shapes(inputs: tuple[_Any, ...], named: dict[str, _Any]) -> tuple[_Any, ...]:
    return tuple((tuple(t.shape), t.dtype) for t in [*inputs, *named.values()] if isinstance(t, _torch.Tensor))


def _lazy_only(who: str) -> None:
    if not _RECORD.lazy:
        _RECORD.violate(f"{who} needs lazy mode (PT_HPU_LAZY_MODE=1)")


def _kept(memory: list[_Any], tensors: _Any) -> list[_Any]:
    """The tensors in the memory of their graph, which the first run makes and each further one writes again."""
    if not memory:
        memory.extend(None if t is None else t.detach().clone() for t in tensors)
    else:
        for own, new in zip(memory, tensors, strict=True):
            if own is not None:
                own.copy_(new)
    return [None if own is None else own.detach() for own in memory]


def _parts(made: _Any) -> tuple[_Any, ...]:
    """The tensors that a network gave."""
    return (made,) if isinstance(made, _torch.Tensor) else tuple(made)


def _as(made: _Any, parts: _Any) -> _Any:
    """Tensors in the shape of what a network gave: one, a tuple, or a tuple with names."""
    if isinstance(made, _torch.Tensor):
        return parts[0]
    return type(made)(*parts) if hasattr(made, "_fields") else tuple(parts)


class _TrainingGraph:
    """Forward and backward pass of a network for one shape."""

    def __init__(self, forward: _Any, weights: tuple[_torch.Tensor, ...]) -> None:
        self.forward, self.weights = forward, weights
        self.outputs: list[_Any] = []
        self.gradients: list[_Any] = []

    def __call__(self, *inputs: _Any, **named: _Any) -> _Any:
        graph, given = self, []

        class Replay(_torch.autograd.Function):
            @staticmethod
            def forward(ctx: _Any, *weights: _Any) -> _Any:
                with _torch.enable_grad():
                    made = graph.forward(*inputs, **named)
                given.append(made)
                ctx.made = _parts(made)
                return tuple(_kept(graph.outputs, ctx.made))

            @staticmethod
            @_torch.autograd.function.once_differentiable
            def backward(ctx: _Any, *arriving: _Any) -> _Any:
                wanted = [weight for weight in graph.weights if weight.requires_grad]
                pairs = [(made, grad) for made, grad in zip(ctx.made, arriving, strict=True) if made.requires_grad]
                found = iter(
                    _torch.autograd.grad(
                        [made for made, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True
                    )
                )
                each = [next(found) if weight.requires_grad else None for weight in graph.weights]
                return tuple(_kept(graph.gradients, each))

        results = Replay.apply(*self.weights)
        return _as(given[0], results)


class ModuleCacher:
    """Records the training graph of each input shape, at most `max_graphs` of them. With `have_grad_accumulation` the
    first batch of a step (`set_iteration_count(0)`, also where nobody calls it) has a graph of its own, since the
    gradients of a weight without any are the graph's own tensor."""

    def __init__(self, max_graphs: int = 10, **other: _Any) -> None:
        _lazy_only("ModuleCacher")
        _no_more("ModuleCacher", other)
        self._most, self._count = max_graphs, 0
        self._graphs: dict[_Any, _TrainingGraph] = {}

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
        if isinstance(model, _torch.nn.parallel.DistributedDataParallel):
            _RECORD.violate("ModuleCacher comes before DistributedDataParallel")
        kinds = {parameter.kind for parameter in _inspect.signature(model.forward).parameters.values()}
        if kinds & {_inspect.Parameter.POSITIONAL_ONLY, _inspect.Parameter.VAR_POSITIONAL}:
            _RECORD.violate("ModuleCacher needs a forward without *args")
        forward = model.forward

        def replay(*inputs: _Any, **named: _Any) -> _Any:
            if not (model.training and _torch.is_grad_enabled()):
                return forward(*inputs, **named)
            key = (_shapes(inputs, named), have_grad_accumulation and self._count == 0)
            if key not in self._graphs:
                if len(self._graphs) == self._most:
                    return forward(*inputs, **named)
                self._graphs[key] = _TrainingGraph(forward, tuple(model.parameters()))
                _RECORD.note("graph captured", "graphs_captured")
            return self._graphs[key](*inputs, **named)

        model.forward, model.set_iteration_count = replay, self._set_count
        return model

    def _set_count(self, number: int) -> None:
        self._count = number
        _RECORD.note(f"set_iteration_count {number}", "set_iteration_count")


def wrap_in_hpu_graph(model: _torch.nn.Module, **other: _Any) -> _torch.nn.Module:
    """Records the inference graph of each input shape."""
    _lazy_only("wrap_in_hpu_graph")
    _no_more("wrap_in_hpu_graph", other)
    _RECORD.note("wrap_in_hpu_graph")
    forward, graphs = model.forward, {}

    def replay(*inputs: _Any, **named: _Any) -> _Any:
        if _torch.is_grad_enabled():
            _RECORD.violate("wrap_in_hpu_graph is for inference: call the network under torch.no_grad()")
        made = forward(*inputs, **named)
        key = _shapes(inputs, named)
        if key not in graphs:
            graphs[key] = []
            _RECORD.note("graph captured", "graphs_captured")
        return _as(made, _kept(graphs[key], _parts(made)))

    model.forward = replay
    return model


__getattr__ = _strict(__name__, "Gaudi")
