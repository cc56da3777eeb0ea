"""doctor: shows which device would be used, why others are not, and the resources of the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import unet
from unet import host
from unet.commands import output
from unet.config.resolve import Resolved
from unet.config.schema import Config, resolve_path
from unet.devices import launchers, select
from unet.devices.base import Device
from unet.errors import UnetError, UsageError
from unet.runtime.folders.run_folder import versions

EXTRAS = {
    "formats": ("SimpleITK",),
    "dicom": ("pydicom", "highdicom", "pylibjpeg", "pylibjpeg-openjpeg", "python-gdcm"),
}


def run(resolved: Resolved, command: str) -> int:
    """Print the report. Returns 0, or 1 if no device can be used."""
    config = resolved.config
    facts: dict[str, Any] = {"unet": unet.__version__, "python": sys.version.split()[0], "executable": sys.executable}
    try:
        rank, facts["launcher"] = launchers.find_rank(config.distributed, config.device.cuda_devices), None
    except UsageError as error:
        rank, facts["launcher"] = launchers.Rank(), f"{error.message} {error.hint}"
    own = config.device.device_module
    found = {name: select.load(name) for name in select.DEVICES} | ({own: select.load_foreign(own)} if own else {})
    states = {name: _state(device, config, rank) for name, device in found.items()}
    asked = [own] if own else list(select.DEVICES) if config.device.device == "auto" else [config.device.device]
    wanted = [found[name] for name in asked if not states[name][0]]
    facts["devices"] = {
        name: {"usable": not why, "why_not": why, "cards": cards} for name, (why, cards) in states.items()
    }
    facts["used"] = _used(wanted, config, rank)
    facts |= _machine(config)
    output.show(config, facts, "\n".join(_text(facts)))
    return 0 if wanted else 1


def _machine(config: Config) -> dict[str, Any]:
    """Cores, memory, disks, the raw set and the packages."""
    total, available = host.memory()
    raw = resolve_path(config.data.data, "data").absolute()
    places = {"data": Path("data"), "weights": Path("weights"), "runs": Path(config.run.out)}
    return {
        "cores": {"usable": host.cores(), "all": os.cpu_count()},
        "memory_bytes": {"free": available, "all": total},
        "folders": {
            title: {
                "path": path.absolute(),
                "free_bytes": host.disk(path.absolute()),
                "writable": os.access(path if path.exists() else ".", os.W_OK),
            }
            for title, path in places.items()
        },
        "raw_data": {"path": raw, "there": raw.exists()},
        "packages": versions(),
        "extras": {extra: versions(packages) for extra, packages in EXTRAS.items()},
    }


def _text(facts: dict[str, Any]) -> list[str]:
    """The report in lines."""
    lines = [f"unet {facts['unet']}, Python {facts['python']} ({facts['executable']})", "", "Devices"]
    lines += [f"  {facts['launcher']}"] if facts["launcher"] else []
    for name, state in facts["devices"].items():
        words = "usable" if state["usable"] else f"not usable: {state['why_not']}"
        lines.append(f"  {name:<6} {words}" + (f", {state['cards']} cards" if state["cards"] else ""))
    cores, memory, raw = facts["cores"], facts["memory_bytes"], facts["raw_data"]
    lines += ["", *facts["used"], "", "Machine", f"  cores      {cores['usable']} of {cores['all']} may be used"]
    lines.append(f"  memory     {host.format_bytes(memory['free'])} free of {host.format_bytes(memory['all'])}")
    for title, place in facts["folders"].items():
        state = "" if place["writable"] else ", NOT WRITABLE"
        free = host.format_bytes(place["free_bytes"])
        lines.append(f"  {title:<10} {free} free on the disk of {place['path']}{state}")
    there = "there" if raw["there"] else "not there (--data PATH, or --synth-data)"
    lines += [f"  raw data   {raw['path']}: {there}", "", "Packages"]
    for package, version in facts["packages"].items():
        lines.append(f"  {package:<16} {version if version[0].isdigit() else version + '; type: pip install -e .'}")
    lines += ["", "File formats"]
    for extra, packages in facts["extras"].items():
        missing = [package for package, version in packages.items() if not version[0].isdigit()]
        held = ", ".join(f"{package} {version}" for package, version in packages.items())
        type_it = f"{', '.join(missing)} not installed; type: pip install 'unet-accelerators[{extra}]'"
        lines.append(f"  {extra:<16} {type_it if missing else held}")
    return lines


def _state(device: type[Device], config: Config, rank: launchers.Rank) -> tuple[str | None, int | None]:
    """(why a device cannot be used, how many cards there are)."""
    try:
        why = select.usable(device, config.device, rank)
    except UnetError as error:
        return f"{error.message} {error.hint}", None
    return why, None if why else device.cards()


def _used(wanted: list[type[Device]], config: Config, rank: launchers.Rank) -> list[str]:
    """What a run with these settings would compute on."""
    if not wanted:
        own = config.device.device_module
        return [f"{f'--device-module {own}' if own else f'--device {config.device.device}'} cannot be used here."]
    try:
        device = wanted[0](config.device, rank)
    except UnetError as error:
        return [f"{error.message} {error.hint}"]
    dtype, faster = str(device.dtype).removeprefix("torch."), ", ".join(device.dtypes()) or "none"
    lines = [f"Would be used: {device.describe()}", f"  precision {dtype}; faster in hardware: {faster}"]
    lines += device.check()
    watts = device.power()
    return lines if watts is None else [*lines, f"  power {watts:.1f} W at present"]
