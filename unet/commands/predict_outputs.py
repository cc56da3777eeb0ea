"""Plans the output of predict: the files of each input, which of them exist and are up to date, and which would
overwrite files of other programs."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from unet import files
from unet.commands import predict_volumes
from unet.config.flags_training import BOTH, DICOM_SEG, NIFTI, PredictOptions
from unet.config.schema import Config, declared_of, resolve_path, shell_path
from unet.data.io.volumes import DICOM, format_of, kind_of, stem
from unet.errors import UnetError, UsageError
from unet.runtime.folders.output_folder import CHANGED, FOREIGN, FREE, MANIFEST, OWN, Made, OutputFolder
from unet.tasks.base import Task

Groups = dict[Path, list[Path]]
# Settings of these groups determine a mask, except these.
DECIDING = ("data", "network", "eval")
INDIFFERENT = {
    *("data", "cache", "rebuild_cache", "synth_data", "workers", "eval_batch_size", "eval_region", "eval_loss"),
    *("eval_crop", "surface_tolerance", "eval_steps", "bootstrap"),
}
FORMAT = 1  # counted up where the same image, weights and settings give another mask than before


@dataclasses.dataclass(frozen=True)
class Job:
    """The work for one case: its images to predict, the output options (including files that exist from before), and
    the output files that do not exist yet."""

    wanted: list[Path]
    options: PredictOptions
    free: frozenset[Path]


def inputs_of(task: Task, config: Config) -> Groups:
    """The cases to predict: the inputs of the command line, or the raw set. Raises UsageError if two cases would write
    the same file, or a mask would overwrite an image."""
    groups = task.find_inputs([Path(name) for name in config.input.inputs] or [resolve_path(config.data.data, "data")])
    require_dicom(config, groups)
    output = absolute(Path(config.predict.output))
    real = functools.cache(files.real_path)
    images = {path for group in groups.values() for image in group for path in (image, files.real_path(image))}
    given = {real(path.parent) / path.name for path in images}
    writers: dict[Path, Path] = {}
    for folder, group in groups.items():
        for image in group:
            for path in task.output_files(image, output / folder.name, config.predict).values():
                if real(path.parent) / path.name in given:
                    raise UsageError(
                        f"The masks would be written over the images in {image.parent}.", "Name another --output."
                    )
                other = writers.setdefault(path, image)
                if other != image:
                    raise UsageError(
                        f"{other} and {image} would both be written to {path}.",
                        "Predict them one after the other, each with its own --output.",
                    )
    return groups


def require_dicom(config: Config, groups: Groups) -> None:
    """Raise UsageError where flags of DICOM input are typed and no image is DICOM (nor what --format asks for)."""
    asked = config.predict
    flags = [f"--series {asked.series}"] * bool(asked.series) + [f"--format {asked.format}"] * (
        asked.format != DICOM_SEG
    )
    if not flags:
        return
    kinds = {kind_of(image) for group in groups.values() for image in group}
    if DICOM not in kinds and (asked.series or asked.format == BOTH or kinds != {NIFTI}):
        words = " and ".join(flags)
        raise UsageError(f"{words}: for DICOM input, and none of the images is DICOM.", "Leave it out.")


def into_one_file(task: Task, config: Config) -> tuple[Config, Groups]:
    """(settings, the cases) where --output names a file, the mask of the only case; unchanged where it names a folder.
    Raises UsageError for several cases, and for a file of another format than the task writes."""
    given = Path(config.predict.output)
    if format_of(given) is None or given.is_dir():
        return config, inputs_of(task, config)
    config = config.replace(output=str(given.parent))
    groups = inputs_of(task, config)
    images = [image for group in groups.values() for image in group]
    if len(images) != 1:
        raise UsageError(
            f"--output {given} names one file, and {len(images)} images are to be predicted.",
            "Name one image, or a folder with --output.",
        )
    groups = {Path(stem(given)): images}
    for kind in (config.predict.format, DICOM_SEG, NIFTI):  # the name of the file decides where there is a choice
        options = dataclasses.replace(config.predict, format=kind)
        mask = task.output_files(images[0], given.parent / stem(given), options)["mask"]
        if mask == given:
            return config.replace(format=kind), groups
    else:
        raise UsageError(
            f"--output {given.name}: the mask of {images[0].name} is written in its own format, as {mask.name}.",
            f"Type --output {shell_path(mask)}",
        )


def require_free(task: Task, config: Config, own: Collection[str] = ()) -> None:
    """Check before training that the masks can be written later. Raises UsageError if a file must not be replaced
    (`own`: see `jobs`), and the errors of `inputs_of`."""
    if config.data.synth_data and not config.input.inputs and not resolve_path(config.data.data, "data").exists():
        return  # the set is made later, so nothing is known of its cases
    out = OutputFolder(absolute(Path(config.predict.output)))
    out.read()
    jobs(task, inputs_of(task, config), out, config, "", "", own)


def refuse(out: OutputFolder, states: dict[Path, str], overwrite: bool) -> None:
    """Raise UsageError for files that this program did not write, or that were changed since."""
    foreign = [path for path, state in states.items() if state == FOREIGN]
    if foreign:
        raise UsageError(
            f"{foreign[0]} is there, and {MANIFEST} does not list it as written by this program{more(foreign)}.",
            "Move it elsewhere, or name another --output.",
        )
    changed = [path for path, state in states.items() if state == CHANGED]
    if changed and not overwrite:
        raise UsageError(
            f"{changed[0]} was changed after this program wrote it{more(changed)}.",
            "Keep it: move it elsewhere, or name another --output. Replace it: --overwrite.",
        )


def more(paths: Sequence[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""


def jobs(
    task: Task,
    groups: Groups,
    out: OutputFolder,
    config: Config,
    weights: str,
    settings: str,
    own: Collection[str] = (),
) -> dict[Path, Job]:
    """The cases of which something is to be made: what is missing, empty or unfinished; with --overwrite everything.

    Raises UsageError for files that may not be replaced, which without --overwrite are also the masks of other images,
    weights or settings. `own`: digests of earlier weights of the run that predicts, whose masks give way.
    """
    require_no_results(groups, out)
    found: dict[Path, Job] = {}
    states: dict[Path, str] = {}
    if config.predict.volumes:
        predict_volumes.require(task)
        states[out.path / predict_volumes.TABLE] = out.state(out.path / predict_volumes.TABLE)
    moved: dict[Path, str] = {}
    others: dict[Path, str] = {}
    for folder, images in groups.items():
        place = out.path / folder.name
        each = as_before(task, images, place, out, config.predict)
        paths = {image: list(task.output_files(image, place, each).values()) for image in images}
        here = {path: out.state(path) for image in images for path in paths[image]}
        states |= here
        kept = [path for path, state in here.items() if state == OWN]
        now = Made(source_of(folder, images), inputs_digest(task, images, each) if kept else "", weights, settings)
        differing = {path: tuple(differences(out.made(path), now)) for path in kept}
        moved |= {path: out.made(path).source for path, words in differing.items() if is_moved(out.made(path), now)}
        wanted = [
            image
            for image in images
            if config.general.overwrite or any(here[path] != OWN or differing[path] for path in paths[image])
        ]
        others |= {
            path: " and ".join(words)
            for path, words in differing.items()
            if words and not gives_way(words, out.made(path), own)
        }
        if wanted:
            found[folder] = Job(wanted, each, frozenset(path for path, state in here.items() if state == FREE))
    refuse(out, states, config.general.overwrite)
    if others and not config.general.overwrite:
        first = next(iter(others))
        where_from = f", in {moved[first]}" if first in moved else ""
        raise UsageError(
            f"{first} was made of other {others[first]}{where_from}{more(list(others))}.",
            "Name another --output for these, or replace what is there with --overwrite.",
        )
    return found


def gives_way(words: Sequence[str], made: Made, own: Collection[str]) -> bool:
    """Whether a mask differs only because it was made with earlier weights of the same run."""
    return tuple(words) == ("weights",) and made.weights in own


def require_no_results(groups: Groups, out: OutputFolder) -> None:
    """Raise UsageError for an input that is a mask written by this program."""
    for image in (image for images in groups.values() for image in images):
        path = absolute(image)
        if path.is_relative_to(out.path) and path in out:
            raise UsageError(
                f"{path} is a result of this program, not an image.", "Name the images only, or another --output."
            )


def absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 (resolve() would rename links)


def as_before(
    task: Task, images: Iterable[Path], place: Path, out: OutputFolder, options: PredictOptions
) -> PredictOptions:
    """The options, extended by overlays, probabilities and masks in another format that exist from before: otherwise
    they would not match the new mask."""
    for name, more in (("overlay", True), ("probabilities", True), ("format", BOTH)):
        if getattr(options, name) == more:
            continue
        changes: dict[str, Any] = {name: more}
        also = dataclasses.replace(options, **changes)
        for image in images:
            extra = set(task.output_files(image, place, also).values())
            extra -= set(task.output_files(image, place, options).values())
            if any(path in out and os.path.lexists(path) for path in extra):
                options = also
                break
    return options


def source_of(folder: Path, images: Sequence[Path]) -> str:
    """The source path of a case: the folder of its images, or its single file (or folder of slices)."""
    return str(absolute(folder if images[0].parent == folder else images[0]))


def inputs_digest(task: Task, images: Sequence[Path], options: PredictOptions) -> str:
    """A digest of all files that a case is predicted from; empty if they cannot be read."""
    try:
        return files.digest_files(*(path for image in images for path in task.source_files(image, options)))
    except UnetError:
        return ""


def differences(before: Made, now: Made) -> list[str]:
    """What two results differ in: images, weights, settings (only if they are known now)."""
    words = {"inputs": "images", "weights": "weights"} | ({"settings": "settings"} if now.settings else {})
    return [word for name, word in words.items() if getattr(before, name) != getattr(now, name)]


def is_moved(before: Made, now: Made) -> bool:
    """Whether a result was made from other images in another folder."""
    return before.source != now.source and before.inputs != now.inputs


def settings_digest(config: Config, kind: str) -> str:
    """A fingerprint of the settings that determine a mask; `kind` is the network's number format. Settings at
    their default are left out, so results stay valid when a later version adds settings."""
    declared = declared_of(type(config.task), DECIDING)
    known = {name: item.default for name, item in declared.items() if name not in INDIFFERENT}
    chosen = {name: config.get(name) for name, default in known.items() if config.get(name) != default}
    return files.fingerprint({"format": FORMAT, "task": config.task.name, "kind": kind, **chosen})
