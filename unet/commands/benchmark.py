"""benchmark: images a second of the training step and of the loader alone, against a plain fp32 loop."""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unet import host
from unet.commands import compose
from unet.config import Config
from unet.devices import environment, launchers
from unet.errors import UnetError, UsageError
from unet.files import write_json, write_text
from unet.resolve import Resolved, dumps


def run(resolved: Resolved, command: str) -> int:
    """Time the step of these settings and the plain loop in turn, each in a process of its own; then the loader alone.

    The plain loop is fp32, NCHW, eager, torch's Adam, with nothing that this program sets for its process. Rounds
    alternate, so a machine whose speed drifts slows both; ratios are what to quote. Writes benchmark.json where
    --run-name is given.
    """
    config = resolved.config
    rank = launchers.find_rank(config)
    if rank.world > 1:
        raise UsageError(
            f"benchmark times one process, and {rank.launcher} runs {rank.world}.",
            "Start one process; a training run on several shows its images a second.",
        )
    task = compose.create(config.task)
    cases = task.cases(config)
    parts = compose.assemble(config)
    loader = task.batches(cases, config, (0, 1), parts.device.loader_options(), parts.device.put)
    batch = {key: value.cpu().numpy() for key, value in next(loader.epoch(1)).items()}
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    with side(config, batch, plain=True) as plain, side(config, batch, plain=False) as ours:
        for number in host.progress(range(config.rounds + 1), name="rounds"):
            for name, ask in (("plain", plain), ("ours", ours)):
                seconds = ask(config.steps)
                if number:  # the first round warms up
                    times[name].append(seconds)
    loading = [load_time(loader, number) for number in range(1, config.rounds + 2)][1:]
    result = summary(parts, times, loading)
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


def summary(parts: compose.Parts, times: dict[str, list[float]], loading: list[float]) -> dict[str, Any]:
    """Rates by their medians, the ratio of each round, and the seconds a step of every round."""
    config = parts.config
    images = config.batch_size
    rates = {name: images / statistics.median(values) for name, values in {**times, "loader": loading}.items()}
    ratios = [a / b for a, b in zip(times["plain"], times["ours"], strict=True)]
    return {
        "batch_size": images,
        "image_size": config.image_size,
        "precision": str(parts.device.dtype).removeprefix("torch."),
        "device": parts.device.describe(),
        "images_per_second": rates,
        "ours_over_plain": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "loader_over_step": rates["loader"] / rates["ours"],
        "seconds_a_step": times,
    }


@contextlib.contextmanager
def side(config: Config, batch: dict[str, Any], plain: bool) -> Iterator[Callable[[int], float]]:
    """One of the two loops in a process of its own: ask it for N steps, it answers with the seconds of one."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, config, batch, plain), daemon=True)
    process.start()
    there.close()

    def ask(steps: int) -> float:
        try:
            here.send(steps)
            answer: float = here.recv()
        except (EOFError, BrokenPipeError) as error:
            raise UnetError(
                f"The process of the {'plain' if plain else 'timed'} loop died (out of memory?).",
                "Type a smaller --batch-size or --image-size.",
            ) from error
        return answer

    try:
        yield ask
    finally:
        here.close()
        process.join(10)


def serve(connection: Any, config: Config, batch: dict[str, Any], plain: bool) -> None:
    """In the process: make the loop, then answer until the other end closes."""
    step = plain_step(config, batch) if plain else our_step(compose.assemble(config), batch)
    with contextlib.suppress(EOFError):
        while True:
            steps = connection.recv()
            start = time.perf_counter()
            for _ in range(steps):
                loss = step()
            loss.item()  # the device has done its work
            connection.send((time.perf_counter() - start) / steps)


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


def load_time(loader: Any, epoch: int, most: int = 30) -> float:
    """Seconds a batch of the loader alone."""
    count = min(most, len(loader))
    start = time.perf_counter()
    for _ in loader.epoch(epoch, 0, count):
        pass
    return (time.perf_counter() - start) / count


def our_step(parts: compose.Parts, batch: Mapping[str, Any]) -> Callable[[], Any]:
    """The engine's step with these settings, on one batch; gives the loss, unread."""
    import torch

    from unet.runtime import optim

    config, device = parts.config, parts.device
    model = device.place(parts.task.model(config))
    network = device.capture(device.compile(model) if config.compile else model)
    optimizer, scaler = optim.build(config, parts.task.groups(model), device), device.scaler()
    tensors = {key: torch.from_numpy(value) for key, value in batch.items()}

    def step() -> Any:
        moved = device.to(tensors)
        with device.autocast():
            loss = parts.task.loss(model, network(moved["image"]), moved)["loss"]
        scaler.scale(loss).backward()
        device.flush()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        device.flush()
        return loss.detach()

    return step


def plain_step(config: Config, batch: Mapping[str, Any]) -> Callable[[], Any]:
    """fp32, NCHW, eager (also beside lazy mode), torch's own Adam: what a first script does. Gives the loss, unread."""
    config = config.replace(use_lazy_mode=False)
    kind, _ = environment.choose(config, launchers.find_rank(config))
    import torch

    task = compose.create(config.task)
    model = task.model(config).to(kind.name)
    optimizer = torch.optim.Adam(model.parameters(), config.lr)
    tensors = {
        key: torch.from_numpy(value).contiguous().to(kind.name) for key, value in batch.items() if key != "index"
    }

    def step() -> Any:
        optimizer.zero_grad()
        loss = task.loss(model, model(tensors["image"]), tensors)["loss"]
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
