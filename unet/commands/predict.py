"""predict: masks of images, patient folders or whole sets, on their own grid."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unet import files, host
from unet.commands import compose
from unet.config import where
from unet.errors import DataError, UnetError, UsageError
from unet.resolve import Resolved

RECORD = "predictions.json"


def run(resolved: Resolved, command: str) -> int:
    """Write a mask for each input, under its name, in <output>/<its folder's name>/; what is there already is kept.

    Several --weights are averaged. Returns 1 where a patient could not be read (the others are done all the same).
    """
    parts = compose.assemble(resolved.config)
    paths = [
        compose.weights_path(name)
        for name in ((resolved.config.load,) if resolved.config.load else resolved.config.weights)
    ]
    resolved, _ = compose.with_facts(resolved, paths, parts.task.tied)
    config, task, group = resolved.config, parts.task, parts.group
    parts = dataclasses.replace(parts, config=config)
    groups = task.inputs([Path(name) for name in config.inputs] or [where(config.data, "data")])
    output = Path(config.output)
    given = {image.resolve() for images in groups.values() for image in images}
    for folder, images in groups.items():
        for image in images:
            if given & {path.resolve() for path in task.outputs(image, output / folder.name, config).values()}:
                raise UsageError(
                    f"The masks would be written over the images in {image.parent}.", "Name another --output."
                )
    if config.dry_run:
        if group.leads:
            print(f"Dry run: {len(groups)} {task.given}s would be predicted into {output}/; nothing was written.")
        return 0

    def begin() -> dict[Path, list[Path]]:
        start_output(output, paths, groups, resolved, task.tied)
        found = {folder: missing(task, folder, images, output, config) for folder, images in groups.items()}
        return {folder: wanted for folder, wanted in found.items() if wanted}

    todo = group.first(begin)
    done = sum(map(len, groups.values())) - sum(map(len, todo.values()))
    members = []
    if todo:
        members = [compose.infer(parts, compose.trained_network(parts, path, resolved)) for path in paths]
        names = ", ".join(map(str, paths))
        host.notice(f"{names} on {parts.device.describe()}, {task.window(config)}: {len(todo)} {task.given}s")
    mine = share(todo, group.rank, group.world)
    faults, written = [], 0
    for folder, images in host.progress(list(mine.items()), name="predict", unit=task.given):
        try:
            with compose.advising(parts):
                task.predict(groups[folder], images, output / folder.name, members, config)
            written += len(images)
        except DataError as error:
            faults.append((error.message, error.hint))
            host.notice(f"left out: {error.message}")
    faults = [fault for each in group.gather(faults) for fault in each]
    if members and members[0].seconds:
        from unet.runtime import evaluation

        seconds = members[0].seconds
        host.notice(f"a pass of the network: {evaluation.told(evaluation.latency(seconds[1:] or seconds))}")
    host.notice(f"{output}/: {sum(group.gather(written))} masks written, {done} were there already")
    if faults:
        message, hint = faults[0]
        raise UnetError(f"{len(faults)} of {len(groups)} {task.given}s could not be predicted: {message}", hint)
    return 0


def share(todo: dict[Path, list[Path]], rank: int, world: int) -> dict[Path, list[Path]]:
    """The patients of one rank, by their number of images."""
    from unet.runtime.evaluation import deal

    folders = list(todo)
    return {folders[index]: todo[folders[index]] for index in deal([len(todo[name]) for name in folders], world)[rank]}


def start_output(
    output: Path, paths: list[Path], groups: Iterable[Path], resolved: Resolved, tied: tuple[str, ...]
) -> None:
    """Note what each case's masks are made with; refuse to mix two makers within a case. Raises UsageError."""
    config = resolved.config
    files.make_folder(output)
    files.remove_leftovers(output)
    record = output / RECORD
    made: dict[str, Any] = files.read_json(record) if record.exists() else {}
    settings = {name: files.jsonable(getattr(config, name)) for name in tied}
    now = {"weights": {str(path): files.digest(path.read_bytes()) for path in paths}, **settings}
    names = [folder.name for folder in groups]
    for name in names:
        before = made.get(name, now)
        if before != now and not config.overwrite:
            raise UsageError(
                f"{(output / name).absolute()}: holds masks of {', '.join(before['weights'])} with"
                f" {', '.join(f'{key} {before.get(key)}' for key in tied)} (other weights or settings).",
                "Name another --output, or replace them with --overwrite.",
            )
    files.write_json(record, {**made, **dict.fromkeys(names, now)})


def missing(task: Any, folder: Path, images: list[Path], output: Path, config: Any) -> list[Path]:
    """The images of a patient whose mask (or overlay, or probabilities) is not written yet."""
    if config.overwrite:
        return images
    return [
        image
        for image in images
        if not all(path.exists() for path in task.outputs(image, output / folder.name, config).values())
    ]
