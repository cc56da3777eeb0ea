"""From a command line to settings: layers laid over one another, each value with its source; files, runs replayed."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.config import Config
from unet.errors import UsageError
from unet.files import jsonable, read_json
from unet.options import convert_many, fields
from unet.recipes import RECIPES, SYNTH_DEFAULTS, TASK_DEFAULTS, VOLUME_TASKS


@dataclasses.dataclass(frozen=True)
class Resolved:
    """The settings of a command and, by name, where each value comes from."""

    config: Config
    sources: Mapping[str, str]
    names: tuple[str, ...]

    def table(self) -> dict[str, dict[str, Any]]:
        """name -> {"value", "source"} of the settings that the command has: the content of config.json."""
        return {
            name: {"value": jsonable(getattr(self.config, name)), "source": self.sources[name]} for name in self.names
        }


def resolve(groups: Sequence[type], given: Mapping[str, tuple[Any, str]]) -> Resolved:
    """Lay the layers over one another; `given` is what `options.read` returned. Raises UsageError."""
    names = tuple(name for group in groups for name in fields(group))
    values = {name: spec[3] for name, spec in fields(Config).items()}
    sources = dict.fromkeys(values, "default")

    def lay(layer: Mapping[str, Any], source: str) -> None:
        for name, value in layer.items():
            values[name], sources[name] = value, source

    typed = {name: value for name, (value, _) in given.items()}
    from_file = read_file(Path(typed["config"]), names) if typed.get("config") else {}
    file_source = f"file {typed.get('config')}"
    if typed.get("resume"):
        folder = resumed_run(typed["resume"], typed.get("run_name"), typed.get("out", values["out"]))
        from_file |= read_file(folder / "config.json", names) | {"run_name": folder.name, "out": str(folder.parent)}
        file_source = f"run {folder.name}"
    strong = {**from_file, **typed}
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
        values["weights"] = tuple(str(Path(values["out"]) / Path(name).name) for name in values["weights"])
        sources["weights"] = "--model-dir"
    if given.get("out", ("", ""))[1] == "--model-dir" and sources["output"] == "default":
        values["output"], sources["output"] = str(Path(values["out"]) / values["output"]), "--model-dir"
    if values["lr_milestones"] and sources["schedule"] == "default":
        values["schedule"], sources["schedule"] = "multistep", sources["lr_milestones"]
    if sources["cache"] == "made data":
        values["cache"] = f"{values['cache']}_{values['side' if task in VOLUME_TASKS else 'image_size']}"
    return Resolved(Config(**values), sources, names)


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
        runs = [item.parent for item in parent.glob("*/status.json") if read_json(item).get("status") != "done"]
        folders = sorted(
            (run for run in runs if _state_of(run)), key=lambda run: (run / "status.json").stat().st_mtime, reverse=True
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
    status = folder / "status.json"
    state = read_json(status).get("state") if status.exists() else None
    return Path(state).absolute() if state else None


NOT_REPLAYED = {
    *("config", "run_name", "resume", "overwrite", "dry_run", "max_time", "rebuild_cache", "verbose", "quiet"),
    *("devices", "world_size", "rank", "local_rank", "process_per_node", "dist_url", "cuda_devices"),  # the launch's
}


def read_file(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Settings from a JSON file: {name: value}, or a run's config.json, whose run name, --resume and --overwrite are
    left out. Names may be spelt with `-` or `_`. Raises UsageError with every mistake."""
    content = read_json(path)
    replay = isinstance(content, dict) and isinstance(content.get("settings"), dict)
    if replay:
        content = {name: item["value"] for name, item in content["settings"].items() if name not in NOT_REPLAYED}
    if not isinstance(content, dict):
        raise UsageError(
            f"{path}: holds {type(content).__name__}, not a JSON object of settings.",
            'Write for example {"image-size": 128, "epochs": 50}.',
        )
    declared = fields(Config)
    result: dict[str, Any] = {}
    mistakes = []
    for key, value in content.items():
        name = key.lstrip("-").replace("-", "_")
        if name not in declared:
            near = difflib.get_close_matches(name, names, 1)
            mistakes.append(f"unknown setting {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
            continue
        spec, kind, many, _ = declared[name]
        try:
            result[name] = value if value is None else convert_many(key, spec, kind, many, value)
        except ValueError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UsageError(
            f"{path}: {'; '.join(mistakes)}.", "Mend the file; `python -m unet config` lists every setting."
        )
    return result


def dumps(resolved: Resolved, command: str, kept: Mapping[str, Any] | None = None) -> str:
    """The text of config.json; entries in `kept` (of a run that goes on) stay as they are, sources included."""
    return json.dumps({"command": command, "settings": {**resolved.table(), **(kept or {})}}, indent=1) + "\n"
