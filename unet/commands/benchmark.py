"""benchmark: samples/s of the training step and of the loader alone, compared with a plain fp32 loop; latency of a step
and of prediction."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from unet import host
from unet.commands import power as power_use
from unet.commands import setup
from unet.config import capacity
from unet.config.resolve import Resolved, dumps
from unet.config.schema import Config
from unet.devices import launchers, select
from unet.errors import UnetError, UsageError
from unet.runtime.folders import run_folder

Ask = Callable[[int], tuple[list[float], int]]
PREDICTING = ("predict", "evaluate")


def run(resolved: Resolved, command: str) -> int:
    """Time the step with these settings and the plain loop alternately, each in its own process; then the loader alone.

    The plain loop is the task's network and loss in plain PyTorch: fp32, channels first, eager, torch's optimiser,
    without the process settings of this program. Rounds alternate, so a machine whose speed drifts
    slows both; ratios are what to quote. The first --benchmark-warmup steps (a round, where it is not typed) are left
    out. Then --rounds x --steps single steps and passes, each waited for, give the latency; rounds of two seconds more
    give the power, where it can be read. With --mode predict only the prediction is timed.
    Writes benchmark.json where --run-name is given.
    """
    config = resolved.config
    rank = launchers.find_rank(config.distributed, config.device.cuda_devices)
    if rank.world > 1:
        raise UsageError(
            f"benchmark times one process, and {rank.launcher} runs {rank.world}.",
            "Start one process; a training run on several processes prints its own samples/s.",
        )
    folder = run_folder.RunFolder(Path(config.run.out) / config.run.run_name) if config.run.run_name else None
    if folder:
        folder.create("benchmark", config.general.overwrite)
    task = setup.create(config)
    cases = task.cached_cases()
    context = setup.assemble(config, resolved.sources)
    capacity.require(config, context.device.own_memory)
    loader = task.train_loader(cases, (0, 1), context.device.loader_options(), context.device.put)
    batch = {key: value.cpu().numpy() for key, value in next(loader.epoch(1)).items()}
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    memory, power = {}, None
    warmup = config.timing.steps if config.run.benchmark_warmup is None else config.run.benchmark_warmup
    latency = {}
    if config.run.mode not in PREDICTING:
        with worker(config, batch, "plain") as plain, worker(config, batch, "ours") as ours:
            for number in host.progress(range(config.timing.rounds + 1), name="rounds"):
                for name, ask in (("plain", plain), ("ours", ours)):
                    steps = config.timing.steps if number else warmup
                    if steps:
                        seconds, memory[name] = ask(steps)
                        if number:
                            times[name].append(sum(seconds) / steps)
            latency["step"] = ours(-config.timing.rounds * config.timing.steps)[0]
            power = consumed(context, ours, config.timing.steps, config.train.batch_size)
    with worker(config, batch, "predict") as predict:
        if warmup:
            predict(warmup)
        latency["pass"] = predict(-config.timing.rounds * config.timing.steps)[0]
    result = predicted(context, latency["pass"])
    if times["ours"]:
        loading = [load_time(loader, number) for number in range(1, config.timing.rounds + 2)][1:]
        result |= summary(context, times, memory, loading, latency["step"]) | {"power": power}
    print(text(result))
    if folder:
        folder.status("done", kind="benchmark")
        folder.write("config.json", dumps(resolved, command))
        folder.write("benchmark.json", result)
        folder.write("environment.json", run_folder.environment(context.device.describe()))
        folder.begin()
    return 0


def predicted(context: setup.Context, passes: list[float]) -> dict[str, Any]:
    """What was measured, with samples/s and latency of forward passes of --eval-batch-size."""
    from unet.runtime import evaluation

    config = context.config
    return {
        "task": config.task.name,
        "size": context.task.describe_input(),
        "item": context.task.item,
        "precision": str(context.device.dtype).removeprefix("torch."),
        "device": context.device.describe(),
        "predict": {
            "batch_size": config.eval.eval_batch_size,
            "images_per_second": config.eval.eval_batch_size / statistics.median(passes),
            "latency": evaluation.latency(passes),
            "seconds_a_pass": passes,
        },
    }


def summary(
    context: setup.Context,
    times: dict[str, list[float]],
    memory: dict[str, int],
    loading: list[float],
    each: list[float],
) -> dict[str, Any]:
    """Median samples/s, ratios per round, FLOP/s, peak memory, seconds per step of every round."""
    from unet.runtime import evaluation

    config = context.config
    images = config.train.batch_size
    rates = {name: images / statistics.median(values) for name, values in {**times, "loader": loading}.items()}
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    work = step_flops(context)
    done, most = work * images / statistics.median(times["ours"]), context.device.peak_flops()
    return {
        "batch_size": images,
        "images_per_second": rates,
        "step_latency": evaluation.latency(each),
        "ours_over_plain": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "loader_over_step": rates["loader"] / rates["ours"],
        "ours_over_plain_memory": memory["ours"] / memory["plain"],
        "peak_memory_bytes": memory,
        "flops_per_item": work,
        "model_flops_per_second": done,
        "mfu": done / most if most else None,
        "seconds_a_step": times,
    }


def consumed(context: setup.Context, ask: Ask, steps: int, items: int, least: float = 2.0) -> dict[str, Any] | None:
    """Mean watts of the device, and items per joule, over at least so many seconds of steps of `items` each; None where
    power cannot be read. Not in the timed rounds: reading starts a program. With --power of the whole machine, and what
    it takes when it is idle."""
    if context.config.power.power:
        return power_use.metered(context, lambda: len(ask(steps)[0]) * items, least)
    device = context.device
    if device.power() is None:
        return None
    readings: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            watts = device.power()
            if watts is not None and not over.is_set():
                readings.append(watts)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds, done = 0.0, 0
    while seconds < least or (not readings and seconds < 10 * least):
        seconds, done = seconds + sum(ask(steps)[0]), done + steps
    over.set()
    watcher.join()
    if not readings:
        return None
    mean = statistics.mean(readings)
    return {"watts": mean, "items_per_joule": done * items / seconds / mean, "readings": len(readings)}


def total(output: Any) -> Any:
    """The sum of all that a network gave: a tensor, or several of them."""
    parts = output if isinstance(output, tuple) else (output,)
    return sum(part.float().sum() for part in parts)


def step_flops(context: setup.Context) -> int:
    """Floating-point operations of forward and backward pass for one item (two for a multiply and add), counted by
    torch on tensors without content."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    task = context.task
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = task.build_model()
        image = torch.empty(task.input_shape())
        total(model(image)).backward()
    return int(counter.get_total_flops())


@contextlib.contextmanager
def worker(config: Config, batch: dict[str, Any], which: str) -> Iterator[Ask]:
    """Start a loop ("plain", "ours", "predict") in its own process. The yielded function runs N steps and returns their
    seconds and the peak memory in bytes (of the device, or of the process on a CPU). Steps overlap, so only their sum
    is exact; -N waits for each step."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=serve, args=(there, config, batch, which), daemon=True)
    process.start()
    there.close()

    def ask(steps: int) -> tuple[list[float], int]:
        try:
            here.send(steps)
            answer: tuple[list[float], int] = here.recv()
        except (EOFError, BrokenPipeError) as error:
            raise UnetError(
                f"The process of the {'plain' if which == 'plain' else 'timed'} loop died (out of memory?).",
                "Type a smaller --batch-size.",
            ) from error
        return answer

    try:
        yield ask
    finally:
        here.close()
        host.end_processes([process], 10)


def serve(connection: Any, config: Config, batch: dict[str, Any], which: str) -> None:
    """In the process of `worker`: build the loop and run steps until the connection closes."""
    if which == "plain":
        step, memory = plain_step(config, batch)
    else:
        context = setup.assemble(config)
        step, memory = our_step(context, batch) if which == "ours" else our_pass(context)
    with contextlib.suppress(EOFError):
        while True:
            steps = connection.recv()
            seconds, start = [], time.perf_counter()
            for number in range(abs(steps)):
                read = step()
                if steps < 0 or number == steps - 1:
                    read.item()  # the device has done its work
                now = time.perf_counter()
                seconds.append(now - start)
                start = now
            connection.send((seconds, memory()))


def text(result: dict[str, Any]) -> str:
    from unet.runtime import evaluation

    predict = result["predict"]
    line = (
        f"  prediction         {predict['images_per_second']:8.2f} {result['item']}/s   batch {predict['batch_size']};"
        f" a pass {evaluation.format_latency(predict['latency'])}"
    )
    if "images_per_second" not in result:
        return f"{result['size']}, {result['precision']}, {result['device']}\n{line}"
    rates, ratio, item, memory = (
        result[key] for key in ("images_per_second", "ours_over_plain", "item", "peak_memory_bytes")
    )
    power = ""
    if used := result["power"]:
        power = f"{used['watts']:8.2f} W on average, {used['items_per_joule']:.4g} {item} per joule"
    mfu = f", {result['mfu']:.1%} of what the device can do" if result["mfu"] else ""
    return (
        f"{result['size']}, batch {result['batch_size']}, {result['device']}\n"
        f"  plain fp32 step    {rates['plain']:8.2f} {item}/s   peak memory {host.format_bytes(memory['plain'])}\n"
        f"  {result['precision']:<8} step      {rates['ours']:8.2f} {item}/s   peak memory"
        f" {host.format_bytes(memory['ours'])}"
        f" ({result['ours_over_plain_memory']:.2f} of the plain one's)\n"
        f"                     {ratio['median']:8.2f} times the plain one ({ratio['min']:.2f} to {ratio['max']:.2f});"
        f" {result['model_flops_per_second'] / 1e12:.3f} TFLOP/s{mfu}\n"
        f"                     a step {evaluation.format_latency(result['step_latency'])}\n"
        + (f"  power              {power}\n" if power else "")
        + f"  loader alone       {rates['loader']:8.2f} {item}/s   {result['loader_over_step']:.1f} times the step\n"
        f"{line}"
    )


def load_time(loader: Any, epoch: int, most: int = 30) -> float:
    """Seconds per batch of the loader alone."""
    count = min(most, len(loader))
    start = time.perf_counter()
    for _ in loader.epoch(epoch, 0, count):
        pass
    return (time.perf_counter() - start) / count


Step = tuple[Callable[[], Any], Callable[[], int]]


def our_step(context: setup.Context, batch: Mapping[str, Any]) -> Step:
    """(a training step with these settings on one batch, which returns the loss on the device; its peak memory)."""
    import torch

    from unet.runtime import optim

    config, device = context.config, context.device
    model = device.place(context.task.build_model())
    network = device.capture(device.compile(model) if device.compiled() else model)
    fused = None if config.device.deterministic else device  # torch's own: the same bits on every device
    optimizer, scaler = optim.build(config.train, context.task.param_groups(model), fused), device.scaler()
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}

    def step() -> Any:
        moved = device.to(tensors)
        device.micro_batch(0)
        with device.autocast():
            loss = context.task.training_step(network, moved)["loss"]
        scaler.scale(loss).backward()
        device.flush()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        device.flush()
        return loss.detach()

    return step, device.memory


def our_pass(context: setup.Context) -> Step:
    """A forward pass of --eval-batch-size items as scoring and prediction make it, which gives a number, unread."""
    import torch

    config, device = context.config, context.device
    network = device.place(context.task.build_model()).eval()
    network = device.capture(device.compile(network) if device.compiled() else network, training=False)
    images = torch.rand(config.eval.eval_batch_size, *context.task.eval_input_shape()[1:])

    @torch.no_grad()
    def step() -> Any:
        moved = device.to({"image": images})["image"]
        device.flush()
        with device.autocast():
            output = network(moved)
        device.flush()
        return total(output)

    return step, device.memory


def plain_step(config: Config, batch: Mapping[str, Any]) -> Step:
    """The task's plain network and loss, fp32, channels first, eager (also beside lazy mode), torch's own optimiser:
    what a first script does. A step gives the loss, unread; its peak memory as `our_step`'s."""
    config = config.replace(use_lazy_mode=False, precision="fp32", deterministic=True)
    kind, _ = select.choose(
        config.device, launchers.find_rank(config.distributed, config.device.cuda_devices), setup.workload_of(config)
    )
    os.environ.pop("THP_MEM_ALLOC_ENABLE", None)  # this program's choice on a processor
    import torch

    from unet.runtime import optim

    task = setup.create(config)
    model, reference = task.reference_step()
    model = model.to(kind.torch_type())
    optimizer = optim.build(config.train, [{"params": list(model.parameters())}], None)
    tensors = {
        key: torch.from_numpy(value).contiguous().to(kind.torch_type())
        for key, value in batch.items()
        if key != "index"
    }

    def step() -> Any:
        optimizer.zero_grad()
        loss = reference(model, tensors)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, kind.peak_memory
