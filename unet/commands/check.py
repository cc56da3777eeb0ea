"""check: finds errors in a raw set or a cache before training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from unet import host
from unet.commands import output
from unet.config.options import flag
from unet.config.resolve import Resolved
from unet.config.schema import resolve_path
from unet.data import checksums
from unet.data.checks import Report
from unet.errors import UsageError
from unet.tasks.registry import create


def run(resolved: Resolved, command: str) -> int:
    """Print what was found. Returns 1 where there are errors, 0 otherwise (warnings alone are 0)."""
    config = resolved.config
    task = create(config)
    typed = {name for name in ("data", "cache") if not resolved.sources[name].startswith(("default", "task"))}
    raw, folder = resolve_path(config.data.data, "data"), resolve_path(config.data.cache, "data")
    chosen: list[tuple[str, Path]] = []
    if raw != folder and ("data" in typed or (not typed and raw.exists())):
        chosen.append(("raw set", raw))
    if "cache" in typed or (not typed and folder.is_dir()):
        chosen.append(("cache", folder))
    if not chosen:
        raise UsageError(
            f"Neither {raw.absolute()} nor {folder.absolute()} exists.",
            "Give a raw set with --data, or a cache with --cache.",
        )
    if config.split.max_cases:
        host.notice(f"note: {flag('max_cases')} {config.split.max_cases} has no effect: every case is checked")
    errors, found = 0, []
    for kind, path in chosen:
        report = task.check_raw(path) if kind == "raw set" else task.check_cache(path)
        if config.check.checksums and "checksums" not in report.facts:  # of a task that does not compare them itself
            compare(path, Path(config.check.checksums), report)
        errors += len(report.errors)
        found.append({"kind": kind, "path": path, **dataclasses.asdict(report)})
        if not config.output.json:
            print(report.text(f"{kind} {path}"))
    if config.output.json:
        output.show(config, {"checked": found, "errors": errors}, "")
    return 1 if errors else 0


def compare(folder: Path, listed: Path, report: Report) -> None:
    """Compare the files of a folder with a list of sums: those of the kinds that are in the list."""
    kinds = {Path(name).suffix for name in checksums.read_checksums(listed)}
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix in kinds)
    names = [path.relative_to(folder).as_posix() for path in paths]
    checksums.verify(folder, listed, [name for name in names if not name.startswith(".")], report)
