"""The command line: one table of commands, parsing, dispatch, the printing of errors, exit codes. No torch until a
command runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from unet import __version__, host
from unet.config import check_paths
from unet.config.flags import (
    CheckOptions,
    CommonOptions,
    DataOptions,
    DeviceOptions,
    DistributedOptions,
    InputOptions,
    MLPerfOptions,
    PhantomOptions,
    PredictOptions,
    RunOptions,
    SaveOptions,
    SplitOptions,
    TalkOptions,
    TimingOptions,
    WeightsOptions,
)
from unet.config.flags_training import EvalOptions, NetworkOptions, TrainOptions
from unet.config.options import flag, nearest, parser, read
from unet.config.recipes import TASK_DEFAULTS
from unet.config.resolve import Resolved
from unet.config.resolve import resolve as layers
from unet.config.schema import MEND, contradictions
from unet.errors import FAILED, INTERRUPTED, UnetError, UsageError
from unet.files import explain


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: what it does, an example, the groups of settings it takes. Its code is
    `unet/commands/<name>.py`.
    """

    help: str
    example: str
    groups: tuple[type, ...]
    positional: str = ""


APPLYING = (WeightsOptions, DataOptions, NetworkOptions, DeviceOptions, DistributedOptions, EvalOptions, TalkOptions)
TRAINING = (
    *(CommonOptions, RunOptions, SplitOptions, TrainOptions, SaveOptions, PredictOptions, MLPerfOptions),
    *APPLYING,
)
COMMANDS = {
    "train": Command("train a network, and score it", "--data kaggle_3m --image-size 128 --run-name lgg-128", TRAINING),
    "crossval": Command(
        "train and score every fold, and give the mean", "--task em --data data/em --run-name em-folds", TRAINING
    ),
    "evaluate": Command(
        "score weights, case by case",
        "--weights first-run.safetensors",
        (CommonOptions, RunOptions, SplitOptions, *APPLYING),
    ),
    "predict": Command(
        "write masks of images, patients or whole sets",
        "--weights first-run.safetensors data/kaggle_3m/TCGA_CS_4941_19960909 --overlay",
        (InputOptions, PredictOptions, CommonOptions, *APPLYING),
        " FILES|FOLDERS ...",
    ),
    "preprocess": Command(
        "make the cache from a raw set",
        "--task lgg --data kaggle_3m --image-size 256 --cache kaggle_256_cache",
        (CommonOptions, DataOptions, NetworkOptions, TalkOptions),
    ),
    "check": Command(
        "look a raw set or a cache over",
        "--data kaggle_3m",
        (CommonOptions, DataOptions, SplitOptions, NetworkOptions, CheckOptions, TalkOptions),
    ),
    "synthesize": Command(
        "make a phantom set in the true layout",
        "--data phantoms --patients 20",
        (CommonOptions, DataOptions, PhantomOptions, TalkOptions),
    ),
    "benchmark": Command(
        "images a second of step and loader, against a plain fp32 loop",
        "--synth-data --batch-size 16 --precision bf16",
        (CommonOptions, RunOptions, TimingOptions, TrainOptions, *APPLYING),
    ),
    "doctor": Command(
        "what would be used here, and why not the others", "", (CommonOptions, DataOptions, DeviceOptions, TalkOptions)
    ),
    "config": Command("the settings in force and where each comes from", "--recipe published --epochs 50", TRAINING),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 done, 1 failed, 2 usage, 3 target not reached, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = any(
        word in ("-v", "--verbose") and after.lower() != "false"
        for word, after in zip(words, [*words, ""][1:], strict=True)
    )
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter of a name shows its number
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        require_folder()
        return dispatch(words)
    except UnetError as error:
        failure = error
    except KeyboardInterrupt:
        from unet.commands import launch

        if not launch.follows():
            print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return FAILED
    except OSError as error:
        failure = explain(error)
        failure.__cause__ = error
    except MemoryError as error:
        failure = UnetError(
            "This process ran out of memory.", "Type a smaller --batch-size, --image-size or --workers."
        )
        failure.__cause__ = error
    except Exception as error:  # still two lines, the traceback on request
        failure = unexpected(error)
        failure.__cause__ = error
    from unet.commands import launch

    if launch.silent(failure):
        return failure.exit_code
    if verbose:
        traceback.print_exception(failure.__cause__ or failure)
    message, hint = (" ".join(text.split("\n")) for text in (failure.message, failure.hint))
    print(f"error: {message}\n  {hint}", file=sys.stderr)
    return failure.exit_code


def require_folder() -> None:
    """Raise UnetError where the folder that the command was typed in has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UnetError("The current folder no longer exists.", "Change to a folder that exists: cd ~") from error


def unexpected(error: Exception) -> UnetError:
    """A defect of this program, in two lines."""
    first = str(error).splitlines()[0] if str(error) else ""
    return UnetError(
        f"Internal error: {type(error).__name__}: {first}",
        "This should not happen. Type the command again with -v for the traceback, and report it.",
    )


def dispatch(words: list[str]) -> int:
    """Find the command (none: train), resolve its settings, run it."""
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help", *words[2:]]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] in ("--version", "-V"):
        print(f"unet {__version__}")
        return 0
    implied = words[0].startswith("-")
    name = "train" if implied else words[0]
    if name not in COMMANDS:
        raise UsageError(
            f"Unknown command {name[:60]!r}{close(name)}.",
            f"Commands: {', '.join(COMMANDS)}; see: python -m unet --help",
        )
    resolved = resolve(name, words if implied else words[1:])
    mode = resolved.config.mode
    if mode and name not in ("train", "benchmark", "config") and resolved.sources["mode"].startswith("flag"):
        raise UsageError(
            f"--mode {mode} goes with train (or with no command), not with {name}.",
            f"Type: python -m unet {name}, without --mode.",
        )
    if name == "train" and resolved.config.benchmark:
        name = "benchmark"
    if name == "train" and mode in ("evaluate", "predict"):
        name = mode
    host.set_quiet(resolved.config.quiet)
    for remark in resolved.remarks:
        host.notice(f"note: {remark}")
    check_paths.require(name, resolved)
    from unet.commands import launch

    return launch.run(importlib.import_module(f"unet.commands.{name}"), resolved, words)


def resolve(name: str, words: Sequence[str]) -> Resolved:
    """The settings of a command line. Raises UsageError with all that is wrong with it."""
    command = COMMANDS[name]
    if any(word in ("-h", "--help") for word in words):
        print(explain_flags(name, words), end="")
        raise SystemExit(0)
    reading = read(command.groups, words)
    mode = reading.given.get("mode", (None,))[0]
    shaping = name in ("train", "crossval", "benchmark", "config")
    mistakes, hint, resolved = list(reading.mistakes), f"See: python -m unet {name} --help", None
    if not reading.wrong & {"*", "task", "config", "resume", "recipe", "synth_data"}:
        try:
            applying = name in ("evaluate", "predict") or mode in ("evaluate", "predict")
            resolved = layers(command.groups, reading.given, applying)
            wrong = {flag(item) for item in reading.wrong}
            found = contradictions(resolved.config, shaping)
            mistakes += [item for item in found if not wrong & set(re.findall(r"--[a-z-]+", item))]
            hint = hint if reading.mistakes else MEND
        except UsageError as error:
            mistakes.append(error.message.rstrip("."))
            hint = error.hint
    if mistakes or resolved is None:
        raise UsageError("; ".join(mistakes) + ".", hint)
    return dataclasses.replace(resolved, remarks=(*reading.remarks, *resolved.remarks))


def explain_flags(name: str, words: Sequence[str]) -> str:
    """The text of `COMMAND --help`: with --task NAME that task's flags and defaults, else those of all."""
    command, program = COMMANDS[name], f"python -m unet {name}"
    reading = read(command.groups, [word for word in words if word not in ("-h", "--help")])
    if "task" in reading.wrong:
        raise UsageError(f"{'; '.join(reading.mistakes)}.", f"See: {program} --help")
    task = reading.given.get("task", (None,))[0]
    about = f"{command.help[0].upper()}{command.help[1:]}. For example: {program} {command.example}".strip()
    if task:
        about = f"{about} (Flags and defaults of --task {task}.)"
    usage = f"{program} [options]{command.positional}"
    return parser(program, about, command.groups, usage, task, TASK_DEFAULTS.get(task or "")).format_help()


def close(name: str) -> str:
    near = nearest(name, list(COMMANDS))
    return f" (did you mean {near}?)" if near else ""


def overview() -> str:
    """The text of --help."""
    rows = "\n".join(f"  {name:<12} {command.help}" for name, command in COMMANDS.items())
    return f"""unet {__version__}: train, score and apply segmentation networks.

usage: python -m unet COMMAND [options]       (no command: train)

{rows}

Begin:   python -m unet train --synth-data --run-name first-run
Options: python -m unet COMMAND --help, with --task NAME for those of a task;
         `_` and `-` are the same in their names."""
