"""The step on 1, 2, ... N of the processes of a run: total rates, and the efficiency. The gradients are exchanged as in
training; each process has its own share of the machine and a batch of its own, whatever the number that takes part."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from unet import host
from unet.benchmarks import measure, results, steps
from unet.benchmarks.worker import RAN_OUT, SMALLER, OutOfMemory
from unet.commands import output, setup, tables
from unet.config import capacity
from unet.config.check_paths import APPLYING, loads_data
from unet.config.resolve import Resolved
from unet.config.schema import Config
from unet.devices import load
from unet.devices.base import first_line
from unet.errors import UsageError
from unet.runtime.folders.run_folder import RunFolder

EACH = 4  # up to so many processes every number is measured; then doubled


def run(resolved: Resolved, command: str) -> int:
    """In each of the processes: measure, and on the first one print and write the result."""
    config = resolved.config
    require_alone(config)
    context = setup.assemble(config, resolved.sources)
    capacity.require(config, context.device.own_memory)
    folders: list[RunFolder | None] = []
    context.group.run_on_main(lambda: folders.append(results.folder_of(config)))
    watch = load.Watch()
    try:
        result = measured(context)
    except (RuntimeError, MemoryError) as error:
        if not context.device.is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"The timed loop {RAN_OUT} on rank {context.group.rank}: {first_line(error)}", SMALLER
        ) from error
    spans = context.group.gather(watch.span())
    if context.group.is_main:
        results.beside(result, spans)
        output.show(config, result, "" if config.output.json else text(result))
    if folders and folders[0]:
        results.keep(folders[0], resolved, command, result)
    return 0


def require_alone(config: Config) -> None:
    """Raise UsageError for what looks at one process."""
    named = [word for word, on in (("--profile", config.measure.profile),) if on]
    named += [f"--against {name}" for name in config.measure.against if name != "plain"]
    if named:
        raise UsageError(
            f"{' and '.join(named)}: that is measured in one process, and several run here.",
            "Leave it out, or start one process.",
        )


def counts(world: int) -> list[int]:
    """How many processes take part: 1, 2, 3, 4, then doubled, and all."""
    found, count = list(range(1, min(world, EACH) + 1)), 2 * EACH
    while count < world:
        found.append(count)
        count *= 2
    return [*found, world] if world > found[-1] else found


def measured(context: setup.Context) -> dict[str, Any]:
    """The result, the same on every process."""
    config, group = context.config, context.group
    batch: dict[str, Any] = {}
    if config.run.mode not in APPLYING:
        cases = setup.all_cases(context) if loads_data(config) else None
        group.gather(None)  # as in training
        batch = steps.batch_of(None if cases is None else steps.loader_of(context, cases), context.task)
    group.set_phase("measuring", may_block=True)
    rows = [on(context, count, batch) for count in counts(group.world)]
    for row in rows:
        row["efficiency"] = row["images_per_second"] / (row["processes"] * rows[0]["images_per_second"])
    whole = rows[-1]
    about = measure.about(context) | measure.batch_of_passes(config)
    return about | {
        "mode": config.run.mode if config.run.mode in APPLYING else "train",
        "processes": group.world,
        "launcher": context.device.rank.launcher,
        "predict": {},
        "images_per_second": {"ours": whole["images_per_second"]},
        "images_per_second_range": {"ours": [whole["min"], whole["max"]]},
        "seconds_a_step": {"ours": whole["seconds_a_step"]},
        "peak_memory_bytes": {"ours": whole["peak_memory_bytes"]},
        "scaling": rows,
    }


def on(context: setup.Context, count: int, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The total rate with the first `count` processes; the others wait. A round lasts as long as its slowest one."""
    from torch import distributed

    from unet.runtime.distributed.process_group import ENDLESS

    config, group = context.config, context.group
    members = None if count == group.world else distributed.new_group(list(range(count)), timeout=ENDLESS)
    predicting = config.run.mode in APPLYING
    loop: steps.Loop | None = None
    if group.rank < count:
        loop = (
            steps.OurPass(config, context)
            if predicting
            else steps.OurLoop(config, batch, context=context, group=members)
        )
    seconds: list[float] = []
    memory = 0
    for number in host.progress(range(config.timing.rounds + 1), name=host.counted(count, "process")):
        length = config.timing.steps if number else measure.warmup_of(config)
        group.gather(None)  # all start together
        own, peak = loop.run(length) if loop and length else ([], 0)
        answers = group.gather((sum(own), peak))
        if number:
            seconds.append(max(taken for taken, _ in answers) / length)
            memory = max(peak for _, peak in answers)
    network = type(getattr(loop, "network", None)).__name__
    del loop
    context.device.release()
    items = count * (config.eval.eval_batch_size if predicting else config.train.batch_size)
    return {
        "processes": count,
        "images_per_second": items / statistics.median(seconds),
        "min": items / max(seconds),
        "max": items / min(seconds),
        "seconds_a_step": seconds,
        "peak_memory_bytes": memory,
        "network": network,
    }


def text(result: Mapping[str, Any]) -> str:
    """The rates as a table."""
    step = "step" if result["mode"] == "train" else "pass"
    lines = tables.text(
        f"{result['task']}: {result['size']}, batch {result['batch_size']} on each process, {result['precision']};"
        f" a {step} on 1 to {result['processes']} processes ({result['launcher']})"
    )
    lines += tables.text(f"{result['device']} (of the first process)")
    heads = ("processes", f"{result['item']}/s", "least to most", "efficiency", "peak memory")
    return "\n".join([*lines, "", *table(heads, [cells(row) for row in result["scaling"]])])


def cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["processes"]),
        f"{row['images_per_second']:.2f}",
        f"{row['min']:.2f} to {row['max']:.2f}",
        f"{row['efficiency']:.3f}",
        host.format_bytes(row["peak_memory_bytes"]),
    ]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as what they hold; on a narrow terminal as `tables.table` splits them."""
    sizes = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    if sum(sizes) + 2 * len(sizes) > tables.width():
        return tables.table(heads, rows, sizes[0])
    return [
        f"  {row[0]:<{sizes[0]}}" + "".join(f"  {cell:>{size}}" for cell, size in zip(row[1:], sizes[1:], strict=True))
        for row in (heads, *rows)
    ]
