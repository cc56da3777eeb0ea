"""completion: prints what a shell needs to complete command lines, and, for that shell, the words that may come next.

The shell asks the program at each Tab (`completion --words ...`), so what it offers is what is installed: commands,
flags, choices, tasks, recipes, and names under data/, weights/ and performance/. No torch, no NumPy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unet.config.options import Declared, Spelling, flag, normalize_dashes, spellings
from unet.config.resolve import Resolved, default_task
from unet.tasks import registry

FILES, FOLDERS = ":files", ":folders"  # in place of words: the shell's own completion of paths
LONGEST = 60  # letters of a description
MOST = 500  # names of a folder

BASH = r"""# Completion of unet in bash. Now: source <(python -m unet completion bash)
# For good: add this line to ~/.bashrc
_unet_complete() {
    local first=$1 line paths=
    shift
    COMPREPLY=()
    while IFS= read -r line; do
        case $line in
            :files) paths=-f ;;
            :folders) paths=-d ;;
            *) COMPREPLY+=("${line%%$'\t'*}") ;;
        esac
    done < <("$@" completion --words "${COMP_WORDS[@]:first:COMP_CWORD-first+1}" 2>/dev/null)
    if [[ -n $paths ]]; then
        compopt -o filenames 2>/dev/null
        while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen $paths -- "${COMP_WORDS[COMP_CWORD]}")
    fi
}
_unet() { _unet_complete 1 "${COMP_WORDS[0]}"; }
_unet_python_before=$(complete -p python 2>/dev/null | sed -n 's/.*-F \([^ ]*\).*/\1/p')
_unet_python() {
    if [[ $COMP_CWORD -gt 2 && ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == unet ]]; then
        _unet_complete 3 "${COMP_WORDS[0]}" -m unet
    elif [[ -n $_unet_python_before && $_unet_python_before != _unet_python ]]; then
        "$_unet_python_before" "$@"
    fi
}
complete -F _unet unet
complete -o bashdefault -o default -F _unet_python python python3
"""
ZSH = r"""#compdef unet
# Completion of unet in zsh. Now: source <(python -m unet completion zsh)
# For good: add this line to ~/.zshrc, after compinit
_unet_complete() {
    local first=$1 line paths=
    local -a found
    shift
    for line in ${(f)"$("$@" completion --words "${(@)words[first,CURRENT]}" 2>/dev/null)"}; do
        case $line in
            :files) paths=files ;;
            :folders) paths=folders ;;
            *) found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
        esac
    done
    (( $#found )) && _describe -V unet found
    [[ $paths == files ]] && _files
    [[ $paths == folders ]] && _files -/
    return 0
}
_unet() { _unet_complete 2 $words[1] }
_unet_python() {
    if [[ $CURRENT -gt 3 && $words[2] == -m && $words[3] == unet ]]; then
        _unet_complete 4 $words[1] -m unet
    elif (( $+functions[_python] )) || [[ -n ${fpath[(r)*]} && -n ${^fpath}/_python(#qN[1]) ]]; then
        _python "$@"
    else
        _default "$@"
    fi
}
compdef _unet unet
compdef _unet_python python python3
"""
FISH = r"""# Completion of unet in fish. Now: python -m unet completion fish | source
# For good: add this line to config.fish
function __unet_ours
    set -l typed (commandline -opc)
    test "$typed[1]" = unet; or test (count $typed) -gt 2 -a "$typed[2] $typed[3]" = '-m unet'
end
function __unet_complete
    set -l typed (commandline -opc) (commandline -ct)
    set -l program $typed[1]
    set -l first 2
    if test "$typed[1]" != unet
        set program $typed[1] -m unet
        set first 4
    end
    for line in ($program completion --words $typed[$first..-1] 2>/dev/null)
        switch $line
            case ':files'
                __fish_complete_path (commandline -ct)
            case ':folders'
                __fish_complete_directories (commandline -ct)
            case '*'
                echo $line
        end
    end
end
complete -c unet -f -a '(__unet_complete)'
complete -c python -n __unet_ours -f -a '(__unet_complete)'
complete -c python3 -n __unet_ours -f -a '(__unet_complete)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}

DeclaredOf = Callable[[str, str], dict[str, Declared]]  # (command, task) -> its settings


def run(resolved: Resolved, command: str) -> int:
    """Print the script of a shell."""
    print(SCRIPTS[resolved.config.completion.shell], end="")
    return 0


def candidates(words: Sequence[str], commands: Mapping[str, str], declared: DeclaredOf) -> list[str]:
    """What may stand in place of the last of `words`, each with a tab and what it means. `commands`: their help."""
    words = joined(words)
    current, name = words[-1], words[0]
    if len(words) == 1 and not current.startswith("-"):
        return starting(current, {**commands, "help": "the text of --help, of a command"})
    if name == "help":
        return starting(current, commands)
    name, before = ("train", words[:-1]) if name.startswith("-") else (name, words[1:-1])
    if name not in commands:
        return []
    if name == "completion":
        return starting(current, dict.fromkeys(SCRIPTS, "a shell"))
    if name == "download" and not before and not current.startswith("-"):
        return starting(current, {task: registry.settings_of(task).title for task in registry.downloads()})
    task = task_of(before if name != "download" else ["--task", *before[:1]])
    own = declared(name, task)
    known = spellings(own)
    if current.startswith("--") and "=" in current:
        spelling, _, start = current.partition("=")
        spec = known.get(normalize_dashes(spelling))
        found = [] if spec is None or spec.switch else list(values_of(spec, start, task))
        return [f"{spelling}={item}" for item in found if not item.startswith(":")]
    if not current.startswith("-") and (spec := open_flag(before, known)):
        return list(values_of(spec, current, task))
    if current.startswith("-"):
        return starting(current.replace("_", "-"), flags_of(own))
    positional = next((item for item in own.values() if item.option.positional), None)
    if positional is None:
        return starting("--", flags_of(own)) if not current else []
    return starting(current, runs()) if positional.option.metavar == "RUN" else [FILES]


def joined(words: Sequence[str]) -> list[str]:
    """Words with `--flag=value` in one, which bash hands over in three."""
    found: list[str] = []
    for word in words or [""]:
        if found and found[-1].startswith("--") and (word == "=" or found[-1].endswith("=")):
            found[-1] += word
        else:
            found.append(word)
    if len(found) > 1 and words[-2:-1] == ["="]:  # bash replaces what follows the sign alone
        name, _, start = found[-1].partition("=")
        found[-1:] = [name, start]
    elif words[-1:] == ["="] and len(words) > 1:
        found[-1:] = [found[-1].removesuffix("="), ""]
    return found


def task_of(before: Sequence[str]) -> str:
    """The task that is typed, or the default one."""
    typed = [after for word, after in zip(before, [*before, ""][1:], strict=False) if word == "--task"]
    typed += [word.removeprefix("--task=") for word in before if word.startswith("--task=")]
    return typed[-1] if typed and typed[-1] in registry.BUILT_IN else default_task()


def open_flag(before: Sequence[str], known: Mapping[str, Spelling]) -> Spelling | None:
    """The flag whose value comes next: the last word, or one that takes several values."""
    for back, word in enumerate(reversed(before)):
        if word.startswith("--"):
            spec = known.get(normalize_dashes(word))
            takes = spec is not None and not spec.switch and (back == 0 or (spec.many and not spec.option.repeated))
            return spec if takes else None
    return None


def values_of(spec: Spelling, start: str, task: str) -> Iterator[str]:
    """The values of a flag that begin so."""
    option, name = spec.option, spec.name
    if name == "task":
        yield from starting(start, {item: registry.settings_of(item).title for item in registry.BUILT_IN})
    elif name == "recipe":
        yield from starting(start, dict.fromkeys(registry.settings_of(task).recipes, f"of {task}"))
    elif option.choices:
        yield from starting(start, {str(item): "" for item in option.choices})
    elif name in ("data", "cache"):
        yield from starting(start, dict.fromkeys(names("data", folders=True), "under data/"))
        yield FOLDERS
    elif name in ("weights", "load"):
        yield from starting(start, dict.fromkeys(names("weights", folders=False), "under weights/"))
        yield FILES
    elif name in ("run_name", "resume"):
        yield from starting(start, runs())
    elif spec.kind is str and option.metavar:
        metavar = option.metavar.upper()
        folder = any(word in metavar for word in ("DIR", "FOLDER"))
        yield from [FOLDERS] if folder else [FILES] if any(word in metavar for word in ("FILE", "PATH")) else []


def flags_of(own: Mapping[str, Declared]) -> dict[str, str]:
    """flag -> what it means; a switch that is on by default is offered as --no-..."""
    found = {"--help": "the common flags", "--help-all": "every flag"}
    for name, item in own.items():
        if not item.option.positional:
            spelled = flag(name)
            found["--no-" + spelled[2:] if item.kind is bool and item.default is True else spelled] = item.option.help
    return found


def starting(start: str, words: Mapping[str, str]) -> list[str]:
    """Those words that begin so, with a tab and their meaning."""
    return [f"{word}\t{' '.join(about.split())[:LONGEST]}" for word, about in words.items() if word.startswith(start)]


def names(folder: str, folders: bool) -> list[str]:
    """Names in a folder, as a flag takes them."""
    try:
        with os.scandir(folder) as entries:
            found = [item.name for item in entries if item.is_dir() == folders and not item.name.startswith(".")]
    except OSError:
        return []
    return sorted(name for name in found if name.isprintable())[:MOST]


def runs() -> dict[str, str]:
    """The runs under performance/."""
    kept = [name for name in names("performance", folders=True) if Path("performance", name, "config.json").exists()]
    return dict.fromkeys(kept, "a run")


def answer(words: Sequence[str], commands: Mapping[str, str], declared: DeclaredOf) -> None:
    """Print the candidates, one a line."""
    try:
        found: list[Any] = candidates(words, commands, declared)
    except Exception:  # a shell that completes must not print errors into the line
        found = []
    print("\n".join(found))
