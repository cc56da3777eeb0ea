"""--power in the commands: starts the sampler of each machine, measures the idle level, and sums up what was used."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config.run_files import POWER_CSV

if TYPE_CHECKING:
    from unet.commands.setup import Context
    from unet.runtime.folders.run_folder import RunFolder
    from unet.runtime.progress import Progress


@contextlib.contextmanager
def measured(context: Context, logs: bool = True) -> Iterator[Context]:
    """The context with `power`, for --power; without it as it is. The first process of each machine reads all cards of
    the machine's processes. The idle level is measured before anything is read and before a network is on the device;
    the other processes wait meanwhile. `logs`: the readings are kept for power.csv."""
    interval, group = context.config.power.power, context.group
    if not interval or context.config.run.dry_run:
        yield context
        return
    from unet.devices.power.sampler import Sampler
    from unet.runtime.distributed.watchdog import machine
    from unet.runtime.power_use import PowerUse

    here = machine()
    seen = group.gather((here, context.device.card_name(), socket.gethostname()))
    machines = {where: name for where, _, name in seen}
    first = next(rank for rank, (where, _, _) in enumerate(seen) if where == here) == group.rank
    cards = list(dict.fromkeys(card for where, card, _ in seen if where == here))
    name = f"{machine_name(machines, here)} " if len(machines) > 1 else ""
    sampler = Sampler(context.device.power_sources(cards), interval, name) if first else None
    group.set_phase("measuring the idle level", may_block=True)
    try:
        if sampler:
            sampler.keeps_rows = logs
            sampler.start()
            sampler.rest()
        group.gather(None)  # the others wait
        use = PowerUse(sampler, interval, len(machines), name)
        yield dataclasses.replace(context, power=use)
    finally:
        if sampler:
            sampler.stop()


def machine_name(machines: Mapping[str, str], here: str) -> str:
    """The name of a machine; with its number where another has the same (two containers of one host)."""
    name = machines[here]
    return name if list(machines.values()).count(name) == 1 else f"{name} {list(machines).index(here)}"


def begin(context: Context, folder: RunFolder | None = None) -> None:
    """From now on count; the readings go into power.csv of the folder."""
    tell(context)
    if context.power is None:
        return
    if folder and context.power.sampler and context.group.is_main:
        context.power.sampler.log_to(folder.place(POWER_CSV))
    context.power.forget()


def tell(context: Context, folder: RunFolder | None = None) -> None:
    """Tell what could not be read."""
    for words in context.power.remarks() if context.power else ():
        folder.say(words) if folder else host.notice(words)


def of_run(context: Context, progress: Progress) -> dict[str, Any]:
    """The entries of summary.json of a training run. A sample is one that was trained, with the joules of training
    alone; to the target: all joules until the evaluation that reached it."""
    if context.power is None and not progress.energy:
        return {}
    from unet.runtime import power_use

    energy = progress.energy
    about = context.power.about(context.group) if context.power else {}
    result = power_use.used(energy, energy.get("samples", 0.0), "train_joules")
    rows = [row for row in progress.history if "joules" in row]
    whole = progress.reached and len(rows) == len(progress.history)
    above = whole and all("joules_above_idle" in row for row in rows)
    target = {
        "joules_to_target": sum(row["joules"] for row in rows) if whole else None,
        "joules_above_idle_to_target": sum(row["joules_above_idle"] for row in rows) if above else None,
    }
    train = energy.get("train_joules") if result["joules"] is not None else None
    return {
        "joules_per_sample": result["joules_per_sample"],
        "joules_to_target": target["joules_to_target"],
        "power": {**about, **result, "train_joules": train, **target},
    }


def of_cases(context: Context, cases: int) -> dict[str, Any]:
    """The entries of summary.json where cases are scored or predicted: a sample is a case. All ranks call it."""
    if context.power is None:
        return {}
    from unet.runtime import power_use

    use = context.power
    use.count(training=False)
    result = power_use.used(use.collect(context.group), cases)
    about = use.about(context.group)
    return {"joules_per_sample": result["joules_per_sample"], "power": {**about, **result}}


def metered(context: Context, work: Callable[[], int], least: float) -> dict[str, Any] | None:
    """What `work` uses, which returns the items that it did, called again and again for at least so many seconds and
    five readings; the idle level is measured before. None where nothing could be read."""
    with measured(context, logs=False) as context:
        begin(context)
        start, done = time.monotonic(), 0
        while time.monotonic() - start < max(least, 5 * context.config.power.power):
            done += work()
        found = of_cases(context, done)["power"]
        tell(context)
    if not found["joules"] or not found["joules_per_sample"]:
        return None
    return {"watts": found["mean_watts"], "items_per_joule": 1 / found["joules_per_sample"], **found}


def text(found: dict[str, Any], sample: str) -> str:
    """The entries in words, for a line of the closing block; empty where nothing was measured."""
    from unet.runtime.power_use import format_joules

    power = found.get("power", {})
    if power.get("joules") is None:
        return ""
    words = f"{format_joules(power['joules'])}, {power['mean_watts'] or 0:.1f} W in the mean"
    if power.get("idle_watts") is not None:
        words += f" ({power['idle_watts']:.1f} W idle before)"
    if power["joules_per_sample"] is not None:
        words += f", {format_joules(power['joules_per_sample'])} a {sample}"
    if power.get("joules_to_target") is not None:
        words += f", {format_joules(power['joules_to_target'])} to the target"
    return words
