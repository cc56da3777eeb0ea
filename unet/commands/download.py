"""download: loads a public data set in the layout that its task reads; shows licence, terms and size first, and asks
nobody's server before they are accepted."""

from __future__ import annotations

import dataclasses
import stat
import sys
import urllib.parse
from pathlib import Path

from unet import files, host
from unet.commands import output
from unet.config.resolve import Resolved, default_task
from unet.config.schema import Config, resolve_path, shell_path
from unet.data.download import folder, transfer
from unet.data.download.sources import Remote, Source
from unet.errors import UsageError
from unet.tasks import registry


def run(resolved: Resolved, command: str) -> int:
    """Load what is missing. Raises UsageError while the licence is not accepted."""
    config = resolved.config
    name = config.general.task
    source, place = registry.source_of(name), resolve_path(config.data.data, "data")
    given, remotes = taken_from(config, source)
    credentials = account(config)
    target = folder.SetFolder(place, source)
    todo = target.missing(remotes)
    shown = "\n".join(about(target, remotes, todo, given))
    if todo and not config.download.accept_licence:
        print(shown, file=sys.stderr)  # also with --quiet
        raise UsageError(
            "The licence is not accepted, so nothing was loaded.",
            f"Read it, then type: {command} --accept-licence",
        )
    host.notice(shown)
    if source.account and todo and not (given or credentials or config.download.download_from):
        host.notice("\n".join(["", *source.account]))
        raise UsageError(
            "This set is given to accounts only, and no archive and no key is named.",
            "Type --from FILE or --credentials FILE, as the lines above show.",
        )
    wait = transfer.Patience(config.download.stall, config.download.tries, min(1.0, config.download.stall / 10))
    count = folder.load(target, remotes, folder.How(wait, config.download.at_once, credentials), given)
    result = {**folder.facts(target), "loaded": count}
    output.show(config, result, "\n".join(closing(target, count, name)))
    return 0


def about(target: folder.SetFolder, remotes: list[Remote], todo: list[Remote], given: Path | None) -> list[str]:
    """What is said before anything is loaded."""
    source = target.source
    hosts = dict.fromkeys(urllib.parse.urlsplit(url).hostname or "" for item in remotes for url in item.urls)
    size = sum(item.about for item in remotes)
    packed = source.archive
    room = (packed.unpacked if packed else size) + (size if packed and not given else 0)
    there = len(remotes) - len(todo)
    lines = [
        source.title,
        f"  home       {source.home}",
        f"  licence    {source.licence}",
        *(f"  terms      {line}" for line in source.terms),
        f"  from       {given.absolute() if given else ', '.join(hosts)}",
        f"  size       about {host.format_bytes(size)} in {host.counted(len(remotes), 'file')};"
        f" about {host.format_bytes(room)} on the disk meanwhile, {host.format_bytes(host.disk(target.path))} are free",
        f"  into       {target.path.absolute()}",
    ]
    if not todo:
        return [*lines, "  state      complete"]
    begun = target.begun(todo)
    if lacking := target.lacking():
        lines.append(f"  state      {lacking}")
    elif there or begun:
        lines.append(f"  state      {there} of {len(remotes)} files are there, {host.format_bytes(begun)} of others")
    return lines


def taken_from(config: Config, source: Source) -> tuple[Path | None, list[Remote]]:
    """(an archive that the user has, the files to load: from --from URL, where it is typed). Raises UsageError."""
    remotes, typed = source.remotes(config.split.max_cases), config.download.download_from
    if typed is None:
        return None, remotes
    parts = urllib.parse.urlsplit(typed)
    if parts.scheme.lower() in ("http", "https") and parts.hostname:
        if source.archive:
            return None, [dataclasses.replace(remotes[0], urls=(typed,))]
        base = typed.rstrip("/")
        return None, [dataclasses.replace(item, urls=(f"{base}/{item.name}",)) for item in remotes]
    if "://" in typed:
        raise UsageError(f"--from {typed}: only http and https are loaded from.", "Name another address.")
    path = Path(typed)
    if not path.exists():
        raise UsageError(f"--from {typed}: {path.absolute()} does not exist.", "Name a file, or http(s)://...")
    if source.archive is None or not path.is_file():
        what = "is no file" if source.archive else "is a path; this set is many files, not one archive"
        raise UsageError(f"--from {typed}: {what}.", "Name http(s)://... of the folder that holds the files.")
    return path, remotes


def account(config: Config) -> tuple[str, str] | None:
    """(user, key) of --credentials. Raises UnetError for another file; others of this machine should not read it."""
    if config.download.credentials is None:
        return None
    path = Path(config.download.credentials).expanduser()
    found = files.read_json(path, {"username": str, "key": str}, 'It must hold {"username": "...", "key": "..."}.')
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        host.notice(f"{path}: other users of this machine may read it; type: chmod 600 {path}")
    return found["username"], found["key"]


def closing(target: folder.SetFolder, count: int, name: str) -> list[str]:
    """What was loaded, and what to type next."""
    typed = "" if name == default_task() else f" --task {name}"
    data = shell_path(target.path) if target.path.parent != Path("data") else target.path.name
    sums = shell_path(target.path / folder.SUMS)
    total = host.format_bytes(sum(item["size"] for item in target.files.values()))
    lacking = target.lacking()
    came = f"{host.counted(count, 'file')} came, {len(target.files)} are there" if count else "nothing was missing"
    return [
        f"{target.path}: {came} ({total}); each was read to its end",
        *(
            [f"  in part    {lacking}: the archive holds no others. Name the whole one with --from FILE"]
            if lacking
            else []
        ),
        f"  check      python -m unet check{typed} --data {data} --checksums {sums}",
        f"  train      python -m unet train{typed} --data {data} --run-name NAME",
    ]
