"""benchmark: images a second of the training step and of the loader alone, against a plain fp32 loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from unet.commands import compose
from unet.files import write_json, write_text
from unet.resolve import Resolved, dumps


def run(resolved: Resolved, command: str) -> int:
    """Time the step of these settings and the plain loop in turn, in one process; then the loader without a network.

    The plain loop is fp32, NCHW, eager, with the stock optimiser. Rounds alternate, so a machine whose speed drifts
    slows both; ratios of medians are what to quote. Writes benchmark.json where --run-name is given.
    """
    config = resolved.config
    task = compose.create(config.task)
    cases = task.cases(config)
    parts = compose.assemble(config)
    loader = task.batches(cases, config, (0, 1), parts.device.loader_options(), parts.device.put)
    batch = next(loader.epoch(1))
    ours, plain = our_step(parts, batch), plain_step(parts, batch)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for number in range(config.rounds + 1):
        for name, step in (("plain", plain), ("ours", ours)):
            seconds = timed(parts, step, config.steps)
            if number:  # the first round warms up
                times[name].append(seconds)
    loading = [load_time(loader, number) for number in range(1, config.rounds + 2)][1:]
    images = config.batch_size
    medians = {name: images / statistics.median(values) for name, values in times.items()}
    medians["loader"] = images / statistics.median(loading)
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    result = {
        "batch_size": images,
        "image_size": config.image_size,
        "precision": str(parts.device.dtype).removeprefix("torch."),
        "device": parts.device.describe(),
        "images_per_second": medians,
        "ours_over_plain": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "loader_over_step": medians["loader"] / medians["ours"],
    }
    print(text(result))
    if config.run_name:
        from unet.runtime.run_folder import RunFolder, environment

        folder = RunFolder(compose.run_path(config, "benchmark"))
        folder.create("benchmark", config.overwrite)
        folder.status("done", kind="benchmark")
        write_text(folder / "config.json", dumps(resolved, command))
        write_json(folder / "benchmark.json", result)
        write_json(folder / "environment.json", environment(parts.device.describe()))
    return 0


def text(result: dict[str, Any]) -> str:
    rates, ratio = result["images_per_second"], result["ours_over_plain"]
    return (
        f"{result['image_size']} px, batch {result['batch_size']}, {result['device']}\n"
        f"  plain fp32 step    {rates['plain']:8.1f} images/s\n"
        f"  {result['precision']:<8} step      {rates['ours']:8.1f} images/s   {ratio['median']:.2f} times"
        " the plain one"
        f" ({ratio['min']:.2f} to {ratio['max']:.2f})\n"
        f"  loader alone       {rates['loader']:8.1f} images/s   {result['loader_over_step']:.1f} times the step"
    )


def timed(parts: compose.Parts, step: Callable[[], None], count: int) -> float:
    """Seconds a step, over `count` steps."""
    start = parts.device.now()
    for _ in range(count):
        step()
    return (parts.device.now() - start) / count


def load_time(loader: Any, epoch: int, most: int = 30) -> float:
    """Seconds a batch of the loader alone."""
    count = min(most, len(loader))
    start = time.perf_counter()
    for _ in loader.epoch(epoch, 0, count):
        pass
    return (time.perf_counter() - start) / count


def our_step(parts: compose.Parts, batch: Any) -> Callable[[], None]:
    """The engine's step with these settings, on one batch."""
    from unet.runtime import optim

    config, device = parts.config, parts.device
    model = device.place(parts.task.model(config))
    network = device.compile(model) if config.compile else model
    optimizer, scaler = optim.build(config, parts.task.groups(model), device), device.scaler()

    def step() -> None:
        moved = device.to(batch)
        with device.autocast():
            loss = parts.task.loss(model, network(moved["image"]), moved)["loss"]
        scaler.scale(loss).backward()
        device.flush()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        device.flush()

    return step


def plain_step(parts: compose.Parts, batch: Any) -> Callable[[], None]:
    """fp32, NCHW, eager, torch's own Adam: what a first script does."""
    import torch

    device = parts.device
    model = parts.task.model(parts.config).to(device.device)
    optimizer = torch.optim.Adam(model.parameters(), parts.config.lr)
    plain = {key: value.contiguous().to(device.device) for key, value in batch.items() if key != "index"}

    def step() -> None:
        optimizer.zero_grad()
        parts.task.loss(model, model(plain["image"]), plain)["loss"].backward()
        optimizer.step()

    return step
