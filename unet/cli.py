"""The command line: table of commands, parsing, dispatch, error messages, exit codes. Torch is not imported until a
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
from unet.config.flags import CLASS
from unet.config.options import Declared, elsewhere, flag, meant, parser, read, title_of
from unet.config.resolve import Resolved, default_task
from unet.config.resolve import resolve as resolve_layers
from unet.config.schema import MEND, UNMEASURED, Config, contradictions, declared_of, typed_without_effect
from unet.config.task_settings import TaskSettings
from unet.errors import FAILED, INTERRUPTED, LostError, UnetError, UsageError
from unet.files import explain
from unet.tasks import registry


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand: its help, an example, its groups of settings. Its code is `unet/commands/<name>.py`."""

    help: str
    example: str
    groups: tuple[str, ...]
    positional: str = ""
    without: tuple[str, ...] = ()  # settings of the groups that it does not read: taken, and not in its help


APPLYING = ("weights", "data", "network", "device", "distributed", "eval", "logging")
TRAINING = ("general", "run", "split", "train", "save", "predict", "mlperf", "power", "track", *APPLYING)
COMMANDS = {
    "train": Command(
        "train a network and score it", "--data kaggle_3m --image-size 128 --run-name first-128", TRAINING
    ),
    "crossval": Command(
        "cross-validation: train and score every fold", "--data kaggle_3m --run-name folds", (*TRAINING, "output")
    ),
    "evaluate": Command(
        "score trained weights on every case, or the label maps of any program",
        "--weights first-run.safetensors",
        ("general", "run", "split", "power", *APPLYING, "scoring", "labels", "output"),
    ),
    "predict": Command(
        "write masks for images, patients or whole data sets",
        "--weights first-run.safetensors data/kaggle_3m/TCGA_CS_4941_19960909 --overlay",
        ("input", "predict", "general", "power", *APPLYING, "output"),
        " FILES|FOLDERS ...",
    ),
    "sample": Command(
        "draw samples of a generative network",
        "--weights NAME.safetensors --count 8 --temperature 0.8",
        ("sample", "predict", "general", *APPLYING),
    ),
    "export": Command(
        "write trained weights as ONNX, OpenVINO, safetensors or under other programs' names, compared with torch",
        "--weights first-run.safetensors --to onnx",
        ("input", "export", "predict.output", "general", *APPLYING, "output"),
        " [FILES|FOLDERS ...]",
    ),
    "plan": Command(
        "look at images and masks of your own, and write the settings that follow, with their reasons",
        "--data DIR",
        ("plan", "general", "data", "network", "train", "eval", "device", "distributed", "logging", "output"),
    ),
    "preprocess": Command(
        "preprocess a raw set into a cache",
        "--data kaggle_3m --image-size 256 --cache kaggle_256_cache",
        ("general", "data", "network", "logging"),
    ),
    "check": Command(
        "check a raw set or a cache",
        "--data kaggle_3m",
        ("general", "data", "split", "network", "check", "logging", "output"),
    ),
    "synthesize": Command(
        "write synthetic data in the layout of the real data",
        "--data phantoms --patients 20",
        ("general", "data", "synthetic", "labels", "logging"),
    ),
    "download": Command(
        "load a public data set, after its licence and size were shown",
        "NAME --accept-licence",
        ("download", "general.task", "data.data", "split.max_cases", "output", "logging"),
        " NAME",
    ),
    "benchmark": Command(
        "measure speed, memory and what limits them; sweep settings; compare with plain loops and other programs",
        "--source none --sweep batch_size=4,16 precision=fp32,bf16",
        ("general", "measure", "run", "timing", "train", "power", "output", *APPLYING),
        without=(*UNMEASURED, "accumulate"),
    ),
    "runs": Command(
        "list the runs: running, done, failed or died, with score, time and last line",
        "--records",
        ("listing", "run.out", "output", "logging"),
    ),
    "diff": Command(
        "compare two runs: settings, versions, code, losses, score",
        "first-run second-run",
        ("runs", "run.out", "output", "logging"),
        " RUN RUN",
    ),
    "completion": Command(
        "print what bash, zsh or fish needs to complete command lines", "bash", ("completion", "logging"), " SHELL"
    ),
    "doctor": Command(
        "show which device would be used, and why", "", ("general", "data", "device", "logging", "output")
    ),
    "config": Command(
        "print every setting and where it came from", "--recipe published --epochs 50", (*TRAINING, "output")
    ),
    "report": Command(
        "one page on one run or several: conclusion, curves, cases, pictures",
        "first-run second-run",
        ("runs", "report", "run.out", "output", "logging"),
        " RUN [RUN ...]",
    ),
}


APPLY = ("evaluate", "predict", "sample", "export")  # commands that apply weights
HELP = ("-h", "--help", "--help-all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code: 0 done, 1 failed, 2 usage, 3 target not reached, 130 interrupted."""
    host.begin_command()
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = any(
        word in ("-v", "--verbose") and after.lower() != "false"
        for word, after in zip(words, [*words, ""][1:], strict=True)
    )
    for stream in (sys.stdout, sys.stderr):  # escape characters that the terminal cannot show
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
    except Exception as error:  # still two lines, the traceback on request
        failure = explain(error) if isinstance(error, OSError) else unexpected(error)
        failure.__cause__ = error
    from unet.commands import launch

    if not launch.silent(failure):
        if verbose:
            traceback.print_exception(failure.__cause__ or failure)
        message, hint = (" ".join(text.split("\n")) for text in (failure.message, failure.hint))
        print(f"error: {message}\n  {hint}", file=sys.stderr)
    return launch.exit_code(failure)


def require_folder() -> None:
    """Raise UnetError where the folder that the command was typed in has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UnetError("The current folder no longer exists.", "Change to a folder that exists: cd ~") from error


def unexpected(error: Exception) -> UnetError:
    """A lack of memory, or a bug of this program, as a two-line error."""
    if isinstance(error, MemoryError):
        return UnetError("This process ran out of memory.", "Type a smaller --batch-size, --image-size or --workers.")
    first = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, NotImplementedError) and not first:  # of a task or device of the user's own
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        owner = type(frame.f_locals["self"]).__name__ if "self" in frame.f_locals else frame.f_globals["__name__"]
        return UnetError(
            f"{owner}.{frame.f_code.co_name} is not implemented.",
            "Write this method; its base class says what it takes and gives.",
        )
    return LostError(
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
    if words[:2] == ["completion", "--words"]:  # asked by a shell at each Tab
        from unet.commands import completion

        completion.answer(words[2:], {key: item.help for key, item in COMMANDS.items()}, settings_by)
        return 0
    implied = words[0].startswith("-")
    name = "train" if implied else words[0]
    if name not in COMMANDS:
        raise UsageError(
            f"Unknown command {name[:60]!r}{meant(name, COMMANDS)}.",
            f"Commands: {', '.join(COMMANDS)}; see: python -m unet --help",
        )
    resolved = resolve(name, words if implied else words[1:])
    mode = resolved.config.run.mode
    if mode and name not in ("train", "benchmark", "config") and resolved.sources["mode"].startswith("flag"):
        raise UsageError(
            f"--mode {mode} goes with train (or with no command), not with {name}.",
            f"Type: python -m unet {name}, without --mode.",
        )
    if name == "train" and resolved.config.run.benchmark:
        name = "benchmark"
    if name == "train" and mode in ("evaluate", "predict"):
        name = mode
    host.set_quiet(resolved.config.logging.quiet)
    for remark in resolved.remarks:
        host.notice(f"note: {remark}")
    check_paths.require(name, resolved)
    from unet.commands import launch, output

    with output.json_alone(resolved.config):
        return launch.run(importlib.import_module(f"unet.commands.{name}"), resolved, words)


def resolve(name: str, words: Sequence[str]) -> Resolved:
    """The settings of a command line. Raises UsageError with all that is wrong with it."""
    command, words = COMMANDS[name], plain_words(name, words)
    if any(word in HELP for word in words):
        print(explain_flags(name, words), end="")
        raise SystemExit(0)
    typed = typed_task(words)
    reading = read(declared_of_all(command.groups, typed), words)
    if name == "plan" or (name == "evaluate" and "predictions" in reading.given):
        reading.given.setdefault("task", (registry.planner(), "plan"))
    mode = reading.given.get("mode", (None,))[0]
    shaping = name in ("train", "crossval", "benchmark", "config")
    mistakes, hint, resolved = list(reading.mistakes), f"See: python -m unet {name} --help", None
    if not reading.wrong & {"*", "task", "config", "resume", "recipe", "synth_data"}:
        try:
            applying = name in APPLY or mode in ("evaluate", "predict")
            resolved = resolve_layers(command.groups, reading.given, registry, applying)
            wrong = {flag(item) for item in reading.wrong}
            found = [*contradictions(resolved.config, shaping), *target_mistakes(resolved)]
            found += typed_without_effect(resolved.config, resolved.sources) if name == "train" else []
            mistakes += [item for item in found if not wrong & set(re.findall(r"--[a-z-]+", item))]
            hint = hint if reading.mistakes else MEND
        except UsageError as error:
            mistakes.append(error.message.rstrip("."))
            hint = error.hint
    if reading.unknown:
        others = {key: taken(item, typed) for key, item in COMMANDS.items() if key != "config"}  # which takes all
        hint = elsewhere(reading.unknown, others) + hint
    if mistakes or resolved is None:
        raise UsageError("; ".join(mistakes) + ".", hint)
    return dataclasses.replace(resolved, remarks=(*reading.remarks, *resolved.remarks))


def taken(command: Command, own: type[TaskSettings] | None) -> dict[str, Declared]:
    """The settings that a command reads, of any task."""
    return {key: item for key, item in declared_of_all(command.groups, own).items() if key not in command.without}


def settings_by(name: str, task: str) -> dict[str, Declared]:
    """The settings of a command as a task declares them."""
    found = declared_of(registry.settings_of(task), COMMANDS[name].groups)
    return {setting: item for setting, item in found.items() if setting not in COMMANDS[name].without}


def plain_words(name: str, words: Sequence[str]) -> Sequence[str]:
    """`download NAME` is `download --task NAME`, and `completion SHELL` is `completion --shell SHELL`. Raises
    UsageError without the name of a set, and for one that has none."""
    if name == "completion" and words and not words[0].startswith("-"):
        return ["--shell", *words]
    known = registry.downloads()
    first = words[0] if words else ""
    if name != "download" or (first not in known and any(word in HELP for word in words)):
        return words
    if first not in known:
        what = f"There is no set {first[:60]!r} to load" if first[:1] not in ("", "-") else "No set is named"
        raise UsageError(f"{what}.", f"Type: python -m unet download {' or '.join(known)}")
    return ["--task", *words]


def target_mistakes(resolved: Resolved) -> list[str]:
    """A message if the score of the task cannot reach a typed --target. The task, which says so, needs NumPy."""
    target = resolved.config.train.target
    if target is None or not resolved.sources["target"].startswith(("flag", "file")):
        return []
    return registry.task_class(resolved.config.general.task).metric.refused(target)


def typed_task(words: Sequence[str]) -> type[TaskSettings] | None:
    """The settings of the task on the command line; None without one that exists, which is told with other mistakes."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        name = after if word == "--task" else word.removeprefix("--task=") if word.startswith("--task=") else ""
        if name in registry.BUILT_IN or ":" in name:
            return registry.settings_of(name)
    return None


def declared_of_all(groups: tuple[str, ...], own: type[TaskSettings] | None) -> dict[str, Declared]:
    """The settings of a command: as the task `own` declares them, and those of the other tasks, so that a flag
    of another task gives a notice and not an error."""
    others = [registry.settings_of(name) for name in registry.BUILT_IN]
    found = {
        name: item for task in (*others, *([own] if own else ())) for name, item in declared_of(task, groups).items()
    }
    task = found.get("task")
    if task is None:  # a command that works on runs, whatever their task
        return found
    names = (*registry.BUILT_IN, *([own.name] if own and own.name not in registry.BUILT_IN else ()))
    option = dataclasses.replace(task.option, choices=names, pattern=CLASS)
    return {**found, "task": task._replace(option=option)}


def explain_flags(name: str, words: Sequence[str]) -> str:
    """The text of `COMMAND --help` (the common flags) or `--help-all`, of --task NAME or of the default task."""
    command, program = COMMANDS[name], f"python -m unet {name}"
    reading = read(declared_of_all(command.groups, typed_task(words)), [word for word in words if word not in HELP])
    if "task" in reading.wrong:
        raise UsageError(f"{'; '.join(reading.mistakes)}.", f"See: {program} --help")
    usual = registry.planner() if name == "plan" else default_task()
    task = registry.settings_of(reading.given.get("task", (usual,))[0])
    sections, hidden = help_sections(command.groups, task, "--help-all" in words, command.without)
    about = f"{command.help[0].upper()}{command.help[1:]}. For example: {program} {command.example}".strip()
    if "general" in command.groups:
        about = f"{about} (Flags and defaults of --task {task.name}: {task.title}.)"
    more = f" {host.counted(hidden, 'more flag')}: --help-all." if hidden else ""
    usage = f"{program} [options]{command.positional}"
    about_help = "show this text; --help-all: every flag"
    about_help += "; with --task NAME: those of that task" if "general" in command.groups else ""
    return parser(program, about + more, sections, usage, about_help).format_help()


def help_sections(
    groups: tuple[str, ...], task: type[TaskSettings], every: bool, without: Sequence[str] = ()
) -> tuple[dict[str, dict[str, Declared]], int]:
    """(title -> the settings to show, how many are left out): each with the task's own default and words."""
    sections: dict[str, dict[str, Declared]] = {}
    hidden = 0
    for group in groups:
        if group == "mlperf" and not task.mlperf:
            continue
        for name, item in declared_of(task, (group,)).items():
            if name in without:
                continue
            if not (every or item.option.common or item.option.positional):
                hidden += 1
                continue
            sections.setdefault(title_of(Config.GROUPS[group.partition(".")[0]]), {})[name] = as_task_has_it(
                name, item, task
            )
    return sections, hidden


def as_task_has_it(name: str, item: Declared, task: type[TaskSettings]) -> Declared:
    """A declaration with the default of the task, and what the task adds to its help."""
    option = item.option
    if name == "task":
        option = dataclasses.replace(option, help=f"{option.help}: {', '.join(registry.BUILT_IN)}")
    if name == "recipe" and task.recipes:
        option = dataclasses.replace(option, help=f"{option.help}: {', '.join(task.recipes)}")
    if name in task.notes:
        option = dataclasses.replace(option, help=f"{option.help}; {task.notes[name]}")
    default = task.name if name == "task" else task.defaults.get(name, item.default)
    if name in task.default_texts or default != item.default:  # the option's own words are of its own default
        option = dataclasses.replace(option, default_text=task.default_texts.get(name))
    return item._replace(option=option, default=default)


def overview() -> str:
    """The text of --help."""
    rows = "\n".join(f"  {name:<12} {command.help}" for name, command in COMMANDS.items())
    return f"""unet {__version__}: train, score and apply segmentation networks.

usage: python -m unet COMMAND [options]       (no command: train)

{rows}

Begin:   python -m unet train --synth-data --run-name first-run
Options: python -m unet COMMAND --help, with --task NAME for those of a task;
         `_` and `-` are the same in their names."""
