"""evaluate --predictions: scores of label maps that any program has written, by case and by class."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from unet.commands import output, tables
from unet.commands.predict_outputs import absolute
from unet.config.resolve import Resolved, dumps
from unet.data.io.volumes import stem
from unet.errors import UnetError, UsageError
from unet.metrics.statistics import bootstrap_interval, rank
from unet.runtime.folders.output_folder import OWN, OutputFolder
from unet.tasks.registry import create

KINDS = {"dice": "{:.4f}", "surface": "{:.4f}", "hd95": "{:.2f}", "volume": "{:+.3f}"}
HEADS = {"dice": "Dice", "surface": "surface Dice", "hd95": "HD95 mm", "volume": "volume error"}
SHOWN = 20  # cases that the terminal shows, the worst ones
CLASSES_SHOWN = 6  # columns of classes in the table of cases
NOTES = """Dice, surface Dice (within --surface-tolerance mm), HD95 and the error of the volume, on the masks' grid. A
class that is in neither label map of a case has no score; one that is in one of them has Dice 0 and no HD95."""


def run(resolved: Resolved, command: str) -> int:
    """Score a folder of predictions against a folder of masks; writes cases.csv, classes.csv and summary.json."""
    from unet.runtime.folders.run_folder import environment, new_folder

    config = resolved.config
    masks, predictions = config.labels.labels, str(config.scoring.predictions)
    if not masks:
        raise UsageError("--predictions needs the masks too.", "Type: evaluate --predictions DIR --labels DIR")
    task = create(config)
    records, classes = task.score_files(Path(predictions), Path(masks))
    trained = trained_on(Path(predictions), {record["case"] for record in records})
    folder = new_folder(Path(config.run.out), config.run.run_name, "scores", "evaluate", config.general.overwrite)
    by_class = [summed(records, number, name, config.eval.bootstrap) for number, name in enumerate(classes) if number]
    whole = [record["mean_dice"] for record in records if not math.isnan(record["mean_dice"])]
    low, high = bootstrap_interval(whole, config.eval.bootstrap)
    summary = {
        **task.metric.described(),
        "item": task.item,
        "best_score": statistics.fmean(whole) if whole else None,
        "median": statistics.median(whole) if whole else None,
        "interval": [low, high],
        "cases": len(records),
        **({"trained_on": trained} if trained else {}),
        "classes": by_class,
        "paths": {"run": str(folder.path), "predictions": predictions, "labels": masks},
    }
    folder.status("done", kind="evaluate")
    folder.write("config.json", dumps(resolved, command))
    folder.write("environment.json", environment("no device: label maps alone"))
    folder.write("cases.csv", tables.csv_text(records, list(records[0])))
    folder.write("classes.csv", tables.csv_text(by_class, list(by_class[0])))
    folder.write("summary.json", summary)
    folder.begin()
    remark = "\n".join(["", *tables.text(f"  {told(records, trained)}")]) if trained else ""
    logs = f"  logs       {folder.path}/  (cases.csv, classes.csv, summary.json)"
    text = f"{table(records, by_class, classes)}{remark}\n\n{logs}"
    output.show(config, {**summary, "scores": records}, text)
    return 0


def trained_on(predictions: Path, cases: Collection[str]) -> list[str]:
    """Those of the cases that the weights were trained on which predicted them, where this program has written the
    predictions and its list of them tells."""
    out = OutputFolder(absolute(predictions))
    with contextlib.suppress(UnetError):
        out.read()
    names = {name: stem(out.path / name) for name, (_, made) in out.records.items() if made.trained}
    return sorted({case for name, case in names.items() if case in cases and out.state(out.path / name) == OWN})


def told(records: Sequence[dict[str, Any]], trained: Sequence[str]) -> str:
    """How many of the cases were trained on, and the mean of the others, in words."""
    others = [record["mean_dice"] for record in records if record["case"] not in trained]
    known = [score for score in others if not math.isnan(score)]
    mean = f"; the mean Dice of the {len(known)} others is {statistics.fmean(known):.4f}" if known else ""
    return (
        f"{len(trained)} of the {len(records)} cases were used to train the weights that predicted them: their scores"
        f" are too good{mean}."
    )


def summed(records: Sequence[dict[str, Any]], number: int, name: str, resamples: int) -> dict[str, Any]:
    """The scores of a class over the cases: how many have it, mean and median of each kind, interval of the Dice."""
    found: dict[str, Any] = {"class": name, "cases": 0}
    for kind in KINDS:
        known = [record[f"{kind}_{number}"] for record in records if not math.isnan(record[f"{kind}_{number}"])]
        found[kind] = statistics.fmean(known) if known else math.nan
        found[f"{kind}_median"] = statistics.median(known) if known else math.nan
        if kind == "dice":
            found["cases"] = len(known)
            found["dice_low"], found["dice_high"] = bootstrap_interval(known, resamples)
    return found


def table(records: Sequence[dict[str, Any]], by_class: Sequence[dict[str, Any]], classes: Sequence[str]) -> str:
    """The classes, then the worst cases, the worst first, those without a score last."""
    cells = [
        [
            row["class"],
            str(row["cases"]),
            *(shown(row[key], KINDS["dice"]) for key in ("dice", "dice_median", "dice_low", "dice_high")),
            *(shown(row[kind], form) for kind, form in KINDS.items() if kind != "dice"),
        ]
        for row in by_class
    ]
    heads = ["class", "cases", "Dice", "median", "95 % from", "to", *(HEADS[kind] for kind in KINDS if kind != "dice")]
    lines = tables.table(heads, cells, name=20)
    ordered = sorted(records, key=lambda record: rank(record["mean_dice"]))
    names = list(enumerate(classes))[1 : CLASSES_SHOWN + 1]
    rows = [
        [
            record["case"],
            *(shown(record[key], KINDS["dice"]) for key in ("mean_dice", *(f"dice_{n}" for n, _ in names))),
        ]
        for record in ordered[:SHOWN]
    ]
    more = f" (the worst {SHOWN} of {len(records)})" if len(records) > SHOWN else ""
    lines += ["", *tables.table([f"case{more}", "mean Dice", *(name for _, name in names)], rows)]
    return "\n".join([*lines, "", *tables.note(NOTES)])


def shown(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
