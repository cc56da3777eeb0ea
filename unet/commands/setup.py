"""Builds task, device, process group, network and weights, for all commands."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet import host
from unet.commands.weight_settings import of_one, saved_settings, weak_sources
from unet.config import capacity, check_paths
from unet.config.options import flag
from unet.config.resolve import Resolved, known_task, with_synthetic_cache
from unet.config.schema import Config, declared_of, weights_to_read
from unet.config.task_settings import TaskSettings
from unet.devices import launchers, select
from unet.devices.base import Workload
from unet.errors import UnetError, UsageError
from unet.runtime.checkpoints.checkpoint_paths import CheckpointPaths
from unet.tasks.base import Task
from unet.tasks.registry import BUILT_IN, create
from unet.weight_files import exported, safetensors_header

if TYPE_CHECKING:
    from torch import nn

    from unet.devices.base import Device
    from unet.runtime.distributed.process_group import Group
    from unet.runtime.inference.predictor import Predictor
    from unet.runtime.power_use import PowerUse


@dataclasses.dataclass(frozen=True)
class Context:
    """Settings, task, device and process group of a command; `passed`: why other devices were not used; `power`: what
    the run uses, with --power."""

    config: Config
    task: Task
    device: Device
    group: Group
    passed: tuple[str, ...]
    power: PowerUse | None = None

    def with_config(self, config: Config) -> Context:
        """A copy with other settings, also for the task."""
        return dataclasses.replace(self, config=config, task=task_on(self.device, config))


def unchosen(resolved: Resolved) -> list[str]:
    """The settings whose values are the defaults of the program or of the task."""
    usual = ("default", f"task {resolved.config.task.name}")
    return [name for name, source in resolved.sources.items() if source in usual]


def settled(resolved: Resolved) -> Resolved:
    """The settings, with those that follow from the data where the user has given none. Raises UnetError."""
    config, names = resolved.config, unchosen(resolved)
    found = create(config).settings_from_data(names)
    if not found:
        return resolved
    sources = {**resolved.sources, **{name: "data" for name in found if name in names}}
    config = config.replace(**{name: value for name, value in found.items() if name in names})
    if wrong := [*config.task.check_values(), *config.task.check_input_size(config)]:
        raise UsageError(
            f"{'; '.join(wrong)}.", "Type other values, or leave them out: they then follow from the data."
        )
    return dataclasses.replace(resolved, config=config, sources=sources)


def task_on(device: Device, config: Config) -> Task:
    """The task, which computes on a device."""
    task = create(config)
    task.compute = device
    return task


def workload_of(config: Config) -> Workload:
    """What a device must know of the run."""
    return Workload(config.train.accumulate, config.task.large_tensors, capacity.step_memory(config))


def assemble(config: Config, sources: Mapping[str, str] | None = None) -> Context:
    """Find the rank, choose the device and set its variables; only then import torch and connect to the other ranks.
    `sources`: those of the settings, for advice on what was not chosen. Raises UnetError."""
    rank = launchers.find_rank(config.distributed, config.device.cuda_devices)
    kind, passed = select.choose(config.device, rank, workload_of(config))
    device = kind(config.device, rank, workload_of(config))
    group = init_distributed(config, device)
    device.deterministic(config.device.deterministic)
    advise_precision(config, sources or {}, device)
    return Context(config, task_on(device, config), device, group, tuple(passed))


def advise_precision(config: Config, sources: Mapping[str, str], device: Device) -> None:
    """Tell of a precision that the hardware lacks, and of a slow one for large tensors that nobody has chosen."""
    precision, fast = config.device.precision, device.dtypes()
    if precision not in ("fp32", "tf32", "auto", *fast):
        host.notice(
            f"{precision} is not supported by the hardware of this device ({device.describe()}): it is no faster than"
            " fp32."
        )
    unchosen = precision in ("fp32", "tf32") and sources.get("precision") in weak_sources(config)
    if unchosen and device.own_memory and config.task.large_tensors and "bf16" in fast:
        host.notice_once(
            f"note: {precision} is the default of {config.task.name}; bf16 is faster on this device"
            f" ({device.describe()}): --precision bf16"
        )


def init_distributed(config: Config, device: Device) -> Group:
    """The process group of this run."""
    from unet.runtime.distributed import process_group as distributed

    rank = device.rank
    if rank.world == 1 or distributed.group().world > 1:
        return distributed.group()
    address, port = launchers.master_address(config.distributed, rank)
    if device.own_memory and rank.local_world > 1 and rank.local == 0 and (size := host.small_shared_memory()):
        host.notice(
            f"warning: {rank.local_world} processes of this node exchange gradients through {host.SHARED}, which has"
            f" {size}. Start the container with docker run --shm-size=1g, or --ipc=host."
        )
    interface, own = ("lo", None) if rank.one_node else launchers.route(address)
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return distributed.join(device, address, port, config.distributed.dist_timeout, Path(config.run.out), own)


def split_first(context: Context, ids: list[str]) -> None:
    """What `all_cases` calls for all cases (None) of a new run: what is wrong with its split is told before they are
    prepared. A resumed run has its split."""
    if not context.config.save.resume:
        context.task.split(ids)


def all_cases(context: Context, choose: Callable[[list[str]], Collection[str] | None] | None = None) -> list[Any]:
    """All cached cases, or those whose ids `choose` selects; rank 0 builds or rebuilds the cache, the others find
    it."""
    once = context.config if context.group.is_main else context.config.replace(rebuild_cache=False)
    found: list[Any] = context.group.main_first(lambda: context.with_config(once).task.cached_cases(choose))
    return found


def given_weights(config: Config, command: str) -> list[Path]:
    """The paths given by --weights, or by --load, which means the same here. Raises UsageError if there are none."""
    names = config.weights.weights
    if not names:
        there = check_paths.known_weights()
        raise UsageError(
            f"{command} needs weights, and none were given.", f"Type --weights FILE{f'; {there}' if there else ''}."
        )
    found = [weights_to_read(name) for name in names]
    for own in map(CheckpointPaths, found):  # as a shell writes NAME-fold*.safetensors
        if saved := {own.state, own.state_before, own.weights_before}.intersection(found):
            raise UsageError(
                f"{min(saved)} was saved beside {own.weights} to go on with the same run: it is no other network.",
                "Name the weights alone, for example --weights weights/NAME-fold?.safetensors",
            )
    return found


def read_weights(path: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(metadata, state dict) of a checkpoint in any known format; the metadata of other programs' files are empty.
    Raises CheckpointError for an exported network, which has no state dict."""
    from unet.runtime.checkpoints import checkpoint

    content = checkpoint.read(path)
    facts = content if content.get("format") in (*checkpoint.WEIGHTS_FORMATS, *checkpoint.STATE_FORMATS) else {}
    return facts, checkpoint.weights_of(content, path)


def facts_of_foreign(path: Path, task: Task) -> dict[str, Any]:
    """What a checkpoint of another program says of its settings, {} where the task knows none of them."""
    from unet.runtime.checkpoints import checkpoint

    settings = task.settings_of_checkpoint(checkpoint.read(path))
    return {"settings": settings} if settings else {}


def metadata_of(path: Path) -> dict[str, Any]:
    """The metadata of weights or of an exported network; those of other programs' weights are empty."""
    known = path.exists() and safetensors_header.kind(path) in exported.KINDS  # what is missing is told by read_weights
    return exported.read(path) if known else read_weights(path)[0]


def read_network(context: Context, path: Path, resolved: Resolved) -> nn.Module:
    """The network of a checkpoint, on the host. Its size is that of the weights, or --layers and --width if typed."""
    from unet.runtime.checkpoints import checkpoint

    facts, state = read_weights(path)
    task = context.task
    if own_names := task.Settings.network_settings:
        saved = saved_settings(facts or facts_of_foreign(path, task), own_names, path, task.Settings)
        task = task_on(context.device, of_one(context.config, resolved.sources, saved))
    network, own = task.convert_checkpoint(state)
    if any(resolved.sources[name].startswith("flag") for name in ("layers", "width")):
        network = context.task.build_model()
    checkpoint.fit(network, own, path)
    return network


def exported_network(context: Context, path: Path) -> nn.Module:
    """The network of an exported file, run by its own runtime: on the card where that can, else on the host."""
    import torch

    from unet.export import network

    runtime = context.device.onnx_provider, context.device.onnx_options
    found = network.load(path, exported.read(path), torch.get_num_threads(), *runtime)
    slower = ", which has no way to this device here" if context.device.own_memory and "CPU" in found.where else ""
    host.notice(f"{path}: run by {found.where}{slower}")
    return found


def trained_network(context: Context, path: Path, resolved: Resolved) -> nn.Module:
    """The network of a checkpoint or of an exported file, ready to be run."""
    if safetensors_header.kind(path) in exported.KINDS:
        return exported_network(context, path)
    return placed(context, read_network(context, path, resolved))


def placed(context: Context, network: nn.Module) -> nn.Module:
    """A network on the device, as it is run there."""
    found = context.device.place(network)
    compiled = context.device.compile(found) if context.device.compiled() else found
    return context.device.capture(compiled, training=False)


def make_predictor(context: Context, *networks: nn.Module, finite: bool = False) -> Predictor:
    """What a task uses to run networks over a case; with `finite` an output with NaN or infinity is an error."""
    from unet.runtime.inference.predictor import Predictor

    return Predictor(networks, context.device, context.config.eval.eval_batch_size, finite)


def shaping(task: type[TaskSettings]) -> tuple[str, ...]:
    """The settings of a task's network, as they are stored with weights."""
    return tuple(declared_of(task, ("network",)))


def apply_checkpoint_settings(
    resolved: Resolved, paths: list[Path], reused: tuple[str, ...], networks: tuple[str, ...] = ()
) -> tuple[Resolved, list[dict[str, Any]]]:
    """(settings, metadata of each file): the settings named in `reused` are taken from the weights unless they were
    typed; those in `networks` and the task's `network_settings`, on which several weights may disagree, from the first.

    Raises UsageError if several weights disagree on one of them, CheckpointError for a value that no flag accepts.
    """
    facts = [metadata_of(path) or facts_of_foreign(path, create(resolved.config)) for path in paths]
    tasks = [
        known_task(item, path, (*BUILT_IN, resolved.config.task.name)) for path, item in zip(paths, facts, strict=True)
    ]
    several = {name: path for path, name in zip(paths, tasks, strict=True) if name}
    if len(several) > 1:
        each = ", ".join(f"{path} is of {name}" for name, path in several.items())
        raise UsageError(f"These weights are of several tasks: {each}.", "Give the weights of one task at a time.")
    for path, item, name in zip(paths, facts, tasks, strict=True):
        if name not in (None, resolved.config.task.name):
            raise UsageError(
                f"{path} belongs to task {item['task']}, but this command uses task {resolved.config.task.name}.",
                f"Add --task {item['task']}."
                if item["task"] in BUILT_IN
                else "Name that task: --task package.module:Class.",
            )
    stored = [
        saved_settings(item, (*reused, *networks, "layers"), path, type(resolved.config.task))
        for path, item in zip(paths, facts, strict=True)
    ]
    known = [item for item in stored if item]
    settings = known[0] if known else {}
    weak = weak_sources(resolved.config)
    names = [name for name in dict.fromkeys((*reused, *networks)) if resolved.sources[name] in weak]
    shared = [name for name in names if name in reused and name not in resolved.config.task.network_settings]
    differing = [name for name in shared if len({str(item[name]) for item in known if name in item}) > 1]
    if differing:
        words = (f"{flag(name)} {' or '.join(sorted({str(item.get(name)) for item in known}))}" for name in differing)
        fixed = set(differing) & set(shaping(type(resolved.config.task)))
        raise UsageError(
            f"The weights were trained with different settings: {', '.join(words)}.",
            "Give one of them at a time" + ("." if fixed else ", or type the value of these flags."),
        )
    changes = {name: settings[name] for name in names if name in settings}
    sources = {**resolved.sources, **dict.fromkeys(changes, f"weights {paths[0].name}")}
    config = with_synthetic_cache(resolved.config.replace(**changes), sources)
    for path, item in zip(paths, stored, strict=True):
        if "layers" not in item:
            continue
        trained = of_one(config, sources, item).replace(layers=item["layers"])
        found = trained.task.check_values() or trained.task.check_input_size(trained)
        found = [words for words in found if not words.startswith("--patch")]  # only matters for training
        if found:
            raise UsageError(
                f"{path.absolute()} (a network of {item['layers']} layers): {'; '.join(found)}.",
                "Type a value of that flag that fits, or give other weights.",
            )
    return dataclasses.replace(resolved, config=config, sources=sources), facts


def explain_oom(error: BaseException, context: Context, run: Any = None) -> UnetError | None:
    """The two-line error for an out-of-memory error, with the largest batch that fits if it happened in training; None
    for another error."""
    config, device = context.config, context.device
    if not device.is_out_of_memory(error):
        return None
    if config.logging.verbose:
        traceback.print_exception(error)
    error.__traceback__ = None  # its frames hold the tensors of the step that failed
    peak = host.format_bytes(device.memory())
    where = context.task.size_text
    if run is None or not run.training or not device.own_memory or context.group.world > 1:
        smaller = max(1, config.train.batch_size // 2)
        return UnetError(
            f"The device ran out of memory at {where} with --batch-size {config.train.batch_size}, --eval-batch-size"
            f" {config.eval.eval_batch_size} (peak {peak}).",
            f"Type --batch-size {smaller} --accumulate {2 * config.train.accumulate} (the same number of samples per"
            f" step), a"
            " smaller --eval-batch-size if it failed in evaluation, or --precision bf16.",
        )
    fits = largest_batch(run)
    advice = f"the largest batch that fits is {fits}" if fits else "not even a batch of 1 fits"
    half = f"--precision {device.dtypes()[0]}" if device.dtypes() else "--layers with fewer levels"
    hint = f"Type a smaller {where.split()[0]} or --width, or {half}."
    if fits:
        images = config.train.batch_size * config.train.accumulate
        accumulate = -(-images // fits)
        batch = -(-images // accumulate)
        hint = f"Type --batch-size {batch} --accumulate {accumulate} (the same number of samples per step), or {half}."
    return UnetError(
        f"The device ran out of memory at {where} with --batch-size {config.train.batch_size} (peak {peak}); {advice}.",
        hint,
    )


def largest_batch(run: Any) -> int:
    """The largest batch size below that of the run whose step fits into the device's memory; 0 if none does.

    The trial steps change the network and optimiser of the run, so it cannot continue afterwards.
    """
    device = run.device
    vars(run).pop("batches", None)  # the stream holds batches on the device
    whole = next(run.loader.epochs([run.progress.epoch]))

    def fits(batch: int) -> bool:
        run.optimizer.zero_grad()
        device.release()
        try:
            moved = device.to({key: value[:batch] for key, value in whole.items()})
            device.micro_batch(0)
            with device.autocast():
                loss = run.task.training_step(run.model, moved)["loss"]
            loss.backward()
            device.flush()
            run.optimizer.step()
            device.flush()
            loss.item()
        except RuntimeError as error:
            if not device.is_out_of_memory(error):
                raise
            return False
        return True

    low, high = 0, run.options.batch_size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@contextlib.contextmanager
def explaining_oom(context: Context) -> Iterator[None]:
    """Convert out-of-memory errors by `explain_oom`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if advice := explain_oom(error, context):
            raise advice from error
        raise
