"""Task, device, network and weights, put together once for all commands."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.config import Config, where
from unet.devices import environment
from unet.errors import UnetError, UsageError
from unet.resolve import Resolved
from unet.tasks.base import Infer, Task, create

if TYPE_CHECKING:
    from torch import nn

    from unet.devices.base import Device


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a command works with."""

    config: Config
    task: Task
    device: Device
    rank: environment.Rank
    passed: tuple[str, ...]


def assemble(config: Config) -> Parts:
    """Choose rank and device, set their variables, and only then import torch. Raises UnetError."""
    rank = environment.find_rank(config)
    kind, passed = environment.choose(config, rank)
    device = kind(config, rank)
    device.join()
    device.deterministic(config.deterministic)
    if config.precision not in ("fp32", "auto") and config.precision not in device.dtypes():
        host.notice(
            f"{config.precision} is not in the hardware of this device ({device.describe()}): it works, but slowly."
        )
    return Parts(config, create(config.task), device, rank, tuple(passed))


def weights_path(name: str) -> Path:
    """A name in weights/, or a path as it is."""
    return where(name, "weights")


def run_path(config: Config, kind: str) -> Path:
    """The folder of a run: its --run-name, or its kind and the time (counted on where that is taken)."""
    if config.run_name:
        return Path(config.out) / config.run_name
    first = Path(config.out) / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    later = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], later) if not path.exists())


def read_weights(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(facts, state dict) of a checkpoint in any known form; facts are empty for a foreign one."""
    from unet.runtime import checkpoint

    content = checkpoint.read(path)
    facts = content if content.get("format") in (checkpoint.WEIGHTS, checkpoint.STATE) else {}
    return facts, checkpoint.weights_of(content)


def trained_network(parts: Parts, path: Path, resolved: Resolved) -> nn.Module:
    """The network of a checkpoint, on the device: its shape is the weights' own, or the typed --layers and --width."""
    from unet.runtime import checkpoint

    _, state = read_weights(path)
    network, own = parts.task.load(state)
    if any(resolved.sources[name].startswith("flag") for name in ("layers", "width")):
        network = parts.task.model(parts.config)
    checkpoint.fit(network, own, path)
    placed = parts.device.place(network)
    return parts.device.compile(placed) if parts.config.compile else placed


def infer(parts: Parts, network: nn.Module) -> Infer:
    """What a task calls to run the network over a case."""
    from unet.runtime import inference

    return functools.partial(inference.slices, network=network, device=parts.device, batch=parts.config.eval_batch_size)


def with_facts(resolved: Resolved, paths: list[Path]) -> tuple[Resolved, list[dict[str, Any]]]:
    """Settings completed by what the weights say of their training: image size, data, cache. What was typed stays.

    Raises UsageError where several weights disagree on the image size.
    """
    facts = [read_weights(path)[0] for path in paths]
    settings = facts[0].get("settings", {})
    together = ("data", "cache", "synth_data")  # one place: parts of it from elsewhere would be another set
    weak = ("default", f"task {resolved.config.task}", "made data")
    names = ["image_size"] if resolved.sources["image_size"] in weak else []
    if all(resolved.sources[name] in weak for name in together):
        names += together
    changes = {name: settings[name] for name in names if name in settings}
    sizes = {item.get("settings", {}).get("image_size") for item in facts}
    if len(sizes) > 1 and "image_size" in changes:
        raise UsageError(
            f"The weights were trained at different image sizes: {', '.join(map(str, sizes))}.",
            "Give them one at a time.",
        )
    sources = {**resolved.sources, **dict.fromkeys(changes, f"weights {paths[0].name}")}
    return dataclasses.replace(resolved, config=resolved.config.replace(**changes), sources=sources), facts


def advise(error: BaseException, parts: Parts) -> UnetError | None:
    """Memory that ran out, in two lines; None for another error."""
    config = parts.config
    if not parts.device.is_out_of_memory(error):
        return None
    smaller = max(1, config.batch_size // 2)
    return UnetError(
        f"The device ran out of memory at --image-size {config.image_size} with --batch-size {config.batch_size},"
        f" --eval-batch-size {config.eval_batch_size} (peak {host.size(parts.device.memory())}).",
        f"Type --batch-size {smaller} --accumulate {2 * config.accumulate} (steps of as many images), a smaller"
        " --eval-batch-size where it was scoring, or --precision bf16.",
    )


@contextlib.contextmanager
def advising(parts: Parts) -> Iterator[None]:
    """Turn what `advise` knows into its two lines."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        advice = advise(error, parts)
        if advice:
            raise advice from error
        raise
