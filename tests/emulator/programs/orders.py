"""Each rule of the vendor broken once, on an emulated hpu, lazy or eager: a JSON object of what was said to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import habana_frameworks.torch as bridge
import habana_frameworks.torch.core as core
import torch
from emulator.record import ContractError
from habana_frameworks.torch.hpu.metrics import metric_global
from habana_frameworks.torch.utils.internal import is_lazy
from torch import nn

torch.set_num_threads(1)
LAZY = os.environ.get("PT_HPU_LAZY_MODE") != "0"
NETWORK = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).to("hpu")
OPTIMIZER = torch.optim.SGD(NETWORK.parameters(), 0.1)
X = torch.ones(1, 1, 4, 4, device="hpu")
CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CASES[function.__name__] = function
    return function


def loss() -> torch.Tensor:
    return NETWORK(X).sum()


def evaluate() -> torch.Tensor:
    with torch.no_grad():
        return NETWORK(X)


@case
def good_training() -> None:
    for _ in range(2):
        for _ in range(2):  # accumulated
            loss().backward()
            core.mark_step()
        nn.utils.clip_grad_norm_(NETWORK.parameters(), 1.0)
        OPTIMIZER.step()
        OPTIMIZER.zero_grad()
        core.mark_step()


@case
def good_evaluation() -> None:
    for _ in range(2):
        core.mark_step()
        output = evaluate()
        core.mark_step()
        output.cpu()


@case
def good_activation_outside() -> None:
    core.mark_step()
    output = evaluate()
    nn.Sigmoid()(output)
    core.mark_step()


@case
def step_right_after_backward() -> None:
    loss().backward()
    OPTIMIZER.step()


@case
def forward_right_after_backward() -> None:
    loss().backward()
    loss()


@case
def forward_right_after_step() -> None:
    loss().backward()
    core.mark_step()
    OPTIMIZER.step()
    loss()


@case
def evaluation_right_after_step() -> None:
    loss().backward()
    core.mark_step()
    OPTIMIZER.step()
    evaluate()


@case
def evaluation_read_too_early() -> None:
    evaluate().cpu()


@case
def evaluation_item_too_early() -> None:
    evaluate().sum().item()


@case
def evaluation_twice() -> None:
    evaluate()
    evaluate()


@case
def mark_step_in_forward() -> None:
    handle = NETWORK[0].register_forward_hook(lambda *_: core.mark_step())
    try:
        loss()
    finally:
        handle.remove()


@case
def mark_step_in_backward() -> None:
    output = loss()
    output.register_hook(lambda gradient: core.mark_step())
    output.backward()


@case
def loss_scaling() -> None:
    torch.amp.GradScaler("hpu", enabled=True)


@case
def good_disabled_scaling() -> None:
    torch.amp.GradScaler("hpu", enabled=False)


@case
def symbolic_shapes() -> None:
    torch.compile(NETWORK, backend="hpu_backend")


@case
def compiled() -> None:
    fixed = torch.compile(NETWORK, backend="hpu_backend", dynamic=False)
    fixed(X).sum().backward()


@case
def training_graph() -> None:
    cached = bridge.ModuleCacher(max_graphs=2)(NETWORK, allow_unused_input=True, have_grad_accumulation=False)
    cached(X).sum().backward()
    core.mark_step()


@case
def inference_graph() -> None:
    wrapped = bridge.wrap_in_hpu_graph(nn.Conv2d(1, 1, 1).to("hpu").eval())
    with torch.no_grad():
        wrapped(X)
    core.mark_step()


@case
def distributed_with_device_ids() -> None:
    nn.parallel.DistributedDataParallel(NETWORK, device_ids=[0], broadcast_buffers=False)


@case
def distributed_with_buffers() -> None:
    nn.parallel.DistributedDataParallel(NETWORK)


if __name__ == "__main__":
    assert is_lazy() is LAZY and bridge.hpu is torch.hpu
    said: dict[str, str] = {}
    for name, function in CASES.items():
        if LAZY:
            core.mark_step()
        try:
            function()
            said[name] = ""
        except ContractError as error:
            said[name] = str(error)
        except RuntimeError as error:
            said[name] = f"{type(error).__name__}: {error}"
    if LAZY:
        core.mark_step()
        OPTIMIZER.step()  # the process ends without the boundary
    said["compilations"] = metric_global("graph_compilation").stats()[0][1]
    print(json.dumps(said))
