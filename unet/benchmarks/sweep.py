"""Every combination of some settings, each measured in a process of its own: one that runs out of memory is a row that
says so. What is finished is in the folder after each combination."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet import host
from unet.benchmarks.scaling import table
from unet.benchmarks.worker import RAN_OUT, WORDS
from unet.commands import output, tables
from unet.commands.launch import end_with_parent
from unet.config import capacity
from unet.config.options import Declared, flag, nearest, normalize_dashes, spellings, values_after
from unet.config.resolve import Resolved, dumps
from unet.config.schema import UNMEASURED, Config, contradictions, declared_of
from unet.config.values import convert_many
from unet.devices import launchers, load
from unet.errors import FAILED, INTERRUPTED, UsageError
from unet.runtime.folders import run_folder

# of the command, not of what it measures
NOT_SWEPT = (
    *("sweep", "json", "run_name", "out", "overwrite", "config", "task", "verbose", "quiet", "profile"),
    *UNMEASURED,
    "accumulate",
)
DROPPED = ("sweep", "json", "run_name", "out", "overwrite", "verbose", "quiet")
SWITCH = {"on": "true", "off": "false"}
MEASURED, NO_MEMORY, BROKEN = "measured", "out of memory", "failed"
COLUMNS = (
    *("images_per_second", "least", "most", "ours_over_plain", "peak_memory_bytes", "data_wait_share"),
    *("model_flops_per_second", "share_of_matrix_product", "step_over_convolutions", "loader_images_per_second"),
    *("predict_images_per_second", "joules_per_item"),
)

Values = dict[str, str]  # setting -> value, as it is typed


def run(resolved: Resolved, command: str) -> int:
    """Measure all combinations; a table at the end. Exit code 1 where one failed for another reason than memory."""
    config = resolved.config
    if (found := launchers.launched(os.environ)) is not None:
        raise UsageError(
            f"--sweep starts a process for each combination, and {found.launcher} has started this one.",
            "Type the command without the launcher; --devices N may be swept too.",
        )
    declared = {name: declared_of(type(config.task))[name] for name in resolved.names}
    settings = parsed(config, declared)
    combinations = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    require_sound(config, declared, combinations)
    words = without(shlex.split(command)[3:], declared, (*DROPPED, *settings))
    out, name = Path(config.run.out), f"{config.task.name}-sweep"
    folder = run_folder.new_folder(out, config.run.run_name, name, "benchmark", config.general.overwrite)
    folder.status("running", kind="benchmark")
    folder.write("config.json", dumps(resolved, command))
    folder.begin()
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"task": config.task.name, "device": config.device.device, "predict": {}}
    result |= {"sweep": settings, "rows": rows}
    try:
        for number, values in enumerate(combinations, 1):
            host.notice(f"{number} of {len(combinations)}: {named(values)}")
            typed = [word for each in values for word in as_words(each, values[each], declared[each])]
            rows.append({"settings": values, **attempt([sys.executable, "-m", "unet", *words, *typed, "--json"])})
            if said := load.words((rows[-1]["result"] or {}).get("cores_of_others"), host.cores()):
                host.notice(said)
            result["device"] = next((row["result"]["device"] for row in rows if row["result"]), result["device"])
            folder.write("benchmark.json", result)
            folder.write("sweep.csv", csv_of(rows))
    except BaseException:
        folder.status("interrupted", f"{len(rows)} of {len(combinations)} combinations are measured")
        raise
    folder.write("environment.json", run_folder.environment(result["device"]))
    folder.status("done")
    output.show(config, result, "" if config.output.json else text(result, folder.path))
    return FAILED if any(row["outcome"] == BROKEN for row in rows) else 0


def parsed(config: Config, declared: Mapping[str, Declared]) -> dict[str, list[str]]:
    """setting -> its values as text. Raises UsageError with all that is wrong with --sweep."""
    known, found, mistakes = spellings(declared), dict[str, list[str]](), list[str]()
    for item in config.measure.sweep:
        typed, equals, text = item.partition("=")
        spec = known.get(normalize_dashes(f"--{typed.lstrip('-')}"))
        if not equals or not all(text.split(",")):
            mistakes.append(f"{item!r} is not NAME=A,B")
        elif spec is None:
            near = nearest(typed, [name for name in declared if name not in NOT_SWEPT])
            mistakes.append(f"unknown setting {typed[:60]!r}" + (f" (did you mean {near}?)" if near else ""))
        elif spec.name in NOT_SWEPT:
            mistakes.append(f"{spec.name} cannot be swept")
        elif spec.name in found:
            mistakes.append(f"{spec.name} comes twice")
        else:
            found[spec.name] = list(dict.fromkeys(text.split(",")))
            for value in found[spec.name]:
                try:
                    converted(spec.name, value, declared[spec.name])
                except ValueError as error:
                    mistakes.append(str(error))
    if mistakes:
        raise UsageError(
            f"--sweep: {'; '.join(mistakes)}.",
            "Type for example --sweep batch_size=1,2,4 precision=fp32,bf16 (three numbers: patch=32x64x64);"
            " names of settings: python -m unet benchmark --help-all",
        )
    return found


def parts_of(value: str, spec: Declared) -> list[str]:
    """The words of a value: several numbers are joined by x."""
    if spec.kind is bool:
        return [SWITCH.get(value.lower(), value)]
    return value.split("x") if spec.many and spec.kind is not str else [value]


def converted(name: str, value: str, spec: Declared) -> Any:
    """The value of a setting. Raises ValueError in words."""
    parts = parts_of(value, spec)
    return convert_many(flag(name), spec.option, spec.kind, spec.many, parts if spec.many else parts[0])


def as_words(name: str, value: str, spec: Declared) -> list[str]:
    """How a value is typed."""
    return [flag(name), *parts_of(value, spec)]


def require_sound(config: Config, declared: Mapping[str, Declared], combinations: Sequence[Values]) -> None:
    """Raise UsageError for combinations that contradict themselves. One that is too large for the memory is a row."""
    mistakes: list[str] = []
    for values in combinations:
        changed = {name: converted(name, value, declared[name]) for name, value in values.items()}
        own = config.replace(**changed)
        wrong = [words for words in contradictions(own) if words not in capacity.too_large(own)]
        mistakes += [f"{named(values)}: {'; '.join(wrong)}"] if wrong else []
    if mistakes:
        more = f" (and {len(mistakes) - 3} more)" if len(mistakes) > 3 else ""
        raise UsageError(f"--sweep {' | '.join(mistakes[:3])}{more}.", "Leave these combinations out of --sweep.")


def without(words: Sequence[str], declared: Mapping[str, Declared], names: Collection[str]) -> list[str]:
    """A command line without the flags that set one of `names`, in whatever spelling."""
    known, kept, position = spellings(declared), list[str](), 0
    while position < len(words):
        token = words[position]
        spelling, equals, _ = normalize_dashes(token).partition("=")
        spec = known.get(spelling) if token.startswith("--") else known.get(token)
        count = 1 + (0 if spec is None or equals else len(list(values_after(spec, words[position + 1 :], False))))
        if spec is None or spec.name not in names:
            kept += words[position : position + count]
        position += count
    return kept


def attempt(words: Sequence[str]) -> dict[str, Any]:
    """Run a command line that prints a result as JSON: {"outcome", "error", "result"}."""
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes from this process alone, once
        preexec_fn=end_with_parent,
    )
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.returncode == 0:
        return {"outcome": MEASURED, "error": None, "result": json.loads(out)}
    if process.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    return failed(process.returncode, err)


def failed(code: int, err: str) -> dict[str, Any]:
    """The row of a process that failed: without memory torch says so, or the kernel ends it by SIGKILL."""
    lines = [line.removeprefix("error: ") for line in err.splitlines() if line.startswith("error: ")]
    words = lines[-1] if lines else f"the process ended with exit code {code}"
    killed = code in (-9, 128 + 9)
    if killed:
        words = "the process was ended by SIGKILL"
    without_memory = killed or any(word in words for word in (RAN_OUT, *WORDS, "this machine has"))
    return {"outcome": NO_MEMORY if without_memory else BROKEN, "error": words, "result": None}


def named(values: Values) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a combination, by COLUMNS; None where there is none."""
    found: dict[str, Any] = dict.fromkeys(COLUMNS)
    result = row["result"]
    if not result:
        return found
    predict, convs = result.get("predict") or {}, result.get("convolutions") or {}
    found["predict_images_per_second"] = predict.get("images_per_second")
    if rates := result.get("images_per_second"):
        low, high = result["images_per_second_range"]["ours"]
        found |= {"images_per_second": rates["ours"], "least": low, "most": high}
        found |= {"loader_images_per_second": rates.get("loader")}
        found |= {"peak_memory_bytes": result["peak_memory_bytes"]["ours"]}
    found["ours_over_plain"] = (result.get("ours_over_plain") or {}).get("median")
    found["data_wait_share"] = result.get("breakdown", {}).get("data_wait", {}).get("share")
    found["step_over_convolutions"] = convs.get("step_over_convolutions")
    for name in ("model_flops_per_second", "share_of_matrix_product", "joules_per_item"):
        found[name] = result.get(name)
    return found


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a combination."""
    lines = [{**row["settings"], "outcome": row["outcome"], **numbers(row), "error": row["error"]} for row in rows]
    return tables.csv_text(lines, list(lines[0]))


def text(result: Mapping[str, Any], folder: Path) -> str:
    """The rows as a table, and where they are."""
    item = next((row["result"]["item"] for row in result["rows"] if row["result"]), "items")
    heads = [*result["sweep"], f"{item}/s", "least to most", "x plain", "memory", "of matrix", "x convs", "wait"]
    lines = [[*row["settings"].values(), *cells(row)] for row in result["rows"]]
    used = [
        index
        for index in range(len(heads))
        if index < len(result["sweep"]) + 1 or any(line[index] != "-" for line in lines)
    ]
    shown = table([heads[i] for i in used], [[line[i] for i in used] for line in lines])
    notes = (
        f"{item}/s: the median of the rounds, then the least and the most; x plain: times the plain fp32 step;"
        " of matrix: FLOP/s as a share of a matrix product's on this device; x convs: the step as a multiple of its"
        " convolutions alone; wait: share of the step that waits for the loader."
    )
    errors = [
        line
        for row in result["rows"]
        if row["error"]
        for line in tables.text(f"  {named(row['settings'])}: {row['error']}", 4)
    ]
    where = tables.text(f"Written: {folder / 'sweep.csv'}, {folder / 'benchmark.json'}")
    return "\n".join(
        [*tables.text(f"{result['task']}, {result['device']}"), "", *shown, "", *tables.text(notes)] + errors + where
    )


def cells(row: Mapping[str, Any]) -> list[str]:
    found = numbers(row)
    rate = found["images_per_second"] or found["predict_images_per_second"]

    def shown(name: str, form: str) -> str:
        return "-" if found[name] is None else form.format(found[name])

    return [
        row["outcome"] if rate is None else f"{rate:.2f}",
        "-" if found["least"] is None else f"{found['least']:.2f} to {found['most']:.2f}",
        shown("ours_over_plain", "{:.2f}"),
        "-" if found["peak_memory_bytes"] is None else host.format_bytes(found["peak_memory_bytes"]),
        shown("share_of_matrix_product", "{:.1%}"),
        shown("step_over_convolutions", "{:.2f}"),
        shown("data_wait_share", "{:.1%}"),
    ]
