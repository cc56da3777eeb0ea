"""evaluate: scores trained weights, or the mean of several networks, on every case."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unet import host
from unet.commands import label_scores, leakage, number_format, output, power, predict, run_start, scores, setup
from unet.config.resolve import Resolved, dumps
from unet.errors import UsageError
from unet.tasks.base import Task


def run(resolved: Resolved, command: str) -> int:
    """Score the validation cases of the weights' run, or those chosen by --split. Several --weights are averaged."""
    config = resolved.config
    if config.scoring.predictions:
        return label_scores.run(resolved, command)
    paths = setup.given_weights(config, "evaluate")
    resolved = number_format.of_networks(resolved, paths)
    context = setup.assemble(resolved.config, resolved.sources)
    number_format.tell(context.device, paths)
    declared = context.task.Settings
    reused = tuple(dict.fromkeys((*declared.inference_settings, *declared.scoring_settings)))
    resolved, facts = setup.apply_checkpoint_settings(resolved, paths, reused, setup.shaping(declared))
    config = resolved.config
    with power.measured(context.with_config(config)) as context:
        digest = context.group.run_on_main(lambda: predict.weights_digest(paths, facts))
        return score(context, resolved, command, paths, {"digest": digest, **common_facts(facts)})


def common_facts(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the metadata of several weights say of their cases: "training": those that one of them was trained on,
    "validation": those that all of them held back; without what none of them says. "networks": their number."""
    training = [set(item["training"]) | set(item.get("trained_before", ())) for item in facts if "training" in item]
    validation = [set(item["validation"]) for item in facts if "validation" in item]
    known: dict[str, Any] = {"networks": len(facts)}
    known |= {"training": sorted(set().union(*training))} if training else {}
    return known | ({"validation": sorted(set.intersection(*validation))} if validation else {})


def score(context: setup.Context, resolved: Resolved, command: str, paths: list[Path], facts: dict[str, Any]) -> int:
    """Score the cases with the mean of the networks of `paths`; `facts` as in `common_facts`, with the "digest" of
    the weights."""
    config, task = context.config, context.task
    networks = [setup.trained_network(context, path, resolved) for path in paths]
    cases = chosen_cases(context, resolved, facts)
    if training := set(facts.get("training", ())) - {case.id for case in cases}:
        scored = [case.id for case in cases]
        context.group.run_on_main(
            lambda: leakage.tell(config, leakage.known_images(config, task.layout), sorted(training), scored)
        )
    names = " + ".join(str(path) for path in paths)
    if config.run.dry_run:
        if context.group.is_main:
            fit = "fit" if paths[1:] else "fits"
            print(f"Dry run: {names} {fit}, {len(cases)} cases would be scored on {context.device.describe()}.")
        return 0
    folder = open_folder(context, resolved, command, paths)
    host.notice(f"{names}: {len(cases)} cases, {task.describe_window()}, on {context.device.describe()}")
    power.begin(context, folder)
    start = time.perf_counter()
    with run_start.recording_failure(folder, context.group.explain), setup.explaining_oom(context):
        predictor = setup.make_predictor(context, *networks, finite=True)
        records, remark = scores.full(context, predictor, cases, folder)
    seconds = time.perf_counter() - start
    used = power.of_cases(context, len(records))
    power.tell(context)
    memory = context.group.gather(context.device.memory())
    from unet.runtime import evaluation

    summary = {
        **task.metric.described(),
        "item": task.cost_unit,  # what the rate counts
        "best_score": evaluation.mean(records, task.metric.key),
        "cases": len(records),
        "seconds": {"evaluate": seconds},
        "case_latency": evaluation.latency(predictor.seconds),
        "peak_memory_bytes": max(memory),
        "weights_digest": facts["digest"],  # tells whether two evaluations had the same networks
        "ranks": context.group.world,
        "images_per_second": sum(case.cost for case in cases) / seconds,
        **used,
        "paths": {"run": str(folder.path), "weights": [str(path) for path in paths] if paths[1:] else str(paths[0])},
    }
    folder.write("summary.json", summary)
    folder.status("done")
    if not context.group.is_main:
        return 0
    if config.output.json:
        output.show(config, {**summary, "scores": records, **({"remark": remark} if remark else {})}, "")
        return 0
    print(scores.table(task, records, config.eval.bootstrap, remark))
    if predictor.seconds:
        print(f"\n  a case     {evaluation.format_latency(evaluation.latency(predictor.seconds))} through the network")
    if words := power.text(used, "case"):
        print(f"  power      {words}")
    print(
        f"\n  logs       {folder / 'cases.csv'}, {folder / 'summary.json'}\n  picture    {folder / 'predictions.png'}"
    )
    return 0


def open_folder(context: setup.Context, resolved: Resolved, command: str, paths: list[Path]) -> Any:
    """The folder of this run, created by rank 0."""
    from unet.runtime.folders.run_folder import new_folder

    config, kind = context.config, f"{context.config.task.name}-evaluate"
    folder = context.group.run_on_main(
        lambda: new_folder(Path(config.run.out), config.run.run_name, kind, "evaluate", config.general.overwrite)
    )
    folder.writes = context.group.is_main
    folder.status("running", kind="evaluate", **context.task.metric.described())
    folder.write("config.json", dumps(resolved, command))
    folder.write("environment.json", run_start.environment(context, paths))
    context.group.run_on_main(folder.begin)
    return folder


def chosen_cases(context: setup.Context, resolved: Resolved, facts: dict[str, Any]) -> list[Any]:
    """The cases to score: those of --split or --fold if typed (`--split none`: all cases), else the validation cases
    stored in the weights; in a data set with none of these, all cases that were not trained on."""
    return setup.all_cases(context, functools.partial(choose, context.task, resolved, facts))


def choose(task: Task, resolved: Resolved, facts: dict[str, Any], ids: list[str]) -> list[str]:
    """The ids to score, chosen as in `chosen_cases`; other cases are not preprocessed."""
    config = resolved.config
    typed = any(resolved.sources[name].startswith(("flag", "file", "recipe")) for name in ("split", "fold"))
    trained = set(facts.get("training", ()))
    if typed or "validation" not in facts:
        held = set(task.split(ids, training=False)["validation"]) or set(ids)
    else:
        held = set(facts["validation"])
        missing = sorted(held - set(ids))
        if missing and len(missing) < len(held):
            raise UsageError(
                f"{len(missing)} of the {len(held)} validation cases of these weights are not in this set"
                f" ({', '.join(missing[:2])}).",
                "Give the set they were trained on (--data, --cache), or type --split none to score every case of this"
                " set.",
            )
        if held and len(missing) == len(held):
            host.notice(
                f"None of the {len(held)} validation cases of these weights is in this set, so all of its cases"
                " that they were not trained on are scored."
            )
        held = held - set(missing) or set(ids) - trained
        if not held:
            raise UsageError(
                "These weights were trained on every case of this set."
                if facts.get("networks", 1) == 1
                else f"Each case of this set was used to train one of these {facts['networks']} networks.",
                "Give other cases with --data and --cache, or --split none to score the training cases all the same.",
            )
    if held & trained:
        host.notice(f"{len(held & trained)} of the {len(held)} cases were used for training: their scores are too good")
    if len(held) < len(ids):
        host.notice(f"{len(held)} of the {len(ids)} cases are scored; --split none scores all")
    return [case for case in ids if case in held][: config.eval.eval_steps]
