"""What a program does with the device, seen through torch's own hooks, and the order that Gaudi's lazy mode asks for.

In lazy mode operations are collected until `mark_step` sends them off. It belongs right after the backward pass, right
after the optimiser step, and on both sides of an evaluation's forward pass; inside a forward or backward pass it gives
wrong results.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import multiprocessing
import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import dataloader

from emulator.record import RECORD

BACKWARD, STEP, TRAINING, EVALUATION = "backward pass", "optimiser step", "training forward", "evaluation forward"


class Steps(threading.local):
    """The modules that are at work in this thread, outermost first: what each one is to the device."""

    def __init__(self) -> None:
        self.modules: list[str] = []


STEPS = Steps()
INNER = "inner"


class Order:
    """What was done last that no mark_step has followed."""

    enforced = False
    last: str | None = None
    backward_depth = 0
    read = False  # whether the host has read data since the last mark_step


def due(now: str, *forbidden: str) -> None:
    """Refuse `now` where one of `forbidden` came last, without a mark_step since."""
    if Order.enforced and Order.last in forbidden:
        RECORD.violate(f"lazy mode: {now} with no mark_step since the last {Order.last}")


def mark_step(sync: bool = False) -> None:
    if not Order.enforced:
        RECORD.violate("mark_step in eager mode: it does nothing there but warn")
    if STEPS.modules:
        RECORD.violate("lazy mode: mark_step during a module's forward pass")
    if Order.backward_depth:
        RECORD.violate("lazy mode: mark_step during a backward pass")
    RECORD.device.use()
    Order.last, Order.read = None, False
    RECORD.note("mark_step")


def on_device(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type == RECORD.kind


def is_network(module: nn.Module) -> bool:
    """Whether a module has weights on the device (a loss or a bare activation has none)."""
    return on_device(next(itertools.chain(module.parameters(), module.buffers()), None))


def before_forward(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if torch.compiler.is_compiling():
        return
    kind = ""
    if any(STEPS.modules):
        kind = INNER
    elif is_network(module):
        kind = INNER if Order.backward_depth else TRAINING if torch.is_grad_enabled() else EVALUATION
    STEPS.modules.append(kind)
    if kind in (TRAINING, EVALUATION):
        tensors = [t for t in inputs if isinstance(t, Tensor)]
        RECORD.shape(f"{type(module).__name__} {kind} {[(list(t.shape), str(t.dtype)) for t in tensors]}")
        RECORD.note(kind, "forward")
        due(f"the next {kind}", BACKWARD, STEP, EVALUATION, *([TRAINING] if kind == EVALUATION else []))
        if Order.enforced and Order.read and kind == EVALUATION:
            RECORD.violate(f"lazy mode: the next {kind} with no mark_step since data was read by the host")


def after_forward(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if torch.compiler.is_compiling() or not STEPS.modules:
        return
    kind = STEPS.modules.pop()
    if kind in (TRAINING, EVALUATION) and output is not None:  # None: it has failed
        Order.last = kind


def watch_backward() -> None:
    original = torch.autograd.backward

    @functools.wraps(original)
    def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
        several = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        if not any(map(on_device, several)):
            original(tensors, *args, **kwargs)
            return
        outermost = not Order.backward_depth
        if outermost:
            RECORD.note("backward")
            due("a backward pass", BACKWARD, STEP, EVALUATION)
        Order.backward_depth += 1
        try:
            original(tensors, *args, **kwargs)
        finally:
            Order.backward_depth -= 1
        if outermost:
            Order.last = BACKWARD

    torch.autograd.backward = backward


def owns_device(optimizer: torch.optim.Optimizer) -> bool:
    return any(on_device(weight) for group in optimizer.param_groups for weight in group["params"])


def before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if owns_device(optimizer):
        RECORD.note(f"optimizer_step {type(optimizer).__name__}", "optimizer_step")
        due("an optimiser step", BACKWARD, EVALUATION)


def after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if owns_device(optimizer):
        Order.last = STEP


def watch_parallel() -> None:
    """What DistributedDataParallel is given."""
    wrapper = nn.parallel.DistributedDataParallel
    original = wrapper.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        if is_network(given["module"]):
            plain = (bool, int, float, str, list, type(None))
            RECORD.ddp = {
                key: value if isinstance(value, plain) else repr(value)
                for key, value in list(given.items())[2:]
                if key != "kwargs"
            }
            RECORD.note("DistributedDataParallel")
            check_parallel(given)
        original(self, *args, **kwargs)

    wrapper.__init__ = init


def check_parallel(given: dict[str, Any]) -> None:
    ids = given["device_ids"]
    if RECORD.kind == "hpu" and ids is not None:
        RECORD.violate(f"DistributedDataParallel on hpu takes no device_ids, not {ids}")
    if RECORD.kind == "hpu" and given["broadcast_buffers"] is not False:
        RECORD.violate("DistributedDataParallel on hpu needs broadcast_buffers=False")
    if RECORD.kind != "hpu":
        own = RECORD.device.current_device()
        if ids is None or [torch.device(RECORD.kind, i).index if isinstance(i, int) else i.index for i in ids] != [own]:
            RECORD.violate(f"DistributedDataParallel on {RECORD.kind} needs device_ids=[{own}], not {ids}")


def watch_scaler() -> None:
    original = torch.amp.GradScaler.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        if bound.arguments["enabled"]:
            RECORD.note("GradScaler")
            if RECORD.kind == "hpu":
                RECORD.violate("there is no loss scaling on hpu: bfloat16 needs none (GradScaler(enabled=False))")
        original(self, *args, **kwargs)

    torch.amp.GradScaler.__init__ = init


def watch_workers() -> None:
    """A loader's processes must not be forked from one that has used the device."""
    iterator = dataloader._MultiProcessingDataLoaderIter
    original = iterator.__init__

    @functools.wraps(original)
    def init(self: Any, loader: Any) -> None:
        method = (loader.multiprocessing_context or multiprocessing).get_start_method()
        RECORD.note(f"workers {method} {loader.num_workers}", "workers")
        if method == "fork" and RECORD.device.used():
            self._shutdown = True  # there is nothing to clear up
            RECORD.violate(
                f"DataLoader workers are forked from a process that uses {RECORD.kind}; spawn, or forkserver"
            )
        original(self, loader)

    iterator.__init__ = init

    begin = multiprocessing.process.BaseProcess.start

    @functools.wraps(begin)
    def start(self: Any) -> None:
        method = getattr(self, "_start_method", None) or multiprocessing.get_start_method()
        if method == "fork" and RECORD.device.used():
            RECORD.violate(f"A process is forked from one that uses {RECORD.kind}; spawn, or forkserver")
        begin(self)

    multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]


def on_event(what: str) -> None:
    """Called by the device: "read" before data goes to the host, "convolution" before the first one."""
    if what == "read":
        if len(RECORD.events) < 200:
            RECORD.events.append("read")
        due("data is read by the host", EVALUATION)
        Order.read = True
    elif RECORD.kind == "npu":
        npu = torch.get_device_module("npu")
        RECORD.tf32 = {"conv": npu.conv.allow_hf32, "matmul": npu.matmul.allow_hf32}
    elif RECORD.kind == "mlu":
        RECORD.tf32 = {
            "cnnl": torch.backends.cnnl.allow_tf32,  # type: ignore[attr-defined]
            "matmul": torch.backends.mlu.matmul.allow_tf32,  # type: ignore[attr-defined]
        }


def at_exit() -> None:
    if Order.enforced and Order.last in (BACKWARD, STEP, EVALUATION):
        RECORD.blame(f"lazy mode: the process ends with no mark_step since the last {Order.last}")


def watch(lazy: bool) -> None:
    """From now on everything is seen; in lazy mode the order of calls is enforced."""
    Order.enforced = lazy
    register_module_forward_pre_hook(before_forward)
    register_module_forward_hook(after_forward, always_call=True)
    register_optimizer_step_pre_hook(before_step)
    register_optimizer_step_post_hook(after_step)
    watch_backward()
    watch_parallel()
    watch_scaler()
    watch_workers()
    RECORD.device.watch(on_event)


def watch_compile() -> None:
    """torch.compile with the bridge's backend, which runs the captured graph as it is."""
    original = torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        if any(isinstance(value, torch.SymInt) for value in inputs):
            RECORD.violate("hpu_backend: symbolic shapes")
        if torch.distributed.is_initialized() and torch._dynamo.config.optimize_ddp:
            RECORD.violate("hpu_backend: set torch._dynamo.config.optimize_ddp = False for several processes")
        RECORD.note("graph compiled", "graphs_captured")
        return graph.forward

    @functools.wraps(original)
    def compile_(model: Any = None, **how: Any) -> Any:
        if how.get("backend") == "hpu_backend":
            if Order.enforced:
                RECORD.violate("torch.compile(backend='hpu_backend') needs eager mode (PT_HPU_LAZY_MODE=0)")
            if how.get("dynamic") is not False:
                RECORD.violate("torch.compile(backend='hpu_backend') needs dynamic=False")
            how["backend"] = backend
        return original(model, **how)

    torch.compile = compile_
    warnings.filterwarnings("ignore", message="Using `torch.compile")  # that there are hooks on all modules: ours
