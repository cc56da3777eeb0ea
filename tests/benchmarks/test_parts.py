"""The parts of `benchmark` alone: what is counted, what is timed, how a process may end, what a sweep takes."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import sys
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_config, task_config
from conftest import TINY, error_of
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from unet import cli as program
from unet.benchmarks import breakdown, ceiling, limit, measure, profiling, scaling, steps, sweep, table, worker
from unet.commands import setup
from unet.config.schema import Config, declared_of
from unet.devices.base import Device
from unet.tasks.registry import BUILT_IN, create

SMALL: dict[str, dict[str, Any]] = {
    "lgg": {"image_size": 16, "layers": 2, "width": 4, "batch_size": 3, "patients": 2, "slices": 6, "side": 32},
    "em": {"image_size": 60, "layers": 2, "width": 4, "batch_size": 3, "slices": 6, "side": 64},
    "kits19": {
        **dict.fromkeys(("patch", "eval_patch", "pad_to"), (16, 16, 16)),
        "layers": 2,
        "width": 4,
        "batch_size": 2,
        "patients": 2,
        "slices": 16,
        "side": 32,
        "seed": 1,
    },
    "folder": {
        "channels": ("a", "b"),
        "classes": ("background", "body", "core"),
        "label_values": (0, 1, 2),
        "orientation": "IPL",
        "spacing": (2.0, 1.0, 1.0),
        "normalize": ("zscore", "zscore"),
        "patch": (8, 16, 16),
        "layers": 2,
        "width": 4,
        "batch_size": 2,
        "patients": 2,
        "slices": 16,
        "side": 32,
    },
    "brains": {"resolution": 8, "width": 3, "batch_size": 2, "patients": 2, "side": 32, "kl_warmup": 2, "seed": 1},
}


def small(task: str, **values: Any) -> Config:
    return task_config(task, device="cpu", data="./made", cache="./cache", synth_data=True, **{**SMALL[task], **values})


@pytest.mark.parametrize("task", BUILT_IN)
def test_a_random_batch_is_like_one_of_the_loader(task: str, workplace: Path, here: None) -> None:
    own = create(small(task))
    drawn, made = own.random_batch(), next(steps.loader_of(setup.assemble(small(task)), own.cached_cases()).epoch(1))
    assert {key: (value.shape, value.dtype) for key, value in made.items()} == {
        key: (value.shape, value.dtype) for key, value in drawn.items()
    }
    labels = {"lgg": {0, 1}, "em": {0, 1}, "kits19": {0, 1, 2}, "folder": {0, 1, 2}, "brains": set()}[task]
    assert set(drawn.get("mask", torch.empty(0)).unique().tolist()) == labels


@pytest.mark.parametrize("task", BUILT_IN)
def test_the_convolutions_of_a_step_are_all_its_arithmetic(task: str) -> None:
    """By the formula 2 x weights x places, times three for a step; the image needs no gradient. Torch's own count has
    nothing else."""
    context = setup.assemble(small(task, batch_size=1))
    found = limit.recorded(context)

    def one(conv: limit.Conv) -> int:
        if conv.transposed:
            places = math.prod(conv.shape[2:])
        else:
            sizes = zip(conv.shape[2:], conv.weight[2:], conv.stride, conv.padding, strict=True)
            places = math.prod((side + 2 * pad - kernel) // stride + 1 for side, kernel, stride, pad in sizes)
        return 2 * math.prod(conv.weight) * places

    expected = sum(times * one(conv) * (3 if conv.inner else 2) for conv, times in found.items())
    assert limit.flops(context.task.build_model, context.task.input_shape())[0] == expected
    assert sum(times for conv, times in found.items() if not conv.inner) == (2 if task == "brains" else 1)
    assert sum(found.values()) > 10


@pytest.mark.parametrize("task", ["lgg", "kits19"])
def test_convolutions_in_all_their_forms(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for volumes this processor has layers of its own: their numbers are those of torch's."""
    context = setup.assemble(small(task))
    monkeypatch.setattr(limit, "ENOUGH", 0.0)
    tried: Counter[str] = Counter()
    real = limit.passes

    def noted(device: Device, conv: limit.Conv, form: str) -> dict[str, float]:
        found = real(device, conv, form)
        tried[form] += bool(found)
        return found

    monkeypatch.setattr(limit, "passes", noted)
    found, kinds = limit.convolutions(context), limit.recorded(context)
    assert tried["channels_first"] == tried["channels_last"] == len(kinds)
    assert tried["own"] == (len(kinds) if task == "kits19" else 0)
    seconds = found["seconds"]
    assert seconds["all"] == pytest.approx(sum(seconds[name] for name in limit.PASSES))
    assert all(value > 0 for value in seconds.values())
    assert sum(found["fastest"].values()) == found["count"] == sum(kinds.values())
    for conv in kinds:
        if made := limit.own_layer(context.device, conv):
            x, weight, forward = made
            how = conv.stride, conv.padding, conv.dilation, conv.transposed, conv.output_padding, conv.groups
            expected = torch.convolution(x, weight, None, *how)
            found_there = forward() if not conv.bias else None
            assert found_there is None or torch.allclose(found_there, expected, atol=1e-4)


class Clock(Device):
    """A device whose clock goes on by a second each time that it is asked."""

    def __init__(self) -> None:
        self.device, self.dtype, self.count = torch.device("cpu"), torch.float32, itertools.count()

    def now(self) -> float:
        return float(next(self.count))


def test_the_ceiling_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "COPIED", 4096)
    found = ceiling.measured(Clock())  # a product of a second ends the search
    assert found == {
        "matrix_flops_per_second": 2 * 256**3,
        "matrix_side": 256,
        "precision": "float32",
        "copy_bytes_per_second": 2 * 4096,
    }


class Lazy(Clock):
    """A device that computes at a flush what somebody still holds, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []
        self.computed: list[bool] = []

    def product(self, *factors: torch.Tensor) -> torch.Tensor:
        found = torch.ones(1)
        self.made.append(weakref.ref(found))
        return found

    def flush(self) -> None:
        self.computed += [made() is not None for made in self.made]
        self.made.clear()


def test_what_is_timed_is_computed_on_a_lazy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that nobody held was not: the rate of products was that of starting them."""
    device = Lazy()
    monkeypatch.setattr(torch, "matmul", device.product)
    ceiling.product(device)
    limit.repeated(device, lambda: device.product())
    assert len(device.computed) >= 6 and all(device.computed)


class SlowLoader:
    """Batches that come after a twentieth of a second each."""

    def __init__(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = batch

    def epochs(self, numbers: Any) -> Any:
        for _ in numbers:
            time.sleep(0.05)
            yield self.batch


def test_the_parts_of_a_step_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("lgg")
    context = setup.assemble(config)
    loop = steps.OurLoop(config, steps.batch_of(None, context.task), context=context)
    started = time.perf_counter()
    parts = breakdown.measured(loop, SlowLoader(loop.tensors), 2, 3)
    whole = time.perf_counter() - started
    assert set(parts) == set(breakdown.PARTS)
    assert min(parts["data_wait"]) >= 0.05
    assert sum(map(sum, parts.values())) * 3 < whole  # and a step before
    found = breakdown.summary(parts)
    assert sum(part["share"] for part in found.values()) == pytest.approx(1)
    assert found["data_wait"]["share"] == pytest.approx(sum(parts["data_wait"]) / sum(map(sum, parts.values())))
    assert min(part["seconds"] for name, part in found.items() if name not in ("other", "copy")) > 0
    passes = loop.passes(-2)
    assert len(passes) == 2 and not hasattr(loop, "optimizer")  # its memory is free


def test_a_loader_beside_a_plain_copy() -> None:
    class Loader:
        def __len__(self) -> int:
            return 2

        def epoch(self, epoch: int, start: int, stop: int) -> Any:
            for _ in range(start, stop):
                time.sleep(0.02)
                yield {}

    batch = {"image": np.zeros((4, 3, 8, 8), np.float32), "mask": np.zeros((4, 1, 8, 8), np.uint8)}
    found = limit.loading(Loader(), batch, 2)
    assert found["bytes_a_batch"] == 4 * 3 * 64 * 4 + 4 * 64
    assert len(found["seconds_a_batch"]) == 2 and min(found["seconds_a_batch"]) >= 0.02
    assert found["copy_bytes_per_second"] > found["bytes_a_batch"] / 0.02


def test_operators_in_words(tmp_path: Path) -> None:
    config = small("lgg")
    context = setup.assemble(config)
    loop = steps.OurLoop(config, steps.batch_of(None, context.task), context=context)
    rows = profiling.traced(loop.step, context.device, str(tmp_path / "trace.json"))
    assert sum(row["self_share"] for row in rows) == pytest.approx(1)
    by_name = {row["operator"]: row for row in rows}
    gradients = by_name["aten::convolution_backward"]
    assert gradients["words"] == "gradients of a convolution"
    assert gradients["calls"] == 3 * 13  # convolutions of two levels, in three steps
    assert rows == sorted(rows, key=lambda row: -row["self_share"])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "aten::convolution_backward" for event in events) == 3 * 13
    text = table.operators(rows)
    assert "gradients of a convolution" in "\n".join(text) and len(text) <= 14


def event_of(name: str, microseconds: float, place: str = "CPU", starts: float = 0.0, named: bool = False) -> Any:
    """An event of torch's profiler on a machine with a card; `starts`: microseconds of a kernel that it has started."""
    kind = getattr(DeviceType, place)
    made: Any = FunctionEvent(0, name, 1, 0, microseconds, stack=[], use_device="cuda", device_type=kind)
    made.is_user_annotation = named
    if starts:
        made.append_kernel(name, 0, starts)
    return made


def profile_of(*events: Any) -> list[dict[str, Any]]:
    found: Any = EventList(list(events), use_device="cuda")
    found._build_tree()
    return profiling.rows(found.key_averages())


def test_the_time_of_a_card_counts_once() -> None:
    """torch lists each kernel beside its operator, and what spans them: all shares were halves."""
    kernels = event_of("gemm", 30, "CUDA"), event_of("adding", 10, "CUDA")
    spanning = event_of("Optimizer.step#SGD.step", 40, "CUDA", named=True)
    found = profile_of(event_of("aten::mm", 5, starts=30), event_of("aten::add", 5, starts=10), *kernels, spanning)
    assert {row["operator"]: row["self_share"] for row in found} == {"aten::mm": 0.75, "aten::add": 0.25}
    assert [row["self_seconds"] for row in found] == pytest.approx([30e-6, 10e-6])
    recorded = profile_of(event_of("cudaGraphLaunch", 5), *kernels, spanning)  # of a graph: no operator starts them
    assert {row["operator"]: row["self_share"] for row in recorded} == {"gemm": 0.75, "adding": 0.25}


def test_a_process_that_fails_or_is_killed() -> None:
    with worker.started("steps:Loop", "timed loop") as loop:
        with pytest.raises(RuntimeError, match="the timed loop: AttributeError"):
            loop.ask("nothing")
        os.kill(loop.process.pid, signal.SIGKILL)
        with pytest.raises(worker.OutOfMemory) as caught:
            loop.ask("run", 1)
    assert "The timed loop ran out of memory: its process was ended by SIGKILL." in caught.value.message


def test_an_error_for_lack_of_memory() -> None:
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory")
    assert worker.failure(error, None)[0] == "memory"
    assert worker.failure(RuntimeError("shapes differ"), None)[0] == "error"


def test_rates_of_prediction_and_their_ratio_are_of_whole_rounds() -> None:
    """One slow pass a round: the median of single passes would say that both are as fast."""
    found = measure.predicted({"ours": [[1.0, 1.0, 1.0]] * 3, "plain": [[1.0, 1.0, 4.0]] * 3}, 6)
    assert (found["images_per_second"], found["plain_images_per_second"]) == (6, 3)
    assert found["ours_over"] == {"median": 2, "min": 2, "max": 2}
    found = measure.predicted({"ours": [[1.0, 2.0], [2.0, 2.0], [1.0, 1.0]]}, 6)
    assert (found["images_per_second"], found["images_per_second_range"]) == (4, [3, 6])
    assert found["latency"] == {"mean": 1.5} and len(found["seconds_a_pass"]) == 6


def test_how_many_processes_take_part() -> None:
    assert [scaling.counts(world) for world in (1, 2, 3, 4, 5, 8, 12, 16)] == [
        *([1], [1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 8], [1, 2, 3, 4, 8, 12]),
        [1, 2, 3, 4, 8, 16],
    ]


def test_a_command_line_without_some_flags() -> None:
    declared = declared_of(type(make_config("kits19").task))
    words = [
        "benchmark",
        "--task",
        "kits19",
        "--amp",
        "bf16",
        "--input_shape",
        "64",
        "64",
        "64",
        "--hpu",
        "--batch-size=4",
    ]
    words += ["--no-augment", "--sweep", "a=1", "b=2", "-v", "--steps", "1"]
    names = ("precision", "patch", "device", "batch_size", "augment", "sweep", "verbose")
    assert sweep.without(words, declared, names) == ["benchmark", "--task", "kits19", "--steps", "1"]
    assert sweep.without(words, declared, ()) == words


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["batchsize=1,2"], "unknown setting 'batchsize' (did you mean batch_size?)"),
        (["batch_size=1,x"], "--batch-size takes a whole number, not 'x'"),
        (["precision=fp33"], "not 'fp33' (did you mean fp32?)"),
        (["batch_size"], "'batch_size' is not NAME=A,B"),
        (["lr=1,,2"], "'lr=1,,2' is not NAME=A,B"),
        (["task=em"], "task cannot be swept"),
        (["lr=1", "learning-rate=2"], "lr comes twice"),
        (["image_size=16,40"], "image_size=40: --image-size 40 is not a multiple of 16"),
    ],
)
def test_a_sweep_that_cannot_run_is_told_before(typed: list[str], said: str, cli: Any) -> None:
    error = error_of(cli("benchmark", "--source", "none", "--device", "cpu", "--sweep", *typed), 2)
    assert said in error
    assert not Path("performance").exists()


def test_values_of_a_sweep() -> None:
    config = task_config("kits19", sweep=("patch=32,32x64x64", "augment=on,off", "amp=bf16"))
    declared = declared_of(type(config.task))
    found = sweep.parsed(config, declared)
    assert found == {"patch": ["32", "32x64x64"], "augment": ["on", "off"], "precision": ["bf16"]}
    assert [sweep.as_words("patch", value, declared["patch"]) for value in found["patch"]] == [
        ["--patch", "32"],
        ["--patch", "32", "64", "64"],
    ]
    assert sweep.converted("augment", "off", declared["augment"]) is False
    assert sweep.as_words("augment", "off", declared["augment"]) == ["--augment", "false"]


def test_a_process_of_a_sweep_that_the_kernel_kills() -> None:
    row = sweep.attempt([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert row == {"outcome": "out of memory", "error": "the process was ended by SIGKILL", "result": None}
    row = sweep.attempt([sys.executable, "-c", "raise SystemExit('error: no such file')"])
    assert (row["outcome"], row["error"]) == ("failed", "no such file")
    row = sweep.attempt([sys.executable, "-c", "raise SystemExit('error: The timed loop ran out of memory: x')"])
    assert row["outcome"] == "out of memory"


def test_sources_and_their_contradictions(cli: Any) -> None:
    assert "--source none and --synth-data" in error_of(cli("benchmark", "--source", "none", "--synth-data"), 2)
    resolved = program.resolve("benchmark", ["--source", "synthetic"])
    assert resolved.config.data.synth_data and resolved.config.train.batch_size == 16
    assert resolved.config.data.cache.startswith("synthetic_cache")
    Path("settings.json").write_text(json.dumps({"source": None, "sweep": [], "against": ["plain"]}))
    replayed = program.resolve("benchmark", ["--config", "settings.json"])
    assert replayed.config.measure.source is None
    said = error_of(cli("benchmark", "--source", "none", "--profile", "--sweep", "lr=1,2"), 2)
    assert "--sweep and --profile contradict each other" in said
    assert "Neither" in error_of(cli("benchmark", *TINY, "--device", "cpu", "--source", "real"), 2)


def test_a_peer_that_is_not_installed(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(Path(torch.__file__).parents[1] / "none")])  # where nothing lies
    monkeypatch.setitem(sys.modules, "monai", None)
    monkeypatch.delitem(sys.modules, "monai")
    error = error_of(cli("benchmark", "--source", "none", *TINY, "--device", "cpu", "--against", "monai"))
    assert "--against monai: the package monai is not installed." in error
    assert "pip install 'unet-accelerators[peers]'" in error


def test_the_timed_step_clips_skips_and_averages_as_training_does() -> None:
    """It left out --clip, --skip-norm and --ema, which recipes set."""
    how = {"optimizer": "sgd", "momentum": 0.0, "lr": 1.0, "precision": "fp32", "device": "cpu"}
    config = task_config("lgg", **SMALL["lgg"], **how)
    batch = steps.batch_of(None, create(config))

    def change(**values: Any) -> tuple[float, float]:
        """How far a step moves the weights, and their average."""
        torch.manual_seed(1)
        loop = steps.OurLoop(config.replace(**values), batch)
        before = [each.detach().clone() for each in loop.model.parameters()]
        loop.step()
        averaged = loop.averaged.module if loop.averaged is not None else loop.model
        found = ([a - b for a, b in zip(model.parameters(), before, strict=True)] for model in (loop.model, averaged))
        return tuple(float(torch.cat([each.detach().flatten() for each in parts]).norm()) for parts in found)

    free, _ = change()
    assert free > 0.1
    assert change(clip=0.01)[0] == pytest.approx(0.01, rel=1e-3)
    assert change(skip_norm=1e-6, skip_warmup=0)[0] == 0
    moved, kept = change(ema=0.5)
    assert moved == pytest.approx(free, rel=1e-4)
    assert kept == pytest.approx(free, rel=1e-4)  # the first update copies


def test_several_batches_a_step_are_not_timed(cli: Any, tmp_path: Path) -> None:
    words = "benchmark", "--source", "none", "--image-size", 16, "--layers", 2, "--width", 2, "--device", "cpu"
    error = error_of(cli(*words, "--accumulate", 4), 2)
    assert "--accumulate 4 is for train: here every batch has an optimiser step." in error
