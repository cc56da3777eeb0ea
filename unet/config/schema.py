"""The settings: one frozen object with the groups of the flag table and the settings of the task.

For example `config.train.lr`, `config.device.precision`, `config.task.patch`.
A value comes from the last layer that sets it: default < task < synthetic data < recipe < --config file < flag. No
torch.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from unet.config import capacity
from unet.config.flags import (
    CheckOptions,
    DataOptions,
    DeviceOptions,
    DistributedOptions,
    GeneralOptions,
    InputOptions,
    LoggingOptions,
    MLPerfOptions,
    RunOptions,
    SampleOptions,
    SaveOptions,
    SplitOptions,
    SyntheticOptions,
    TimingOptions,
    WeightsOptions,
)
from unet.config.flags_reports import (
    ExportOptions,
    ListOptions,
    MeasureOptions,
    OutputOptions,
    ReportOptions,
    RunsOptions,
)
from unet.config.flags_services import SHORTEST, CompletionOptions, DownloadOptions, PowerOptions, TrackOptions
from unet.config.flags_training import (
    EvalOptions,
    LabelOptions,
    NetworkOptions,
    PlanOptions,
    PredictOptions,
    ScoringOptions,
    TrainOptions,
)
from unet.config.options import Declared, fields, flag
from unet.config.task_settings import TaskSettings, check_pair

MEND = "Change the named flags; `python -m unet config` prints every setting and where it came from."

SYNTHETIC = "synthetic data"  # the source of what --synth-data changes
LAYERS = ["default", "task", "synthetic", "recipe", "file", "run", "flag"]  # how a source begins, weakest first
STORES = ("http://", "https://", "sqlite:///", "file://")


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of the program; a command sets those of its groups, the others keep their defaults."""

    task: TaskSettings
    general: GeneralOptions = dataclasses.field(default_factory=GeneralOptions)
    run: RunOptions = dataclasses.field(default_factory=RunOptions)
    logging: LoggingOptions = dataclasses.field(default_factory=LoggingOptions)
    data: DataOptions = dataclasses.field(default_factory=DataOptions)
    split: SplitOptions = dataclasses.field(default_factory=SplitOptions)
    network: NetworkOptions = dataclasses.field(default_factory=NetworkOptions)
    weights: WeightsOptions = dataclasses.field(default_factory=WeightsOptions)
    train: TrainOptions = dataclasses.field(default_factory=TrainOptions)
    save: SaveOptions = dataclasses.field(default_factory=SaveOptions)
    device: DeviceOptions = dataclasses.field(default_factory=DeviceOptions)
    distributed: DistributedOptions = dataclasses.field(default_factory=DistributedOptions)
    eval: EvalOptions = dataclasses.field(default_factory=EvalOptions)
    input: InputOptions = dataclasses.field(default_factory=InputOptions)
    predict: PredictOptions = dataclasses.field(default_factory=PredictOptions)
    sample: SampleOptions = dataclasses.field(default_factory=SampleOptions)
    timing: TimingOptions = dataclasses.field(default_factory=TimingOptions)
    synthetic: SyntheticOptions = dataclasses.field(default_factory=SyntheticOptions)
    mlperf: MLPerfOptions = dataclasses.field(default_factory=MLPerfOptions)
    check: CheckOptions = dataclasses.field(default_factory=CheckOptions)
    labels: LabelOptions = dataclasses.field(default_factory=LabelOptions)
    scoring: ScoringOptions = dataclasses.field(default_factory=ScoringOptions)
    plan: PlanOptions = dataclasses.field(default_factory=PlanOptions)
    measure: MeasureOptions = dataclasses.field(default_factory=MeasureOptions)
    runs: RunsOptions = dataclasses.field(default_factory=RunsOptions)
    listing: ListOptions = dataclasses.field(default_factory=ListOptions)
    output: OutputOptions = dataclasses.field(default_factory=OutputOptions)
    power: PowerOptions = dataclasses.field(default_factory=PowerOptions)
    track: TrackOptions = dataclasses.field(default_factory=TrackOptions)
    completion: CompletionOptions = dataclasses.field(default_factory=CompletionOptions)
    download: DownloadOptions = dataclasses.field(default_factory=DownloadOptions)
    report: ReportOptions = dataclasses.field(default_factory=ReportOptions)
    export: ExportOptions = dataclasses.field(default_factory=ExportOptions)

    GROUPS: ClassVar[dict[str, type]]

    @classmethod
    def of(cls, task: type[TaskSettings], values: Mapping[str, Any]) -> Config:
        """The settings of a task with these values, by the names of the settings. Raises TypeError for a name that is
        in no group."""
        parts: dict[str, dict[str, Any]] = {}
        places = places_of(task)
        for name, value in values.items():
            if name not in places:
                raise TypeError(f"{name!r} is no setting of task {task.name}")
            parts.setdefault(places[name], {})[name] = value
        made = {group: (task if group == "task" else cls.GROUPS[group])(**own) for group, own in parts.items()}
        return cls(**{"task": task(), **made})

    def replace(self, **changes: Any) -> Config:
        """These settings with others, by the names of the settings. Raises TypeError as `of`."""
        places = places_of(type(self.task))
        groups: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            if name not in places:
                raise TypeError(f"{name!r} is no setting of task {self.task.name}")
            groups.setdefault(places[name], {})[name] = value
        return dataclasses.replace(
            self, **{group: dataclasses.replace(getattr(self, group), **own) for group, own in groups.items()}
        )

    def get(self, name: str) -> Any:
        """The value of a setting. Raises KeyError for a name that is in no group."""
        return getattr(getattr(self, places_of(type(self.task))[name]), name)

    def items(self) -> Iterator[tuple[str, Any]]:
        """(name, value) of every setting."""
        return ((name, self.get(name)) for name in places_of(type(self.task)))


Config.GROUPS = {name: kind for name, kind in typing.get_type_hints(Config).items() if name not in ("task", "GROUPS")}


_PLACES: dict[type, dict[str, str]] = {}


def places_of(task: type[TaskSettings]) -> dict[str, str]:
    """name of a setting -> the group that holds it ("task": the task's own)."""
    if task not in _PLACES:
        found = {name: group for group, kind in Config.GROUPS.items() for name in fields(kind)}
        _PLACES[task] = {**found, **dict.fromkeys(fields(task), "task")}
    return _PLACES[task]


SCORED, SAVED = ("target", "patience"), ("keep_every", "save_minutes", "checkpoint_every")
Needed = tuple[str, str | bool | None]  # another setting, and the value of it (None: any)
BESIDE: dict[str, Needed] = {  # setting -> beside which alone it has an effect
    "momentum": ("optimizer", "sgd"),
    "lamb_betas": ("optimizer", "lamb"),
    "lr_gamma": ("schedule", "multistep"),
    "warmup_lr": ("warmup_epochs", None),
    "warmup_by": ("warmup_epochs", None),
    "skip_warmup": ("skip_norm", None),
    "skip_limit": ("skip_norm", None),
    **dict.fromkeys(("aug_scale", "aug_angle", "aug_intensity", "aug_missing"), ("augment", True)),
    **dict.fromkeys(("aug_crop", "aug_brightness", "brightness", "noise", "augment_on"), ("augment", True)),
    **dict.fromkeys(("mlperf_org", "mlperf_platform", "mlperf_status", "mlperf_warmup"), ("mlperf_division", None)),
}


UNMEASURED = (  # settings of training that change nothing in `benchmark`
    *("epochs", "max_steps", "max_time", "target", "patience", "evaluate_every", "start_eval_at", "log_every"),
    *("nonfinite_limit", "skip_limit", "schedule", "warmup_epochs", "warmup_lr", "warmup_by", "lr_milestones"),
    *("lr_gamma", "eval_steps", "bootstrap", "weights", "load", "tensorboard", "debug_dump", "dry_run"),
    "log_all_workers",
)
LENGTH = ("epochs", "max_steps", "max_time")
BATCHES = ("data", "cache", "rebuild_cache", "workers", "data_on", "source")  # where those come from


def declared_of(task: type[TaskSettings], groups: tuple[str, ...] | None = None) -> dict[str, Declared]:
    """name -> declaration of the settings in these groups (all of them), those of the task that belong there
    included. `run.out` is the setting `out` of the group `run` alone."""
    chosen = tuple(Config.GROUPS) if groups is None else groups
    found: dict[str, Declared] = {}
    for group in chosen:
        place, _, only = group.partition(".")
        found |= {name: item for name, item in fields(Config.GROUPS[place]).items() if only in ("", name)}
    return found | {name: item for name, item in fields(task).items() if item.option.section in chosen}


def contradictions(config: Config, shaping: bool = True) -> list[str]:
    """Messages on settings that contradict each other, with their flags.

    `shaping`: the command builds a network, so its input must fit its layers, and the network the memory.
    """
    own = config.task.check_values()
    mistakes = own + check_pair("lamb_betas", config.train.lamb_betas, ordered=False)
    if shaping:
        size = config.task.check_input_size(config)
        mistakes += size if own or size else capacity.too_large(config)
    else:  # evaluate and predict build it too where --width is typed
        mistakes += capacity.too_large(config, own_memory=True)
    if config.mlperf.mlperf_division and not config.task.mlperf:
        mistakes.append(f"--mlperf-division is for tasks of MLPerf, not for {config.task.name}")
    return mistakes + config.task.check(config) + _of_device(config) + _of_run(config)


def settle_schedule(values: dict[str, Any], sources: dict[str, str]) -> Iterator[str]:
    """In place: of the schedule and its milestones that of the later layer counts. Milestones mean multistep, another
    schedule has none. Typed together they are left, for they contradict each other; in a settings file, which may be
    that of a run of an earlier version, the schedule counts. Notices on that."""
    if not values["lr_milestones"] or values["schedule"] == "multistep":
        return
    schedule, milestones = (LAYERS.index(sources[name].split()[0]) for name in ("schedule", "lr_milestones"))
    if milestones > schedule:
        values["schedule"], sources["schedule"] = "multistep", sources["lr_milestones"]
    elif milestones < schedule or LAYERS[schedule] in ("file", "run"):
        if milestones == schedule:
            yield f"--lr-milestones of {sources['schedule']} change nothing with its --schedule {values['schedule']}"
        values["lr_milestones"], sources["lr_milestones"] = (), sources["schedule"]


def unused(values: Mapping[str, Any], given: Mapping[str, tuple[Any, str]], task: type[TaskSettings]) -> Iterator[str]:
    """Notices on typed flags that another setting leaves without effect."""
    own = task.defaults.get("split", "published")
    held_out = f"--held-out {values['held_out']}" if given.get("held_out", (None,))[0] is not None else ""
    if given.get("fold", (None,))[0] is not None:
        typed = [*([f"--split {values['split']}"] if "split" in given else []), *([held_out] if held_out else [])]
        if typed:
            change = "changes" if len(typed) == 1 else "change"
            yield f"{' and '.join(typed)} {change} nothing beside --fold {values['fold']}"
    elif values["split"] == "published" != own and "split" in given and not held_out:
        yield f"--split published draws ten cases, or a fifth of a small set; task {task.name} has a --split {own}"
    elif held_out and values["split"] not in (drawn := ("published", "last", *task.splits)):
        yield f"{held_out} is for --split {' or '.join(drawn)}: it changes nothing with --split {values['split']}"
    without = [
        f"{given[name][1]} {_words(given[name][0])} (it goes with {flag(other)}"
        f"{'' if needed in (None, True) else f' {needed}'})"
        for name, (other, needed) in BESIDE.items()
        if name in given and given[name][0] is not None and name in values
        if (values[other] != needed if needed else values[other] in (None, 0))
    ]
    if given.get("patience", (None,))[0] is not None and values["evaluate_every"] == 0:
        without.append(f"{given['patience'][1]} {values['patience']} (with --evaluate-every 0 only the end is scored)")
    if given.get("workers", ("auto",))[0] not in ("auto", "0") and values["data_on"] == "device":
        without.append(f"{given['workers'][1]} {values['workers']} (with --data-on device batches are made there)")
    without += [
        f"{typed} {_words(value)} ({task.notes[name]})"
        for name, (value, typed) in given.items()
        if task.notes.get(name, "").startswith("not used")
    ]
    if without:
        yield f"without effect: {', '.join(without)}"


def unmeasured(config: Config, sources: Mapping[str, str], applying: bool, several: bool = False) -> Iterator[str]:
    """Notices on typed flags that `benchmark` does not read. `applying`: the pass of prediction is timed alone;
    `several`: processes are."""
    places = places_of(type(config.task))
    others = ("split", "save", "predict", "mlperf", "track")  # groups of `train --benchmark`
    made = applying or config.measure.source == "none"
    groups: dict[str, list[str]] = {}
    for name, source in sources.items():
        value = config.get(name)
        if not source.startswith("flag") or value is None or value is False or name in ("resume", "max_cases"):
            continue
        typed = f"{source.removeprefix('flag ')}{'' if value is True else f' {_words(value)}'}"
        if name in BATCHES and made and value != "none":
            groups.setdefault("batches are made in memory", []).append(typed)
        elif name in LENGTH:
            groups.setdefault("its length is --rounds of --steps of the command benchmark", []).append(typed)
        elif name in UNMEASURED or places[name] in others:
            groups.setdefault("nothing is trained, scored or saved, only timed", []).append(typed)
        elif name == "power" and value and (applying or several):
            groups.setdefault("joules are those of the training step of one process", []).append(typed)
        elif applying and places[name] == "train" and name != "accumulate":
            groups.setdefault(f"--mode {config.run.mode} measures the pass alone", []).append(typed)
    if groups:
        said = "; ".join(f"{', '.join(typed)} ({why})" for why, typed in groups.items())
        yield f"without effect in benchmark: {said}"


def typed_without_effect(config: Config, sources: Mapping[str, str]) -> list[str]:
    """Messages on flags typed for training that ask for an evaluation or a save where there is none."""
    mode, found = config.run.mode, []
    nothing = f"--mode {mode}" if mode in ("train", "train_and_predict") else ""
    if config.split.split == "none" and config.split.fold is None and mode not in ("evaluate", "predict"):
        nothing = nothing or "--split none"
    typed = {name: config.get(name) for name in (*SCORED, *SAVED) if sources[name].startswith("flag")}
    for name, value in typed.items():
        if name in SCORED and nothing and value is not None:
            found.append(f"{flag(name)} {value:g} and {nothing} contradict each other: nothing is evaluated")
        if name in SAVED and not config.save.checkpoints and value:
            found.append(f"{flag(name)} {value:g} and --no-checkpoints contradict each other: nothing is saved")
    return found


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _of_device(config: Config) -> list[str]:
    """Contradictions of devices and processes."""
    device, several = config.device, config.distributed
    mistakes = []
    if device.use_lazy_mode and device.device not in ("auto", "hpu"):
        mistakes.append(f"--use-lazy-mode is for an HPU, but --device is {device.device}")
    if device.use_lazy_mode and device.compile == "on":
        mistakes.append("--compile is for an HPU's eager mode, not for --use-lazy-mode (which has graphs: --capture)")
    port = several.dist_url.rstrip("/").rpartition(":")[2]
    if port.isdecimal() and not 0 < int(port) < 65536:
        mistakes.append(f"--dist-url {several.dist_url}: {port} is no port, 1 to 65535")
    if several.world_size is not None and several.rank is not None and several.rank >= several.world_size:
        mistakes.append(
            f"--rank {several.rank} is outside 0 to {several.world_size - 1} (--world-size {several.world_size})"
        )
    return mistakes


def _of_run(config: Config) -> list[str]:
    """Contradictions of data, training and the run's names."""
    mistakes, split = [], config.split
    if config.data.workers != "auto" and int(config.data.workers) > 256:
        mistakes.append(f"--workers takes auto or a whole number up to 256, not {config.data.workers!r}")
    if split.fold is not None and split.fold >= split.folds:
        mistakes.append(f"--fold {split.fold} is outside 0 to {split.folds - 1} (--folds {split.folds})")
    if config.train.schedule == "multistep" and not config.train.lr_milestones:
        mistakes.append("--schedule multistep needs --lr-milestones")
    if config.train.schedule != "multistep" and config.train.lr_milestones:
        given = " ".join(map(str, config.train.lr_milestones))
        mistakes.append(
            f"--schedule {config.train.schedule} has no --lr-milestones {given}: type --schedule multistep, or"
            " --lr-milestones none"
        )
    if 0 < config.power.power < SHORTEST:
        mistakes.append(f"--power {config.power.power:g} is too short, {SHORTEST:g} s or more (0 is off)")
    if config.logging.verbose and config.logging.quiet:
        mistakes.append("--verbose and --quiet contradict each other")
    if (place := config.track.mlflow) and "://" in place and not place.startswith(STORES):
        mistakes.append(f"--mlflow takes a folder or {', '.join(STORES)}..., not {place[:60]!r}")
    if config.measure.source in ("none", "real") and config.data.synth_data:
        mistakes.append(f"--source {config.measure.source} and --synth-data contradict each other")
    if config.measure.sweep and config.measure.profile:
        mistakes.append("--sweep and --profile contradict each other: a trace is of one combination")
    if config.data.rebuild_cache and config.save.resume:
        mistakes.append("--rebuild-cache and --resume contradict each other")
    if config.save.restarts and not config.save.checkpoints:
        mistakes.append("--restarts and --no-checkpoints contradict each other")
    if config.save.restarts and config.distributed.rank is not None:
        mistakes.append(f"--restarts is for processes that --devices starts, not for --rank {config.distributed.rank}")
    if config.save.resume and config.general.overwrite:
        mistakes.append("--resume and --overwrite contradict each other")
    name = config.run.run_name or "name"
    if set(name) & set("/\\") or name[0] in ".- " or len(name) > 200:
        mistakes.append(
            "--run-name must be a name without / and \\, at most 200 letters, no dot, dash or blank first, not"
            f" {name[:60]!r}"
        )
    return mistakes


def resolve_path(name: str, parent: str) -> Path:
    """A path with a separator (or `.`, `..`) unchanged; a bare name under `parent`."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111 (an unknown user is left as it is)
    return path if "/" in name or path.is_absolute() or name in (".", "..") else Path(parent) / path


def weights_to_write(name: str) -> Path:
    """The path of weights to write: always safetensors, whatever suffix was typed."""
    path = resolve_path(name, "weights")
    if not name or path.name in ("", ".."):  # no file's name: refused where it is used
        return path
    kept = path.with_suffix("") if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors") else path
    return kept.with_name(kept.name + ".safetensors")


def weights_to_read(name: str) -> Path:
    """The path of weights to read: as typed, or the safetensors file of that name if only that exists."""
    path, ours = resolve_path(name, "weights"), weights_to_write(name)
    return ours if not os.path.exists(path) and os.path.exists(ours) else path  # noqa: PTH110 (no error for long names)


def shell_path(path: Path) -> str:
    """A path as a flag takes it: `./name`, since a bare name would mean one under data/ or weights/."""
    return shlex.quote(str(path) if len(path.parts) > 1 else f"./{path}")
