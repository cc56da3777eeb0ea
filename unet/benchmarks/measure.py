"""One process measured: rounds of the step alternate with those of its opponents; then latency, power, the parts of a
step, and what limits it."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from unet import host
from unet.benchmarks import breakdown, limit, peers, steps
from unet.benchmarks.worker import Worker, started
from unet.commands import power, setup
from unet.config import capacity
from unet.config.check_paths import APPLYING, loads_data
from unet.config.resolve import Resolved
from unet.config.schema import Config
from unet.errors import UnetError, UsageError

MOST_PARTS = 3  # steps of a round whose parts are waited for


class Unfinished(KeyboardInterrupt):
    """Stopped after a whole round of all loops. `result`: what was measured; its `unfinished` has the rounds and how
    many there should be."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__()
        self.result = result


def measured(resolved: Resolved, trace: str = "") -> dict[str, Any]:
    """Everything about the step with these settings, or with --mode predict about the pass; with --profile the trace is
    written to `trace`. Raises UnetError, or Unfinished where it is stopped and something is measured."""
    result: dict[str, Any] = {}
    work = passes_alone if resolved.config.run.mode in APPLYING else step_and_pass
    try:
        work(resolved, trace, result)
    except KeyboardInterrupt:
        if not result:
            raise
        of = resolved.config.timing.rounds
        raise Unfinished(result | {"unfinished": {"rounds": result["rounds"], "of": of}}) from None
    return result


def passes_alone(resolved: Resolved, trace: str, result: dict[str, Any]) -> None:
    """Fill `result` with what is known of the pass."""
    config = resolved.config
    context = prepared(resolved)
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(started("steps:OurPass", "pass", config))
        plain = None
        if "plain" in config.measure.against:
            plain = stack.enter_context(started("steps:PlainPass", "plain pass", config))
        for found in passed(context, ours, plain):
            result.update(found | batch_of_passes(config))
        result.update(profiled(config, ours, trace))


def step_and_pass(resolved: Resolved, trace: str, result: dict[str, Any]) -> None:
    """Fill `result` with what is known of the step, then of the pass."""
    config = resolved.config
    for name in config.measure.against:
        peers.require(name, config)
    cases = setup.create(config).cached_cases() if loads_data(config) else None
    context = prepared(resolved)
    for name in config.measure.against:
        peers.require_network(name, context.task)
    loader = None if cases is None else steps.loader_of(context, cases)
    batch = steps.batch_of(loader, context.task)
    with started("steps:OurLoop", "timed loop", config, batch, cases) as ours:
        for times, memory, facts in rounds(context, batch, ours):
            result.update(rated(context, times, memory))
            if facts:
                result["peers"] = {name: facts[name] | over(times, name) for name in facts}
        result.update(trained(context, ours, statistics.median(times["ours"])))
        result.update(profiled(config, ours, trace))
        # the network that is timed is given up for the one that predicts
        *_, found = passed(context, ours)
        result.update(found)
    if loader is not None:
        result.update(loaded(config, limit.loading(loader, batch, config.timing.rounds), result))


def require_opponents(config: Config) -> None:
    """Raise UsageError for opponents that are compared in training alone, where the pass is measured."""
    others = [name for name in config.measure.against if name != "plain"]
    if others and config.run.mode in APPLYING:
        raise UsageError(
            f"--against {' '.join(others)} compares the training step, and --mode {config.run.mode} measures the pass.",
            "Leave --mode out, or type --against plain.",
        )


def prepared(resolved: Resolved) -> setup.Context:
    context = setup.assemble(resolved.config, resolved.sources)
    capacity.require(resolved.config, context.device.own_memory)
    return context


def source_of(config: Config) -> str:
    """Where the batches come from: none, synthetic or real."""
    if not loads_data(config):
        return "none"
    return "synthetic" if config.data.synth_data else "real"


def about(context: setup.Context) -> dict[str, Any]:
    """What is measured, on what."""
    config = context.config
    return {
        "task": config.task.name,
        "size": context.task.describe_input(),
        "item": context.task.item,
        "precision": str(context.device.dtype).removeprefix("torch."),
        "device": context.device.describe(),
        "source": source_of(config),
        "batch_size": config.train.batch_size,
        "rounds": config.timing.rounds,
        "steps": config.timing.steps,
    }


def batch_of_passes(config: Config) -> dict[str, Any]:
    """The batch size of a result whose passes are of --eval-batch-size; nothing where the step is measured."""
    return {"batch_size": config.eval.eval_batch_size} if config.run.mode in APPLYING else {}


def warmup_of(config: Config) -> int:
    """Steps that are left out."""
    return config.timing.steps if config.run.benchmark_warmup is None else config.run.benchmark_warmup


Timed = tuple[list[float], int]  # seconds of each step, peak memory in bytes


def in_turn(
    context: setup.Context,
    what: str,
    loops: Mapping[str, Worker],
    items: int,
    run: Callable[[Worker, int], Timed],
) -> Iterator[dict[str, Timed]]:
    """What each loop gives in a whole round of all loops, of `items` a step; the warm-up is left out. A bar on a
    terminal, else a line a round; `what`: a step or a pass."""
    config, item = context.config, context.task.item
    count, lengths = config.timing.rounds, [warmup_of(config), *[config.timing.steps] * config.timing.rounds]
    with host.progress(total=len(loops) * sum(map(bool, lengths)), unit="loop") as bar:
        for number, length in enumerate(lengths):
            if not length:
                continue
            name = f"{what}, {f'round {number} of {count}' if number else 'warm-up'}"
            bar.set_description(name)
            found = {}
            for loop, worker in loops.items():
                found[loop] = run(worker, length)
                bar.update()
            if number:
                yield found  # kept before it is told
            rates = [f"{loop} {items * length / sum(seconds):.2f}" for loop, (seconds, _) in found.items()]
            said = f"{', '.join(rates)} {item}/s"
            bar.set_postfix_str(said)
            if bar.disable:
                host.notice(f"{name}: {said}")


def rounds(
    context: setup.Context, batch: Mapping[str, Any], ours: Worker
) -> Iterator[tuple[dict[str, list[float]], dict[str, int], dict[str, dict[str, Any]]]]:
    """(seconds a step of every round so far by loop, their peak memory, facts of the peers' networks) after each
    round."""
    config, precision = context.config, about(context)["precision"]
    names = list(dict.fromkeys(config.measure.against))
    times: dict[str, list[float]] = {name: [] for name in (*names, "ours")}
    memory: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        loops = {}
        for name in names:
            kind = ("steps:PlainLoop", "plain loop", config, batch)
            if name != "plain":
                kind = ("peers:PeerLoop", f"loop of {name}", config, batch, name, precision)  # type: ignore[assignment]
            loops[name] = stack.enter_context(started(*kind))
        facts = {name: loop.ask("facts") for name, loop in loops.items() if name != "plain"}
        loops["ours"] = ours
        for found in in_turn(context, "step", loops, config.train.batch_size, Worker.__call__):
            for name, (seconds, peak) in found.items():
                times[name].append(sum(seconds) / len(seconds))
                memory[name] = peak
            yield times, memory, facts


def rated(context: setup.Context, times: Mapping[str, Sequence[float]], memory: Mapping[str, int]) -> dict[str, Any]:
    """Rates, ratios and memory, and the place of what is measured after them."""
    items = context.config.train.batch_size
    unknown = ("step_latency", "model_flops_per_second", "mfu", "ceiling", "share_of_matrix_product", "convolutions")
    return about(context) | {
        "rounds": len(times["ours"]),
        "images_per_second": {name: items / statistics.median(values) for name, values in times.items()},
        "images_per_second_range": {name: [items / max(values), items / min(values)] for name, values in times.items()},
        "ours_over_plain": over(times, "plain")["ours_over"] if "plain" in times else None,
        "ours_over_plain_memory": memory["ours"] / memory["plain"] if "plain" in times else None,
        "loader_over_step": None,
        "peak_memory_bytes": dict(memory),
        "seconds_a_step": {name: list(values) for name, values in times.items()},
        **dict.fromkeys((*unknown, "power", "joules_per_item")),
        "predict": {},
    }


def trained(context: setup.Context, ours: Worker, step: float) -> dict[str, Any]:
    """Latency, power, FLOP/s beside the ceiling, the parts of a step of `step` seconds, its convolutions."""
    from unet.runtime import evaluation

    config, device = context.config, context.device
    each, items = config.timing, config.train.batch_size
    works: dict[str, Callable[[], Any]] = {
        "latency of a step": lambda: evaluation.latency(ours(-each.rounds * each.steps)[0]),
        "power": lambda: consumed(context, ours, each.steps, items),
        "parts of a step": lambda: ours.ask("breakdown", each.rounds, min(MOST_PARTS, each.steps)),
        "arithmetic": lambda: ours.ask("flops"),
        "matrix product and copy": lambda: limited(ours, "ceiling"),
        "convolutions": lambda: limited(ours, "convolutions"),
    }
    found = []
    with host.progress(total=len(works), unit="part") as bar:
        for name, work in works.items():
            bar.set_description(name)
            if bar.disable:
                host.notice(f"measuring: {name}")
            found.append(work())
            bar.update()
    latency, used, parts, work, top, convs = found
    done, most = work * items / step, device.peak_flops()
    if convs:
        convs["step_over_convolutions"] = step / convs["seconds"]["all"]
    return {
        "step_latency": latency,
        "flops_per_item": work,
        "model_flops_per_second": done,
        "mfu": done / most if most else None,
        "ceiling": top,
        "share_of_matrix_product": done / top["matrix_flops_per_second"] if top else None,
        "breakdown": breakdown.summary(parts),
        "convolutions": convs,
        "power": used,
        "joules_per_item": 1 / used["items_per_joule"] if used else None,
    }


def over(times: Mapping[str, Sequence[float]], name: str) -> dict[str, dict[str, float]]:
    """{"ours_over": how many times as fast ours is as another loop, round by round}."""
    ratios = [a / b for a, b in zip(times[name], times["ours"], strict=True)]
    return {"ours_over": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}}


def limited(ours: Worker, method: str) -> Any:
    """What limits the step; None, with a notice, where measuring that needs more memory than there is, or an operator
    that the device lacks."""
    try:
        return ours.ask(method)
    except (UnetError, RuntimeError) as error:
        if not ours.process.is_alive():
            raise
        host.notice(f"note: the {method} could not be measured: {str(error).splitlines()[0]}")
        return None


def profiled(config: Config, ours: Worker, trace: str) -> dict[str, Any]:
    return {"profile": ours.ask("profile", trace)} if config.measure.profile else {}


def passed(context: setup.Context, ours: Worker, plain: Worker | None = None) -> Iterator[dict[str, Any]]:
    """Items a second and latency of forward passes of --eval-batch-size, beside the plain network's in turn, after each
    round."""
    size = context.config.eval.eval_batch_size
    loops = {"ours": ours, **({"plain": plain} if plain else {})}
    each: dict[str, list[list[float]]] = {name: [] for name in loops}
    for found in in_turn(context, "pass", loops, size, lambda loop, count: (loop.ask("passes", -count), 0)):
        for name, (seconds, _) in found.items():
            each[name].append(seconds)
        yield {**about(context), "rounds": len(each["ours"]), "predict": predicted(each, size)}


def predicted(each: Mapping[str, Sequence[Sequence[float]]], size: int) -> dict[str, Any]:
    """The result of passes of `size` items, from the seconds of each pass by round and loop. Rates and their ratio are
    of whole rounds, as for a step; the latency is of single passes."""
    from unet.runtime import evaluation

    passes = [second for row in each["ours"] for second in row]
    means = {name: [statistics.fmean(row) for row in rows] for name, rows in each.items()}
    found = {
        "batch_size": size,
        "images_per_second": size / statistics.median(means["ours"]),
        "images_per_second_range": [size / max(means["ours"]), size / min(means["ours"])],
        "latency": evaluation.latency(passes),
        "seconds_a_pass": passes,
    }
    if "plain" in means:
        found["plain_images_per_second"] = size / statistics.median(means["plain"])
        found |= over(means, "plain")
    return found


def loaded(config: Config, found: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """The rates of the loader alone, beside the step and a plain copy."""
    each, size = found["seconds_a_batch"], found["bytes_a_batch"]
    rate, items = size / statistics.median(each), config.train.batch_size
    fast = items / statistics.median(each)
    return {
        "images_per_second": result["images_per_second"] | {"loader": fast},
        "images_per_second_range": result["images_per_second_range"]
        | {"loader": [items / max(each), items / min(each)]},
        "loader_over_step": fast / result["images_per_second"]["ours"],
        "loader": found | {"bytes_per_second": rate, "share_of_copy": rate / found["copy_bytes_per_second"]},
    }


def consumed(context: setup.Context, ask: Worker, steps: int, items: int, least: float = 2.0) -> dict[str, Any] | None:
    """Mean watts of the device, and items per joule, over at least so many seconds of steps of `items` each; None where
    power cannot be read. Not in the timed rounds: reading starts a program. With --power of the whole machine, and what
    it takes when it is idle."""
    if context.config.power.power:
        return power.metered(context, lambda: len(ask(steps)[0]) * items, least)
    device = context.device
    if device.power() is None:
        return None
    readings: list[float] = []
    finished = threading.Event()

    def watch() -> None:
        while not finished.is_set():
            watts = device.power()
            if watts is not None and not finished.is_set():
                readings.append(watts)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds, done = 0.0, 0
    while seconds < least or (not readings and seconds < 10 * least):
        seconds, done = seconds + sum(ask(steps)[0]), done + steps
    finished.set()
    watcher.join()
    if not readings:
        return None
    mean = statistics.mean(readings)
    return {"watts": mean, "items_per_joule": done * items / seconds / mean, "readings": len(readings)}
