"""synthesize: writes a synthetic raw set in the layout of the task's real data."""

from __future__ import annotations

from unet import host
from unet.config.resolve import Resolved, default_task
from unet.config.schema import resolve_path, shell_path
from unet.errors import UsageError


def run(resolved: Resolved, command: str) -> int:
    """Write the set into --data; an existing set with the same settings is kept."""
    from unet.tasks.registry import create

    config = resolved.config
    if resolved.sources["data"].startswith(("default", "task")):
        raise UsageError(
            "synthesize needs --data, the folder to write into, and none was given.",
            "Type for example: python -m unet synthesize --data phantoms",
        )
    folder = resolve_path(config.data.data, "data")
    task, seed = create(config), resolved.drawn_seed()
    if seed != config.general.seed:
        host.notice(f"The set is made with --seed {seed}.")
    task.synthesize(folder, seed, config.general.overwrite)
    named = "" if task.name == default_task() else f" --task {config.general.task}"
    host.notice(
        f"{folder}: made {task.subject}s; next: python -m unet train{named} --data {shell_path(folder)} --cache"
        f" {folder.name}_cache --run-name NAME"
    )
    return 0
