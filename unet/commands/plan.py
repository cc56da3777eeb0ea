"""plan: looks at a user's set, tries the network on the device, and writes the settings that follow, each with its
reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from unet import files, host
from unet.commands import output, setup, tables
from unet.config import capacity
from unet.config.resolve import Resolved
from unet.config.schema import Config, places_of, resolve_path, shell_path
from unet.errors import UnetError, UsageError
from unet.tasks.registry import BUILT_IN, create, settings_of

STEPS = 2  # training steps of a try, after one that is not counted
KEPT = ("task", "data", "split", "network", "train", "eval")  # groups of settings that a plan keeps where typed
ROOM = 0.8  # share of the free memory that a step may take


class Tried(NamedTuple):
    """What a try of the network showed: seconds of a step and peak bytes, and the batch that fits."""

    seconds: float
    memory: int
    batch: int


def run(resolved: Resolved, command: str) -> int:
    """Print one line for each setting that follows from the data, and write them all for `train --config`."""
    config = resolved.config
    path = Path(config.plan.plan_file)
    if os.path.lexists(path) and not config.general.overwrite:
        raise UsageError(f"{path} exists.", "Write another one with --plan-file FILE, or replace it: --overwrite.")
    task = create(config)
    unchosen = setup.unchosen(resolved)
    decisions = task.decisions(unchosen)
    if not decisions:
        plans = ", ".join(name for name in BUILT_IN if settings_of(name).plans)
        raise UsageError(
            f"The settings of task {config.task.name} do not follow from the data.",
            f"Type --task {plans} for images and masks of your own; python -m unet config prints every setting.",
        )
    config = config.replace(**{decision.name: decision.value for decision in decisions if decision.name in unchosen})
    if wrong := [*config.task.check_values(), *config.task.check_input_size(config)]:
        raise UsageError(
            f"{'; '.join(wrong)}.", "Type other values, or leave them out: they then follow from the data."
        )
    context = setup.assemble(config, resolved.sources)
    tried = try_it(context, "batch_size" in unchosen)
    if tried.batch != config.train.batch_size:
        decided = config.train.batch_size
        config = config.replace(batch_size=tried.batch)
        words = f"a step of {decided} does not fit into memory"
        decisions = [
            decision._replace(value=tried.batch, reason=f"the most that fits: {words}")
            if decision.name == "batch_size"
            else decision
            for decision in decisions
        ]
    content = {
        "task": config.general.task,
        "data": config.data.data,
        "cache": config.data.cache,
        "size": config.get("size"),
        **{name: files.jsonable(config.get(name)) for name in typed(resolved)},
        **{decision.name: files.jsonable(decision.value) for decision in decisions},
    }
    files.write_json(path, {name: value for name, value in content.items() if value is not None})
    lines = [line for decision in decisions for line in tables.text(decision.line, indent=4)]
    lines += ["", *outlook(context, config, tried), "", f"  plan       {path}"]
    lines.append(f"  train      python -m unet train --config {shell_path(path)} --run-name NAME")
    result = {"plan": str(path), "settings": [decision._asdict() for decision in decisions], "tried": tried._asdict()}
    output.show(config, files.jsonable(result), "\n".join(lines))
    return 0


def typed(resolved: Resolved) -> list[str]:
    """The settings of training that the user has given: a plan keeps them."""
    places = places_of(type(resolved.config.task))
    free = setup.unchosen(resolved)
    return [name for name in resolved.sources if name not in free and places[name] in KEPT]


def try_it(context: setup.Context, free: bool) -> Tried:
    """Train the network on patches of noise: one of them for its time and memory, then as many as are planned, fewer
    where that would take more memory than is free (`free`: the batch was not typed). Raises UnetError where not even
    one patch fits."""
    batch = context.config.train.batch_size
    try:
        one = measure(context, 1)
    except (RuntimeError, MemoryError) as error:
        if not context.device.is_out_of_memory(error):
            raise
        sides = " ".join(str(max(8, side // 2)) if side > 1 else "1" for side in context.task.input_shape()[2:])
        raise UnetError(
            f"Not even one patch of {context.task.describe_input()} can be trained on {context.device.describe()}.",
            f"Type --size S, a smaller --patch ({sides}) or a smaller --width.",
        ) from error
    if not free:
        return one._replace(batch=batch)
    if not context.device.own_memory:  # there a process would be killed instead
        each = max(1.0, one.memory - capacity.PROCESS)
        batch = max(1, min(batch, int((host.memory()[1] * ROOM - capacity.PROCESS) / each)))
    while batch > 1:
        try:
            return measure(context, batch)
        except (RuntimeError, MemoryError) as error:
            if not context.device.is_out_of_memory(error):
                raise
        context.device.release()
        batch //= 2
    return one


def measure(context: setup.Context, batch: int) -> Tried:
    """Two training steps of so many patches."""
    from unet.runtime import optim

    context = context.with_config(context.config.replace(batch_size=batch))
    task, device, config = context.task, context.device, context.config
    model = device.place(task.build_model())
    optimizer = optim.build(config.train, task.param_groups(model), device)
    drawn = task.random_batch()
    began = device.now()
    for step in range(STEPS + 1):
        if step == 1:
            began = device.now()
        moved = device.to(drawn)
        with device.autocast():
            loss = task.training_step(model, moved)["loss"]
        loss.backward()
        device.flush()
        optimizer.step()
        optimizer.zero_grad()
        device.flush()
        loss.item()
    return Tried((device.now() - began) / STEPS, device.memory(), batch)


def outlook(context: setup.Context, config: Config, tried: Tried) -> list[str]:
    """What a run of this plan takes: parameters, memory, time, room on the disk."""
    total, available = host.memory()
    cache = resolve_path(config.data.cache, "data")
    epoch = tried.seconds * config.get("epoch_batches")
    whole = epoch * config.train.epochs
    return [
        f"  network    {config.task.parameters(config):,} parameters",
        f"  tried      on {context.device.describe()}: {tried.batch} patches a step, {tried.seconds:.2g} s,"
        f" {host.format_bytes(tried.memory)} of memory",
        f"  time       about {duration(epoch)} an epoch, {duration(whole)} in all, without evaluation",
        f"  machine    {host.counted(host.cores(), 'core')}, {host.format_bytes(available)} of"
        f" {host.format_bytes(total)} free; {host.format_bytes(host.disk(cache))} free on the cache's disk",
    ]


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
