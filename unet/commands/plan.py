"""plan: looks at a user's set, tries the network on the device, and writes the settings that follow, each with its
reason."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unet import files, host
from unet.commands import output, setup, tables
from unet.config import capacity
from unet.config.resolve import Resolved
from unet.config.schema import Config, places_of, resolve_path, shell_path
from unet.errors import UnetError, UsageError
from unet.tasks.base import Decision
from unet.tasks.registry import BUILT_IN, create, settings_of

STEPS = 2  # training steps of a try, after one that is not counted
LEAST = 4000  # training steps below which a smaller network learns more in the same time
EPOCHS, EVALUATIONS = 10, 5  # of a short run: at least so many epochs, about so many evaluations
KEPT = ("task", "data", "split", "network", "train", "eval")  # groups of settings that a plan keeps where typed
ROOM = 0.8  # share of the free memory that a step may take


class Tried(NamedTuple):
    """What a try of the network showed: seconds of a step, its patches included, and peak bytes, and the batch that
    fits."""

    seconds: float
    memory: int
    batch: int


class Plan(NamedTuple):
    """Settings, each decision with its reason, and what a try of them showed."""

    config: Config
    decisions: list[Decision]
    context: setup.Context
    tried: Tried

    def changed(self, reason: str, **values: Any) -> Plan:
        """With other values, for this reason."""
        config = self.config.replace(**values)
        kept = [each for each in self.decisions if each.name not in values]
        old = {each.name: each for each in self.decisions}
        new = [
            old[name]._replace(value=value, reason=reason, other="")
            if name in old
            else Decision(name, value, reason, f"a step of {self.tried.seconds:.2g} s")
            for name, value in values.items()
        ]
        return self._replace(config=config, decisions=[*kept, *new])


def run(resolved: Resolved, command: str) -> int:
    """Print one line for each setting that follows from the data, and write them all for `train --config`."""
    config = resolved.config
    path = Path(config.plan.plan_file)
    if os.path.lexists(path) and not config.general.overwrite:
        raise UsageError(f"{path} exists.", "Write another one with --plan-file FILE, or replace it: --overwrite.")
    unchosen = setup.unchosen(resolved)
    plan = (
        within(resolved, unchosen) if config.plan.hours else whole_batch(decided(resolved, config, unchosen), unchosen)
    )
    config, decisions, tried = plan.config, plan.decisions, plan.tried
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
    lines += ["", *outlook(plan), "", f"  plan       {path}"]
    lines.append(f"  train      python -m unet train --config {shell_path(path)} --run-name NAME")
    result = {"plan": str(path), "settings": [decision._asdict() for decision in decisions], "tried": tried._asdict()}
    output.show(config, files.jsonable(result), "\n".join(lines))
    return 0


def decided(resolved: Resolved, config: Config, unchosen: Sequence[str]) -> Plan:
    """The plan of a set for these settings, one patch of it tried on the device. Raises UsageError where the task has
    no plans, or where typed values do not fit."""
    decisions = create(config).decisions(unchosen)
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
    host.notice(f"trying --size {config.get('size')} on {context.device.describe()}: {context.task.describe_input()}")
    return Plan(config, decisions, context, one_patch(context))


def typed(resolved: Resolved) -> list[str]:
    """The settings of training that the user has given: a plan keeps them."""
    places = places_of(type(resolved.config.task))
    free = setup.unchosen(resolved)
    return [name for name in resolved.sources if name not in free and places[name] in KEPT]


def within(resolved: Resolved, unchosen: Sequence[str]) -> Plan:
    """The plan of the largest --size whose training makes LEAST steps in --hours, with smaller batches where that takes
    them, and as many epochs as the time allows. Where not even the smallest size does, that one."""
    config = resolved.config
    sizes = config.task.plans if "size" in unchosen else (config.get("size"),)
    found: Plan | None = None
    for size in sizes:
        plan = fewer(decided(resolved, config.replace(size=size), unchosen), unchosen)
        if found and steps_of(plan, plan.config.train.batch_size) < LEAST:
            break
        found = plan
    assert found is not None
    found = whole_batch(found, unchosen)
    steps = steps_of(found)
    length = found.config.get("epoch_batches")
    values = {"epochs": max(1, steps // length), "epoch_batches": length}
    if "epoch_batches" in unchosen and steps < EPOCHS * length:
        values = {"epochs": EPOCHS, "epoch_batches": max(1, steps // EPOCHS)}
    values["evaluate_every"] = max(1, values["epochs"] // EVALUATIONS)
    if steps < LEAST:
        host.notice(f"note: {steps} steps fit into the time; a network learns little in less than {LEAST}.")
    return found.changed(
        f"fits into --hours {config.plan.hours:g}",
        **{name: value for name, value in values.items() if name in unchosen},
    )


def steps_of(plan: Plan, patches: int | None = None) -> int:
    """Training steps that fit into --hours: of the batch that was tried, or of so many patches."""
    seconds = plan.tried.seconds * (patches or plan.tried.batch) / plan.tried.batch
    return max(1, int((plan.config.plan.hours or 0) * 3600 / seconds))


def fewer(plan: Plan, unchosen: Sequence[str]) -> Plan:
    """The plan with half the batch, again and again, until LEAST steps fit into the time or 2 patches are left."""
    batch = plan.config.train.batch_size
    while batch >= 4 and steps_of(plan, batch) < LEAST and "batch_size" in unchosen:
        batch //= 2
    if batch == plan.config.train.batch_size:
        return plan
    return plan.changed("smaller than --size allows: more steps in the time", batch_size=batch)


def one_patch(context: setup.Context) -> Tried:
    """What training one patch takes. Raises UnetError where not even one fits."""
    try:
        return measure(context, 1)
    except (RuntimeError, MemoryError) as error:
        if not context.device.is_out_of_memory(error):
            raise
        sides = " ".join(str(max(8, side // 2)) if side > 1 else "1" for side in context.task.input_shape()[2:])
        raise UnetError(
            f"Not even one patch of {context.task.describe_input()} can be trained on {context.device.describe()}.",
            f"Type --size S, a smaller --patch ({sides}) or a smaller --width.",
        ) from error


def whole_batch(plan: Plan, unchosen: Sequence[str]) -> Plan:
    """The plan, its whole batch tried on the device: fewer patches, where they were not typed and take more memory than
    is free."""
    context, one = plan.context, plan.tried
    batch = wanted = plan.config.train.batch_size
    if "batch_size" not in unchosen:
        return plan._replace(tried=one._replace(batch=batch, seconds=one.seconds * batch))
    if not context.device.own_memory:  # there a process would be killed instead
        each = max(1.0, one.memory - capacity.PROCESS)
        batch = max(1, min(batch, int((host.memory()[1] * ROOM - capacity.PROCESS) / each)))
    tried = one
    if batch > 1:
        host.notice(f"trying a step of {batch} patches: about {duration((STEPS + 1) * one.seconds * batch)}")
    while batch > 1:
        try:
            tried = measure(context, batch)
            break
        except (RuntimeError, MemoryError) as error:
            if not context.device.is_out_of_memory(error):
                raise
        context.device.release()
        batch //= 2
    plan = plan._replace(tried=tried)
    if tried.batch == wanted:
        return plan
    return plan.changed(f"the most that fits: a step of {wanted} does not fit into memory", batch_size=tried.batch)


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
    seconds = (device.now() - began) / STEPS
    patches = task.patch_seconds() * batch / host.cores()  # the loader's work
    seconds = max(seconds, patches) if device.own_memory else seconds + patches
    return Tried(seconds, device.memory(), batch)


def outlook(plan: Plan) -> list[str]:
    """What a run of this plan takes: parameters, memory, time, room on the disk."""
    config, _, context, tried = plan
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
