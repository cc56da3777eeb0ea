"""Resolves the settings of a command: layers of defaults, files and flags, where each value keeps its source."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unet.config.options import Spelling, fields, flag, nearest, spellings
from unet.config.run_files import CONFIG, TRACKED, flat_settings, resumed_run, tracked_by
from unet.config.schema import (
    SYNTHETIC,
    Config,
    declared_of,
    places_of,
    resolve_path,
    settle_schedule,
    unused,
    weights_to_read,
)
from unet.config.task_settings import TaskSettings
from unet.config.values import convert_many
from unet.errors import CheckpointError, UnetError, UsageError
from unet.files import jsonable, read_json, require_regular, schema_error
from unet.weight_files import exported, pickles, safetensors_header


class Registry(Protocol):
    """The registry of tasks, as used here: see `tasks.registry`."""

    BUILT_IN: tuple[str, ...]

    def settings_of(self, name: str) -> type[TaskSettings]: ...


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The settings of a command and the source of each value, by name; `remarks`: notices for the user."""

    config: Config
    sources: Mapping[str, str]
    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def entries(self) -> dict[str, dict[str, Any]]:
        """name -> {"value", "source"} of the settings that the command has."""
        return {name: {"value": jsonable(self.config.get(name)), "source": self.sources[name]} for name in self.names}

    def drawn_seed(self) -> int:
        """The seed; a typed -1 draws one, and -1 as the default of a task is 0."""
        seed: int = self.config.general.seed
        return secrets.randbits(32) if seed == -1 and self.sources["seed"].startswith("flag") else max(seed, 0)

    def table(self) -> dict[str, dict[str, Any]]:
        """group -> name -> {"value", "source"}: the content of config.json."""
        places, found = places_of(type(self.config.task)), dict[str, dict[str, Any]]()
        for name, entry in self.entries().items():
            found.setdefault(places[name], {})[name] = entry
        return found


def resolve(
    groups: tuple[str, ...], given: Mapping[str, tuple[Any, str]], registry: Registry, applying: bool = False
) -> Resolved:
    """Combine the layers; `groups` are those of the command, `given` is the result of `options.read`. `applying`: the
    command applies weights, whose task is used if no other is given. Raises UsageError."""
    layers = _Layers(groups, given, registry)
    layers.read_files()
    layers.find_task(applying)
    layers.lay_all()
    values, sources, task = layers.values, layers.sources, layers.task
    if given.get("out", ("", ""))[1] == "--model-dir" and not sources["weights"].startswith(("flag", "file")):
        values["weights"] = (str(Path(values["out"]) / f"{task.name}.safetensors"),)
        sources["weights"] = "--model-dir"
    if given.get("out", ("", ""))[1] == "--model-dir" and sources["output"] == "default":
        values["output"], sources["output"] = str(Path(values["out"]) / values["output"]), "--model-dir"
    if applying or values["mode"] in ("evaluate", "predict"):
        apply_load(values, sources, given)
    remarks = [*settle(values, sources, given), *settle_schedule(values, sources), *unused(values, given, task)]
    remarks += layers.remarks
    config = with_synthetic_cache(Config.of(task, values), sources)
    return Resolved(config, sources, tuple(declared_of(task, groups)), tuple(remarks))


class _Layers:
    """The values of the settings by name, where later layers override earlier ones, each with its source."""

    def __init__(self, groups: tuple[str, ...], given: Mapping[str, tuple[Any, str]], registry: Registry) -> None:
        self.groups, self.given, self.registry = groups, given, registry
        self.typed = {name: value for name, (value, _) in given.items()}
        self.content: dict[str, Any] = {}  # of the settings file, under the names that it has
        self.path, self.file_source, self.remarks = Path(), "", list[str]()
        self.from_weights: tuple[str, str] | None = None
        self.from_run: dict[str, Any] = {}

    def read_files(self) -> None:
        """Read the settings file, or that of the resumed run. Raises UsageError."""
        typed = self.typed
        if typed.get("resume") and typed.get("config"):
            raise UsageError(
                "--resume takes every setting from its run, and --config from a file.", "Leave out one of the two."
            )
        if typed.get("config"):
            self.path, self.file_source = Path(typed["config"]), f"file {typed['config']}"
        if typed.get("resume"):
            default_out = fields(Config.GROUPS["run"])["out"].default
            folder = resumed_run(typed["resume"], typed.get("run_name"), typed.get("out", default_out))
            self.path, self.file_source = folder / "config.json", f"run {folder.name}"
            if typed["resume"] == "auto" and not typed.get("run_name"):
                self.remarks.append(
                    f"--resume takes run {folder.name}, the last that is not done; for another type --run-name NAME"
                )
            self.from_run = {"run_name": folder.name, "out": str(folder.parent), **tracked_by(folder)}
        if self.file_source:
            self.content = read_file(self.path)

    def find_task(self, applying: bool) -> None:
        """Find the task: from the flags, the file, or the weights. Raises UsageError."""
        strong = {**{setting_name(key): value for key, value in self.content.items()}, **self.typed}
        named = self.typed.get("load") or strong.get("weights") or ()
        if applying and "task" not in strong:
            names = (named,) if isinstance(named, str) else named
            self.from_weights = task_of_weights(
                [name for name in names if isinstance(name, str)], self.registry.BUILT_IN
            )
        name = strong.get("task") or (self.from_weights[0] if self.from_weights else default_task())
        if not isinstance(name, str) or ("task" not in self.typed and name not in self.registry.BUILT_IN):
            known = ", ".join(self.registry.BUILT_IN)
            raise UsageError(
                f"{self.path.absolute()}: the task {str(name)[:60]!r} is none of {known}.",
                "Type --task package.module:Class for a task of your own; a file must not choose what is imported.",
            )
        self.task = self.registry.settings_of(name)

    def lay_all(self) -> None:
        """Default < task < synthetic data < recipe < file < flag."""
        declared = declared_of(self.task)
        self.values = {name: item.default for name, item in declared.items()}
        self.sources = dict.fromkeys(self.values, "default")
        if self.from_weights:
            self.lay({"task": self.from_weights[0]}, self.from_weights[1])
        from_file = convert_file(self.path, self.content, self.task, self.groups, self.registry, self.typed)
        from_file |= self.from_run
        strong = {**from_file, **self.typed}
        self.lay(self.task.defaults, f"task {self.task.name}")
        made = strong.get("source") == "synthetic"
        if strong.get("synth_data") or made:
            self.lay(self.task.synthetic_defaults, SYNTHETIC)
            self.lay({"synth_data": True} if made else {}, "--source synthetic")
        if recipe := strong.get("recipe"):
            self.lay(self.recipe(recipe), f"recipe {recipe}")
        self.lay(from_file, self.file_source)
        self.lay_folders(from_file)
        for name, (value, spelling) in self.given.items():
            if name in self.values:
                self.values[name], self.sources[name] = value, f"flag {spelling}"
            else:
                self.remarks.append(
                    f"{spelling} is for {self.tasks_with(name)}: it changes nothing with {self.task.name}"
                )

    def lay(self, layer: Mapping[str, Any], source: str) -> None:
        for name, value in layer.items():
            self.values[name], self.sources[name] = value, source

    def lay_folders(self, from_file: Mapping[str, Any]) -> None:
        """Where the settings file is of real data and synthetic ones are typed, or the reverse, its folders do not
        count; the remarks tell of real ones."""
        made = {name: self.task.synthetic_defaults[name] for name in FOLDERS if name in self.task.synthetic_defaults}
        typed = self.typed.get("synth_data", True if self.typed.get("source") == "synthetic" else None)
        before = bool(from_file.get("synth_data")) or from_file.get("source") == "synthetic"
        if typed and not before and (from_file.get("synth_data") is False or "data" in from_file):
            self.lay(made, SYNTHETIC)
            if left := " and ".join(f"{flag(name)} {from_file[name]}" for name in made if name in from_file):
                self.remarks.append(f"{left} of {self.file_source} do not count beside synthetic data")
        elif typed is False and before:
            named = {name: str(from_file.get(name)) for name in made}
            own = [
                name for name, folder in made.items() if named[name] == folder or named[name].startswith(f"{folder}_")
            ]
            self.lay({name: item.default for name, item in declared_of(self.task).items() if name in own}, "default")
            usual = {name: value for name, value in self.task.defaults.items() if name in own}
            self.lay(usual, f"task {self.task.name}")

    def recipe(self, name: str) -> Mapping[str, Any]:
        """The settings of a recipe. Raises UsageError if the task does not have it."""
        known = self.task.recipes
        if name in known:
            return known[name]
        builtin = {task: self.registry.settings_of(task) for task in self.registry.BUILT_IN}
        other = next((task for task, settings in builtin.items() if name in settings.recipes), None)
        hint = f"Add --task {other}." if other else f"Known: {', '.join(known) or 'none'}."
        raise UsageError(f"Unknown recipe {name!r} of task {self.task.name}.", hint)

    def tasks_with(self, name: str) -> str:
        """The built-in tasks that have a setting, as they are typed."""
        tasks = [task for task in self.registry.BUILT_IN if name in fields(self.registry.settings_of(task))]
        return f"--task {' or '.join(tasks)}"


def setting_name(key: str) -> str:
    """The name of a setting that a file spells with dashes."""
    return key.lstrip("-").replace("-", "_")


def default_task() -> str:
    return str(fields(Config.GROUPS["general"])["task"].default)


def holds_arrays(folder: Path) -> bool:
    """Whether a folder is a cache, this program's or another's."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(("_x.npy", "_mask.npy")) for entry in entries)
    except (OSError, ValueError):
        return False


def settle(values: dict[str, Any], sources: dict[str, str], given: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Convert, in place, values in the convention of another program. Returns notices on that."""
    remarks = []
    raw = resolve_path(values["data"], "data")
    if sources["data"].startswith("flag") and sources["cache"].startswith(("default", "task")) and holds_arrays(raw):
        values["cache"], sources["cache"] = values["data"], sources["data"]
        remarks.append(f"{raw} holds preprocessed arrays: it is used as the cache")
    scale = values.get("aug_scale", 0)
    if scale > 0.5:
        values["aug_scale"] = round(1 - scale, 9)
        sources["aug_scale"] += f" ({scale:g})"
        remarks.append(
            f"--aug-scale {scale:g} is taken as the factor of another program, which is a half-width of"
            f" {values['aug_scale']:g}: scales from {scale:g} to {2 - scale:g}"
        )
    return remarks


def apply_load(values: dict[str, Any], sources: dict[str, str], given: Mapping[str, tuple[Any, str]]) -> None:
    """In place, of a command that applies weights: a typed --load names them; that of a settings file, which says what
    a run started from, does not. Raises UsageError where --weights is typed too, except for `train --mode evaluate` as
    reference programs have it, whose --weights is where training saves."""
    if "load" in given and given["load"][0]:
        if "mode" not in given and given.get("weights", ((),))[0]:
            load, weights = (f"{given[name][1]}" for name in ("load", "weights"))
            raise UsageError(
                f"{load} {values['load']} and {weights} {' '.join(values['weights'])} both name the weights to apply.",
                f"Leave one of them out: {weights} names what is applied.",
            )
        values["weights"], sources["weights"] = (values["load"],), sources["load"]
    values["load"], sources["load"] = None, "default"


def with_synthetic_cache(config: Config, sources: Mapping[str, str]) -> Config:
    """The settings with a separate cache for each size of synthetic data, unless a cache was named."""
    size = config.task.synthetic_cache(config)
    if sources["cache"] != SYNTHETIC or not size:
        return config
    return config.replace(cache=f"{config.task.synthetic_defaults['cache']}_{size}")


def task_of_weights(names: Sequence[str], known: Sequence[str]) -> tuple[str, str] | None:
    """(task, source) stored in the first of these weights that has it, read without torch; None if none has it. A file
    that cannot be read is reported when it is loaded."""
    for name in names:
        path = weights_to_read(name)
        try:
            facts = facts_of(path)
        except (UnetError, pickles.UnsafePickle):
            continue
        has_format = isinstance(facts, dict) and isinstance(facts.get("format"), str)
        if has_format and (task := known_task(facts, path, known)):
            return task, f"weights {path.name}"
    return None


def facts_of(path: Path) -> Any:
    """The metadata of weights of any kind; of a torch file its content, without the tensors' values."""
    kind = safetensors_header.kind(path)
    if kind in exported.KINDS:
        return exported.read(path)
    return safetensors_header.read(path).facts if kind == "safetensors" else pickles.structure(path)


def known_task(facts: Mapping[str, Any], path: Path, known: Sequence[str]) -> str | None:
    """The task in the metadata of a file, or None. Raises CheckpointError for a task that does not exist here."""
    task = facts.get("task")
    if task is None or task in known:
        return task
    raise CheckpointError(
        f"{path.absolute()}: belongs to task {str(task)[:40]!r}, which does not exist here.",
        f"Give weights of one of: {', '.join(known)}; for a task of your own type --task package.module:Class.",
    )


FOLDERS = ("data", "cache")
NOT_REPLAYED = {
    *("config", "run_name", "resume", "overwrite", "dry_run", "max_time", "rebuild_cache", "verbose", "quiet", "json"),
    *("devices", "world_size", "rank", "local_rank", "process_per_node", "dist_url", "cuda_devices"),  # the launch's
    *("restarts", "json"),
    *TRACKED,  # what leaves the machine is typed, or goes on with its own run
}
TYPED_ONLY = ("config", "resume", "inputs", "runs", "device_module")  # which file to read, or which code to import
LARGEST = 10 * 2**20  # bytes of a settings file
SETTINGS = 'Write for example {"image-size": 128, "epochs": 50}, or give the config.json of a run.'


def read_file(path: Path) -> dict[str, Any]:
    """name -> value in a JSON file: either {name: value}, or the config.json of a run without its run name, --resume
    and --overwrite. Names may use `-` or `_`. Raises UsageError."""
    try:
        size = require_regular(path).stat().st_size
        content = read_json(path, dict, SETTINGS) if size <= LARGEST else None
    except UnetError as error:
        raise UsageError(error.message, error.hint) from error
    if content is None:
        raise UsageError(f"{path.absolute()}: {size} bytes are no file of settings (at most {LARGEST}).", SETTINGS)
    if "settings" not in content:
        return dict(content)
    if wrong := schema_error(content, CONFIG):
        raise UsageError(f"{path.absolute()}: {wrong}: this is no file of settings.", SETTINGS)
    return {
        name: item["value"]
        for name, item in flat_settings(content["settings"]).items()
        if name not in NOT_REPLAYED and not (name == "weights" and item.get("source", "run name") == "run name")
    }


def convert_file(
    path: Path,
    content: Mapping[str, Any],
    task: type[TaskSettings],
    groups: tuple[str, ...],
    registry: Registry,
    typed: Collection[str],
) -> dict[str, Any]:
    """name -> value of a settings file, checked like flags; `typed` are overridden by flags. Settings of other tasks
    are left out. Raises UsageError that lists all mistakes."""
    own, result, mistakes = declared_of(task), dict[str, Any](), list[str]()
    try:
        content = task.translated(content)
    except ValueError as error:
        mistakes += [str(error)]
    others = (declared_of(registry.settings_of(name)) for name in registry.BUILT_IN)
    known = {name: item for declared in (*others, own) for name, item in declared.items()}
    every, names = spellings(known), [*declared_of(task, groups)]
    for key, value in content.items():
        try:
            for name, found in _setting(key, value, every, names, typed).items():
                if result.setdefault(name, found) != found:
                    raise ValueError(f"{key} contradicts another setting of the file: both set {name}")
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        more = [f"and {len(mistakes) - 8} more"] if len(mistakes) > 8 else []
        raise UsageError(f"{path.absolute()}: {'; '.join(mistakes[:8] + more)}.", SETTINGS)
    return {name: value for name, value in result.items() if name in own}


def _setting(
    key: str, value: Any, every: Mapping[str, Spelling], names: Sequence[str], typed: Collection[str]
) -> dict[str, Any]:
    """{name: value} of one entry of a settings file, in any spelling of its flag; empty if it is ignored. Raises
    ValueError with a message for the user."""
    name = setting_name(key)
    if name == "weights" and value == []:  # a run names its own
        return {}
    if name in TYPED_ONLY:
        if value not in (None, []) and not (name == "device_module" and name in typed):
            raise ValueError(f"{key} is not taken from a file: type {flag(name)}")
        return {}
    spec = every.get(flag(name))
    if spec is None:
        near = nearest(key, names)
        raise ValueError(f"unknown setting {key[:60]!r}" + (f" (did you mean {near!r}?)" if near else ""))
    if spec.name in TYPED_ONLY:
        raise ValueError(f"{key} is not taken from a file: type {flag(spec.name)}")
    if spec.switch and spec.name != name:
        if not isinstance(value, bool):
            raise ValueError(f"{key} takes true or false")
        return {} if (chosen := spec.value if value else spec.off) is None else {spec.name: chosen}
    if spec.many and spec.kind is str and value == []:  # names that the data give
        return {}
    return {spec.name: convert_many(key, spec.option, spec.kind, spec.many, value)}


def dumps(resolved: Resolved, command: str, kept: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
    """The text of config.json; entries in `kept` (of a resumed run) are written unchanged, with their sources."""
    about = {"command": command, **({"run_id": run_id} if run_id else {})}
    table = resolved.table()
    for entries in table.values():
        entries |= {name: entry for name, entry in (kept or {}).items() if name in entries}
    return json.dumps({**about, "settings": table}, indent=1) + "\n"
