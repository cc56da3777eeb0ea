"""doctor: what would be used here, why not the others, and what the machine grants."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import unet
from unet import host
from unet.config import where
from unet.devices import environment, launchers
from unet.resolve import Resolved
from unet.runtime.run_folder import versions


def run(resolved: Resolved, command: str) -> int:
    """Print the report. Returns 0, or 1 where nothing can be used."""
    config = resolved.config
    total, available = host.memory()
    lines = [f"unet {unet.__version__}, Python {sys.version.split()[0]} ({sys.executable})", "", "Devices"]
    usable = []
    rank = launchers.find_rank(config)
    for name in environment.DEVICES:
        device = environment.load(name)
        why = environment.usable(device, config, rank)
        cards = None if why else device.cards()
        lines.append(
            f"  {name:<6} {'usable' if not why else 'not usable: ' + why}" + (f", {cards} cards" if cards else "")
        )
        usable += [] if why else [name]
    wanted = [name for name in usable if config.device in ("auto", name)]
    if wanted:
        device_now = environment.load(wanted[0])(config, rank)
        precisions = ", ".join(device_now.dtypes()) or "none"
        lines += [
            "",
            f"Would be used: {device_now.describe()}",
            f"  precision {str(device_now.dtype).removeprefix('torch.')}; faster in hardware: {precisions}",
        ]
    else:
        lines += ["", f"--device {config.device} cannot be used here."]
    lines += [
        "",
        "Machine",
        f"  cores      {host.cores()} of {os.cpu_count()} may be used",
        f"  memory     {host.size(available)} free of {host.size(total)}",
    ]
    for title, path in (("data", Path("data")), ("weights", Path("weights")), ("runs", Path(config.out))):
        state = "" if os.access(path if path.exists() else ".", os.W_OK) else ", NOT WRITABLE"
        lines.append(
            f"  {title:<10} {host.size(host.disk(path.absolute()))} free on the disk of {path.absolute()}{state}"
        )
    raw = where(config.data, "data")
    lines.append(
        f"  raw data   {raw.absolute()}: {'there' if raw.is_dir() else 'not there (--data PATH, or --synth-data)'}"
    )
    lines += ["", "Packages"]
    for package, version in versions().items():
        lines.append(f"  {package:<16} {version if version[0].isdigit() else version + '; type: pip install -e .'}")
    print("\n".join(lines))
    return 0 if wanted else 1
