"""The operators of a few steps by torch's profiler: a trace for a browser, and a table that a person can read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet.devices.base import Device

STEPS = 3
SHOWN = 12  # operators of the table
WORDS = {  # part of an operator's name -> in words; the first that fits
    "convolution_backward": "gradients of a convolution",
    "convolution": "convolution",
    "conv": "convolution",
    "winograd": "convolution",
    "batch_norm_backward": "gradients of a batch norm",
    "batch_norm": "batch norm",
    "group_norm": "group norm",
    "instance_norm": "instance norm",
    "threshold_backward": "gradient of a ReLU",
    "leaky_relu": "leaky ReLU",
    "relu": "ReLU",
    "gelu": "GELU",
    "sigmoid": "sigmoid",
    "softmax": "softmax",
    "max_pool": "max pooling",
    "avg_pool": "mean pooling",
    "upsample": "upsampling",
    "_fused_adam": "optimiser",
    "_fused_sgd": "optimiser",
    "_foreach_": "optimiser",
    "native_dropout": "dropout",
    "addmm": "matrix product",
    "bmm": "matrix product",
    "mm": "matrix product",
    "_to_copy": "change of type or place",
    "to_copy": "change of type or place",
    "copy_": "copy",
    "clone": "copy",
    "cat": "concatenation",
    "slice_backward": "gradient of a slice",
    "zero_": "filling with zeros",
    "fill_": "filling",
    "zeros": "filling with zeros",
    "add": "sum",
    "sum": "sum",
    "mul": "product",
    "div": "quotient",
    "sub": "difference",
    "exp": "exponential",
    "log": "logarithm",
    "normal": "random numbers",
    "rand": "random numbers",
    "mean": "mean",
}


def traced(step: Callable[[], Any], device: Device, path: str) -> list[dict[str, Any]]:
    """Trace three steps after one that warms up; the trace is written to `path` (open it at ui.perfetto.dev). Gives the
    operators, most of the time of their own first: operator, words, calls, seconds and shares of the whole and of their
    own (without those that they call)."""
    from torch.profiler import profile

    step().item()
    with profile(acc_events=True) if accumulates() else profile() as profiler:
        for _ in range(STEPS):
            read = step()
        read.item()
        device.synchronize()
    if path:
        profiler.export_chrome_trace(path)
    return rows(profiler.key_averages())


def accumulates() -> bool:
    """Whether this torch's profiler has `acc_events` (2.6 on), without which it warns."""
    import inspect

    from torch.profiler import profile

    return "acc_events" in inspect.signature(profile.__init__).parameters


def rows(events: Any) -> list[dict[str, Any]]:
    """The operators of a profile. Times are those of the device where it has its own."""
    listed, whole, kind = timed(list(events))
    found = [
        {
            "operator": event.key,
            "words": in_words(event.key),
            "calls": int(event.count),
            "seconds": float(getattr(event, f"{kind}_time_total")) / 1e6,
            "self_seconds": own / 1e6,
            "share": min(1.0, float(getattr(event, f"{kind}_time_total")) / whole),
            "self_share": own / whole,
        }
        for event in listed
        if (own := float(getattr(event, f"self_{kind}_time_total"))) > 0
    ]
    return sorted(found, key=lambda row: -float(row["self_share"]))


def timed(events: list[Any]) -> tuple[list[Any], float, str]:
    """(the events to list, microseconds of all, whose time: "device" or "cpu"). torch lists a kernel of a device twice:
    as an event of the device, and in the time of the operator that has started it; ranges that are only named (a step
    of the optimiser) span kernels once more. Kernels that no operator has started, as in a recorded graph, are listed
    themselves."""
    operators = [event for event in events if event.device_type.name == "CPU"]
    others = [event for event in events if event.device_type.name != "CPU"]
    kernels = [event for event in others if not getattr(event, "is_user_annotation", False)]
    started, run = (
        sum(float(getattr(event, "self_device_time_total", 0)) for event in each) for each in (operators, kernels)
    )
    if whole := run or started:
        return (operators if started >= whole / 2 else kernels), whole, "device"
    return operators, sum(float(event.self_cpu_time_total) for event in operators) or 1.0, "cpu"


def in_words(name: str) -> str:
    """What an operator is, for a reader; its own name where no words are known."""
    bare = name.rpartition("::")[2]
    if "optimizer" in name.lower():
        return "optimiser"
    if name.startswith(("autograd::engine", "ProfilerStep")):
        return "backward pass"
    return next((words for part, words in WORDS.items() if part in bare), bare.strip("_").replace("_", " "))
