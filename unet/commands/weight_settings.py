"""The settings that are stored with weights: those that a command takes from them, and those of each network alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unet.config.options import flag
from unet.config.resolve import SYNTHETIC
from unet.config.schema import Config, declared_of
from unet.config.task_settings import TaskSettings
from unet.config.values import convert_many
from unet.errors import CheckpointError


def weak_sources(config: Config) -> tuple[str, ...]:
    """The sources of settings that nobody has chosen."""
    return ("default", f"task {config.task.name}", SYNTHETIC)


def saved_settings(
    facts: Mapping[str, Any], names: tuple[str, ...], path: Path, task: type[TaskSettings]
) -> dict[str, Any]:
    """The settings `names` stored in a weights file, checked like flags. Raises CheckpointError."""
    declared, found = declared_of(task), {}
    for name in names:
        if name not in facts.get("settings", {}):
            continue
        option, kind, many, _ = declared[name]
        try:
            value = facts["settings"][name]
            found[name] = None if value is None else convert_many(flag(name), option, kind, many, value)
        except ValueError as error:
            raise CheckpointError(
                f"{path.absolute()}: its stored settings are not valid: {error}.",
                "Give weights written by `python -m unet train`, or save only their tensors and type the settings.",
            ) from error
    return found


def of_one(config: Config, sources: Mapping[str, str], saved: Mapping[str, Any]) -> Config:
    """The settings for one of several networks: its own shape as `saved` with it, where nobody has typed another."""
    weak = weak_sources(config)
    names = [name for name in config.task.network_settings if name in saved]
    return config.replace(
        **{name: saved[name] for name in names if sources[name] in weak or sources[name].startswith("weights ")}
    )
