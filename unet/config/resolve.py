"""From a command line to settings: layers laid over one another, each value with its source; files, runs replayed."""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.config.flags import TASKS
from unet.config.options import fields, flag, nearest, spellings
from unet.config.recipes import RECIPES, SYNTH_DEFAULTS, TASK_DEFAULTS, VOLUME_TASKS
from unet.config.run_files import read_status
from unet.config.schema import Config, weights_to_read, where
from unet.config.values import convert_many
from unet.errors import CheckpointError, UnetError, UsageError
from unet.files import jsonable, misfit, read_json, require_regular
from unet.weight_files import pickles, safetensors_header


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The settings of a command and, by name, where each value comes from; `remarks` are what to say of them."""

    config: Config
    sources: Mapping[str, str]
    names: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def table(self) -> dict[str, dict[str, Any]]:
        """name -> {"value", "source"} of the settings that the command has: the content of config.json."""
        return {
            name: {"value": jsonable(getattr(self.config, name)), "source": self.sources[name]} for name in self.names
        }


def resolve(groups: Sequence[type], given: Mapping[str, tuple[Any, str]], applying: bool = False) -> Resolved:
    """Lay the layers over one another; `given` is what `options.read` returned. `applying`: the command applies
    weights, so that they say the task where nothing else does. Raises UsageError."""
    names = tuple(name for group in groups for name in fields(group))
    values = {name: spec[3] for name, spec in fields(Config).items()}
    sources = dict.fromkeys(values, "default")

    def lay(layer: Mapping[str, Any], source: str) -> None:
        for name, value in layer.items():
            values[name], sources[name] = value, source

    typed = {name: value for name, (value, _) in given.items()}
    if typed.get("resume") and typed.get("config"):
        raise UsageError(
            "--resume takes every setting from its run, and --config from a file.", "Leave out one of the two."
        )
    from_file = read_file(Path(typed["config"]), names, typed) if typed.get("config") else {}
    file_source = f"file {typed.get('config')}"
    if typed.get("resume"):
        folder = resumed_run(typed["resume"], typed.get("run_name"), typed.get("out", values["out"]))
        from_file |= read_file(folder / "config.json", names, typed) | {
            "run_name": folder.name,
            "out": str(folder.parent),
        }
        file_source = f"run {folder.name}"
    strong = {**from_file, **typed}
    named = strong.get("load") or strong.get("weights") or ()
    told = task_of_weights((named,) if isinstance(named, str) else named) if applying and "task" not in strong else None
    if told:
        values["task"], sources["task"] = told
    task = strong.get("task", values["task"])
    lay(TASK_DEFAULTS[task], f"task {task}")
    if strong.get("synth_data"):
        lay(SYNTH_DEFAULTS[task], "made data")
    recipe = strong.get("recipe")
    if recipe:
        known = RECIPES[task]
        if recipe not in known:
            other = next((name for name, named in RECIPES.items() if recipe in named), None)
            hint = f"Add --task {other}." if other else f"Known: {', '.join(known)}."
            raise UsageError(f"Unknown recipe {recipe!r} of task {task}.", hint)
        lay(known[recipe], f"recipe {recipe}")
    lay(from_file, file_source)
    for name, (value, spelling) in given.items():
        values[name], sources[name] = value, f"flag {spelling}"
    if given.get("out", ("", ""))[1] == "--model-dir" and not sources["weights"].startswith(("flag", "file")):
        values["weights"] = (str(Path(values["out"]) / f"{task}.safetensors"),)
        sources["weights"] = "--model-dir"
    if given.get("out", ("", ""))[1] == "--model-dir" and sources["output"] == "default":
        values["output"], sources["output"] = str(Path(values["out"]) / values["output"]), "--model-dir"
    remarks = settle(values, sources, given)
    if values["lr_milestones"] and sources["schedule"] == "default":
        values["schedule"], sources["schedule"] = "multistep", sources["lr_milestones"]
    return Resolved(made_cache(Config(**values), sources), sources, names, tuple(remarks))


def holds_arrays(folder: Path) -> bool:
    """Whether a folder is a cache, this program's or another's."""
    try:
        with os.scandir(folder) as entries:
            return any(entry.name.endswith(("_x.npy", "_mask.npy")) for entry in entries)
    except (OSError, ValueError):
        return False


def settle(values: dict[str, Any], sources: dict[str, str], given: Mapping[str, tuple[Any, str]]) -> list[str]:
    """Mend in place what was typed as another program means it; what to say of it, and of what has no effect."""
    remarks = []
    raw = where(values["data"], "data")
    if sources["data"].startswith("flag") and sources["cache"].startswith(("default", "task")) and holds_arrays(raw):
        values["cache"], sources["cache"] = values["data"], sources["data"]
        remarks.append(f"{raw} holds preprocessed arrays: it is used as the cache")
    scale = values["aug_scale"]
    if scale > 0.5:
        values["aug_scale"] = round(1 - scale, 9)
        sources["aug_scale"] += f" ({scale:g})"
        remarks.append(
            f"--aug-scale {scale:g} is taken as the factor of another program, which is a half-width of"
            f" {values['aug_scale']:g}: scales from {scale:g} to {2 - scale:g}"
        )
    if "split" in given and given.get("fold", (None,))[0] is not None:
        remarks.append(f"--split {values['split']} changes nothing beside --fold {values['fold']}")
    for name, (_, spelling) in given.items():
        tasks = fields(Config)[name][0].tasks
        if tasks and values["task"] not in tasks:
            remarks.append(f"{spelling} is for --task {' or '.join(tasks)}: it changes nothing with {values['task']}")
    return remarks


def made_cache(config: Config, sources: Mapping[str, str]) -> Config:
    """The settings with a cache for each size of made data, where no other was named."""
    if sources["cache"] != "made data":
        return config
    side = config.side if config.task in VOLUME_TASKS else config.image_size
    return config.replace(cache=f"{SYNTH_DEFAULTS[config.task]['cache']}_{side}")


def task_of_weights(names: Sequence[str]) -> tuple[str, str] | None:
    """(task, source) that the first of these weights that says so was trained for; read without torch. None where
    none says it; a file that cannot be read is reported when it is loaded."""
    for name in names:
        path = weights_to_read(name)
        try:
            facts = (
                safetensors_header.read(path).facts
                if safetensors_header.kind(path) == "safetensors"
                else pickles.outline(path)
            )
        except (UnetError, pickles.Refused):
            continue
        task = known_task(facts, path) if isinstance(facts, dict) and isinstance(facts.get("format"), str) else None
        if task:
            return task, f"weights {path.name}"
    return None


def known_task(facts: Mapping[str, Any], path: Path) -> str | None:
    """The task that facts name, None for none. Raises CheckpointError for one that this program does not have."""
    task = facts.get("task")
    if task is None or task in TASKS:
        return task
    raise CheckpointError(
        f"{path.absolute()}: of the task {str(task)[:40]!r}, which this program does not have.",
        f"Give weights of one of: {', '.join(TASKS)}.",
    )


def resumed_run(resume: str, run_name: str | None, out: str) -> Path:
    """The folder of the run that --resume means: a run folder, a state file, the --run-name, or the latest run that
    is not done.

    Raises UsageError where there is none.
    """
    parent = Path(out)
    if resume != "auto":
        path = Path(resume).absolute()
        folders = [
            path,
            parent / resume,
            *(item.parent for item in parent.glob("*/status.json") if _state_of(item.parent) == path),
        ]
    elif run_name:
        folders = [parent / run_name]
    else:
        runs = [item.parent for item in parent.glob("*/config.json")]
        folders = sorted(
            (run for run in runs if read_status(run).get("status") != "done" and _has_state(run)),
            key=lambda run: (run / "config.json").stat().st_mtime,
            reverse=True,
        )
    for folder in folders:
        if (folder / "config.json").is_file():
            return folder
    known = sorted(item.parent.name for item in parent.glob("*/config.json"))
    raise UsageError(
        f"--resume: no run {resume if resume != 'auto' else run_name or 'that is not done'} in {parent.absolute()}"
        + (f" (runs: {', '.join(known[:6])})." if known else " (no runs)."),
        "Type --resume --run-name NAME, --resume PATH, or leave --resume out to start.",
    )


def _state_of(folder: Path) -> Path | None:
    """The state file that a run's status names, if the run has one."""
    state = read_status(folder).get("state")
    return Path(state).absolute() if state else None


def _has_state(folder: Path) -> bool:
    """Whether a run has a state to go on from: its latest, or the one before."""
    state = _state_of(folder)
    return state is not None and any(state.parent.glob(f"{glob.escape(state.name.partition('.state.')[0])}.state*"))


NOT_REPLAYED = {
    *("config", "run_name", "resume", "overwrite", "dry_run", "max_time", "rebuild_cache", "verbose", "quiet"),
    *("devices", "world_size", "rank", "local_rank", "process_per_node", "dist_url", "cuda_devices"),  # the launch's
}
TYPED_ONLY = ("config", "resume", "inputs", "device_module")  # which file to read, or which code to import
LARGEST = 10 * 2**20  # bytes of a settings file
SETTINGS = 'Write for example {"image-size": 128, "epochs": 50}, or give the config.json of a run.'


def read_file(path: Path, names: Sequence[str], typed: Collection[str] = ()) -> dict[str, Any]:
    """Settings from a JSON file: {name: value}, or a run's config.json, whose run name, --resume and --overwrite are
    left out. Names may be spelt with `-` or `_`; `typed` are set by flags all the same. Raises UsageError with every
    mistake."""
    try:
        size = require_regular(path).stat().st_size
        content = read_json(path, dict, SETTINGS) if size <= LARGEST else None
    except UnetError as error:
        raise UsageError(error.message, error.hint) from error
    if content is None:
        raise UsageError(f"{path.absolute()}: {size} bytes are no file of settings (at most {LARGEST}).", SETTINGS)
    if "settings" in content:
        wrong = misfit(content, {"settings": {str: {"value": object}}})
        if wrong:
            raise UsageError(f"{path.absolute()}: {wrong}: this is no file of settings.", SETTINGS)
        content = {
            name: item["value"]
            for name, item in content["settings"].items()
            if name not in NOT_REPLAYED and not (name == "weights" and item.get("source", "run name") == "run name")
        }
    result: dict[str, Any] = {}
    mistakes = []
    for key, value in content.items():
        try:
            for name, found in _setting(key, value, names, typed).items():
                if name in result and result[name] != found:
                    raise ValueError(f"{key} contradicts another setting of the file: both set {name}")
                result[name] = found
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        more = [f"and {len(mistakes) - 8} more"] if len(mistakes) > 8 else []
        raise UsageError(f"{path.absolute()}: {'; '.join(mistakes[:8] + more)}.", SETTINGS)
    return result


def _setting(key: str, value: Any, names: Sequence[str], typed: Collection[str]) -> dict[str, Any]:
    """{name: value} of one entry of a settings file, under any spelling of its flag; empty for one that is not taken.
    Raises ValueError in words."""
    name = key.lstrip("-").replace("-", "_")
    if name == "weights" and value == []:  # a run names its own
        return {}
    if name in TYPED_ONLY:
        if value not in (None, []) and not (name == "device_module" and name in typed):
            raise ValueError(f"{key} is not taken from a file: type {flag(name)}")
        return {}
    spec = spellings((Config,)).get(flag(name))
    if spec is None:
        near = nearest(key, names)
        raise ValueError(f"unknown setting {key[:60]!r}" + (f" (did you mean {near!r}?)" if near else ""))
    if spec.name in TYPED_ONLY:
        raise ValueError(f"{key} is not taken from a file: type {flag(spec.name)}")
    if spec.switch and spec.name != name:
        if not isinstance(value, bool):
            raise ValueError(f"{key} takes true or false")
        chosen = spec.value if value else spec.off
        return {} if chosen is None else {spec.name: chosen}
    return {spec.name: convert_many(key, spec.option, spec.kind, spec.many, value)}


def dumps(resolved: Resolved, command: str, kept: Mapping[str, Any] | None = None, run_id: str | None = None) -> str:
    """The text of config.json; entries in `kept` (of a run that goes on) stay as they are, sources included."""
    about = {"command": command, **({"run_id": run_id} if run_id else {})}
    return json.dumps({**about, "settings": {**resolved.table(), **(kept or {})}}, indent=1) + "\n"
