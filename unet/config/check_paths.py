"""Checks of the files and folders on the command line, before torch is imported or anything is computed."""

from __future__ import annotations

import difflib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from unet.config.options import flag
from unet.config.resolve import Resolved
from unet.config.schema import Config, resolve_path, shell_path, weights_to_read
from unet.errors import UsageError
from unet.files import kind_of, real_path

Fault = tuple[str, str]  # what is wrong, what to type
SPLITS = ("published", "last", "none")
TRAINING = ("train", "crossval", "benchmark")
APPLYING = ("evaluate", "predict", "sample", "export")
IMAGES = (".nii", ".nii.gz", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
MANY = 2000  # names in a folder that are searched for a similar one


def require(command: str, resolved: Resolved) -> None:
    """Raise one UsageError that lists every path of `command` that is missing or of the wrong kind."""
    if command in ("config", "doctor", "runs", "diff", "report", "completion"):
        return
    if command == "benchmark" and resolved.config.measure.sweep:
        return  # of a sweep each combination is checked
    config = resolved.config
    faults = [*_data(command, resolved), *_weights(command, resolved), *_others(command, resolved)]
    if command in ("predict", "export"):
        for name in config.input.inputs:
            place, mark, _ = name.rpartition("#")  # FOLDER#2: a series of a folder
            known = Path(place if mark and not _kind(Path(name)) else name)
            faults += _there(name, known, "", other=Path("data") / name)
    if faults:
        hints = list(dict.fromkeys(hint for _, hint in faults))
        raise UsageError("; ".join(dict.fromkeys(words for words, _ in faults)) + ".", " ".join(hints))


def _data(command: str, resolved: Resolved) -> Iterator[Fault]:
    """Raw set and cache: typed paths exist, and a command that needs one of the two finds one."""
    config, sources = resolved.config, resolved.sources
    if command == "benchmark" and not loads_data(config):
        return
    raw, cache = resolve_path(config.data.data, "data"), resolve_path(config.data.cache, "data")
    typed = sources["data"].startswith("flag")
    both = (sources["data"], sources["cache"])  # one flag alone may have named both
    if all(source.startswith("flag") for source in both) and both[0] != both[1] and real_path(raw) == real_path(cache):
        yield f"--data and --cache are one folder, {raw.absolute()}", "Type another --cache, or leave it out."
    if command in ("synthesize", "download"):
        yield from _folder("--data", raw)
        return
    if command in (*TRAINING, "preprocess") or (command == "evaluate" and sources["cache"].startswith("flag")):
        yield from _folder("--cache", cache)
        here = Path(config.data.cache)
        if here != cache and not _kind(cache) and _kind(here) == "a folder":
            words = f"--cache {config.data.cache}: {cache.absolute()} does not exist, but {here.absolute()} does"
            yield words, f"Type --cache {shell_path(here)} (or --cache {cache} for a new one)."
    elif command == "check" and sources["cache"].startswith("flag"):
        spelling = sources["cache"].removeprefix("flag ")
        yield from _there(config.data.cache, cache, spelling, other=Path("data") / config.data.cache)
    if config.data.synth_data:
        yield from _folder("--data", raw)
    elif (typed and not (command == "predict" and config.input.inputs)) or needs_raw(command, config):
        hint = "Name a path that exists, or type --synth-data for synthetic data." if command in TRAINING else ""
        hint = hint if typed or command != "plan" else "Type --data DIR, a folder with images and masks of your own."
        spelling = sources["data"].removeprefix("flag ") if typed else "--data"
        yield from _there(config.data.data, raw, spelling, hint, Path("data") / config.data.data)
    elif config.mlperf.mlperf_division or config.mlperf.mlperf_rehearsal:
        return  # the MLPerf checks report it
    elif command in TRAINING and not raw.exists() and (config.data.rebuild_cache or not cache.exists()):
        missing = f"Neither {raw.absolute()} nor {cache.absolute()} exists{_meant(config.data.data, raw)}"
        if config.data.rebuild_cache:
            missing = f"--rebuild-cache reads the raw set, and {raw.absolute()} does not exist"
        yield missing, "Give a raw set with --data (or a cache with --cache), or type --synth-data for synthetic data."


def _weights(command: str, resolved: Resolved) -> Iterator[Fault]:
    """Weights to read exist; weights to write can be written."""
    config, sources = resolved.config, resolved.sources
    if command in TRAINING:
        if config.weights.load and not config.save.resume:  # the state has what came of it
            load = config.weights.load
            yield from _file(load, weights_to_read(load), "--load", other=Path("weights") / load)
        for name in config.weights.weights if config.save.checkpoints and not config.save.resume else ():
            path = resolve_path(name, "weights")
            kind = _kind(path)
            if kind not in ("", "a file"):
                yield f"--weights {name}: {path.absolute()} is {kind}, not a file", "Name another --weights FILE."
            yield from _folder("--weights", path.parent)
    elif command in APPLYING:
        source = sources["weights"]
        typed = source.removeprefix("flag ") if source.startswith("flag") else "--weights"
        there = known_weights()
        hint = f"Name a path that exists; {there}." if there else ""
        for name in config.weights.weights:
            yield from _file(name, weights_to_read(name), typed, hint, Path("weights") / name)


def known_weights() -> str:
    """The newest weights in weights/, in words; empty where there are none."""
    known = sorted(Path("weights").glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
    beside = (".state", "-before.", ".epoch-")  # files that a run keeps beside its best weights
    shown = [path.name for path in known if not any(part in path.name for part in beside)][:5]
    return f"in weights/: {', '.join(shown)}" if shown else ""


def _others(command: str, resolved: Resolved) -> Iterator[Fault]:
    """Files with lists and settings exist; output folders can be written."""
    config, has = resolved.config, set(resolved.names)
    splits = (*config.task.splits, *SPLITS)
    if "split" in has and config.split.fold is None and config.split.split not in splits:
        near = difflib.get_close_matches(config.split.split, splits, 1)
        hint = f"Type --split {near[0] if near else ', '.join(splits[:-1]) + ' or none'}, or a file of names."
        yield from _file(config.split.split, Path(config.split.split), "--split", hint)
    for name in ("precision_ops", "checksums"):
        value = config.get(name)
        if value and name in has:
            yield from _file(value, Path(value), flag(name))
    for name in config.task.folder_flags:
        value = config.get(name)
        if value and name in has:
            yield from _there(value, resolve_path(value, "data"), flag(name))
    run = Path(config.run.out) / (config.run.run_name or "")
    if "run_name" in has and _kind(run) not in ("", "a folder"):
        yield (
            f"--run-name {config.run.run_name}: {run.absolute()} is {_kind(run)}, not a folder",
            "Type another --run-name.",
        )
    for name in ("out", "output", "debug_dump"):
        value = config.get(name)
        if value and name in has and (name != "output" or writes_masks(command, config)):
            one = name == "output" and command == "predict" and value.lower().endswith(IMAGES)  # the mask of one image
            yield from _folder(flag(name), Path(value).parent if one else Path(value))


def needs_raw(command: str, config: Config) -> bool:
    """Whether a command does nothing without a raw set, typed or not."""
    return command == "preprocess" or (command == "plan" and bool(config.task.plans))


def loads_data(config: Config) -> bool:
    """Whether `benchmark` needs a data set: prediction alone is timed on images made in memory."""
    return config.measure.source != "none" and config.run.mode not in APPLYING


def writes_masks(command: str, config: Config) -> bool:
    return command == "predict" or config.run.mode == "train_and_predict"


def _kind(path: Path) -> str:
    """The kind of file at a path, as a phrase; empty if there is none."""
    try:
        return kind_of(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return "a link that leads nowhere" if path.is_symlink() else ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads in a circle"
        return f"not readable ({error.strerror})"
    except ValueError:
        return "no name of a file"


def _there(name: str, path: Path, spelling: str, hint: str = "", other: Path | None = None) -> Iterator[Fault]:
    """A fault unless `path` (typed as `name`) is a file or folder that can be read."""
    kind = _kind(path)
    label = f"{spelling} {name}".strip()
    if not kind:
        yield (
            f"{label}: {path.absolute()} does not exist{_meant(name, path, other)}",
            hint or "Name a path that exists.",
        )
    elif kind not in ("a file", "a folder"):
        yield f"{label}: {path.absolute()} is {kind}, not a file or folder", hint or "Name a regular file or a folder."
    elif not os.access(path, os.R_OK):
        yield f"{label}: {path.absolute()} may not be read", "Give this user the right to read it, or name another."


def _file(name: str, path: Path, spelling: str, hint: str = "", other: Path | None = None) -> Iterator[Fault]:
    """A fault unless `path` is a regular file."""
    if _kind(path) == "a folder":
        yield f"{spelling} {name}: {path.absolute()} is a folder, not a file", hint or "Name a file."
    else:
        yield from _there(name, path, spelling, hint, other)


def _folder(spelling: str, path: Path) -> Iterator[Fault]:
    """A fault unless `path` is a writable folder, or can be created."""
    nearest = next(item for item in (path, *path.absolute().parents) if _kind(item))
    kind = _kind(nearest)
    if kind != "a folder":
        yield f"{spelling}: {nearest.absolute()} is {kind}, not a folder", "Name a folder, or a new one."
    elif not path.exists() and not os.access(nearest, os.W_OK | os.X_OK):
        yield (
            f"{spelling}: {nearest.absolute()} may not be written",
            "Give this user the right to write there, or name another folder.",
        )


def _meant(name: str, path: Path, other: Path | None = None) -> str:
    near = _near(name, path, other)
    return f" (did you mean {near}?)" if near else ""


def _near(name: str, path: Path, other: Path | None) -> str:
    """A similar name that exists: in the current folder instead of the usual one, or there, `other`; another ending, or
    a corrected typo."""
    if path != Path(name) and Path(name).exists():
        return shell_path(Path(name))
    if other is not None and other.exists():
        return str(other)
    if path.name in ("", ".."):
        return ""
    for typed, place in ((Path(name), path), (other, other)):
        if typed is not None and place is not None and (near := _like(place)):
            return str(typed.with_name(near))
    return ""


def _like(path: Path) -> str:
    """The name beside `path` that is most like its own: of another ending, or spelled a little differently."""
    try:
        with os.scandir(path.parent) as entries:
            names = [entry.name for entry in itertools.islice(entries, MANY) if not entry.name.startswith(".")]
    except OSError:
        return ""
    same = sorted(item for item in names if path.suffix and Path(item).stem == path.stem)
    near = same or difflib.get_close_matches(path.name, names, 1, 0.75)
    return near[0] if near else ""
