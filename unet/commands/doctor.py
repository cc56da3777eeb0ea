"""doctor: shows which device would be used, why others are not, and the resources of the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import unet
from unet import host
from unet.config.resolve import Resolved
from unet.config.schema import Config, resolve_path
from unet.devices import launchers, select
from unet.errors import UnetError, UsageError
from unet.runtime.folders.run_folder import versions


def run(resolved: Resolved, command: str) -> int:
    """Print the report. Returns 0, or 1 if no device can be used."""
    config = resolved.config
    total, available = host.memory()
    lines = [f"unet {unet.__version__}, Python {sys.version.split()[0]} ({sys.executable})", "", "Devices"]
    wanted = []
    try:
        rank = launchers.find_rank(config.distributed, config.device.cuda_devices)
    except UsageError as error:
        lines.append(f"  {error.message} {error.hint}")
        rank = launchers.Rank()
    for name in select.DEVICES:
        why, cards = _state(name, config, rank)
        lines.append(
            f"  {name:<6} {'usable' if not why else 'not usable: ' + why}" + (f", {cards} cards" if cards else "")
        )
        if not why and config.device.device in ("auto", name):
            wanted.append(name)
    lines += ["", *_used(wanted, config, rank)]
    lines += [
        "",
        "Machine",
        f"  cores      {host.cores()} of {os.cpu_count()} may be used",
        f"  memory     {host.format_bytes(available)} free of {host.format_bytes(total)}",
    ]
    for title, path in (("data", Path("data")), ("weights", Path("weights")), ("runs", Path(config.run.out))):
        state = "" if os.access(path if path.exists() else ".", os.W_OK) else ", NOT WRITABLE"
        lines.append(
            f"  {title:<10} {host.format_bytes(host.disk(path.absolute()))} free on the disk of"
            f" {path.absolute()}{state}"
        )
    raw = resolve_path(config.data.data, "data")
    lines.append(
        f"  raw data   {raw.absolute()}: {'there' if raw.is_dir() else 'not there (--data PATH, or --synth-data)'}"
    )
    lines += ["", "Packages"]
    for package, version in versions().items():
        lines.append(f"  {package:<16} {version if version[0].isdigit() else version + '; type: pip install -e .'}")
    print("\n".join(lines))
    return 0 if wanted else 1


def _state(name: str, config: Config, rank: launchers.Rank) -> tuple[str | None, int | None]:
    """(why a device cannot be used, how many cards there are)."""
    device = select.load(name)
    try:
        why = select.usable(device, config.device, rank)
    except UnetError as error:
        return f"{error.message} {error.hint}", None
    return why, None if why else device.cards()


def _used(wanted: list[str], config: Config, rank: launchers.Rank) -> list[str]:
    """What a run with these settings would compute on."""
    if not wanted:
        return [f"--device {config.device.device} cannot be used here."]
    try:
        device = select.load(wanted[0])(config.device, rank)
    except UnetError as error:
        return [f"{error.message} {error.hint}"]
    dtype, faster = str(device.dtype).removeprefix("torch."), ", ".join(device.dtypes()) or "none"
    lines = [f"Would be used: {device.describe()}", f"  precision {dtype}; faster in hardware: {faster}"]
    lines += device.check()
    watts = device.power()
    return lines if watts is None else [*lines, f"  power {watts:.1f} W at present"]
