"""predict: writes masks for images, patient folders or whole data sets, on their own grid."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import files, host
from unet.commands import number_format, output, power, predict_outputs, predict_volumes, setup
from unet.config.resolve import Resolved
from unet.errors import DataError, UnetError, UsageError
from unet.runtime.folders.output_folder import Made, OutputFolder, digests
from unet.runtime.stop import interruptible
from unet.tasks.base import Predictor, Task
from unet.weight_files import exported


def run(resolved: Resolved, command: str, own: Collection[str] = ()) -> int:
    """Write a mask for each input into <output>/<name of its folder>/. Masks that were made from the same images,
    weights and settings are kept. `own`: see `predict_outputs.jobs`.

    Several --weights are averaged. Raises UnetError at the end if a patient could not be read; the others are
    predicted.
    """
    paths = setup.given_weights(resolved.config, "predict")
    resolved = number_format.of_networks(resolved, paths)
    context = setup.assemble(resolved.config, resolved.sources)
    number_format.tell(context.device, paths)
    resolved, facts = setup.apply_checkpoint_settings(resolved, paths, context.task.Settings.inference_settings)
    config, group = resolved.config, context.group
    context = context.with_config(config)
    config, groups = predict_outputs.into_one_file(context.task, config)
    context, resolved = context.with_config(config), dataclasses.replace(resolved, config=config)
    digest = weights_digest(paths, facts)
    made = Made("", "", digest, predict_outputs.settings_digest(config, str(context.device.dtype)))
    out = OutputFolder(predict_outputs.absolute(Path(config.predict.output)))
    if config.run.dry_run:
        if group.is_main:
            out.read()
            predict_outputs.jobs(context.task, groups, out, config, made.weights, made.settings)
            given = host.counted(len(groups), context.task.input_noun)
            print(f"Dry run: {given} would be predicted into {config.predict.output}/; nothing was written.")
        return 0
    trained = {case for each in facts for case in (*each.get("training", ()), *each.get("trained_before", ()))}
    try:
        with interruptible(), contextlib.ExitStack() as stack:
            group.set_phase("checking existing results", may_block=True)
            todo = group.run_on_main(lambda: begin(context, groups, out, made, stack, own))
            if not todo:
                return write(context, resolved, paths, groups, todo, out, made, trained)
            with power.measured(context, logs=False) as context:
                return write(context, resolved, paths, groups, todo, out, made, trained)
    except KeyboardInterrupt:
        host.notice(f"Finished masks in {config.predict.output}/ are kept; the same command goes on from there.")
        raise


def weights_digest(paths: Sequence[Path], facts: Sequence[Mapping[str, Any]] = ({},)) -> str:
    """A digest of the weights, independent of file names and order; `facts`: their metadata. Raises UsageError where
    two are the same network: one file, a copy of it, or what was exported from it."""
    digests = [files.digest_files(path) for path in paths]
    seen: dict[str, Path] = {}
    for path, digest, own in zip(paths, digests, facts, strict=True):
        sources = [name for name in (digest, exported.source_of(own)) if name]
        if first := next((seen[name] for name in sources if name in seen), None):
            both = f"{path} is given twice" if path == first else f"{first} and {path} hold the same network"
            raise UsageError(f"{both}: the mean would count that network twice.", "Name each network once.")
        seen |= dict.fromkeys(sources, path)
    return files.fingerprint(sorted(digests))


def begin(
    context: setup.Context,
    groups: predict_outputs.Groups,
    out: OutputFolder,
    made: Made,
    stack: contextlib.ExitStack,
    own: Collection[str] = (),
) -> dict[Path, predict_outputs.Job]:
    """Lock the output folder until `stack` closes, and find the cases to predict. Raises UsageError."""
    stack.enter_context(out.held())
    out.read()
    todo = predict_outputs.jobs(context.task, groups, out, context.config, made.weights, made.settings, own)
    out.shorten()
    places = {path.parent for folder, job in todo.items() for path in results(context.task, folder, job, out)}
    for place in {out.path, *places}:
        files.remove_leftovers(place)
    return todo


def results(task: Task, folder: Path, job: predict_outputs.Job, out: OutputFolder) -> list[Path]:
    """The output files of a case."""
    place = out.path / folder.name
    return [path for image in job.wanted for path in task.output_files(image, place, job.options).values()]


def write(
    context: setup.Context,
    resolved: Resolved,
    paths: list[Path],
    groups: predict_outputs.Groups,
    todo: dict[Path, predict_outputs.Job],
    out: OutputFolder,
    made: Made,
    trained: Collection[str],
) -> int:
    """Load the networks, predict the cases in `todo`, and report. `trained`: cases that the weights were trained on."""
    config, task, group = context.config, context.task, context.group
    done = sum(map(len, groups.values())) - sum(len(job.wanted) for job in todo.values())
    networks = [setup.trained_network(context, path, resolved) for path in paths] if todo else []
    predictor = setup.make_predictor(context, *networks, finite=True)
    if todo:
        names = ", ".join(map(str, paths))
        given = host.counted(len(todo), task.input_noun)
        host.notice(f"{names} on {context.device.describe()}, {task.describe_window()}: {given}")
    power.begin(context)
    mine = share(todo, group.rank, group.world)
    faults, written, left_out = [], 0, set[Path]()
    for folder, job in host.progress(list(mine.items()), name="predict", unit=task.input_noun):
        try:
            with setup.explaining_oom(context):
                seen = dataclasses.replace(made, trained=folder.name in trained)
                apply(task, folder, groups[folder], job, out, seen, predictor)
            written += len(job.wanted)
        except DataError as error:
            words = error.message if folder.name in error.message else f"{folder.name}: {error.message}"
            faults.append((words, error.hint))
            left_out.add(folder)
            before = any(os.path.lexists(path) for path in results(task, folder, job, out))
            host.notice(f"left out: {words}" + (" Its existing results are from an earlier run." if before else ""))
    faults = [fault for each in group.gather(faults) for fault in each]
    used = power.text(power.of_cases(context, len(todo)), task.input_noun)
    power.tell(context)
    if predictor.seconds:
        from unet.runtime import evaluation

        seconds = predictor.seconds
        host.notice(f"a pass of the network: {evaluation.format_latency(evaluation.latency(seconds[1:] or seconds))}")
    if used:
        host.notice(f"power: {used}")
    total = sum(group.gather(written))
    host.notice(f"{config.predict.output}/: {host.counted(total, task.output_noun)} written, {done} were there already")
    kept = [folder for folder in groups if folder not in todo][group.rank :: group.world]
    here = [folder for folder in mine if folder not in left_out] + kept
    rows = predict_volumes.table(context, groups, here, out, made)
    if config.output.json and group.is_main:
        result = {"output": config.predict.output, "written": total, "kept": done, "left_out": [f[0] for f in faults]}
        output.show(config, {**result, **({"volumes": rows} if config.predict.volumes else {})}, "")
    if faults:
        message, hint = faults[0]
        raise UnetError(
            f"{len(faults)} of {host.counted(len(groups), task.input_noun)} could not be predicted: {message}", hint
        )
    return 0


def apply(
    task: Task,
    folder: Path,
    images: list[Path],
    job: predict_outputs.Job,
    out: OutputFolder,
    made: Made,
    predictor: Predictor,
) -> None:
    """Make and write the results of one case, noted before and after. Raises DataError."""
    from unet.data.io import outputs

    inputs = predict_outputs.inputs_digest(task, images, job.options)
    made = dataclasses.replace(made, source=predict_outputs.source_of(folder, images), inputs=inputs)
    paths = results(task, folder, job, out)
    appeared = [path for path in paths if path in job.free and os.path.lexists(path)]
    if appeared:
        raise DataError(
            f"{appeared[0]} was written by another program while this one ran.",
            "Move it elsewhere, or name another --output.",
        )
    out.note(made, dict.fromkeys(paths))
    for each in task.predict_case(images, job.wanted, predictor, job.options):
        files_of = task.output_files(each.image, out.path / folder.name, job.options)
        outputs.write(files_of[each.name], each, made.weights)
    out.note(made, digests(paths))


def share(todo: dict[Path, predict_outputs.Job], rank: int, world: int) -> dict[Path, predict_outputs.Job]:
    """The cases of one rank, balanced by their number of images."""
    from unet.runtime.evaluation import balance_by_cost

    folders = list(todo)
    costs = [len(todo[name].wanted) for name in folders]
    return {folders[index]: todo[folders[index]] for index in balance_by_cost(costs, world)[rank]}
