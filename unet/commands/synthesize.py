"""synthesize: a phantom set in the true layout of the task's raw data."""

from __future__ import annotations

from unet import host
from unet.config.resolve import Resolved
from unet.config.schema import spelt, where
from unet.errors import UsageError


def run(resolved: Resolved, command: str) -> int:
    """Write the set into --data; a set made with the same settings is left as it is."""
    from unet.tasks.base import create

    config = resolved.config
    if resolved.sources["data"].startswith(("default", "task")):
        raise UsageError(
            "synthesize writes into --data, which is not given.",
            "Type for example: python -m unet synthesize --data phantoms",
        )
    folder = where(config.data, "data")
    task = create(config.task)
    task.synthesize(folder, config)
    named = "" if task.name == "lgg" else f" --task {task.name}"
    host.notice(
        f"{folder}: made {task.subject}s; next: python -m unet train{named} --data {spelt(folder)} --cache"
        f" {folder.name}_cache --run-name NAME"
    )
    return 0
